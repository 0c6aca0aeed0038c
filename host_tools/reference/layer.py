# SPDX-License-Identifier: Apache-2.0
"""What dense and sparse layers share: forward, error, biases, rounding of updates.

A layer keeps its weights as a float64 matrix of exact integers, masked weights
0: every sum of the specification stays below 2^53, so the matrix products are
exact in whatever order they are added up.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

import numpy as np
from numpy.typing import NDArray

from generator.artefacts import Layer
from generator.errors import UserError
from host_tools.reference.fixed import INT16_MAX, INT16_MIN, Counters, Ints, clamp_bias, clamp_weight, shift
from host_tools.reference.prng import Prng

Matrix = NDArray[np.float64]
Positions = NDArray[np.intp]

FEW_ROWS = 4
"""Below one active input in this many pays gathering the rows."""


class Input:
    """Input of a layer: ``values`` (n_in,) int64 and the ascending positions of the non-zero ones."""

    __slots__ = ("active", "values")

    def __init__(self, values: Ints) -> None:
        self.values = values
        self.active: Positions = np.flatnonzero(values)


class LayerState(ABC):
    """One layer while it learns.

    ``weight``: (n_in, n_pad) float64 of integers; ``bias``: (n_pad,) int64;
    ``sums``/``bias_sums``: the batch accumulators ``acc`` and ``bacc``, int64.
    """

    def __init__(self, layer: Layer, fg: int, sacc: int, *, stochastic: bool, batch: int) -> None:
        self.layer = layer
        self.stochastic = stochastic
        self.sacc = sacc if batch > 1 else 0
        self.su = fg + layer.fx - layer.fw
        self.bias_shift = fg - layer.fw - layer.fx
        if not 1 <= self.su - self.sacc <= self.su <= 30:
            raise UserError(f"update shift {self.su} (batch: less {self.sacc}) is not in 1..30: change fw, fx or fg")
        self.weight: Matrix = np.zeros((layer.n_in, layer.n_pad))
        self.bias: Ints = layer.bias.astype(np.int64)
        shape = (layer.n_in, layer.n_pad) if batch > 1 else (0, 0)
        self.sums: Ints = np.zeros(shape, dtype=np.int64)
        self.bias_sums: Ints = np.zeros(layer.n_pad, dtype=np.int64)

    def copy(self) -> Self:
        """Return an independent copy; arrays that are only ever replaced are shared."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.weight = self.weight.copy()
        other.sums = self.sums.copy()
        return other

    def forward(self, x: Input) -> Ints:
        """v = shift(b + x w, fw + fx - fa): outputs before saturation, (n_pad,) int64."""
        layer = self.layer
        if x.active.size * FEW_ROWS < layer.n_in:
            total = x.values[x.active].astype(np.float64) @ self.weight.take(x.active, axis=0)
        else:
            total = x.values.astype(np.float64) @ self.weight
        return shift(total.astype(np.int64) + self.bias, layer.fw + layer.fx - layer.fa)

    def error(self, x: Input, e: Ints, counters: Counters | None) -> Ints:
        """Error of the inputs (backward, step 3): (n_in,) int64, 14 fractional bits."""
        v = shift((self.weight @ e.astype(np.float64)).astype(np.int64), self.layer.fw)
        v *= x.values > 0
        inside = np.minimum(np.maximum(v, INT16_MIN), INT16_MAX)
        if counters is not None:
            counters.saturated_errors += int(np.count_nonzero(inside != v))
        return inside

    def update(self, x: Input, g: Ints, prng: Prng) -> None:
        """Learn from one sample (backward, steps 4 and 5); ``g``: (n_pad,) int64."""
        self._update_weights(x, g, prng)
        self._step_bias(g)

    def accumulate(self, x: Input, g: Ints) -> None:
        """Add one sample of a batch to the accumulators."""
        self._accumulate_weights(x, g)
        self.bias_sums = self.bias_sums + g

    def apply(self, prng: Prng) -> None:
        """Learn from the accumulated batch and clear the accumulators."""
        candidates = self._applied()
        flat = self.sums.reshape(-1)
        values = flat if candidates is None else flat.take(candidates)
        nonzero = np.flatnonzero(values)
        positions = nonzero if candidates is None else candidates.take(nonzero)
        self._subtract(positions, self._delta(values.take(nonzero), self.su - self.sacc, prng))
        flat[positions] = 0
        self._step_bias(self.bias_sums)
        self.bias_sums = np.zeros_like(self.bias_sums)

    def integers(self) -> NDArray[np.int16]:
        """The weight matrix, (n_in, n_pad) int16."""
        return self.weight.astype(np.int16)

    @abstractmethod
    def _update_weights(self, x: Input, g: Ints, prng: Prng) -> None:
        """Backward, step 4."""

    @abstractmethod
    def _accumulate_weights(self, x: Input, g: Ints) -> None:
        """acc += shift(g x, sacc) for the entries step 4 would change."""

    @abstractmethod
    def _applied(self) -> Positions | None:
        """Flat positions in ``weight`` a batch may change, in storage order; None: all."""

    def _step_bias(self, g: Ints) -> None:
        self.bias = clamp_bias(self.bias - shift(g, self.bias_shift), self.layer.blog)

    def _subtract(self, positions: Positions, delta: NDArray[np.signedinteger]) -> None:
        """w = clampw(w - d) at flat positions of the weight matrix."""
        flat = self.weight.reshape(-1)
        flat[positions] = clamp_weight(flat.take(positions) - delta, self.layer.wlog)

    def _delta(self, product: NDArray[np.signedinteger], bits: int, prng: Prng) -> NDArray[np.signedinteger]:
        """Round products down by ``bits``, drawing one number each in order when stochastic.

        int32 products stay int32: |product| <= 2^30 and the addend is below 2^30.
        """
        if not self.stochastic:
            return (product + (1 << (bits - 1))) >> bits
        addend = prng.draw(product.size) >> np.uint32(32 - bits)
        total = addend.view(np.int32).reshape(product.shape) + product
        total >>= bits
        return total
