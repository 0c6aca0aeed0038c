# SPDX-License-Identifier: Apache-2.0
"""`sparcl sweep`: compare methods over seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparcl_mcu.host_tools import stages
from sparcl_mcu.host_tools.options import Overrides, Plain
from sparcl_mcu.spec.errors import UserError


def sweep(
    file: Annotated[Path, typer.Argument(metavar="SWEEP.toml", help="Sweep file; examples/sweeps has some.")],
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="Seeds in place of the file's number.")] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="TEXT", help="Methods with this in their name; may be repeated."),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option("--scheduler", metavar="tls://HOST:PORT", help="Dask scheduler; default: this computer."),
    ] = None,
    trust_network: Annotated[
        bool,
        typer.Option("--trust-network", help="Use a remote scheduler unencrypted: see docs/evidence/security.md."),
    ] = False,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, help="Runs at a time; default: one a core.")
    ] = None,
    plain: Plain = False,
    overrides: Overrides = None,
) -> None:
    """Compare methods over seeds, in fixed point and in float32.

    Finished runs are kept until a setting or the code they depend on changes: after Ctrl-C the same command
    continues, and more seeds or methods only run what is new. The table has means over the seeds and, counted on
    an emulated board, instructions, multiply-accumulates and memory. This command writes docs/evidence/results.md.

    \b
      sparcl sweep examples/sweeps/split_mnist.toml          everything
      sparcl sweep SWEEP.toml --only SparCL --seeds 3
      sparcl sweep SWEEP.toml --set method.buffer=500
      sparcl sweep SWEEP.toml --set data.evaluate=validation to choose settings
      sparcl sweep SWEEP.toml --scheduler tls://HOST:8786    on a Dask cluster

    Writes build/sweeps/NAME/runs.csv (one row a run) and table.md.
    """
    stages.require_emulators()
    from sparcl_mcu.benchmarks.sweep import cluster, plan
    from sparcl_mcu.benchmarks.sweep import sweep as sweeps
    from sparcl_mcu.host_tools import view

    if scheduler is not None and jobs is not None:
        raise UserError("--jobs only applies to local runs; a cluster runs one job per worker")
    if scheduler is not None:
        cluster.require_trust(scheduler, network=trust_network)
    wanted = plan.load(file, tuple(overrides or ()), seeds, tuple(only or ()))
    try:
        outcome = sweeps.run(wanted, scheduler, jobs, plain=plain)
    except KeyboardInterrupt:
        view.warn("Interrupted. Finished runs are kept; run the same command again to continue.")
        raise
    sweeps.show(outcome)
    view.say("\n".join(str(path) for path in outcome.save()))
    if outcome.failed:
        raise sweeps.failure(outcome)
