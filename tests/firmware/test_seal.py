# SPDX-License-Identifier: Apache-2.0
"""What may change a board: the nonce that a reset needs, and the seals of a board that shares a key with the host."""

from __future__ import annotations

import ctypes
import hashlib
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparcl_mcu.host_tools import protocol
from sparcl_mcu.host_tools.frame import NEXT, REPLY, REQUEST, Frame, Splitter, decode
from sparcl_mcu.host_tools.link import DeviceError, Link, LinkError
from sparcl_mcu.host_tools.protocol import STATE_CHANGING, Hello
from sparcl_mcu.host_tools.seal import SIZE, Seal
from sparcl_mcu.spec import wire
from sparcl_mcu.spec.errors import BoardError, UserError
from sparcl_mcu.spec.paths import ROOT
from sparcl_mcu.spec.types import Model
from sparcl_mcu.spec.wire import Command
from tests.compiled import compile_c
from tests.firmware.native import SECONDS, Process, Teacher, Twin, build, running
from tests.firmware.test_window import facts
from tests.line import Proxy
from tests.reference.models import random_model, random_samples, task_begin

KEY = bytes(range(32))
OTHER_MODEL, WRONG_NONCE, TOO_LONG, NOT_SEALED, REPLAYED = range(12, 17)
CLASSES = 4


# -- BLAKE2s --------------------------------------------------------------------------------------------------------


Mac = Callable[[bytes, bytes, int], bytes]


@pytest.fixture(scope="module")
def blake2s(tmp_path_factory: pytest.TempPathFactory) -> Mac:
    """The firmware's, called with (message, key, bytes of the result)."""
    library = tmp_path_factory.mktemp("blake2s") / "blake2s.so"
    engine = ROOT / "firmware" / "engine"
    compile_c(["-std=c11", "-O2", "-shared", "-fPIC", f"-I{engine}", engine / "scl_blake2s.c", "-o", library])
    code = ctypes.CDLL(str(library))

    def mac(message: bytes, key: bytes, size: int) -> bytes:
        state, result = ctypes.create_string_buffer(256), ctypes.create_string_buffer(size)
        code.scl_blake2s_begin(state, key, len(key), size)
        for at in range(0, len(message), 50):
            part = message[at : at + 50]
            code.scl_blake2s_add(state, part, len(part))
        code.scl_blake2s_end(state, result)
        return result.raw

    return mac


def sequence(size: int, seed: int) -> bytes:
    """RFC 7693, appendix E: the messages and keys of the self-test."""
    a, b = 0xDEAD4BAD * seed & 0xFFFFFFFF, 1
    result = bytearray()
    for _ in range(size):
        a, b = b, (a + b) & 0xFFFFFFFF
        result.append(b >> 24)
    return bytes(result)


def test_vectors_of_the_rfc(blake2s: Mac) -> None:
    """RFC 7693, appendices B and E."""
    abc = "508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982"
    assert blake2s(b"abc", b"", 32).hex() == abc
    everything = b""
    for size in (16, 20, 28, 32):
        for length in (0, 3, 64, 65, 255, 1024):
            message = sequence(length, length)
            everything += blake2s(message, b"", size) + blake2s(message, sequence(size, size), size)
    expected = "6a411f08ce25adcdfb02aba641451cec53c598b24f4fc787fbdc88797f4c1dfe"
    assert blake2s(everything, b"", 32).hex() == expected


@given(st.binary(max_size=300), st.binary(max_size=32), st.integers(1, 32))
def test_as_the_standard_library(blake2s: Mac, message: bytes, key: bytes, size: int) -> None:
    assert blake2s(message, key, size) == hashlib.blake2s(message, key=key, digest_size=size).digest()


# -- the nonce ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    """A program without a key."""
    model = random_model(11, sizes=(16, 12, CLASSES), batch=2, table=64)
    return model, build(model, tmp_path_factory.mktemp("open"))


@pytest.fixture
def twin(image: tuple[Model, Path], tmp_path: Path) -> Iterator[Twin]:
    """A board that has learned something."""
    with running(*image, tmp_path) as twin:
        teacher = Teacher(twin, 1)
        teacher.begin((0, 1), 12, streamed=False, seed=1)
        teacher.finish()
        yield twin


def test_reset_needs_the_present_nonce(twin: Twin) -> None:
    """Neither a guess nor an old one, nor none: the board forgets nothing, and the two errors differ."""
    nonce = twin.hello().nonce
    start, used = struct.unpack("<II", nonce)
    for wrong in (bytes(8), struct.pack("<II", start, used + 1), struct.pack("<II", start ^ 1, used), nonce[::-1]):
        for kind in (protocol.RESTART, protocol.FACTORY):
            assert twin.ask(Command.RESET, bytes([kind]) + wrong) == (WRONG_NONCE, b"")
    assert twin.ask(Command.RESET, b"\x01") == (3, b"")
    assert twin.hello().nonce == nonce
    twin.check_dump()


def test_nonce_is_of_one_use_and_of_one_start(twin: Twin) -> None:
    """A recorded factory reset does nothing the second time, also after the board has lost power."""
    seen = {twin.hello().nonce}
    erase = protocol.reset_request(twin.hello(), protocol.FACTORY)
    twin.good(Command.RESET, erase)
    Teacher(twin, 2).begin((0, 1), 12, streamed=False, seed=1)
    for again in (lambda: None, twin.restart, twin.power_cut, twin.power_cut):
        if again() is not None:
            twin.device = type(twin.device)(twin.model, 100, 1024)
            Teacher(twin, 2).begin((0, 1), 12, streamed=False, seed=1)
        assert twin.ask(Command.RESET, erase)[0] == WRONG_NONCE
        assert twin.hello().nonce not in seen
        seen.add(twin.hello().nonce)
        twin.check_dump()


def test_no_nonce_before_the_first_hello(image: tuple[Model, Path], tmp_path: Path) -> None:
    process = Process(image[1], tmp_path)
    process.start()
    try:
        with Link(process.url) as line, pytest.raises(DeviceError, match="wrong nonce"):
            line.request(Command.RESET, b"\x01" + bytes(8))
    finally:
        process.kill()


# -- misuse, each with an error of its own ---------------------------------------------------------------------------


def test_task_of_another_model(twin: Twin) -> None:
    """Its samples could have the right size: the task names the model they were made for."""
    begin = task_begin((0, 1), 20)
    other = bytes(b ^ 1 for b in twin.model.model_hash)
    assert twin.send(Command.TASK_BEGIN, begin + other) is None
    assert twin.ask(Command.TASK_BEGIN, begin + other) == (OTHER_MODEL, b"")
    assert twin.ask(Command.TASK_BEGIN, begin + other[:7]) == (3, b"")
    twin.good(Command.TASK_BEGIN, begin + twin.model.model_hash)


def test_misuse_is_told_apart(twin: Twin) -> None:
    """Out of order, too large, of no class, of another model: different errors, each says what to do."""
    x, y = random_samples(twin.model, (2, 3), 20, 5)
    found = [
        twin.ask(Command.TRAIN, struct.pack("<HB", 1, 0)),
        twin.ask(Command.TASK_BEGIN, task_begin((2, 3), 65)),
        twin.ask(Command.TASK_BEGIN, task_begin((2, CLASSES), 20)),
        twin.ask(Command.TASK_BEGIN, task_begin((2, 3), 20) + bytes(8)),
        twin.ask(Command.EVALUATE, b"\x01\x00" + x[0].tobytes() + b"\0"),
        twin.ask(Command.DUMP, struct.pack("<HIH", 999, 0, 1)),
        twin.ask(17, b""),
    ]
    twin.good(Command.TASK_BEGIN, task_begin((2, 3), 20))
    found.append(twin.ask(Command.SAMPLES, struct.pack("<H", 5) + protocol.pack_labelled(y[:2], x[:2])))
    assert [status for status, _ in found] == [4, 10, 6, OTHER_MODEL, 3, 5, 2, 7]
    errors = [DeviceError(Command.TRAIN, status) for status, _ in found]
    assert len({error.name for error in errors}) == len({str(error) for error in errors}) == len(found)
    twin.check_dump()


def test_frame_longer_than_the_board_takes(twin: Twin) -> None:
    """Said at once, not taken for damage on the line for ever."""
    longest = bytes(twin.hello().max_payload)
    assert twin.ask(Command.PREDICT, longest) == (3, b"")
    assert twin.ask(Command.PREDICT, longest + b"\0") == (TOO_LONG, b"")
    twin.check_dump()


# -- the shared key -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    """A program with a key."""
    model = random_model(11, sizes=(16, 12, CLASSES), batch=2, table=64)
    return model, build(model, tmp_path_factory.mktemp("keyed"), facts(6), key=KEY)


@pytest.fixture
def process(keyed: tuple[Model, Path], tmp_path: Path) -> Iterator[Process]:
    """A board with a key."""
    process = Process(keyed[1], tmp_path)
    process.start()
    yield process
    assert process.alive(), process.errors()
    process.kill()


def replies(process: Process, *frames: Frame) -> Iterator[Frame]:
    """What the board answers to each of these frames."""
    port = int(process.url.rsplit(":", 1)[1])
    splitter = Splitter()
    with socket.create_connection(("127.0.0.1", port), SECONDS) as raw:
        for frame in frames:
            raw.sendall(b"\0" + frame.encode())
            chunks: list[bytes] = []
            while not chunks:
                data = raw.recv(1 << 16)
                assert data, process.errors()
                chunks = splitter.feed(data)
            yield from (reply for reply in map(decode, chunks) if reply is not None)


class Attacker:
    """Writes frames of its own; the statuses of the replies."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def __call__(self, *frames: Frame) -> list[int]:
        """Send these one after another."""
        return [reply.status for reply in replies(self._process, *frames)]


def where(process: Process) -> tuple[Hello, protocol.Digest]:
    """What the board is and its state, which anybody may ask."""
    with Link(process.url, key=KEY) as line:
        return protocol.hello(line), protocol.digest(line)


def sealed(state: Hello, *requests: Frame, key: bytes = KEY) -> list[Frame]:
    """As the host would send them."""
    seal = Seal(key, state.nonce, state.model_hash, STATE_CHANGING)
    return [seal.close(request) for request in requests]


BEGIN = Frame(REQUEST, 60, Command.TASK_BEGIN, 0, task_begin((0, 1), 9))


def test_learning_with_a_key(process: Process, keyed: tuple[Model, Path]) -> None:
    """As without one: board and reference agree about every reply, also after a power cut."""
    twin = Twin(keyed[0], process, KEY)
    assert twin.hello().keyed
    teacher = Teacher(twin, 3)
    teacher.upload(5)
    for task, streamed in ((1, False), (2, True)):
        teacher.begin((task, task + 1), 20, streamed=streamed, seed=task)
        teacher.finish()
        twin.power_cut()
    teacher.evaluate()
    twin.check_dump()
    twin.good(Command.RESET, protocol.reset_request(twin.hello(), protocol.FACTORY))
    twin.check_dump()
    twin.close()


def test_requests_without_a_right_seal_are_refused(process: Process) -> None:
    """None, a short one, one with another key, of another start or model, and any bit changed."""
    state, digest = where(process)
    (right,) = sealed(state, BEGIN)
    wrong = [
        BEGIN,
        replace(BEGIN, payload=BEGIN.payload + bytes(SIZE)),
        replace(BEGIN, payload=b"abc"),
        *sealed(state, BEGIN, key=KEY[::-1]),
        *sealed(replace(state, nonce=b"\1" + state.nonce[1:]), BEGIN),
        *sealed(replace(state, model_hash=bytes(8)), BEGIN),
        replace(right, kind=NEXT, sequence=right.sequence),
        replace(right, sequence=right.sequence ^ 1),
        replace(right, command=Command.SAMPLES),
        replace(right, status=1),
    ]
    for at in range(len(right.payload)):
        data = bytearray(right.payload)
        data[at] ^= 1 << (at % 8)
        wrong.append(replace(right, payload=bytes(data)))
    found = Attacker(process)(*wrong)
    assert set(found) <= {NOT_SEALED, 11}
    assert found.count(11) == 1  # the one of kind 0x02 is out of turn before anything else
    assert where(process)[1] == digest
    assert Attacker(process)(right) == [0]
    assert where(process)[0].phase == wire.Phase.FILLING


@pytest.mark.parametrize("command", sorted({*STATE_CHANGING, 0, 17, 255}))
def test_every_command_that_changes_something_needs_a_seal(process: Process, command: int) -> None:
    digest = where(process)[1]
    assert Attacker(process)(Frame(REQUEST, 7, command, 0, b"")) == [NOT_SEALED]
    assert where(process)[1] == digest


def test_nobody_else_takes_a_turn(process: Process, keyed: tuple[Model, Path]) -> None:
    """A request behind one that was held back is not executed, whatever comes between them without a seal."""
    state = where(process)[0]
    x, y = random_samples(keyed[0], (0, 1), 3, 7)
    records = [struct.pack("<IHBB", 40 + k, k, 0, int(y[k])) + x[k].tobytes() for k in range(3)]
    kinds = (REQUEST, NEXT, NEXT)
    first, held, last = sealed(
        state, *(Frame(kinds[k], 100 + k, Command.REPLAY, 0, record) for k, record in enumerate(records))
    )
    found = list(replies(process, first, Frame(REQUEST, 101, Command.HELLO, 0, b""), last, held))
    assert [reply.status for reply in found] == [0, 0, 11, 11]
    assert where(process)[0].filled == 1


def test_replay_and_reorder_fail(process: Process) -> None:
    """A sealed request counts once, and none after a later one; also not after a restart."""
    state, _ = where(process)
    requests = [replace(BEGIN, sequence=60 + k) for k in range(3)]
    first, second, third = sealed(state, *requests)
    attack = Attacker(process)
    assert attack(second, first, second, third) == [0, REPLAYED, 0, 4]  # the repetition is answered, not executed
    digest = where(process)[1]
    assert attack(first, second, third) == [REPLAYED] * 3
    with Link(process.url, key=KEY) as line:
        protocol.reset(line, protocol.RESTART)
    assert attack(first) == [NOT_SEALED]
    process.kill()
    process.start()
    assert attack(first) == [NOT_SEALED], "before any hello"
    after, fresh = where(process)
    assert after.nonce[:4] != state.nonce[:4]
    assert attack(first, second, third) == [NOT_SEALED] * 3
    assert where(process)[1] == fresh
    assert fresh != digest


def number(counter: bytes) -> int:
    """Of a seal, or the second one of a nonce."""
    return int.from_bytes(counter, "little")


def test_counters_go_on_across_sessions(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second host continues after the first; the counters of lost requests are not used again."""
    monkeypatch.setattr("sparcl_mcu.host_tools.seal.secrets.randbelow", lambda _: 1000)
    for _ in range(3):
        with Link(process.url, key=KEY) as line:
            protocol.hello(line)
            protocol.save(line)
    assert number(where(process)[0].nonce[4:]) == 3 * 1001
    with Link(process.url, key=KEY) as line:
        before = protocol.hello(line)
        assert number(line._sealed(BEGIN).payload[-SIZE:-8]) == 4 * 1001  # made, and lost
        assert protocol.hello(line).nonce == before.nonce
        assert number(line._sealed(BEGIN).payload[-SIZE:-8]) == 4 * 1001 + 1


def test_an_earlier_session_does_not_pass_for_this_one(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that the board said, hello included, said again to a host that sends the same."""
    monkeypatch.setattr("sparcl_mcu.host_tools.link.PATIENCE", 5)
    said: list[bytes] = []

    def listen(chunk: bytes) -> list[bytes]:
        said.append(chunk)
        return [chunk]

    with Proxy(process.url) as proxy, Link(proxy.url, key=KEY) as line:
        proxy.say = listen
        first = line._sequence
        protocol.hello(line)
        assert protocol.save(line) == 1
    recorded = [frame for frame in map(decode, said) if frame is not None and not frame.status]
    assert [frame.command for frame in recorded] == [Command.HELLO, Command.SAVE]
    hello, save = (frame.encode()[:-1] for frame in recorded)
    with Proxy(process.url) as proxy, Link(proxy.url, key=KEY) as line:
        proxy.say = lambda chunk: [save if (decode(chunk) or recorded[0]).command == Command.SAVE else hello]
        line._sequence = first
        assert protocol.hello(line).snapshot == 0
        with pytest.raises(LinkError, match="not sealed with this key"):
            protocol.save(line)


def test_counters_that_are_used_up(process: Process) -> None:
    """By a hello that somebody forged."""

    nonce = where(process)[0].nonce

    def forge(chunk: bytes) -> list[bytes]:
        reply = decode(chunk)
        assert reply is not None
        payload = reply.payload.replace(nonce, nonce[:4] + b"\xff\xff\xff\xff")
        return [replace(reply, payload=payload).encode()[:-1]]

    with Proxy(process.url) as proxy, Link(proxy.url, key=KEY) as line:
        proxy.say = forge
        protocol.hello(line)
        with pytest.raises(BoardError, match="power it off and on"):
            protocol.save(line)


def test_forged_replies_are_not_believed(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply without the right seal, or that to an earlier request, is no reply."""
    kept: list[bytes] = []

    def forge(chunk: bytes) -> list[bytes]:
        reply = decode(chunk)
        if reply is None or reply.command != Command.SAVE:
            return [chunk]
        kept.append(chunk)
        unsealed = Frame(REPLY, reply.sequence, Command.SAVE, 0, reply.payload[:4])
        changed = replace(reply, payload=b"\x09" + reply.payload[1:])
        old = decode(kept[0])
        assert old is not None
        replayed = replace(old, sequence=reply.sequence)
        return [frame.encode()[:-1] for frame in (unsealed, changed, replayed)] + ([chunk] if len(kept) < 3 else [])

    monkeypatch.setattr("sparcl_mcu.host_tools.link.PATIENCE", 5)
    with Proxy(process.url) as proxy, Link(proxy.url, key=KEY) as line:
        protocol.hello(line)
        proxy.say = forge
        assert [protocol.save(line), protocol.save(line)] == [1, 2]
        with pytest.raises(LinkError, match="not sealed with this key"):
            protocol.save(line)


def test_reply_of_long_ago_is_not_believed(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequence numbers come round; counters do not."""
    monkeypatch.setattr("sparcl_mcu.host_tools.link.PATIENCE", 5)
    kept: list[bytes] = []

    def again(chunk: bytes) -> list[bytes]:
        kept.append(chunk)
        return [kept[0]]

    with Proxy(process.url) as proxy, Link(proxy.url, key=KEY) as line:
        protocol.hello(line)
        proxy.say = again
        assert protocol.save(line) == 1
        line._sequence -= 1
        with pytest.raises(LinkError, match="not sealed with this key"):
            protocol.save(line)
    assert where(process)[0].snapshot == 2


@pytest.mark.parametrize("steps", [1, *range(34, 41)])
def test_a_long_sealed_reply_takes_the_place_of_others(process: Process, keyed: tuple[Model, Path], steps: int) -> None:
    """What is left of an earlier reply is not sent."""
    x, y = random_samples(keyed[0], (0, 1), 60, 4)
    with Link(process.url, key=KEY) as line:
        protocol.hello(line)
        protocol.task_begin(line, (0, 1), 60, streamed=False)
        assert list(protocol.samples(line, protocol.hello(line), y, x))[-1] == 60
        state = protocol.hello(line)
        assert state.steps_per_request == 40
    predict, train = sealed(
        state,
        Frame(REQUEST, 10, Command.PREDICT, 0, x[0].tobytes()),
        Frame(NEXT, 11, Command.TRAIN, 0, struct.pack("<HB", steps, 0)),
    )
    found = list(replies(process, predict, train, predict))
    assert [(reply.kind, reply.sequence, reply.command) for reply in found[::2]] == [(REPLY, 10, Command.PREDICT)] * 2
    assert [reply.status for reply in found[:2]] == [0, 0]
    trained, kept = 4 + 16 + 4 * steps + SIZE + 4, len(found[0].payload) + 4 + 10
    fits = trained + kept <= 4 + 200 + SIZE + 4
    assert (found[0] == found[2]) == fits
    assert found[2].status == (0 if fits else 16)


def test_host_and_board_must_agree_about_the_key(process: Process, twin: Twin) -> None:
    """Nothing is sent unsealed to a board with a key, nor to one that says that it has none."""
    with Link(process.url) as line, pytest.raises(UserError, match=r"has a shared key: set link\.key"):
        protocol.hello(line)
    twin.link.close()
    with Link(twin.process.url, key=KEY) as line, pytest.raises(UserError, match="has no shared key"):
        protocol.hello(line)
    twin.link = Link(twin.process.url)
    with Link(process.url, key=KEY[::-1]) as line:
        protocol.hello(line)
        with pytest.raises(DeviceError, match=r"not sealed.*another shared key"):
            protocol.save(line)


def test_the_window_leaves_room_for_seals(process: Process, keyed: tuple[Model, Path]) -> None:
    """The board keeps as many sealed replies as the host waits for."""
    x, y = random_samples(keyed[0], range(CLASSES), 200, 9)
    with Proxy(process.url) as proxy, Link(proxy.url, key=KEY) as line:
        state = protocol.hello(line)
        lost = iter(range(1000))
        proxy.say = lambda chunk: [] if next(lost) % 4 == 1 else [chunk]
        line._slowest = dict.fromkeys(Command, 0.0)
        assert sum(len(r.predicted) for r in protocol.evaluations(line, state, y, x, CLASSES)) == 200
        assert len(list(protocol.predictions(line, state, x))) == 200
        assert line.retries > 0
