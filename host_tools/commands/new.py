# SPDX-License-Identifier: Apache-2.0
"""`sparcl new`: make a project."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer


def new(
    folder: Annotated[Path, typer.Argument(metavar="NAME", help="Folder to make; its name names the experiment.")],
    data: Annotated[
        str | None, typer.Option("--data", help="npz (windows of a sensor), csv (a table), images, or digits.")
    ] = None,
    network: Annotated[str | None, typer.Option("--network", help="dense or conv.")] = None,
    board: Annotated[str | None, typer.Option("--board", "-b", help="Board; `sparcl boards` lists them.")] = None,
) -> None:
    """Make a project that runs at once.

    It has an experiment file, stand-in samples, platformio.ini and a README. On a terminal it asks
    for what was not given; elsewhere the defaults are npz, dense and native.

    \b
      sparcl new my_project
      sparcl new vibration --data csv --board microbit
      sparcl new parts --data images --network conv
    """
    from sparcl_mcu.host_tools import new as projects
    from sparcl_mcu.host_tools import view

    chosen = projects.choose(
        folder,
        data or _ask("Sensor windows, a table, pictures, or digits?", projects.DATA),
        network or _ask("Network", projects.NETWORKS[:1] if data == "csv" else projects.NETWORKS),
        board or _ask("Board", ("native",)),
    )
    for path in projects.create(folder, chosen):
        view.say(str(path))
    view.say(f"\nNext:\n  cd {shlex.quote(str(folder))}\n  sparcl run {chosen.name}.toml --board {chosen.board}")


def _ask(question: str, choices: tuple[str, ...]) -> str:
    """The answer of whoever sits at the terminal; without one the first of the choices."""
    if not sys.stdin.isatty() or not sys.stdout.isatty():
        return choices[0]
    shown = f"{question} [{'/'.join(choices)}]" if len(choices) > 1 else question
    return str(typer.prompt(shown, default=choices[0], show_default=len(choices) == 1))
