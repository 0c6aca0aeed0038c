# SPDX-License-Identifier: Apache-2.0
"""The wire format of wire.toml: its codes and records in Python, as C for the firmware, as tables for the documents.

python -m sparcl_mcu.spec.wire     rewrite the tables of docs/spec/protocol.md
"""

from __future__ import annotations

import re
import struct
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .paths import ROOT

_TABLE: dict[str, Any] = tomllib.loads(Path(__file__).with_name("wire.toml").read_text(encoding="utf-8"))
_COMMANDS: dict[str, dict[str, Any]] = _TABLE["command"]
_STATUS: dict[str, dict[str, Any]] = _TABLE["status"]
_PHASES: dict[str, int] = _TABLE["phase"]
_MODES: dict[str, int] = _TABLE["mode"]
_FORMATS = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q"}

VERSION: int = _TABLE["version"]
"""Version of the protocol."""
RESIDENT, STREAMED = _MODES["resident"], _MODES["streamed"]
"""Modes of a task."""


class Command(IntEnum):
    """Command codes."""

    HELLO = _COMMANDS["hello"]["code"]
    TASK_BEGIN = _COMMANDS["task_begin"]["code"]
    SAMPLES = _COMMANDS["samples"]["code"]
    TRAIN = _COMMANDS["train"]["code"]
    STEP = _COMMANDS["step"]["code"]
    EVALUATE = _COMMANDS["evaluate"]["code"]
    PREDICT = _COMMANDS["predict"]["code"]
    REPLAY = _COMMANDS["replay"]["code"]
    TASK_END = _COMMANDS["task_end"]["code"]
    DIGEST = _COMMANDS["digest"]["code"]
    DUMP = _COMMANDS["dump"]["code"]
    STATISTICS = _COMMANDS["statistics"]["code"]
    SAVE = _COMMANDS["save"]["code"]
    RESET = _COMMANDS["reset"]["code"]

    @property
    def changes(self) -> bool:
        """Whether the command may change the state."""
        return bool(_COMMANDS[self.name.lower()].get("changes", False))


class Status(IntEnum):
    """Status of a request, as a board reports it."""

    OK = _STATUS["ok"]["code"]
    BAD_FRAME = _STATUS["bad_frame"]["code"]
    UNKNOWN_COMMAND = _STATUS["unknown_command"]["code"]
    BAD_LENGTH = _STATUS["bad_length"]["code"]
    BAD_STATE = _STATUS["bad_state"]["code"]
    RANGE = _STATUS["range"]["code"]
    BAD_LABEL = _STATUS["bad_label"]["code"]
    WRONG_ORDER = _STATUS["wrong_order"]["code"]
    STORE_FULL = _STATUS["store_full"]["code"]
    STORE = _STATUS["store"]["code"]
    TOO_MANY = _STATUS["too_many"]["code"]
    OUT_OF_TURN = _STATUS["out_of_turn"]["code"]
    OTHER_MODEL = _STATUS["other_model"]["code"]
    WRONG_NONCE = _STATUS["wrong_nonce"]["code"]
    TOO_LONG = _STATUS["too_long"]["code"]
    NOT_SEALED = _STATUS["not_sealed"]["code"]
    REPLAYED = _STATUS["replayed"]["code"]
    SELF_TEST = _STATUS["self_test"]["code"]
    DAMAGED = _STATUS["damaged"]["code"]

    @property
    def title(self) -> str:
        """The name as people read it."""
        return str(_STATUS[self.name.lower()]["name"])


class Phase(IntEnum):
    """Phases of a task (docs/spec/algorithm.md, "State")."""

    IDLE = _PHASES["idle"]
    FILLING = _PHASES["filling"]
    TRAINING = _PHASES["training"]
    TRAINED = _PHASES["trained"]


@dataclass(frozen=True)
class Field:
    """One field: ``count`` numbers of ``kind`` (u8, u16, u32 or u64); ``member``: the engine's, for scalars."""

    name: str
    kind: str
    count: int = 1
    member: str | None = None

    @property
    def is_array(self) -> bool:
        """Whether the field holds bytes rather than a number."""
        return self.count > 1


@dataclass(frozen=True)
class Record:
    """Fields that lie one after the other, little-endian."""

    name: str
    fields: tuple[Field, ...]

    @cached_property
    def layout(self) -> struct.Struct:
        """Packs one number a field, or bytes."""
        parts = (f"{f.count}s" if f.is_array else _FORMATS[f.kind] for f in self.fields)
        return struct.Struct("<" + "".join(parts))

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """The layout as a NumPy type, for arrays of records."""
        return np.dtype(
            [(f.name, f"<u{struct.calcsize(_FORMATS[f.kind])}", (f.count,) * f.is_array) for f in self.fields]
        )

    @property
    def size(self) -> int:
        """Size of one record in bytes."""
        return self.layout.size

    def pack(self, **values: int | bytes) -> bytes:
        """Bytes of one record; a value that is missing, or unknown, is an error."""
        names = [f.name for f in self.fields]
        if set(names) != values.keys():
            raise ValueError(f"{self.name}: {sorted(set(names) ^ values.keys())}")
        return self.layout.pack(*(values[name] for name in names))

    def unpack_from(self, data: bytes, offset: int = 0) -> dict[str, Any]:
        """Values of one record by field name."""
        return dict(zip((f.name for f in self.fields), self.layout.unpack_from(data, offset), strict=True))


def _field(name: str, given: str | list[Any] | Mapping[str, str]) -> Field:
    if isinstance(given, str):
        return Field(name, given)
    if isinstance(given, list):
        return Field(name, *given)
    return Field(name, given["type"], member=given["member"])


_RECORDS = {
    name: Record(name, tuple(_field(*item) for item in fields.items())) for name, fields in _TABLE["record"].items()
}
HELLO, TRAINING, STATISTICS = _RECORDS["hello"], _RECORDS["training"], _RECORDS["statistics"]
SCALARS, REPLAY_SLOT = _RECORDS["scalars"], _RECORDS["replay_slot"]


# ---------------------------------------------------------------- C


def header() -> str:
    """The text of scl_wire.h."""
    lines = ["#ifndef SCL_WIRE_H", "#define SCL_WIRE_H", "", f"#define SCL_WIRE_VERSION {VERSION}u", ""]
    lines += _enum("scl_command_t", {f"SCL_COMMAND_{c.name}": f"{c.value:#04x}" for c in Command})
    lines += ["/* Negated, these are the codes on the line. */"]
    status = {f"SCL_ERR_{s.name}": str(-s.value) for s in Status if s}
    lines += _enum("scl_status_t", {"SCL_OK": "0"} | status)
    lines += _enum("scl_phase_t", {f"SCL_PHASE_{p.name}": str(p.value) for p in Phase})
    lines += _enum("scl_mode_t", {f"SCL_MODE_{name.upper()}": str(value) for name, value in _MODES.items()})
    for record in _RECORDS.values():
        lines += _macro(record)
    return "\n".join([*lines, "#endif", ""])


def _enum(name: str, values: Mapping[str, str]) -> list[str]:
    return ["typedef enum {", ",\n".join(f"  {key} = {value}" for key, value in values.items()), f"}} {name};", ""]


def _macro(record: Record) -> list[str]:
    """The fields in their order, for a macro for each kind of field; ZERO for a byte that is always 0."""
    kinds = sorted({f.kind.upper() for f in record.fields if not f.is_array}, key=lambda kind: int(kind[1:]))
    extra = ["BYTES"] * any(f.is_array for f in record.fields) + ["ZERO"] * any(f.member == "" for f in record.fields)
    name = f"SCL_WIRE_{record.name.upper()}"
    uses = " \\\n".join(f"  {_use(f)}" for f in record.fields)
    return [f"#define {name}_SIZE {record.size}u", f"#define {name}({', '.join([*kinds, *extra])}) \\", uses, ""]


def _use(field: Field) -> str:
    if field.is_array:
        return f"BYTES({field.name}, {field.count}u)"
    if field.member == "":
        return "ZERO()"
    return f"{field.kind.upper()}({field.member or field.name})"


# ---------------------------------------------------------------- documents

PAGE = ROOT / "docs" / "spec" / "protocol.md"
_MARK = re.compile(r"(<!-- wire: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def _rows(name: str) -> Iterator[str]:
    if name == "commands":
        yield from ("| code | name | request | reply |", "|---|---|---|---|")
        for key, c in _COMMANDS.items():
            yield f"| 0x{c['code']:02X} | {key} | {c['request']} | {c['reply']} |".replace("|  |", "| |")
    elif name == "status":
        yield from ("| code | name | meaning |", "|---|---|---|")
        for s in _STATUS.values():
            if s["code"]:
                yield f"| {s['code']} | {s['name']} | {s['meaning']} |".replace("|  |", "| |")
    else:
        yield from ("| offset | type | field |", "|---|---|---|")
        offset = 0
        for f in _RECORDS[name].fields:
            yield f"| {offset} | {f.kind}{f' x {f.count}' if f.is_array else ''} | {f.name} |"
            offset += struct.calcsize(f"<{f.count}{_FORMATS[f.kind]}")


def with_tables(text: str) -> str:
    """A document whose tables, between ``<!-- wire: NAME -->`` and ``<!-- end -->``, are those of wire.toml."""
    return _MARK.sub(lambda m: m[1] + "\n".join(["", *_rows(m[2]), "", m[3]]), text)


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
