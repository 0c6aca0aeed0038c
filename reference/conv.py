# SPDX-License-Identifier: Apache-2.0
"""A convolution (docs/spec/numerics.md, "Backward", "Convolution").

What lies under the kernel is gathered once per pass into columns, (groups,
kernel positions, positions of the output); a depthwise convolution has a group
for each input channel, every other one group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparcl_mcu.reference.layer import Gradient, Input, Matrix, Positions, Rules, WeightedLayer
from sparcl_mcu.reference.sparse import PanelMask
from sparcl_mcu.spec.fixed import Counters, Ints, shift
from sparcl_mcu.spec.prng import Prng
from sparcl_mcu.spec.types import Layer, Tensor


@dataclass(frozen=True, slots=True)
class GradientSums:
    """A captured step: its part of GD or GM, (n_pad, n_in) int64."""

    sums: Ints

    def at(self, positions: Positions) -> Ints:
        """The gradient of single weights."""
        return self.sums.reshape(-1).take(positions)


def under_window(layer: Layer, source: Tensor) -> Positions:
    """Which input lies under each place of the window at each position of the output.

    (channels, window rows * columns, output rows * columns) flat in the source without
    margins; ``source.values``: outside of it.
    """
    window, out = layer.window, layer.out
    assert window is not None, "a window is what convolution and pooling have in common"
    kernel = np.arange(window.area)[:, None]
    at = np.arange(out.height * out.width)
    row = at // out.width * window.stride_h + kernel // window.kernel_w - window.top
    column = at % out.width * window.stride_w + kernel % window.kernel_w - window.left
    inside = (row >= 0) & (row < source.height) & (column >= 0) & (column < source.width)
    plane = source.height * source.width
    channel = np.arange(source.channels)[:, None, None] * plane
    return np.where(inside, channel + row * source.width + column, source.values).astype(np.intp)


class ConvLayer(WeightedLayer):
    """A convolution; weights (n_pad, n_in), n_in its kernel positions."""

    def __init__(self, layer: Layer, source: Tensor, rules: Rules | None) -> None:
        self._updated: Positions
        self._channels: Positions
        super().__init__(layer, rules, (layer.n_pad, layer.n_in))
        groups = source.channels if layer.multiplier else 1
        self.source = source
        self._under = under_window(layer, source).reshape(groups, layer.n_in, -1)
        self._kernels = (groups, layer.n_out // groups, layer.n_in)
        self._outputs = (groups, layer.n_out // groups, layer.out.height * layer.out.width)
        if not layer.sparse:
            self._set_updated(np.arange(layer.n_out * layer.n_in))

    def forward(self, inputs: Sequence[Input]) -> tuple[Ints, Matrix]:
        """v = shift(b + w columns, fw + fx - fa); keeps the columns."""
        layer = self.layer
        columns = inputs[0].extended(0).astype(np.float64).take(self._under)
        total = (self._matrices() @ columns).astype(np.int64).reshape(layer.n_out, -1)
        total += self.bias[: layer.n_out, None]
        return shift(total, layer.fw + layer.fx - layer.fa).reshape(-1), columns

    def outputs(self, e: Ints) -> Ints:
        """(values,) -> (n_out, positions)."""
        return e.reshape(self.layer.n_out, -1)

    def guarded(self, e: Ints, counters: Counters | None) -> Ints:
        """A convolution has no norm guard."""
        return e

    def error(self, kept: Matrix, e: Ints) -> Ints:
        """Step 2, before saturation."""
        layer, limit = self.layer, 1 << self.layer.elog
        clamped = np.minimum(np.maximum(shift(e, layer.ke), -limit), limit - 1)
        spread = self._matrices().transpose(0, 2, 1) @ clamped.astype(np.float64).reshape(self._outputs)
        total = np.bincount(self._under.reshape(-1), spread.reshape(-1), minlength=self.source.values + 1)
        return shift(total[:-1].astype(np.int64), layer.fw - layer.ke)

    def captured(self, kept: Matrix, e: Ints) -> Gradient:
        """shift(sum of shift(e, kc) x, 8 - kc)."""
        layer = self.layer
        sums = np.zeros((layer.n_pad, layer.n_in), dtype=np.int64)
        sums[: layer.n_out] = shift(self._products(kept, shift(e, layer.kc)), 8 - layer.kc)
        return GradientSums(sums)

    def positions(self, lines: Ints, places: Ints) -> Positions:
        """Line: block of outputs; place: kernel position."""
        block = self.layer.block
        outputs = lines[..., None] * block + np.arange(block)
        return outputs * self.layer.n_in + places[..., None]

    def stored(self) -> NDArray[np.int16]:
        """(n_out, n_in)."""
        return self.weight[: self.layer.n_out].astype(np.int16)

    def set_panels(self, panels: tuple[PanelMask, ...]) -> None:
        """Take over new masks."""
        super().set_panels(panels)
        self._set_updated(self._chosen[self._chosen < self.layer.n_out * self.layer.n_in])

    def _set_updated(self, positions: Positions) -> None:
        """Set the weights to update, in order, and the output channel of each."""
        self._updated = positions
        self._channels = positions // self.layer.n_in

    def _update_weights(self, kept: Matrix, e: Ints, g: Ints, prng: Prng) -> None:
        """Step 3."""
        positions = self._updated[e.any(axis=1).take(self._channels)]
        if positions.size:
            products = self._products(kept, g).reshape(-1).take(positions)
            self._subtract(positions, self._delta(products, self.su, prng))

    def _accumulate_weights(self, kept: Matrix, g: Ints) -> None:
        products = self._products(kept, g).reshape(-1).take(self._updated)
        self.sums.reshape(-1)[self._updated] += shift(products, self.sacc)

    def _bias_gradient(self, g: Ints) -> Ints:
        """Step 4: the sum over all positions."""
        sums = np.zeros(self.layer.n_pad, dtype=np.int64)
        sums[: self.layer.n_out] = g.sum(axis=1)
        return sums

    def _applied(self) -> Positions:
        return self._updated

    def _matrices(self) -> Matrix:
        """The weights by group, (groups, outputs of a group, n_in)."""
        return self.weight[: self.layer.n_out].reshape(self._kernels)

    def _products(self, columns: Matrix, g: Ints) -> Ints:
        """sum over p of g[o, p] x[i @ p], (n_out, n_in)."""
        sums = g.astype(np.float64).reshape(self._outputs) @ columns.transpose(0, 2, 1)
        return sums.astype(np.int64).reshape(self.layer.n_out, self.layer.n_in)
