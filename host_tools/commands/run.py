# SPDX-License-Identifier: Apache-2.0
"""`sparcl run`: all stages."""

from __future__ import annotations

from sparcl_mcu.host_tools import stages
from sparcl_mcu.host_tools.options import BoardName, Experiment, Fresh, Overrides, Plain, Port, Seed, chosen


def run(
    experiment: Experiment,
    board: BoardName = "native",
    port: Port = None,
    fresh: Fresh = False,
    plain: Plain = False,
    overrides: Overrides = None,
    seed: Seed = None,
) -> None:
    """Everything: generate, build, flash, stream, validate, report.

    An emulated board starts from an erased flash and is stopped at the end. A real board is used only with
    --port, and made to forget what it has learned only with --fresh.

    Example: sparcl run examples/split_digits.toml --board microbit
    """
    options = chosen(experiment, board, overrides, seed)
    from sparcl_mcu.host_tools import view

    view.heading("Generate")
    project = options.project()
    stages.show_plan(project)
    with stages.emulated(project, port) as emulator:
        view.heading("Build and flash")
        stages.flash(project, port)
        url = stages.url(project, port, options)
        view.heading("Stream")
        stages.stream(project, url, resume=False, fresh=fresh, plain=plain, options=options)
        view.heading("Validate")
        result = stages.validate(project, url if emulator is not None else None, plain=plain)
    view.heading("Report")
    stages.report(project)
    stages.require_exact(result, options)
