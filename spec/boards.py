# SPDX-License-Identifier: Apache-2.0
"""Facts about boards, read from ``firmware/boards/<name>/board.toml``: the only reader of these files.

Generator, host tools, PlatformIO's build and the emulator use it.  PlatformIO may run in a Python of its own, so there
is only the standard library in here, and imports are relative (platforms/common/board_build.py).
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from .errors import UserError
from .paths import ROOT

BOARDS = ROOT / "firmware" / "boards"

Verified = Literal["emulated", "silicon", "not yet"]
"""How a board was verified."""


@dataclass(frozen=True)
class Memory:
    """RAM and code flash in bytes, and their addresses.

    ``shared``: code lies in the same RAM as data. ``code_in_ram``: start-up copies the functions that a training
    step spends its time in to RAM, as reading flash makes the core wait.
    """

    ram_bytes: int
    ram_origin: int
    flash_bytes: int
    flash_origin: int
    shared: bool
    stack_bytes: int
    code_in_ram: bool = False

    def __post_init__(self) -> None:
        _require(
            not (self.shared and self.code_in_ram),
            "code_in_ram: code that shares a RAM with data (shared) is there already",
        )


@dataclass(frozen=True)
class Store:
    """The journal's flash partition: bytes, erase unit, program unit (docs/spec/flash-format.md).

    ``erased``: value of an erased byte. ``endurance``: times a sector can be erased.
    """

    kind: Literal["mapped", "spi-nor", "file"]
    size: int
    sector: int
    program_unit: int
    offset: int
    mapped_base: int = 0
    erased: Literal[0x00, 0xFF] = 0xFF
    endurance: int = 10_000

    def __post_init__(self) -> None:
        _require(self.endurance >= 1, "endurance: at least 1")
        _require(min(self.sector, self.program_unit) >= 1, "sector, program_unit: at least 1")
        _require(self.size % self.sector == 0, f"size: whole sectors of {self.sector} bytes, not {self.size}")
        _require(self.sector % self.program_unit == 0, f"sector: whole program units of {self.program_unit} bytes")

    @property
    def mapped(self) -> bool:
        """Whether records can be read in place."""
        return self.kind == "mapped"

    @property
    def granule(self) -> int:
        """Unit of journal addresses in bytes."""
        granule = max(4, self.program_unit)
        while self.size // granule > 65535:  # 0xFFFF means none
            granule *= 2
        return granule


@dataclass(frozen=True)
class Timer:
    """``ticks_per_instruction``: under emulation with ``-icount shift=0``; 0 where it means nothing."""

    unit: str
    ticks_per_instruction: float


@dataclass(frozen=True)
class LinkFacts:
    """Serial line: payload limit in bytes, baud rate, training steps in one request.

    ``window``: requests that may be under way at once, so that what arrives
    while the board works is not lost; 1 for a receiver without a buffer.
    """

    max_payload: int
    baud: int
    steps_per_request: int
    window: int = 1

    def __post_init__(self) -> None:
        _require(1 <= self.window <= 16, "window: 1 to 16")


@dataclass(frozen=True)
class Watchdog:
    """Milliseconds without a feed after which the board is reset; ``verified``: as the board's, for the watchdog."""

    period_ms: int
    verified: Verified

    def __post_init__(self) -> None:
        _require(self.period_ms >= 100, "period_ms: at least 100")


@dataclass(frozen=True)
class Build:
    """Flags of the compiler; ``sources`` and ``ldscript`` are shared files of the port, relative to ``firmware/``."""

    cflags: tuple[str, ...]
    sources: tuple[str, ...]
    ldscript: str
    optimise: str


@dataclass(frozen=True)
class Emulation:
    """How the board is emulated (host_tools/emulator.py).

    ``program``, ``machine``: QEMU's, and ``-M`` with properties; ``qemu``: its first version that knows the machine.
    ``flash``: "mtd", a file of ``device_bytes`` is the flash device; "window", a plugin maps the partition of
    ``ram_block`` onto a file.  ``port``: default TCP port of the serial line.
    """

    kind: Literal["qemu", "process", "none"]
    port: int = 0
    program: str = ""
    machine: str = ""
    qemu: str = ""
    flash: Literal["mtd", "window", ""] = ""
    device_bytes: int = 0
    ram_block: str = ""

    def __post_init__(self) -> None:
        _require(bool(self.port) or self.kind == "none", f"kind = '{self.kind}' needs port")
        if self.kind == "qemu":
            _require(bool(self.program and self.machine and self.flash), "kind = 'qemu' needs program, machine, flash")
            _require(bool(self.device_bytes) == (self.flash == "mtd"), "flash = 'mtd' needs device_bytes, nothing else")
            _require(bool(self.ram_block) == (self.flash == "window"), "flash = 'window' needs ram_block, nothing else")


@dataclass(frozen=True)
class Silicon:
    """How people flash a real board: words for them, and the ``drive`` to copy a .hex file to, where there is one.

    ``active_ma``: the data sheet's current of the running core at ``clock_hz`` and ``supply_v``; 0 where unknown.
    """

    flash: str
    drive: str = ""
    clock_hz: int = 0
    supply_v: float = 0.0
    active_ma: float = 0.0


@dataclass(frozen=True)
class Board:
    """One board (docs/howto/add-a-board.md, "board.toml")."""

    name: str
    title: str
    core: str
    verified: Verified
    description: str
    memory: Memory
    store: Store
    timer: Timer
    link: LinkFacts
    watchdog: Watchdog
    build: Build
    silicon: Silicon
    emulator: Emulation | None = None

    @property
    def on_host(self) -> bool:
        """Whether the board is a process on this computer."""
        return self.core == "host"


def load_board(name: str, root: Path = ROOT) -> Board:
    """Read one board of the project in ``root``.

    Raises UserError for an unknown name, with the nearest known one, and for a wrong, missing or unknown key.
    """
    folder = root / "firmware" / "boards"
    known = board_names(folder)
    if name not in known:
        raise UserError(f"unknown board '{name}'{_hint(name, known)} (known: {', '.join(known)}; see `sparcl boards`)")
    path = folder / name / "board.toml"
    try:
        board = _read(Board, tomllib.loads(path.read_text(encoding="utf-8")), "")
        _require(board.name == name, f"name: '{board.name}', but the folder is '{name}'")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValueError) as error:
        raise UserError(f"{path}: {error}") from error
    return board


def board_names(folder: Path = BOARDS) -> list[str]:
    """Names of all boards, sorted."""
    return sorted(p.parent.name for p in folder.glob("*/board.toml"))


def boards() -> list[Board]:
    """All boards."""
    return [load_board(name) for name in board_names()]


# ---------------------------------------------------------------- reading

T = TypeVar("T")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _hint(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean '{near[0]}'?" if near else ""


def _read(cls: type[T], table: Mapping[str, Any], where: str) -> T:
    """A dataclass from a table of the file; ValueError names the key."""
    types = get_type_hints(cls)
    for key in table:
        _require(key in types, f"{where}{key}: unknown key{_hint(key, list(types))}")
    for entry in fields(cls):  # type: ignore[arg-type]
        _require(entry.name in table or entry.default is not MISSING, f"{where}{entry.name}: missing")
    values = {key: _value(types[key], value, f"{where}{key}") for key, value in table.items()}
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{where}{error}") from error


def _value(wanted: Any, value: Any, where: str) -> Any:
    """One value of a table, checked against the annotation of its field."""
    if isinstance(wanted, UnionType):
        wanted = get_args(wanted)[0]  # the other one is None, which TOML has not
    if is_dataclass(wanted):
        _require(isinstance(value, dict), f"{where}: a table, not {value!r}")
        return _read(wanted, value, f"{where}.")  # type: ignore[arg-type]
    if get_origin(wanted) is Literal:
        known = [choice for choice in get_args(wanted) if choice != ""]
        _require(type(value) is type(known[0]) and value in known, f"{where}: one of {known}, not {value!r}")
        return value
    if get_origin(wanted) is tuple:
        _require(isinstance(value, list) and all(isinstance(v, str) for v in value), f"{where}: a list of strings")
        return tuple(value)
    if wanted is float and type(value) is int:
        return float(value)
    _require(type(value) is wanted, f"{where}: {wanted.__name__}, not {value!r}")
    _require(wanted not in (int, float) or value >= 0, f"{where}: {value} is negative")
    return value
