# SPDX-License-Identifier: Apache-2.0
"""Whatever comes over the line: the sanitizers stay silent, the state stays as it was, the board keeps answering."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from sparcl_mcu.host_tools import protocol
from sparcl_mcu.host_tools.frame import REPLY, REQUEST, Frame, Splitter, decode
from sparcl_mcu.host_tools.link import Link
from sparcl_mcu.spec import wire
from sparcl_mcu.spec.types import Model
from sparcl_mcu.spec.wire import Command
from tests.firmware.native import SECONDS, Teacher, Twin, build, running
from tests.reference.models import random_model, random_samples

CLASSES = 4


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    """One program for all tests here."""
    model = random_model(11, sizes=(16, 12, CLASSES), batch=2, table=64)
    return model, build(model, tmp_path_factory.mktemp("hostile"))


@pytest.fixture
def twin(image: tuple[Model, Path], tmp_path: Path) -> Iterator[Twin]:
    """A board in the middle of its second task."""
    with running(*image, tmp_path) as twin:
        teacher = Teacher(twin, 1)
        teacher.begin((0, 1), 12, streamed=False, seed=1)
        teacher.finish()
        teacher.begin((2, 3), 20, streamed=False, seed=2)
        teacher.advance(5)
        yield twin


def shout(twin: Twin, line: Iterable[bytes]) -> list[Frame]:
    """Send raw bytes; the board's replies up to that to a last, good request."""
    twin.link.close()
    last = Frame(REQUEST, 255, Command.DIGEST, 0, b"")
    port = int(twin.process.url.rsplit(":", 1)[1])
    frames: list[Frame] = []
    splitter = Splitter()
    with socket.create_connection(("127.0.0.1", port), SECONDS) as raw:

        def hear() -> bool:
            data = raw.recv(1 << 16)
            assert data, twin.process.errors()
            frames.extend(f for f in map(decode, splitter.feed(data)) if f is not None and f.kind == REPLY)
            return bool(frames) and (frames[-1].sequence, frames[-1].command) == (255, Command.DIGEST)

        raw.sendall(b"\0")
        for part in line:
            raw.sendall(part)
            raw.setblocking(False)
            try:
                while True:
                    hear()
            except BlockingIOError:
                pass
            finally:
                raw.settimeout(SECONDS)
        raw.sendall(b"\0" + last.encode())
        while not hear():
            pass
    assert twin.process.alive(), twin.process.errors()
    twin.link = Link(twin.process.url)
    return frames


def test_noise(twin: Twin) -> None:
    """Random bytes, with few zeros and with many."""
    rng = random.Random(1)
    parts = [rng.randbytes(rng.randrange(1, 400)) for _ in range(400)]
    parts += [bytes(rng.choices((0, 1, 2, 255, 63, 13, 10), k=rng.randrange(1, 60))) for _ in range(600)]
    parts += [b"\x22" * 5000, b"\xff" * 5000, b"\x01" * 5000]
    shout(twin, parts)
    twin.check_dump()
    twin.check()


def good_frames(rng: random.Random, n_in: int, nonce: bytes) -> list[Frame]:
    """Requests that would be executed if they came whole."""
    payloads = {
        Command.TRAIN: b"\x05\0\x01",
        Command.TASK_BEGIN: b"\0\x08\0\x02\0\x01",
        Command.SAMPLES: b"\0\0\x01\0" + rng.randbytes(n_in),
        Command.EVALUATE: b"\x02" + b"".join(b"\x01" + rng.randbytes(n_in) for _ in range(2)),
        Command.REPLAY: bytes(8) + rng.randbytes(n_in),
        Command.RESET: b"\x01" + nonce,
        Command.TASK_END: b"",
        Command.SAVE: b"",
        Command.STEP: b"\x01\0\0\x02" + rng.randbytes(n_in) + b"\0",
    }
    return [Frame(REQUEST, rng.randrange(256), command, 0, payload) for command, payload in payloads.items()]


def mutate(rng: random.Random, wire: bytes) -> bytes:
    """One to four faults in a frame."""
    data = bytearray(wire)
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(data))
        match rng.randrange(5):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at] = rng.randrange(256)
            case 2:
                data.insert(at, rng.choice((0, 1, 63, 255)))
            case 3 if len(data) > 1:
                del data[at]
            case _:
                data[at:at] = data[rng.randrange(len(data)) :][:40]
    return bytes(data)


def test_mutated_frames(twin: Twin) -> None:
    """Thousands of requests with faults: none is executed."""
    rng = random.Random(2)
    given = twin.model.n_in, twin.hello().nonce
    wires = [mutate(rng, frame.encode()) for _ in range(350) for frame in good_frames(rng, *given)]
    intact = {frame.encode()[:-1] for frame in good_frames(rng, *given)}
    parts = [w for w in wires if all(decode(chunk) is None for chunk in w.split(b"\0")) and w not in intact]
    assert len(parts) > 2500
    replies = shout(twin, (part + b"\0" for part in parts))
    assert {(f.command, f.status) for f in replies[:-1]} == {(0, 1)}
    assert len(replies) > 2500
    twin.check_dump()
    twin.check()


def random_request(rng: random.Random, n_in: int, nonce: bytes) -> tuple[int, bytes]:
    """A request whose frame is right and whose contents are mostly not."""
    command = rng.choice([*range(0, 18), 0xFF, *(Command.SAMPLES, Command.TRAIN, Command.STEP, Command.REPLAY) * 2])
    small, byte = rng.randrange(4), rng.choice((0, 1, 2, 5, 20, 127, 255))
    x = rng.randbytes(n_in)
    shapes = {
        Command.TASK_BEGIN: lambda: (
            struct.pack("<BHB", rng.randrange(3), rng.choice((0, 1, 9, 64, 65, 65535)), small)
            + bytes(rng.choice((0, 1, 2, 3, 4, 255)) for _ in range(small))
        ),
        Command.SAMPLES: lambda: (
            struct.pack("<HB", rng.choice((0, 1, 7, 65535)), small)
            + b"".join(bytes([rng.choice((0, 1, 2, 3, 4))]) + x for _ in range(small))
        ),
        Command.TRAIN: lambda: struct.pack("<HB", rng.choice((0, 1, 3, 100, 101, 65535)), rng.randrange(2)),
        Command.STEP: lambda: (
            bytes([small])
            + b"".join(struct.pack("<HB", rng.randrange(8), rng.randrange(5)) + x for _ in range(small))
            + bytes([rng.randrange(2)])
        ),
        Command.EVALUATE: lambda: bytes([small]) + b"".join(bytes([rng.randrange(5)]) + x for _ in range(small)),
        Command.PREDICT: lambda: x,
        Command.REPLAY: lambda: struct.pack("<IHBB", rng.randrange(2**32), byte, byte, rng.randrange(5)) + x,
        Command.DUMP: lambda: struct.pack("<HIH", rng.choice((0, 1, 2, 3, 4, 16, 17, 23, 255)), byte, byte * 9),
        Command.RESET: lambda: bytes([rng.choice((1, 2, 255))]) + rng.choice((nonce, bytes(8))),
    }
    request = shapes[command]() if command in shapes else b""  # type: ignore[index]
    if rng.random() < 0.2:  # another length
        request = rng.choice((request[:-1], request + b"\0", b"", rng.randbytes(rng.randrange(1000))))
    if command == Command.RESET and rng.random() < 0.9:
        request = b"\x02" + nonce  # too many factory resets leave nothing to test
    return command, request


def test_random_requests(image: tuple[Model, Path], tmp_path: Path) -> None:
    """Whole frames with random contents: board and reference agree about each."""
    rng = random.Random(4)
    with running(*image, tmp_path) as twin:
        refused = done = 0
        phases = set()
        for _ in range(2500):
            command, request = random_request(rng, twin.model.n_in, twin.hello().nonce)
            if command in (Command.HELLO, Command.STATISTICS):
                continue
            if twin.send(command, request) is None:
                refused += 1
            else:
                done += 1
            phases.add(twin.device.phase)
        assert phases == {0, 1, 2, 3}
        assert min(refused, done) > 300
        twin.check_dump()


def test_limits_of_a_request(image: tuple[Model, Path], tmp_path: Path) -> None:
    """As many steps as hello says, and not one more."""
    with running(*image, tmp_path) as twin:
        Teacher(twin, 1).begin((0, 1), 64, streamed=False, seed=1)
        most = twin.hello().steps_per_request
        for steps in (most + 1, 2 * most, 65535):
            assert twin.send(Command.TRAIN, struct.pack("<HB", steps, 0)) is None
        twin.good(Command.TRAIN, struct.pack("<HB", most, 1))
        assert twin.ask(Command.DUMP, struct.pack("<HIH", 16, 0, twin.hello().max_payload + 1))[0] == 5
        twin.check_dump()


def test_a_reply_longer_than_its_request(tmp_path: Path) -> None:
    """Few inputs and many classes: no more is evaluated than a reply holds."""
    model = random_model(3, sizes=(3, 8, 40))
    with running(model, build(model, tmp_path)) as twin:
        room = twin.hello().max_payload
        most = (room - 1) // (1 + 2 * 40)
        x, y = random_samples(model, range(40), 255, 1)
        assert 0 < most < 255
        assert room >= 1 + 255 * (1 + 3)
        assert len(twin.good(Command.EVALUATE, protocol.pack_labelled(y[:most], x[:most]))) <= room
        for count in (most + 1, 255):
            assert twin.ask(Command.EVALUATE, protocol.pack_labelled(y[:count], x[:count])) == (5, b"")
        twin.check_dump()


def test_repeated_request_is_not_executed_again(twin: Twin) -> None:
    """The same frame again gets the same reply; the state moves once."""
    wire = Frame(REQUEST, 77, Command.TRAIN, 0, b"\x02\0\x01").encode()
    before = twin.device.step
    replies = shout(twin, [wire, wire, b"\x05\x05\0", wire])
    trained = [f for f in replies if f.command == Command.TRAIN]
    assert len(trained) == 3
    assert trained[0] == trained[1] == trained[2]
    assert [f.status for f in replies if f.command == 0] == [1]
    twin.device.apply(Command.TRAIN, b"\x02\0\x01")
    assert twin.device.step == before + 2
    twin.check()


def test_half_a_frame(twin: Twin) -> None:
    """A board never waits for the rest: whoever comes next is heard, whatever was left unfinished."""
    wire = Frame(REQUEST, 9, Command.TRAIN, 0, b"\x02\0\x01").encode()
    port = int(twin.process.url.rsplit(":", 1)[1])
    for cut in range(1, len(wire) - 1):
        twin.link.close()
        with socket.create_connection(("127.0.0.1", port), SECONDS) as raw:
            raw.sendall(wire[:cut])
        twin.link = Link(twin.process.url)
        twin.check()


def test_question(twin: Twin) -> None:
    """A line for people, in the middle of requests."""
    twin.link.close()
    with socket.create_connection(("127.0.0.1", int(twin.process.url.rsplit(":", 1)[1])), SECONDS) as raw:
        raw.sendall(b"\0?\r")
        line = b""
        while not line.endswith(b"\r\n"):
            line += raw.recv(1)
    text = line.decode()
    assert text.startswith("sparcl-mcu ")
    assert f"model {twin.model.model_hash.hex()}" in text
    assert f"task 1, training, step {twin.device.step}, replay {twin.device.filled}, snapshot 1" in text
    twin.link = Link(twin.process.url)
    twin.check()
    assert protocol.hello(twin.link).phase == wire.Phase.TRAINING


def test_the_greeting_ends_like_a_frame(twin: Twin) -> None:
    """A zero byte behind the text of a start: the first reply is not taken for its end."""
    restart = Frame(REQUEST, 1, Command.RESET, 0, bytes([protocol.RESTART]) + twin.hello().nonce)
    twin.link.close()
    with socket.create_connection(("127.0.0.1", int(twin.process.url.rsplit(":", 1)[1])), SECONDS) as raw:
        raw.sendall(b"\0" + restart.encode())
        heard = b""
        while not heard.endswith(b"\0") or b"sparcl-mcu" not in heard:
            heard += raw.recv(1 << 16)
    *_, greeting, nothing = heard.split(b"\0")
    assert greeting.startswith(b"sparcl-mcu ")
    assert greeting.endswith(b"\r\n")
    assert nothing == b""
    twin.link = Link(twin.process.url)
