# SPDX-License-Identifier: Apache-2.0
"""What the user sees: live progress on a terminal, plain lines in a log, tables at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from . import metrics
from .protocol import TrainingReply
from .stream import Epoch, Observer, Score

if TYPE_CHECKING:
    from generator.boards import Board

    from .report import Report
    from .twin import Pair

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """A line of plain text, never broken: commands in it can be copied."""
    console.print(text, markup=False, soft_wrap=True)


def warn(text: str) -> None:
    """The same on stderr."""
    errors.print(text, markup=False, soft_wrap=True)


def observer(*, plain: bool) -> Observer:
    """Live progress on a terminal; lines when asked for or when the output goes elsewhere."""
    return PlainView() if plain or not sys.stdout.isatty() else LiveView()


def heading(text: str) -> None:
    """The start of a stage."""
    console.print(f"\n[bold]{text}[/bold]")


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


def comparing(total: int, *, plain: bool) -> Progress:
    """A bar over the steps compared with the reference."""
    return Progress(
        TextColumn("comparing with the reference"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} steps"),
        console=console,
        transient=True,
        disable=plain or not sys.stdout.isatty(),
    )


def boards_table(boards: Sequence[Board]) -> Table:
    """Every board, its limits, and how it was verified."""
    table = Table(box=None, pad_edge=False)
    for name in ("board", "core", "RAM", "flash", "journal", "verified", ""):
        table.add_column(name, justify="right" if name in ("RAM", "flash", "journal") else "left")
    for board in boards:
        table.add_row(
            f"[bold]{board.name}[/bold]",
            board.core,
            kib(board.memory.ram_bytes),
            kib(board.memory.flash_bytes),
            kib(board.store.size),
            board.verified,
            board.title,
        )
    return table


def kib(size: int) -> str:
    """Bytes as KiB, with one decimal below 100 KiB."""
    value = size / 1024
    return f"{value:.0f} KiB" if value >= 100 or value == int(value) else f"{value:.1f} KiB"


def twin_table(pairs: Sequence[Pair], means: tuple[str, str, str]) -> Table:
    """Fixed point beside floating point."""
    table = Table(title="class-IL in percent", title_justify="left")
    for heading in ("seed", "fixed point", "float32", "cost of fixed point"):
        table.add_column(heading, justify="right")
    for pair in pairs:
        table.add_row(str(pair.seed), f"{pair.fixed:.1f}", f"{pair.float32:.1f}", f"{pair.cost:+.1f}")
    table.add_section()
    table.add_row("mean", *means, style="bold")
    return table


def summary_table(report: Report) -> Table:
    """The key figures of a run."""
    table = Table(title=f"{report.experiment} on {report.board}", box=None, show_header=False, title_justify="left")
    for name, value in report.key_figures():
        table.add_row(name, f"[bold]{value}[/bold]")
    return table
