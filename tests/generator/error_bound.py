# SPDX-License-Identifier: Apache-2.0
"""How far the logits in fixed point can be from those in floating point: a bound, sample by sample.

Every rounding of docs/spec/numerics.md is followed through the network by the triangle
inequality: weights and biases are off by half of their last bit, each tensor by half of
its own and by what saturation cuts off.  What the norm guard does is not covered; it
does not act on the data the formats were calibrated with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sparcl_mcu.generator.network import Floats, channel_first, forward, output
from sparcl_mcu.spec.types import Activation, FloatLayer, FloatModel, Layer, Model, Op, Tensor


def logit_bound(float_model: FloatModel, model: Model, x: np.ndarray) -> tuple[Floats, Floats]:
    """The logits in floating point and the most their fixed-point values differ from them.

    ``x``: (samples, n_in) integers as they go to the board.  Both results:
    (samples, classes), in the unit of the logits.
    """
    exact = forward(float_model.layers, channel_first(x, float_model.input_shape, 2.0**-model.sample.fraction))
    errors = [np.zeros_like(exact[0])]
    fixed = [layer for layer in (*model.prefix, *model.layers) if layer.op is not Op.PAD]
    for number, (layer, board) in enumerate(zip(float_model.layers, fixed, strict=True)):
        values = [exact[t] for t in layer.inputs]
        error = _rounding(layer, board, values, [errors[t] for t in layer.inputs])
        error = _tensor_error(exact[number + 1], error, board.out, layer.activation)
        if model.latent is not None and number + 1 == float_model.frozen:
            error = _latent_error(exact[number + 1], error, model.latent, signed=model.latent_signed)
        errors.append(error)
    return exact[-1].reshape(len(x), -1), errors[-1].reshape(len(x), -1)


def _rounding(layer: FloatLayer, board: Layer, values: Sequence[Floats], errors: Sequence[Floats]) -> Floats:
    """The error of a layer's sums from those of its inputs and the rounding of its weights."""
    linear = replace(layer, activation=Activation.NONE)
    if not layer.weighted:
        if layer.op is Op.MAX_POOL:
            return output(linear, errors)
        return output(linear, errors) + len(values) * 2.0 ** -(board.out.fraction + 1)
    magnitudes = replace(linear, weight=np.abs(layer.weight), bias=np.zeros_like(layer.bias))
    half = np.where(layer.mask, 2.0 ** -(board.fw + 1), 0.0)
    bias = np.full_like(layer.bias, 2.0 ** -(board.fw + board.fx + 1))
    rounded = replace(linear, weight=half, bias=bias)
    return output(magnitudes, errors) + output(rounded, [np.abs(values[0]) + errors[0]])


def _tensor_error(exact: Floats, error: Floats, out: Tensor, activation: Activation) -> Floats:
    """Rounding to the tensor's format and what saturation cuts off; ReLU6 cuts both alike."""
    error = error + 2.0 ** -(out.fraction + 1)
    if activation is Activation.RELU6:
        return error
    return _cut_off(exact, error, (2.0**out.bits - 1) * 2.0**-out.fraction, 0.0 if out.rectified else -np.inf)


def _latent_error(exact: Floats, error: Floats, latent: Tensor, *, signed: bool) -> Floats:
    top = 127 if signed else 255
    return _cut_off(exact, error + 2.0 ** -(latent.fraction + 1), top * 2.0**-latent.fraction, -np.inf)


def _cut_off(exact: Floats, error: Floats, top: float, low: float) -> Floats:
    """``error``, or more where a value may have been clipped to +-``top`` (no lower than ``low``)."""
    above = np.maximum(0.0, exact - top)
    below = np.maximum(0.0, -top - exact) if low == -np.inf else 0.0
    return np.maximum(error, np.maximum(above, below) + error)
