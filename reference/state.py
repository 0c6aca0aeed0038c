# SPDX-License-Identifier: Apache-2.0
"""The learner's state, its digest and its dump regions (docs/spec/algorithm.md, "State", "State digest")."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from sparcl_mcu.reference import network as networks
from sparcl_mcu.reference.history import Bits, History
from sparcl_mcu.reference.layer import Node
from sparcl_mcu.reference.network import Gradients
from sparcl_mcu.reference.replay import Replay, Sample
from sparcl_mcu.spec import wire
from sparcl_mcu.spec.choices import shuffled
from sparcl_mcu.spec.fixed import Counters, Ints
from sparcl_mcu.spec.prng import MASK, Prng
from sparcl_mcu.spec.types import Model, SingleHead, position_bytes, regions
from sparcl_mcu.spec.wire import RESIDENT, Phase

NO_TASK = 255


@dataclass(slots=True)
class Table:
    """Samples still in the task in the order of the epoch; lists of equal length."""

    ids: list[int] = field(default_factory=list)
    scores: list[int] = field(default_factory=list)

    def copy(self) -> Table:
        """Return an independent copy."""
        return Table(list(self.ids), list(self.scores))

    def shuffle(self, prng: Prng) -> None:
        """Shuffle the table."""
        chosen = shuffled(len(self.ids), prng)
        self.ids = [self.ids[i] for i in chosen]
        self.scores = [self.scores[i] for i in chosen]

    def remove_least(self, count: int) -> list[int]:
        """Remove the entries of least score, ties: earlier first; return their ids."""
        order: Ints = np.argsort(np.array(self.scores, dtype=np.int64), kind="stable")
        gone = set(order[:count].tolist())
        removed = [self.ids[i] for i in sorted(gone)]
        kept = [i for i in range(len(self.ids)) if i not in gone]
        self.ids = [self.ids[i] for i in kept]
        self.scores = [self.scores[i] for i in kept]
        return removed


@dataclass(slots=True)
class Captured:
    """Captured steps: ``current`` is D, ``replay`` is M of the specification."""

    current: list[Gradients] = field(default_factory=list)
    replay: list[Gradients] = field(default_factory=list)

    def copy(self) -> Captured:
        """Return an independent copy."""
        return Captured(list(self.current), list(self.replay))

    def clear(self) -> None:
        """Forget all steps."""
        self.current = []
        self.replay = []


@dataclass
class State:
    """The complete state of the device.  ``class_task``: (n_classes,) uint8; names as in docs/spec/algorithm.md."""

    model: Model
    choices: Prng
    rounding: Prng
    network: networks.Network
    """The layers that learn."""
    prefix: networks.Prefix | None
    """The frozen layers, if there are any."""
    class_task: NDArray[np.uint8]
    replay: Replay
    step: int = 0
    rolling: int = 0
    task: int = 0
    phase: Phase = Phase.IDLE
    mode: int = RESIDENT
    epoch: int = 0
    pos: int = 0
    shuffled: bool = False
    received: int = 0
    n_start: int = 0
    grown: bool = False
    counters: Counters = field(default_factory=Counters)
    captured: Captured = field(default_factory=Captured)
    table: Table = field(default_factory=Table)
    samples: list[Sample] = field(default_factory=list)
    """Samples of a resident task by id."""
    removed: dict[int, list[int]] = field(default_factory=dict)
    """Ids DDR removed, by task, in the order of removal."""
    histories: dict[int, History] = field(default_factory=dict)
    """Histories of learning, by task (not part of the digest)."""
    passes: int = 0
    """Forward passes in training (not part of the digest)."""

    @classmethod
    def initial(cls, model: Model) -> Self:
        """The factory state."""
        return cls(
            model=model,
            choices=Prng(model.learning.seed),
            rounding=Prng(~model.learning.seed),
            network=networks.learning_network(model),
            prefix=networks.Prefix(model) if model.latent else None,
            class_task=np.full(model.n_classes, NO_TASK, dtype=np.uint8),
            replay=Replay(model.learning.capacity),
        )

    def copy(self) -> Self:
        """Return an independent copy; immutable parts are shared."""
        return replace(
            self,
            choices=Prng(self.choices.state),
            rounding=Prng(self.rounding.state),
            network=self.network.copy(),
            class_task=self.class_task.copy(),
            replay=self.replay.copy(),
            counters=self.counters.copy(),
            captured=self.captured.copy(),
            table=self.table.copy(),
            samples=list(self.samples),
            removed={task: list(ids) for task, ids in self.removed.items()},
            # Histories of tasks that have ended no longer change.
            histories={task: x.copy() if task == self.task else x for task, x in self.histories.items()},
        )

    @property
    def layers(self) -> tuple[Node, ...]:
        """The layers that learn."""
        return self.network.layers

    @property
    def n(self) -> int:
        """Samples still in the table."""
        return len(self.table.ids)

    @property
    def masks_change(self) -> bool:
        """Whether mask updates take place at all."""
        learning = self.model.learning
        return (learning.tdm or learning.dgm) and any(layer.sparse for layer in self.model.layers)

    def masks(self) -> dict[int, Bits]:
        """The entries of sparse layers that exist, as ``History`` keeps them."""
        return {
            number: np.packbits(np.concatenate([panel.used().reshape(-1) for panel in layer.panels]))
            for number, layer in self.network.weighted
            if layer.layer.sparse
        }

    def sample(self, identity: int, task: int, label: int, x: NDArray[np.integer]) -> Sample:
        """The record of a sample that arrives, (n_in,) 8 bit: with its latent, if there is a prefix."""
        if self.prefix is None:
            return Sample(identity, task, label, x, x)
        latent = self.prefix.latent(x)
        return Sample(identity, task, label, latent if self.model.latent_stored else x, latent)

    def classes(self, *heads: SingleHead) -> Ints:
        """The task's own classes if SINGLE_HEAD is one of ``heads``, else all."""
        if self.model.learning.single_head in heads:
            return np.flatnonzero(self.class_task == self.task)
        return np.arange(self.model.n_classes)


def digest(state: State) -> int:
    """The state digest: CRC-32 over ``parts``."""
    result = 0
    for part in parts(state):
        result = zlib.crc32(part, result)
    return result


def parts(state: State) -> Iterator[bytes]:
    """The bytes of the state digest in order."""
    yield scalars(state)
    yield from _layers(state)
    yield _table_ids(state)
    yield _table_scores(state)
    for slot in state.replay.slots:
        yield struct.pack("<II", slot.sample.crc, slot.logits_crc)


def dump(state: State) -> dict[int, bytes]:
    """All dump regions by number (docs/spec/protocol.md, "Dump regions")."""
    contents = [scalars(state), _table_ids(state), _table_scores(state), _replay(state), *_layers(state)]
    return {region.number: data for region, data in zip(regions(state.model), contents, strict=True)}


def scalars(state: State) -> bytes:
    """The scalars and class_task."""
    c = state.counters
    values = {
        "choices": state.choices.state,
        "rounding": state.rounding.state,
        "step": state.step & MASK,
        "seen": state.replay.seen,
        "rolling": state.rolling,
        "task": state.task,
        "phase": state.phase,
        "mode": state.mode,
        "grown": state.grown,
        "epoch": state.epoch,
        "pos": state.pos,
        "n_start": state.n_start,
        "n": state.n,
        "filled": state.replay.filled,
        "received": state.received,
        "captured_d": len(state.captured.current),
        "captured_m": len(state.captured.replay),
        "shuffled": state.shuffled,
        "pad": 0,
        "saturated_activations": c.saturated_activations & MASK,
        "saturated_errors": c.saturated_errors & MASK,
        "guard_shifts": c.guard_shifts & MASK,
    }
    return wire.SCALARS.pack(**values) + state.class_task.tobytes()


def _table_ids(state: State) -> bytes:
    return np.array(state.table.ids, dtype="<u2").tobytes()


def _table_scores(state: State) -> bytes:
    return bytes(state.table.scores)


def _replay(state: State) -> bytes:
    rows = ((s.sample, s.logits_crc) for s in state.replay.slots)
    return b"".join(wire.REPLAY_SLOT.layout.pack(s.id, s.task, s.label, s.crc, crc) for s, crc in rows)


def _layers(state: State) -> Iterator[bytes]:
    position = f"<u{position_bytes(state.model)}"
    for _, layer in state.network.weighted:
        for number, panel in enumerate(layer.panels):
            yield panel.start().astype(position).tobytes()
            yield panel.split().astype(position).tobytes()
            yield panel.index.astype("<u1").tobytes()
            yield layer.panel_weights(number).astype("<i2").tobytes()
        if not layer.layer.sparse:
            yield layer.stored().astype("<i2").tobytes()
        yield layer.bias.astype("<i4").tobytes()
