# SPDX-License-Identifier: Apache-2.0
"""Reading and writing files that are not ours: what a file is and how large comes before what is in it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from sparcl_mcu.generator.sizes import LARGEST_RESULT, shown

_CHUNK = 1 << 20

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

FULL = frozenset({errno.ENOSPC, errno.EFBIG, errno.EDQUOT} if hasattr(errno, "EDQUOT") else {errno.ENOSPC, errno.EFBIG})
"""Errors of a disk without room: full, a file larger than allowed, a quota that is used up."""


class Refused(OSError):
    """A file that is not read; ``strerror`` says why, as in errors of the operating system."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(errno.EINVAL, reason, str(path))


def check(path: Path, most: int) -> int:
    """The size of a regular file in bytes.

    Raises ``Refused`` unless it is a file of at most ``most`` bytes, ``OSError`` if it does not exist.
    """
    try:
        return _size(path, os.stat(path), most)
    except ValueError as error:  # a zero byte in the name
        raise Refused(path, f"is not a possible name ({error})") from None


@contextlib.contextmanager
def opened(path: Path, most: int) -> Iterator[BinaryIO]:
    """Open a file for reading after ``check``, so that nothing is opened that could block forever."""
    check(path, most)
    # Something that has replaced the file since must not block us either.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
    with open(path, "rb", opener=lambda name, _: os.open(name, flags)) as file:
        _size(path, os.fstat(file.fileno()), most)
        yield file


def read(path: Path, most: int) -> bytes:
    """The bytes of a file; raises as ``check`` does, also for one that turns out to be longer than it says."""
    with opened(path, most) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise Refused(path, f"has more than {shown(most)}")
    return content


def read_text(path: Path, most: int) -> str:
    """The text of a file in UTF-8, with or without a byte order mark; ``Refused`` for anything else."""
    content = read(path, most)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise Refused(path, f"line {line} is not UTF-8 text: save it as UTF-8") from None


def read_json(path: Path, most: int = LARGEST_RESULT) -> Any:
    """Read a JSON file; raises ``ValueError`` if it is not JSON, and as ``check`` does."""
    try:
        return json.loads(read(path, most))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def digest(path: Path, most: int) -> bytes:
    """SHA-256 of a file, whatever its size; raises as ``check`` does."""
    state = hashlib.sha256()
    with opened(path, most) as file:
        while part := file.read(_CHUNK):
            state.update(part)
    return state.digest()


def write(path: Path, content: str | bytes) -> None:
    """Write a file; an error names it, and how much room was needed."""
    packed = content if isinstance(content, bytes) else content.encode("utf-8")
    with writing(path, len(packed)):
        path.write_bytes(packed)


@contextlib.contextmanager
def writing(path: Path, needed: int | None = None) -> Iterator[None]:
    """Errors of writing, which do not know their file, get its name and the ``needed`` bytes."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        if error.errno in FULL and needed is not None:
            error.strerror = f"{error.strerror} ({shown(needed)} needed{_free(path)})"
        raise


def _free(path: Path) -> str:
    try:
        return f", {shown(shutil.disk_usage(path.parent).free)} free"
    except OSError:
        return ""


def _size(path: Path, found: os.stat_result, most: int) -> int:
    kind = stat.S_IFMT(found.st_mode)
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if kind != stat.S_IFREG:
        raise Refused(path, f"is {_KINDS.get(kind, 'something else')}, not a file")
    if found.st_size > most:
        raise Refused(path, f"has {shown(found.st_size)}; at most {shown(most)} are possible")
    return found.st_size
