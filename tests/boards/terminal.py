# SPDX-License-Identifier: Apache-2.0
"""`sparcl` in a pseudo-terminal, and what a person in front of it sees."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import termios
from collections.abc import Iterator, Mapping, Sequence

import pyte

from tests import command_line

_DRAWN_OVER = rb"(?=\r\x1b\[2K)"
"""Before a line is erased."""


class Terminal:
    """Runs a command; `frames` ends when the command does."""

    def __init__(self, arguments: Sequence[str], columns: int, rows: int, environment: Mapping[str, str]) -> None:
        self.written = b""
        self.screen = pyte.HistoryScreen(columns, rows, history=10_000)
        self._stream = pyte.ByteStream(self.screen)
        self._master, slave = os.openpty()
        self._set_size()
        self.process = command_line.start(arguments, environment, [slave] * 3)
        os.close(slave)

    def frames(self) -> Iterator[str]:
        """The screen whenever something is about to be drawn over, and at the end."""
        rest = b""
        while chunk := self._read():
            self.written += chunk
            *drawn, rest = re.split(_DRAWN_OVER, rest + chunk)
            for piece in drawn:
                yield self._show(piece)
        yield self._show(rest)
        self.process.wait()
        os.close(self._master)

    def type(self, keys: bytes) -> None:
        """As on the keyboard."""
        os.write(self._master, keys)

    def resize(self, columns: int, rows: int) -> None:
        """As with the mouse; lines do not flow anew, as in xterm."""
        self.screen.resize(rows, columns)
        self._set_size()

    @property
    def text(self) -> str:
        """All that can be scrolled back to and the screen: rows of the terminal's width, joined without a break."""
        width = self.screen.columns
        above = ["".join(row[column].data for column in range(width)) for row in self.screen.history.top]
        return "".join([*above, *self.screen.display])

    def _show(self, piece: bytes) -> str:
        self._stream.feed(piece)
        return "\n".join(self.screen.display)

    def _read(self) -> bytes:
        try:
            return os.read(self._master, 1024)
        except OSError:  # Linux says so when the program has ended
            return b""

    def _set_size(self) -> None:
        size = struct.pack("HHHH", self.screen.lines, self.screen.columns, 0, 0)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)
