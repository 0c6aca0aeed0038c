# SPDX-License-Identifier: Apache-2.0
"""Dynamic masks: schedule, captured gradient factors, scores, mask update (docs/algorithm.md)."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from generator.artefacts import Growth, Layer, Learning
from host_tools.reference import network
from host_tools.reference.fixed import Ints, shift
from host_tools.reference.sparse import (
    PanelMask,
    SparseLayer,
    all_selected,
    grown_best,
    grown_random,
    pruned,
    selected,
)

if TYPE_CHECKING:
    from host_tools.reference.state import State

Factors = tuple[tuple[Ints, Ints], ...]
"""Per layer: input (n_in,) and output error (n_pad,) of one captured pass, int64."""

SCORE_MAX = 65535
GRADIENT_MAX = 1 << 20


@dataclass(slots=True)
class Captured:
    """Captured factors: ``current`` is D, ``replay`` is M of the specification."""

    current: list[Factors] = field(default_factory=list)
    replay: list[Factors] = field(default_factory=list)

    def copy(self) -> Captured:
        """Return an independent copy."""
        return Captured(list(self.current), list(self.replay))

    def clear(self) -> None:
        """Forget all factors."""
        self.current = []
        self.replay = []


@lru_cache(maxsize=64)
def update_positions(n: int, updates: int) -> tuple[int, ...]:
    """Positions floor(j n / updates), j = 1..updates, after which masks change."""
    return tuple(j * n // updates for j in range(1, updates + 1))


def next_update(state: State, position: int) -> int | None:
    """The first position after ``position`` in this epoch at which an update is due."""
    learning = state.model.learning
    if not state.masks_change or (state.epoch + 1) % learning.update_every_epochs:
        return None
    due = update_positions(state.n, learning.updates_per_epoch)
    at = bisect_right(due, position)
    if at == len(due) or (due[at] == state.n and state.epoch + 1 == learning.epochs):
        return None
    return due[at]


def is_due(state: State) -> bool:
    """Whether an update is due at ``state.pos`` (after the step that made it)."""
    return next_update(state, state.pos - 1) == state.pos


def in_window(state: State) -> bool:
    """Whether the step at ``state.pos`` lies in a capture window."""
    due = next_update(state, state.pos)
    return due is not None and due - state.model.learning.capture <= state.pos


def capture(state: State, into: list[Factors], trace: network.Trace, e: Ints) -> None:
    """Keep the inputs and errors of one pass; ``e``: error of the last layer."""
    if len(into) >= state.model.learning.capture:
        return
    outputs = network.errors(state.layers, trace, e)
    into.append(tuple((x.values, error) for x, error in zip(trace.inputs, outputs, strict=True)))


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of one layer's weights from the captured factors."""

    learning: Learning
    layer: Layer
    current: tuple[tuple[Ints, Ints], ...]
    replay: tuple[tuple[Ints, Ints], ...]

    @classmethod
    def of(cls, state: State, number: int) -> Scores:
        """The factors of layer ``number``."""
        captured = state.captured
        return cls(
            state.model.learning,
            state.model.layers[number],
            tuple(f[number] for f in captured.current),
            tuple(f[number] for f in captured.replay),
        )

    def importance(self, weight: Ints, inputs: Ints, outputs: Ints) -> Ints:
        """cwi of blocks: ``weight``, ``outputs`` (..., block), ``inputs`` (..., 1); result (...,)."""
        learning = self.learning
        d = self._unit(_gradient(self.current, inputs, outputs))
        m = self._unit(_gradient(self.replay, inputs, outputs))
        return self._entry(np.abs(weight) + ((learning.alpha_q8 * d + learning.beta_q8 * m) >> 8))

    def gradient(self, inputs: Ints, outputs: Ints) -> Ints:
        """cgi of blocks: ``outputs`` (..., block), ``inputs`` (..., 1); result (...,)."""
        learning = self.learning
        d = np.minimum(np.abs(_gradient(self.current, inputs, outputs)), GRADIENT_MAX)
        m = np.minimum(np.abs(_gradient(self.replay, inputs, outputs)), GRADIENT_MAX)
        return self._entry((learning.alpha_q8 * d + learning.beta_q8 * m) >> 8)

    def _unit(self, v: Ints) -> Ints:
        """The gradient in units of the weight."""
        layer = self.layer
        right = layer.fx + 6 - layer.fw + self.learning.capture.bit_length() - 1
        size: Ints = np.abs(v) >> max(right, 0) << max(-right, 0)
        return np.minimum(size, SCORE_MAX)

    def _entry(self, weights: Ints) -> Ints:
        """Score of an entry from those of its block."""
        mean: Ints = weights.sum(axis=-1) >> (self.layer.block.bit_length() - 1)
        return np.minimum(mean, SCORE_MAX)


def _gradient(factors: tuple[tuple[Ints, Ints], ...], inputs: Ints, outputs: Ints) -> Ints:
    """Sum of shift(x[i] e[o], 8) over the factors, broadcast."""
    total: Ints = np.zeros(np.broadcast_shapes(inputs.shape, outputs.shape), dtype=np.int64)
    for x, e in factors:
        total += shift(x[inputs] * e[outputs], 8)
    return total


def update(state: State) -> None:
    """Mask update of every sparse layer and panel in order."""
    for number, layer in enumerate(state.layers):
        if isinstance(layer, SparseLayer):
            scores = Scores.of(state, number)
            layer.set_panels(tuple(_updated(state, layer, panel, scores) for panel in layer.panels))
    state.grown = False
    state.captured.clear()


def _updated(state: State, layer: SparseLayer, panel: PanelMask, scores: Scores) -> PanelMask:
    learning, constants, block = state.model.learning, panel.constants, layer.layer.block
    if learning.tdm:
        inputs, outputs = panel.inputs[:, None], panel.outputs(block)
        weight = layer.weight[inputs, outputs].astype(np.int64)
        importance = scores.importance(weight, inputs, outputs)
        kept = pruned(panel, importance, constants.swap + panel.entries - constants.nnz)
        layer.clear_removed(panel, kept)
        panel = _grown(state, layer, kept, scores)
    if learning.dgm:
        return selected(panel, scores.gradient(panel.inputs[:, None], panel.outputs(block)), constants.grad)
    return all_selected(panel)


def _grown(state: State, layer: SparseLayer, panel: PanelMask, scores: Scores) -> PanelMask:
    """Grow SWAP entries as the configuration says."""
    constants, n_in, block = panel.constants, layer.layer.n_in, layer.layer.block
    if constants.swap == 0:
        return panel
    if state.model.learning.growth is Growth.RANDOM:
        return grown_random(panel, constants.swap, n_in, state.prng)
    columns = np.arange(constants.first * block, (constants.first + constants.blocks) * block)
    places = scores.gradient(np.arange(n_in)[:, None, None], columns.reshape(1, -1, block))
    return grown_best(panel, constants.swap, places)


def grow_between_tasks(state: State) -> None:
    """Inter-task growth at task begin; not while an earlier growth has not been shrunk back."""
    if not state.model.learning.tdm or state.task == 0 or state.grown:
        return
    for layer in state.layers:
        if isinstance(layer, SparseLayer) and any(p.constants.grow_inter for p in layer.panels):
            n_in = layer.layer.n_in
            layer.set_panels(tuple(grown_random(p, p.constants.grow_inter, n_in, state.prng) for p in layer.panels))
            state.grown = True
