# SPDX-License-Identifier: Apache-2.0
"""`sparcl generate`: from an experiment to C sources."""

from __future__ import annotations

from typing import Annotated

import typer

from sparcl_mcu.host_tools import stages
from sparcl_mcu.host_tools.options import BoardName, Experiment, Overrides, Seed, chosen


def generate(
    experiment: Experiment,
    board: BoardName = "native",
    overrides: Overrides = None,
    seed: Seed = None,
    force: Annotated[bool, typer.Option("--force", help="Run every stage, also those up to date.")] = False,
) -> None:
    """Train, prune, quantise and render the firmware; plan its memory.

    Prints the RAM and flash budget; a network that does not fit its board ends here.

    Example: sparcl generate examples/split_digits.toml --board microbit
    """
    stages.show_plan(chosen(experiment, board, overrides, seed).project(force=force))
