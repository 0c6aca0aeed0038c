# SPDX-License-Identifier: Apache-2.0
"""Learning rates in fixed point, and how convolutions cut their errors so that sums fit (docs/spec/numerics.md)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sparcl_mcu.generator import network, proof
from sparcl_mcu.spec.errors import UserError
from sparcl_mcu.spec.types import ERROR_FRACTION, FloatLayer, Layer, LearningRate, Model, Op, needs_error

LARGEST_ERROR = 2.0
"""Largest magnitude an error can have in its 16 bits."""

ERROR_HEADROOM = 4.0
"""Errors up to this multiple of the largest that the initial model has are not clamped."""

WEIGHT_LOG_LEAST = 8
"""Bits a convolution's weights keep when steps and errors need room."""


def gradient_fraction(rate: float, layers: Sequence[Layer], sacc: int) -> int:
    """The most fractional bits ``g`` can have.

    ``rate``: learning rate times the largest coefficient.  ``|e|`` is at most 2, so 2 * rate * 2**fg has to
    fit int16; more bits lose less of small errors.  Then ``su`` of every dense layer has to stay within 1..30
    (and above ``sacc`` for a batch); convolutions adapt to it.
    """
    fg = math.floor(math.log2(32767 / (LARGEST_ERROR * rate)))
    dense = {k: layer for k, layer in enumerate(layers) if layer.op is Op.DENSE}
    limits = [min(30 - layer.fx + layer.fw, layer.fw + layer.fx + 30) for layer in dense.values()]
    fg = min([fg, *limits])
    for number, layer in dense.items():
        if proof.update_shift(layer, fg) - sacc < 1:
            raise UserError(
                f"method.lr, method.batch: in layer {number} a weight's step has no bits to round away "
                f"(su = {proof.update_shift(layer, fg)}, batch shift {sacc}); use a smaller lr, or inputs "
                "with more fractional bits"
            )
    return fg


def learning_rate(rate: float, fg: int) -> LearningRate:
    """``g = shift(e * multiplier, shift)``, multiplier in [16384, 32767]; 0, 0 for no such term."""
    if rate == 0.0:
        return LearningRate(0, 0)
    factor = rate * 2.0 ** (fg - ERROR_FRACTION)
    shift = 14 - math.floor(math.log2(factor))
    multiplier = math.floor(factor * 2.0**shift + 0.5)
    if multiplier > 32767:
        multiplier, shift = 16384, shift - 1
    if not 1 <= shift <= 30:
        raise UserError(f"method.lr, alpha, beta: a learning rate of {rate:g} cannot be expressed beside the others")
    return LearningRate(multiplier, shift)


# ---------------------------------------------------------------- convolutions


def largest_errors(layers: Sequence[FloatLayer], x: NDArray[np.float64], chunk: int) -> list[float]:
    """For each tensor the largest magnitude an error is allowed without being clamped.

    From the cross-entropy of the samples ``x``, (samples, channels, height, width), with labels that have nothing to
    do with them, as if all classes were new.  ``chunk``: samples at a time.
    """
    found = [0.0] * (len(layers) + 1)
    for first in range(0, len(x), chunk):
        tensors = network.forward(layers, x[first : first + chunk])
        errors = network.backward(layers, tensors, _surprise(tensors[-1], first))
        found = [max(old, float(np.abs(e).max())) for old, e in zip(found, errors, strict=True)]
    return [min(LARGEST_ERROR, max(ERROR_HEADROOM * e, 2.0**-ERROR_FRACTION)) for e in found]


def _surprise(z: NDArray[np.float64], first: int) -> NDArray[np.float64]:
    """The error of the logits ``z`` where the label of sample k is class (first + k) mod classes."""
    flat = z.reshape(len(z), -1)
    p: NDArray[np.float64] = np.exp(flat - flat.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(p)), (first + np.arange(len(p))) % p.shape[1]] -= 1.0
    return p.reshape(z.shape)


def tuned(model: Model, number: int, rate: float, error: float) -> Layer:
    """Layer ``number`` of a model without weights, with the shifts and clamps of its errors if it is a convolution.

    ``rate``: as for ``gradient_fraction``; ``error``: largest magnitude of an error of its output
    that is not to be clamped.
    """
    layer = model.layers[number]
    if layer.op is not Op.CONV:
        return layer
    layer = _steps(model, number, rate * error)
    if needs_error(model.layers)[layer.inputs[0]]:
        layer = _propagated(replace(model, layers=_with(model, number, layer)), number, error)
    return _scored(model, number, layer)


def _with(model: Model, number: int, layer: Layer) -> tuple[Layer, ...]:
    return (*model.layers[:number], layer, *model.layers[number + 1 :])


def _holds(lines: Iterable[proof.ProofLine]) -> bool:
    return all(line.holds for line in lines)


def _steps(model: Model, number: int, step: float) -> Layer:
    """``kg``, ``glog``: the least shift for which a step of magnitude ``step`` is not clamped.

    Where that leaves a weight's step no bits to round away, the weights get fewer fractional bits, and
    where they have the least, larger steps are clamped.
    """
    layer = model.layers[number]
    while True:
        candidates = _step_candidates(model, number, layer)
        for candidate in candidates:
            if step * 2.0 ** (model.fg - candidate.kg) <= 2.0**candidate.glog:
                return candidate
        if layer.wlog <= WEIGHT_LOG_LEAST or layer.fw <= 1 or layer.fw + layer.fx <= layer.fa:
            break
        layer = replace(layer, wlog=layer.wlog - 1, fw=layer.fw - 1, blog=layer.blog - 1)
    if not candidates:
        raise UserError(
            f"method.lr, method.batch: in {proof.layer_name(model, number)} a weight's step has no bits to round away; "
            "use a smaller lr or batch, or a smaller picture"
        )
    return candidates[-1]


def _step_candidates(model: Model, number: int, layer: Layer) -> list[Layer]:
    """For each possible ``kg`` the greatest ``glog`` for which nothing overflows."""
    result = []
    name = proof.layer_name(model, number)
    largest = proof.magnitudes(model.layers, model.input_signed)[layer.inputs[0]]
    most = max(rate.shift for rate in (model.current, model.distil, model.replay))
    for kg in range(min(15, 31 - most) + 1):
        su = proof.update_shift(replace(layer, kg=kg), model.fg)
        if su > 30 or su - model.sacc < 1:
            continue
        for glog in range(15, 0, -1):
            candidate = replace(layer, kg=kg, glog=glog)
            if _holds(proof.update_proof(model, name, candidate, largest)):
                result.append(candidate)
                break
    return result


def _propagated(model: Model, number: int, error: float) -> Layer:
    """``ke``, ``elog``: the greatest clamp that holds, and the least shift that leaves ``error`` below it."""
    layer = model.layers[number]
    name = proof.layer_name(model, number)
    for elog in range(15, 0, -1):
        wanted = max(0, math.ceil(math.log2(error * 2.0**ERROR_FRACTION)) - elog)
        candidate = replace(layer, ke=min(wanted, layer.fw), elog=elog)
        if _holds(proof.error_proof(name, _with(model, number, candidate), number)):
            return candidate
    raise UserError(f"{name}: {layer.n_out} outputs are too many for 32-bit sums; use fewer, or a smaller kernel")


def _scored(model: Model, number: int, layer: Layer) -> Layer:
    """``kc``: the least shift for which the gradients that importance is judged by fit."""
    name = proof.layer_name(model, number)
    largest = proof.magnitudes(model.layers, model.input_signed)[layer.inputs[0]]
    for kc in range(16):
        candidate = replace(layer, kc=kc)
        if _holds(proof.score_proof(model, name, candidate, largest)):
            return candidate
    raise UserError(f"{name}: its outputs are too large for TDM and DGM; use a stride, or sparsity.weights = 0")
