# SPDX-License-Identifier: Apache-2.0
"""The figures of the live view, from what a session has measured so far; `view` draws them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from sparcl_mcu.spec.wire import Phase

from .. import metrics
from ..protocol import TrainingReply
from ..stream import Epoch, Outline, StreamResult

_BLOCKS = "▁▂▃▄▅▆▇█"


def mean_loss(epoch: Epoch) -> float:
    """Mean cross-entropy of an epoch's samples so far, in nats."""
    return epoch.loss / max(epoch.steps, 1)


def curve(values: Sequence[float]) -> str:
    """A block for each value, from 0 to the largest one."""
    largest = max(values, default=0.0) or 1.0
    return "".join(_BLOCKS[min(int(value / largest * len(_BLOCKS)), len(_BLOCKS) - 1)] for value in values)


def duration(seconds: float) -> str:
    """``m:ss``, from an hour on ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@dataclass(frozen=True)
class TaskAccuracy:
    """The latest test accuracy of a task in percent, and the points gained since it was first measured."""

    name: str
    now: float
    change: float


def accuracies(result: StreamResult) -> list[TaskAccuracy]:
    """Class-incremental accuracies of the tasks tested so far."""
    found = []
    for name, column in zip(result.task_names, zip(*result.matrix(), strict=True), strict=True):
        measured = [value for value in column if value is not None]
        if measured:
            found.append(TaskAccuracy(name, measured[-1], measured[-1] - measured[0]))
    return found


def base_accuracy(result: StreamResult) -> float | None:
    """The latest accuracy on the base classes in percent; None without any."""
    measured = [score for score in result.base if score is not None]
    return metrics.percent(measured[-1].class_il, measured[-1].total) if measured else None


def present(result: StreamResult) -> int:
    """Index of the first task that has not been learned and tested; of the last one when all have."""
    for task in range(result.first_task, len(result.scores)):
        if None in result.scores[task][: task + 1] or (result.base and result.base[task] is None):
            return task
    return len(result.scores) - 1


def removed(result: StreamResult, task: int) -> int:
    """Samples that DDR has removed from a task so far."""
    return sum(len(epoch.removed) for epoch in result.epochs if epoch.task == task)


class Meter:
    """Instructions per training sample, from the board's counters."""

    def __init__(self, outline: Outline, statistics: Mapping[str, int]) -> None:
        self._ratio = outline.ticks_per_instruction
        self._before = dict(statistics)

    @property
    def counts(self) -> bool:
        """Whether the board's counter can tell."""
        return self._ratio > 0

    def mean(self, statistics: Mapping[str, int]) -> float | None:
        """Instructions per sample since the session began, as in the report; None if nothing has been counted."""
        return self._per_sample(statistics["training"], statistics["training_steps"])

    def since_last(self, statistics: Mapping[str, int]) -> float | None:
        """Instructions per sample since the previous call; None if nothing has been counted."""
        before, self._before = self._before, dict(statistics)
        ticks, steps = (statistics[name] - before[name] for name in ("training", "training_steps"))
        return self._per_sample(ticks, steps)

    def _per_sample(self, ticks: int, steps: int) -> float | None:
        return ticks / self._ratio / steps if self.counts and steps > 0 else None


class Work(Enum):
    """The kinds of work of a session; the unit of each is a sample."""

    SENDING = auto()
    TRAINING = auto()
    TESTING = auto()


class Forecast:
    """How fast each kind of work goes, and how long the rest will take at that rate.

    Samples that DDR is going to remove are not known and count as if they stayed.
    """

    def __init__(self, outline: Outline, result: StreamResult, clock: Callable[[], float] = time.monotonic) -> None:
        self._outline, self._result, self._clock = outline, result, clock
        self._units = dict.fromkeys(Work, 0)
        self._seconds = dict.fromkeys(Work, 0.0)
        self._since = clock()
        self._under_way: tuple[Work | None, str] = (None, "")
        self._done = self._left = 0
        self._present = (-1, 0, 0)  # task, samples to send, samples to train on in all its epochs

    def sent(self, task: str, done: int, total: int) -> None:
        """``done`` of ``total`` samples or replay records are on the board."""
        self._advance(Work.SENDING, task, done, total)
        now = present(self._result)
        if task == self._result.task_names[now]:
            self._present = (now, total - done, total * self._outline.epochs)

    def trained(self, epoch: int, reply: TrainingReply) -> None:
        """A training request of this epoch was answered."""
        over = reply.epoch != epoch or reply.phase != Phase.TRAINING
        self._account(Work.TRAINING, reply.done)
        self._under_way, self._left = (Work.TRAINING, ""), 0 if over else reply.n - reply.pos
        rest = (self._outline.epochs - reply.epoch) * reply.n - reply.pos
        self._present = (present(self._result), 0, rest if reply.phase == Phase.TRAINING else 0)

    def tested(self, task: str, done: int, total: int) -> None:
        """``done`` of ``total`` test samples are classified."""
        self._advance(Work.TESTING, task, done, total)

    def rate(self, work: Work) -> float | None:
        """Samples per second so far; None before the first ones."""
        return self._units[work] / self._seconds[work] if self._seconds[work] > 0 else None

    def activity_seconds(self) -> float | None:
        """Seconds until the present activity (an epoch, a test) is over; None while unknown."""
        work = self._under_way[0]
        return self._remaining({work: self._left}) if work is not None else None

    def session_seconds(self) -> float | None:
        """Seconds until the session is over; None before the first training samples."""
        return self._remaining(self._work_left()) if self._units[Work.TRAINING] else None

    def _advance(self, work: Work, task: str, done: int, total: int) -> None:
        if (work, task) != self._under_way or done < self._done:
            self._under_way, self._done = (work, task), 0
        self._account(work, done - self._done)
        self._done, self._left = done, total - done

    def _account(self, work: Work, units: int) -> None:
        """Attribute the time since the previous event to this one."""
        now = self._clock()
        self._units[work] += units
        self._seconds[work] += now - self._since
        self._since = now

    def _work_left(self) -> dict[Work, int]:
        task = present(self._result)
        known, to_send, to_train = self._present
        if known != task:
            to_send = self._outline.train[task]
            to_train = to_send * self._outline.epochs
        later = sum(self._outline.train[task + 1 :])
        return {
            Work.SENDING: 0 if self._outline.streamed else to_send + later,
            Work.TRAINING: to_train + later * self._outline.epochs,
            Work.TESTING: self._tests_left(task),
        }

    def _tests_left(self, task: int) -> int:
        rows = range(task, len(self._result.scores))
        missing = sum(self._outline.test[j] for i in rows for j in range(i + 1) if self._result.scores[i][j] is None)
        return missing + self._outline.base_test * sum(score is None for score in self._result.base[task:])

    def _remaining(self, left: Mapping[Work, int]) -> float | None:
        """Work of a kind that has not been seen yet is taken to go as training does."""
        seconds = 0.0
        for work, units in left.items():
            rate = self.rate(work) or self.rate(Work.TRAINING)
            if units and not rate:
                return None
            seconds += units / rate if rate else 0.0
        return max(0.0, seconds - (self._clock() - self._since))
