# SPDX-License-Identifier: Apache-2.0
"""The record of everything sent to a board and received from it.

A recording is a file of msgpack objects: a header map, then entries
``[kind, data]``: ``">"`` a request and ``"<"`` a reply (the bytes of the frame
before its checksum), ``"~"`` noise as it came, ``"S"`` the start of a session
and ``"E"`` the end of a complete one (maps).  It only grows, and is written
out after every entry, so a killed host loses nothing; an entry cut short at
the end is dropped by the reader.  Reading yields numbers, text and bytes,
nothing is ever executed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self

import msgpack

from sparcl_mcu.spec.errors import UserError, one_line
from sparcl_mcu.spec.wire import Status

from . import frame
from .frame import Splitter

FORMAT = 1
KIND = "sparcl-recording"

SENT, RECEIVED, NOISE, SESSION, END = ">", "<", "~", "S", "E"


_LARGEST = Splitter.LIMIT
"""Most bytes of an entry's data."""
_MOST_WAITING = 255
"""Most requests under way at once: a board's window is a byte."""


class Entry(NamedTuple):
    """One entry: ``data`` is bytes for frames and noise, a map for the others."""

    kind: str
    data: Any


@dataclass(frozen=True)
class Header:
    """What a recording belongs to."""

    experiment: str
    board: str
    model_hash: bytes
    seed: int
    tool_version: str


class Transaction(NamedTuple):
    """One request the board executed and its reply.

    ``status`` is None when the recording ends, or the host was stopped, before
    the reply came: nobody knows whether the board executed it.
    """

    command: int
    request: bytes
    status: int | None
    reply: bytes


class Recorder:
    """Writes a recording; every entry is on its way to the disk when the call returns."""

    def __init__(self, path: Path, header: Header, *, append: bool = False) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        resumed = append and path.exists() and path.stat().st_size > 0
        if resumed:
            _drop_torn_entry(path, header)
        self._file = path.open("ab" if resumed else "wb")
        if not resumed:
            self._write(
                {
                    "kind": KIND,
                    "format": FORMAT,
                    "experiment": header.experiment,
                    "board": header.board,
                    "model_hash": header.model_hash,
                    "seed": header.seed,
                    "tool_version": header.tool_version,
                }
            )
        self.entry(SESSION, {"resumed": resumed, "tool_version": header.tool_version})

    def entry(self, kind: str, data: Any) -> None:
        """Append one entry."""
        self._write([kind, data])

    def close(self) -> None:
        """End writing; further entries are an error."""
        with self._room():  # what could not be written is tried once more
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, value: Any) -> None:
        with self._room():
            self._file.write(msgpack.packb(value, use_bin_type=True))
            self._file.flush()

    @contextmanager
    def _room(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written ({error.strerror}): free some space, then run `sparcl stream --resume`"
            ) from error


def read_header(path: Path) -> Header:
    """The header of a recording.  Raises UserError if the file is not a recording."""
    return _Reader(path).header


def entries(path: Path) -> Iterator[Entry]:
    """All entries in order.  Raises UserError with the position if the file is corrupt."""
    return iter(_Reader(path))


def is_complete(path: Path) -> bool:
    """Whether the last session in the recording came to its end."""
    last = None
    for entry in entries(path):
        last = entry.kind
    return last == END


def transactions(path: Path) -> Iterator[Transaction]:
    """The requests the board executed, in order: retries merged, damaged and repeated frames left out."""
    waiting = _Waiting(path)
    for entry in entries(path):
        if entry.kind == SENT:
            yield from waiting.sent(_frame(path, entry))
        elif entry.kind == RECEIVED:
            yield from waiting.received(_frame(path, entry))
        elif entry.kind == SESSION:
            yield from waiting.given_up()
    yield from waiting.given_up()


class _Waiting:
    """Requests of a recording whose replies are still to come, in the order in which the board executes them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._requests: list[tuple[frame.Frame, frame.Frame | None]] = []

    def sent(self, request: frame.Frame) -> Iterator[Transaction]:
        """A request; one that starts over ends the wait for those before it."""
        if any(request == known for known, _ in self._requests):
            return
        if request.kind != frame.NEXT:
            yield from self.given_up()
        if len(self._requests) == _MOST_WAITING:
            raise UserError(
                f"{self._path}: more than {_MOST_WAITING} requests wait for replies, which no session does; "
                "record again with `sparcl stream`"
            )
        self._requests.append((request, None))

    def received(self, reply: frame.Frame) -> Iterator[Transaction]:
        """Take a reply; yields the transactions that are now complete, in order."""
        if reply.status == Status.OUT_OF_TURN:
            return  # not executed, and sent again
        for place, (request, answer) in enumerate(self._requests):
            if answer is None and (reply.sequence, reply.command) == (request.sequence, request.command):
                self._requests[place] = (request, reply)
                if reply.status:  # none of those behind it is executed
                    del self._requests[place + 1 :]
                break
        while self._requests and self._requests[0][1] is not None:
            yield _transaction(*self._requests.pop(0))

    def given_up(self) -> Iterator[Transaction]:
        """Every transaction that is left, with the replies that came."""
        left, self._requests = self._requests, []
        yield from (_transaction(*item) for item in left)


def _transaction(request: frame.Frame, answer: frame.Frame | None) -> Transaction:
    status, reply = (None, b"") if answer is None else (answer.status, answer.payload)
    return Transaction(request.command, request.payload, status, reply)


def _frame(path: Path, entry: Entry) -> frame.Frame:
    result = frame.from_body(entry.data)
    if result is None:
        raise UserError(f"{path}: a recorded frame is too short; record again with `sparcl stream`")
    return result


class _Reader:
    """Reads and checks a recording piece by piece, in bounded memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.end = 0
        if not path.is_file():
            raise UserError(f"{path} does not exist: record a session first with `sparcl stream`")
        self.header = self._header(next(self._objects(), None))

    def __iter__(self) -> Iterator[Entry]:
        objects = self._objects()
        next(objects)
        for value in objects:
            yield self._entry(value)

    def _objects(self) -> Iterator[Any]:
        with self.path.open("rb") as file:
            # Limits, so that a corrupt length is an error and never allocates memory.
            unpacker = msgpack.Unpacker(
                file,
                read_size=1 << 16,
                raw=False,
                strict_map_key=True,
                max_bin_len=_LARGEST,
                max_str_len=_LARGEST,
                max_array_len=8,
                max_map_len=64,
                max_ext_len=0,
            )
            while True:
                self.end = unpacker.tell()
                try:
                    value = unpacker.unpack()
                except msgpack.OutOfData:
                    self._check_torn(file)
                    return
                except (ValueError, msgpack.UnpackException, RecursionError) as error:
                    raise self._damaged(str(error) or type(error).__name__) from error
                yield value

    def _check_torn(self, file: BinaryIO) -> None:
        """Check that the end is the beginning of an entry, not damage that swallows the rest."""
        file.seek(self.end)
        rest = file.read(8)
        kinds = "".join((SENT, RECEIVED, NOISE, SESSION, END)).encode()
        # [kind, bytes or a small map], as msgpack writes it
        expected = (b"\x92", b"\xa1", kinds, bytes([0xC4, 0xC5, 0xC6, *range(0x80, 0x90)]))
        fits = all(byte in allowed for byte, allowed in zip(rest, expected, strict=False))
        if rest[3:4] == b"\xc6":  # a length of four bytes
            fits = fits and rest[4:8] <= _LARGEST.to_bytes(4, "big")
        if self.end and not fits:
            raise self._damaged("an entry has an impossible length")

    def _header(self, value: Any) -> Header:
        if not isinstance(value, dict) or value.get("kind") != KIND:
            raise UserError(f"{self.path} is not a sparcl recording; make one with `sparcl stream`")
        if value.get("format") != FORMAT:
            raise UserError(
                f"{self.path} has format {one_line(value.get('format'), 20)}, this version reads {FORMAT}: "
                "record again with `sparcl stream`"
            )
        try:
            fields = {name: value[name] for name in Header.__dataclass_fields__}
        except KeyError as error:
            raise self._damaged(f"the header lacks {error}") from error
        types = {"model_hash": bytes, "seed": int}
        for name, item in fields.items():
            if not isinstance(item, types.get(name, str)):
                raise self._damaged(f"header field {name} has the wrong type")
        return Header(**fields)

    def _entry(self, value: Any) -> Entry:
        if not isinstance(value, list) or len(value) != 2 or not isinstance(value[0], str):
            raise self._damaged("an entry is not [kind, data]")
        kind, data = value[0], value[1]
        if kind in (SENT, RECEIVED, NOISE):
            if not isinstance(data, bytes):
                raise self._damaged("a frame is not bytes")
        elif kind not in (SESSION, END):
            raise self._damaged(f"unknown kind of entry {kind[:9]!r}")
        return Entry(kind, data)

    def _damaged(self, what: str) -> UserError:
        return UserError(
            f"{self.path} is corrupt near byte {self.end}: {what}. Record again with `sparcl stream --fresh`"
        )


def _drop_torn_entry(path: Path, header: Header) -> None:
    """Check that the recording is of the same run and cut off an entry that was never finished."""
    reader = _Reader(path)
    found = reader.header
    if (found.model_hash, found.board) != (header.model_hash, header.board):
        raise UserError(
            f"{path} records another model or board: start over with `sparcl stream --fresh` instead of --resume"
        )
    for _ in reader:
        pass
    with path.open("r+b") as file:
        file.truncate(reader.end)
