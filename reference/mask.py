# SPDX-License-Identifier: Apache-2.0
"""Dynamic masks: schedule, captured gradients, scores, mask update (docs/spec/algorithm.md)."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from sparcl_mcu.reference import network
from sparcl_mcu.reference.layer import Gradient, Positions, WeightedLayer
from sparcl_mcu.reference.network import Gradients
from sparcl_mcu.reference.sparse import PanelMask, all_selected, grown_best, grown_random, pruned, selected
from sparcl_mcu.reference.state import State
from sparcl_mcu.spec.fixed import Ints
from sparcl_mcu.spec.types import Growth, Layer, Learning, Op

SCORE_MAX = 65535
GRADIENT_MAX = 1 << 20


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


def capture(state: State, into: list[Gradients], trace: network.Trace, e: Ints) -> None:
    """Keep the gradients of one pass; ``e``: error of the last layer."""
    if len(into) < state.model.learning.capture:
        into.append(state.network.gradients(trace, e))


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of one layer's weights from the captured steps; positions are flat in its weight matrix."""

    learning: Learning
    layer: Layer
    current: tuple[Gradient, ...]
    replay: tuple[Gradient, ...]

    @classmethod
    def of(cls, state: State, number: int) -> Scores:
        """Scores of layer ``number``."""
        captured = state.captured
        return cls(
            state.model.learning,
            state.model.layers[number],
            tuple(g for step in captured.current if (g := step[number]) is not None),
            tuple(g for step in captured.replay if (g := step[number]) is not None),
        )

    def importance(self, weight: Ints, positions: Positions) -> Ints:
        """cwi of entries: ``weight``, ``positions`` (..., block); result (...,)."""
        learning = self.learning
        d, m = (self._unit(_total(steps, positions)) for steps in (self.current, self.replay))
        return self._entry(np.abs(weight) + ((learning.alpha_q8 * d + learning.beta_q8 * m) >> 8))

    def gradient(self, positions: Positions) -> Ints:
        """cgi of entries: ``positions`` (..., block); result (...,)."""
        learning = self.learning
        d, m = (np.minimum(np.abs(_total(s, positions)), GRADIENT_MAX) for s in (self.current, self.replay))
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


def _total(steps: tuple[Gradient, ...], positions: Positions) -> Ints:
    """gD or gM."""
    total: Ints = np.zeros(positions.shape, dtype=np.int64)
    for step in steps:
        total += step.at(positions)
    return total


def update(state: State) -> None:
    """Mask update of every sparse layer and panel in order."""
    for number, layer in state.network.weighted:
        if layer.layer.sparse:
            scores = Scores.of(state, number)
            layer.set_panels(tuple(_updated(state, layer, panel, scores) for panel in layer.panels))
    state.grown = False
    state.captured.clear()


def _updated(state: State, layer: WeightedLayer, panel: PanelMask, scores: Scores) -> PanelMask:
    learning, constants = state.model.learning, panel.constants
    kept = panel
    if learning.tdm:
        positions = layer.entries(panel)
        importance = scores.importance(layer.weight.reshape(-1).take(positions).astype(np.int64), positions)
        kept = pruned(panel, importance, constants.swap + panel.entries - constants.nnz)
        layer.clear_removed(panel, kept)
        panel = _grown(state, layer, kept, scores)
    if not learning.dgm:
        return all_selected(panel)
    score = scores.gradient(layer.entries(panel))
    if layer.layer.op is Op.CONV and learning.growth is Growth.RANDOM:
        # Gradient sums are kept only of weights that exist: those of a new one are 0.
        score = score * kept.used()[panel.lines, panel.index]
    return selected(panel, score, constants.grad)


def _grown(state: State, layer: WeightedLayer, panel: PanelMask, scores: Scores) -> PanelMask:
    """Grow SWAP entries as the configuration says."""
    constants = panel.constants
    if constants.swap == 0:
        return panel
    if state.model.learning.growth is Growth.RANDOM:
        return grown_random(panel, constants.swap, state.choices)
    return grown_best(panel, constants.swap, scores.gradient(layer.places(constants)))


def grow_between_tasks(state: State) -> None:
    """Inter-task growth at task begin; not while an earlier growth has not been shrunk back."""
    if not state.model.learning.tdm or state.task == 0 or state.grown:
        return
    for _, layer in state.network.weighted:
        if any(p.constants.grow_inter for p in layer.panels):
            layer.set_panels(tuple(grown_random(p, p.constants.grow_inter, state.choices) for p in layer.panels))
            state.grown = True
