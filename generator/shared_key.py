# SPDX-License-Identifier: Apache-2.0
"""The key that host and board share, where an experiment names one (docs/protocol.md, "Shared key").

Only its place is an option.  The key itself goes into the firmware and nowhere else.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from sparcl_mcu.generator.errors import UserError

BYTES = 32
FORM = r"(env:[A-Za-z_]\w*|file:.+)"
"""Of the option: ``env:NAME`` or ``file:PATH``."""

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


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(4 * BYTES).decode("ascii", "replace")
    except OSError as error:
        raise UserError(
            f"link.key: {path} cannot be read ({error.strerror}); `{_MAKE} > {path.name}` makes a key"
        ) from None
