# SPDX-License-Identifier: Apache-2.0
"""Zip files and the arrays in them, as they may come from anybody: what they declare comes before what they hold.

A few KiB of zip can declare terabytes, an array any shape, and ``zipfile`` and NumPy allocate what they are told.
"""

from __future__ import annotations

import contextlib
import io
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sparcl_mcu.generator import files
from sparcl_mcu.generator.sizes import LARGEST_DIRECTORY, shown

_CHUNK = 1 << 16
_HEAD = 1 << 14
"""Bytes of a member that hold the header of an array; NumPy itself takes 10,000."""

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
"""Version 3 is for records whose fields have names beyond Latin-1."""


class _Bounded(io.RawIOBase):
    """A file that ``zipfile`` reads its table of contents from, which may be as large as the file."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(size if 0 <= size <= LARGEST_DIRECTORY else LARGEST_DIRECTORY + 1)
        if len(content) > LARGEST_DIRECTORY:
            raise zipfile.BadZipFile(f"its table of contents has more than {shown(LARGEST_DIRECTORY)}")
        return content

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


@contextlib.contextmanager
def opened(file: BinaryIO) -> Iterator[zipfile.ZipFile]:
    """The zip file in ``file``; raises ``zipfile.BadZipFile``, and what ``zipfile`` raises for a broken one."""
    with zipfile.ZipFile(_Bounded(file)) as archive:
        yield archive


def contents(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """The bytes of a member; raises ``ValueError`` if there are more than ``most``, whatever it declares."""
    if archive.getinfo(name).file_size > most:
        raise ValueError(f"{name} has {shown(archive.getinfo(name).file_size)}; at most {shown(most)} are possible")
    with archive.open(name) as member:
        # Read in parts: a single read() would unpack 2 GiB before checking the declared size.
        return b"".join(iter(lambda: member.read(_CHUNK), b""))


def declared(archive: zipfile.ZipFile, name: str) -> int:
    """Bytes that a member's array takes; raises ``ValueError`` unless it is an array and holds what it declares."""
    size = archive.getinfo(name).file_size
    with archive.open(name) as member:
        head = io.BytesIO(member.read(_HEAD))
    version = np.lib.format.read_magic(head)
    if version not in _HEADERS:
        raise ValueError(f"version {version} of the array format is not for plain numbers")
    shape, _, dtype = _HEADERS[version](head)
    if not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError(f"has the impossible shape {shape}")
    if math.prod(shape) * dtype.itemsize > size and not dtype.hasobject:
        raise ValueError(f"declares {dtype} of shape {shape}, but holds {shown(size)}")
    # Axes of length 0 and strings of length 0 take nothing, however many there are.
    return math.prod(max(1, n) for n in shape) * max(1, dtype.itemsize)


def array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """The array in a member; ``declared`` comes first."""
    with archive.open(name) as member:
        found: NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
    return found


def load(path: Path, most: int) -> dict[str, NDArray[Any]]:
    """All arrays of an ``.npz``, by name.

    Raises ``OSError`` as ``files.check`` does, and ``ValueError`` for a file that is broken or declares more than
    ``most`` bytes.
    """
    with files.opened(path, most) as file:
        try:
            with opened(file) as archive:
                names = archive.namelist()
                wanted = sum(declared(archive, name) for name in names)
                if wanted > most:
                    raise ValueError(f"declares {shown(wanted)}; at most {shown(most)} are possible")
                return {name.removesuffix(".npy"): array(archive, name) for name in names}
        except Exception as error:  # zlib, zipfile and NumPy have many for a broken file
            raise ValueError(f"{type(error).__name__}: {error}") from error
