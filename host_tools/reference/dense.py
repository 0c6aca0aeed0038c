# SPDX-License-Identifier: Apache-2.0
"""A dense layer: one panel in which every output is in the gradient mask (docs/numerics.md)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from generator.artefacts import Layer
from host_tools.reference.fixed import Ints, clamp_weight, shift
from host_tools.reference.layer import Input, LayerState, Positions
from host_tools.reference.prng import Prng


class DenseLayer(LayerState):
    """A layer without masks."""

    def __init__(self, layer: Layer, fg: int, sacc: int, *, stochastic: bool, batch: int) -> None:
        super().__init__(layer, fg, sacc, stochastic=stochastic, batch=batch)
        assert layer.weight is not None, "a dense layer has a weight matrix"
        self.weight[...] = layer.weight

    def _products(self, x: Input, g: Ints) -> NDArray[np.int32]:
        """g[o] x[i] for the active inputs in order, (active, n_pad) int32."""
        column = x.values[x.active].astype(np.int32)[:, None]
        return column * g.astype(np.int32)

    def _update_weights(self, x: Input, g: Ints, prng: Prng) -> None:
        delta = self._delta(self._products(x, g), self.su, prng)
        rows = self.weight.take(x.active, axis=0)
        rows -= delta
        self.weight[x.active] = clamp_weight(rows, self.layer.wlog)

    def _accumulate_weights(self, x: Input, g: Ints) -> None:
        self.sums[x.active] += shift(self._products(x, g).astype(np.int64), self.sacc)

    def _applied(self) -> Positions | None:
        return None
