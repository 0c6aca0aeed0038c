# SPDX-License-Identifier: Apache-2.0
"""The wire format is written once: everything that speaks it has what wire.toml says."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from enum import IntEnum

import numpy as np
import pytest

from sparcl_mcu.host_tools import link
from sparcl_mcu.host_tools.protocol import Hello, Statistics, TrainingReply
from sparcl_mcu.spec import wire
from sparcl_mcu.spec.paths import ROOT
from sparcl_mcu.spec.wire import Command, Field, Phase, Record, Status

TABLE = tomllib.loads((ROOT / "spec" / "wire.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("kind", "name"), [(Command, "command"), (Status, "status"), (Phase, "phase")])
def test_codes(kind: type[IntEnum], name: str) -> None:
    """Python has all of them, under their names; no two are alike."""
    given = {key: value["code"] if isinstance(value, dict) else value for key, value in TABLE[name].items()}
    assert {member.name.lower(): member.value for member in kind} == given
    assert len(set(given.values())) == len(given)


def test_what_is_said_of_an_error() -> None:
    """Each has its advice."""
    assert link.ERRORS.keys() == {status.value for status in Status if status}


def test_replies() -> None:
    """The typed replies have the fields of the records."""

    def names(record: Record) -> list[str]:
        return [f.name for f in record.fields]

    assert [f.name for f in fields(Hello)] == names(wire.HELLO)
    assert [f.name for f in fields(Statistics)] == names(wire.STATISTICS)
    training = [f.name for f in fields(TrainingReply)]
    assert training == [name for name in names(wire.TRAINING) if name != "flags"] + ["digest", "rolling"]


def test_a_record() -> None:
    """Packed without gaps, little-endian; NumPy reads the same; whoever forgets a field is told."""
    record = Record("x", (Field("a", "u8"), Field("b", "u32"), Field("c", "u8", 3), Field("d", "u16")))
    data = record.pack(a=1, b=0x01020304, c=b"xyz", d=0x0506)
    assert data == b"\x01\x04\x03\x02\x01xyz\x06\x05"
    assert record.size == len(data) == record.dtype.itemsize
    assert record.unpack_from(b"?" + data, 1) == {"a": 1, "b": 0x01020304, "c": b"xyz", "d": 0x0506}
    row = np.frombuffer(data, record.dtype)[0]
    assert (row["b"], row["c"].tobytes(), row["d"]) == (0x01020304, b"xyz", 0x0506)
    with pytest.raises(ValueError, match=r"x: \['d', 'e'\]"):
        record.pack(a=1, b=2, c=b"xyz", e=3)


def test_the_header() -> None:
    """Codes are negated for the engine; sizes and order are the record's."""
    text = wire.header()
    for status in Status:
        if status:
            assert re.search(rf"SCL_ERR_{status.name} = -{status.value}\b", text)
    for command in Command:
        assert re.search(rf"SCL_COMMAND_{command.name} = {command.value:#04x}\b", text)
    assert f"#define SCL_WIRE_SCALARS_SIZE {wire.SCALARS.size}u" in text
    listed = re.search(r"#define SCL_WIRE_REPLAY_SLOT\(.*\n((?:  .*\n)+)", text)
    assert listed is not None
    assert re.findall(r"\((\w+)\)", listed[1]) == [f.name for f in wire.REPLAY_SLOT.fields]


def test_the_document_has_these_tables() -> None:
    """`python -m sparcl_mcu.spec.wire` writes them."""
    text = wire.PAGE.read_text(encoding="utf-8")
    assert text.count("<!-- wire: ") >= 5
    assert wire.with_tables(text) == text
