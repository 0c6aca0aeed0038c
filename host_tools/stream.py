# SPDX-License-Identifier: Apache-2.0
"""A session with a board: the tasks go over the line, the board learns, the host measures.

The order of work is `Session.run`.  Where it resumes after an interruption is
decided by the board alone, from its hello; measurements taken so far are kept
in `stream.json`, everything that crossed the line in `recording.sclr`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparcl_mcu import generator
from sparcl_mcu.generator import files, shared_key
from sparcl_mcu.generator.store import digest
from sparcl_mcu.spec.errors import BoardError, UserError
from sparcl_mcu.spec.types import Dataset, Learning, Model, Task, regions
from sparcl_mcu.spec.wire import Phase, Status

from . import metrics, protocol
from .bounds import Advance
from .link import ERRORS, DeviceError, Link, NoisyLineError
from .protocol import Hello, ReplayRecord, Statistics, TrainingReply
from .recording import END, Header, Recorder

if TYPE_CHECKING:
    from sparcl_mcu.generator.pipeline import Project

RECORDING = "recording.sclr"
RESULT = "stream.json"
FINAL = "final.npz"

_COUNTERS = (
    "training_steps",
    "passes",
    "programs",
    "erases",
    "bytes_written",
    "relocated",
    "checkpoints",
    "lost_records",
)
_SINCE_START = frozenset((*protocol.PHASE_TICKS, *_COUNTERS))
"""Statistics that count since the board started; the others are states."""


@dataclass
class Score:
    """Correct answers of ``total``: over all classes, and over the task's own classes."""

    class_il: int
    task_il: int
    total: int


@dataclass
class Epoch:
    """One epoch on the board; ``removed``: ids of the samples DDR removed at its end."""

    task: int
    epoch: int
    steps: int = 0
    wrong: int = 0
    loss: float = 0.0
    seconds: float = 0.0
    samples_left: int = 0
    removed: list[int] = field(default_factory=list)


@dataclass
class StreamResult:
    """Measurements of a session.  ``scores[i][j]``: after task i, on task j; None where not measured.

    ``initial``: scores of the model as it was shipped, by task name.  ``base``:
    on the base classes after each task.  ``statistics``: counters of the board,
    summed over sessions where they count since its start.
    """

    experiment: str
    board: str
    seed: int
    model_hash: str
    tool_version: str
    task_names: list[str]
    first_task: int
    """Index of the first task the board itself learns."""
    scores: list[list[Score | None]]
    initial: dict[str, Score] = field(default_factory=dict)
    base: list[Score | None] = field(default_factory=list)
    epochs: list[Epoch] = field(default_factory=list)
    statistics: dict[str, int] = field(default_factory=dict)
    state_digest: int = 0
    rolling: int = 0
    steps: int = 0
    sessions: int = 0
    retries: int = 0
    resets: list[str] = field(default_factory=list)
    """Why the board went back to a snapshot while it was streamed to: STATE_DAMAGED or WATCHDOG."""
    wall_seconds: float = 0.0
    complete: bool = False
    data_hash: str = ""
    """Hash of the data set (`data_hash`)."""

    def matrix(self, measure: str = "class_il") -> list[list[float | None]]:
        """Accuracies in percent; ``measure``: class_il or task_il."""
        return [
            [None if s is None else metrics.percent(getattr(s, measure), s.total) for s in row] for row in self.scores
        ]

    @property
    def samples_removed(self) -> int:
        """Samples DDR removed, over all tasks."""
        return sum(len(epoch.removed) for epoch in self.epochs)

    def save(self, path: Path) -> None:
        """Write as JSON, whole or not at all."""
        aside = path.with_suffix(".tmp")
        files.write(aside, json.dumps(asdict(self), indent=1) + "\n")
        os.replace(aside, path)

    @classmethod
    def load(cls, path: Path) -> StreamResult:
        """Read what `save` wrote.  Raises UserError if it is missing or corrupt."""
        try:
            data = files.read_json(path)
            data["scores"] = [[_score(item) for item in row] for row in data["scores"]]
            data["base"] = [_score(item) for item in data["base"]]
            data["initial"] = {name: Score(**item) for name, item in data["initial"].items()}
            data["epochs"] = [Epoch(**item) for item in data["epochs"]]
            return cls(**data)
        except FileNotFoundError:
            raise UserError(f"{path} does not exist: run `sparcl stream` first") from None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{path} is corrupt ({error}): run `sparcl stream --fresh` again") from error


def _score(item: Any) -> Score | None:
    return None if item is None else Score(**item)


def data_hash(dataset: Dataset) -> str:
    """Tells data sets apart as a model's hash does models: other samples, or tasks in another order."""
    return digest(dataset)[:8].hex()


@dataclass(frozen=True)
class Outline:
    """Outline of a session.  ``train``, ``test``: samples of each task; ``base_test``: of the base classes."""

    train: tuple[int, ...]
    test: tuple[int, ...]
    base_test: int
    epochs: int
    ddr: bool
    streamed: bool
    ticks_per_instruction: float
    """Ticks of the board's counter per instruction; 0 where they mean nothing."""


class Observer:
    """Receives the events of a session; `view` shows them, the base class ignores them."""

    def begins(self, outline: Outline, result: StreamResult) -> None:
        """The session begins or resumes; ``result`` holds its measurements, at every event the latest ones."""

    def message(self, text: str) -> None:
        """Called with a message worth a line."""

    def uploading(self, task: str, sent: int, total: int) -> None:
        """``sent`` of ``total`` samples or replay records of a task are on the board."""

    def training(self, task: str, epoch: int, epochs: int, reply: TrainingReply) -> None:
        """A training request was answered; ``epoch`` is the one it belongs to."""

    def epoch_done(self, task: str, epochs: int, record: Epoch) -> None:
        """An epoch is over, and the board's counters have been read."""

    def evaluating(self, task: str, done: int, total: int) -> None:
        """``done`` of ``total`` test samples of a task are classified."""

    def evaluated(self, task: str, row: list[tuple[str, Score]]) -> None:
        """Accuracies after ``task`` has been learned."""

    def close(self) -> None:
        """The session is over, well or not."""


@dataclass(frozen=True)
class Plan:
    """Which tasks the host uploads as replay records, and how task numbers on the board relate.

    ``uploads``: (number on the board, task).  ``first``: first task of the data
    set that the board learns.  ``offset``: number on the board minus index in
    the data set.
    """

    uploads: tuple[tuple[int, Task], ...]
    first: int
    offset: int


def make_plan(dataset: Dataset, model: Model, *, first_on_host: bool) -> Plan:
    """Plan a session.  Without a replay buffer nothing is uploaded; the board counts its own tasks only."""
    has_buffer = model.learning.capacity > 0
    if first_on_host:
        return Plan(((0, dataset.tasks[0]),) if has_buffer else (), 1, 0 if has_buffer else -1)
    if dataset.base is not None and has_buffer:
        return Plan(((0, dataset.base),), 0, 1)
    return Plan((), 0, 0)


def replay_records(task: Task, number: int, learning: Learning) -> list[ReplayRecord]:
    """Records that fill the replay buffer from a task that the board knows by ``number``."""
    total = len(task.y_train)
    seen, ids = learning.offered(total), learning.shipped(total).tolist()
    return [ReplayRecord(seen, i, number, int(task.y_train[i]), task.x_train[i]) for i in ids]


def stream(
    project: Project,
    url: str,
    *,
    resume: bool = False,
    fresh: bool = False,
    observer: Observer | None = None,
    baud: int = 115200,
    flash: str | None = None,
) -> StreamResult:
    """Stream all tasks to the board at ``url``; the measurements, also saved in the project's folder.

    ``resume``: continue with a board that has learned something.  ``fresh``: make
    the board forget first.  ``flash``: the command that writes the project's
    firmware, for messages.  Raises UserError when the board is not the one the
    project was made for, BoardError when it fails.
    """
    observer = observer or Observer()
    with Link(url, baud=baud, key=shared_key.load(project.config.link.key)) as link:
        try:
            state = protocol.wait_for_hello(link, patience=10.0)
            check_board(project, state, flash)
            _tell_health(state, observer)
            if fresh:
                observer.message("The board forgets what it has learned (factory reset)")
                state = protocol.reset(link, protocol.FACTORY)
            result = _open_result(project, state, resume=resume)
            (project.folder / "validation.json").unlink(missing_ok=True)
            # Before the recording begins, so that --resume never meets the measurements of another session.
            result.save(project.folder / RESULT)
            with _open_recording(project, state, resume=resume) as recorder:
                link.recorder = recorder
                _go_through(project, link, observer, result)
                recorder.entry(END, {"complete": True})
        finally:
            observer.close()
    return result


def check_board(project: Project, state: Hello, flash: str | None = None) -> None:
    """Raise UserError when the board runs other firmware than the project's."""
    name, model = project.board.name, project.model
    flash = flash or f"sparcl flash {project.config.experiment.name}.toml --board {name}"
    fix = f"write the right one with `{flash}`"
    if state.board != name[:16]:
        raise UserError(f"the connected board is {state.board!r}, not {name!r}: name it with --board, or {fix}")
    if state.model_hash != model.model_hash:
        raise UserError(
            f"the firmware on the board holds model {state.model_hash.hex()}, "
            f"this experiment has {model.model_hash.hex()}: {fix}"
        )
    told, expected = (state.n_in, state.n_classes), (model.n_in, model.n_classes)
    if told != expected:
        raise BoardError(
            f"the board says it has this experiment's model, but with {told[0]} inputs and {told[1]} classes instead "
            f"of {expected[0]} and {expected[1]}: {fix}"
        )
    plan = make_plan(project.dataset, model, first_on_host=project.config.tasks.first == "host")
    largest = max(len(task.y_train) for task in project.dataset.tasks[plan.first :])
    if largest > state.table_capacity:
        raise UserError(
            f"a task has {largest} training samples, the board's table holds {state.table_capacity}: "
            "lower data.train_per_class"
        )


def _tell_health(state: Hello, observer: Observer) -> None:
    """Report the faults the board has found; raises BoardError if it cannot learn."""
    if state.health & protocol.SELF_TEST_FAILED:
        name, advice = ERRORS[Status.SELF_TEST]
        raise BoardError(f"the board's {name}: {advice}")
    if state.faults:
        observer.message(f"The board has found {state.faults} flipped bit(s) in its memory since power-on")
    if state.reset_reason == protocol.WATCHDOG:
        observer.message("The board's last reset came from its watchdog: it had hung")
    if state.health & protocol.LOST_SAVE:
        left = f"went back to an older one, step {state.step}" if state.restored else "started over: no save was left"
        observer.message(f"The board's last save is corrupt, or not what it wrote: it {left}")


def _go_through(project: Project, link: Link, observer: Observer, result: StreamResult) -> None:
    """Stream to the end; after a fault the board found itself, continue from the snapshot it restored."""
    advance = Advance(len(project.dataset.tasks))
    session = _Session(project, link, observer, result, advance)
    advance.begins(session.state.step)
    observer.begins(_outline(project), result)
    while True:
        try:
            session.run()
            return
        except (DeviceError, _Restarted) as error:
            if not isinstance(error, _Restarted) and error.status not in (Status.DAMAGED, Status.OUT_OF_TURN):
                raise
            session = _Session(project, link, observer, result, advance)
            cause = _fault(session.state)
            if cause is None:
                raise
            result.resets.append(cause)
            advance.returned(session.state.step, cause)
            observer.message(f"{cause}; the board rolled back to step {session.state.step}. Continuing from there.")


class _Restarted(BoardError):
    """The board has restarted since the last request."""

    def __init__(self) -> None:
        name, advice = ERRORS[Status.OUT_OF_TURN]
        super().__init__(f"{name}: {advice}")


STATE_DAMAGED = "a bit flipped in the board's memory"
WATCHDOG = "the board hung and was reset by its watchdog"


def _fault(state: Hello) -> str | None:
    """Why a board came back in an older state; None if it does not report a fault (power, reset button)."""
    if state.reset_reason == protocol.WATCHDOG:
        return WATCHDOG
    return STATE_DAMAGED if state.health & protocol.RESTORED else None


def _open_result(project: Project, state: Hello, *, resume: bool) -> StreamResult:
    """The measurements to continue with, or empty ones; raises UserError if the board cannot be used as it is."""
    path = project.folder / RESULT
    if not resume:
        if not state.fresh:
            raise UserError(
                f"the board has already learned something (step {state.step}, task {state.task}): "
                "use --resume to continue, or --fresh to erase it and start over"
            )
        return _new_result(project)
    recorded = (project.folder / RECORDING).exists() and path.exists()
    if not recorded:
        if state.fresh:
            return _new_result(project)
        raise UserError(
            f"the board is at step {state.step}, but {project.folder} has no recording of those steps, "
            "so the run could not be validated: start over with `sparcl stream --fresh`"
        )
    result = StreamResult.load(path)
    if (result.model_hash, result.board) != (project.model.model_hash.hex(), project.board.name):
        raise UserError(f"{path} belongs to another model or board: start over with `sparcl stream --fresh`")
    if result.data_hash != data_hash(project.dataset):
        raise UserError(
            "the data have changed since the session began (or their options, --set): "
            "restore them, or start over with `sparcl stream --fresh`"
        )
    result.complete = False
    return result


def _new_result(project: Project) -> StreamResult:
    tasks = project.dataset.tasks
    plan = make_plan(project.dataset, project.model, first_on_host=project.config.tasks.first == "host")
    return StreamResult(
        experiment=project.config.experiment.name,
        board=project.board.name,
        seed=project.config.experiment.seed,
        model_hash=project.model.model_hash.hex(),
        tool_version=generator.__version__,
        task_names=[task.name for task in tasks],
        first_task=plan.first,
        scores=[[None] * len(tasks) for _ in tasks],
        base=[None] * (len(tasks) if project.dataset.base else 0),
        data_hash=data_hash(project.dataset),
    )


def _outline(project: Project) -> Outline:
    dataset, learning = project.dataset, project.model.learning
    return Outline(
        train=tuple(len(task.y_train) for task in dataset.tasks),
        test=tuple(len(task.y_test) for task in dataset.tasks),
        base_test=len(dataset.base.y_test) if dataset.base is not None else 0,
        epochs=learning.epochs,
        ddr=learning.ddr,
        streamed=learning.streamed,
        ticks_per_instruction=project.board.timer.ticks_per_instruction,
    )


def _open_recording(project: Project, state: Hello, *, resume: bool) -> Recorder:
    config = project.config.experiment
    header = Header(config.name, project.board.name, project.model.model_hash, config.seed, generator.__version__)
    return Recorder(project.folder / RECORDING, header, append=resume)


class _Session:
    """One run over the line, from where the board stands to the end."""

    def __init__(
        self, project: Project, link: Link, observer: Observer, result: StreamResult, advance: Advance
    ) -> None:
        self.dataset = project.dataset
        self.imported = bool(project.float_model.imported_accuracy)
        self.model = project.model
        self.folder = project.folder
        self.plan = make_plan(project.dataset, project.model, first_on_host=project.config.tasks.first == "host")
        self.link = link
        self.observer = observer
        self.result = result
        self.advance = advance
        self.started = time.monotonic()
        self.seconds_before = result.wall_seconds
        self.retries_before = result.retries
        self.statistics_before = dict(result.statistics)
        self.state = protocol.wait_for_hello(link)
        self._require_place()
        # From this digest `validate` finds the state in which a resumed board came back.
        protocol.digest(link)
        self.baseline = self.counted = protocol.statistics(link)
        self._count(self.baseline)

    def _look(self) -> None:
        """Ask where the board stands; raises _Restarted if it has restarted since it was last asked."""
        before, self.state = self.state, protocol.hello(self.link)
        if self.state.start != before.start:
            raise _Restarted
        self._require_place()
        self.advance.check()

    def _require_place(self) -> None:
        """Raise BoardError where the board says it stands beyond the end of what it is to learn."""
        epochs, tasks = self.model.learning.epochs, self.dataset.tasks
        ends = {
            "step": epochs * sum(len(task.y_train) for task in tasks[self.plan.first :]),
            "task": len(tasks) + self.plan.offset,
            "epoch": epochs,
        }
        for name, end in ends.items():
            if getattr(self.state, name) > end:
                raise BoardError(
                    f"the board reports {name} {getattr(self.state, name)}, but this session ends at {end}: "
                    "`sparcl stream --fresh` starts from the beginning"
                )

    def run(self) -> None:
        """Run the session from where the board stands to the end."""
        self.result.sessions += 1
        self._forget_undone()
        try:
            self._work_on_any_line()
        except BaseException:
            # After Ctrl-C too, so that --resume finds what was measured.
            self.result.save(self.folder / RESULT)
            raise

    def _work_on_any_line(self) -> None:
        """Work; where requests do not get through, ask the board where it stands and continue with smaller ones."""
        lost = False
        while True:
            try:
                if lost:
                    self._look()
                    protocol.digest(self.link)  # for `validate`, as at the beginning
                    self._forget_undone()
                    self.observer.message(f"the line damages frames: continuing with {self.link.room} bytes at a time")
                return self._work()
            except NoisyLineError:
                self.advance.lap()
                lost = True

    def _work(self) -> None:
        if self.state.phase == Phase.IDLE and self.state.step == 0:
            self._upload()
            self._evaluate_initial()
        for index in range(self._next_task(), len(self.dataset.tasks)):
            if self.state.phase == Phase.IDLE:
                self._evaluate_row(index - 1)
            self._learn(index)
            self._evaluate_row(index)
        self._evaluate_row(len(self.dataset.tasks) - 1)
        self._finish()

    def _next_task(self) -> int:
        """Index of the task to start or to continue."""
        return max(self.plan.first, self.state.task - self.plan.offset)

    def _forget_undone(self) -> None:
        """Drop measurements of what the board does not remember (it came back from an older snapshot)."""
        done = self._next_task()
        for row in range(done, len(self.result.scores)):
            self.result.scores[row] = [None] * len(self.dataset.tasks)
            if self.result.base:
                self.result.base[row] = None
        trains = self.state.phase >= Phase.TRAINING
        here = (done, self.state.epoch + (self.state.phase == Phase.TRAINED) if trains else -1)
        self.result.epochs = [e for e in self.result.epochs if (e.task, e.epoch) <= here]

    # -- what the host learned ------------------------------------------------------------------

    def _upload(self) -> None:
        """Send the replay records of what the host trained; continues after those the board has."""
        for number, task in self.plan.uploads:
            records = replay_records(task, number, self.model.learning)
            for filled in protocol.replays(self.link, self.state, records[self.state.filled :]):
                self.advance.reached("filled", filled)
                self.observer.uploading(task.name, filled, len(records))
        if self.plan.uploads:
            self._look()

    def _evaluate_initial(self) -> None:
        """Measure the model as shipped on what the host trained it on; an imported one on everything."""
        known = [self.dataset.base] if self.dataset.base is not None else [self.dataset.tasks[0]]
        if self.imported:
            known = [*([self.dataset.base] if self.dataset.base is not None else []), *self.dataset.tasks]
        for task in known:
            if task.name not in self.result.initial:
                self.result.initial[task.name] = self._evaluate(task)
        self._save()

    # -- one task ---------------------------------------------------------------------------------

    def _learn(self, index: int) -> None:
        task = self.dataset.tasks[index]
        if self.state.phase == Phase.IDLE:
            self._begin(index, task)
        elif self.state.n_start != len(task.y_train):
            raise UserError(
                f"the board is partway through a task with {self.state.n_start} samples, but this task has "
                f"{len(task.y_train)}: the data changed; start over with `sparcl stream --fresh`"
            )
        else:
            self._catch_up(index, len(task.y_train))
        if self.state.phase == Phase.FILLING:
            self._fill(task)
        while self.state.phase == Phase.TRAINING:
            self._epoch(index, task)
        protocol.task_end(self.link)
        self._look()

    def _begin(self, index: int, task: Task) -> None:
        expected = index + self.plan.offset
        if self.state.task != expected:
            raise BoardError(
                f"the board is at task {self.state.task}, expected {expected}: start over with `sparcl stream --fresh`"
            )
        streamed = self.model.learning.streamed
        protocol.task_begin(
            self.link, task.classes, len(task.y_train), streamed=streamed, model_hash=self.model.model_hash
        )
        self._look()

    def _fill(self, task: Task) -> None:
        for received in protocol.samples(self.link, self.state, task.y_train, task.x_train):
            self.advance.reached(("received", self.state.task), received)
            self.observer.uploading(task.name, received, len(task.y_train))
        self._look()

    def _epoch(self, index: int, task: Task) -> None:
        """Train to the end of the board's present epoch."""
        record = self._epoch_record(index, self.state.epoch)
        epochs = self.model.learning.epochs
        started, done = time.monotonic(), 0
        for reply in self._requests(task):
            if reply.done == 0:
                raise BoardError("the board stopped making progress; try `sparcl stream --resume`")
            record.steps += reply.done
            record.wrong += reply.wrong
            record.loss += reply.loss
            done += reply.done
            self.advance.reached("step", self.state.step + done)
            self.observer.training(task.name, record.epoch, epochs, reply)
        record.seconds += time.monotonic() - started
        self._look()
        if (self.state.phase, self.state.epoch) <= (Phase.TRAINING, record.epoch):
            raise BoardError(
                f"the board finished epoch {record.epoch + 1} but still reports being in it, at sample "
                f"{self.state.pos} of {self.state.n}: `sparcl stream --fresh` starts from the beginning"
            )
        record.samples_left = self.state.n
        if self.model.learning.ddr:
            record.removed = self._newly_removed(index, len(task.y_train))
        self._save()
        self.observer.epoch_done(task.name, epochs, record)

    def _epoch_record(self, task: int, epoch: int) -> Epoch:
        """The record of this epoch: the one begun before an interruption, or a new one."""
        old = [e for e in self.result.epochs if (e.task, e.epoch) == (task, epoch)]
        self.result.epochs = [e for e in self.result.epochs if (e.task, e.epoch) < (task, epoch)]
        # After a return to an older snapshot the steps of this epoch are counted from 0.
        continues = bool(old) and (epoch < self.state.epoch or old[0].steps <= self.state.pos)
        record = old[0] if continues else Epoch(task, epoch)
        self.result.epochs.append(record)
        return record

    def _catch_up(self, index: int, n_start: int) -> None:
        """Note the samples removed at the end of an epoch whose end the host did not see."""
        if not self.model.learning.ddr or self.state.epoch == 0:
            return
        gone = self._newly_removed(index, n_start)
        if gone:
            record = self._epoch_record(index, self.state.epoch - 1)
            record.removed = gone
            record.samples_left = self.state.n

    def _requests(self, task: Task) -> Iterator[TrainingReply]:
        """The training requests of the rest of this epoch."""
        if self.model.learning.streamed:
            ids = self._order()[self.state.pos :]
            yield from protocol.steps(self.link, self.state, ids, task.y_train[ids], task.x_train[ids])
            return
        epoch, left = self.state.epoch, self.state.n - self.state.pos
        while True:
            reply = protocol.train(self.link, self.state.steps_per_request)
            left -= reply.done
            if left < 0:
                raise BoardError("the board trains more samples than its epoch has: `sparcl stream --fresh`")
            yield reply
            if reply.epoch != epoch or reply.phase != Phase.TRAINING:
                return

    def _order(self) -> NDArray[np.int64]:
        """Ids of the task table in the order of this epoch (streamed mode)."""
        if self.state.pos == 0 and not self.state.shuffled:
            protocol.train(self.link, 0)
        return self._table(self.state.n)

    def _table(self, n: int) -> NDArray[np.int64]:
        data = protocol.dump(self.link, 1, 2 * n, self.state.max_payload)
        ids = np.frombuffer(data, "<u2").astype(np.int64)
        if (ids >= self.state.n_start).any():
            raise BoardError("the board's table names samples that the task does not have: `sparcl stream --fresh`")
        return ids

    def _newly_removed(self, index: int, n_start: int) -> list[int]:
        known = {i for e in self.result.epochs if e.task == index for i in e.removed}
        gone = set(range(n_start)) - set(self._table(self.state.n).tolist())
        return sorted(gone - known)

    # -- measuring --------------------------------------------------------------------------------

    def _evaluate_row(self, row: int) -> None:
        """Measure after task ``row``, on it and all tasks before it, what has not been measured yet."""
        if row < self._next_task() - 1 or row < 0:
            return
        missing = [j for j in range(row + 1) if self.result.scores[row][j] is None]
        for j in missing:
            self.result.scores[row][j] = self._evaluate(self.dataset.tasks[j])
        if self.dataset.base is not None and self.result.base[row] is None:
            self.result.base[row] = self._evaluate(self.dataset.base)
        if missing:
            self._save()
            names = self.result.task_names
            scores = self.result.scores[row]
            self.observer.evaluated(
                names[row], [(name, s) for name, s in zip(names, scores, strict=True) if s is not None]
            )

    def _evaluate(self, task: Task) -> Score:
        score = Score(0, 0, len(task.y_test))
        done = 0
        for reply in protocol.evaluations(self.link, self.state, task.y_test, task.x_test, self.model.n_classes):
            labels = task.y_test[done : done + len(reply.predicted)]
            score.class_il += metrics.class_correct(reply.logits, labels)
            score.task_il += metrics.task_correct(reply.logits, labels, task.classes)
            done += len(labels)
            self.advance.reached(("tested", self.state.step, task.name), done)
            self.observer.evaluating(task.name, done, score.total)
        return score

    def _finish(self) -> None:
        """Final digest, counters and dumps."""
        final = protocol.digest(self.link)
        self.result.state_digest, self.result.rolling, self.result.steps = (
            final.state,
            final.rolling,
            final.step,
        )
        self._look()
        data = protocol.dump_regions(self.link, self.model, self.state)
        save_regions(self.folder / FINAL, self.model, data)
        self.result.complete = True
        self._save()

    def _count(self, now: Statistics) -> None:
        for name in _SINCE_START:
            if getattr(now, name) < getattr(self.counted, name):
                raise BoardError(
                    f"the board's counter {name} runs backwards ({getattr(now, name)} after "
                    f"{getattr(self.counted, name)}), which only happens after a restart it did not report"
                )
        self.counted = now
        self.result.statistics = _sum_statistics(self.statistics_before, self.baseline, now)

    def _save(self) -> None:
        self._count(protocol.statistics(self.link))
        self.result.wall_seconds = self.seconds_before + time.monotonic() - self.started
        self.result.retries = self.retries_before + self.link.retries
        self.result.save(self.folder / RESULT)


def _sum_statistics(before: dict[str, int], baseline: Statistics, now: Statistics) -> dict[str, int]:
    result = {}
    for name in (item.name for item in fields(Statistics)):
        value = getattr(now, name)
        if name in _SINCE_START:
            value += before.get(name, 0) - getattr(baseline, name)
        result[name] = value
    return result


def save_regions(path: Path, model: Model, data: dict[int, bytes]) -> None:
    """Write dump regions as arrays, by name."""
    arrays: dict[str, Any] = {
        region.name: np.frombuffer(data[region.number], f"<{'i' if region.signed else 'u'}{region.itemsize}")
        for region in regions(model)
    }
    with files.writing(path), path.open("wb") as file:
        np.savez_compressed(file, **arrays)
