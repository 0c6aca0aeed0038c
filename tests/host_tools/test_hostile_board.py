# SPDX-License-Identifier: Apache-2.0
"""Boards that want to keep a host busy, or make it take in more than there is: every session ends and says why."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from sparcl_mcu.generator import pipeline
from sparcl_mcu.generator.pipeline import Project
from sparcl_mcu.host_tools import bounds, cli, link, protocol, report, stream, validate
from sparcl_mcu.host_tools.bounds import Advance, Traffic
from sparcl_mcu.host_tools.frame import REPLY, Frame, Splitter
from sparcl_mcu.host_tools.link import LinkError
from sparcl_mcu.spec import wire
from sparcl_mcu.spec.errors import BoardError
from sparcl_mcu.spec.wire import Command, Status
from tests.host_tools.conftest import MakeProject
from tests.host_tools.fake_board import FakeBoard
from tests.line import Connection


def told(hello: bytes, **changes: int | bytes) -> bytes:
    """A hello with other values."""
    return wire.HELLO.pack(**wire.HELLO.unpack_from(hello) | changes)


class Liar(FakeBoard):
    """Says what it wants from the ``after``-th request of a kind on."""

    def lie(self, command: int, what: Callable[[bytes], bytes], after: int = 0) -> None:
        asked = 0

        def alter(code: int, payload: bytes) -> bytes:
            nonlocal asked
            asked += code == command
            return what(payload) if code == command and asked > after else payload

        self.alter = alter


def _hello(after: int = 2, **changes: int | bytes) -> Callable[[Liar], None]:
    return lambda board: board.lie(Command.HELLO, lambda hello: told(hello, **changes), after)


def _reply(command: int, payload: bytes) -> Callable[[Liar], None]:
    return lambda board: board.lie(command, lambda _: payload)


def _start_without_end(board: Liar) -> None:
    starts = [r.number for r in protocol.regions(board.model) if r.name.endswith(".start")]

    def alter(command: int, payload: bytes) -> bytes:
        if command == Command.DUMP and struct.unpack_from("<H", board.executed[-1].payload)[0] in starts:
            return payload[:-2] + b"\xff\xff"
        return payload

    board.alter = alter


def _backwards(board: Liar) -> None:
    left = iter(range(1000, 0, -1))
    size = wire.STATISTICS.size
    board.lie(Command.STATISTICS, lambda _: struct.pack("<Q", next(left)) + bytes(size - 8))


def _another_epoch(board: Liar) -> None:
    def again(hello: bytes) -> bytes:
        state = protocol.unpack_hello(hello)
        return told(hello, epoch=0, pos=0) if state.phase == wire.Phase.TRAINING else hello

    board.lie(Command.HELLO, again)


LIES: dict[str, tuple[Callable[[Liar], None], str]] = {
    "no payload": (_hello(max_payload=0), "max_payload is 0, it has to be 72 at least"),
    "no payload at all": (_hello(0, max_payload=0), "max_payload is 0"),
    "another payload": (_hello(max_payload=500), "identity has changed .max_payload is 500, it was 1024"),
    "another board": (_hello(board=b"\x1b[31mX"), r"board is '\\x1b\[31mX', it was 'native'"),
    "many classes": (_hello(0, n_classes=65535), "65535 classes"),
    "many inputs": (_hello(0, n_in=1000), "1000 inputs"),
    "no steps": (_hello(0, steps_per_request=0), "steps_per_request is 0"),
    "no window": (_hello(0, window=0), "window is 0"),
    "no phase": (_hello(phase=9), "phase is 9, it can be 3 at most"),
    "place behind the end": (_hello(pos=70), "pos is 70, it can be 24 at most"),
    "full buffer": (_hello(filled=17), "filled is 17, it can be 16 at most"),
    "many steps": (_hello(step=2**31), r"reports step 2147483648, but this session ends at 144"),
    "many tasks": (_hello(task=200), "reports task 200, but this session ends at 3"),
    "many epochs": (_hello(n=5, n_start=5, epoch=60000), "reports epoch 60000, but this session ends at 2"),
    "epochs without end": (_another_epoch, "finished epoch 1 but still reports being in it"),
    "samples that were not sent": (_reply(Command.SAMPLES, b"\xff\xff"), "counts 65535 samples"),
    "steps that were not asked for": (
        _reply(Command.TRAIN, struct.pack("<HHHHBBHI", 2000, 0, 1, 8, 2, 0, 0, 0) + bytes(8000)),
        "trained 2000 steps, it was asked for 100",
    ),
    "a panel without end": (_start_without_end, "counts 65535 entries where there is room for"),
    "counters that run backwards": (_backwards, "counter forward runs backwards .999 after 1000."),
}


@pytest.mark.parametrize("name", LIES)
def test_what_a_board_tells_is_looked_at(project: Project, name: str) -> None:
    lie, message = LIES[name]
    with Liar(project.model) as board:
        lie(board)
        with pytest.raises(BoardError, match=message) as caught:
            stream.stream(project, board.url)
        assert caught.value.exit_code == 1
        assert str(caught.value).isprintable()


def test_replay_records_that_do_not_fit(make_project: MakeProject) -> None:
    project = make_project(initial={"train": "base", "base_classes": (6, 7)})
    with Liar(project.model) as board:
        board.lie(Command.REPLAY, lambda _: b"\xff\xff")
        with pytest.raises(BoardError, match="65535 records are in a replay buffer of 16"):
            stream.stream(project, board.url)


@pytest.mark.parametrize("byte", [b"\0", b"\xff"])
def test_absurd_counters_end_in_a_report(project: Project, byte: bytes) -> None:
    """Numbers that nobody can check are shown as they are."""
    with Liar(project.model) as board:
        board.lie(Command.STATISTICS, lambda payload: byte * len(payload))
        stream.stream(project, board.url)
    result, _ = validate.validate(project)
    result.save(project.folder / validate.RESULT)
    made = report.build(project)
    report.write(made, project)
    assert made.bit_exact == (byte == b"\0")


# -- boards that start again ------------------------------------------------------------------------------


class Restless(FakeBoard):
    """Finds a flipped bit in every training request; at each start it is at another step."""

    step = staticmethod(lambda start: start)

    def _execute(self, command: int, request: bytes) -> tuple[int, bytes]:
        if command == Command.HELLO:
            state = told(self.hello(), step=self.step(self._start), health=protocol.RESTORED)
            return 0, state if self._start > 1 else self.hello()
        if command == Command.TRAIN:
            self._restarted = True
            return Status.DAMAGED, b""
        return super()._execute(command, request)


@pytest.mark.parametrize(
    ("step", "message", "starts"),
    [
        (lambda start: 100 - start, "started again 3 times in a row without having saved anything new", 5),
        (lambda start: 7 * (start % 2), "started again 3 times in a row without having saved anything new", 7),
        (lambda start: start, "started again 31 times in this session, now at step 32", 32),
    ],
    ids=["back", "to and fro", "ahead"],
)
def test_a_board_that_starts_again_and_again(
    project: Project, monkeypatch: pytest.MonkeyPatch, step: Callable[[int], int], message: str, starts: int
) -> None:
    monkeypatch.setattr(Restless, "step", staticmethod(step))
    with Restless(project.model) as board:
        with pytest.raises(BoardError, match=rf"{message}.*a bit flipped in the board's memory"):
            stream.stream(project, board.url)
        assert board._start <= starts


# -- boards that talk -------------------------------------------------------------------------------------


class Talker(FakeBoard):
    """Behaves at first; then each request has it say ``say`` every ``pause`` seconds, and nothing else."""

    behaves = 12
    say = b""
    pause = 0.0

    def _talk(self, host: Connection) -> None:
        splitter = Splitter()
        while len(self.executed) < self.behaves:
            for chunk in splitter.feed(host.read()):
                host.write(self._answer(chunk))
        while not self._port.closing.wait(self.pause):
            host.write(self.say)


NO_ANSWER = "no answer to command|never came through whole|do not get through|something keeps coming"
REFUSAL = Frame(REPLY, 0, 0, 1, b"").encode()
UNASKED = Frame(REPLY, 77, Command.DUMP, 0, bytes(8)).encode()


def _quick(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """The waits of `link` and the commands' time-outs, a hundredth of what they are."""
    monkeypatch.setattr(link, "SHORTEST_WAIT", 0.02)
    monkeypatch.setattr(link, "PROD", 0.01)
    monkeypatch.setattr(protocol, "_SECONDS", dict.fromkeys(Command, seconds))


@pytest.mark.parametrize(
    ("say", "pause", "message"),
    [
        (1000 * UNASKED, 0.0, "more than 1000 replies to nothing it was asked"),
        (Frame(REPLY, 77, Command.DUMP, 0, bytes(60000)).encode(), 0.0, "bytes more than the replies"),
        (b"\x55" * 60000, 0.0, "bytes more than the replies"),
        (1000 * REFUSAL, 0.0, "bytes more than the replies|never came through whole"),
        (UNASKED, 0.02, NO_ANSWER),
        (b"\x55", 0.02, NO_ANSWER),
        (b"\x55\0", 0.02, NO_ANSWER),
        (b"\x55", 0.005, NO_ANSWER),
        (REFUSAL, 0.005, NO_ANSWER),
        (b"sparcl-mcu \0", 0.005, NO_ANSWER),
    ],
    ids=["replies", "long", "noise", "refusals", "a reply", "a byte", "a chunk", "bytes", "a refusal", "a banner"],
)
def test_a_board_that_only_talks(
    project: Project, monkeypatch: pytest.MonkeyPatch, say: bytes, pause: float, message: str
) -> None:
    """It is given up, and what is recorded of it stays small."""
    _quick(monkeypatch, 0.1 if pause else 5.0)
    with Talker(project.model) as board:
        board.say, board.pause, board.behaves = say, pause, 5 if pause else 12
        with pytest.raises(BoardError, match=message) as caught:
            stream.stream(project, board.url)
    assert caught.value.exit_code == 1
    assert (project.folder / stream.RECORDING).stat().st_size < 2 * bounds.SPARE_BYTES


def test_signs_of_life_do_not_make_the_wait_for_an_answer_longer_and_longer(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each lets the host try again, but not for ever."""
    _quick(monkeypatch, 0.1)
    monkeypatch.setattr(bounds, "TRIES_IN_ALL", 0)
    with Talker(project.model) as board, link.Link(board.url) as line:
        board.say, board.pause, board.behaves = b"\x55\0", 0.03, 1
        protocol.hello(line)
        with pytest.raises(LinkError, match=r"keeps coming, but no answer to command 0x0a for [0-9]+ s"):
            line.request(Command.DIGEST, timeout=0.1)


def test_what_a_session_does_with_a_hostile_board_is_exit_status_1(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pipeline, "generate", lambda *_args, **_kwargs: project)
    with Liar(project.model) as board:
        _hello(max_payload=0)(board)
        with pytest.raises(SystemExit) as caught:
            cli.main(["stream", "tiny.toml", "--port", board.url])
    assert caught.value.code == 1
    assert "max_payload is 0" in capsys.readouterr().err


# -- the bounds themselves --------------------------------------------------------------------------------


class Clock:
    """Stands still until it is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_time_without_progress() -> None:
    clock = Clock()
    advance = Advance(3, clock)
    advance.begins(0)
    for step in range(50):
        clock.now += bounds.STANDSTILL - 1  # however slow a board is, as long as it gets ahead
        advance.reached("step", step)
    for _ in range(10):
        clock.now += bounds.STANDSTILL / 20
        advance.reached("step", 49)
        advance.check()
    clock.now += bounds.STANDSTILL
    for ask in (advance.check, advance.lap, lambda: advance.reached("step", 49), lambda: advance.returned(1, "why")):
        with pytest.raises(BoardError, match=r"nothing has been learned, sent or tested for 90 minutes.*--resume"):
            ask()
    advance.reached("step", 50)
    advance.check()


def test_laps_without_progress() -> None:
    advance = Advance(3)
    for step in range(10):
        advance.reached("step", step)
        for _ in range(bounds.MOST_LAPS):
            advance.lap()
            advance.reached("step", step)
    with pytest.raises(BoardError, match="no work for 32 times in a row"):
        advance.lap()


def test_a_board_with_many_faults_goes_on_while_it_saves() -> None:
    advance = Advance(3)
    advance.begins(0)
    for start in range(bounds.RETURNS_A_TASK * 3):
        advance.returned(1 + start // bounds.MOST_RETURNS, "why")
    with pytest.raises(BoardError, match=r"31 times in this session.*\(why\)"):
        advance.returned(100, "why")


def test_the_waits_of_a_slow_board_stay_within_the_bounds() -> None:
    """The longest that one request may take fits into the time without progress, with room for questions between."""
    one = bounds.TRIES_IN_ALL * protocol.SLOW + link.PATIENCE * link.SHORTEST_WAIT
    assert 4 * one < bounds.STANDSTILL
    assert bounds.TRIES_IN_ALL >= 2 * link.TRIES


def test_what_is_asked_for_may_always_come() -> None:
    """Also when the line carries everything twice, and after a lot of good replies no more than at first."""
    traffic = Traffic()
    for _ in range(10_000):
        traffic.asked(70_000)
        assert traffic.came(2, 2 * 70_000) is None
        traffic.asked(1000)
        traffic.came(1, 500)
    assert traffic.came(bounds.SPARE_REPLIES - 1, 0) is None
    assert "replies" in str(traffic.came(1, 0))
    assert "bytes" in str(Traffic().came(0, bounds.SPARE_BYTES + 1))
