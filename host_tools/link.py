# SPDX-License-Identifier: Apache-2.0
"""Requests and replies over a serial line: several under way at once, retried, recorded.

The line is any pyserial URL: ``/dev/ttyACM0``, ``COM3``, a pseudo-terminal or
``socket://127.0.0.1:4000``.  How lost frames are made good is described in
docs/protocol.md, "Several requests under way".
"""

from __future__ import annotations

import contextlib
import select
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import serial

from generator.errors import BoardError, UserError

from . import frame
from .frame import Frame, Splitter
from .recording import NOISE, OUT_OF_TURN, RECEIVED, SENT, Recorder

TRIES = 3
"""Requests sent before a silent board is given up."""
SETBACKS = 10
"""Times in a row that requests are sent again because the board says it missed some, before the line is given up."""

SHORTEST_WAIT = 2.0
"""Seconds the first try waits at least, however quickly the board used to answer."""

BAD_FRAME_STATUS = 1
SELF_TEST = 14
DAMAGED = 15

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
        "the journal has no room, also because sectors are worn out; what the board last saved is kept: "
        "`sparcl stream --resume` tries again from there; else fewer replay records or samples per task, or a "
        "larger board",
    ),
    9: (
        "store error",
        "the flash reported an error or lost a record; what the board last saved is kept: `sparcl stream --resume` "
        "goes on from there. When it stops at the same place again, `--fresh` starts anew",
    ),
    10: (
        "too many",
        "more samples than the board's table or replay buffer holds: use fewer per task",
    ),
    SELF_TEST: (
        "self-test failed",
        "the board computes other numbers than the reference and does not learn: power it off and on; if it stays, "
        "flash it again or replace it",
    ),
    DAMAGED: (
        "state damaged",
        "a bit has flipped in the board's memory, it has gone back to its last snapshot: "
        "`sparcl stream --resume` goes on",
    ),
    OUT_OF_TURN: ("out of turn", "the board has restarted in the midst of its work: `sparcl stream --resume` goes on"),
}


STORE_ERRORS = frozenset((8, 9))
"""After one of these the board may be in the state before the request, or in that of its last save."""


class LinkError(BoardError):
    """No answer, or no line at all."""


class DeviceError(BoardError):
    """The board refused a request (docs/protocol.md, "Errors")."""

    def __init__(self, command: int, status: int) -> None:
        self.command = command
        self.status = status
        self.name, advice = ERRORS.get(status, ("unknown error", "firmware and host tools differ: flash again"))
        super().__init__(f"the board refused command 0x{command:02x}: {self.name} (status {status}); {advice}")


@dataclass
class _Pending:
    """A request under way."""

    request: Frame
    answer: Frame | None = None
    repeated: bool = False
    """Sent again because a later one was answered before it."""


class _Flight:
    """Requests under way, the oldest first.

    A line keeps the order of what it carries.  So an answer to a request says
    that those before it were executed, and that their replies were lost when
    they have not come; a refusal "out of turn" says that one before it was lost.
    """

    def __init__(self, link: Link) -> None:
        self.waiting: deque[_Pending] = deque()
        self._link = link
        self._due = 0
        """Replies to come if no frame was lost since the last sending."""
        self._stopped = False

    @property
    def stalled(self) -> bool:
        """Whether nothing more will come unless something is sent again."""
        return self._stopped or self._due <= 0

    def send(self, request: Frame) -> None:
        """Send the next request."""
        self.waiting.append(_Pending(request))
        self._transmit(request)

    def send_again(self) -> None:
        """Send again whatever has no answer: the board repeats its replies to those it has executed."""
        self._due = 0
        self._stopped = False
        for pending in self.waiting:
            if pending.answer is None:
                self._link.retries += 1
                self._transmit(pending.request)

    def take(self, got: Frame) -> bool:
        """Note a reply; False when it answers nothing that is under way."""
        if (got.sequence, got.command, got.status) == (0, 0, BAD_FRAME_STATUS):
            self._due -= 1
            return True
        place = self._place(got)
        if place is None:
            return False
        self._due -= 1
        if got.status == OUT_OF_TURN and place > 0:
            self._stopped = self._stopped or place == len(self.waiting) - 1
            return True
        self.waiting[place].answer = got
        self._ask_for_lost_replies(place)
        return True

    def _place(self, got: Frame) -> int | None:
        """Place of the request that a reply answers; None when it is the repetition of one that was answered."""
        for place, pending in enumerate(self.waiting):
            request = pending.request
            if pending.answer is None and (got.sequence, got.command) == (request.sequence, request.command):
                return place
        return None

    def _ask_for_lost_replies(self, place: int) -> None:
        """Ask again for the replies to requests before ``place``, once."""
        for pending in list(self.waiting)[:place]:
            if pending.answer is None and not pending.repeated:
                pending.repeated = True
                self._link.retries += 1
                self._transmit(pending.request)

    def _transmit(self, request: Frame) -> None:
        self._due += 1
        self._link._send(request)


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
        return next(self.requests(command, (payload,), 1, timeout))

    def requests(self, command: int, payloads: Iterable[bytes], window: int, timeout: float) -> Iterator[bytes]:
        """Send a request for each payload; the payloads of their replies, in order.

        ``window``: how many may be under way at once, as the board allows.  The
        board executes each once and in this order; after one that it refuses it
        executes none of those behind it.  ``timeout`` and errors: as `request`.
        """
        source = iter(payloads)
        flight = _Flight(self)
        kind = frame.REQUEST
        while True:
            while len(flight.waiting) < window and (payload := next(source, None)) is not None:
                self._sequence = (self._sequence + 1) & 0xFF
                flight.send(Frame(kind, self._sequence, command, 0, payload))
                kind = frame.NEXT
            if not flight.waiting:
                return
            reply = self._first_answer(flight, command, timeout)
            if reply.status:
                raise DeviceError(command, reply.status)
            yield reply.payload

    def _first_answer(self, flight: _Flight, command: int, timeout: float) -> Frame:
        """The answer to the oldest request under way, which is no longer so."""
        first = timeout
        if command in self._slowest:
            first = min(timeout, max(SHORTEST_WAIT, 20 * self._slowest[command]))
        started = time.monotonic()
        tries = setbacks = 0
        while (answer := flight.waiting[0].answer) is None:
            if flight.stalled:
                setbacks += 1
            elif not self._listen(flight, min(timeout, first * 4**tries) if tries < TRIES - 1 else timeout):
                tries += 1
            else:
                continue
            if setbacks == SETBACKS:
                raise LinkError(
                    f"{self.url}: the board receives damaged frames only; check the cable and the baud rate"
                )
            if tries == TRIES:
                raise LinkError(
                    f"{self.url}: no answer to command 0x{command:02x} after {TRIES} tries. "
                    "Is this the board's port, does no other program use it, and is the firmware on it? "
                    "`sparcl flash` writes it"
                )
            flight.send_again()
        self._slowest[command] = max(self._slowest.get(command, 0.0), time.monotonic() - started)
        flight.waiting.popleft()
        return answer

    def _listen(self, flight: _Flight, timeout: float) -> bool:
        """Hand on received frames until one concerns the flight; False after the time-out."""
        deadline = time.monotonic() + timeout
        heard = False
        while not heard:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            for chunk in self._splitter.feed(self._receive(left)):
                got = frame.decode(chunk)
                if got is None or got.kind != frame.REPLY:
                    self._record(NOISE, chunk)
                else:
                    self._record(RECEIVED, got.body())
                    heard = flight.take(got) or heard
        return True

    def _send(self, request: Frame) -> None:
        self._record(SENT, request.body())
        self._write(request.encode())

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
