# SPDX-License-Identifier: Apache-2.0
"""Several requests under way: the order check, the kept replies, and whole tasks over a line that loses frames."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sparcl_mcu.host_tools import frame, link, protocol
from sparcl_mcu.host_tools.frame import NEXT, REQUEST, Frame
from sparcl_mcu.host_tools.link import DeviceError, Link
from sparcl_mcu.host_tools.protocol import Hello, ReplayRecord
from sparcl_mcu.host_tools.recording import Header, Recorder, transactions
from sparcl_mcu.spec import wire
from sparcl_mcu.spec.boards import Board
from sparcl_mcu.spec.types import Model
from sparcl_mcu.spec.wire import Command
from tests.firmware.native import Twin, board_facts, build, running
from tests.firmware.test_hostile import shout
from tests.line import BadFrames, Proxy, whole
from tests.reference.models import random_model, random_samples, task_begin

CLASSES = 4


def facts(window: int) -> Board:
    """The native board with a window and short payloads, so that a task takes many requests."""
    native = board_facts()
    short = replace(native.link, max_payload=200, steps_per_request=40, window=window)
    return replace(native, link=short)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    """One program for most tests here."""
    model = random_model(12, sizes=(16, 12, CLASSES), table=64, capacity=20)
    return model, build(model, tmp_path_factory.mktemp("window"), facts(6))


@pytest.fixture
def twin(image: tuple[Model, Path], tmp_path: Path) -> Iterator[Twin]:
    """A fresh board."""
    with running(*image, tmp_path) as twin:
        yield twin


@pytest.fixture
def proxy(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy in front of the board; the twin talks through it, and a frame that nobody misses costs 0.1 s."""
    monkeypatch.setattr(link, "SHORTEST_WAIT", 0.1)
    with Proxy(twin.process.url) as proxy:
        twin.link.close()
        twin.link = Link(proxy.url)
        twin.link._slowest = dict.fromkeys(Command, 0.0)
        yield proxy


def learn(twin: Twin, path: Path) -> tuple[Hello, int]:
    """Replay records, a resident task, a streamed one, an evaluation; board and reference agree about every reply."""
    model, line = twin.model, twin.link
    line.recorder = Recorder(path, Header("window", "native", model.model_hash, 0, "0"))
    x, y = random_samples(model, (0, 1), 20, 1)
    state = protocol.hello(line)
    records = (ReplayRecord(50 + k, k, 0, int(y[k]), x[k]) for k in range(20))
    assert list(protocol.replays(line, state, records)) == list(range(1, 21))
    for task, streamed in enumerate((False, True), start=1):
        x, y = random_samples(model, ((task + 1) % CLASSES,), 48, task)
        protocol.task_begin(line, [(task + 1) % CLASSES], 48, streamed=streamed)
        state = protocol.hello(line)
        if not streamed:
            *_, received = protocol.samples(line, state, y, x)
            assert received == 48
        while (state := protocol.hello(line)).phase == wire.Phase.TRAINING:
            if streamed:
                protocol.train(line, 0)
                ids = np.frombuffer(protocol.dump(line, 1, 2 * state.n, state.max_payload), "<u2")
                assert sum(reply.done for reply in protocol.steps(line, state, ids, y[ids], x[ids])) == state.n
            else:
                protocol.train(line, state.steps_per_request)
        protocol.task_end(line)
    x, y = random_samples(model, range(CLASSES), 60, 9)
    assert sum(len(r.predicted) for r in protocol.evaluations(line, state, y, x, CLASSES)) == 60
    assert sum(1 for _ in protocol.predictions(line, state, x)) == 60
    protocol.digest(line)
    line.recorder.close()
    line.recorder = None
    executed = 0
    for command, request, status, reply in transactions(path):
        executed += 1
        expected = twin.device.apply(command, request)
        if command not in (Command.HELLO, Command.STATISTICS):
            assert status is not None
            assert expected is not None
            assert expected.matches(status, reply), Command(command).name
    return state, executed


def test_requests_wait_at_the_board(twin: Twin, proxy: Proxy, tmp_path: Path) -> None:
    """The host keeps sending while no reply has come: as many requests as the board takes, and no more."""
    x, y = random_samples(twin.model, (0, 1), 60, 3)
    protocol.task_begin(twin.link, (0, 1), 60, streamed=False)
    state = protocol.hello(twin.link)
    assert (state.window, protocol.samples_per_frame(state)) == (6, 11)
    proxy.hold = 6
    assert list(protocol.samples(twin.link, state, y, x)) == [11, 22, 33, 44, 55, 60]
    assert proxy.most == 6
    assert twin.link.retries == 0


def test_whole_tasks_on_a_good_line(twin: Twin, proxy: Proxy, tmp_path: Path) -> None:
    learn(twin, tmp_path / "r.sclr")
    assert proxy.most <= 6
    assert twin.link.retries == 0
    twin.check_dump()


@pytest.mark.parametrize("seed", range(3))
def test_whole_tasks_on_a_bad_line(twin: Twin, proxy: Proxy, tmp_path: Path, seed: int) -> None:
    """One frame in twelve suffers, either way: nothing is lost, nothing is done twice."""
    proxy.hear = proxy.say = bad = BadFrames(seed, 1 / 12)
    _, executed = learn(twin, tmp_path / "r.sclr")
    proxy.hear = proxy.say = whole
    assert all(bad.done[kind] for kind in BadFrames.KINDS)
    assert twin.link.retries > 0
    twin.check_dump()
    assert executed == len(list(transactions(tmp_path / "r.sclr")))


@pytest.mark.parametrize("window", [1, 2, 3])
def test_any_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    """A board that takes fewer requests is not sent more."""
    monkeypatch.setattr(link, "SHORTEST_WAIT", 0.1)
    model = random_model(12, sizes=(16, 12, CLASSES), table=64, capacity=20)
    program = build(model, tmp_path, facts(window))
    with running(model, program, tmp_path) as twin, Proxy(twin.process.url) as proxy:
        twin.link.close()
        twin.link = Link(proxy.url)
        twin.link._slowest = dict.fromkeys(Command, 0.0)
        if window > 1:
            proxy.hear = proxy.say = BadFrames(window, 0.02)
        learn(twin, tmp_path / "r.sclr")
        assert proxy.most == 1 or window > 1
        proxy.hear = proxy.say = whole
        twin.check_dump()


def test_restart_in_the_midst(twin: Twin, proxy: Proxy) -> None:
    """After a restart the board takes none of the requests that were sent before it."""
    x, y = random_samples(twin.model, (0, 1), 60, 3)
    protocol.task_begin(twin.link, (0, 1), 60, streamed=False)
    state = protocol.hello(twin.link)
    third = Frame(NEXT, (twin.link._sequence + 3) % 256, Command.SAMPLES, 0, b"").encode()[1:4]
    reset = Frame(REQUEST, 200, Command.RESET, 0, protocol.reset_request(state, protocol.RESTART)).encode()[:-1]
    proxy.hear = lambda chunk: [reset, chunk] if chunk[1:4] == third else [chunk]
    with pytest.raises(DeviceError, match="out of turn"):
        list(protocol.samples(twin.link, state, y, x))
    assert protocol.wait_for_hello(twin.link).received == 0


# -- frame by frame ---------------------------------------------------------------------------------------------


def train(kind: int, sequence: int, steps: int = 1) -> bytes:
    """A request that trains."""
    return Frame(kind, sequence, Command.TRAIN, 0, struct.pack("<HB", steps, 0)).encode()


@pytest.fixture
def training(twin: Twin) -> Twin:
    """A board in a resident task."""
    x, y = random_samples(twin.model, (0, 1), 60, 3)
    twin.good(Command.TASK_BEGIN, task_begin((0, 1), 60))
    for first in range(0, 60, 10):
        part = slice(first, first + 10)
        twin.good(Command.SAMPLES, struct.pack("<H", first) + protocol.pack_labelled(y[part], x[part]))
    return twin


def answers(twin: Twin, line: Iterable[bytes]) -> list[tuple[int, int]]:
    """Sequence number and status of the replies to training requests and to damaged frames."""
    return [(f.sequence, f.status) for f in shout(twin, line) if f.command in (0, Command.TRAIN)]


def trained(twin: Twin, steps: int) -> None:
    """The board has done so many steps."""
    for _ in range(steps):
        twin.device.apply(Command.TRAIN, struct.pack("<HB", 1, 0))
    twin.check()


def test_only_the_next_request_is_executed(training: Twin) -> None:
    """Not one behind a gap, not one before it, not one after a refused request, not the first after a restart."""
    line = [train(NEXT, 7)]  # a digest with another number came before
    line += [train(REQUEST, 10), train(NEXT, 12), train(NEXT, 9), train(NEXT, 11), train(NEXT, 12)]
    assert answers(training, line) == [(7, 11), (10, 0), (12, 11), (9, 11), (11, 0), (12, 0)]
    trained(training, 3)
    too_many = training.hello().steps_per_request + 1
    line = [train(REQUEST, 255), train(NEXT, 0), train(NEXT, 1, too_many), train(NEXT, 2), train(REQUEST, 3)]
    assert answers(training, line) == [(255, 0), (0, 0), (1, 5), (2, 11), (3, 0)]
    trained(training, 3)
    training.good(Command.SAVE)
    training.restart()
    said_hello = training.link._sequence
    others = [n for n in range(256) if n != (said_hello + 1) % 256]
    assert answers(training, [train(NEXT, n) for n in others]) == [(n, 11) for n in others]
    training.check()


def test_replies_are_kept(training: Twin) -> None:
    """Any of the last replies is given again, the same as the first time; refusals and damage do not disturb that."""
    wires = [train(REQUEST, 20), *(train(NEXT, 20 + k) for k in range(1, 6))]
    again = [wire for wire in wires for _ in range(2)]
    replies = shout(training, [*wires, train(NEXT, 90), b"\x05\x05\0", *reversed(again)])
    good = [f for f in replies if f.command == Command.TRAIN and not f.status]
    assert len(good) == 18
    assert len(set(good)) == 6
    assert [f.sequence for f in good[:6]] == list(range(20, 26))
    trained(training, 6)


def test_no_more_replies_are_kept_than_fit(training: Twin) -> None:
    """A long reply takes the place of older ones; what is left of them is not sent."""
    steps = training.hello().steps_per_request
    wires = [train(REQUEST, 30), train(NEXT, 31), train(NEXT, 32), train(NEXT, 33, steps)]
    found = answers(training, [*wires, *wires[1:]])
    assert found == [(30, 0), (31, 0), (32, 0), (33, 0), (31, 11), (32, 11), (33, 0)]
    trained(training, 3 + steps)


def test_old_replies_are_forgotten(training: Twin) -> None:
    """Sequence numbers come round: only requests that may still be under way are recognised."""

    def digest(kind: int, sequence: int) -> bytes:
        return Frame(kind, sequence, Command.DIGEST, 0, b"").encode()

    wires = [digest(REQUEST, 10), *(digest(NEXT, 10 + k) for k in range(1, 9))]
    replies = shout(training, [*wires, *wires[1:]])
    assert [(f.sequence, f.status) for f in replies[9:-1]] == [(11, 11), (12, 11), *((n, 0) for n in range(13, 19))]
    line = [digest(REQUEST, 5), train(REQUEST, 6), digest(REQUEST, 5)]
    before, after = (f.payload for f in shout(training, line) if f.sequence == 5)
    assert before != after


@pytest.mark.parametrize("seed", range(3))
def test_random_order(training: Twin, seed: int) -> None:
    """Whatever is repeated, left out or swapped: steps are done once each, in order, and replies never differ."""
    rng = random.Random(seed)
    line = [train(REQUEST, 200)]
    done = 1
    while done < 50:
        sequence = done + rng.choice((0, 0, 0, 1, 2, -1, -2, -3, -7, 40))
        if sequence > 0:
            line.append(train(NEXT, (200 + sequence) % 256))
        done += sequence == done
    replies: dict[int, set[Frame]] = {}
    for reply in shout(training, line):
        if reply.command == Command.TRAIN and not reply.status:
            replies.setdefault((reply.sequence - 200) % 256, set()).add(reply)
    assert sorted(replies) == list(range(50))
    assert all(len(different) == 1 for different in replies.values())
    trained(training, 50)


def test_kinds_of_frames(training: Twin) -> None:
    """A frame of another kind is no request."""
    assert answers(training, [train(frame.REPLY, 1), train(3, 1), train(0, 1), train(REQUEST, 2)]) == [(2, 0)]
