# SPDX-License-Identifier: Apache-2.0
"""Requests and replies over a serial line: several under way at once, retried, recorded.

The line is any pyserial URL: ``/dev/ttyACM0``, ``COM3``, a pseudo-terminal or
``socket://127.0.0.1:4000``.  How lost frames are made good is described in
docs/spec/protocol.md, "Several requests under way".
"""

from __future__ import annotations

import contextlib
import select
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import serial

from sparcl_mcu.spec.errors import BoardError
from sparcl_mcu.spec.wire import Status

from . import bounds, frame, ports
from .frame import Frame, Splitter
from .recording import NOISE, RECEIVED, SENT, Recorder
from .seal import Seal

TRIES = 3
"""Requests sent before a board that gives no sign of life is given up."""
PATIENCE = 60
"""Times in a row that one request is sent again because frames come damaged, before the line is given up."""
SHRINK_AFTER = 6
"""Like `PATIENCE`, before requests become smaller: small ones get through where large ones do not."""
CLEAN = 32
"""Answers in a row at the first try after which requests may be twice as large again."""

SHORTEST_WAIT = 2.0
"""Seconds the first try waits at least, however quickly the board used to answer."""
PROD = 0.5
"""Seconds of silence, at least, after which something may have been lost."""

QUESTION = b"\x01" + frame.DELIMITER
"""No frame.  A board that waits says so at once; one that works does after its reply."""
_SAMPLE = 1024
"""Bytes that are not a reply which are kept, to tell what they are."""
_FRAME = 512
"""Bytes a frame has at most besides its payload: head, checksum, seal, and those of COBS."""
BANNER = b"sparcl-mcu "
"""Text a board prints when it starts: no damaged reply."""

_ADVICE = {
    Status.BAD_FRAME: "the line damages frames: check the cable and the baud rate",
    Status.UNKNOWN_COMMAND: "firmware and host tools differ: run `sparcl flash` again",
    Status.BAD_LENGTH: "firmware and host tools differ: run `sparcl flash` again",
    Status.BAD_STATE: "the command is not allowed in the board's current phase: `sparcl stream --resume` or `--fresh`",
    Status.RANGE: "a number is beyond a limit of the board; `sparcl boards` lists them",
    Status.BAD_LABEL: "a label is not one of the task's classes: check the data set",
    Status.WRONG_ORDER: "the board expects another sample: `sparcl stream --resume` asks it which",
    Status.STORE_FULL: (
        "the journal is full, perhaps because sectors are worn out; the board's last save is kept: "
        "`sparcl stream --resume` tries again from there; otherwise use fewer replay records or samples per "
        "task, or a larger board"
    ),
    Status.STORE: (
        "the flash reported an error or lost a record; the board's last save is kept: `sparcl stream "
        "--resume` continues from there. If it stops at the same place again, use `--fresh` to start over"
    ),
    Status.TOO_MANY: "more samples than the board's table or replay buffer holds: use fewer per task",
    Status.SELF_TEST: (
        "the board computes other numbers than the reference and does not learn: power it off and on; if that "
        "does not help, flash it again or replace it"
    ),
    Status.DAMAGED: (
        "memory corruption detected (flipped bit); the board restored its last snapshot: continue with "
        "`sparcl stream --resume`"
    ),
    Status.OUT_OF_TURN: "the board restarted during the session: continue with `sparcl stream --resume`",
    Status.OTHER_MODEL: "the board's firmware holds another model: run `sparcl flash` again",
    Status.WRONG_NONCE: ("the board has restarted, or something else uses its line: type the command again"),
    Status.TOO_LONG: "the board takes shorter requests: run `sparcl flash` again",
    Status.NOT_SEALED: ("the board's firmware has another shared key: set link.key to it, or run `sparcl flash`"),
    Status.REPLAYED: (
        "something else uses the line and the key: close it, then continue with `sparcl stream --resume`"
    ),
}
"""Advice by status."""

ERRORS: dict[int, tuple[str, str]] = {int(status): (status.title, advice) for status, advice in _ADVICE.items()}
"""Name and advice by status code."""


STORE_ERRORS = frozenset((Status.STORE_FULL, Status.STORE))
"""After one of these the board may be in the state before the request, or in that of its last save."""


class LinkError(BoardError):
    """The board does not answer, or there is no line at all."""


class StrangerError(LinkError):
    """The device at the port is not a board with our firmware."""


class NoisyLineError(LinkError):
    """A request does not get through, a smaller one may: ask the board where it stands, and continue from there."""


class DeviceError(BoardError):
    """The board refused a request (docs/spec/protocol.md, "Errors")."""

    def __init__(self, command: int, status: int) -> None:
        self.command = command
        self.status = status
        self.name, advice = ERRORS.get(status, ("unknown error", "firmware and host tools differ: flash again"))
        super().__init__(f"the board refused command 0x{command:02x}: {self.name} (status {status}); {advice}")


@dataclass
class _Pending:
    """A request under way."""

    request: Frame
    sealed: Frame
    """The request as it goes over the line; the board recognises a repetition by every byte."""
    room: int
    """`Link.room` when it was made; 0 when it cannot be smaller."""
    answer: Frame | None = None
    repeated: bool = False
    """Whether it was sent more than once."""


class _Flight:
    """Requests under way, the oldest first.

    A line keeps the order of what it carries.  So an answer to a request says
    that those before it were executed, and that their replies were lost when
    they have not come; a refusal "out of turn" says that one before it was lost.
    """

    def __init__(self, link: Link, divisible: bool) -> None:
        self.waiting: deque[_Pending] = deque()
        self._link = link
        self._divisible = divisible
        self._due = 0
        """Replies to come if no frame was lost since the last sending."""
        self._stopped = False
        self._asked = False
        self.too_long = 0
        """Times in a row that the board has found a frame too long: on a bad line two may come as one."""

    @property
    def stalled(self) -> bool:
        """Whether nothing more will come unless something is sent again."""
        return self._stopped or self._due <= 0

    def send(self, request: Frame) -> None:
        """Send the next request."""
        self.waiting.append(_Pending(request, self._link._sealed(request), self._link.room * self._divisible))
        self._transmit(self.waiting[-1])

    def send_again(self) -> None:
        """Send again whatever has no answer: the board repeats its replies to those it has executed."""
        self._due = 0
        self._stopped = self._asked = False
        self._link._write(frame.DELIMITER)  # ends a frame whose own end was lost
        for pending in self.waiting:
            if pending.answer is None:
                self._repeat(pending)

    def take(self, got: Frame) -> bool:
        """Note a reply; False when it answers nothing that is under way."""
        if (got.sequence, got.command) == (0, 0) and got.status in (Status.BAD_FRAME, Status.TOO_LONG):
            before = self.too_long
            self.damaged()
            self.too_long = before + 1 if got.status == Status.TOO_LONG else 0
            return True
        place = self._place(got)
        if place is None:
            return False
        self._due -= 1
        if got.status == Status.OUT_OF_TURN and place > 0:
            self._stopped = self._stopped or place == len(self.waiting) - 1
            return True
        self.waiting[place].answer = got
        self._ask_for_lost_replies(place)
        return True

    def damaged(self) -> None:
        """A frame was damaged on the line, either way: one reply fewer will come, or, after a question, none."""
        self._due -= 1
        self._stopped = self._stopped or self._asked
        self.too_long = 0

    def ask(self) -> None:
        """Ask the board whether it waits."""
        self._asked = True
        self._link._write(QUESTION)

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
                self._repeat(pending)

    def _repeat(self, pending: _Pending) -> None:
        pending.repeated = True
        self._link.retries += 1
        self._transmit(pending)

    def _transmit(self, pending: _Pending) -> None:
        self._due += 1
        self._link._send(pending.request, pending.sealed)


class Link:
    """A line to one board.  Not for several threads.

    ``room``: bytes a request or reply should have at most, as far as its
    command leaves a choice; it follows what the line carries.  ``key``: shared
    with the board, or None.
    """

    def __init__(
        self, url: str, recorder: Recorder | None = None, baud: int = 115200, key: bytes | None = None
    ) -> None:
        self.url = url
        self.recorder = recorder
        self.key = key
        self.retries = 0
        self.damaged = 0
        """Frames that were damaged on the line, either way, as far as one end noticed."""
        self.room = self._most = self._least = 1 << 16
        self.identity: tuple[object, ...] | None = None
        """What the board has called itself so far."""
        self._traffic = bounds.Traffic()
        self._strange: bytearray | None = bytearray()
        """The beginning of what has come, until a reply did: None from then on."""
        self._echoes = 0
        self._clean = 0
        self._seal: Seal | None = None
        self._forged = 0
        self._baud = baud
        self._sequence = int(time.monotonic() * 1000) & 0xFF
        self._slowest: dict[int, float] = {}
        self._splitter = Splitter()
        self._port: Any = None
        self._descriptor: int | None = None
        self._was_open = False
        self.open()

    def open(self) -> None:
        """(Re)open the line; ends a frame that an earlier session may have left unfinished."""
        self._splitter = Splitter()
        try:
            # timeout 0: read returns what is there; waiting is done in _receive.
            self._port = serial.serial_for_url(
                self.url, baudrate=self._baud, timeout=0, write_timeout=30, exclusive=True
            )
        except (serial.SerialException, ValueError, OSError) as error:
            mistake = None if self._was_open else ports.mistake(self.url, error)
            if mistake is not None:  # later it is a board that was unplugged
                raise mistake from error
            raise LinkError(
                f"cannot open {self.url}: {error}. Is the board plugged in, or its emulator running?"
            ) from error
        self._descriptor = None  # as on Windows, where it has none to select
        with contextlib.suppress(AttributeError, OSError):
            self._descriptor = self._port.fileno()
        self._was_open = True
        self._write(frame.DELIMITER)

    def close(self) -> None:
        """Close the line."""
        port, self._port, self._descriptor = self._port, None, None
        if port is not None:
            with contextlib.suppress(serial.SerialException, OSError):
                port.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fit(self, most: int, least: int) -> None:
        """Keep `room` between the smallest useful request and what the board takes."""
        if most != self._most:
            self.room = most
        self._most, self._least = most, min(least, most)
        self.room = max(self._least, self.room)

    def seal(self, nonce: bytes, model_hash: bytes, commands: Collection[int]) -> None:
        """Seal these commands from here on; the line has a key."""
        assert self.key is not None
        before, self._seal = self._seal, Seal(self.key, nonce, model_hash, commands)
        self._seal.go_on_from(before)

    def request(self, command: int, payload: bytes = b"", timeout: float = 5.0, *, divisible: bool = False) -> bytes:
        """Send a request and return the payload of its reply.

        ``timeout``: seconds the command may take on the slowest board.  The
        first try waits less when the board has answered this command before,
        so that a lost frame does not cost the whole time-out.  ``divisible``:
        smaller requests would do as well.  Raises DeviceError when the board
        refuses, LinkError when it is silent or the line is too bad, and
        NoisyLineError, one of these, when smaller requests may get through.
        """
        return next(self.requests(command, (payload,), 1, timeout, divisible=divisible))

    def requests(
        self, command: int, payloads: Iterable[bytes], window: int, timeout: float, *, divisible: bool = True
    ) -> Iterator[bytes]:
        """Send a request for each payload; the payloads of their replies, in order.

        ``window``: how many may be under way at once, as the board allows.  The
        board executes each once and in this order; after one that it refuses it
        executes none of those behind it.  The rest and the errors: as `request`.
        """
        source = iter(payloads)
        flight = _Flight(self, divisible)
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
        """Remove the oldest request under way and return its answer."""
        oldest = flight.waiting[0]
        first = timeout
        if command in self._slowest:
            first = min(timeout, max(SHORTEST_WAIT, 20 * self._slowest[command]))
        started = time.monotonic()
        longest = bounds.TRIES_IN_ALL * timeout + PATIENCE * SHORTEST_WAIT
        tries = setbacks = 0
        while oldest.answer is None:
            self._check_time(command, time.monotonic() - started, longest)
            if flight.stalled:
                setbacks += 1
                tries = 0  # damaged frames are a sign of life
                self.room = max(self._least, self.room // 2)
                if flight.too_long == SHRINK_AFTER:
                    raise DeviceError(command, Status.TOO_LONG)
                self._check_patience(oldest, setbacks)
            elif self._listen(flight, min(timeout, first * 4**tries) if tries < TRIES - 1 else timeout, command):
                continue
            else:
                tries += 1
                self._check_tries(command, tries)
            flight.send_again()
        self._note_quality(command, oldest, time.monotonic() - started)
        flight.waiting.popleft()
        return oldest.answer

    def _note_quality(self, command: int, answered: _Pending, seconds: float) -> None:
        """Learn from an answer how quick the board is, and how large requests may be."""
        if answered.repeated:
            self._clean = 0
            return
        self._slowest[command] = max(self._slowest.get(command, 0.0), seconds)
        self._clean += 1
        if self._clean == CLEAN:
            self._clean = 0
            self.room = min(self._most, 2 * self.room)

    def _text(self) -> str:
        """The text the device at the port prints, if it is not our firmware's."""
        strange = self._strange or b""
        return "" if BANNER in strange else ports.text_in(bytes(strange))

    def _stranger(self) -> LinkError | None:
        """An error that says what is at the port, if it is not a board with our firmware."""
        if self._strange is None:
            return None
        if self._echoes:
            return StrangerError(
                f"{self.url} sends back whatever is sent to it: there is no board, but a loop or a terminal; "
                f"name the board's port with --port: {ports.known()}"
            )
        if text := self._text():
            return StrangerError(
                f"{self.url}: the device there prints text and does not answer (`{text}`): it is another device, "
                f"or has other firmware. Name the board's port with --port ({ports.known()}), or type `sparcl flash` "
                "to write the firmware"
            )
        if self._strange:
            return LinkError(
                f"{self.url}: what it sends is not a valid reply ({bytes(self._strange[:16]).hex(' ')} ...): is it the "
                f"board's port, is the firmware on it (`sparcl flash` writes it), is its baud rate {self._baud}?"
            )
        return None

    def _also_open(self) -> str:
        """A hint about other programs at the same port, which take some of the bytes."""
        found = ports.others(self.url)
        return f". It is also open in {found}: close that" if found else ""

    def _check_patience(self, oldest: _Pending, setbacks: int) -> None:
        """Give up on a request that does not get through."""
        if setbacks >= SHRINK_AFTER and oldest.room >= 2 * self.room:
            raise NoisyLineError(
                f"{self.url}: requests of {oldest.room} bytes do not get through, the line damages them; "
                "`sparcl stream --resume` continues with smaller ones"
            )
        if setbacks < PATIENCE:
            return
        if self._forged:
            raise LinkError(f"{self.url}: the replies are not sealed with this key: is it the firmware's?")
        raise self._stranger() or LinkError(
            f"{self.url}: a request was sent {setbacks} times and never came through whole ({self.damaged} frames "
            "were damaged so far): check the cable, its ground, the baud rate, and what disturbs the line; "
            f"then continue with `sparcl stream --resume`{self._also_open()}"
        )

    def _check_time(self, command: int, seconds: float, longest: float) -> None:
        """Give up on a board that keeps sending but never answers."""
        if seconds > longest:
            raise LinkError(
                f"{self.url}: something keeps coming, but no answer to command 0x{command:02x} for "
                f"{seconds:.0f} s: check the cable and the baud rate, or power the board off and on; then "
                "continue with `sparcl stream --resume`"
            )

    def _check_tries(self, command: int, tries: int) -> None:
        """Give up on a board that is silent."""
        if tries == TRIES:
            raise self._stranger() or LinkError(
                f"{self.url}: no answer to command 0x{command:02x} after {TRIES} tries. "
                "Is this the board's port, does no other program use it, and is the firmware on it? "
                f"`sparcl flash` writes it{self._also_open()}"
            )

    def _listen(self, flight: _Flight, timeout: float, command: int) -> bool:
        """Hand on received frames until one concerns the flight; False after the time-out.

        Where the zero byte that ends a frame was lost, no more comes: the board waits
        for the rest of a request, the host for that of a reply, or one of them took
        two frames for one.  So the host asks when it has heard nothing for a while.
        """
        deadline = time.monotonic() + timeout
        silence = max(PROD, 4 * self._slowest[command]) if command in self._slowest else SHORTEST_WAIT
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            data = self._receive(min(left, PROD if self._splitter.begun else silence))
            if data:
                if self._hand_on(data, flight):
                    return True
            elif (rest := self._splitter.drop()) and self._note_damage(rest, flight):
                return True
            elif left > silence:
                flight.ask()
                silence *= 2

    def _hand_on(self, data: bytes, flight: _Flight) -> bool:
        """Give the flight the frames that ``data`` completes; whether one concerns it."""
        heard = False
        if self._strange is not None:
            self._strange += data[: _SAMPLE - len(self._strange)]
        self._count(0, len(data))
        for chunk in self._splitter.feed(data):
            got = frame.decode(chunk)
            self._echoes += got is not None and got.kind != frame.REPLY
            opened = self._opened(got) if got is not None and got.kind == frame.REPLY else None
            if opened is None:
                heard = self._note_damage(chunk, flight) or heard
            else:
                self._strange = None
                self._count((opened.sequence, opened.command) != (0, 0), 0)
                self._record(RECEIVED, opened.body())
                heard = flight.take(opened) or heard
        return heard

    def _count(self, replies: int, size: int) -> None:
        """Count what has come; raises BoardError if that is more than was asked for."""
        too_much = self._traffic.came(replies, size)
        if too_much is not None:
            raise self._stranger() or BoardError(
                f"{self.url}: the board sends {too_much}. Does something else use its line, or is it not a "
                "sparcl-mcu board? Power it off and on, then `sparcl stream --resume`; if that does not help, "
                "`sparcl flash`"
            )

    def _opened(self, got: Frame) -> Frame | None:
        """The reply without its seal; None for one that the board did not send."""
        if (got.sequence, got.command) == (0, 0):
            self.damaged += 1
        opened = got if self._seal is None else self._seal.open(got)
        self._forged += opened is None
        return opened

    def _note_damage(self, chunk: bytes, flight: _Flight) -> bool:
        """Note a chunk that is not a reply; returns whether it may have been one."""
        self._record(NOISE, chunk)
        if BANNER in chunk or self._text():
            return False
        self.damaged += 1
        flight.damaged()
        return True

    def _sealed(self, request: Frame) -> Frame:
        return request if self._seal is None else self._seal.close(request)

    def _send(self, request: Frame, sealed: Frame) -> None:
        self._record(SENT, request.body())
        self._write(sealed.encode())

    def _record(self, kind: str, data: bytes) -> None:
        if self.recorder is not None:
            self.recorder.entry(kind, data)

    def _write(self, data: bytes) -> None:
        if self._port is None:
            self.open()
        self._traffic.asked(self._most + _FRAME)
        try:
            self._port.write(data)
        except (serial.SerialException, OSError) as error:
            raise self._lost(error) from error

    def _receive(self, timeout: float) -> bytes:
        """Read what has come, after waiting up to ``timeout`` seconds for the first byte."""
        try:
            if self._descriptor is not None:
                ready, _, _ = select.select([self._descriptor], [], [], timeout)
                return bytes(self._port.read(1 << 16)) if ready else b""
            self._port.timeout = timeout
            return bytes(self._port.read(max(1, self._port.in_waiting)))
        except (serial.SerialException, OSError, TypeError) as error:
            raise self._lost(error) from error

    def _lost(self, error: Exception) -> LinkError:
        self.close()
        return LinkError(
            f"the line to {self.url} broke ({error}). Reconnect the board, then continue with `sparcl stream --resume`"
        )
