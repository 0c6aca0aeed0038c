# SPDX-License-Identifier: Apache-2.0
"""`sparcl flash`: write the firmware to a board."""

from __future__ import annotations

from sparcl_mcu.host_tools import stages
from sparcl_mcu.host_tools.options import BoardName, Experiment, Overrides, Port, Seed, chosen


def flash(
    experiment: Experiment,
    board: BoardName = "native",
    port: Port = None,
    overrides: Overrides = None,
    seed: Seed = None,
) -> None:
    """Build and write the firmware.

    An emulated board is started and keeps running; `sparcl stop` stops it.

    Example: sparcl flash examples/split_digits.toml --board microbit --port /media/$USER/MICROBIT
    """
    stages.flash(chosen(experiment, board, overrides, seed).project(), port)
