# SPDX-License-Identifier: Apache-2.0
"""Proves that the board learned what the NumPy reference learns, bit for bit.

`validate` replays a recording on the reference and compares every byte of
every reply.  When a state differs, `bisect` repeats the session on a board up
to the last state that agreed and continues one step at a time, so that the first
wrong step, tensor and element are known by name.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sparcl_mcu.generator import files, shared_key
from sparcl_mcu.reference import Device, Difference, Reply, first_difference
from sparcl_mcu.spec.errors import BoardError, UserError, ValidationFailed
from sparcl_mcu.spec.types import Model, regions
from sparcl_mcu.spec.wire import Command, Status

from . import histories, protocol
from .link import ERRORS, STORE_ERRORS, Link
from .protocol import STATE_CHANGING
from .recording import Transaction, is_complete, read_header, transactions
from .stream import RECORDING, check_board

if TYPE_CHECKING:
    from sparcl_mcu.generator.pipeline import Project

RESULT = "validation.json"

Progress = Callable[[int], None]
"""Called with the number of training steps compared so far."""

_COPY_EVERY = 64
"""Requests between two copies of the reference; a resumed board is looked up from the copy before."""


@dataclass(frozen=True)
class Mismatch:
    """One difference: where in the session, in what, and both values."""

    step: int
    task: int
    what: str
    board: str
    reference: str

    def __str__(self) -> str:
        return (
            f"step {self.step} (task {self.task}): {self.what} is {self.board} on the board, "
            f"{self.reference} in the reference"
        )


@dataclass
class ValidationResult:
    """Result of a validation: what was compared and what differed.

    ``interval``: the steps between the last agreeing state and the first that
    differs; ``divergence``: the first wrong step as `bisect` found it.
    """

    complete: bool
    steps_compared: int = 0
    predictions_compared: int = 0
    digests_compared: int = 0
    dumped_bytes_compared: int = 0
    transactions: int = 0
    resumed: int = 0
    mismatches: int = 0
    first: Mismatch | None = None
    interval: tuple[int, int] | None = None
    divergence: Mismatch | None = None
    differing: list[str] = field(default_factory=list)
    """Regions that differ after the first wrong step."""

    @property
    def bit_exact(self) -> bool:
        """Whether the whole session was compared and nothing differed."""
        return self.mismatches == 0 and self.complete and self.transactions > 0

    def save(self, path: Path) -> None:
        """Write as JSON."""
        data = asdict(self) | {"bit_exact": self.bit_exact}
        files.write(path, json.dumps(data, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> ValidationResult:
        """Read what `save` wrote; raises UserError if it is missing or corrupt."""
        try:
            data = files.read_json(path)
            del data["bit_exact"]
            for name in ("first", "divergence"):
                data[name] = data[name] and Mismatch(**data[name])
            data["interval"] = data["interval"] and tuple(data["interval"])
            return cls(**data)
        except FileNotFoundError:
            raise UserError(f"{path} does not exist: run `sparcl validate` first") from None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path} is corrupt ({error}): run `sparcl validate` again") from error


@dataclass(frozen=True)
class Suspects:
    """Requests that lead to the first wrong state: ``requests[:good]`` is known to be right."""

    requests: tuple[tuple[int, bytes], ...]
    good: int


_Key = tuple[int, ...]


def _position(device: Device) -> _Key:
    """Position of the reference, comparable with `Hello.position`."""
    return (
        device.step,
        device.task,
        device.phase,
        device.mode,
        int(device.shuffled),
        device.epoch,
        device.pos,
        device.n,
        device.received,
        device.filled,
    )


def _counters(device: Device) -> _Key:
    return (device.saturated_activations, device.saturated_errors, device.guard_shifts)


class Replay:
    """The reference, and the state-changing requests that brought it where it is."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.device = Device(model)
        self.requests: list[tuple[int, bytes]] = []
        self._trace = [(_position(self.device), _counters(self.device))]
        self._copies = [(0, self.device.copy())]

    def apply(self, command: int, request: bytes) -> Reply | None:
        """Apply a request; state-changing ones are remembered."""
        reply = self.device.apply(command, request)
        if command in STATE_CHANGING:
            self.requests.append((command, request))
            self._trace.append((_position(self.device), _counters(self.device)))
            if len(self.requests) % _COPY_EVERY == 0:
                self._copies.append((len(self.requests), self.device.copy()))
        return reply

    def go_to(self, state: protocol.Hello, digest: int | None) -> bool:
        """Bring the reference to where a board says it is; whether it had to be moved.

        A board that lost power comes back in the state of its last snapshot,
        which is one this session has been through.  States at one position
        differ at most in counters; ``digest`` tells which it is.  Raises
        LookupError when there is no such state.
        """
        here = _position(self.device) == state.position()
        if here and (digest is None or digest == self.device.digest()):
            return False
        states = ((count, self._state(count)) for count in self._candidates(state.position()))
        for count, device in states:
            if digest is None or digest == device.digest():
                self._move(count, device)
                return True
        if here:
            return False  # the digest that follows is compared, and differs
        self._go_into_request(state)
        return True

    def _candidates(self, wanted: _Key) -> list[int]:
        """Numbers of requests that lead to a position, the most first, one for each set of counters."""
        latest: dict[_Key, int] = {}
        for count, (position, counters) in enumerate(self._trace):
            if position == wanted:
                latest[counters] = count
        return sorted(latest.values(), reverse=True)

    def _go_into_request(self, state: protocol.Hello) -> None:
        """A snapshot may lie within a training request: repeat a part of that request."""
        for count in range(len(self.requests) - 1, -1, -1):
            before, after = self._trace[count][0][0], self._trace[count + 1][0][0]
            command, request = self.requests[count]
            if before < state.step < after and command in (Command.TRAIN, Command.STEP):
                part = _part(command, request, 0, state.step - before, self._model.n_in)
                device = self._state(count)
                device.apply(command, part)
                if _position(device) == state.position():
                    self._move(count, self._state(count))
                    self.apply(command, part)
                    return
        raise LookupError("the board is in a state this session was never in")

    def _state(self, count: int) -> Device:
        """The reference after the first ``count`` requests."""
        at, copy = next(item for item in reversed(self._copies) if item[0] <= count)
        device = copy.copy()
        for command, request in self.requests[at:count]:
            device.apply(command, request)
        return device

    def _move(self, count: int, device: Device) -> None:
        """Continue from an earlier state; what came after it is undone."""
        self.device = device
        del self.requests[count:]
        del self._trace[count + 1 :]
        self._copies = [item for item in self._copies if item[0] <= count]


def validate(project: Project, progress: Progress | None = None) -> tuple[ValidationResult, Suspects | None]:
    """Compare the project's recording with the reference.

    Returns the result and, when a state differs, the requests to bisect.  What the reference says of masks and
    samples is kept in the project's folder if the board learned the same.
    Raises UserError when there is no recording of this model.
    """
    path = project.folder / RECORDING
    if read_header(path).model_hash != project.model.model_hash:
        raise UserError(
            f"{path} was recorded with another model than this experiment has now: run `sparcl stream --fresh` again"
        )
    comparison = _Comparison(project.model, ValidationResult(complete=is_complete(path)))
    for item, following in pairwise(chain(transactions(path), [None])):
        if item is not None:
            comparison.transaction(item, following)
        if progress is not None:
            progress(comparison.result.steps_compared)
    kept = project.folder / histories.RESULT
    kept.unlink(missing_ok=True)
    if comparison.result.bit_exact:
        histories.save(comparison.replay.device.state.histories, kept)
    return comparison.result, comparison.suspects


def explain(result: ValidationResult, arguments: str) -> str:
    """Tell the user what went wrong and what to do next; ``arguments``: of this command."""
    if result.mismatches == 0:
        return (
            f"the {result.steps_compared} steps recorded so far agree, but the session was not finished: "
            f"continue with `sparcl stream {arguments} --resume`"
        )
    lines = [f"the board and the reference disagree ({result.mismatches} differences)"]
    if result.first is not None:
        lines.append(f"first difference: {result.first}")
    if result.divergence is not None:
        lines.append(f"first wrong state, found by repeating the session: {result.divergence}")
        lines.append(f"regions that differ there: {', '.join(result.differing)}")
    elif result.interval is not None:
        low, high = result.interval
        lines.append(f"the state was right at step {low} and wrong by step {high}")
        lines.append(
            "to find the exact step and weight, let a board repeat the session (it forgets what it learned): "
            f"`sparcl flash {arguments}`, then `sparcl validate {arguments}`; both with --port for a real one"
        )
    return "\n".join(lines)


class _Comparison:
    """Compares transactions one by one."""

    def __init__(self, model: Model, result: ValidationResult) -> None:
        self.model = model
        self.result = result
        self.suspects: Suspects | None = None
        self.replay = Replay(model)
        self._good = 0
        self._good_step = 0
        self._identity: tuple[object, ...] = ()
        self._step = self._task = 0
        """Where the reference stood before the present transaction."""

    def transaction(self, item: Transaction, following: Transaction | None) -> None:
        """Replay one transaction and compare its reply; ``following`` it comes another."""
        command, request, status, board = item
        if status is None or status == Status.DAMAGED or status in STORE_ERRORS:
            # Whether it was executed, how far, or undone is not known here; the next hello tells.
            if command in STATE_CHANGING:
                self.replay.apply(command, request)
            return
        self.result.transactions += 1
        device = self.replay.device
        self._step, self._task = device.step, device.task
        expected = self.replay.apply(command, request)
        if expected is None:
            self._unanswered(command, status, board, following)
        elif status != expected.status:
            self._differs(_name(command), _status(status), _status(expected.status), state=True)
        elif not status:
            self._reply(command, request, board, expected)

    def _unanswered(self, command: int, status: int, board: bytes, following: Transaction | None) -> None:
        """Compare what the reference knows of a reply it does not give itself."""
        try:
            if status:
                self._differs(_name(command), _status(status), _status(0))
            elif command == Command.HELLO:
                self._hello(protocol.unpack_hello(board), following)
            elif command == Command.STATISTICS:
                self._statistics(protocol.unpack_statistics(board))
        except BoardError as error:
            self._differs(f"the reply to {_name(command)}", board[:_EXCERPT].hex(), f"of another form ({error})")

    def _hello(self, state: protocol.Hello, following: Transaction | None) -> None:
        """Follow a board that came back in an earlier state."""
        self._identity = self._identity or state.identity()
        if state.identity() != self._identity or state.model_hash != self.model.model_hash:
            self._differs("what the board says of itself", state.identity(), self._identity)
        digest = None
        if following is not None and following.command == Command.DIGEST and following.status == 0:
            digest = protocol.unpack_digest(following.reply).state
        try:
            if self.replay.go_to(state, digest):
                self.result.resumed += 1
                self._good = min(self._good, len(self.replay.requests))
        except LookupError as error:
            at = f"step {state.step}, task {state.task}, epoch {state.epoch}, position {state.pos}"
            self._differs("the place in the session", at, f"elsewhere ({error})", state=True)
        self.replay.device.steps_per_request = state.steps_per_request
        self.replay.device.max_payload = state.max_payload

    def _statistics(self, board: protocol.Statistics) -> None:
        """Compare the counters that are part of the state."""
        for name in ("saturated_activations", "saturated_errors", "guard_shifts"):
            theirs, ours = getattr(board, name), getattr(self.replay.device, name)
            if theirs != ours:
                self._differs(name, theirs, ours, state=True)

    def _reply(self, command: int, request: bytes, board: bytes, expected: Reply) -> None:
        before = self.result.mismatches
        # A reply of another form is an error here, and is shown raw below.
        with suppress(BoardError):
            self._compare(command, request, board, expected)
        if self.result.mismatches == before and not expected.matches(0, board):
            what = f"the reply to {_name(command)}"
            self._differs(what, *_excerpts(board, expected.payload), state=command in STATE_CHANGING)

    def _compare(self, command: int, request: bytes, board: bytes, expected: Reply) -> None:
        """Name what differs, for the commands whose replies are more than a number."""
        if command in (Command.TRAIN, Command.STEP):
            self._training(board, expected.payload)
        elif command == Command.EVALUATE:
            self._evaluation(board, expected.payload, request[0])
        elif command == Command.DUMP and len(board) == len(expected.payload):
            self._dump(request, board, expected.payload)
        elif command in _DIGEST_AT and len(board) == len(expected.payload):
            theirs, ours = (_digest_of(command, data) for data in (board, expected.payload))
            self._digest(theirs, ours, 0)

    def _training(self, board: bytes, expected: bytes) -> None:
        theirs, ours = protocol.unpack_training(board), protocol.unpack_training(expected)
        self.result.steps_compared += ours.done
        for k, (a, b) in enumerate(zip(theirs.rolling, ours.rolling, strict=False), start=1):
            if a != b:
                self._differs("the rolling digest", _hex(a), _hex(b), steps=k, state=True)
        for name in ("done", "epoch", "pos", "n", "phase", "wrong", "loss"):
            a, b = getattr(theirs, name), getattr(ours, name)
            if a != b:
                self._differs(f"{name} of the training reply", a, b, steps=ours.done, state=True)
        if ours.digest is not None:
            self._digest(theirs.digest or 0, ours.digest, ours.done)

    def _digest(self, board: int, ours: int, steps: int) -> None:
        self.result.digests_compared += 1
        if board != ours:
            self._differs("the state digest", _hex(board), _hex(ours), steps=steps, state=True)
        elif self.suspects is None:
            self._good = len(self.replay.requests)
            self._good_step = self._step + steps

    def _evaluation(self, board: bytes, expected: bytes, count: int) -> None:
        classes = self.model.n_classes
        theirs = protocol.unpack_evaluation(board, count, classes)
        ours = protocol.unpack_evaluation(expected, count, classes)
        self.result.predictions_compared += count
        for k in range(count):
            wrong = np.flatnonzero(theirs.logits[k] != ours.logits[k])
            if len(wrong):
                c = int(wrong[0])
                values = theirs.logits[k, c], ours.logits[k, c]
                self._differs(f"logit {c} of test sample {k} in a request", *values)
            elif theirs.predicted[k] != ours.predicted[k]:
                values = theirs.predicted[k], ours.predicted[k]
                self._differs(f"the class of test sample {k} in a request", *values)
        if theirs.correct != ours.correct:
            self._differs("the count of correct answers", theirs.correct, ours.correct)

    def _dump(self, request: bytes, board: bytes, expected: bytes) -> None:
        self.result.dumped_bytes_compared += len(board)
        if board == expected:
            return
        number, offset, size = struct.unpack("<HIH", request)
        ours = self.replay.device.dump()
        whole = ours[number]
        theirs = {**ours, number: whole[:offset] + board + whole[offset + size :]}
        difference = first_difference(self.model, theirs, ours)
        if difference is not None:
            self._differs(_place(difference), difference.device, difference.reference, state=True)

    def _differs(
        self,
        what: str,
        board: object,
        reference: object,
        *,
        steps: int = 0,
        state: bool = False,
    ) -> None:
        self.result.mismatches += 1
        mismatch = Mismatch(self._step + steps, self._task, what, str(board), str(reference))
        if self.result.first is None:
            self.result.first = mismatch
        if state and self.suspects is None:
            self.suspects = Suspects(tuple(self.replay.requests), self._good)
            self.result.interval = (self._good_step, self.replay.device.step)


def bisect(
    project: Project,
    url: str,
    suspects: Suspects,
    progress: Callable[[int, int], None] | None = None,
    baud: int = 115200,
) -> tuple[Mismatch, list[str]]:
    """Repeat a session on a board and stop at the first state that differs.

    The board forgets what it has learned.  Returns the first difference by
    tensor and element, and the names of all regions that differ there.
    Raises ValidationFailed when the board agrees this time.
    """
    with Link(url, baud=baud, key=shared_key.load(project.config.link.key)) as link:
        check_board(project, protocol.wait_for_hello(link, patience=10.0))
        protocol.reset(link, protocol.FACTORY)
        device = Device(project.model)
        if protocol.digest(link).state != device.digest():
            return _name_difference(project.model, link, device)
        total = len(suspects.requests)
        for number, (command, request) in enumerate(suspects.requests):
            careful = number >= suspects.good
            for part in _parts(device, command, request, project.model.n_in) if careful else [request]:
                reply = device.apply(command, part)
                if reply is None or reply.status:
                    continue  # refused then, and of no effect
                link.request(command, part, protocol.SLOW)
                if careful and protocol.digest(link).state != device.digest():
                    return _name_difference(project.model, link, device)
            if number == suspects.good - 1 and protocol.digest(link).state != device.digest():
                raise ValidationFailed(
                    "repeated from the start, the board went wrong earlier than it did when it was recorded: "
                    "it does not behave the same twice (power, overclocking, flash?)"
                )
            if progress is not None:
                progress(number + 1, total)
    raise ValidationFailed(
        "repeated on the board, the same requests now agree with the reference: what was recorded did not "
        "come from this firmware, or the recording was changed, or the board had a transient fault"
    )


def _parts(device: Device, command: int, request: bytes, n_in: int) -> Iterator[bytes]:
    """A training request as requests of one step each; any other as it is."""
    if command not in (Command.TRAIN, Command.STEP):
        yield request
        return
    reply = device.copy().apply(command, request)
    done = protocol.unpack_training(reply.payload).done if reply is not None and reply.status == 0 else 0
    if not done:
        yield request
    for k in range(done):
        yield _part(command, request, k, 1, n_in)


def _part(command: int, request: bytes, first: int, count: int, n_in: int) -> bytes:
    """``count`` steps of a training request, without digest."""
    if command == Command.TRAIN:
        return struct.pack("<HB", count, 0)
    size = 3 + n_in
    return bytes([count]) + request[1 + first * size : 1 + (first + count) * size] + b"\0"


def _name_difference(model: Model, link: Link, device: Device) -> tuple[Mismatch, list[str]]:
    """The first differing element; weights and biases first, as the other regions follow from them."""
    state = protocol.hello(link)
    theirs, ours = protocol.dump_regions(link, model, state), device.dump()
    found: list[tuple[str, Mismatch]] = []
    for region in sorted(regions(model), key=lambda r: (r.number < _FIRST_LAYER, r.number)):
        # The regions `start` and `index` tell which weight an entry is.
        one = {**ours, region.number: theirs[region.number]}
        difference = first_difference(model, one, ours)
        if difference is not None:
            values = str(difference.device), str(difference.reference)
            found.append((region.name, Mismatch(state.step, state.task, _place(difference), *values)))
    if not found:
        raise BoardError("the state digests differ but every dumped region agrees: the digest itself is wrong")
    return found[0][1], [name for name, _ in found]


_FIRST_LAYER = 16
"""Number of the first dump region that belongs to a layer (docs/spec/protocol.md)."""


def _place(difference: Difference) -> str:
    if difference.index < 0:
        return f"{difference.region}: {difference.where}"
    return f"{difference.region}[{difference.index}] ({difference.where})"


_DIGEST_AT: dict[int, int] = {Command.DIGEST: 0, Command.TASK_END: 4}
"""Where the state digest is in the replies that consist of it."""


def _digest_of(command: int, data: bytes) -> int:
    at = _DIGEST_AT[command]
    return int.from_bytes(data[at : at + 4], "little")


def _name(command: int) -> str:
    try:
        return Command(command).name.lower()
    except ValueError:
        return f"command 0x{command:02x}"


def _status(status: int) -> str:
    return "accepted" if status == 0 else f"refused ({ERRORS.get(status, (str(status),))[0]})"


_EXCERPT = 16
"""Bytes of a reply that a message shows."""


def _excerpts(board: bytes, reference: bytes) -> tuple[str, str]:
    """Two replies that differ, where they begin to, with their lengths."""
    shorter = min(len(board), len(reference))
    at = next((k for k in range(shorter) if board[k] != reference[k]), shorter)
    first, second = (data[at : at + _EXCERPT].hex() or "at its end" for data in (board, reference))
    return f"{first} from byte {at} of {len(board)} on", f"{second} there, of {len(reference)} bytes"


def _hex(value: int) -> str:
    return f"0x{value:08x}"
