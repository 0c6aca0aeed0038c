# SPDX-License-Identifier: Apache-2.0
"""The key that host and board share, where an experiment names one (docs/spec/protocol.md, "Shared key").

Only its place is an option.  The key itself goes into the firmware and nowhere else,
and that into a folder which only its owner can enter.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import sys
from pathlib import Path

from sparcl_mcu.generator import files
from sparcl_mcu.spec.errors import UserError

BYTES = 32
LARGEST = 1024
"""Bytes of a file with a key: 64 digits and some blanks."""

FORM = r"(env:[A-Za-z_]\w*|file:.+)"
"""Form of the option: ``env:NAME`` or ``file:PATH``."""

_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_ELSEWHERE = "set SPARCL_BUILD to a folder of yours where that works"
_MAKE = f"openssl rand -hex {BYTES}"


def load(place: str | None) -> bytes | None:
    """The key at ``env:NAME`` or ``file:PATH``, 32 bytes as 64 hexadecimal digits; None without a place.

    Raises ``UserError`` when there is none or it is none; the message never shows it.
    """
    if place is None:
        return None
    kind, _, name = place.partition(":")
    text = os.environ.get(name) if kind == "env" else _read(Path(name))
    if text is None:
        raise UserError(f"link.key = {place!r}: the environment variable {name} is not set; `{_MAKE}` makes a key")
    if not re.fullmatch(rf"[0-9A-Fa-f]{{{2 * BYTES}}}", text.strip()):
        raise UserError(f"link.key = {place!r}: a key is {2 * BYTES} hexadecimal digits; `{_MAKE}` makes one")
    return bytes.fromhex(text.strip())


def keep_private(folder: Path) -> None:
    """Make a folder that holds a key its owner's alone, with all that is in it already; it need not be there yet.

    Raises ``UserError`` where the file system or its owner does not allow that. Windows has no such permissions: there
    a folder in the user's profile is private.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Top down, through everything: others may already have entered or opened a folder below.
        for path in (folder, *folder.rglob("*")):
            mode = path.lstat().st_mode
            if mode & _OTHERS and not stat.S_ISLNK(mode):
                path.chmod(stat.S_IMODE(mode) & ~_OTHERS)
        private = sys.platform == "win32" or not folder.stat().st_mode & _OTHERS
    except OSError as error:
        raise UserError(
            f"link.key: {error.filename} cannot be kept from others ({error.strerror}); {_ELSEWHERE}"
        ) from None
    if not private:
        raise UserError(f"link.key: the file system of {folder} keeps nothing from others; {_ELSEWHERE}")


def journal_key(key: bytes, model_hash: bytes) -> bytes:
    """The key of tags in flash (docs/spec/flash-format.md), 32 bytes: of one model, and of no use on the line."""
    return hashlib.blake2s(b"sparcl-mcu journal" + model_hash, key=key, digest_size=BYTES).digest()


def _read(path: Path) -> str:
    try:
        return files.read(path, LARGEST).decode("ascii", "replace")
    except OSError as error:
        raise UserError(
            f"link.key: {path} cannot be read ({error.strerror}); `{_MAKE} > {path.name}` makes a key"
        ) from None
