# SPDX-License-Identifier: Apache-2.0
"""Facts about boards, read from ``firmware/boards/<name>/board.toml``."""

from __future__ import annotations

import difflib
import tomllib
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sparcl_mcu.generator.errors import UserError
from sparcl_mcu.generator.places import ROOT

BOARDS = ROOT / "firmware" / "boards"


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Memory(_Facts):
    """RAM and code flash in bytes.

    ``shared``: code lies in the same RAM as data. ``code_in_ram``: start-up copies the functions that a training
    step spends its time in to RAM, as reading flash makes the core wait.
    """

    ram_bytes: int
    flash_bytes: int
    shared: bool
    stack_bytes: int
    code_in_ram: bool = False

    @model_validator(mode="after")
    def _one_copy(self) -> Memory:
        if self.shared and self.code_in_ram:
            raise ValueError("code_in_ram: code that shares a RAM with data (shared) is there already")
        return self


class Store(_Facts):
    """The journal's flash partition: bytes, erase unit, program unit (docs/flash-format.md).

    ``erased``: value of an erased byte. ``endurance``: times a sector can be erased.
    """

    kind: str
    size: int
    sector: int
    program_unit: int
    offset: int
    mapped_base: int = 0
    erased: Literal[0x00, 0xFF] = 0xFF
    endurance: int = Field(default=10_000, ge=1)

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


class Timer(_Facts):
    """``ticks_per_instruction``: under emulation with ``-icount shift=0``; 0 where it means nothing."""

    unit: str
    ticks_per_instruction: float


class LinkFacts(_Facts):
    """Serial line: payload limit in bytes, baud rate, training steps in one request.

    ``window``: requests that may be under way at once, so that what arrives
    while the board works is not lost; 1 for a receiver without a buffer.
    """

    max_payload: int
    baud: int
    steps_per_request: int
    window: int = Field(default=1, ge=1, le=16)


class Watchdog(_Facts):
    """Milliseconds without food after which the board is reset; ``verified``: as the board's, for the watchdog."""

    period_ms: int = Field(ge=100)
    verified: str


class Emulator(_Facts):
    """How the board is emulated (host_tools/emulator.py reads the details)."""

    kind: str


class Board(_Facts):
    """One board."""

    name: str
    title: str
    core: str
    verified: str
    description: str
    memory: Memory
    store: Store
    timer: Timer
    link: LinkFacts
    watchdog: Watchdog
    emulator: Emulator | None = None


def load_board(name: str) -> Board:
    """Reads one board; an unknown name is a ``UserError`` with the nearest known one."""
    path = BOARDS / name / "board.toml"
    known = board_names()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise UserError(f"unknown board '{name}'{hint} (known: {', '.join(known)}; see `sparcl boards`)")
    try:
        return Board.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise UserError(f"{path}: {error}") from error


def board_names() -> list[str]:
    """Names of all boards, sorted."""
    return sorted(p.parent.name for p in BOARDS.glob("*/board.toml"))


def boards() -> list[Board]:
    """All boards."""
    return [load_board(name) for name in board_names()]
