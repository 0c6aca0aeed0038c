# SPDX-License-Identifier: Apache-2.0
"""The memory of a running board: faults are put there from outside, the firmware knows nothing of it."""

from __future__ import annotations

import subprocess
from functools import cached_property
from pathlib import Path


class Memory:
    """Of a process: variables by the names of the C sources."""

    def __init__(self, image: Path, pid: int) -> None:
        self._image = image
        self._pid = pid

    def flip(self, symbol: str, bit: int) -> None:
        """Flip one bit, counted from the beginning of a variable or constant."""
        with Path(f"/proc/{self._pid}/mem").open("r+b", buffering=0) as memory:
            memory.seek(self._base() + self._offsets[symbol] + bit // 8)
            byte = memory.read(1)[0]
            memory.seek(-1, 1)
            memory.write(bytes([byte ^ 1 << bit % 8]))

    def names(self) -> set[str]:
        """Of all variables and constants."""
        return set(self._offsets)

    def _base(self) -> int:
        """Where the program lies in this life of the process."""
        for line in Path(f"/proc/{self._pid}/maps").read_text().splitlines():
            if line.endswith(str(self._image.resolve())):
                return int(line.split("-")[0], 16)
        raise AssertionError(f"{self._image} is not mapped")

    @cached_property
    def _offsets(self) -> dict[str, int]:
        listing = subprocess.run(["nm", self._image], check=True, capture_output=True, text=True).stdout
        rows = (line.split() for line in listing.splitlines())
        return {row[2]: int(row[0], 16) for row in rows if len(row) == 3 and row[1] in "bBdDrR"}
