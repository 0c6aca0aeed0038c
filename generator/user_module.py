# SPDX-License-Identifier: Apache-2.0
"""Python code of the user's that an experiment file names: data and models as functions."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from sparcl_mcu.generator import files
from sparcl_mcu.generator.sizes import LARGEST_MODULE
from sparcl_mcu.spec.errors import UserError

CONSENT = "SPARCL_ALLOW_CODE"
"""Environment variable that an experiment file cannot set."""


def require_consent(what: str) -> None:
    """Raise ``UserError`` unless the user allows that code runs; ``what`` names it."""
    if os.environ.get(CONSENT) != "1":
        raise UserError(
            f"{what} runs Python code with all your rights. Review it, then allow it by setting {CONSENT}=1"
        )


def load(folder: Path | None, name: str) -> ModuleType:
    """A module in ``folder``, or one that can be imported; raises whatever its code raises.

    One in the folder is run each time and hides nothing of the same name, for it is not imported under its name.
    Callers ask for consent first.
    """
    path = folder / f"{name}.py" if folder is not None else None
    if path is not None and path.is_file():
        try:
            files.check(path, LARGEST_MODULE)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    spec = importlib.util.spec_from_file_location(f"_sparcl_{name}", path) if path and path.is_file() else None
    if spec is None or spec.loader is None:
        return importlib.import_module(name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look there
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def importing(folder: Path | None) -> Iterator[None]:
    """Make the modules in the folder importable."""
    before = list(sys.path)
    if folder is not None:
        sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = before
