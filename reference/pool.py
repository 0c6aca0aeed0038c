# SPDX-License-Identifier: Apache-2.0
"""Layers without weights: pooling, addition, padding (docs/spec/numerics.md, "Forward" and "Other layers").

Tensors of the reference have no margins, so all that padding does here is to
turn a sample from (row, column, channel) to channel first.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np

from sparcl_mcu.reference.conv import under_window
from sparcl_mcu.reference.layer import Input, Node, Positions
from sparcl_mcu.spec.fixed import INT16_MAX, INT16_MIN, Ints, sat16, shift
from sparcl_mcu.spec.types import Layer, Tensor

BELOW_ALL = -(1 << 40)
"""Less than any value of a tensor."""


def add_saturating(start: Ints, at: Positions, values: Ints) -> Ints:
    """start[at[k]] = sat16(start[at[k]] + values[k]) for k in order; ``start`` (n,), a new array is returned.

    Order matters only where a sum may saturate on the way.
    """
    size = start.size
    result = start + np.bincount(at, values, size).astype(np.int64)
    most = np.abs(start) + np.bincount(at, np.abs(values), size).astype(np.int64)
    risky = most > INT16_MAX
    if risky.any():
        result[risky] = start[risky]
        for k in np.flatnonzero(risky[at]).tolist():
            result[at[k]] = min(max(int(result[at[k]]) + int(values[k]), INT16_MIN), INT16_MAX)
    return result


class Spreading(Node):
    """A layer that only passes errors on."""

    @abstractmethod
    def spread(self, kept: Positions | None, e: Ints, before: Ints | None, size: int) -> Ints:
        """The error of an input of ``size`` values with what the output's error ``e`` contributes.

        ``before``: that error so far, None if nothing has contributed.
        """


class MaxPool(Spreading):
    """The greatest value under the window; keeps where it was."""

    def __init__(self, layer: Layer, source: Tensor) -> None:
        super().__init__(layer)
        under = under_window(layer, source)
        self._under = under.transpose(0, 2, 1).reshape(-1, under.shape[1])
        self._outputs = np.arange(len(self._under))

    def forward(self, inputs: Sequence[Input]) -> tuple[Ints, Positions]:
        """Take the greatest value under the window; the first one on ties."""
        values = inputs[0].extended(BELOW_ALL).take(self._under)
        first = values.argmax(axis=1)
        return values[self._outputs, first], self._under[self._outputs, first]

    def spread(self, kept: Positions | None, e: Ints, before: Ints | None, size: int) -> Ints:
        """Pass each error on to the greatest value under its window."""
        assert kept is not None
        return add_saturating(_started(before, size), kept, e)


class AveragePool(Spreading):
    """The rounded mean of the values under the window."""

    def __init__(self, layer: Layer, source: Tensor) -> None:
        super().__init__(layer)
        under = under_window(layer, source)
        self._under = under.transpose(0, 2, 1).reshape(-1, under.shape[1])
        inside = self._under < source.values
        self._count: Ints = inside.sum(axis=1)
        self._targets = self._under[inside]
        self._origin = np.nonzero(inside)[0]

    def forward(self, inputs: Sequence[Input]) -> tuple[Ints, None]:
        """floor((2 S + n) / (2 n))."""
        return self._mean(inputs[0].extended(0).take(self._under).sum(axis=1)), None

    def spread(self, kept: Positions | None, e: Ints, before: Ints | None, size: int) -> Ints:
        """Spread each error evenly over the values under its window."""
        return add_saturating(_started(before, size), self._targets, self._mean(e).take(self._origin))

    def _mean(self, total: Ints) -> Ints:
        return (2 * total + self._count) // (2 * self._count)


class Add(Spreading):
    """The sum of the inputs in the output's format; ``fractions``: those of the inputs."""

    def __init__(self, layer: Layer, fractions: Sequence[int]) -> None:
        super().__init__(layer)
        self._shifts = [fraction - layer.fa for fraction in fractions]

    def forward(self, inputs: Sequence[Input]) -> tuple[Ints, None]:
        """Add the inputs, each rounded on its own."""
        v = np.zeros(inputs[0].values.size, dtype=np.int64)
        for x, s in zip(inputs, self._shifts, strict=True):
            v += shift(x.values, s)
        return v, None

    def spread(self, kept: Positions | None, e: Ints, before: Ints | None, size: int) -> Ints:
        """Pass the error on unchanged."""
        return e if before is None else sat16(before + e)


class Pad(Spreading):
    """A copy; ``turned``: of a sample of this shape that lies (row, column, channel)."""

    def __init__(self, layer: Layer, turned: Tensor | None) -> None:
        super().__init__(layer)
        self._order: Positions | None = None
        if turned is not None:
            order = np.arange(turned.values).reshape(turned.height, turned.width, turned.channels)
            self._order = order.transpose(2, 0, 1).reshape(-1)

    def forward(self, inputs: Sequence[Input]) -> tuple[Ints, None]:
        """Copy the values, channel first."""
        values = inputs[0].values
        return (values if self._order is None else values.take(self._order)), None

    def spread(self, kept: Positions | None, e: Ints, before: Ints | None, size: int) -> Ints:
        """Pass the error on unchanged; a sample has none."""
        return e if before is None else sat16(before + e)


def _started(before: Ints | None, size: int) -> Ints:
    return np.zeros(size, dtype=np.int64) if before is None else before
