# SPDX-License-Identifier: Apache-2.0
"""`sparcl stop`: stop emulated boards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparcl_mcu.spec.paths import build_folder


def stop(
    experiment: Annotated[
        Path | None, typer.Argument(metavar="[EXP.toml]", help="Only this experiment's boards; default: all.")
    ] = None,
    board: Annotated[str | None, typer.Option("--board", "-b", help="Only this board; default: all.")] = None,
) -> None:
    """Stop the emulated boards that run.

    `sparcl flash` and `pio run -t upload` start them. What they have learned stays in their flash;
    `sparcl stream --resume` continues. A real board is not touched.

    Example: sparcl stop examples/split_digits.toml --board microbit
    """
    from sparcl_mcu.generator.config import load
    from sparcl_mcu.host_tools import view
    from sparcl_mcu.host_tools.emulator import running
    from sparcl_mcu.spec.boards import load_board

    name = load(experiment).experiment.name if experiment is not None else None
    wanted = load_board(board).name if board is not None else None
    found = [emulator for emulator in running(build_folder(), name) if wanted in (None, emulator.board)]
    for emulator in found:
        emulator.stop()
        view.say(f"stopped {emulator.board} ({emulator.state_dir})")
    if not found:
        view.say("no emulated board runs")
