# SPDX-License-Identifier: Apache-2.0
"""Forward and backward through all layers (docs/numerics.md, "Forward" and "Backward")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from generator.artefacts import LearningRate, Model
from host_tools.reference.dense import DenseLayer
from host_tools.reference.fixed import INT16_MAX, INT16_MIN, Counters, Ints, guard, sat16, shift
from host_tools.reference.layer import Input, LayerState
from host_tools.reference.prng import Prng
from host_tools.reference.sparse import SparseLayer


@dataclass(frozen=True, slots=True)
class Trace:
    """One forward pass: the input of every layer, and the logits (classes,) int64."""

    inputs: tuple[Input, ...]
    z: Ints

    @property
    def prediction(self) -> int:
        """Arg-max over all classes, the lowest on ties."""
        return int(self.z.argmax())


def build(model: Model) -> list[LayerState]:
    """The layers of the initial model."""
    learning = model.learning
    return [
        (SparseLayer if layer.sparse else DenseLayer)(
            layer, model.fg, model.sacc, stochastic=learning.stochastic, batch=learning.batch
        )
        for layer in model.layers
    ]


def forward(layers: Sequence[LayerState], x: Ints, n_classes: int, counters: Counters) -> Trace:
    """Run the network on ``x`` (n_in,) int64."""
    inputs = [Input(x)]
    for number, layer in enumerate(layers):
        values = _activate(layer.forward(inputs[-1]), layer.layer.relu, counters)
        if number + 1 == len(layers):
            return Trace(tuple(inputs), values[:n_classes])
        following = layers[number + 1].layer
        inputs.append(Input(guard(values, following.l1_in, counters)[: following.n_in]))
    raise AssertionError("a network has at least one layer")


def _activate(v: Ints, relu: bool, counters: Counters) -> Ints:
    """Saturate, count, and apply ReLU."""
    counters.saturated_activations += int(np.count_nonzero(v > INT16_MAX))
    if not relu:
        counters.saturated_activations += int(np.count_nonzero(v < INT16_MIN))
    return np.minimum(np.maximum(v, 0 if relu else INT16_MIN), INT16_MAX)


def backward(
    layers: Sequence[LayerState],
    trace: Trace,
    e: Ints,
    rate: LearningRate,
    prng: Prng,
    counters: Counters,
    batch: int,
) -> None:
    """Learn from the error ``e`` (n_pad of the last layer,) with one term's learning rate."""
    for number in reversed(range(len(layers))):
        layer, x = layers[number], trace.inputs[number]
        e = _guarded(layers, number, e, counters)
        g = sat16(shift(e * rate.multiplier, rate.shift))
        below = _below(layers, number, x, e, counters)
        if batch == 1:
            layer.update(x, g, prng)
        else:
            layer.accumulate(x, g)
        e = below


def errors(layers: Sequence[LayerState], trace: Trace, e: Ints) -> list[Ints]:
    """Output error of every layer, as guarded for its backward pass; changes and counts nothing."""
    result = []
    for number in reversed(range(len(layers))):
        e = _guarded(layers, number, e, None)
        result.append(e)
        e = _below(layers, number, trace.inputs[number], e, None)
    return result[::-1]


def _guarded(layers: Sequence[LayerState], number: int, e: Ints, counters: Counters | None) -> Ints:
    return guard(e, layers[number].layer.l1_err, counters) if number else e


def _below(layers: Sequence[LayerState], number: int, x: Input, e: Ints, counters: Counters | None) -> Ints:
    """Error of the outputs of the layer before, pads 0; nothing for the first layer."""
    if number == 0:
        return e
    error = layers[number].error(x, e, counters)
    pads = layers[number - 1].layer.n_pad - error.size
    return np.concatenate([error, np.zeros(pads, dtype=np.int64)]) if pads else error
