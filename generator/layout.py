# SPDX-License-Identifier: Apache-2.0
"""The initial model as the board runs it: a frozen prefix of its own, margins, and the copies they need.

Everything here is exact in floating point as well: no number changes, only where it lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sparcl_mcu.generator import architecture
from sparcl_mcu.spec.errors import UserError
from sparcl_mcu.spec.types import Activation, FloatLayer, FloatModel, Op

Shape = tuple[int, ...]
Margins = tuple[int, int, int, int]
"""Zeros above, left of, below and right of each channel."""

NO_MARGINS: Margins = (0, 0, 0, 0)


@dataclass(frozen=True)
class Network:
    """A network with its ``pad`` layers.  ``margins``: of each tensor (0: the input)."""

    layers: tuple[FloatLayer, ...]
    margins: tuple[Margins, ...]

    def readers(self, tensor: int) -> tuple[FloatLayer, ...]:
        """The layers that read a tensor."""
        return tuple(layer for layer in self.layers if tensor in layer.inputs)

    def active(self, number: int) -> int:
        """How many errors of one output channel of layer ``number`` can be other than 0 at a time.

        A window of max_pool passes its error on to one value; all other readers may reach every position.
        """
        positions = _positions(self.layers[number])
        readers = self.readers(number + 1)
        if not readers or any(layer.op is not Op.MAX_POOL for layer in readers):
            return positions
        return min(positions, sum(_positions(layer) for layer in readers))


def _positions(layer: FloatLayer) -> int:
    return layer.shape[1] * layer.shape[2]


def split(float_model: FloatModel) -> tuple[tuple[FloatLayer, ...], tuple[FloatLayer, ...]]:
    """The frozen layers and those that learn; the output of the former is tensor 0 of the latter."""
    cut = float_model.frozen
    frozen, learns = float_model.layers[:cut], float_model.layers[cut:]
    if any(t < cut for layer in learns for t in layer.inputs):
        raise UserError(f"the first {cut} layers cannot be frozen: more than one tensor crosses the cut")
    return frozen, tuple(replace(layer, inputs=tuple(t - cut for t in layer.inputs)) for layer in learns)


def lay_out(layers: Sequence[FloatLayer], shape: Shape, *, sample: bool) -> Network:
    """Add the ``pad`` layers that margins and the order of a sample make necessary.

    ``shape``: (channels, height, width) of tensor 0; ``sample``: whether that lies (row, column, channel).
    Each copy is made right before its first reader.
    """
    shapes = [shape, *(layer.shape for layer in layers)]
    plan = _Plan(layers, shapes, sample=sample)
    result: list[FloatLayer] = []
    margins = [NO_MARGINS]
    number = [0]
    copies: dict[tuple[int, bool], int] = {}
    for k, layer in enumerate(layers):
        inputs = []
        for t in layer.inputs:
            copy = plan.copy(layer, t)
            if copy is not None and (t, copy) not in copies:
                result.append(architecture.plain(Op.PAD, (number[t],), shapes[t], Activation.NONE, "pad"))
                margins.append(plan.wanted[t] if copy else NO_MARGINS)
                copies[t, copy] = len(result)
            inputs.append(number[t] if copy is None else copies[t, copy])
        result.append(replace(layer, inputs=tuple(inputs)))
        margins.append(NO_MARGINS if plan.flat[k + 1] else plan.wanted[k + 1])
        number.append(len(result))
    return Network(tuple(result), tuple(margins))


class _Plan:
    """Plans which layers read which tensor with margins.

    ``wanted``: margins of each tensor, wide enough for all convolutions that read it; ``flat``:
    whether a dense layer reads it, in the order it lies in.
    """

    def __init__(self, layers: Sequence[FloatLayer], shapes: Sequence[Shape], *, sample: bool) -> None:
        channels, height, width = shapes[0]
        self._turned = sample and channels > 1 and height * width > 1
        self._shapes = shapes
        self.wanted = [NO_MARGINS for _ in shapes]
        self.flat = [False for _ in shapes]
        for layer in layers:
            for t in layer.inputs:
                self.flat[t] |= layer.op is Op.DENSE
                self.wanted[t] = _widest(self.wanted[t], _margins(layer, shapes[t]))

    def copy(self, layer: FloatLayer, tensor: int) -> bool | None:
        """Choose what ``layer`` reads: a copy with margins (True), without (False), or the tensor itself (None)."""
        if layer.op is Op.PAD:
            return None
        if tensor == 0 and self._turned:
            return layer.op is not Op.DENSE and self.wanted[0] != NO_MARGINS
        if tensor == 0 or self.flat[tensor]:
            return True if _margins(layer, self._shapes[tensor]) != NO_MARGINS else None
        return None


def _margins(layer: FloatLayer, shape: Shape) -> Margins:
    """Margins a convolution reads around an input of ``shape``; at the end only as far as it really reaches."""
    if layer.op is not Op.CONV:
        return NO_MARGINS
    w = layer.window
    assert w is not None
    return (w.top, w.left, *w.behind(shape[1:], layer.shape[1:]))


def _widest(a: Margins, b: Margins) -> Margins:
    return (max(a[0], b[0]), max(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3]))
