# SPDX-License-Identifier: Apache-2.0
"""Executions per instruction of an emulated board, by function and by mnemonic.

The emulator counts into a file (platforms/sparcl_cortexm/plugin/count.c); the
difference of two snapshots, taken while the board waits for a request, is
exactly what it executed in between.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from numpy.typing import NDArray

from sparcl_mcu.spec.errors import BoardError

Counts = NDArray[np.uint64]
Ranges = tuple[tuple[int, int], ...]
T = TypeVar("T")

_BYTES_PER_COUNT = 2
_OBJDUMP = "arm-none-eabi-objdump"
_LINE = re.compile(r"^\s*([0-9a-f]+):\t((?:[0-9a-f]{4} ?)+)\s*\t([^\t;@]+)(?:\t([^;@]*))?")
_SUFFIX = re.compile(r"\.(?:constprop|part|isra|cold|lto_priv)(?:\.\d+)*")
_LAYER = re.compile(r"l(\d+)_(forward|backward|error)$")
_PATIENCE = 120.0
_IDLE_SECONDS = 0.02

NO_FUNCTION = "(no function)"
"""Instructions that no symbol covers."""


@dataclass(frozen=True)
class Instruction:
    """One line of the disassembly; ``size`` in bytes, ``mnemonic`` without a width suffix (.n, .w)."""

    address: int
    size: int
    mnemonic: str
    operands: str


@dataclass(frozen=True)
class Function:
    """A function's code, [start, end); ``name`` without the suffixes of clones."""

    name: str
    start: int
    end: int


class Program:
    """The code of an ELF image for a Cortex-M."""

    def __init__(self, image: Path, ranges: Ranges) -> None:
        """``ranges``: (first address, bytes) of the memories whose executions are counted."""
        self.image = image
        self.ranges = ranges
        self.functions = _functions(image)

    @cached_property
    def instructions(self) -> tuple[Instruction, ...]:
        """All instructions by address.  Raises BoardError without the cross compiler's objdump."""
        try:
            done = subprocess.run(
                [_OBJDUMP, "-d", "-w", str(self.image)], capture_output=True, text=True, check=True, timeout=60
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise BoardError(f"{_OBJDUMP} cannot read {self.image}: {error}") from error
        return parse_disassembly(done.stdout)

    def slot(self, address: int) -> int | None:
        """Where the executions at ``address`` are counted; None outside the ranges."""
        first = 0
        for base, size in self.ranges:
            if base <= address < base + size:
                return first + (address - base) // _BYTES_PER_COUNT
            first += size // _BYTES_PER_COUNT
        return None

    def by_function(self, counts: Counts) -> dict[str, int]:
        """Instructions executed in each function that ran; clones of a function count as one."""
        result: dict[str, int] = defaultdict(int)
        for function in self.functions:
            first = self.slot(function.start)
            if first is not None:
                result[function.name] += int(counts[first : first + (function.end - function.start) // 2].sum())
        result[NO_FUNCTION] = int(counts.sum()) - sum(result.values())
        return {name: count for name, count in result.items() if count}

    def executions(self, counts: Counts) -> list[tuple[Instruction, int]]:
        """Every instruction of the image with its executions, by address."""
        result = []
        for instruction in self.instructions:
            slot = self.slot(instruction.address)
            result.append((instruction, 0 if slot is None else int(counts[slot])))
        return result


def parse_disassembly(text: str) -> tuple[Instruction, ...]:
    """The instructions in the output of `objdump -d`; data between them is left out."""
    result = []
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None or match[3].startswith("."):
            continue
        size = len(match[2].replace(" ", "")) // 2
        mnemonic = match[3].strip().removesuffix(".n").removesuffix(".w")
        result.append(Instruction(int(match[1], 16), size, mnemonic, (match[4] or "").strip()))
    return tuple(result)


def by_layer(functions: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """{"l1": {"forward": instructions, ...}, ...}: what the functions of each layer executed."""
    result: dict[str, dict[str, int]] = defaultdict(dict)
    for name, count in functions.items():
        match = _LAYER.match(name)
        if match is not None:
            result[f"l{match[1]}"][match[2]] = count
    return dict(sorted(result.items(), key=lambda item: int(item[0][1:])))


def _functions(image: Path) -> tuple[Function, ...]:
    """Functions by address; of several names of one address the first."""
    with image.open("rb") as file:
        table = ELFFile(file).get_section_by_name(".symtab")
        if not isinstance(table, SymbolTableSection):
            raise BoardError(f"{image} has no symbols: it was stripped")
        found: dict[int, Function] = {}
        for symbol in table.iter_symbols():
            if symbol["st_info"]["type"] == "STT_FUNC" and symbol["st_size"]:
                start = symbol["st_value"] & ~1  # bit 0 says Thumb
                found.setdefault(start, Function(_SUFFIX.sub("", symbol.name), start, start + symbol["st_size"]))
    return tuple(found[start] for start in sorted(found))


class Counter:
    """Counts what a running board has executed so far."""

    def __init__(self, program: Program, path: Path) -> None:
        """``path``: the file given to `Emulator.start`; the board has to wait for a request now."""
        self.program = program
        self._counts = np.memmap(path, dtype=np.uint64, mode="r")
        self._waiting = self._idle_slots()

    def of(self, work: Callable[[], T]) -> tuple[T, Counts]:
        """Let the board work; the result, and what it executed, waiting for requests left out."""
        before = self._settled()
        result = work()
        return result, self._settled() - before

    def _idle_slots(self) -> NDArray[np.bool_]:
        """The functions the board is in while it waits, as a mask."""
        mask = np.zeros(len(self._counts), dtype=np.bool_)
        before = self._snapshot()
        time.sleep(10 * _IDLE_SECONDS)
        active = self._snapshot() != before
        for function in self.program.functions:
            first = self.program.slot(function.start)
            if first is not None:
                part = slice(first, first + (function.end - function.start) // 2)
                mask[part] = active[part].any()
        if not mask.any():
            raise BoardError("the emulator does not count: is its QEMU older than 7.2, or newer than 8.1?")
        return mask

    def _snapshot(self) -> Counts:
        return np.array(self._counts)

    def _settled(self) -> Counts:
        """A snapshot while the board does nothing but wait, with 0 where it waits."""
        end = time.monotonic() + _PATIENCE
        last = self._without_waiting()
        while True:
            time.sleep(_IDLE_SECONDS)
            now = self._without_waiting()
            if np.array_equal(now, last):
                return now
            if time.monotonic() > end:
                raise BoardError("the board does not come to rest")
            last = now

    def _without_waiting(self) -> Counts:
        counts = self._snapshot()
        counts[self._waiting] = 0
        return counts
