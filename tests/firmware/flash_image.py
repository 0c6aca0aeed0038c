# SPDX-License-Identifier: Apache-2.0
"""A journal's flash as docs/spec/flash-format.md tells it, read and forged without the engine's code."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from sparcl_mcu.spec import wire
from sparcl_mcu.spec.boards import Board
from sparcl_mcu.spec.types import Method, Model, position_bytes
from sparcl_mcu.spec.wire import Phase

HEADER, STATE, TAG, DIGEST = 48, 2, 8, 4
"""Bytes of a sector's header that count; the kind that holds a snapshot; bytes of a tag and of a snapshot's digest."""
CHECKED = HEADER - 4
_FIELDS = struct.Struct("<IBBHIIIHHII8sII")


@dataclass
class Header:
    """Of a sector; ``at``: its place in bytes.  The other names are those of docs/spec/flash-format.md."""

    at: int
    magic: int
    version: int
    kind: int
    tail_sector: int
    sequence: int
    erase_count: int
    snapshot: int
    part: int
    parts: int
    size: int
    crc: int
    model_hash: bytes
    tail_sequence: int
    checksum: int


@dataclass(frozen=True)
class Layout:
    """Where things lie: of a model on a board, ``keyed`` or not.  Sizes in bytes."""

    model: Model
    board: Board
    keyed: bool = False

    @property
    def sector(self) -> int:
        """Bytes of one."""
        return self.board.store.sector

    @property
    def header(self) -> int:
        """Bytes of a sector's header, padded."""
        unit = self.board.store.program_unit
        padded = -(-HEADER // unit) * unit
        return -(-padded // self.board.store.granule) * self.board.store.granule

    @property
    def head(self) -> int:
        """Bytes of a record before its content."""
        return 8 + (TAG if self.keyed else 0)

    @property
    def end(self) -> int:
        """Bytes that a snapshot ends with."""
        return DIGEST + (TAG if self.keyed else 0)

    def address(self, granules: int) -> int:
        """Of a record, in bytes."""
        return granules * self.board.store.granule


class FlashImage:
    """The bytes of a partition, which may be changed."""

    def __init__(self, layout: Layout, data: bytes) -> None:
        self.layout = layout
        self.data = bytearray(data)

    def headers(self) -> Iterator[Header]:
        """Of all sectors that have a valid one."""
        for at in range(0, len(self.data), self.layout.sector):
            header = Header(at, *_FIELDS.unpack_from(self.data, at))
            if header.magic == 0x4A4C4353 and header.checksum == zlib.crc32(self.data[at : at + CHECKED]):
                yield header

    def put_header(self, header: Header) -> None:
        """Write one back; its checksum is made right."""
        fields = list(vars(header).values())
        _FIELDS.pack_into(self.data, header.at, *fields[1:])
        struct.pack_into("<I", self.data, header.at + CHECKED, zlib.crc32(self.data[header.at : header.at + CHECKED]))

    def snapshots(self) -> dict[int, list[Header]]:
        """The parts of each snapshot of which all headers are there, in order, by number."""
        found: dict[int, dict[int, Header]] = {}
        for header in sorted(self.headers(), key=lambda h: h.sequence):
            if header.kind == STATE and header.model_hash == self.layout.model.model_hash:
                found.setdefault(header.snapshot, {})[header.part] = header
        whole = {
            n: parts for n, parts in found.items() if set(parts) == set(range(max(h.parts for h in parts.values())))
        }
        return {number: [parts[k] for k in range(len(parts))] for number, parts in sorted(whole.items())}

    def payload(self, number: int) -> bytes:
        """The bytes of a snapshot."""
        starts = [(h.at + self.layout.header, h.size) for h in self.snapshots()[number]]
        return b"".join(bytes(self.data[at : at + size]) for at, size in starts)

    def put_payload(self, number: int, payload: bytes) -> None:
        """Other bytes, as many, in the same places; the checksums of parts and headers are made right."""
        done = 0
        for header in self.snapshots()[number]:
            at = header.at + self.layout.header
            self.data[at : at + header.size] = payload[done : done + header.size]
            header.crc = zlib.crc32(payload[done : done + header.size])
            done += header.size
            self.put_header(header)

    def close(self, payload: bytes) -> bytes:
        """The payload with the digest it has to have; a tag cannot be made without the key, and stays."""
        content = payload[: len(payload) - self.layout.end]
        tag = payload[len(payload) - self.layout.end + DIGEST :]
        return content + struct.pack("<I", self.digest(content)) + tag

    def checksum(self, granules: int) -> bytes:
        """Of the record at an address."""
        at = self.layout.address(granules)
        return bytes(self.data[at : at + 4])

    def digest(self, content: bytes) -> int:
        """Of a snapshot's content: the state digest, continued over what that leaves out."""
        s = split(self.layout.model, content)
        crc = 0
        for part in (s.scalars, s.network, s.ids, s.scores):
            crc = zlib.crc32(part, crc)
        for sample, logits in zip(s.slot_samples, s.slot_logits, strict=True):
            second = self.checksum(logits) if self.layout.model.learning.method == Method.DERPP else bytes(4)
            crc = zlib.crc32(self.checksum(sample) + second, crc)
        for part in (s.class_task, s.tables, s.transient, *(self.checksum(address) for address in s.addresses)):
            crc = zlib.crc32(part, crc)
        return crc

    def records(self, content: bytes) -> list[bytes]:
        """What a snapshot's content names: sample records without their tags, of table and slots; logits alone."""
        model, s = self.layout.model, split(self.layout.model, content)
        logits = s.slot_logits if model.learning.method == Method.DERPP else []
        found = [self._record(a, model.n_stored) for a in (*s.addresses, *s.slot_samples)]
        return found + [self._record(a, 2 * model.n_classes)[8:] for a in logits]

    def _record(self, granules: int, size: int) -> bytes:
        at = self.layout.address(granules)
        return bytes(self.data[at : at + 8] + self.data[at + self.layout.head : at + self.layout.head + size])


@dataclass(frozen=True)
class Split:
    """A snapshot's content in parts; ``addresses``: of the task's samples that lie in the journal."""

    scalars: bytes
    class_task: bytes
    tables: bytes
    network: bytes
    transient: bytes
    ids: bytes
    scores: bytes
    addresses: tuple[int, ...]
    slot_samples: tuple[int, ...]
    slot_logits: tuple[int, ...]


def split(model: Model, content: bytes) -> Split:
    """Take a snapshot's content apart."""
    at = 0

    def take(size: int) -> bytes:
        nonlocal at
        at += size
        return content[at - size : at]

    scalars = take(wire.SCALARS.size + model.n_classes)
    fixed = wire.SCALARS.unpack_from(scalars)
    n, filled = fixed["n"], fixed["filled"]
    tables = take(5 * n + 4 * filled)
    stored = fixed["received"] if fixed["phase"] == Phase.FILLING else n
    words = struct.unpack(f"<{n + 2 * filled}H", tables[3 * n :])
    begin = at
    for _, layer in model.weighted:
        position = position_bytes(model)
        for _panel in layer.panels:
            start = take(position * (layer.lines + 1))
            entries = int.from_bytes(start[-position:], "little")
            take(position * layer.lines + entries * (1 + 2 * layer.block))
        if not layer.sparse:
            take(2 * layer.n_in * layer.n_pad)
        take(4 * layer.n_pad)
    return Split(
        scalars=scalars,
        class_task=scalars[wire.SCALARS.size :],
        tables=tables,
        network=content[begin:at],
        transient=content[at:],
        ids=tables[: 2 * n],
        scores=tables[2 * n : 3 * n],
        addresses=words[: 0 if fixed["mode"] else stored],
        slot_samples=words[n : n + filled],
        slot_logits=words[n + filled :],
    )
