# SPDX-License-Identifier: Apache-2.0
"""The optional shared key of host and board: requests that change the state are sealed.

A seal is a counter and a tag, keyed BLAKE2s (RFC 7693) over all that must not
be changed or used again (docs/spec/protocol.md, "Shared key").
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct
from collections.abc import Collection
from dataclasses import replace

from sparcl_mcu.spec.errors import BoardError

from .frame import Frame

TAG = 8
SIZE = 4 + TAG
"""Bytes a seal adds to a payload."""

_COUNTER = struct.Struct("<I")
_LARGEST = 2**32 - 1
_JUMP = 1 << 20
"""Counters that a session may pass over at its beginning: thousands of sessions fit between two starts."""


class Seal:
    """Seals the requests of one board between two of its starts, and checks its replies.

    ``nonce``: from hello, the number of the start and the last counter the
    board has accepted.  ``commands``: those that are sealed.
    """

    def __init__(self, key: bytes, nonce: bytes, model_hash: bytes, commands: Collection[int]) -> None:
        self._key = key
        self._context = nonce[:4] + model_hash
        self._commands = commands
        self._counter: int = _COUNTER.unpack(nonce[4:])[0]
        self._sent: dict[int, int] = {}
        """Counter of the last sealed request of each sequence number."""

    def go_on_from(self, before: Seal | None) -> None:
        """Skip every counter used since the same start, including those of lost requests.

        Where this session used none yet, it begins with a counter that nobody knows before:
        the sealed replies of an earlier session, behind its hello, do not fit it.
        """
        if before is not None and before._context == self._context:
            self._counter = max(self._counter, before._counter)
        else:
            self._counter += secrets.randbelow(_JUMP)

    def close(self, request: Frame) -> Frame:
        """Seal a request for the line; each call uses another counter."""
        if request.command not in self._commands:
            return request
        if self._counter >= _LARGEST:
            raise BoardError("the board has no counter left for sealed requests: power it off and on")
        self._counter += 1
        self._sent[request.sequence] = self._counter
        body = replace(request, payload=request.payload + _COUNTER.pack(self._counter))
        return replace(body, payload=body.payload + self._tag(body))

    def open(self, reply: Frame) -> Frame | None:
        """Remove the seal of a reply; None if it lacks a valid seal that it needs."""
        if reply.command not in self._commands or reply.status:
            return reply
        body, tag = replace(reply, payload=reply.payload[:-TAG]), reply.payload[-TAG:]
        payload, counter = body.payload[: -_COUNTER.size], body.payload[-_COUNTER.size :]
        expected = self._sent.get(reply.sequence)
        if expected is None or counter != _COUNTER.pack(expected) or not hmac.compare_digest(tag, self._tag(body)):
            return None
        return replace(reply, payload=payload)

    def _tag(self, body: Frame) -> bytes:
        return hashlib.blake2s(self._context + body.body(), digest_size=TAG, key=self._key).digest()
