# SPDX-License-Identifier: Apache-2.0
"""Options that several commands take, and the project that they name."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparcl_mcu.spec.paths import build_folder

from . import failures

if TYPE_CHECKING:
    from sparcl_mcu.generator.pipeline import Project

Experiment = Annotated[Path, typer.Argument(metavar="EXP.toml", help="Experiment file.")]
BoardName = Annotated[str, typer.Option("--board", "-b", help="Board; `sparcl boards` lists them.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change an option of the file; may be repeated."),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed in place of the file's.")]
Port = Annotated[
    str | None,
    typer.Option("--port", "-p", help="Serial port or URL of the board; default: its emulator."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue with a board that has learned something.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Make the board forget what it has learned first.")]


def _without_controls(plain: bool) -> bool:
    if plain:
        from . import view

        view.without_controls()
    return plain


Plain = Annotated[
    bool,
    typer.Option("--plain", help="Lines of text instead of the live view, for logs.", callback=_without_controls),
]


@dataclass(frozen=True)
class Options:
    """The options of every command that works on an experiment."""

    experiment: Path
    board: str
    overrides: tuple[str, ...]
    seed: int | None

    @property
    def arguments(self) -> str:
        """These options as typed, to name a next command."""
        words = [str(self.experiment), "--board", self.board]
        for item in self.overrides:
            words += ["--set", item]
        words += ["--seed", str(self.seed)] if self.seed is not None else []
        return shlex.join(words)

    def project(self, *, force: bool = False) -> Project:
        """Bring the generated project up to date."""
        from sparcl_mcu.generator.pipeline import generate

        from . import platformio, view

        project = generate(
            self.experiment,
            self.board,
            self.overrides,
            self.seed,
            progress=view.say,
            force=force,
            claim=failures.claim,
        )
        failures.log.folder = project.folder
        platformio.write_environments(build_folder())
        return project


def chosen(experiment: Path, board: str, overrides: list[str] | None, seed: int | None) -> Options:
    """The options as the command got them."""
    return Options(experiment, board, tuple(overrides or ()), seed)
