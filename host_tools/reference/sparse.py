# SPDX-License-Identifier: Apache-2.0
"""A sparse layer: panels in storage order, their pruning, growth and gradient mask.

Docs: numerics.md ("Sparse layers: panels", "Backward"), algorithm.md ("Mask
update").  A panel is a list of entries (input, block) in storage order; the
weights themselves live in the layer's dense matrix, so a mask update moves
none of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from generator.artefacts import Layer, Panel
from host_tools.reference.fixed import Ints, shift
from host_tools.reference.layer import Input, LayerState, Positions
from host_tools.reference.prng import Prng

Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class PanelMask:
    """The entries of one panel in storage order; arrays are never written to.

    ``inputs``, ``index``: (entries,) int64, input and block within the panel;
    ``chosen``: (entries,) bool, True for the gradient mask.
    """

    constants: Panel
    inputs: Ints
    index: Ints
    chosen: Flags

    @classmethod
    def of(cls, panel: Panel) -> Self:
        """The mask of an initial panel."""
        inputs = np.repeat(np.arange(panel.split.size), np.diff(panel.start))
        chosen = np.arange(panel.index.size) < panel.split[inputs]
        return cls(panel, inputs.astype(np.int64), panel.index.astype(np.int64), chosen)

    @property
    def entries(self) -> int:
        """Entries now in the panel."""
        return int(self.inputs.size)

    def start(self, n_in: int) -> Ints:
        """First entry of each input and the end, (n_in + 1,) int64."""
        result = np.zeros(n_in + 1, dtype=np.int64)
        np.cumsum(np.bincount(self.inputs, minlength=n_in), out=result[1:])
        return result

    def split(self, n_in: int) -> Ints:
        """First entry of each input outside the gradient mask, (n_in,) int64."""
        counts = np.bincount(self.inputs[self.chosen], minlength=n_in)
        return self.start(n_in)[:-1] + counts

    def used(self, n_in: int) -> Flags:
        """Which (input, block) exist, (n_in, blocks) bool."""
        result = np.zeros((n_in, self.constants.blocks), dtype=np.bool_)
        result[self.inputs, self.index] = True
        return result

    def outputs(self, block: int) -> Ints:
        """Output of every weight in the layer, (entries, block) int64."""
        first = (self.constants.first + self.index) * block
        return first[:, None] + np.arange(block)

    def ordered(self) -> Self:
        """The same entries in storage order: input, gradient mask first, block."""
        order = np.lexsort((self.index, ~self.chosen, self.inputs))
        return replace(self, inputs=self.inputs[order], index=self.index[order], chosen=self.chosen[order])


def pruned(panel: PanelMask, score: Ints, count: int) -> PanelMask:
    """Without the ``count`` entries of least score, (entries,); ties: earlier first."""
    keep = np.ones(panel.entries, dtype=np.bool_)
    keep[np.argsort(score, kind="stable")[: max(count, 0)]] = False
    return replace(panel, inputs=panel.inputs[keep], index=panel.index[keep], chosen=panel.chosen[keep])


def selected(panel: PanelMask, score: Ints, count: int) -> PanelMask:
    """With the ``count`` entries of highest score as gradient mask; ties: earlier first."""
    chosen = np.zeros(panel.entries, dtype=np.bool_)
    chosen[np.argsort(-score, kind="stable")[:count]] = True
    return replace(panel, chosen=chosen).ordered()


def all_selected(panel: PanelMask) -> PanelMask:
    """With every entry in the gradient mask."""
    return replace(panel, chosen=np.ones(panel.entries, dtype=np.bool_)).ordered()


def grown_random(panel: PanelMask, count: int, n_in: int, prng: Prng) -> PanelMask:
    """With ``count`` new entries at random free places, in the gradient mask."""
    used = panel.used(n_in)
    blocks = panel.constants.blocks
    room = (blocks - used.sum(axis=1)).tolist()
    counts = [0] * n_in
    for drawn in prng.draw_below(np.full(count, n_in)).tolist():
        i = drawn
        while room[i] == 0:
            i = (i + 1) % n_in
        room[i] -= 1
        counts[i] += 1
    inputs = [i for i in reversed(range(n_in)) for _ in range(counts[i])]
    index = []
    for i, drawn in zip(inputs, prng.draw_below(np.full(count, blocks)).tolist(), strict=True):
        o = drawn
        while used[i, o]:
            o = (o + 1) % blocks
        used[i, o] = True
        index.append(o)
    return _with(panel, np.array(inputs, dtype=np.int64), np.array(index, dtype=np.int64))


def grown_best(panel: PanelMask, count: int, score: Ints) -> PanelMask:
    """With the ``count`` free places of highest score, (n_in, blocks); ties: lower input, then block."""
    n_in, blocks = score.shape
    ranked = np.where(panel.used(n_in), -1, score).reshape(-1)
    best = np.argsort(-ranked, kind="stable")[:count]
    best = best[ranked[best] >= 0]
    return _with(panel, best // blocks, best % blocks)


def _with(panel: PanelMask, inputs: Ints, index: Ints) -> PanelMask:
    return replace(
        panel,
        inputs=np.concatenate([panel.inputs, inputs]),
        index=np.concatenate([panel.index, index]),
        chosen=np.concatenate([panel.chosen, np.ones(inputs.size, dtype=np.bool_)]),
    ).ordered()


class SparseLayer(LayerState):
    """A layer with masks.

    Caches of the gradient mask in storage order, one value per weight:
    ``_positions`` flat in the matrix, ``_inputs`` and ``_outputs``.
    """

    def __init__(self, layer: Layer, fg: int, sacc: int, *, stochastic: bool, batch: int) -> None:
        super().__init__(layer, fg, sacc, stochastic=stochastic, batch=batch)
        self.panels: tuple[PanelMask, ...] = ()
        masks = tuple(PanelMask.of(panel) for panel in layer.panels)
        for mask, panel in zip(masks, layer.panels, strict=True):
            self.weight[mask.inputs[:, None], mask.outputs(layer.block)] = panel.weight
        self.set_panels(masks)

    def clear_removed(self, before: PanelMask, after: PanelMask) -> None:
        """Set the weights (and accumulators) of the entries pruned from a panel to 0."""
        n_in, block = self.layer.n_in, self.layer.block
        inputs, index = np.nonzero(before.used(n_in) & ~after.used(n_in))
        outputs = ((before.constants.first + index) * block)[:, None] + np.arange(block)
        self.weight[inputs[:, None], outputs] = 0
        if self.sums.size:
            self.sums[inputs[:, None], outputs] = 0

    def panel_weights(self, number: int) -> NDArray[np.int16]:
        """Weights of a panel in storage order, (entries, block) int16."""
        panel = self.panels[number]
        return self.weight[panel.inputs[:, None], panel.outputs(self.layer.block)].astype(np.int16)

    def set_panels(self, panels: tuple[PanelMask, ...]) -> None:
        """Take over new masks; the weights of pruned entries have been cleared before."""
        self.panels = panels
        block = self.layer.block
        inputs = [np.repeat(p.inputs[p.chosen], block) for p in panels]
        outputs = [p.outputs(block)[p.chosen].reshape(-1) for p in panels]
        self._inputs: Positions = np.concatenate(inputs).astype(np.intp)
        self._outputs: Positions = np.concatenate(outputs).astype(np.intp)
        self._positions: Positions = self._inputs * self.layer.n_pad + self._outputs

    def _products(self, x: Input, g: Ints) -> tuple[Positions, NDArray[np.int32]]:
        """Flat positions of the gradient mask at active inputs in storage order, and g[o] x[i]."""
        entries = np.flatnonzero((x.values != 0).take(self._inputs))
        product = g.astype(np.int32).take(self._outputs.take(entries))
        product *= x.values.astype(np.int32).take(self._inputs.take(entries))
        return self._positions.take(entries), product

    def _update_weights(self, x: Input, g: Ints, prng: Prng) -> None:
        positions, product = self._products(x, g)
        self._subtract(positions, self._delta(product, self.su, prng))

    def _accumulate_weights(self, x: Input, g: Ints) -> None:
        positions, product = self._products(x, g)
        self.sums.reshape(-1)[positions] += shift(product.astype(np.int64), self.sacc)

    def _applied(self) -> Positions | None:
        return self._positions
