# SPDX-License-Identifier: Apache-2.0
"""Builds, and uploads, the firmware of a rendered project with PlatformIO."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sparcl_mcu.generator import files
from sparcl_mcu.spec.errors import BoardError, UserError
from sparcl_mcu.spec.paths import ROOT

from . import platformio
from .emulator import AVAILABLE

if TYPE_CHECKING:
    from sparcl_mcu.generator.pipeline import Project


def build(project: Project, arguments: Sequence[str] = (), defines: Sequence[str] = ()) -> Path:
    """Run PlatformIO on the project with more ``arguments`` and preprocessor ``defines``; the image.

    Raises BoardError, which names the file with PlatformIO's whole output; UserError where the disk is full, or no
    native board can be.
    """
    if project.board.core == "host" and not AVAILABLE:
        raise UserError(f"the board {project.board.name} is a program for Linux: choose a board that is plugged in")
    folder = project.folder.resolve()
    environment = {
        "SCL_GENERATED": str(folder / "generated"),
        # PlatformIO expands variables in a path, but not in the value of a variable.
        "SCL_PROJECT": str(folder),
        "PLATFORMIO_BUILD_DIR": "${sysenv.SCL_PROJECT}/pio",
        "SCL_EMULATOR_DIR": str(folder / "emulator"),
    }
    if defines:
        flags = [os.environ.get("SCL_EXTRA_CFLAGS", ""), *(f"-D{define}" for define in defines)]
        environment["SCL_EXTRA_CFLAGS"] = " ".join(flags).strip()
    try:
        platformio.run_pio(["run", "-e", project.board.name, *arguments], environment, cwd=ROOT)
    except platformio.PioError as error:
        log = folder / "pio.log"
        files.write(log, error.output)
        full = os.strerror(errno.ENOSPC) in error.output
        raise (UserError if full else BoardError)(f"{error}\nPlatformIO's whole output is in {log}") from error
    return project.image
