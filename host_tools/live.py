# SPDX-License-Identifier: Apache-2.0
"""What the user sees of a session: live progress on a terminal, plain lines in a log."""

from __future__ import annotations

import time

from rich.progress import BarColumn, Progress, TaskID, TextColumn

from . import metrics
from .protocol import TrainingReply
from .stream import Epoch, Observer, Score
from .view import console


def _epoch_line(task: str, epochs: int, record: Epoch) -> str:
    steps = max(record.steps, 1)
    rate = record.steps / record.seconds if record.seconds else 0.0
    line = (
        f"task {task}: epoch {record.epoch + 1}/{epochs}, {record.steps} samples, {rate:.0f} samples/s, "
        f"loss {record.loss / steps:.3f}, "
        f"training accuracy {metrics.percent(steps - record.wrong, steps):.1f} %"
    )
    if record.removed:
        line += f", {len(record.removed)} samples removed, {record.samples_left} left"
    return line


def _accuracy_line(task: str, row: list[tuple[str, Score]]) -> str:
    values = [metrics.percent(score.class_il, score.total) for _, score in row]
    each = ", ".join(f"{name} {value:.1f} %" for (name, _), value in zip(row, values, strict=True))
    return f"after task {task}: accuracy {sum(values) / len(values):.1f} % ({each})"


class PlainView(Observer):
    """One line per event worth keeping."""

    def message(self, text: str) -> None:
        print(text, flush=True)

    def epoch_done(self, task: str, epochs: int, record: Epoch) -> None:
        self.message(_epoch_line(task, epochs, record))

    def evaluated(self, task: str, row: list[tuple[str, Score]]) -> None:
        self.message(_accuracy_line(task, row))


class LiveView(Observer):
    """A bar for what is going on, and the lines of PlainView above it."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
        )
        self._bar: TaskID | None = None
        self._title = ""
        self._since = 0.0
        self._first = 0
        self._progress.start()

    def message(self, text: str) -> None:
        self._progress.console.print(text, markup=False, soft_wrap=True)

    def uploading(self, task: str, sent: int, total: int) -> None:
        self._show(f"task {task}: sending samples", sent, total)

    def training(self, task: str, epoch: int, epochs: int, reply: TrainingReply) -> None:
        done = reply.pos or reply.n
        self._show(f"task {task}: epoch {epoch + 1}/{epochs}", done, reply.n, first=done - reply.done)
        seconds = time.monotonic() - self._since
        rate = (done - self._first) / seconds if seconds > 0.05 else 0.0
        steps = max(reply.done, 1)
        accuracy = metrics.percent(steps - reply.wrong, steps)
        note = f"{rate:.0f} samples/s, loss {reply.loss / steps:.3f}, training accuracy {accuracy:.0f} %"
        if self._bar is not None:
            self._progress.update(self._bar, note=note)

    def epoch_done(self, task: str, epochs: int, record: Epoch) -> None:
        self.message(_epoch_line(task, epochs, record))

    def evaluating(self, task: str, done: int, total: int) -> None:
        self._show(f"task {task}: testing", done, total)

    def evaluated(self, task: str, row: list[tuple[str, Score]]) -> None:
        self.message(_accuracy_line(task, row))

    def close(self) -> None:
        self._progress.stop()

    def _show(self, title: str, done: int, total: int, first: int = 0) -> None:
        if title != self._title:
            if self._bar is not None:
                self._progress.remove_task(self._bar)
            self._bar = self._progress.add_task(title, total=total, note="")
            self._title, self._since, self._first = title, time.monotonic(), first
        if self._bar is not None:
            self._progress.update(self._bar, completed=done, total=total)
