# SPDX-License-Identifier: Apache-2.0
"""`sparcl validate`: compare a session with the reference."""

from __future__ import annotations

from typing import Annotated

import typer

from sparcl_mcu.host_tools import stages
from sparcl_mcu.host_tools.options import BoardName, Experiment, Overrides, Plain, Port, Seed, chosen


def validate(
    experiment: Experiment,
    board: BoardName = "native",
    port: Port = None,
    bisect: Annotated[
        bool,
        typer.Option(help="After a difference, repeat the session on the board to find the exact step and weight."),
    ] = True,
    plain: Plain = False,
    overrides: Overrides = None,
    seed: Seed = None,
) -> None:
    """Replay the session on the NumPy reference, compare every byte.

    When a state differs and a board can be reached (a running emulator, or --port), the session is repeated
    on it, so that the first wrong step, tensor and element are named. The board forgets what it has learned.

    Example: sparcl validate examples/split_digits.toml --port /dev/ttyACM0
    """
    options = chosen(experiment, board, overrides, seed)
    project = options.project()
    result = stages.validate(project, stages.reachable(project, port) if bisect else None, plain=plain)
    stages.require_exact(result, options)
