# SPDX-License-Identifier: Apache-2.0
"""The initial model as a function, in floating point and NumPy: what calibration and pruning look at.

Tensors are (samples, channels, height, width) float64, numbered as in ``FloatLayer.inputs``:
0 is the input of the network, k + 1 the output of layer k.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from sparcl_mcu.spec.types import Activation, FloatLayer, Op, Window

Floats = NDArray[np.float64]


def channel_first(x: NDArray[np.number], shape: Sequence[int], scale: float) -> Floats:
    """Tensors of ``shape``, scaled, from samples as they are stored: (samples, n_in), (row, column, channel)."""
    channels, height, width = shape
    return np.ascontiguousarray(x.reshape(-1, height, width, channels).transpose(0, 3, 1, 2)) * scale


def spread(total: int, count: int) -> NDArray[np.int64]:
    """``count`` positions evenly over ``total`` samples (which are often sorted by class)."""
    count = min(total, count)
    return np.arange(count) * total // count


def forward(layers: Sequence[FloatLayer], x: Floats) -> list[Floats]:
    """Every tensor of the network for ``x`` (samples, channels, height, width): the input first, the logits last."""
    tensors = [x]
    for layer in layers:
        tensors.append(output(layer, [tensors[t] for t in layer.inputs]))
    return tensors


def output(layer: FloatLayer, inputs: Sequence[Floats]) -> Floats:
    """The output of one layer."""
    x = inputs[0]
    if layer.op is Op.DENSE:
        v = (x.reshape(len(x), -1) @ layer.weight + layer.bias)[:, :, np.newaxis, np.newaxis]
    elif layer.op is Op.CONV:
        v = _convolution(layer, x)
    elif layer.op is Op.ADD:
        v = np.sum(inputs, axis=0)
    elif layer.op is Op.PAD:
        v = x
    else:
        v = _pooling(layer, x)
    return activate(layer.activation, v)


def activate(activation: Activation, v: Floats) -> Floats:
    """The activation of a layer."""
    if activation is Activation.NONE:
        return v
    return np.clip(v, 0.0, 6.0 if activation is Activation.RELU6 else None)


def backward(layers: Sequence[FloatLayer], tensors: Sequence[Floats], error: Floats) -> list[Floats]:
    """The error dL/d(tensor) of every tensor, 0 where an activation is flat (docs/spec/numerics.md, "Backward").

    ``tensors``: from ``forward``; ``error``: that of the last one, in its shape.
    """
    errors = [*(np.zeros_like(t) for t in tensors[:-1]), error]
    for number in range(len(layers) - 1, -1, -1):
        layer = layers[number]
        errors[number + 1] = errors[number + 1] * _slope(layer.activation, tensors[number + 1])
        for t in layer.inputs:
            errors[t] = errors[t] + _input_error(layer, tensors[t], errors[number + 1])
    return errors


def _slope(activation: Activation, v: Floats) -> NDArray[np.bool_]:
    if activation is Activation.NONE:
        return np.ones(v.shape, dtype=np.bool_)
    return np.asarray((v > 0.0) & (v < 6.0) if activation is Activation.RELU6 else v > 0.0)


def _input_error(layer: FloatLayer, x: Floats, e: Floats) -> Floats:
    """Contribution of the error ``e`` of a layer's output to the error of its input ``x``."""
    if layer.op in (Op.ADD, Op.PAD):
        return e
    if layer.op is Op.DENSE:
        return np.asarray(e.reshape(len(e), -1) @ layer.weight.T).reshape(x.shape)
    w = layer.window
    assert w is not None
    height, width = e.shape[2:]
    rows, cols = (height - 1) * w.stride_h + w.kernel_h, (width - 1) * w.stride_w + w.kernel_w
    total = np.zeros((*x.shape[:2], max(rows, w.top + x.shape[2]), max(cols, w.left + x.shape[3])))
    for k, part in enumerate(_window_errors(layer, w, x, e)):
        row, col = divmod(k, w.kernel_w)
        total[:, :, row : row + rows - w.kernel_h + 1 : w.stride_h, col : col + cols - w.kernel_w + 1 : w.stride_w] += (
            part
        )
    return total[:, :, w.top : w.top + x.shape[2], w.left : w.left + x.shape[3]]


def _window_errors(layer: FloatLayer, window: Window, x: Floats, e: Floats) -> Iterator[Floats]:
    """For each value under a window, row by row, what it gets: (samples, channels, height, width) of the output."""
    if layer.op is Op.CONV:
        yield from _kernel_errors(layer, window, x.shape[1], e)
    elif layer.op is Op.AVG_POOL:
        count = windows(window, np.ones_like(x[:1]), e.shape[2:], 0.0).sum(axis=(4, 5))
        for _ in range(window.area):
            yield e / count
    else:
        best = windows(window, x, e.shape[2:], -np.inf).reshape(*e.shape, -1).argmax(axis=4)
        for k in range(window.area):
            yield e * (best == k)


def _kernel_errors(layer: FloatLayer, window: Window, channels: int, e: Floats) -> Iterator[Floats]:
    if layer.multiplier:
        kernel = layer.weight.reshape(window.area, channels, layer.multiplier)
        parts = e.reshape(len(e), channels, layer.multiplier, *e.shape[2:])
        for k in range(window.area):
            yield np.einsum("ncmyx,cm->ncyx", parts, kernel[k], optimize=True)
        return
    kernel = layer.weight.reshape(channels, window.area, -1)
    for k in range(window.area):
        yield np.einsum("noyx,co->ncyx", e, kernel[:, k], optimize=True)


def columns(layer: FloatLayer, x: Floats) -> Floats:
    """Inputs that each weight of a convolution multiplies.

    (samples, channels, height, width) -> (samples, positions of the output, channels, kernel
    positions of a channel).
    """
    assert layer.window is not None
    view = windows(layer.window, x, layer.shape[1:], 0.0)
    samples, channels, height, width, kh, kw = view.shape
    return view.transpose(0, 2, 3, 1, 4, 5).reshape(samples, height * width, channels, kh * kw)


def windows(window: Window, x: Floats, out: Sequence[int], fill: float) -> Floats:
    """(samples, channels, height, width) -> (samples, channels, *out, kernel_h, kernel_w), ``fill`` in the margins."""
    height, width = out
    bottom, right = window.behind(x.shape[2:], out)
    margins = ((0, 0), (0, 0), (window.top, bottom), (window.left, right))
    padded = np.pad(x, margins, constant_values=fill)
    view = np.lib.stride_tricks.sliding_window_view(padded, (window.kernel_h, window.kernel_w), axis=(2, 3))
    return view[:, :, :: window.stride_h, :: window.stride_w][:, :, :height, :width]


def _convolution(layer: FloatLayer, x: Floats) -> Floats:
    values = columns(layer, x)
    samples, positions, channels, area = values.shape
    if layer.multiplier:
        kernel = layer.weight.reshape(area, channels, layer.multiplier)
        v = np.einsum("npca,acm->npcm", values, kernel, optimize=True).reshape(samples, positions, -1)
    else:
        v = values.reshape(samples, positions, channels * area) @ layer.weight
    return np.asarray((v + layer.bias).transpose(0, 2, 1).reshape(samples, *layer.shape))


def _pooling(layer: FloatLayer, x: Floats) -> Floats:
    assert layer.window is not None
    if layer.op is Op.MAX_POOL:
        return np.asarray(windows(layer.window, x, layer.shape[1:], -np.inf).max(axis=(4, 5)))
    count = windows(layer.window, np.ones_like(x[:1]), layer.shape[1:], 0.0).sum(axis=(4, 5))
    return np.asarray(windows(layer.window, x, layer.shape[1:], 0.0).sum(axis=(4, 5)) / count)
