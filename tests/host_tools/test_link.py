# SPDX-License-Identifier: Apache-2.0
"""Frames and the link: retries, resynchronisation, duplicates, latency."""

from __future__ import annotations

import os
import pty
import struct
import time
import tty
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparcl_mcu.generator.pipeline import Project
from sparcl_mcu.host_tools import frame, link, protocol
from sparcl_mcu.host_tools.frame import Frame, Splitter
from sparcl_mcu.host_tools.link import DeviceError, Link, LinkError, NoisyLineError
from sparcl_mcu.host_tools.recording import NOISE, Header, Recorder, entries, transactions
from sparcl_mcu.spec import wire
from sparcl_mcu.spec.errors import UserError
from sparcl_mcu.spec.types import Task
from sparcl_mcu.spec.wire import Command
from tests.host_tools.fake_board import FakeBoard, commands
from tests.line import Proxy, damage


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost frame costs a tenth of a second."""
    monkeypatch.setattr(link, "SHORTEST_WAIT", 0.1)


@pytest.fixture(params=["tcp", "pty"])
def any_board(request: pytest.FixtureRequest, project: Project) -> Iterator[FakeBoard]:
    with FakeBoard(project.model, pty=request.param == "pty") as fake:
        yield fake


@pytest.fixture(params=["tcp", "pty"])
def line_to(request: pytest.FixtureRequest, board: FakeBoard) -> Iterator[Proxy]:
    """A line to ``board`` that can be made a bad one."""
    with Proxy(board.url, pty=request.param == "pty") as proxy:
        yield proxy


# -- frames -------------------------------------------------------------------------------------------

BYTES = st.integers(0, 255)


@given(BYTES, BYTES, BYTES, BYTES, st.binary(max_size=600))
def test_frame_round_trip(kind: int, sequence: int, command: int, status: int, payload: bytes) -> None:
    original = Frame(kind, sequence, command, status, payload)
    encoded = original.encode()
    assert encoded.endswith(b"\0")
    assert b"\0" not in encoded[:-1]
    assert frame.decode(encoded[:-1]) == original


def test_frame_bytes_are_those_of_the_specification() -> None:
    body = bytes([0x01, 7, 0x04, 0, 100, 1, 1])
    data = body + struct.pack("<I", zlib.crc32(body))
    expected = bytes([4, 1, 7, 4, len(data) - 4 + 1]) + data[4:] + b"\0"
    assert b"\0" not in data[4:]
    assert Frame(0x01, 7, 0x04, 0, bytes([100, 1, 1])).encode() == expected


@given(st.binary(max_size=100), st.data())
def testdamaged_frame_is_never_taken(payload: bytes, data: st.DataObject) -> None:
    encoded = bytearray(Frame(0x81, 1, 2, 0, payload).encode()[:-1])
    at = data.draw(st.integers(0, len(encoded) - 1))
    encoded[at] ^= data.draw(st.integers(1, 255))
    assert frame.decode(bytes(encoded)) is None


@given(st.binary(max_size=300))
def test_any_bytes_decode_or_not(chunk: bytes) -> None:
    frame.decode(chunk)


@given(st.lists(st.binary(min_size=1, max_size=40).filter(lambda b: 0 not in b)), st.data())
def test_splitter_does_not_care_how_bytes_arrive(chunks: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(chunk + b"\0" for chunk in chunks)
    splitter, found, at = Splitter(), [], 0
    while at < len(stream):
        size = data.draw(st.integers(1, 30))
        found += splitter.feed(stream[at : at + size])
        at += size
    assert found == chunks


@pytest.mark.parametrize("end", [b"", b"\0"])
def test_a_frame_without_its_end_is_none(end: bytes) -> None:
    """Whatever may follow: it is decoded when the zero byte has come, not before."""
    whole = Frame(0x81, 1, 2, 0, b"payload").encode()
    splitter = Splitter()
    assert splitter.feed(whole[:-1]) == []
    assert splitter.begun
    assert splitter.feed(end) == [whole[:-1]] * len(end)
    assert splitter.begun == (not end)
    splitter.drop()
    assert splitter.feed(b"\0\0") == []  # zero bytes that end nothing


def test_splitter_forgets_endless_noise() -> None:
    splitter = Splitter()
    for _ in range(20):
        splitter.feed(b"x" * 100_000)
    assert len(splitter._rest) <= Splitter.LIMIT


# -- the link -----------------------------------------------------------------------------------------


def test_hello(any_board: FakeBoard, project: Project) -> None:
    with Link(any_board.url) as line:
        hello = protocol.hello(line)
    assert hello.model_hash == project.model.model_hash
    assert (hello.board, hello.n_in, hello.max_payload) == ("native", 64, 1024)
    assert hello.fresh


def _nth(count: int, fault: Callable[[bytes], list[bytes]]) -> Callable[[bytes], list[bytes]]:
    """Apply ``fault`` to the ``count``-th piece only."""
    calls = 0

    def apply(data: bytes) -> list[bytes]:
        nonlocal calls
        calls += 1
        return fault(data) if calls == count else [data]

    return apply


def _lose(_chunk: bytes) -> list[bytes]:
    return []


def _twice(chunk: bytes) -> list[bytes]:
    return [chunk, chunk]


def _with_noise(chunk: bytes) -> list[bytes]:
    return [b"\x05noise\xff\0", b"boot: hello\r\n", chunk]


FAULTS = {"damage": damage, "loss": _lose, "twice": _twice, "noise": _with_noise}


def small_requests(line: Link) -> protocol.Hello:
    """The board's hello, as if only four samples went into a request, on any line."""
    state = protocol.hello(line)
    line.fit(state.max_payload, state.max_payload)
    return replace(state, max_payload=3 + 4 * (1 + state.n_in))


def begin(line: Link, project: Project) -> Task:
    """The first task, with room for its samples: six of those requests."""
    task = project.dataset.tasks[0]
    protocol.task_begin(line, task.classes, len(task.y_train), streamed=False)
    assert len(task.y_train) == 24
    return task


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
@pytest.mark.parametrize("way", ["hear", "say"])
@pytest.mark.parametrize("window", [1, 3, 8])
@pytest.mark.parametrize("nth", [1, 2, 6])
def test_faults_on_the_line_change_nothing(
    board: FakeBoard,
    line_to: Proxy,
    project: Project,
    tmp_path: Path,
    fault: Callable[[bytes], list[bytes]],
    way: str,
    window: int,
    nth: int,
) -> None:
    """Whatever happens to a frame, every request is executed once, in order, and answered rightly."""
    recorder = Recorder(tmp_path / "r.sclr", Header("tiny", "native", bytes(8), 0, "0"))
    board.window = window
    with Link(line_to.url) as line:
        state = small_requests(line)
        line.recorder = recorder
        task = begin(line, project)
        line._slowest = dict.fromkeys(Command, 0.0)
        setattr(line_to, way, _nth(nth, fault))
        received = list(protocol.samples(line, state, task.y_train, task.x_train))
    assert received == [4, 8, 12, 16, 20, 24]
    assert board.device.received == 24
    assert commands(board) == [Command.HELLO, Command.TASK_BEGIN] + [Command.SAMPLES] * 6
    recorded = list(transactions(tmp_path / "r.sclr"))
    assert [t.command for t in recorded] == [Command.TASK_BEGIN] + [Command.SAMPLES] * 6
    assert [struct.unpack("<H", t.reply)[0] for t in recorded[1:]] == received
    noisy = any(e.kind == NOISE for e in entries(tmp_path / "r.sclr"))
    assert noisy == (way == "say" and fault in (damage, _with_noise))


def test_a_reply_that_comes_twice_answers_one_request(board: FakeBoard) -> None:
    """The second one is that of no other request, nor a sign that one was lost, nor another answer."""
    with Link(board.url) as line:
        flight = link._Flight(line, divisible=True)
        for sequence, kind in ((1, frame.REQUEST), (2, frame.NEXT), (3, frame.NEXT)):
            flight.send(Frame(kind, sequence, Command.SAMPLES, 0, b""))
        first = Frame(frame.REPLY, 1, Command.SAMPLES, 0, b"first")
        assert flight.take(first)
        for again in (first, Frame(frame.REPLY, 1, Command.SAMPLES, 0, b"second")):
            assert not flight.take(again)
        assert flight.waiting[0].answer == first
        assert not flight.stalled  # two replies are still to come
        assert flight.take(replace(first, sequence=2))
        assert not flight.stalled
        assert flight.take(replace(first, sequence=3))
        assert [pending.answer is not None for pending in flight.waiting] == [True] * 3


def test_the_line_is_opened_with_the_end_of_whatever_was_unfinished(tmp_path: Path) -> None:
    """And so is each repetition: the board would take it for the rest of a frame whose end was lost."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    os.set_blocking(master, False)
    request = Frame(frame.REQUEST, 1, Command.DIGEST, 0, b"")
    with Link(os.ttyname(slave)) as line:
        assert os.read(master, 100) == frame.DELIMITER
        flight = link._Flight(line, divisible=True)
        flight.send(request)
        flight.send_again()
        assert os.read(master, 100) == request.encode() + frame.DELIMITER + request.encode()
    os.close(master)
    os.close(slave)


@pytest.mark.parametrize("window", [1, 2, 5, 8])
def test_window_is_filled(project: Project, monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    """No reply comes through before as many requests as the board takes have come."""
    monkeypatch.setattr(link, "SHORTEST_WAIT", 10.0)
    with FakeBoard(project.model) as board, Proxy(board.url) as line_to, Link(line_to.url) as line:
        board.window = window
        state = small_requests(line)
        task = begin(line, project)
        x, y = task.x_train, task.y_train
        line_to.hold = min(window, 6)
        if 6 % window:
            x, y = x[: 4 * window], y[: 4 * window]
        *_, received = protocol.samples(line, state, y, x)
        assert received == len(x)
        assert line_to.most == min(window, 6)
        assert line.retries == 0


class _Count:
    """Counts the requests sent before the reply to an earlier one was used."""

    def __init__(self, line: Link) -> None:
        self.waiting = self.most = 0
        self._original = Link._send.__get__(line)
        line._send = self  # type: ignore[assignment, method-assign]

    def __call__(self, request: Frame, sealed: Frame) -> None:
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        self._original(request, sealed)


def test_no_more_under_way_than_the_board_takes(project: Project) -> None:
    """The window never grows beyond the board's, nor beyond the replies it keeps."""
    x = np.repeat(project.dataset.tasks[0].x_test, 40, axis=0)
    labels = np.repeat(project.dataset.tasks[0].y_test, 40)
    with FakeBoard(project.model) as board, Link(board.url) as line:
        for window in (1, 3, 8):
            board.window, line.identity = window, None
            state = protocol.hello(line)
            each = 1 + protocol.evaluations_per_frame(state) * (1 + 2 * state.n_classes)
            places = protocol.window(state, each)
            assert places == min(window, state.max_payload // (each + protocol.KEPT))
            count = _Count(line)
            for reply in protocol.evaluations(line, state, labels, x, state.n_classes):
                assert reply.correct <= len(reply.predicted)
                count.waiting -= 1
            assert count.most == places


def test_refused_in_the_midst(project: Project, tmp_path: Path) -> None:
    """Nothing behind a refused request is executed, and the recording says so."""
    with FakeBoard(project.model) as board, Link(board.url) as line:
        state = small_requests(line)
        line.recorder = Recorder(tmp_path / "r.sclr", Header("tiny", "native", bytes(8), 0, "0"))
        task = begin(line, project)
        labels = task.y_train.copy()
        labels[9] = 7
        replies = protocol.samples(line, state, labels, task.x_train)
        assert [next(replies), next(replies)] == [4, 8]
        with pytest.raises(DeviceError, match="bad label"):
            next(replies)
        assert board.device.received == 8
        assert protocol.hello(line).received == 8
    recorded = list(transactions(tmp_path / "r.sclr"))
    assert [t.status for t in recorded] == [0, 0, 0, 6, 0]
    assert recorded[-1].command == Command.HELLO


def test_restart_in_the_midst(project: Project) -> None:
    """A board that lost its place takes nothing more: its memory is older than what it is sent."""
    with FakeBoard(project.model) as board, Proxy(board.url) as line_to, Link(line_to.url) as line:
        board.window = 2
        state = small_requests(line)
        task = begin(line, project)

        def cut(chunk: bytes) -> list[bytes]:
            board.power_cycle()
            return [chunk]

        line_to.hear = _nth(4, cut)
        with pytest.raises(DeviceError, match=r"out of turn.*restarted.*--resume"):
            list(protocol.samples(line, state, task.y_train, task.x_train))
        assert (board.device.received, board.device.phase) == (0, wire.Phase.IDLE)


def test_predictions(project: Project) -> None:
    task = project.dataset.tasks[1]
    with FakeBoard(project.model) as board, Link(board.url) as line:
        state = protocol.hello(line)
        found = list(protocol.predictions(line, state, task.x_test))
        (whole,) = protocol.evaluations(line, state, task.y_test[:8], task.x_test[:8], state.n_classes)
    assert [c for c, _ in found[:8]] == whole.predicted.tolist()
    assert np.array_equal([logits for _, logits in found[:8]], whole.logits)
    assert len(found) == len(task.x_test)


def test_random_faults(board: FakeBoard, line_to: Proxy, rng: np.random.Generator) -> None:
    """Three pieces in ten are damaged, lost, doubled or preceded by noise; every answer is right."""

    def fault(data: bytes) -> list[bytes]:
        return list(FAULTS.values())[rng.integers(4)](data) if rng.random() < 0.3 else [data]

    with Link(line_to.url) as line:
        protocol.hello(line)
        line_to.hear = line_to.say = fault
        for k in range(40):
            try:
                reply = line.request(Command.DIGEST, timeout=0.1)
                assert protocol.unpack_digest(reply).state == board.device.digest()
            except LinkError:
                assert k  # three losses in a row do happen
        assert line.retries > 0


def test_resynchronises_at_any_byte(project: Project) -> None:
    """An unfinished frame of an earlier session, or half a reply of the board, does no harm."""
    with FakeBoard(project.model) as board:
        whole = Frame(frame.REQUEST, 9, Command.DIGEST, 0, b"").encode()
        for cut in range(1, len(whole)):
            with Link(board.url) as line:
                line._write(whole[:cut])
                line._splitter.feed(b"\x11half a reply"[:cut])
                line._slowest = {Command.HELLO: 0.0}
                assert protocol.hello(line).board == "native"


def test_silent_board(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeBoard(project.model) as board, Proxy(board.url) as line_to, Link(line_to.url) as line:
        heard: list[bytes] = []
        line_to.hear = lambda chunk: heard.append(chunk) or []  # type: ignore[func-returns-value]
        started = time.monotonic()
        with pytest.raises(LinkError, match=r"no answer to command 0x0a after 3 tries"):
            line.request(Command.DIGEST, timeout=0.1)
        assert 0.25 < time.monotonic() - started < 1.0
        assert len(heard) == link.TRIES
        assert len(set(heard)) == 1


def test_line_that_only_damages(project: Project) -> None:
    with FakeBoard(project.model) as board, Proxy(board.url) as line_to, Link(line_to.url) as line:
        line_to.hear = damage
        with pytest.raises(LinkError, match=r"sent 60 times and never came through whole \(60 frames.*check the cable"):
            line.request(Command.DIGEST, timeout=1.0)
        assert board.executed == []


def _without_end(nth: int) -> Callable[[bytes], list[bytes]]:
    """A line that loses the zero byte at the end of the ``nth`` piece."""
    calls = 0

    def apply(data: bytes) -> list[bytes]:
        nonlocal calls
        calls += 1
        return [data[:-1] if calls == nth else data]

    return apply


@pytest.mark.parametrize("window", [1, 8])
@pytest.mark.parametrize("nth", range(1, 13))
def test_lost_end_of_a_frame_costs_no_time_out(
    board: FakeBoard, project: Project, monkeypatch: pytest.MonkeyPatch, window: int, nth: int
) -> None:
    """Host and board do not wait for each other, also when one has taken two frames for one."""
    monkeypatch.setattr(link, "TRIES", 1)
    monkeypatch.setattr(link, "PROD", 0.05)
    board.window = window
    with Proxy(board.url) as line_to, Link(line_to.url) as line:
        state = small_requests(line)
        task = begin(line, project)
        line._slowest = {}
        line_to.noise = _without_end(nth)
        assert list(protocol.samples(line, state, task.y_train, task.x_train)) == [4, 8, 12, 16, 20, 24]
        assert commands(board).count(Command.SAMPLES) == 6
        assert line.retries > 0


def test_damaged_reply_costs_no_time_out(board: FakeBoard, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host asks again at once."""
    monkeypatch.setattr(link, "TRIES", 1)
    monkeypatch.setattr(link, "SHORTEST_WAIT", 1000.0)
    with Proxy(board.url) as line_to, Link(line_to.url) as line:
        line_to.say = _nth(1, damage)
        line.request(Command.DIGEST, timeout=5.0)
        assert (line.retries, line.damaged) == (1, 1)
        assert commands(board) == [Command.DIGEST]


def test_requests_are_as_large_as_the_line_carries(
    board: FakeBoard, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not get through is given up for smaller ones, which grow again where it does."""
    monkeypatch.setattr(link, "SHORTEST_WAIT", 10.0)
    x, y = np.repeat(project.dataset.tasks[0].x_test, 200, axis=0), np.repeat(project.dataset.tasks[0].y_test, 200)
    sizes: list[int] = []

    def only_short(chunk: bytes) -> list[bytes]:
        sizes.append(len(chunk))
        return damage(chunk) if len(chunk) > 300 else [chunk]

    with Proxy(board.url) as line_to, Link(line_to.url) as line:
        board.window = 1
        state = protocol.hello(line)
        line_to.hear = only_short
        with pytest.raises(NoisyLineError, match="--resume"):
            list(protocol.evaluations(line, state, y, x, state.n_classes))
        assert sizes == [sizes[0]] * link.SHRINK_AFTER
        sizes.clear()
        assert sum(len(r.predicted) for r in protocol.evaluations(line, state, y[:9], x[:9], state.n_classes)) == 9
        assert line.retries == link.SHRINK_AFTER - 1
        assert max(sizes) < 300
        line_to.hear = lambda chunk: sizes.append(len(chunk)) or [chunk]  # type: ignore[func-returns-value]
        assert sum(len(r.predicted) for r in protocol.evaluations(line, state, y, x, state.n_classes)) == len(x)
        assert max(sizes) > 900
        assert line.retries == link.SHRINK_AFTER - 1


def test_request_that_cannot_be_smaller_is_sent_again(board: FakeBoard, monkeypatch: pytest.MonkeyPatch) -> None:
    """More often than one that can."""
    monkeypatch.setattr(link, "SHORTEST_WAIT", 10.0)
    with Proxy(board.url) as line_to, Link(line_to.url) as line:
        protocol.hello(line)
        left = iter(range(link.PATIENCE - 1))
        line_to.hear = lambda chunk: damage(chunk) if next(left, None) is not None else [chunk]
        protocol.digest(line)
        assert line.retries == link.PATIENCE - 1


def test_text_of_a_board_that_starts_is_no_damaged_reply(board: FakeBoard) -> None:
    with Proxy(board.url) as line_to, Link(line_to.url) as line:
        line_to.say = lambda chunk: [b"sparcl-mcu 0.1.0 on native, idle\r\n", chunk]
        protocol.hello(line)
        assert (line.retries, line.damaged) == (0, 0)


def test_restart_whose_reply_is_lost(board: FakeBoard) -> None:
    """The request comes again to a board that has a new nonce: it has restarted, which is what was wanted."""
    with Proxy(board.url) as line_to, Link(line_to.url) as line:
        protocol.hello(line)
        line._slowest = dict.fromkeys(Command, 0.0)
        replies = iter(range(100))
        line_to.say = lambda chunk: [] if next(replies) == 1 else [chunk]
        assert protocol.reset(line, protocol.RESTART).nonce == board.nonce
        assert commands(board).count(Command.RESET) == 2


def test_sequence_numbers_differ_from_one_request_to_the_next(project: Project) -> None:
    with FakeBoard(project.model) as board:
        with Link(board.url) as line:
            for _ in range(300):
                protocol.digest(line)
        numbers = [request.sequence for request in board.executed]
    assert len(numbers) == 300
    assert all((b - a) % 256 == 1 for a, b in pairwise(numbers))


def test_refusal(project: Project) -> None:
    with FakeBoard(project.model) as board, Link(board.url) as line:
        with pytest.raises(DeviceError, match=r"bad state.*--resume") as caught:
            protocol.task_end(line)
        assert (caught.value.status, caught.value.name) == (4, "bad state")
        assert caught.value.exit_code == 1


def test_nobody_there() -> None:
    with pytest.raises(LinkError, match=r"cannot open socket://127\.0\.0\.1:1"):
        Link("socket://127.0.0.1:1")
    with pytest.raises(UserError, match="there is no port /dev/does-not-exist"):
        Link("/dev/does-not-exist")
    with pytest.raises(UserError, match="there is no port nonsense://"):
        Link("nonsense://")


def test_a_port_that_was_there_comes_back(tmp_path: Path) -> None:
    """A board on USB takes its port with it when it restarts: that is waited for, and no user's mistake."""
    _, other_end = pty.openpty()
    tty.setraw(other_end)
    port = tmp_path / "tty"
    port.symlink_to(os.ttyname(other_end))
    with Link(str(port)) as line:
        line.close()
        port.unlink()
        with pytest.raises(LinkError, match="cannot open"):
            line.open()
        port.symlink_to(os.ttyname(other_end))
        line.open()


def test_board_that_vanishes(project: Project) -> None:
    with FakeBoard(project.model) as board:
        line = Link(board.url)
        protocol.hello(line)
    with pytest.raises(LinkError):
        line.request(Command.DIGEST, timeout=0.2)
    line.close()


def test_restart_reconnects(project: Project) -> None:
    with FakeBoard(project.model) as board, Link(board.url) as line:
        task = project.dataset.tasks[0]
        protocol.task_begin(line, task.classes, len(task.y_train), streamed=False)
        assert protocol.hello(line).phase == wire.Phase.FILLING
        assert protocol.reset(line, protocol.RESTART).phase == wire.Phase.IDLE


def test_waiting_costs_neither_time_nor_processor(any_board: FakeBoard) -> None:
    """A round trip takes well below the 20 ms that a polling reader would add."""
    with Link(any_board.url) as line:
        protocol.hello(line)
        started = time.perf_counter()
        for _ in range(100):
            protocol.hello(line)
        each = (time.perf_counter() - started) / 100
        assert each < 0.01
        any_board.alter = lambda _command, payload: (time.sleep(0.3), payload)[1]
        processor = time.thread_time()
        protocol.hello(line)
        assert time.thread_time() - processor < 0.1
