# SPDX-License-Identifier: Apache-2.0
"""The source files that what was measured depends on."""

from __future__ import annotations

import hashlib
from functools import cache

from sparcl_mcu.spec.paths import ROOT


@cache
def digest(names: tuple[str, ...]) -> bytes:
    """Hash of files, and of all files in folders, named from the checkout on; as they are when first asked for."""
    state = hashlib.sha256()
    for path in (ROOT / name for name in names):
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and file.suffix != ".pyc":
                state.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes() + b"\0")
    return state.digest()
