# SPDX-License-Identifier: Apache-2.0
"""Requests and replies over a serial line: one at a time, retried, recorded.

The line is any pyserial URL: ``/dev/ttyACM0``, ``COM3``, a pseudo-terminal or
``socket://127.0.0.1:4000``.
"""

from __future__ import annotations

import contextlib
import select
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import serial

from generator.errors import BoardError, UserError

from . import frame
from .frame import Frame, Splitter
from .recording import NOISE, RECEIVED, SENT, Recorder

TRIES = 3
"""Requests sent before a silent board is given up."""
BAD_FRAMES = 10
"""Replies "bad frame" to one request before the line is given up."""

SHORTEST_WAIT = 2.0
"""Seconds the first try waits at least, however quickly the board used to answer."""

BAD_FRAME_STATUS = 1

ERRORS: dict[int, tuple[str, str]] = {
    1: ("bad frame", "the line damages frames: check the cable and the baud rate"),
    2: ("unknown command", "firmware and host tools differ: run `sparcl flash` again"),
    3: ("bad length", "firmware and host tools differ: run `sparcl flash` again"),
    4: (
        "bad state",
        "the board is in another phase: `sparcl stream --resume` or `--fresh`",
    ),
    5: ("out of range", "a number is beyond a limit of the board; `sparcl boards` lists them"),
    6: ("bad label", "a label is not one of the task's classes: check the data set"),
    7: ("wrong order", "the board expects another sample: `sparcl stream --resume` asks it which"),
    8: (
        "store full",
        "the journal has no room: fewer replay records or samples per task, or a larger board",
    ),
    9: ("store error", "the flash reported an error or lost a record: `sparcl stream --fresh` starts anew"),
    10: (
        "too many",
        "more samples than the board's table or replay buffer holds: use fewer per task",
    ),
}


class LinkError(BoardError):
    """No answer, or no line at all."""


class DeviceError(BoardError):
    """The board refused a request (docs/protocol.md, "Errors")."""

    def __init__(self, command: int, status: int) -> None:
        self.command = command
        self.status = status
        self.name, advice = ERRORS.get(status, ("unknown error", "firmware and host tools differ: flash again"))
        super().__init__(f"the board refused command 0x{command:02x}: {self.name} (status {status}); {advice}")


class Link:
    """A line to one board.  Not for several threads."""

    def __init__(self, url: str, recorder: Recorder | None = None, baud: int = 115200) -> None:
        self.url = url
        self.recorder = recorder
        self.retries = 0
        self._baud = baud
        self._sequence = int(time.monotonic() * 1000) & 0xFF
        self._slowest: dict[int, float] = {}
        self._splitter = Splitter()
        self._port: Any = None
        self.open()

    def open(self) -> None:
        """(Re)open the line; ends a frame that an earlier session may have left unfinished."""
        self._splitter = Splitter()
        first = self._port is None
        try:
            # timeout 0: read returns what is there; waiting is done in _receive.
            self._port = serial.serial_for_url(
                self.url, baudrate=self._baud, timeout=0, write_timeout=30, exclusive=True
            )
        except (serial.SerialException, ValueError, OSError) as error:
            missing = isinstance(error, ValueError) or ("://" not in self.url and not Path(self.url).exists())
            if first and missing:  # later it is a board that was unplugged
                raise UserError(
                    f"there is no port {self.url}: `pio device list` shows those of boards that are plugged in"
                ) from error
            raise LinkError(
                f"cannot open {self.url}: {error}. Is the board plugged in, or its emulator running?"
            ) from error
        self._write(frame.DELIMITER)

    def close(self) -> None:
        """Close the line."""
        port, self._port = self._port, None
        if port is not None:
            with contextlib.suppress(serial.SerialException, OSError):
                port.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def request(self, command: int, payload: bytes = b"", timeout: float = 5.0) -> bytes:
        """Send a request and return the payload of its reply.

        ``timeout``: seconds the command may take on the slowest board.  The
        first try waits less when the board has answered this command before,
        so that a lost frame does not cost the whole time-out.
        Raises DeviceError when the board refuses, LinkError when it is silent.
        """
        self._sequence = (self._sequence + 1) & 0xFF
        request = Frame(frame.REQUEST, self._sequence, command, 0, payload)
        started = time.monotonic()
        reply = self._ask(request, timeout)
        self._slowest[command] = max(self._slowest.get(command, 0.0), time.monotonic() - started)
        if reply.status:
            raise DeviceError(command, reply.status)
        return reply.payload

    def _ask(self, request: Frame, timeout: float) -> Frame:
        first = timeout
        if request.command in self._slowest:
            first = min(timeout, max(SHORTEST_WAIT, 20 * self._slowest[request.command]))
        tries = bad_frames = 0
        while tries < TRIES and bad_frames < BAD_FRAMES:
            self._send(request)
            reply = self._reply_to(request, timeout if tries else first)
            if reply is None:
                tries += 1
            elif reply.status == BAD_FRAME_STATUS and reply.command == 0:
                bad_frames += 1
            else:
                return reply
            self.retries += 1
        if bad_frames >= BAD_FRAMES:
            raise LinkError(f"{self.url}: the board receives damaged frames only; check the cable and the baud rate")
        raise LinkError(
            f"{self.url}: no answer to command 0x{request.command:02x} after {TRIES} tries. "
            "Is this the board's port, does no other program use it, and is the firmware on it? "
            "`sparcl flash` writes it"
        )

    def _send(self, request: Frame) -> None:
        self._record(SENT, request.body())
        self._write(request.encode())

    def _reply_to(self, request: Frame, timeout: float) -> Frame | None:
        """The reply to this request or "bad frame", passing over all else; None after the time-out."""
        deadline = time.monotonic() + timeout
        answer: Frame | None = None
        while answer is None:
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            for chunk in self._splitter.feed(self._receive(left)):
                answer = self._take(chunk, request) or answer
        return answer

    def _take(self, chunk: bytes, request: Frame) -> Frame | None:
        """Record one received chunk; the frame in it if it answers the request."""
        got = frame.decode(chunk)
        if got is None or got.kind != frame.REPLY:
            self._record(NOISE, chunk)
            return None
        self._record(RECEIVED, got.body())
        answers = (got.sequence, got.command) == (request.sequence, request.command)
        damaged = (got.sequence, got.command, got.status) == (0, 0, BAD_FRAME_STATUS)
        return got if answers or damaged else None

    def _record(self, kind: str, data: bytes) -> None:
        if self.recorder is not None:
            self.recorder.entry(kind, data)

    def _write(self, data: bytes) -> None:
        if self._port is None:
            self.open()
        try:
            self._port.write(data)
        except (serial.SerialException, OSError) as error:
            raise self._lost(error) from error

    def _receive(self, timeout: float) -> bytes:
        """What has come, after waiting up to ``timeout`` seconds for the first byte."""
        try:
            if hasattr(self._port, "fileno"):
                ready, _, _ = select.select([self._port.fileno()], [], [], timeout)
                return bytes(self._port.read(1 << 16)) if ready else b""
            self._port.timeout = timeout
            return bytes(self._port.read(max(1, self._port.in_waiting)))
        except (serial.SerialException, OSError, TypeError) as error:
            raise self._lost(error) from error

    def _lost(self, error: Exception) -> LinkError:
        self.close()
        return LinkError(
            f"the line to {self.url} broke ({error}). Connect the board again, then `sparcl stream --resume` goes on"
        )
