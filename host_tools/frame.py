# SPDX-License-Identifier: Apache-2.0
"""Frames on the serial line (docs/spec/protocol.md, "Frame"): COBS around a CRC-32."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from cobs import cobs

REQUEST = 0x01
NEXT = 0x02
"""A request that the board executes only right after the one before it."""
REPLY = 0x81
DELIMITER = b"\0"

_HEAD = struct.Struct("<BBBB")
_CRC = struct.Struct("<I")


@dataclass(frozen=True)
class Frame:
    """One frame, decoded; ``status`` is 0 in requests and in good replies."""

    kind: int
    sequence: int
    command: int
    status: int
    payload: bytes

    def body(self) -> bytes:
        """The bytes the checksum covers; what a recording keeps."""
        return _HEAD.pack(self.kind, self.sequence, self.command, self.status) + self.payload

    def encode(self) -> bytes:
        """The frame as it goes over the line, with the zero byte that ends it."""
        body = self.body()
        encoded: bytes = cobs.encode(body + _CRC.pack(zlib.crc32(body)))
        return encoded + DELIMITER


def from_body(body: bytes) -> Frame | None:
    """The frame with these bytes before its checksum; None when they are too few."""
    if len(body) < _HEAD.size:
        return None
    kind, sequence, command, status = _HEAD.unpack_from(body)
    return Frame(kind, sequence, command, status, bytes(body[_HEAD.size :]))


def decode(chunk: bytes) -> Frame | None:
    """Decode what came between two zero bytes; None when it is not an intact frame."""
    try:
        data = cobs.decode(chunk)
    except cobs.DecodeError:
        return None
    if len(data) < _HEAD.size + _CRC.size:
        return None
    body, crc = data[: -_CRC.size], data[-_CRC.size :]
    if _CRC.unpack(crc)[0] != zlib.crc32(body):
        return None
    return from_body(body)


class Splitter:
    """Cuts a stream of bytes at the zero bytes, wherever reading starts."""

    LIMIT = 1 << 17
    """No frame is longer; of more bytes without a zero the first ones are dropped."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Add received bytes; the chunks they complete, without their zero byte, empty ones left out."""
        *chunks, self._rest = (chunk[-self.LIMIT :] for chunk in (self._rest + data).split(DELIMITER))
        return [chunk for chunk in chunks if chunk]

    @property
    def begun(self) -> bool:
        """Whether a chunk has begun to come."""
        return bool(self._rest)

    def drop(self) -> bytes:
        """Forget what has come of a chunk that is not complete, and return it."""
        rest, self._rest = self._rest, b""
        return rest
