# SPDX-License-Identifier: Apache-2.0
"""A project built and started on its emulated board, which counts what it executes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sparcl_mcu.host_tools import protocol
from sparcl_mcu.host_tools import stream as streaming
from sparcl_mcu.host_tools.emulator import Emulator
from sparcl_mcu.host_tools.link import Link
from sparcl_mcu.host_tools.platformio import PioError, run_pio
from sparcl_mcu.host_tools.stream import StreamResult
from sparcl_mcu.spec import wire
from sparcl_mcu.spec.errors import BoardError
from sparcl_mcu.spec.paths import ROOT

from .count import Counter, Counts, Program

if TYPE_CHECKING:
    from sparcl_mcu.generator.pipeline import Project
    from sparcl_mcu.spec.types import Task


@dataclass(frozen=True)
class Session:
    """A board that waits for requests."""

    project: Project
    program: Program
    link: Link
    counter: Counter

    def statistics(self) -> protocol.Statistics:
        """The board's own counters."""
        return protocol.statistics(self.link)


@dataclass(frozen=True)
class Work:
    """The work of a board in some requests: ``steps`` training steps or predictions."""

    counts: Counts
    steps: int


def prepare(boards: Iterable[str]) -> None:
    """Let PlatformIO take notice of the boards' platforms, which two first builds at a time would get in the way of."""
    environments = [word for name in boards for word in ("-e", name)]
    try:
        run_pio(["pkg", "install", *environments], cwd=ROOT)
    except PioError as error:
        raise BoardError(str(error)) from error


@contextmanager
def projects_in(folder: Path) -> Iterator[None]:
    """Where the pipeline puts projects: not beside those of the user, whose names could be the same."""
    before = os.environ.get("SPARCL_BUILD")
    os.environ["SPARCL_BUILD"] = str(folder.resolve())
    try:
        yield
    finally:
        if before is None:
            del os.environ["SPARCL_BUILD"]
        else:
            os.environ["SPARCL_BUILD"] = before


@contextmanager
def started(project: Project) -> Iterator[Session]:
    """The project's firmware on its emulator, with erased flash; stopped at the end."""
    name = project.board.name
    emulator = Emulator(project.folder / "emulator" / name, name)
    emulator.stop()
    program = Program(project.image, emulator.code_ranges)
    path = emulator.state_dir / "counts.bin"
    try:
        url = emulator.start(project.image, erase=True, counts=path)
        with Link(url, baud=project.board.link.baud) as link:
            protocol.wait_for_hello(link)
            yield Session(project, program, link, Counter(program, path))
    finally:
        emulator.stop()


def begin(session: Session, task: Task | None = None) -> None:
    """Fill the replay buffer from a task (default: the first one), then send its training samples.

    The board is then ready to train, and replays from the first step on.
    """
    link, task = session.link, task or session.project.dataset.tasks[0]
    state = protocol.hello(link)
    records = streaming.replay_records(task, 0, session.project.model.learning)
    for _ in protocol.replays(link, state, records):
        pass
    protocol.task_begin(link, task.classes, len(task.y_train), streamed=False)
    for _ in protocol.samples(link, state, task.y_train, task.x_train):
        pass


def train(session: Session, steps: int) -> Work:
    """Train ``steps`` steps (fewer if the task ends before)."""

    def work() -> int:
        done = 0
        while done < steps:
            reply = protocol.train(
                session.link, min(steps - done, session.project.board.link.steps_per_request), digest=False
            )
            done += reply.done
            if reply.phase != wire.Phase.TRAINING:
                break
        return done

    done, counts = session.counter.of(work)
    return Work(counts, done)


def predict(session: Session, count: int, index: int = 0) -> Work:
    """Classify the first ``count`` test samples of a task."""
    task = session.project.dataset.tasks[index]
    x = task.x_test[:count]
    state = protocol.hello(session.link)

    def work() -> None:
        for _ in protocol.predictions(session.link, state, x):
            pass

    _, counts = session.counter.of(work)
    return Work(counts, len(x))


def learn(project: Project) -> StreamResult:
    """Learn all tasks on the project's emulated board, which has been built; what the session measured."""
    name = project.board.name
    emulator = Emulator(project.folder / "emulator" / name, name)
    try:
        url = emulator.start(project.image, erase=True)
        return streaming.stream(project, url, baud=project.board.link.baud)
    finally:
        emulator.stop()
