# SPDX-License-Identifier: Apache-2.0
"""The ports of this computer: which there are, who has one open, and why one cannot be used."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from serial.tools import list_ports

from sparcl_mcu.spec.errors import SparclError, UserError, one_line

_BUSY = frozenset((errno.EBUSY, errno.EAGAIN, errno.EWOULDBLOCK))
"""Errors of the system for a port that another program has opened exclusively."""
_COLOURS = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")
_TEXT = frozenset(b"\t\n\r\f\b" + bytes(range(0x20, 0x7F)))
_LEAST_TEXT = 8
"""Bytes that can be told from noise."""


def known() -> str:
    """The serial ports there are, for a message."""
    found = [f"{port.device} ({one_line(port.description, 60)})" for port in sorted(list_ports.comports())]
    return f"there are {', '.join(found)}" if found else "no serial port is plugged in"


def others(url: str) -> str:
    """The other programs that have a port open, for a message; empty when none is seen (other systems than Linux)."""
    return ", ".join(f"{name} (process {process})" for process, name in _others(url))


def _others(url: str) -> Iterator[tuple[int, str]]:
    try:
        device = os.stat(url)
    except OSError:
        return
    if not stat.S_ISCHR(device.st_mode):
        return
    for process in sorted(Path("/proc").glob("[0-9]*")):
        if int(process.name) != os.getpid() and _has_open(process, device.st_rdev):
            with suppress(OSError):
                yield int(process.name), one_line((process / "comm").read_text("utf-8", "replace"), 40)


def _has_open(process: Path, device: int) -> bool:
    with suppress(OSError):  # another user's process, or one that has ended
        for link in (process / "fd").iterdir():
            with suppress(OSError):
                found = link.stat()
                if stat.S_ISCHR(found.st_mode) and found.st_rdev == device:
                    return True
    return False


def mistake(url: str, error: Exception) -> SparclError | None:
    """Why a port could not be opened, when the user can mend it; None for everything else."""
    if isinstance(error, ValueError):
        return UserError(f"there is no port {url}: {known()}")
    if "://" in url:
        return None
    number, windows = getattr(error, "errno", None), os.name == "nt"
    if number in _BUSY or (windows and "PermissionError" in str(error)):
        return UserError(f"another program uses {url}: {others(url) or 'which one cannot be seen'}; close it")
    if number in (errno.EACCES, errno.EPERM):
        return UserError(not_allowed(url))
    if number == errno.ENOENT or (windows and "FileNotFoundError" in str(error)):
        return UserError(f"there is no port {url}: {known()}; name one with --port")
    if not windows and (not Path(url).is_char_device() or type(error.__context__).__module__ == "termios"):
        return UserError(f"{url} is not a serial port: {known()}; name one with --port")
    return None


def not_allowed(url: str) -> str:
    """Tell the user how to get the right to open a port."""
    group = ""
    with suppress(ImportError, KeyError, OSError):
        import grp

        group = grp.getgrgid(os.stat(url).st_gid).gr_name
    if group in ("", "root"):
        return f"you may not open {url}: a udev rule, or `sudo chmod a+rw {url}` until it is unplugged, allows it"
    return f"you may not open {url}: type `sudo usermod -aG {group} $USER`, then log out and in again"


def text_in(data: bytes) -> str:
    """The beginning of what a program prints; empty where ``data`` is not text but noise or frames."""
    plain = _COLOURS.sub(b"", data)
    readable = sum(byte in _TEXT for byte in plain)
    if readable < _LEAST_TEXT or readable < 0.9 * len(plain):
        return ""
    return one_line(plain.decode("ascii", "replace"), 80)
