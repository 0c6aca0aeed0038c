# SPDX-License-Identifier: Apache-2.0
"""A dense layer (docs/spec/numerics.md, "Backward", "Dense").

Without masks it is one panel in which every output is in the gradient mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparcl_mcu.reference.layer import Gradient, Input, Positions, Rules, WeightedLayer
from sparcl_mcu.reference.sparse import PanelMask
from sparcl_mcu.spec.fixed import Counters, Ints, guard, shift
from sparcl_mcu.spec.prng import Prng
from sparcl_mcu.spec.types import Layer

FEW_ROWS = 4
"""Below one active input in this many pays gathering the rows."""


@dataclass(frozen=True, slots=True)
class Factors:
    """A captured step: input ``x`` (n_in,) and output error ``e`` (n_pad,), int64."""

    x: Ints
    e: Ints

    def at(self, positions: Positions) -> Ints:
        """shift(x[i] e[o], 8)."""
        inputs, outputs = np.divmod(positions, self.e.size)
        return shift(self.x[inputs] * self.e[outputs], 8)


class DenseLayer(WeightedLayer):
    """A dense layer; weights (n_in, n_pad)."""

    def __init__(self, layer: Layer, rules: Rules | None) -> None:
        self._inputs: Positions
        self._outputs: Positions
        super().__init__(layer, rules, (layer.n_in, layer.n_pad))

    def forward(self, inputs: Sequence[Input]) -> tuple[Ints, Input]:
        """v = shift(b + x w, fw + fx - fa)."""
        layer, x = self.layer, inputs[0]
        if x.active.size * FEW_ROWS < layer.n_in:
            total = x.values[x.active].astype(np.float64) @ self.weight.take(x.active, axis=0)
        else:
            total = x.values.astype(np.float64) @ self.weight
        v = shift(total.astype(np.int64) + self.bias, layer.fw + layer.fx - layer.fa)
        return v[: layer.n_out], x

    def outputs(self, e: Ints) -> Ints:
        """(n_out,) -> (n_pad,)."""
        pads = self.layer.n_pad - e.size
        return np.concatenate([e, np.zeros(pads, dtype=np.int64)]) if pads else e

    def guarded(self, e: Ints, counters: Counters | None) -> Ints:
        """Step 1."""
        return guard(e, self.layer.l1_err, counters)

    def error(self, kept: Input, e: Ints) -> Ints:
        """Step 3, before saturation."""
        return shift((self.weight @ e.astype(np.float64)).astype(np.int64), self.layer.fw)

    def captured(self, kept: Input, e: Ints) -> Gradient:
        """Input and error."""
        return Factors(kept.values, e)

    def positions(self, lines: Ints, places: Ints) -> Positions:
        """An entry is one input and a block of outputs."""
        layer = self.layer
        inputs, blocks = (places, lines) if layer.by_output else (lines, places)
        first = inputs * layer.n_pad + blocks * layer.block
        return first[..., None] + np.arange(layer.block)

    def stored(self) -> NDArray[np.int16]:
        """(n_in, n_pad)."""
        return self.weight.astype(np.int16)

    def set_panels(self, panels: tuple[PanelMask, ...]) -> None:
        """Take over new masks."""
        super().set_panels(panels)
        self._inputs, self._outputs = np.divmod(self._chosen, self.layer.n_pad)

    def _update_weights(self, kept: Input, e: Ints, g: Ints, prng: Prng) -> None:
        """Step 4."""
        if self.layer.sparse:
            positions, product = self._products(kept, g)
            self._subtract(positions, self._delta(product, self.su, prng))
            return
        delta = self._delta(_outer(kept, g), self.su, prng)
        rows = self.weight.take(kept.active, axis=0) - delta
        limit = float(1 << self.layer.wlog)
        self.weight[kept.active] = np.minimum(np.maximum(rows, -limit, out=rows), limit - 1, out=rows)

    def _accumulate_weights(self, kept: Input, g: Ints) -> None:
        if self.layer.sparse:
            positions, product = self._products(kept, g)
            self.sums.reshape(-1)[positions] += shift(product.astype(np.int64), self.sacc)
        else:
            self.sums[kept.active] += shift(_outer(kept, g).astype(np.int64), self.sacc)

    def _bias_gradient(self, g: Ints) -> Ints:
        return g

    def _products(self, x: Input, g: Ints) -> tuple[Positions, NDArray[np.int32]]:
        """Flat positions of the gradient mask that are visited, in storage order, and g[o] x[i]."""
        visited = (x.values != 0).take(self._inputs)
        if self.layer.by_output:
            alive = (g.reshape(-1, self.layer.block) != 0).any(axis=1).repeat(self.layer.block)
            visited &= alive.take(self._outputs)
        entries = visited.nonzero()[0]
        product = g.astype(np.int32).take(self._outputs.take(entries))
        product *= x.values.astype(np.int32).take(self._inputs.take(entries))
        return self._chosen.take(entries), product


def _outer(x: Input, g: Ints) -> NDArray[np.int32]:
    """g[o] x[i] for the active inputs in order, (active, n_pad) int32."""
    column = x.values[x.active].astype(np.int32)[:, None]
    return column * g.astype(np.int32)
