# SPDX-License-Identifier: Apache-2.0
"""One job of a sweep, in any process: everything it needs is in the job, and all it leaves behind is its result.

A process that is killed partway leaves a folder, and perhaps a board or a build that runs; whoever works
next on this computer finds that nobody holds the folder's lock, and clears all of it away.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from sparcl_mcu.generator import float_twin, network, pipeline
from sparcl_mcu.generator import plan as plans
from sparcl_mcu.generator.config import Config
from sparcl_mcu.generator.pipeline import Project
from sparcl_mcu.host_tools import firmware, metrics, platformio
from sparcl_mcu.host_tools.emulator import Emulator, EmulatorError
from sparcl_mcu.spec import boards
from sparcl_mcu.spec.errors import BoardError, SparclError, UserError
from sparcl_mcu.spec.types import Task

from .. import measure, session
from .plan import Job, Kind, check, settings
from .results import Costs, Result, Wear

if TYPE_CHECKING:
    from sparcl_mcu.host_tools.stream import StreamResult

COUNTED = 200
"""Samples of the task that instructions are counted on, in its second epoch."""

_PREFIX = "sparcl-sweep-"
_one_at_a_time = threading.Lock()
"""TensorFlow's seed and $SPARCL_BUILD belong to the process."""


def execute(job: Job) -> Result:
    """Run the job and return what it showed.

    Raises ``UserError`` for settings that do not work and for code or data that are not those of the sweep,
    ``BoardError`` when the board or this computer fails; no subclasses: not all survive the way to another process.
    """
    plain: SparclError
    try:
        with _one_at_a_time:
            return _done(job)
    except SparclError as error:
        plain = (UserError if error.exit_code == UserError.exit_code else BoardError)(str(error))
    except (EmulatorError, OSError) as error:
        plain = BoardError(f"{socket.gethostname()}: {error}")
    raise plain  # out here, without the error it stands for


def _done(job: Job) -> Result:
    check(job)
    began = time.monotonic()
    with _folder():
        result = {Kind.FIXED: _fixed, Kind.FLOAT: _float, Kind.COSTS: _costs}[job.kind](job)
    return result.model_copy(update={"seconds": round(time.monotonic() - began, 2)})


# ---------------------------------------------------------------- learning


def _fixed(job: Job) -> Result:
    project = pipeline.make(settings(job), boards.load_board(job.board))
    _prepare(job.board)
    firmware.build(project)
    learned = session.learn(project)
    return _empty(job).model_copy(
        update={
            **_accuracies(learned.matrix(), learned.matrix("task_il")),
            "steps": learned.steps,
            "removed": sum(len(epoch.removed) for epoch in learned.epochs),
            "state_digest": f"{learned.state_digest:08x}",
            "wear": _wear(project, learned),
        }
    )


def _wear(project: Project, learned: StreamResult) -> Wear:
    counts = learned.statistics
    return Wear(
        erases=counts["erases"],
        bytes_written=counts["bytes_written"],
        tasks=len(learned.task_names) - learned.first_task,
        sector_bytes=project.board.store.sector,
    )


def _float(job: Job) -> Result:
    project = pipeline.make(settings(job), boards.load_board(job.board))
    learned = float_twin.run(project.config, project.dataset, project.float_model, project.model)
    return _empty(job).model_copy(
        update={**_accuracies(learned.class_il, learned.task_il), "removed": sum(learned.removed)}
    )


def _accuracies(class_il: metrics.Matrix, task_il: metrics.Matrix) -> dict[str, object]:
    return {
        "class_il": metrics.average_accuracy(class_il),
        "task_il": metrics.average_accuracy(task_il),
        "forgetting": metrics.forgetting(class_il),
        "backward_transfer": metrics.backward_transfer(class_il),
        "matrix": [list(row) for row in class_il],
    }


def _empty(job: Job) -> Result:
    return Result(method=job.method, seed=job.seed, kind=job.kind, key=job.key)


# ---------------------------------------------------------------- costs


def _costs(job: Job) -> Result:
    """Memory as planned for the board; instructions and multiply-accumulates of training steps as executed."""
    config, facts = settings(job), boards.load_board(job.board)
    try:
        project = pipeline.make(config, facts)
    except plans.DoesNotFit as error:
        return _empty(job).model_copy(update={"costs": Costs(board=job.board, why=str(error).splitlines()[0])})
    memory, non_zeros = project.plan, measure.non_zeros(project)
    project = pipeline.make(_to_count(config), facts)
    _prepare(job.board)
    firmware.build(project)
    step, update, macs = _counted(project)
    costs = Costs(
        board=job.board,
        non_zeros=non_zeros,
        ram=memory.ram_bytes,
        flash=memory.flash_bytes,
        journal=memory.store_bytes,
        step=step,
        mask_update=update,
        macs=macs,
    )
    return _empty(job).model_copy(update={"costs": costs})


def _to_count(config: Config) -> Config:
    """The same network and method, but no sample is removed: the second of three epochs is like any other."""
    return config.model_copy(
        update={
            "ddr": config.ddr.model_copy(update={"enabled": False}),
            "initial": config.initial.model_copy(update={"train": "none"}),
            "method": config.method.model_copy(update={"epochs": 3}),
            "tasks": config.tasks.model_copy(update={"first": "board"}),
        }
    )


def _counted(project: Project) -> tuple[float, float, float]:
    """Instructions of a training step without mask updates, of one mask update, and products of its forward passes."""
    task = _spread(project.dataset.tasks[0], COUNTED)
    with session.started(project) as board:
        session.begin(board, task)
        session.train(board, len(task.y_train))
        before = board.statistics()
        work = session.train(board, len(task.y_train))
        after = board.statistics()
        products = measure.forward_products(board.program, work.counts)
    phases = measure.phases_of(project.board, before, after)
    learning = project.model.learning
    updates = learning.updates_per_epoch if learning.update_every_epochs <= 1 else 0
    update = phases.mask_update * work.steps / updates if updates and phases.mask_update else 0.0
    return phases.training - phases.mask_update, update, products / work.steps


def _spread(task: Task, count: int) -> Task:
    """``count`` training samples, from all over the task."""
    where = network.spread(len(task.y_train), count)
    return replace(task, x_train=task.x_train[where], y_train=task.y_train[where])


# ---------------------------------------------------------------- a place to work in


@contextmanager
def _folder() -> Iterator[None]:
    """A build folder of this job's own, gone at the end."""
    clear_away()
    with _held() as path:
        try:
            with session.projects_in(path / "build"):
                yield
        finally:
            _remove(path)


@contextmanager
def _held() -> Iterator[Path]:
    """A new folder and its lock, which ends with this process however that ends."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        with (path / "lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (path / "lock").exists():  # else somebody cleared it away just before it was locked
                yield path
                return


def clear_away() -> None:
    """Stop the boards and builds and remove the folders of this user's jobs whose process is gone."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if path.lstat().st_uid != os.getuid():
                continue  # whatever others put there is not read: it would say which processes to end
            with (path / "lock").open("r+b") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(path)


def _remove(path: Path) -> None:
    for state in path.rglob("state.json"):
        with suppress(EmulatorError):
            Emulator(state.parent, state.parent.name).kill(settle=False)
    _end_builds(path)
    shutil.rmtree(path, ignore_errors=True)


def _end_builds(path: Path) -> None:
    """End whatever was started with this build folder (Linux): it would keep running and recreate the folder."""
    mark = f"SPARCL_BUILD={(path / 'build').resolve()}".encode()
    for _ in range(100):  # a build starts processes while one looks, and the system shows late with what
        found = [process for process in Path("/proc").glob("[0-9]*") if mark in _environment(process)]
        if not found:
            return
        for process in found:
            with suppress(OSError):
                os.kill(int(process.name), signal.SIGKILL)
        time.sleep(0.05)


def _environment(process: Path) -> list[bytes]:
    """The environment the process of a /proc folder began with; empty for other users' processes."""
    try:
        return (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return []


@cache
def _prepare(board: str) -> None:
    """Let PlatformIO take notice of the board's platform, one process at a time."""
    core = platformio.core_dir()
    core.mkdir(parents=True, exist_ok=True)
    with (core / "sparcl-prepare.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        session.prepare([board])
