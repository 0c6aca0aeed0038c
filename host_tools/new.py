# SPDX-License-Identifier: Apache-2.0
"""`sparcl new`: a project that runs, to be filled with one's own samples."""

from __future__ import annotations

import os
import re
import runpy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sparcl_mcu.generator import files
from sparcl_mcu.generator.config import RESERVED_NAMES
from sparcl_mcu.spec.boards import load_board
from sparcl_mcu.spec.errors import UserError
from sparcl_mcu.spec.paths import ROOT

Data = Literal["npz", "csv", "images", "digits"]
Network = Literal["dense", "conv"]
DATA: tuple[Data, ...] = get_args(Data)
NETWORKS: tuple[Network, ...] = get_args(Network)

TEMPLATES = ROOT / "templates" / "project"
SCRIPT = "make_data.py"


@dataclass(frozen=True)
class Choices:
    """The choices for a new project."""

    name: str
    data: Data
    network: Network
    board: str

    @property
    def sparsity(self) -> float:
        """Share of masked weights: a small network has few to spare."""
        return 0.6 if self.network == "conv" or self.data == "csv" else 0.8

    @property
    def lr(self) -> float | None:
        """Learning rate where the default is not right: large inputs need smaller steps."""
        return 0.005 if self.data in ("npz", "csv") else None

    def files(self) -> dict[str, str]:
        """Names of the project's files, and the templates they are rendered from."""
        found = {
            f"{self.name}.toml": "experiment.toml.j2",
            "README.md": "README.md.j2",
            "platformio.ini": "platformio.ini.j2",
            ".gitignore": "gitignore.j2",
        }
        return found if self.data == "digits" else found | {SCRIPT: f"make_data_{self.data}.py.j2"}


def choose(folder: Path, data: str, network: str, board: str) -> Choices:
    """Check what was asked for.

    Raises:
        UserError: the folder's name cannot name an experiment, or a choice does not exist.
    """
    name = folder.resolve().name
    if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) or name.lower() in RESERVED_NAMES:
        better = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_") or "project"
        taken = better.lower() in RESERVED_NAMES or better[0].isdigit()
        hint = f"my_{better}" if taken else better
        raise UserError(
            f"{name!r} cannot name a project: letters, digits and underscores, not {', '.join(RESERVED_NAMES)}. "
            f"Try `sparcl new {hint}`"
        )
    if data not in DATA:
        raise UserError(f"--data {data}: choose one of {', '.join(DATA)}")
    if network not in NETWORKS:
        raise UserError(f"--network {network}: choose one of {', '.join(NETWORKS)}")
    if network == "conv" and data == "csv":
        raise UserError("--network conv needs pictures or windows of a time series; --data csv is a table of features")
    load_board(board)
    return Choices(name, data, network, board)


def create(folder: Path, choices: Choices) -> list[Path]:
    """Write the project into a new or empty folder, and its stand-in samples; the files written.

    Raises:
        UserError: there are files in the folder already, or it cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: choose another name")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: choose another name, nothing was changed")
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        line_statement_prefix="%%",
        keep_trailing_newline=True,
        autoescape=False,
    )
    facts = asdict(choices) | {"sparsity": choices.sparsity, "lr": choices.lr}
    folder.mkdir(parents=True, exist_ok=True)
    for name, template in choices.files().items():
        files.write(folder / name, environment.get_template(template).render(facts))
    if SCRIPT in choices.files():
        _run_in(folder, folder.resolve() / SCRIPT)
    return [folder / name for name in choices.files()]


def _run_in(folder: Path, script: Path) -> None:
    """Run the stand-in's script in its folder: it writes beside itself."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        os.chdir(before)
