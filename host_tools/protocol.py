# SPDX-License-Identifier: Apache-2.0
"""The commands of docs/spec/protocol.md as typed functions over a link.

Packing and unpacking stand apart from sending, so that `validate` decodes
recorded bytes with the same functions.
"""

from __future__ import annotations

import struct
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparcl_mcu.spec import wire
from sparcl_mcu.spec.errors import BoardError, UserError
from sparcl_mcu.spec.types import Model, position_bytes, regions
from sparcl_mcu.spec.wire import VERSION, Command, Phase, Record, Status

from . import seal
from .link import DeviceError, Link, LinkError, StrangerError

STATE_CHANGING = frozenset(command for command in Command if command.changes)

RESTART, FACTORY = 0, 1

WATCHDOG = 4
"""Reset reason: the board hung."""
RESET_REASONS = ("unknown", "power-on", "reset pin", "software", "watchdog")
"""Reset reasons by their code in hello."""
SELF_TEST_FAILED, RESTORED, LOST_SAVE = 1, 2, 4
"""Bits of the health in hello."""
DIGEST_FLAG = 1

KEPT = 14
"""Bytes a board needs to keep a reply, besides its payload and its seal."""

SAMPLE_HEAD = 8
"""Most bytes of a request besides one sample."""

_QUICK = 5.0
"""Seconds for the other commands."""
SLOW = 120.0
"""Seconds for commands that train, or that write or erase flash."""
_SECONDS: dict[int, float] = {
    Command.TASK_BEGIN: SLOW,
    Command.SAMPLES: SLOW,
    Command.TRAIN: SLOW,
    Command.STEP: SLOW,
    Command.EVALUATE: 30.0,
    Command.PREDICT: 10.0,
    Command.REPLAY: SLOW,
    Command.TASK_END: SLOW,
    Command.DIGEST: 30.0,
    Command.SAVE: SLOW,
    Command.RESET: SLOW,
}

_HELLO_SECONDS = 1.0
"""Seconds to wait for a board's answer; three times as long at most."""
_BOOT_SECONDS = 4.0
"""Seconds after which a device is taken not to answer any more; two tries stay below 8 s."""

_U32 = struct.Struct("<I")


_IDENTITY = (
    *("version", "model_hash", "board", "n_in", "n_classes", "n_layers", "input", "max_payload", "steps_per_request"),
    *("window", "table_capacity", "replay_capacity", "sector", "store_size", "program_unit", "keyed"),
)


@dataclass(frozen=True)
class Hello:
    """A board's description of itself; the names are those of docs/spec/protocol.md."""

    protocol: int
    version: str
    model_hash: bytes
    board: str
    n_in: int
    n_classes: int
    n_layers: int
    input: int
    max_payload: int
    steps_per_request: int
    window: int
    table_capacity: int
    replay_capacity: int
    sector: int
    store_size: int
    program_unit: int
    step: int
    task: int
    phase: int
    mode: int
    shuffled: int
    epoch: int
    pos: int
    n: int
    n_start: int
    received: int
    filled: int
    snapshot: int
    restored: bool
    reset_reason: int
    nonce: bytes
    keyed: bool
    health: int
    """Bits SELF_TEST_FAILED, RESTORED and LOST_SAVE."""
    faults: int
    """Flipped bits the board has found since power-on."""

    @property
    def fresh(self) -> bool:
        """Whether the board has learned and received nothing yet."""
        return not (self.step or self.task or self.phase or self.filled)

    @property
    def start(self) -> bytes:
        """The part of the nonce that is another one after each start."""
        return self.nonce[:4]

    def identity(self) -> tuple[object, ...]:
        """The values that do not change while a firmware runs."""
        values = (getattr(self, name) for name in _IDENTITY)
        return tuple(value.hex() if isinstance(value, bytes) else value for value in values)

    def require_possible(self) -> None:
        """Raise BoardError for values no firmware sends: loops and buffers here are as long as these numbers."""
        limits = {
            "phase": max(Phase),
            "mode": 1,
            "n_start": self.table_capacity,
            "n": self.n_start,
            "pos": self.n,
            "received": self.n_start,
            "filled": self.replay_capacity,
        }
        for name, limit in limits.items():
            if getattr(self, name) > limit:
                raise _impossible(f"{name} is {getattr(self, name)}, it can be {limit} at most")
        for name, least in {"max_payload": self.n_in + SAMPLE_HEAD, "steps_per_request": 1, "window": 1}.items():
            if getattr(self, name) < least:
                raise _impossible(f"{name} is {getattr(self, name)}, it has to be {least} at least")

    def require_same(self, before: tuple[object, ...]) -> None:
        """Raise BoardError if this is not the board of an earlier `identity`."""
        changed = [
            f"{name} is {now!r}, it was {then!r}"
            for name, now, then in zip(_IDENTITY, self.identity(), before, strict=True)
            if now != then
        ]
        if changed:
            raise BoardError(
                f"the board's identity has changed ({', '.join(changed)}): "
                "does something else use its line, or was it flashed in the meantime?"
            )

    def position(self) -> tuple[int, ...]:
        """Where in the stream the board stands; equal positions of one run are equal states."""
        return (
            self.step,
            self.task,
            self.phase,
            self.mode,
            self.shuffled,
            self.epoch,
            self.pos,
            self.n,
            self.received,
            self.filled,
        )


@dataclass(frozen=True)
class TrainingReply:
    """Reply to `train` and `step`; ``loss``: summed, in nats; ``rolling``: one digest per step."""

    done: int
    epoch: int
    pos: int
    n: int
    phase: int
    wrong: int
    loss: float
    digest: int | None
    rolling: tuple[int, ...]


@dataclass(frozen=True)
class Evaluation:
    """Reply to `evaluate`; ``predicted``: (count,), ``logits``: (count, n_classes) int16."""

    correct: int
    predicted: NDArray[np.uint8]
    logits: NDArray[np.int16]


@dataclass(frozen=True)
class ReplayRecord:
    """Request `replay`: one record for the replay buffer; ``seen``: samples offered to it so far, ``x``: (n_in,)."""

    seen: int
    id: int
    task: int
    label: int
    x: NDArray[np.integer]


@dataclass(frozen=True)
class Digest:
    """Reply to `digest`."""

    state: int
    rolling: int
    step: int


@dataclass(frozen=True)
class Statistics:
    """Reply to `statistics`: counters since the board started, except the saturation and erase counts."""

    forward: int
    backward: int
    replay_read: int
    mask_update: int
    journal_write: int
    digest: int
    training: int
    training_steps: int
    passes: int
    programs: int
    erases: int
    bytes_written: int
    sectors: int
    sectors_free: int
    live_records: int
    erase_min: int
    erase_max: int
    relocated: int
    checkpoints: int
    retired_sectors: int
    lost_records: int
    saturated_activations: int
    saturated_errors: int
    guard_shifts: int
    weights_at_clamp: int
    stack_used: int


PHASE_TICKS = ("forward", "backward", "replay_read", "mask_update", "journal_write", "digest", "training")
"""The tick counters of Statistics, in their order."""


def unpack_hello(data: bytes) -> Hello:
    """Decode a hello reply.  Raises BoardError when it is not one of this protocol."""
    if not data or data[0] != VERSION:
        found = data[0] if data else "none"
        raise BoardError(
            f"the board speaks protocol {found}, these tools speak {VERSION}: "
            "write matching firmware with `sparcl flash`"
        )
    fields = _fields(wire.HELLO, data)
    for name in ("restored", "keyed"):
        fields[name] = bool(fields[name])
    fields["version"] = ".".join(map(str, fields["version"]))
    fields["board"] = fields["board"].rstrip(b"\0").decode("ascii", "replace")
    return Hello(**fields)


def unpack_training(data: bytes) -> TrainingReply:
    """Decode a training reply."""
    at = wire.TRAINING.size
    if len(data) < at:
        raise _malformed("training")
    head = wire.TRAINING.unpack_from(data)
    digest = None
    if head.pop("flags") & DIGEST_FLAG and len(data) >= at + 4:
        digest = _U32.unpack_from(data, at)[0]
        at += 4
    if len(data) != at + 4 * head["done"]:
        raise _malformed("training")
    rolling = struct.unpack_from(f"<{head['done']}I", data, at)
    return TrainingReply(**head | {"loss": head["loss"] / 256}, digest=digest, rolling=rolling)


def unpack_evaluation(data: bytes, count: int, n_classes: int) -> Evaluation:
    """Decode the reply to `evaluate` of ``count`` samples."""
    if len(data) != 1 + count * (1 + 2 * n_classes):
        raise _malformed("evaluate")
    rows = np.frombuffer(data, np.dtype([("class", "u1"), ("logits", "<i2", (n_classes,))]), count, offset=1)
    return Evaluation(data[0], rows["class"], rows["logits"])


def unpack_digest(data: bytes) -> Digest:
    """Decode the reply to `digest`."""
    return Digest(*_unpack(struct.Struct("<III"), data, "digest"))


def unpack_statistics(data: bytes) -> Statistics:
    """Decode the reply to `statistics`."""
    return Statistics(**_fields(wire.STATISTICS, data))


def pack_labelled(labels: Iterable[int], x: NDArray[np.integer]) -> bytes:
    """``count u8, count x (label u8, x)``; ``x``: (count, n_in) uint8 or int8."""
    return bytes([len(x)]) + b"".join(bytes([int(label)]) + row.tobytes() for label, row in zip(labels, x, strict=True))


def pack_steps(ids: Iterable[int], labels: Iterable[int], x: NDArray[np.integer], flags: int) -> bytes:
    """The request `step`: samples in the order of the task table."""
    rows = (
        struct.pack("<HB", int(number), int(label)) + row.tobytes()
        for number, label, row in zip(ids, labels, x, strict=True)
    )
    return bytes([len(x)]) + b"".join(rows) + bytes([flags])


def samples_per_frame(hello: Hello) -> int:
    """Samples of a task that fit into one request."""
    return _at_least_one(min(255, (hello.max_payload - 3) // (1 + hello.n_in)))


def evaluations_per_frame(hello: Hello) -> int:
    """Test samples that fit into one request and its reply."""
    request = (hello.max_payload - 1) // (1 + hello.n_in)
    reply = (_reply_room(hello) - 1) // _prediction_bytes(hello)
    return _at_least_one(min(255, request, max(1, reply)))


def steps_per_frame(hello: Hello) -> int:
    """Training samples that fit into one streamed request and its reply."""
    request = (hello.max_payload - 2) // (3 + hello.n_in)
    reply = (_reply_room(hello) - _training_bytes(0)) // 4
    return _at_least_one(min(255, hello.steps_per_request, request, reply))


def window(hello: Hello, reply: int) -> int:
    """Requests that may be under way when each is answered by ``reply`` bytes: the board has to keep their replies."""
    return max(1, min(hello.window, hello.max_payload // (reply + _kept(hello))))


def _kept(hello: Hello) -> int:
    """Bytes a board needs to keep a reply, besides its payload."""
    return KEPT + (seal.SIZE if hello.keyed else 0)


def _reply_room(hello: Hello) -> int:
    """Bytes of the longest reply of which the board keeps the one before too, where it takes several requests."""
    return hello.max_payload // 2 - _kept(hello) if hello.window > 1 else hello.max_payload


def _prediction_bytes(hello: Hello) -> int:
    return 1 + 2 * hello.n_classes


def _training_bytes(steps: int) -> int:
    return wire.TRAINING.size + 4 + 4 * steps


def hello(link: Link, timeout: float | None = None) -> Hello:
    """Ask the board for its identity and position; from here on the line is used as this board needs it.

    Raises BoardError when it says what cannot be, or is another one than at the hello before.
    """
    seconds = _SECONDS.get(Command.HELLO, _QUICK) if timeout is None else timeout
    state = unpack_hello(link.request(Command.HELLO, timeout=seconds))
    state.require_possible()
    state.require_same(link.identity or state.identity())
    link.identity = state.identity()
    if state.keyed != (link.key is not None):
        raise UserError(
            "the board's firmware has a shared key: set link.key to it"
            if state.keyed
            else "the board's firmware has no shared key, but link.key is set: run `sparcl flash`, or leave it out"
        )
    link.fit(state.max_payload, state.n_in + SAMPLE_HEAD)
    if state.keyed:
        link.seal(state.nonce, state.model_hash, STATE_CHANGING)
    return state


def task_begin(link: Link, classes: Sequence[int], n_samples: int, *, streamed: bool, model_hash: bytes = b"") -> None:
    """Begin a task of ``n_samples`` training samples, made for the model ``model_hash`` (8 bytes)."""
    head = struct.pack("<BHB", int(streamed), n_samples, len(classes))
    _ask(link, Command.TASK_BEGIN, head + bytes(classes) + model_hash)


def _parts(link: Link, first: int, total: int, most: int, each: int) -> Iterator[slice]:
    """Numbers from ``first`` to ``total`` in parts of up to ``most``, as large as the line carries when one is made.

    ``each``: bytes of one in a request or in a reply, whichever is longer.
    """
    while first < total:
        count = max(1, min(most, link.room // each))
        yield slice(first, min(total, first + count))
        first += count


def samples(link: Link, state: Hello, labels: NDArray[np.integer], x: NDArray[np.integer]) -> Iterator[int]:
    """Store the samples of a task that the board does not have yet; after each request, how many it has.

    ``state``: the board's present hello.  ``labels``: (n,), ``x``: (n, n_in), of the whole task.
    """
    under_way: deque[int] = deque()

    def request(part: slice) -> bytes:
        under_way.append(part.stop)
        return struct.pack("<H", part.start) + pack_labelled(labels[part], x[part])

    requests = map(request, _parts(link, state.received, len(x), samples_per_frame(state), 1 + state.n_in))
    for reply in _ask_in_turn(link, Command.SAMPLES, requests, window(state, 2)):
        received = int(_unpack(struct.Struct("<H"), reply, "samples")[0])
        if received != under_way.popleft():
            raise _impossible(f"it counts {received} samples, it was sent another number")
        yield received


def train(link: Link, steps: int, *, digest: bool = True) -> TrainingReply:
    """Train up to ``steps`` steps on stored samples; 0 shuffles the table (streamed mode)."""
    fits = max(1, (link.room - _training_bytes(0)) // 4)
    asked = min(steps, fits)
    request = struct.pack("<HB", asked, int(digest))
    return _trained(_ask(link, Command.TRAIN, request, divisible=True), asked)


def steps(
    link: Link,
    state: Hello,
    ids: NDArray[np.integer],
    labels: NDArray[np.integer],
    x: NDArray[np.integer],
) -> Iterator[TrainingReply]:
    """Train on these samples, which are the next ones of the task table.

    ``ids``, ``labels``: (n,), ``x``: (n, n_in).  The board reports its state
    digest as often as if it trained on stored samples.
    """
    count = steps_per_frame(state)
    under_way: deque[int] = deque()

    def request(part: slice) -> bytes:
        under_way.append(part.stop - part.start)
        due = part.stop >= len(ids) or part.stop // state.steps_per_request > part.start // state.steps_per_request
        return pack_steps(ids[part], labels[part], x[part], DIGEST_FLAG if due else 0)

    requests = map(request, _parts(link, 0, len(ids), count, 3 + state.n_in))
    for reply in _ask_in_turn(link, Command.STEP, requests, window(state, _training_bytes(count))):
        yield _trained(reply, under_way.popleft())


def _trained(reply: bytes, asked: int) -> TrainingReply:
    """The reply to a training request of ``asked`` steps."""
    result = unpack_training(reply)
    if result.done > asked:
        raise _impossible(f"it has trained {result.done} steps, it was asked for {asked}")
    return result


def evaluations(
    link: Link, state: Hello, labels: NDArray[np.integer], x: NDArray[np.integer], n_classes: int
) -> Iterator[Evaluation]:
    """Classify labelled samples; ``labels``: (n,), ``x``: (n, n_in).  The replies cover them in order."""
    count = evaluations_per_frame(state)
    under_way: deque[int] = deque()

    def request(part: slice) -> bytes:
        under_way.append(part.stop - part.start)
        return pack_labelled(labels[part], x[part])

    each = max(1 + state.n_in, _prediction_bytes(state))
    requests = map(request, _parts(link, 0, len(x), count, each))
    places = window(state, 1 + count * _prediction_bytes(state))
    for reply in _ask_in_turn(link, Command.EVALUATE, requests, places):
        yield unpack_evaluation(reply, under_way.popleft(), n_classes)


def predictions(link: Link, state: Hello, x: NDArray[np.integer]) -> Iterator[tuple[int, NDArray[np.int16]]]:
    """Classify samples (n, n_in): of each the class and the logits (n_classes,)."""
    requests = (row.tobytes() for row in x)
    for reply in _ask_in_turn(link, Command.PREDICT, requests, window(state, _prediction_bytes(state))):
        if len(reply) != _prediction_bytes(state):
            raise _malformed("predict")
        yield reply[0], np.frombuffer(reply, "<i2", offset=1)


def replays(link: Link, state: Hello, records: Iterable[ReplayRecord]) -> Iterator[int]:
    """Upload replay records of a task the host trained; after each, the slots in use."""
    requests = (struct.pack("<IHBB", r.seen, r.id, r.task, r.label) + r.x.tobytes() for r in records)
    for reply in _ask_in_turn(link, Command.REPLAY, requests, window(state, 2)):
        filled = int(_unpack(struct.Struct("<H"), reply, "replay")[0])
        if filled > state.replay_capacity:
            raise _impossible(f"{filled} records are in a replay buffer of {state.replay_capacity}")
        yield filled


def task_end(link: Link) -> tuple[int, int]:
    """End the task and save; snapshot number and state digest."""
    snapshot, digest = _unpack(struct.Struct("<II"), _ask(link, Command.TASK_END), "task_end")
    return snapshot, digest


def digest(link: Link) -> Digest:
    """State digest, rolling digest and step."""
    return unpack_digest(_ask(link, Command.DIGEST))


def dump(link: Link, region: int, size: int, max_payload: int) -> bytes:
    """The first ``size`` bytes of a dump region, read in pieces."""
    result = bytearray()
    while len(result) < size:
        piece = max(1, min(size - len(result), max_payload, link.room, 0xFFFF))
        got = _ask(link, Command.DUMP, struct.pack("<HIH", region, len(result), piece), divisible=True)
        if len(got) != piece:
            raise _malformed("dump")
        result += got
    return bytes(result)


def dump_regions(link: Link, model: Model, state: Hello) -> dict[int, bytes]:
    """Every dump region of the board, by number.  ``state``: its present hello."""
    result: dict[int, bytes] = {}
    sizes = region_sizes(model, state.n, state.filled)
    capacities = iter([panel.capacity for _, layer in model.weighted for panel in layer.panels])
    entries = 0
    for region in regions(model):
        size = sizes[region.number]
        if size < 0:
            size *= -entries
        result[region.number] = dump(link, region.number, size, state.max_payload) if size else b""
        if region.name.endswith(".start"):
            entries, most = int(np.frombuffer(result[region.number], f"<u{region.itemsize}")[-1]), next(capacities)
            if entries > most:
                raise _impossible(f"{region.name} counts {entries} entries where there is room for {most}")
    return result


def region_sizes(model: Model, n: int, filled: int) -> dict[int, int]:
    """Bytes of each dump region; negative: bytes per entry of the panel, which `start` counts."""
    sizes = [wire.SCALARS.size + model.n_classes, 2 * n, n, wire.REPLAY_SLOT.size * filled]
    position = position_bytes(model)
    for _, layer in model.weighted:
        for panel in layer.panels:
            sizes += [len(panel.start) * position, len(panel.split) * position, -1, -2 * layer.block]
        if layer.weight is not None:
            sizes.append(2 * layer.weight.size)
        sizes.append(4 * layer.n_pad)
    return {region.number: size for region, size in zip(regions(model), sizes, strict=True)}


def statistics(link: Link) -> Statistics:
    """Counters."""
    return unpack_statistics(_ask(link, Command.STATISTICS))


def save(link: Link) -> int:
    """Write a snapshot to flash; its number."""
    return int(_unpack(_U32, _ask(link, Command.SAVE), "save")[0])


def reset(link: Link, kind: int, patience: float = 20.0) -> Hello:
    """Restart the board (RESTART) or make it forget everything (FACTORY); its hello afterwards."""
    before = hello(link)
    try:
        _ask(link, Command.RESET, reset_request(before, kind))
    except DeviceError as refused:
        # The reply may have been lost, and the board had restarted when the request was sent again.
        restarted = kind == RESTART and refused.status == Status.WRONG_NONCE
        if not restarted or hello(link).start == before.start:
            raise
    return hello(link) if kind == FACTORY else wait_for_hello(link, patience)


def reset_request(state: Hello, kind: int) -> bytes:
    """The request `reset`; ``state``: the board's present hello, for the nonce."""
    return bytes([kind]) + state.nonce


def wait_for_hello(link: Link, patience: float = 20.0) -> Hello:
    """Ask until the board answers, reopening the line where it breaks; LinkError after ``patience`` s.

    Something else than a board is given up earlier; a boot loader may print text before the firmware starts.
    """
    started = time.monotonic()
    while True:
        try:
            return hello(link, _HELLO_SECONDS)
        except (LinkError, DeviceError) as error:
            # A board that finds a flipped bit right now restarts.
            most = min(patience, _BOOT_SECONDS) if isinstance(error, StrangerError) else patience
            late = time.monotonic() - started > most
            if late or (isinstance(error, DeviceError) and error.status != Status.DAMAGED):
                raise
            time.sleep(0.1)


def _ask(link: Link, command: Command, payload: bytes = b"", *, divisible: bool = False) -> bytes:
    return link.request(command, payload, _SECONDS.get(command, _QUICK), divisible=divisible)


def _ask_in_turn(link: Link, command: Command, payloads: Iterable[bytes], places: int) -> Iterator[bytes]:
    """Requests of one kind, several of them under way at once."""
    return link.requests(command, payloads, places, _SECONDS.get(command, _QUICK))


def _unpack(layout: struct.Struct, data: bytes, name: str) -> tuple[Any, ...]:
    if len(data) != layout.size:
        raise _malformed(name)
    return layout.unpack(data)


def _fields(record: Record, data: bytes) -> dict[str, Any]:
    if len(data) != record.size:
        raise _malformed(record.name)
    return record.unpack_from(data)


def _impossible(what: str) -> BoardError:
    return BoardError(
        f"the board reports an impossible value: {what}. Firmware and host tools differ, the board is defective, "
        "or something else uses its line: `sparcl flash`, then `sparcl stream --fresh`"
    )


def _malformed(name: str) -> BoardError:
    return BoardError(
        f"the board's reply to {name} has the wrong length: firmware and host tools differ, run `sparcl flash` again"
    )


def _at_least_one(count: int) -> int:
    if count < 1:
        raise BoardError(
            "one sample does not fit into the board's largest payload: raise link.max_payload of the board"
        )
    return count
