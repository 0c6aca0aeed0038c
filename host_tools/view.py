# SPDX-License-Identifier: Apache-2.0
"""What the user sees: lines, progress, and tables at the end."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from sparcl_mcu.spec.units import kib

if TYPE_CHECKING:
    from sparcl_mcu.spec.boards import Board

    from .doctor import Check
    from .report import Report
    from .stream import Observer
    from .twin import Pair

_WIDE = 150
"""Columns of the tables that `wide` is for, if their cells may be broken."""
_NO_LIMIT = 1000
"""Columns that every other table fits into; it takes no more of them than its cells need."""

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """A line of plain text, never broken: commands in it can be copied."""
    console.print(text, markup=False, soft_wrap=True)


def warn(text: str) -> None:
    """Print a line of plain text on stderr, never broken."""
    errors.print(text, markup=False, soft_wrap=True)


def without_controls() -> None:
    """Print plain text only from here on, whatever the output goes to."""
    global console
    console = Console(highlight=False, color_system=None)


def moves(*, plain: bool) -> bool:
    """Whether what has been shown may be drawn over: not in a log, nor on a terminal that cannot."""
    drawable = console.encoding.startswith("utf") and not console.is_dumb_terminal
    return not plain and sys.stdout.isatty() and drawable


def observer(*, plain: bool) -> Observer:
    """The live view on a terminal; lines when asked for or when the output goes elsewhere."""
    from .live import LiveView, PlainView

    return LiveView(console) if moves(plain=plain) else PlainView()


def wide(*, whole_cells: bool = False) -> Console:
    """A console for tables of many columns, which a log does not break; nor cut cells that stay in a line."""
    return Console(
        highlight=False,
        color_system="auto" if console.color_system else None,
        width=_NO_LIMIT if whole_cells else max(console.width, _WIDE),
    )


def heading(text: str) -> None:
    """The start of a stage."""
    console.print(f"\n[bold]{text}[/bold]")


def comparing(total: int, *, plain: bool) -> Progress:
    """A bar over the steps compared with the reference."""
    return Progress(
        TextColumn("comparing with the reference"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} steps"),
        console=console,
        transient=True,
        disable=not moves(plain=plain),
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


def show_check(check: Check) -> None:
    """Print a check of `sparcl doctor`, and below it the remedy if something is missing."""
    style = {"ok": "green", "note": "yellow", "missing": "red"}[check.state.value]
    lines = Table.grid(padding=(0, 1))
    lines.add_column(min_width=7, style=style)
    lines.add_column(min_width=17, no_wrap=True)
    lines.add_column()
    lines.add_row(check.state.value, check.what, Text(check.found))
    console.print(lines)
    if check.remedy:
        say(f"        {check.remedy}")


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
