# SPDX-License-Identifier: Apache-2.0
"""Standard output and error, where whoever reads them may go away and what keeps them may be full."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TextIO

PIPE_STATUS = 141
"""Exit status of a program whose reader went away, as a shell tells it (128 + SIGPIPE)."""


class OutputLost(Exception):
    """Raised when printed output did not arrive.

    Not an ``OSError``: those of lines and files are caught in many places, and this one is about neither.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(f"standard output: {error.strerror}")
        self.reader_gone = error.errno == errno.EPIPE


class _Raw(io.RawIOBase):
    """The file below a stream, whose errors are handled here."""

    def __init__(self, raw: io.RawIOBase, failed: Callable[[OSError], None]) -> None:
        super().__init__()
        self._raw = raw
        self._failed = failed

    def write(self, data: Any, /) -> int | None:
        try:
            return self._raw.write(data)
        except OSError as error:
            self._failed(error)
            return memoryview(data).nbytes

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._raw.fileno()

    def isatty(self) -> bool:
        return self._raw.isatty()


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """A failed write to standard output raises ``OutputLost``, one to standard error is passed over.

    Characters that a terminal or a log cannot show are replaced.
    """
    before = sys.stdout, sys.stderr, threading.excepthook
    sys.stdout, sys.stderr = _guarded(sys.stdout, _lost), _guarded(sys.stderr, lambda _: None)
    threading.excepthook = _thread_failed
    try:
        yield
    finally:
        sys.stdout, sys.stderr, threading.excepthook = before


def settle() -> None:
    """Write what is still to be written; raises ``OutputLost``, after which nothing is left to be written."""
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except OutputLost:
            discard()
            raise


def discard() -> None:
    """Drop standard output, also what the interpreter would write when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(OSError, ValueError):
        os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _thread_failed(args: threading.ExceptHookArgs) -> None:
    """Ignore lost output of the live view: the main thread reports it at its next write."""
    if not isinstance(args.exc_value, OutputLost):
        threading.__excepthook__(args)


def _lost(error: OSError) -> None:
    raise OutputLost(error) from error


def _guarded(stream: TextIO, failed: Callable[[OSError], None]) -> TextIO:
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.reconfigure(errors="replace")
    raw = getattr(stream.buffer, "raw", stream.buffer)
    if not isinstance(raw, io.RawIOBase):
        return stream  # a stand-in, as tests have
    stream.flush()
    guarded: Any = _Raw(raw, failed)
    buffer = guarded if raw is stream.buffer else io.BufferedWriter(guarded)
    lines, through = stream.line_buffering, stream.write_through
    return io.TextIOWrapper(buffer, stream.encoding, "replace", line_buffering=lines, write_through=through)
