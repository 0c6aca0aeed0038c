# SPDX-License-Identifier: Apache-2.0
"""Whole sessions with a fake board: streaming, refusing, resuming, validating, bisecting."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparcl_mcu.generator.pipeline import Project
from sparcl_mcu.host_tools import link, protocol, report, stream, validate
from sparcl_mcu.host_tools.frame import REPLY, REQUEST, Frame
from sparcl_mcu.host_tools.link import Link
from sparcl_mcu.host_tools.recording import END, RECEIVED, SENT, Header, Recorder, is_complete, transactions
from sparcl_mcu.reference import train
from sparcl_mcu.reference.replay import Sample
from sparcl_mcu.reference.state import State
from sparcl_mcu.spec import wire
from sparcl_mcu.spec.errors import BoardError, UserError, ValidationFailed
from sparcl_mcu.spec.wire import Command
from tests.host_tools.conftest import MakeProject
from tests.host_tools.fake_board import FakeBoard, commands
from tests.line import BadFrames, Proxy, damage

METHODS = {
    "der++": {},
    "streamed": {"method": {"training": "streamed"}},
    "finetune": {"method": {"name": "finetune", "buffer": 0}},
    "host first": {"tasks": {"first": "host"}, "initial": {"train": "first_task"}},
    "host first, finetune": {
        "tasks": {"first": "host"},
        "initial": {"train": "first_task"},
        "method": {"name": "finetune", "buffer": 0},
    },
    "base": {"initial": {"train": "base", "base_classes": (6, 7)}},
    "batches": {"method": {"batch": 4, "name": "er"}},
    "inter-task growth": {"tdm": {"p_inter": 0.05}, "dgm": {"enabled": True}},
}


@pytest.mark.parametrize("name", METHODS)
def test_session_is_bit_exact(make_project: MakeProject, name: str) -> None:
    project = make_project(**METHODS[name])
    with FakeBoard(project.model) as board:
        result = stream.stream(project, board.url)
    assert result.complete
    measured = [[cell is not None for cell in row] for row in result.scores]
    expected = [[j <= i and i >= result.first_task - 1 for j in range(3)] for i in range(3)]
    assert measured == expected
    checked, suspects = validate.validate(project)
    assert checked.bit_exact, checked.first
    assert suspects is None
    assert checked.steps_compared == result.steps == board.device.step
    assert checked.dumped_bytes_compared > 1000
    assert result.state_digest == board.device.digest()
    made = report.build(project)
    assert made.state_digest == f"{board.device.digest():08x}"


def test_samples_removed_are_those_of_the_board(project: Project, board: FakeBoard) -> None:
    result = stream.stream(project, board.url)
    removed = [sorted(i for e in result.epochs if e.task == t for i in e.removed) for t in range(3)]
    assert removed == [sorted(board.device.removed(t)) for t in range(3)]
    assert result.samples_removed > 0


def test_scores_are_those_of_the_predictions(project: Project, board: FakeBoard) -> None:
    """Right among all classes, and right among those of the task; of all tasks so far, after each."""
    result = stream.stream(project, board.url)
    tasks = range(len(project.dataset.tasks))
    assert [[score is not None for score in row] for row in result.scores] == [[j <= i for j in tasks] for i in tasks]
    for task, score in zip(project.dataset.tasks, result.scores[-1], strict=True):
        replies = [board.device.apply(Command.PREDICT, x.tobytes()) for x in task.x_test]
        said = [reply.payload for reply in replies if reply is not None]
        logits = np.array([np.frombuffer(payload[1:], "<i2") for payload in said])
        classes = np.array(task.classes)
        assert score is not None
        assert score.total == len(task.y_test) == len(said)
        assert score.class_il == sum(payload[0] == y for payload, y in zip(said, task.y_test, strict=True))
        assert score.task_il == (classes[logits[:, classes].argmax(axis=1)] == task.y_test).sum()


def test_counters_are_read_at_the_ends_of_epochs_and_tests_only(project: Project, board: FakeBoard) -> None:
    """At the start, after the initial test, after each epoch, each task's test, and at the end; they are told of."""
    told: list[int] = []

    class Reader(stream.Observer):
        def begins(self, outline: stream.Outline, result: stream.StreamResult) -> None:
            self.result = result
            assert result.statistics["sectors"] == 256

        def epoch_done(self, task: str, epochs: int, record: stream.Epoch) -> None:
            told.append(self.result.statistics["training_steps"])

    result = stream.stream(project, board.url, observer=Reader())
    assert commands(board).count(Command.STATISTICS) == 1 + 1 + 3 * 2 + 3 + 1
    assert told == np.cumsum([epoch.steps for epoch in result.epochs]).tolist()


@pytest.mark.parametrize(("restored", "told"), [(True, "went back to an older one"), (False, "no save was left")])
def test_a_save_that_the_board_could_not_use_is_told(
    restored: bool, told: str, project: Project, board: FakeBoard
) -> None:
    """It is damaged, or forged: whether an older one was left matters as well."""
    board.health, board.restored = protocol.LOST_SAVE, restored
    messages: list[str] = []

    class Reader(stream.Observer):
        def message(self, text: str) -> None:
            messages.append(text)

    stream.stream(project, board.url, observer=Reader())
    assert told in messages[0]
    board.health = 0
    messages.clear()
    stream.stream(project, board.url, resume=True, observer=Reader())
    assert not any("last save" in text for text in messages)


def test_final_regions_are_saved_by_name(project: Project, board: FakeBoard) -> None:
    stream.stream(project, board.url)
    with np.load(project.folder / stream.FINAL) as arrays:
        dump = board.device.dump()
        assert arrays["layer0.bias"].tobytes() == dump[20]
        assert arrays["layer1.weight"].dtype == np.int16


def test_streamed_mode_leaves_removed_samples_out(make_project: MakeProject) -> None:
    project = make_project(method={"training": "streamed"})
    with FakeBoard(project.model) as board:
        result = stream.stream(project, board.url)
    sent = sum(r.payload[0] for r in board.executed if r.command == Command.STEP)
    full = 2 * sum(len(task.y_train) for task in project.dataset.tasks)
    assert sent == result.steps < full


# -- a bad line ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["resident", "streamed"])
@pytest.mark.parametrize("window", [1, 8])
def test_session_on_a_bad_line(
    make_project: MakeProject, monkeypatch: pytest.MonkeyPatch, mode: str, window: int
) -> None:
    """It ends as on a good one: no request is executed twice, and every reply is known."""
    project = make_project(method={"training": mode}, initial={"train": "base", "base_classes": (6, 7)})
    results = []
    for seed in (None, 1, 2):
        with FakeBoard(project.model, max_payload=450) as board, Proxy(board.url) as line:
            board.window = window
            if seed is not None:
                line.hear = line.say = BadFrames(seed, 1 / 10)
                monkeypatch.setattr(link, "SHORTEST_WAIT", 0.02)
                monkeypatch.setattr(link, "PROD", 0.01)
                monkeypatch.setattr(protocol, "_SECONDS", dict.fromkeys(Command, 1.0))
            results.append(stream.stream(project, line.url))
        requests = [(r.command, r.payload) for r in board.executed]
        executed = requests[[command for command, _ in requests].index(Command.STATISTICS) :]
        checked, _ = validate.validate(project)
        assert checked.bit_exact, checked.first
        told = [t for t in transactions(project.folder / stream.RECORDING) if t.status == 0]
        assert [(t.command, t.request) for t in told][-len(executed) :] == executed
    good, *bad = results
    assert good.retries == 0
    for result in bad:
        assert result.retries > 5
        same = ("state_digest", "rolling", "scores", "initial", "base", "steps")
        assert [getattr(result, name) for name in same] == [getattr(good, name) for name in same]
        assert [(e.steps, e.wrong, e.loss) for e in result.epochs] == [(e.steps, e.wrong, e.loss) for e in good.epochs]


@pytest.mark.parametrize("mode", ["resident", "streamed"])
def test_session_on_a_line_that_carries_short_frames_only(
    make_project: MakeProject, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """It continues with smaller requests by itself, from where the board stands."""
    monkeypatch.setattr(link, "SHORTEST_WAIT", 10.0)
    project = make_project(method={"training": mode})
    most = 240

    def short_only(chunk: bytes) -> list[bytes]:
        return damage(chunk) if len(chunk) > most else [chunk]

    with FakeBoard(project.model) as board, Proxy(board.url) as line:
        line.hear = line.say = short_only
        result = stream.stream(project, line.url)
    assert (result.complete, result.sessions) == (True, 1)
    assert all(len(request.payload) < most for request in board.executed)
    assert result.retries > link.SHRINK_AFTER
    checked, _ = validate.validate(project)
    assert checked.bit_exact, checked.first
    with FakeBoard(project.model) as board:
        assert stream.stream(project, board.url).state_digest == result.state_digest


def test_a_restart_on_a_bad_line_is_noticed(
    project: Project, board: FakeBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watchdog's, while requests do not get through: what came of it is in the report."""
    ask = link.Link.request
    restarted = False

    def request(self: link.Link, command: int, *rest: Any, **named: Any) -> bytes:
        nonlocal restarted
        if command == Command.TASK_END and not restarted:
            restarted = True
            board.power_cycle()
            board.reset_reason = protocol.WATCHDOG
            raise link.NoisyLineError("noise")
        return ask(self, command, *rest, **named)

    monkeypatch.setattr(link.Link, "request", request)
    result = stream.stream(project, board.url)
    assert result.complete
    assert result.resets == [stream.WATCHDOG]
    tasks, epochs = len(project.dataset.tasks), project.model.learning.epochs
    assert [(e.task, e.epoch) for e in result.epochs] == list(product(range(tasks), range(epochs)))


@pytest.mark.parametrize("seen", [True, False])
def test_an_epoch_that_is_taken_up_again_has_one_record(
    seen: bool, project: Project, board: FakeBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A board saves within a task where its journal asks for that, and comes back there.

    ``seen``: the host has seen the end of the epoch before.
    """
    ask = link.Link.request
    restarted = False

    def request(self: link.Link, command: int, *rest: Any, **named: Any) -> bytes:
        nonlocal restarted
        if command == Command.TRAIN and (board.device.task, board.device.epoch) == (1, seen) and not restarted:
            if not seen:
                ask(self, command, *rest, **named)
            assert board.device.epoch == 1
            restarted = True
            board._snapshot = board.device.copy()
            board.power_cycle()
            board.reset_reason = protocol.WATCHDOG
            raise link.NoisyLineError("noise")
        return ask(self, command, *rest, **named)

    monkeypatch.setattr(link.Link, "request", request)
    result = stream.stream(project, board.url)
    assert result.resets == [stream.WATCHDOG]
    tasks, epochs = len(project.dataset.tasks), project.model.learning.epochs
    assert [(e.task, e.epoch) for e in result.epochs] == list(product(range(tasks), range(epochs)))
    assert sum(e.steps for e in result.epochs) == board.device.step - (0 if seen else result.epochs[0].steps)
    monkeypatch.undo()
    with FakeBoard(project.model) as other:
        undisturbed = stream.stream(project, other.url)
    assert [(e.removed, e.samples_left) for e in undisturbed.epochs] == [
        (e.removed, e.samples_left) for e in result.epochs
    ]


def test_work_that_never_gets_through_ends(project: Project, board: FakeBoard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Questions do, so that it is taken up again and again with smaller requests."""
    ask = link.Link.request

    def request(self: link.Link, command: int, *rest: Any, **named: Any) -> bytes:
        if command == Command.TASK_BEGIN:
            raise link.NoisyLineError("noise")
        return ask(self, command, *rest, **named)

    monkeypatch.setattr(link.Link, "request", request)
    with pytest.raises(BoardError, match=r"no work for 32 times in a row: check the cable"):
        stream.stream(project, board.url)


@pytest.mark.parametrize(
    ("mode", "command", "payload", "message"),
    [
        ("streamed", Command.DUMP, lambda payload: b"\xff" * len(payload), "names samples"),
        (
            "resident",
            Command.TRAIN,
            lambda _: struct.pack("<HHHHBBHI400x", 100, 0, 1, 8, 2, 0, 0, 0),
            "more samples than its",
        ),
    ],
)
def test_boards_that_make_things_up(
    make_project: MakeProject, mode: str, command: int, payload: Callable[[bytes], bytes], message: str
) -> None:
    project = make_project(method={"training": mode})
    with FakeBoard(project.model) as board:
        board.alter = lambda code, reply: payload(reply) if code == command else reply
        with pytest.raises(BoardError, match=message):
            stream.stream(project, board.url)


# -- refusals -----------------------------------------------------------------------------------------


def test_wrong_model_names_the_command_that_helps(project: Project, board: FakeBoard) -> None:
    board.model_hash = bytes(8)
    with pytest.raises(UserError, match=r"sparcl flash tiny\.toml --board native"):
        stream.stream(project, board.url)
    assert commands(board) == [Command.HELLO]


def test_measurements_of_an_older_session_are_gone_before_the_recording_begins(
    project: Project, board: FakeBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the host is killed before it measures anything: --resume must not continue with the old ones."""
    stream.stream(project, board.url)

    def killed(*_args: object, **_kwargs: object) -> None:
        raise SystemExit

    monkeypatch.setattr(stream, "_open_recording", killed)
    with pytest.raises(SystemExit):
        stream.stream(project, board.url, fresh=True)
    old = stream.StreamResult.load(project.folder / stream.RESULT)
    assert (old.complete, old.steps, old.epochs, old.sessions) == (False, 0, [], 0)


def test_wrong_board(project: Project, board: FakeBoard) -> None:
    board.name = "microbit"
    with pytest.raises(UserError, match="'microbit', not 'native'"):
        stream.stream(project, board.url)


def test_wrong_protocol_version(project: Project, board: FakeBoard) -> None:
    board.alter = lambda command, data: b"\x09" + data[1:] if command == Command.HELLO else data
    with pytest.raises(BoardError, match="protocol 9"):
        stream.stream(project, board.url)


def test_used_board_needs_resume_or_fresh(project: Project, board: FakeBoard) -> None:
    first = stream.stream(project, board.url)
    with pytest.raises(UserError, match=r"--resume.*--fresh"):
        stream.stream(project, board.url)
    again = stream.stream(project, board.url, fresh=True)
    assert again.state_digest == first.state_digest
    assert validate.validate(project)[0].bit_exact


def test_resume_without_recording_is_refused(project: Project, board: FakeBoard) -> None:
    stream.stream(project, board.url)
    (project.folder / stream.RECORDING).unlink()
    with pytest.raises(UserError, match="no recording"):
        stream.stream(project, board.url, resume=True)


def test_resume_with_other_data_is_refused(project: Project, board: FakeBoard) -> None:
    stream.stream(project, board.url)
    tasks = tuple(replace(task, x_test=task.x_test[1:], y_test=task.y_test[1:]) for task in project.dataset.tasks)
    with pytest.raises(UserError, match=r"the data have changed since the session began.*--fresh"):
        stream.stream(replace(project, dataset=replace(project.dataset, tasks=tasks)), board.url, resume=True)


def test_resume_of_a_finished_session_only_measures(project: Project, board: FakeBoard) -> None:
    first = stream.stream(project, board.url)
    steps = board.device.training_steps
    again = stream.stream(project, board.url, resume=True)
    assert board.device.training_steps == steps
    assert again.scores == first.scores
    assert validate.validate(project)[0].bit_exact


# -- interruptions ------------------------------------------------------------------------------------


class _Killed(BaseException):
    """The host dies."""


def _die_at(board: FakeBoard, monkeypatch: pytest.MonkeyPatch, count: int, *, before_reply: bool) -> None:
    """The host dies at its ``count``-th request: before it sends it, or before it reads the reply."""
    original, calls = Link._send, 0

    def send(link: Link, request: object, sealed: object) -> None:
        nonlocal calls
        calls += link.recorder is not None
        if calls == count and not before_reply:
            raise _Killed
        original(link, request, sealed)  # type: ignore[arg-type]
        if calls == count:
            while board.executed[-1].sequence != request.sequence:  # type: ignore[attr-defined]
                pass
            raise _Killed

    monkeypatch.setattr(Link, "_send", send)


@pytest.mark.parametrize("mode", ["resident", "streamed"])
@pytest.mark.parametrize("power_cut", [False, True])
@pytest.mark.parametrize("before_reply", [False, True])
@pytest.mark.parametrize("at", [6, 9, 14, 20, 25, 40])
def test_resume_after_the_host_died(
    make_project: MakeProject,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    power_cut: bool,
    before_reply: bool,
    at: int,
) -> None:
    project = make_project(method={"training": mode})
    with FakeBoard(project.model) as board, monkeypatch.context() as patch:
        _die_at(board, patch, at, before_reply=before_reply)
        with pytest.raises(_Killed):
            stream.stream(project, board.url)
        patch.undo()
        if power_cut:
            board.power_cycle()
        result = stream.stream(project, board.url, resume=True)
        digest = board.device.digest()
    assert result.complete
    assert result.state_digest == digest
    checked, _ = validate.validate(project)
    assert checked.bit_exact, checked.first
    report.build(project)
    with FakeBoard(project.model) as board:
        undisturbed = stream.stream(project, board.url)
    assert undisturbed.state_digest == result.state_digest
    assert undisturbed.scores == result.scores
    assert undisturbed.samples_removed == result.samples_removed
    assert [(e.task, e.epoch) for e in undisturbed.epochs] == [(e.task, e.epoch) for e in result.epochs]


def test_what_a_board_has_forgotten_is_not_kept(
    project: Project, board: FakeBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the host dies again before anything has been learned once more."""

    class Early(stream.Observer):
        def uploading(self, *_: object) -> None:
            raise _Killed

    class Late(stream.Observer):
        def training(self, task: str, *_: object) -> None:
            if task == "4/5" and board.device.epoch == 1:
                raise _Killed

    with pytest.raises(_Killed):
        stream.stream(project, board.url, observer=Late())
    before = stream.StreamResult.load(project.folder / stream.RESULT)
    assert {epoch.task for epoch in before.epochs} == {0, 1, 2}
    replace(before, complete=True).save(project.folder / stream.RESULT)  # as a board that goes far back leaves it
    board.power_cycle()
    with pytest.raises(_Killed):
        stream.stream(project, board.url, resume=True, observer=Early())
    left = stream.StreamResult.load(project.folder / stream.RESULT)
    assert [(epoch.task, epoch.epoch) for epoch in left.epochs] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert sum(epoch.steps for epoch in left.epochs) == board.device.step
    assert all(score is None for score in left.scores[2])
    assert not left.complete


def test_snapshot_within_a_training_request(project: Project, board: FakeBoard) -> None:
    """A board may save in the middle of a request and come back there."""
    replay = validate.Replay(project.model)
    task = project.dataset.tasks[0]
    for command, request in _first_requests(project):
        replay.apply(command, request)
    state = _hello_of(board, replay, steps=7)
    replay.apply(Command.TRAIN, struct.pack("<HB", 20, 1))
    assert replay.device.step == 20 < len(task.y_train)
    assert replay.go_to(state, None)
    assert replay.device.step == 7


def test_state_that_never_was(project: Project, board: FakeBoard) -> None:
    replay = validate.Replay(project.model)
    state = replace(protocol.unpack_hello(board.hello()), step=5)
    with pytest.raises(LookupError):
        replay.go_to(state, None)


def _first_requests(project: Project) -> list[tuple[int, bytes]]:
    task = project.dataset.tasks[0]
    requests = [(Command.TASK_BEGIN, struct.pack("<BHB", 0, len(task.y_train), 2) + bytes(task.classes))]
    for i in range(0, len(task.y_train), 8):
        part = protocol.pack_labelled(task.y_train[i : i + 8], task.x_train[i : i + 8])
        requests.append((Command.SAMPLES, struct.pack("<H", i) + part))
    return requests


def _hello_of(board: FakeBoard, replay: validate.Replay, steps: int) -> protocol.Hello:
    board.device = replay.device.copy()
    board.device.apply(Command.TRAIN, struct.pack("<HB", steps, 0))
    return protocol.unpack_hello(board.hello())


# -- differences --------------------------------------------------------------------------------------


def _change_reply(path: Path, which: Callable[[int], bool], nth: int, offset: int) -> None:
    """Flip a bit in the ``nth`` recorded reply to commands ``which`` accepts; ``offset`` from its payload."""
    with path.open("rb") as file:
        entries = list(msgpack.Unpacker(file))
    replies = [e for e in entries[1:] if e[0] == "<" and which(e[1][2])]
    reply = replies[nth]
    data = bytearray(reply[1])
    data[4 + offset] ^= 1
    reply[1] = bytes(data)
    path.write_bytes(b"".join(msgpack.packb(e) for e in entries))


@pytest.mark.parametrize(
    ("command", "offset", "what"),
    [
        (Command.TRAIN, 22 + 4 * 4, "rolling digest"),
        (Command.TRAIN, 18, "state digest"),
        (Command.TRAIN, 14, "loss"),
        (Command.EVALUATE, 2 + 2 * 3, "logit 3 of test sample 0"),
        (Command.DUMP, 3, "table.id"),
        (Command.TASK_END, 5, "state digest"),
        (Command.STATISTICS, -20, "saturated_activations"),
    ],
)
def test_changed_byte_is_found(project: Project, board: FakeBoard, command: int, offset: int, what: str) -> None:
    stream.stream(project, board.url)
    path = project.folder / stream.RECORDING
    if offset < 0:
        offset += wire.STATISTICS.size
    _change_reply(path, lambda c: c == command, 0, offset)
    result, _ = validate.validate(project)
    assert not result.bit_exact
    assert result.mismatches == 1
    assert result.first is not None
    assert what in result.first.what
    if what == "rolling digest":
        assert result.first.step == 5
    text = validate.explain(result, "tiny.toml --board native")
    assert str(result.first) in text
    assert "sparcl" in text or command == Command.EVALUATE


def test_every_byte_of_a_reply_counts(project: Project, board: FakeBoard) -> None:
    """No byte of a training or evaluation reply may change unnoticed."""
    stream.stream(project, board.url)
    path = project.folder / stream.RECORDING
    original = path.read_bytes()
    reply = next(t.reply for t in transactions(path) if t.command == Command.TRAIN)
    for offset in [*range(18), len(reply) - 1]:
        _change_reply(path, lambda c: c == Command.TRAIN, 0, offset)
        assert not validate.validate(project)[0].bit_exact, offset
        path.write_bytes(original)


def test_an_excerpt_of_a_long_reply_is_shown(project: Project, board: FakeBoard) -> None:
    """Where it begins to differ, and not all of it."""
    board.alter = lambda command, payload: payload + bytes(800) if command == Command.TASK_END else payload
    with pytest.raises(BoardError, match="wrong length"):
        stream.stream(project, board.url)
    result, _ = validate.validate(project)
    assert result.first is not None
    assert re.fullmatch(r"[0-9a-f]{32} from byte 0 of 808 on", result.first.board)
    assert re.fullmatch(r"[0-9a-f]{16} there, of 8 bytes", result.first.reference)
    assert validate._excerpts(b"same", b"same, longer") == (
        "at its end from byte 4 of 4 on",
        "2c206c6f6e676572 there, of 12 bytes",
    )


def test_what_a_recorded_board_says_of_itself_is_shown_as_text(project: Project, board: FakeBoard) -> None:
    header = Header("tiny", "native", project.model.model_hash, 3, "0")
    with Recorder(project.folder / stream.RECORDING, header) as recorder:
        for number, name in enumerate((b"native", b"\x1b[31m\n")):
            board.name = name.decode()
            recorder.entry(SENT, Frame(REQUEST, number, Command.HELLO, 0, b"").body())
            recorder.entry(RECEIVED, Frame(REPLY, number, Command.HELLO, 0, board.hello()).body())
    result, _ = validate.validate(project)
    assert result.first is not None
    assert str(result.first).isprintable()


def test_unfinished_session_is_not_bit_exact(project: Project, board: FakeBoard) -> None:
    stream.stream(project, board.url)
    path = project.folder / stream.RECORDING
    path.write_bytes(path.read_bytes()[:-3])
    assert not is_complete(path)
    result, _ = validate.validate(project)
    assert result.mismatches == 0
    assert not result.bit_exact
    assert "--resume" in validate.explain(result, "tiny.toml")


def _break_weight(board: FakeBoard, step: int, patch: pytest.MonkeyPatch) -> None:
    """Each time step ``step`` has been done, one weight of the dense layer goes off by one."""
    original = train.step

    def broken(state: State, fetch: Callable[[int], Sample]) -> train.Step:
        done = original(state, fetch)
        if state is board.device.state and state.step == step:
            state.layers[1].weight[3, 2] += 1
        return done

    patch.setattr(train, "step", broken)


def test_bisect_names_step_tensor_and_element(
    project: Project, board: FakeBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    _break_weight(board, 31, monkeypatch)
    stream.stream(project, board.url)
    result, suspects = validate.validate(project)
    assert not result.bit_exact
    assert suspects is not None
    difference, regions = validate.bisect(project, board.url, suspects)
    assert difference.step == 31
    assert difference.what.startswith("layer1.weight[")
    assert "input 3, output 2" in difference.what
    assert int(difference.board) == int(difference.reference) + 1
    assert regions == ["layer1.weight"]


def test_bisect_of_a_changed_recording(project: Project, board: FakeBoard) -> None:
    stream.stream(project, board.url)
    _change_reply(project.folder / stream.RECORDING, lambda c: c == Command.TRAIN, 1, 18)
    _, suspects = validate.validate(project)
    assert suspects is not None
    seen: list[tuple[int, int]] = []
    with pytest.raises(ValidationFailed, match="now agree"):
        validate.bisect(project, board.url, suspects, lambda done, total: seen.append((done, total)))
    total = len(suspects.requests)
    assert seen == [(done, total) for done in range(1, total + 1)]


def test_bisect_leaves_out_what_is_refused(project: Project, board: FakeBoard) -> None:
    with pytest.raises(ValidationFailed, match="now agree"):
        validate.bisect(project, board.url, validate.Suspects(((Command.TRAIN, b"\x01"),), 0))


def test_bisect_of_a_wrong_initial_model(project: Project, board: FakeBoard) -> None:
    original = board.device.apply

    def factory(command: int, request: bytes) -> object:
        reply = original(command, request)
        if command == Command.RESET:
            board.device.state.layers[1].bias[1] += 5
        return reply

    board.device.apply = factory  # type: ignore[method-assign, assignment]
    difference, _ = validate.bisect(project, board.url, validate.Suspects((), 0))
    assert difference.what.startswith("layer1.bias[1]")
    assert difference.step == 0


# -- recordings of strangers --------------------------------------------------------------------------


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([*Command, 0, 200]),
            st.binary(max_size=90),
            st.sampled_from([None, 0, 0, 4, 200]),
            st.one_of(st.binary(max_size=120), st.just(b"\x03")),
        ),
        max_size=12,
    )
)
def test_any_recording_is_compared(
    project: Project, board: FakeBoard, exchanges: list[tuple[int, bytes, int | None, bytes]]
) -> None:
    """Whatever requests and replies a recording claims: a difference or agreement, never a crash."""
    header = Header("tiny", "native", project.model.model_hash, 3, "0")
    with Recorder(project.folder / stream.RECORDING, header) as recorder:
        for number, (command, request, status, reply) in enumerate(exchanges):
            recorder.entry(SENT, Frame(REQUEST, number, command, 0, request).body())
            if command == Command.HELLO and status == 0 and len(reply) > 1:
                reply = board.hello()[: len(reply) * 3]
            if status is not None:
                recorder.entry(RECEIVED, Frame(REPLY, number, command, status, reply).body())
        recorder.entry(END, {})
    result, _ = validate.validate(project)
    assert result.transactions <= len(exchanges)
