# SPDX-License-Identifier: Apache-2.0
"""compare.html: runs side by side (`sparcl report --compare A B`)."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.table import Table
from rich.text import Text

from sparcl_mcu.generator import files
from sparcl_mcu.generator.sizes import LARGEST_RESULT
from sparcl_mcu.spec.errors import UserError

from .. import markup
from . import figures, page
from .collect import JSON
from .figures import Plot, Series
from .page import Part
from .schema import Report

HTML = "compare.html"
MOST = len(string.ascii_uppercase)


@dataclass(frozen=True)
class Run:
    """One run. ``letter``: its name on the page; ``source``: as the user named it."""

    letter: str
    source: str
    report: Report
    style: str


@dataclass(frozen=True)
class Cell:
    """A figure of one run: ``change`` against the first one, ``better``: whether that is good; None: neither."""

    text: str
    change: str = ""
    better: bool | None = None


@dataclass(frozen=True)
class Row:
    """One figure of all runs."""

    name: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class _Figure:
    """A key figure: ``good``: 1 if more is better, -1 if less is, 0 if neither; ``absent``: what no value means."""

    name: str
    value: Callable[[Report], float | None]
    form: str
    good: int
    absent: str = "–"


_FIGURES = (
    _Figure("accuracy at the end, %", lambda r: r.class_il, "{:.1f}", 1),
    _Figure("the same if the task is told, %", lambda r: r.task_il, "{:.1f}", 1),
    _Figure("forgetting, points", lambda r: r.forgetting, "{:.1f}", -1),
    _Figure("backward transfer, points", lambda r: r.backward_transfer, "{:.1f}", 1),
    _Figure("weights", lambda r: r.non_zeros, "{:,.0f}", 0),
    _Figure("RAM, bytes", lambda r: page.ram(r).used, "{:,.0f}", -1),
    _Figure("flash, bytes", lambda r: r.flash_total, "{:,.0f}", -1),
    _Figure("journal at least, bytes", lambda r: sum(r.journal_bytes.values()), "{:,.0f}", -1),
    _Figure("stack used, bytes", lambda r: r.stack_used or None, "{:,.0f}", -1),
    _Figure("instructions per sample", lambda r: r.instructions.training if r.instructions else None, "{:,.0f}", -1),
    _Figure("training steps", lambda r: r.steps, "{:,.0f}", -1),
    _Figure("samples removed by DDR", lambda r: r.samples_removed, "{:,.0f}", 0),
    _Figure("flash erases per sector and task", lambda r: r.wear.cycles_per_task, "{:.3f}", -1),
    _Figure("tasks until the flash is worn", lambda r: r.wear.lifetime_tasks, "{:,.0f}", 1, "no end"),
    _Figure("values cut off in training", lambda r: r.saturation.activations + r.saturation.errors, "{:,.0f}", -1),
)


def find(name: str, build: Path) -> Path:
    """The report.json that ``name`` means: itself, in a folder, or in a folder of the build folder; else UserError."""
    for path in (Path(name), build / name):
        # os.path's function, because it returns False for names that no file can have.
        if isfile(path / JSON):
            return path / JSON
        if isfile(path) and path.suffix == ".json":
            return path
    known = sorted(str(path.parent.relative_to(build)) for path in build.glob(f"*/*/{JSON}"))
    there = f"there are {', '.join(known)}" if known else f"there is none in {build}"
    raise UserError(
        f"{name} is not a run: name a report.json, its folder, or EXPERIMENT/BOARD ({there}); "
        "`sparcl run EXP.toml --board B` makes one"
    )


def load(names: Sequence[str], build: Path) -> list[Run]:
    """The runs to compare, in the order given; UserError when one is not there or cannot be read."""
    if len(names) > MOST:
        raise UserError(f"{len(names)} runs are too many to stand side by side: name at most {MOST}")
    reports = [_read(find(name, build)) for name in names]
    return [
        Run(string.ascii_uppercase[number], names[number], made, figures.style(number))
        for number, made in enumerate(reports)
    ]


def _read(path: Path) -> Report:
    try:
        return Report.model_validate_json(files.read(path, LARGEST_RESULT))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{path} is not the report of a run by this version ({where + ': ' if where else ''}{first['msg']}): "
            "make it again with `sparcl report EXP.toml --board B`"
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error


def figures_side_by_side(runs: Sequence[Run]) -> list[Row]:
    """The key figures, with differences to the first run."""
    proof = tuple(Cell(run.report.proof) for run in runs)
    return [*(_row(figure, runs) for figure in _FIGURES), Row("bit-exact with the reference", proof)]


def _row(figure: _Figure, runs: Sequence[Run]) -> Row:
    first, *others = (figure.value(run.report) for run in runs)
    return Row(figure.name, (_cell(figure, first, None), *(_cell(figure, value, first) for value in others)))


def _cell(figure: _Figure, value: float | None, first: float | None) -> Cell:
    if value is None:
        return Cell(figure.absent)
    text = figure.form.format(value)
    if first is None or figure.form.format(first) == text:
        return Cell(text)
    change = value - first
    sign = "+" if change > 0 else "\N{MINUS SIGN}"
    better = None if figure.good == 0 else change * figure.good > 0
    return Cell(text, sign + figure.form.format(abs(change)), better)


def differing(runs: Sequence[Run]) -> list[Row]:
    """Settings that are not the same in all runs, board and seed first."""
    flat = [{"board": run.report.board, **_flat(run.report.settings)} for run in runs]
    names = list(dict.fromkeys(name for settings in flat for name in settings))
    rows = []
    for name in names:
        values = [settings.get(name, "–") for settings in flat]
        if any(value != values[0] for value in values):
            rows.append(Row(name, tuple(Cell(_text(value)) for value in values)))
    return rows


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{section}.{key}": value for section, keys in settings.items() for key, value in keys.items()}


def _text(value: Any) -> str:
    return "–" if value is None else str(value)


def accuracy_plot(runs: Sequence[Run]) -> Plot:
    """Mean accuracy over the tasks seen so far, a curve for each run."""
    longest = max((run.report.tasks for run in runs), key=len)
    same = all(run.report.tasks == longest for run in runs)
    names = longest if same else [f"task {number + 1}" for number in range(len(longest))]
    series = [
        Series(run.letter, page.mean_accuracy(run.report), f"{run.style}{'' if k else ' under'}")
        for k, run in enumerate(runs)
    ]
    groups = [(name, 1) for name in names]
    return figures.plot("Mean accuracy on the tasks seen so far", series, groups, 100.0, "%", labels=True)


@dataclass(frozen=True)
class Bars:
    """Bars of all runs on one scale: (letter, parts, text)."""

    title: str
    rows: tuple[tuple[str, Sequence[Part], str], ...]
    legend: Sequence[Part]


def memory_bars(runs: Sequence[Run]) -> list[Bars]:
    """RAM, flash and journal by region."""
    maps = [page.memories(run.report) for run in runs]
    return [
        _bars(memories[0].name, runs, [{p.name: p.size for p in m.parts} for m in memories], " bytes")
        for memories in zip(*maps, strict=True)
    ]


def instruction_bars(runs: Sequence[Run]) -> Bars | None:
    """Instructions of a training sample by phase; None if no board counted."""
    sizes = [{p.name: p.size for p in page.phases(run.report)} for run in runs]
    return _bars("Instructions to learn one sample", runs, sizes, "") if any(sizes) else None


def _bars(title: str, runs: Sequence[Run], sizes: Sequence[Mapping[str, float]], unit: str) -> Bars:
    """A name has one colour in all bars."""
    names = list(dict.fromkeys(name for one in sizes for name in one))
    longest = max(sum(one.values()) for one in sizes)
    rows = []
    for run, one in zip(runs, sizes, strict=True):
        text = f"{sum(one.values()):,.0f}{unit}" if one else "not counted"
        rows.append((run.letter, page.parts({name: one.get(name, 0) for name in names}, longest), text))
    return Bars(title, tuple(rows), page.parts(dict.fromkeys(names, 0), 0))


def html(runs: Sequence[Run]) -> str:
    """The page that sets them side by side and needs nothing else."""
    text = markup.fill(
        page.TEMPLATES / "compare.html",
        runs=runs,
        settings=differing(runs),
        rows=figures_side_by_side(runs),
        accuracy=accuracy_plot(runs),
        memory=memory_bars(runs),
        instructions=instruction_bars(runs),
    )
    return text + "\n"


def table(runs: Sequence[Run], rows: Sequence[Row], title: str) -> Table:
    """The comparison as a table for a terminal."""
    result = Table(title=title, title_justify="left", box=None, pad_edge=False)
    result.add_column("")
    for run in runs:
        result.add_column(run.letter, justify="right")
    for row in rows:
        texts = (f"{cell.text} ({cell.change})" if cell.change else cell.text for cell in row.cells)
        result.add_row(*(Text(text) for text in (row.name, *texts)))  # no markup: some are the user's
    return result
