# SPDX-License-Identifier: Apache-2.0
"""`sparcl build`: build the firmware."""

from __future__ import annotations

from sparcl_mcu.host_tools import stages
from sparcl_mcu.host_tools.options import BoardName, Experiment, Overrides, Seed, chosen


def build(experiment: Experiment, board: BoardName = "native", overrides: Overrides = None, seed: Seed = None) -> None:
    """Generate, then build the firmware with PlatformIO.

    Example: sparcl build examples/split_digits.toml --board microbit
    """
    project = chosen(experiment, board, overrides, seed).project()
    stages.show_plan(project)
    stages.build(project)
