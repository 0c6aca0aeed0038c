# SPDX-License-Identifier: Apache-2.0
"""Where the project's own files lie, and where what it makes goes. Only the standard library."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The checkout, or the installed package: both hold firmware/, platforms/, templates/ and platformio.ini."""

IN_CHECKOUT = (ROOT / "pyproject.toml").is_file()


def build_folder() -> Path:
    """Where artefacts go: ``$SPARCL_BUILD``, else ``build/`` of the checkout within it, elsewhere of this folder."""
    here = Path.cwd()
    at_home = IN_CHECKOUT and here.resolve().is_relative_to(ROOT)
    return Path(os.environ.get("SPARCL_BUILD") or (ROOT if at_home else here) / "build")
