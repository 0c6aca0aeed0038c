# SPDX-License-Identifier: Apache-2.0
"""The tables of a bench, and its plot."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from sparcl_mcu.generator import files
from sparcl_mcu.host_tools import markup, view
from sparcl_mcu.spec.units import kib

from .cases import MAIN, Mode
from .result import Bench, CaseResult

PLOT = "plot.svg"
NOTHING = "-"


@dataclass(frozen=True)
class _Network:
    """The cases of one network on one board; dense baselines of the same run for the ratios."""

    board: str
    name: str
    single: CaseResult | None
    whole: CaseResult | None

    @property
    def step(self) -> float | None:
        """Instructions of a cross-entropy step."""
        found = self.single and self.single.instructions
        return found.cross_entropy_step if found else None


def _networks(bench: Bench) -> list[_Network]:
    cases = {case.name: case for case in bench.cases}
    seen = dict.fromkeys((c.board, c.network) for c in bench.cases if c.mode in (Mode.PASS, Mode.STEP))
    return [
        _Network(board, name, cases.get(f"{board}/{name}/pass"), cases.get(f"{board}/{name}/step"))
        for board, name in seen
    ]


def tables(bench: Bench) -> list[Table]:
    """Costs by board, phases, layers and memory, and the targets."""
    result = [_costs(bench, board) for board in dict.fromkeys(n.board for n in _networks(bench))]
    return [*result, _phases(bench), _layers(bench), _memory(bench), _targets(bench)]


def show(bench: Bench) -> None:
    """Print the tables; a narrow terminal breaks their lines."""
    wide = view.wide()
    for table in tables(bench):
        wide.print(table, "")


def _table(title: str, *columns: str, left: int = 1) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number < left else "right", no_wrap=number == 0)
    return table


def _costs(bench: Bench, board: str) -> Table:
    table = _table(
        f"{board}: instructions; cycles and the energy of a DER++ step are estimates",
        *("network", "class-IL", "CE step", "of dense", "of skip", "DER++ step", "predict", "mask update"),
        *("per MAC", "CE cycles ~", "DER++ cycles ~", "µJ ~", "RAM", "flash"),
    )
    networks = [n for n in _networks(bench) if n.board == board]
    steps = {n.name: n.step for n in networks}
    for network in networks:
        fits = any(case is not None and case.fits for case in (network.single, network.whole))
        table.add_row(network.name if fits else f"{network.name}: does not fit", *_cost_row(network, steps))
    return table


def _cost_row(network: _Network, steps: dict[str, float | None]) -> list[str]:
    case = network.whole or network.single
    assert case is not None
    if not case.fits:
        return []
    prefix = network.name.partition("dense")[0].partition("sparse")[0].removeprefix("small-")
    whole = network.whole.instructions if network.whole else None
    single = network.single.instructions if network.single else None
    any_mode = single or whole
    cycles = [mode.cycles if mode else None for mode in (network.single, network.whole)]
    energy = cycles[1].step_microjoule if cycles[1] else None
    return [
        NOTHING if case.class_il is None else f"{case.class_il:.1f} %",
        _number(network.step),
        _ratio(steps.get(f"{prefix}dense"), network.step),
        _ratio(steps.get(f"{prefix}dense-skip"), network.step),
        _number(whole.step if whole else None),
        _number(any_mode.prediction if any_mode else None),
        _number(whole.mask_update if whole else None),
        NOTHING if single is None or single.inner_loop is None else f"{single.inner_loop:.2f}",
        *(_number(estimate.step if estimate else None) for estimate in cycles),
        NOTHING if energy is None else f"{energy:.1f}",
        NOTHING if case.ram_used is None else kib(case.ram_used),
        NOTHING if case.flash is None else kib(sum(case.flash.values())),
    ]


def _phases(bench: Bench) -> Table:
    names = ("forward", "backward", "replay_read", "mask_update", "journal_write", "training")
    table = _table("instructions a training step by phase", "case", *names, "meter")
    for case in bench.cases:
        found = case.instructions
        if found is not None:
            values = [_number(getattr(found.phases, name)) for name in names]
            table.add_row(case.name, *values, f"{found.meter_difference:+.2%}")
    return table


def _layers(bench: Bench) -> Table:
    table = _table("instructions a training step by layer", "case", "layer", "forward", "backward", "error", left=2)
    for case in bench.cases:
        for layer, parts in (case.instructions.layers if case.instructions else {}).items():
            table.add_row(case.name, layer, *(_number(parts.get(p)) for p in ("forward", "backward", "error")))
    return table


def _memory(bench: Bench) -> Table:
    """Whole DER++ learners only: plain cross-entropy needs less, and nobody runs that."""
    table = _table("memory in bytes", "case", "RAM by region", "stack used", "flash by section", left=2)
    for case in bench.cases:
        if case.mode == Mode.STEP and case.ram is not None and case.flash is not None:
            table.add_row(case.name, _parts(case.ram), _number(case.stack_used), _parts(case.flash))
    return table


def _parts(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size:,}" for name, size in sizes.items() if size)


def _targets(bench: Bench) -> Table:
    table = _table("targets", "target", "goal", "figure", "verdict")
    colour = {"met": "green", "missed": "red", "not measured": "dim"}
    for row in bench.targets:
        table.add_row(row.target, row.goal, row.figure, f"[{colour[row.verdict]}]{row.verdict}[/]")
    if bench.growth is not None:
        fit = bench.growth
        text = f"{fit.fixed:,.0f} + {fit.slope:.1f} x active non-zeros, R² {fit.r_squared:.4f}, {fit.points} networks"
        table.add_row("growth of a cross-entropy step", "", text, "")
    return table


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.0f}"


def _ratio(large: float | None, small: float | None) -> str:
    return f"1/{large / small:.1f}" if large and small else NOTHING


# -- the plot -------------------------------------------------------------------------------------------

_WIDTH, _HEIGHT = 420.0, 300.0
_SERIES = (
    ("dense", "dense", "#444444"),
    ("small-dense-", "small dense", "#d95f02"),
    ("-uniform", "all layers sparse by |w|", "#a6761d"),
    ("-b1", "sparse, block 1", "#1b9e77"),
    ("-b2", "sparse, block 2", "#7570b3"),
    ("-b4", "sparse, block 4", "#e7298a"),
)


@dataclass(frozen=True)
class _Point:
    name: str
    series: str
    value: float
    accuracy: float


@dataclass(frozen=True)
class _Mark:
    """A point on the page."""

    name: str
    colour: str
    x: float
    y: float


@dataclass(frozen=True)
class _Panel:
    """One diagram: the horizontal axis is logarithmic."""

    title: str
    marks: list[_Mark]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


def plot(bench: Bench, folder: Path) -> Path | None:
    """Accuracy against instructions and against RAM, on the board of the targets; None without accuracies."""
    networks = [n for n in _networks(bench) if n.board == MAIN and n.whole is not None and n.whole.class_il is not None]
    panels = [
        _panel("instructions of a DER++ step", _points(networks, "step"), 1000.0, "k"),
        _panel("RAM with the stack as used", _points(networks, "ram"), 1024.0, " KiB"),
    ]
    if not all(panel.marks for panel in panels):
        return None
    legend = [(name, colour) for _, name, colour in _SERIES]
    path = folder / PLOT
    picture = markup.fill(
        Path(__file__).parent / "templates" / PLOT, panels=panels, legend=legend, width=_WIDTH, height=_HEIGHT
    )
    files.write(path, picture)
    return path


def _points(networks: Iterable[_Network], what: str) -> list[_Point]:
    result = []
    for network in networks:
        case = network.whole
        if case is None or case.class_il is None or case.instructions is None:
            continue
        value = case.instructions.step if what == "step" else case.ram_used
        series = _series(network.name)
        if value and series is not None:
            result.append(_Point(network.name, series, float(value), case.class_il))
    return result


def _series(network: str) -> str | None:
    if network in ("dense", "dense-skip"):
        return "dense"
    return next((name for mark, name, _ in _SERIES[1:] if mark in network), None)


def _panel(title: str, points: Sequence[_Point], unit: float, suffix: str) -> _Panel:
    if not points:
        return _Panel(title, [], [], [])
    values, accuracies = [p.value for p in points], [p.accuracy for p in points]
    first, last = math.log(min(values) / 1.3), math.log(max(values) * 1.6)
    bottom, top = math.floor(min(accuracies) / 5) * 5, math.ceil(max(accuracies) / 5) * 5
    top += 5 * (top == bottom)

    def x(value: float) -> float:
        return _WIDTH * (math.log(value) - first) / (last - first)

    def y(accuracy: float) -> float:
        return _HEIGHT * (1 - (accuracy - bottom) / (top - bottom))

    colours = {name: colour for _, name, colour in _SERIES}
    marks = [_Mark(p.name, colours[p.series], x(p.value), y(p.accuracy)) for p in points]
    ticks = [m * 10.0**e * unit for e in range(-1, 5) for m in (1, 2, 5)]
    x_ticks = [(x(t), f"{t / unit:g}{suffix}") for t in ticks if first <= math.log(t) <= last]
    return _Panel(title, marks, x_ticks, [(y(a), f"{a} %") for a in range(bottom, top + 1, 5)])
