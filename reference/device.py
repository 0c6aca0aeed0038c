# SPDX-License-Identifier: Apache-2.0
"""The reference as a device: answers the commands of docs/spec/protocol.md.

A refused request changes nothing.  Checks come in this order: length, phase,
then the fields of the request in their order.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np

from sparcl_mcu.reference import mask, network, task, train
from sparcl_mcu.reference import state as states
from sparcl_mcu.reference.replay import Sample, Slot
from sparcl_mcu.reference.state import NO_TASK
from sparcl_mcu.spec.fixed import Counters
from sparcl_mcu.spec.types import Method, Model
from sparcl_mcu.spec.wire import RESIDENT, STREAMED, Command, Phase, Status


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply; ``masked``: bytes of the payload the reference does not know (the snapshot number)."""

    status: int
    payload: bytes = b""
    masked: slice | None = None

    def matches(self, status: int, payload: bytes) -> bool:
        """Whether a device's reply is this one, outside the masked bytes."""
        return status == self.status and self._visible(payload) == self._visible(self.payload)

    def _visible(self, payload: bytes) -> tuple[int, bytes]:
        data = bytearray(payload)
        if self.masked is not None:
            del data[self.masked]
        return len(payload), bytes(data)


class _Refused(Exception):
    """Raised to answer the request with an error code."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.name)
        self.status = status


def _require(condition: bool, status: Status) -> None:
    if not condition:
        raise _Refused(status)


SNAPSHOT = slice(0, 4)
NO_SNAPSHOT = bytes(4)


class Device:
    """The learner behind the protocol.

    ``steps_per_request`` and ``max_payload`` are limits of a board (hello
    reply), needed only to refuse what that board refuses.
    """

    def __init__(self, model: Model, steps_per_request: int = 0xFFFF, max_payload: int = 1 << 30) -> None:
        self.model = model
        self.steps_per_request = steps_per_request
        self.max_payload = max_payload
        self.state = states.State.initial(model)
        self.training_steps = 0
        """Training steps since the start; a factory reset does not clear it."""
        self.nonce: bytes | None = None
        """The board's present one, which a reset needs; None: not known, and not checked."""
        self._passes_before = 0

    def copy(self) -> Self:
        """Return an independent copy (for rollback)."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.state = self.state.copy()
        return other

    def apply(self, command: int, request: bytes) -> Reply | None:
        """Execute one request; None for what the reference does not answer (hello, statistics, restart)."""
        if command in (Command.HELLO, Command.STATISTICS):
            return None
        handler = self._handlers().get(command)
        if handler is None:
            return Reply(Status.UNKNOWN_COMMAND)
        try:
            return handler(request)
        except _Refused as refused:
            return Reply(refused.status)

    def removed(self, number: int) -> list[int]:
        """Ids DDR has removed from task ``number`` so far, in the order of removal."""
        return list(self.state.removed.get(number, []))

    def digest(self) -> int:
        """The state digest."""
        return states.digest(self.state)

    def dump(self) -> dict[int, bytes]:
        """All dump regions by number."""
        return states.dump(self.state)

    @property
    def step(self) -> int:
        """Training samples consumed since the factory state."""
        return self.state.step

    @property
    def rolling(self) -> int:
        """The rolling digest."""
        return self.state.rolling

    @property
    def task(self) -> int:
        """Index of the current task."""
        return self.state.task

    @property
    def phase(self) -> int:
        """Phase code."""
        return int(self.state.phase)

    @property
    def mode(self) -> int:
        """0 resident, 1 streamed."""
        return self.state.mode

    @property
    def shuffled(self) -> bool:
        """Whether the table is in the order of this epoch."""
        return self.state.shuffled

    @property
    def epoch(self) -> int:
        """Epoch of the task."""
        return self.state.epoch

    @property
    def pos(self) -> int:
        """Position in the task table."""
        return self.state.pos

    @property
    def n(self) -> int:
        """Samples still in the table."""
        return self.state.n

    @property
    def n_start(self) -> int:
        """Samples at task begin."""
        return self.state.n_start

    @property
    def received(self) -> int:
        """Samples received of this task (resident)."""
        return self.state.received

    @property
    def filled(self) -> int:
        """Replay slots in use."""
        return self.state.replay.filled

    @property
    def saturated_activations(self) -> int:
        """Counter of the state."""
        return self.state.counters.saturated_activations

    @property
    def saturated_errors(self) -> int:
        """Counter of the state."""
        return self.state.counters.saturated_errors

    @property
    def guard_shifts(self) -> int:
        """Counter of the state."""
        return self.state.counters.guard_shifts

    @property
    def passes(self) -> int:
        """Forward passes in training since the start."""
        return self._passes_before + self.state.passes

    def _handlers(self) -> dict[int, Callable[[bytes], Reply | None]]:
        return {
            Command.TASK_BEGIN: self._task_begin,
            Command.SAMPLES: self._samples,
            Command.TRAIN: self._train,
            Command.STEP: self._step,
            Command.EVALUATE: self._evaluate,
            Command.PREDICT: self._predict,
            Command.REPLAY: self._replay,
            Command.TASK_END: self._task_end,
            Command.DIGEST: self._digest,
            Command.DUMP: self._dump,
            Command.SAVE: self._save,
            Command.RESET: self._reset,
        }

    def _task_begin(self, request: bytes) -> Reply:
        _require(len(request) >= 4, Status.BAD_LENGTH)
        mode, n_samples, n_classes = struct.unpack_from("<BHB", request)
        classes, model_hash = request[4 : 4 + n_classes], request[4 + n_classes :]
        _require(len(classes) == n_classes and len(model_hash) in (0, 8), Status.BAD_LENGTH)
        _require(model_hash in (b"", self.model.model_hash), Status.OTHER_MODEL)
        self._require_phase(Phase.IDLE)
        _require(mode in (RESIDENT, STREAMED) and n_samples > 0, Status.RANGE)
        _require(n_samples <= self.model.learning.table, Status.TOO_MANY)
        _require(n_classes > 0, Status.RANGE)
        _require(all(c < self.model.n_classes for c in classes), Status.BAD_LABEL)
        task.begin(self.state, classes, n_samples, mode)
        mask.grow_between_tasks(self.state)
        return Reply(Status.OK)

    def _samples(self, request: bytes) -> Reply:
        _require(len(request) >= 3, Status.BAD_LENGTH)
        first, count = struct.unpack_from("<HB", request)
        rows = self._rows(request[3:], count, 1)
        state = self.state
        self._require_phase(Phase.FILLING)
        _require(first == state.received, Status.WRONG_ORDER)
        _require(first + count <= state.n_start, Status.TOO_MANY)
        samples = [self._sample(first + k, row[0], row[1:]) for k, row in enumerate(rows)]
        self._require_own_labels(samples)
        state.samples += samples
        state.received += count
        if state.received == state.n_start:
            state.phase = Phase.TRAINING
        return Reply(Status.OK, struct.pack("<H", state.received))

    def _train(self, request: bytes) -> Reply:
        _require(len(request) == 3, Status.BAD_LENGTH)
        steps, flags = struct.unpack("<HB", request)
        state = self.state
        self._require_phase(Phase.TRAINING)
        _require(state.mode == RESIDENT or steps == 0, Status.BAD_STATE)
        _require(steps <= self.steps_per_request and flags <= 1, Status.RANGE)
        if steps == 0:
            task.shuffle(state)
        return self._training_reply(self._run(steps, state.samples.__getitem__), flags)

    def _step(self, request: bytes) -> Reply:
        _require(len(request) >= 2, Status.BAD_LENGTH)
        rows = self._rows(request[1:-1], request[0], 3)
        state = self.state
        self._require_phase(Phase.TRAINING)
        _require(state.mode == STREAMED, Status.BAD_STATE)
        _require(len(rows) <= min(self.steps_per_request, state.n - state.pos), Status.RANGE)
        _require(request[-1] <= 1, Status.RANGE)
        _require(state.shuffled, Status.BAD_STATE)
        samples = [self._sample(int.from_bytes(row[:2], "little"), row[2], row[3:]) for row in rows]
        self._require_own_labels(samples)
        expected = state.table.ids[state.pos : state.pos + len(samples)]
        _require([sample.id for sample in samples] == expected, Status.WRONG_ORDER)
        by_id = {sample.id: sample for sample in samples}
        return self._training_reply(self._run(len(samples), by_id.__getitem__), request[-1])

    def _evaluate(self, request: bytes) -> Reply:
        _require(len(request) >= 1, Status.BAD_LENGTH)
        rows = self._rows(request[1:], request[0], 1)
        _require(1 + len(rows) * (1 + 2 * self.model.n_classes) <= self.max_payload, Status.RANGE)
        _require(all(row[0] < self.model.n_classes for row in rows), Status.BAD_LABEL)
        results = [self._classified(row[1:]) for row in rows]
        correct = sum(result[0] == row[0] for result, row in zip(results, rows, strict=True))
        return Reply(Status.OK, bytes([correct]) + b"".join(results))

    def _predict(self, request: bytes) -> Reply:
        _require(len(request) == self.model.n_in, Status.BAD_LENGTH)
        return Reply(Status.OK, self._classified(request))

    def _replay(self, request: bytes) -> Reply:
        _require(len(request) == 8 + self.model.n_in, Status.BAD_LENGTH)
        seen, identity, number, label = struct.unpack_from("<IHBB", request)
        state = self.state
        self._require_phase(Phase.IDLE)
        _require(state.replay.filled < state.replay.capacity, Status.TOO_MANY)
        _require(number < NO_TASK, Status.RANGE)
        _require(label < self.model.n_classes, Status.BAD_LABEL)
        sample = state.sample(identity, number, label, self._values(request[8:]))
        trace = self._forward(sample)
        kept = trace.z if self.model.learning.method is Method.DERPP else None
        state.replay.slots.append(Slot(sample, kept))
        state.replay.seen = seen
        state.class_task[label] = number
        state.task = max(state.task, number + 1)
        return Reply(Status.OK, struct.pack("<H", state.replay.filled))

    def _task_end(self, request: bytes) -> Reply:
        _require(not request, Status.BAD_LENGTH)
        self._require_phase(Phase.TRAINED)
        task.end(self.state)
        return Reply(Status.OK, NO_SNAPSHOT + struct.pack("<I", self.digest()), SNAPSHOT)

    def _digest(self, request: bytes) -> Reply:
        _require(not request, Status.BAD_LENGTH)
        return Reply(Status.OK, struct.pack("<III", self.digest(), self.rolling, self.step))

    def _dump(self, request: bytes) -> Reply:
        _require(len(request) == 8, Status.BAD_LENGTH)
        number, offset, size = struct.unpack("<HIH", request)
        region = self.dump().get(number)
        if region is None or offset + size > len(region) or size > self.max_payload:
            raise _Refused(Status.RANGE)
        return Reply(Status.OK, region[offset : offset + size])

    def _save(self, request: bytes) -> Reply:
        _require(not request, Status.BAD_LENGTH)
        return Reply(Status.OK, NO_SNAPSHOT, SNAPSHOT)

    def _reset(self, request: bytes) -> Reply | None:
        _require(len(request) == 9, Status.BAD_LENGTH)
        _require(request[0] <= 1, Status.RANGE)
        _require(self.nonce in (None, request[1:]), Status.WRONG_NONCE)
        if request[0] == 0:
            return None
        self._passes_before = self.passes
        self.state = states.State.initial(self.model)
        return Reply(Status.OK)

    def _run(self, steps: int, fetch: Callable[[int], Sample]) -> list[train.Step]:
        """Run up to ``steps`` training steps, not beyond the end of the epoch."""
        done: list[train.Step] = []
        epoch = self.state.epoch
        while len(done) < steps and self.state.epoch == epoch:
            done.append(train.step(self.state, fetch))
            self.training_steps += 1
        return done

    def _training_reply(self, done: list[train.Step], flags: int) -> Reply:
        state = self.state
        wrong, loss = sum(s.wrong for s in done), sum(s.loss for s in done)
        with_digest = flags & 1
        head = (len(done), state.epoch, state.pos, state.n, state.phase, with_digest, wrong, loss)
        payload = struct.pack("<HHHHBBHI", *head)
        if with_digest:
            payload += struct.pack("<I", self.digest())
        return Reply(Status.OK, payload + np.array([s.rolling for s in done], dtype="<u4").tobytes())

    def _classified(self, x: bytes) -> bytes:
        """Class and logits of one input."""
        sample = self.state.sample(0, 0, 0, self._values(x))
        trace = self._forward(sample)
        return bytes([trace.prediction]) + trace.z.astype("<i2").tobytes()

    def _forward(self, sample: Sample) -> network.Trace:
        """A forward pass outside training; what saturates there does not count."""
        return self.state.network.forward(sample.input(), Counters())

    def _rows(self, data: bytes, count: int, extra: int) -> list[bytes]:
        """Cut ``count`` samples of n_in + ``extra`` bytes."""
        size = self.model.n_in + extra
        _require(len(data) == count * size, Status.BAD_LENGTH)
        return [data[k * size : (k + 1) * size] for k in range(count)]

    def _sample(self, identity: int, label: int, x: bytes) -> Sample:
        return self.state.sample(identity, self.state.task, label, self._values(x))

    def _values(self, x: bytes) -> np.ndarray[tuple[int], np.dtype[np.integer]]:
        return np.frombuffer(x, dtype=np.int8 if self.model.signed else np.uint8)

    def _require_phase(self, phase: Phase) -> None:
        _require(self.state.phase is phase, Status.BAD_STATE)

    def _require_own_labels(self, samples: list[Sample]) -> None:
        own = self.state.class_task
        for sample in samples:
            _require(sample.label < own.size and own[sample.label] == self.state.task, Status.BAD_LABEL)
