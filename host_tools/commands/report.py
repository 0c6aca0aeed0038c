# SPDX-License-Identifier: Apache-2.0
"""`sparcl report`: write the report, or compare runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparcl_mcu.host_tools import stages
from sparcl_mcu.host_tools.options import BoardName, Overrides, Seed, chosen
from sparcl_mcu.spec.errors import UserError
from sparcl_mcu.spec.paths import build_folder


def report(
    what: Annotated[
        list[str] | None,
        typer.Argument(metavar="EXP.toml | RUN RUN...", help="Experiment file; with --compare the runs."),
    ] = None,
    board: BoardName = "native",
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Set runs side by side: folders with a report.json, or EXPERIMENT/BOARD."),
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="With --compare: the page to write [build/compare.html].")
    ] = None,
    overrides: Overrides = None,
    seed: Seed = None,
) -> None:
    """Write report.json and report.html, or compare runs.

    They tell of the last session; --compare writes a page that sets runs side by side.

    Example: sparcl report examples/split_digits.toml

    \b
      sparcl report --compare split_digits/native split_digits/microbit
      sparcl report --compare old/report.json build/split_digits/native -o a.html
    """
    names = what or []
    if compare:
        if overrides or seed is not None:
            raise UserError("--set and --seed go with an experiment file; --compare takes the runs as they were")
        _compare(names, output)
    elif output is not None:
        raise UserError("--output is for --compare; report.html lies beside the run")
    elif len(names) != 1:
        raise UserError(
            "name one experiment file: `sparcl report EXP.toml --board B`; "
            "or runs to set side by side: `sparcl report --compare A B`"
        )
    else:
        stages.report(chosen(Path(names[0]), board, overrides, seed).project())


def _compare(names: list[str], output: Path | None) -> None:
    if len(names) < 2:
        raise UserError(
            "name at least two runs, each a folder with a report.json or EXPERIMENT/BOARD: "
            "`sparcl report --compare split_digits/native split_digits/microbit`"
        )
    from sparcl_mcu.host_tools import view
    from sparcl_mcu.host_tools.report import compare as comparing

    runs = comparing.load(names, build_folder())
    path = output or build_folder() / comparing.HTML
    try:
        path.write_text(comparing.html(runs), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): name another file with --output") from error
    for run in runs:
        view.say(f"{run.letter}: {run.report.experiment} on {run.report.board} ({run.source})")
    view.say("")
    settings = comparing.differing(runs)
    if settings:
        view.console.print(comparing.table(runs, settings, "Settings that differ"))
        view.say("")
    view.console.print(comparing.table(runs, comparing.figures_side_by_side(runs), "Key figures (against A)"))
    view.say(f"\n{path}")
