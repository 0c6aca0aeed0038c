# SPDX-License-Identifier: Apache-2.0
"""What the user sees of a session: a live view on a terminal, plain lines in a log."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterator

from rich.bar import Bar
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from .. import metrics
from ..protocol import TrainingReply
from ..stream import Epoch, Observer, Outline, Score, StreamResult
from . import figures
from .figures import Forecast, Meter, TaskAccuracy, Work

_LEAST_ROWS, _LEAST_COLUMNS = 11, 50
"""Least size of a terminal that shows more than the single bar."""
_WIDE = 80
_FRAMES = 8
"""Frames per second."""
_WAITING = ("waiting for the board", 0, 0)


def _epoch_line(task: str, epochs: int, record: Epoch, instructions: float | None) -> str:
    steps = max(record.steps, 1)
    rate = record.steps / record.seconds if record.seconds else 0.0
    line = (
        f"task {task}: epoch {record.epoch + 1}/{epochs}, {record.steps} samples, {rate:.0f} samples/s, "
        f"loss {figures.mean_loss(record):.3f}, "
        f"training accuracy {metrics.percent(steps - record.wrong, steps):.1f} %"
    )
    if record.removed:
        line += f", {len(record.removed)} samples removed, {record.samples_left} left"
    return line if instructions is None else f"{line}, {instructions:.0f} instructions per sample"


def fold(text: str, width: int) -> str:
    """Lines of at most ``width`` columns, broken between words; a longer word keeps its line to itself."""
    lines = textwrap.wrap(
        text, max(width, 20), subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(lines)


def _accuracy_line(task: str, row: list[tuple[str, Score]]) -> str:
    values = [metrics.percent(score.class_il, score.total) for _, score in row]
    each = ", ".join(f"{name} {value:.1f} %" for (name, _), value in zip(row, values, strict=True))
    return f"after task {task}: accuracy {sum(values) / len(values):.1f} % ({each})"


def _flash_line(task: str, counters: dict[str, int]) -> str:
    return (
        f"after task {task}: flash {counters['live_records']} live records, {counters['sectors_free']} of "
        f"{counters['sectors']} sectors free, {counters['erases']} erases so far"
    )


class PlainView(Observer):
    """One line per event worth keeping."""

    def begins(self, outline: Outline, result: StreamResult) -> None:
        self.outline, self.result = outline, result
        self.meter = Meter(outline, result.statistics)

    def message(self, text: str) -> None:
        """Print a line unbroken, so that commands in it can be copied."""
        print(text, flush=True)

    def measured(self, text: str) -> None:
        """Print a measurement: broken between words on a terminal, one line per event in a log."""
        self.message(fold(text, self.width()) if self.width() else text)

    def width(self) -> int:
        """Columns of the terminal; 0 in a log."""
        return shutil.get_terminal_size().columns if sys.stdout.isatty() else 0

    def epoch_done(self, task: str, epochs: int, record: Epoch) -> None:
        self.measured(_epoch_line(task, epochs, record, self.meter.since_last(self.result.statistics)))

    def evaluated(self, task: str, row: list[tuple[str, Score]]) -> None:
        self.measured(_accuracy_line(task, row))
        self.measured(_flash_line(task, self.result.statistics))


class LiveView(PlainView):
    """The lines of PlainView, and below them the present activity, which is cleared when the session ends."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(self, console=console, transient=True, refresh_per_second=_FRAMES, vertical_overflow="crop")
        self._doing = _WAITING  # what, samples done, of how many

    def begins(self, outline: Outline, result: StreamResult) -> None:
        super().begins(outline, result)
        self.forecast = Forecast(outline, result)
        self._live.start()

    def message(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def width(self) -> int:
        return self._console.width

    def uploading(self, task: str, sent: int, total: int) -> None:
        self.forecast.sent(task, sent, total)
        self._doing = (f"sending samples of {task}", sent, total)

    def training(self, task: str, epoch: int, epochs: int, reply: TrainingReply) -> None:
        self.forecast.trained(epoch, reply)
        title, _, total = self._doing
        doing = f"training, epoch {epoch + 1} of {epochs}"
        if reply.epoch == epoch and reply.pos:
            self._doing = (doing, reply.pos, reply.n)
        else:  # the epoch is over, and ``n`` what DDR has left
            total = total if title == doing else reply.done
            self._doing = (doing, total, total)

    def evaluating(self, task: str, done: int, total: int) -> None:
        self.forecast.tested(task, done, total)
        self._doing = (f"testing on {task}", done, total)

    def evaluated(self, task: str, row: list[tuple[str, Score]]) -> None:
        self._doing = _WAITING
        super().evaluated(task, row)

    def close(self) -> None:
        self._live.stop()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Redrawn several times a second, so that it follows the size of the terminal."""
        columns, rows = options.max_width, options.size.height
        small = rows < _LEAST_ROWS or columns < _LEAST_COLUMNS
        yield self._single_bar(columns) if small else self._everything(columns, rows)

    # -- what is drawn ----------------------------------------------------------------------------

    def _everything(self, width: int, rows: int) -> Group:
        wide = width >= _WIDE
        tasks = figures.accuracies(self.result)
        table = Table.grid(padding=(0, 1))
        table.add_column(style="bold", no_wrap=True, min_width=12)
        table.add_column(no_wrap=True, overflow="ellipsis")
        table.add_row("loss", self._loss(20 if wide else 12))
        table.add_row("removed", self._removed())
        table.add_row("instructions", self._instructions())
        table.add_row("flash", self._flash(wide))
        table.add_row("accuracy", self._accuracy(tasks))
        # Seven rows without the tasks, and three of the terminal for the lines above.
        most = min(3, rows - 10)
        return Group(self._title(), self._bar(wide), table, _tasks(tasks, width, most, bar=8 if wide else 4))

    def _title(self) -> Table:
        title = Table.grid(expand=True)
        title.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        title.add_column(no_wrap=True, justify="right")
        title.add_row(self._what(), _left("session", self.forecast.session_seconds()))
        return title

    def _what(self) -> Text:
        names, task = self.result.task_names, figures.present(self.result)
        return Text(f"task {names[task]} ({task + 1} of {len(names)}): {self._doing[0]}", style="bold")

    def _bar(self, wide: bool) -> Table:
        rate = self.forecast.rate(Work.TRAINING)
        row = Table.grid(padding=(0, 2))
        row.add_row(*self._progress(40 if wide else 16), f"{rate:,.0f} samples/s" if rate else "")
        return row

    def _single_bar(self, width: int) -> Table:
        bar, *numbers = self._progress(max(4, width // 6))
        cells = [self._what(), bar, *numbers[: 2 if width >= _LEAST_COLUMNS else 1]]
        row = Table.grid(*(Column(no_wrap=True, overflow="ellipsis") for _ in cells), padding=(0, 1))
        row.columns[0].ratio = 1
        row.expand = True
        row.add_row(*cells)
        return row

    def _progress(self, width: int) -> list[RenderableType]:
        _, done, total = self._doing
        bar = ProgressBar(total=total or 1, completed=done, width=width)
        return [bar, f"{done}/{total}", _left("", self.forecast.activity_seconds())] if total else [bar]

    def _loss(self, most: int) -> Text:
        begun = [epoch for epoch in self.result.epochs if epoch.steps]
        if not begun:
            return Text("not trained yet", style="dim")
        steps, wrong = begun[-1].steps, begun[-1].wrong
        curve = figures.curve([figures.mean_loss(epoch) for epoch in begun[-most:]])
        accuracy = metrics.percent(steps - wrong, steps)
        return Text.assemble(
            f"{figures.mean_loss(begun[-1]):.3f} ", (curve, "cyan"), f" training accuracy {accuracy:.1f} %"
        )

    def _removed(self) -> str:
        if not self.outline.ddr:
            return "none: DDR is off"
        task = figures.present(self.result)
        removed, total = figures.removed(self.result, task), self.outline.train[task]
        return f"{removed} of {total} samples, {total - removed} left"

    def _instructions(self) -> str:
        if not self.meter.counts:
            return "not counted on this board"
        per_sample, rate = self.meter.mean(self.result.statistics), self.forecast.rate(Work.TRAINING)
        if per_sample is None or not rate:
            return "counted at the end of the epoch"
        return f"{per_sample:,.0f} per sample, {per_sample * rate / 1e6:,.1f} million/s"

    def _flash(self, wide: bool) -> str:
        counters = self.result.statistics
        records, erases = f"{counters['live_records']} records", f"{counters['erases']} erases"
        free, sectors = counters["sectors_free"], counters["sectors"]
        if wide:
            return f"{records} live, {free} of {sectors} sectors free, {erases} so far"
        return f"{records}, {free}/{sectors} free, {erases}"

    def _accuracy(self, tasks: list[TaskAccuracy]) -> Text:
        if not tasks:
            return Text("not tested yet", style="dim")
        mean = sum(task.now for task in tasks) / len(tasks)
        base = figures.base_accuracy(self.result)
        note = "" if base is None else f", base classes {base:.1f} %"
        return Text(f"{mean:.1f} % on {len(tasks)} {'task' if len(tasks) == 1 else 'tasks'} so far{note}")


def _tasks(tasks: list[TaskAccuracy], width: int, rows: int, *, bar: int) -> Table:
    """Each task's accuracy and its change since it was learned; where there is no room for all, the most forgotten."""
    name = min(12, max((len(task.name) for task in tasks), default=0))
    across = max(1, width // (name + bar + 13))
    room = across * rows
    shown = sorted(sorted(range(len(tasks)), key=lambda i: tasks[i].change)[:room])
    grid = Table.grid(padding=(0, 1))
    for _ in range(across):
        grid.add_column(no_wrap=True, overflow="ellipsis", max_width=name)
        grid.add_column()
        grid.add_column(no_wrap=True, justify="right")
        grid.add_column(no_wrap=True, justify="right", min_width=4)
    cells = [_cells(tasks[i], bar) for i in shown]
    for first in range(0, len(cells), across):
        grid.add_row(*(cell for row in cells[first : first + across] for cell in row))
    return grid


def _cells(task: TaskAccuracy, bar: int) -> tuple[RenderableType, ...]:
    change = round(task.change)
    style = "red" if change < 0 else "green"
    return (
        Text(task.name),
        Bar(100, 0, task.now, width=bar, color=style if change else "default"),
        f"{task.now:.0f} %",
        Text(f"{change:+d}" if change else "", style=style),
    )


def _left(what: str, seconds: float | None) -> str:
    return "" if seconds is None else f"{what} {figures.duration(seconds)} left".strip()
