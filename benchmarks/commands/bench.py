# SPDX-License-Identifier: Apache-2.0
"""`sparcl bench`: count instructions and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparcl_mcu.host_tools import stages
from sparcl_mcu.host_tools.options import Overrides, Seed, chosen
from sparcl_mcu.spec.errors import UserError


def bench(
    experiment: Annotated[
        Path | None,
        typer.Argument(metavar="[EXP.toml]", help="Count this experiment's first epoch, by function and layer."),
    ] = None,
    board: Annotated[
        list[str] | None,
        typer.Option("--board", "-b", help="Emulated board; may be repeated. Default: all of them."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Only what CI checks: some minutes.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Fail when a figure is more than 2 % above benchmarks/baseline.json.")
    ] = False,
    update: Annotated[
        bool, typer.Option("--update-baseline", help="Make these figures the ones to compare with.")
    ] = False,
    overrides: Overrides = None,
    seed: Seed = None,
) -> None:
    """Count instructions on the emulated boards.

    By phase, layer and function, for dense and sparse networks. Counts are exact and repeatable, however busy this
    computer is: a growth of 2 % is a change of the code. Accuracies beside them are whole runs on the native board.
    Whatever was measured is kept until a source or a setting changes; an interrupted bench continues where it was.

    \b
      sparcl bench --quick                 the important ones
      sparcl bench --quick --check         have they grown?
      sparcl bench --board ast1030_evb     everything on one board
      sparcl bench EXP.toml -b microbit    where one experiment spends them

    Writes build/bench/bench.json (docs/reference/bench-schema.md) and build/bench/plot.svg; for an experiment, it
    writes profile.json into the experiment's own folder, for the report.
    """
    stages.require_emulators()
    from sparcl_mcu.benchmarks import baseline, profile
    from sparcl_mcu.benchmarks import bench as benches
    from sparcl_mcu.benchmarks import view as bench_view
    from sparcl_mcu.host_tools import view

    if experiment is not None:
        for name in board or [benches.emulated()[0]]:
            project = chosen(experiment, name, overrides, seed).project()
            found = profile.measure(project, view.say)
            view.say(
                f"{project.config.experiment.name} on {name}: {found.instructions:,.1f} instructions a training step, "
                f"mean of {found.steps}"
            )
            view.console.print(profile.table(found))
            view.say(f"\n{found.save(project.folder)}: `sparcl report` shows it")
        return
    if overrides:
        raise UserError("--set needs an experiment file; the built-in benchmark cases are fixed")
    done = benches.run(tuple(board or ()), quick=quick, seed=seed or 0, say=view.say)
    path = benches.save(done)
    bench_view.show(done)
    plot = bench_view.plot(done, path.parent)
    view.say(f"{path}" + (f"\n{plot}" if plot else ""))
    if update:
        baseline.update(done)
        view.say(f"{baseline.PATH} updated")
    if check:
        view.say(baseline.require(done))
