# SPDX-License-Identifier: Apache-2.0
"""Forward and backward through all layers (docs/spec/numerics.md, "Forward" and "Backward")."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sparcl_mcu.reference.conv import ConvLayer
from sparcl_mcu.reference.dense import DenseLayer
from sparcl_mcu.reference.layer import Flags, Gradient, Input, Node, Rules, WeightedLayer
from sparcl_mcu.reference.pool import Add, AveragePool, MaxPool, Pad, Spreading
from sparcl_mcu.spec.fixed import Counters, Ints, guard, sat16, shift
from sparcl_mcu.spec.prng import Prng
from sparcl_mcu.spec.types import Activation, Layer, LearningRate, Model, Op, Tensor, needs_error

Gradients = tuple[Gradient | None, ...]
"""Gradients of each layer from one captured step, None for layers without masks."""


@dataclass(frozen=True, slots=True)
class Trace:
    """One forward pass.

    ``tensors``: the input, and the output of every layer as later layers read it; ``kept``:
    what each layer's backward pass needs; ``clipped``: where ReLU6 held a layer's output;
    ``z``: the last tensor's (classes,) int64.
    """

    tensors: tuple[Input, ...]
    kept: tuple[Any, ...]
    clipped: tuple[Flags | None, ...]
    z: Ints

    @property
    def prediction(self) -> int:
        """Arg-max over all classes, the lowest on ties."""
        return int(self.z.argmax())


class Network:
    """Layers on an 8-bit input; without ``rules`` they are frozen.

    ``channel_last``: the input is a sample as it is sent, (row, column, channel).
    """

    def __init__(
        self, layers: Sequence[Layer], source: Tensor, classes: int, rules: Rules | None, *, channel_last: bool
    ) -> None:
        tensors = (source, *(layer.out for layer in layers))
        self.classes = classes
        self.layers: tuple[Node, ...] = tuple(_node(layer, tensors, rules, channel_last) for layer in layers)
        self._tensors = tensors
        self._has_error = needs_error(tuple(layers))

    @property
    def weighted(self) -> Iterator[tuple[int, WeightedLayer]]:
        """Layers with weights and their numbers."""
        return ((k, layer) for k, layer in enumerate(self.layers) if isinstance(layer, WeightedLayer))

    def copy(self) -> Self:
        """Return an independent copy."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.layers = tuple(layer.copy() if isinstance(layer, WeightedLayer) else layer for layer in self.layers)
        return other

    def forward(self, x: Ints, counters: Counters) -> Trace:
        """Run the network on ``x`` (values of the input,) int64."""
        tensors, kept, clipped = [Input(x)], [], []
        for node in self.layers:
            layer = node.layer
            v, keep = node.forward([tensors[t] for t in layer.inputs])
            values = _activated(layer, v, counters)
            kept.append(keep)
            clipped.append(values == 6 << layer.fa if layer.activation is Activation.RELU6 else None)
            tensors.append(Input(guard(values, layer.guard, counters)))
        return Trace(tuple(tensors), tuple(kept), tuple(clipped), tensors[-1].values[: self.classes])

    def backward(
        self, trace: Trace, e: Ints, rate: LearningRate, prng: Prng, counters: Counters, *, batch: bool
    ) -> None:
        """Learn from the error ``e`` of the last tensor, (values,), with one term's learning rate."""

        def learn(number: int, layer: WeightedLayer, error: Ints) -> None:
            g = layer.step(error, rate)
            if batch:
                layer.accumulate(trace.kept[number], g)
            else:
                layer.update(trace.kept[number], error, g, prng)

        self._visit(trace, e, counters, learn)

    def gradients(self, trace: Trace, e: Ints) -> Gradients:
        """The gradients a mask update needs of this pass; changes and counts nothing."""
        result: list[Gradient | None] = [None] * len(self.layers)

        def capture(number: int, layer: WeightedLayer, error: Ints) -> None:
            if layer.layer.sparse:
                result[number] = layer.captured(trace.kept[number], error)

        self._visit(trace, e, None, capture)
        return tuple(result)

    def apply(self, prng: Prng) -> None:
        """Learn from the accumulated batch."""
        for _, layer in self.weighted:
            layer.apply(prng)

    def _visit(
        self, trace: Trace, e: Ints, counters: Counters | None, use: Callable[[int, WeightedLayer, Ints], None]
    ) -> None:
        """Propagate the error; ``use`` gets the error of each layer with weights, after its input has got its share."""
        errors: dict[int, Ints] = {len(self.layers): e}
        for number in reversed(range(len(self.layers))):
            node, clipped = self.layers[number], trace.clipped[number]
            if not self._has_error[number + 1]:
                continue
            e = errors.pop(number + 1)
            if clipped is not None:
                e = np.where(clipped, 0, e)
            if isinstance(node, WeightedLayer):
                e = node.outputs(e)
                source = node.layer.inputs[0]
                if self._has_error[source]:
                    e = node.guarded(e, counters)
                    share = self._share(trace, source, node.error(trace.kept[number], e), counters)
                    errors[source] = sat16(errors[source] + share) if source in errors else share
                use(number, node, e)
            else:
                assert isinstance(node, Spreading)
                for t in node.layer.inputs:
                    if self._has_error[t]:
                        size = trace.tensors[t].values.size
                        errors[t] = self._visible(trace, t, node.spread(trace.kept[number], e, errors.get(t), size))

    def _share(self, trace: Trace, t: int, v: Ints, counters: Counters | None) -> Ints:
        """The contribution of sums to the error of tensor ``t``: saturated, 0 where its value is not visible."""
        v = self._visible(trace, t, v)
        inside = sat16(v)
        if counters is not None:
            counters.saturated_errors += int(np.count_nonzero(inside != v))
        return inside

    def _visible(self, trace: Trace, t: int, e: Ints) -> Ints:
        """The error of a rectified tensor is 0 where its value is."""
        return e * (trace.tensors[t].values > 0) if self._tensors[t].rectified else e


def learning_network(model: Model) -> Network:
    """The layers that learn, as they are in the initial model."""
    learning = model.learning
    rules = Rules(model.fg, model.sacc, learning.stochastic, learning.batch)
    return Network(model.layers, model.input, model.n_classes, rules, channel_last=model.latent is None)


class Prefix:
    """The frozen layers: what they make of samples never changes."""

    def __init__(self, model: Model) -> None:
        assert model.latent is not None
        self._network = Network(model.prefix, model.sample, model.n_classes, None, channel_last=True)
        self._shift = model.prefix[-1].fa - model.latent.fraction
        self._type: type[np.integer[Any]] = np.int8 if model.latent_signed else np.uint8

    def latent(self, x: NDArray[np.integer]) -> NDArray[np.integer]:
        """The input of the layers that learn, (values,) 8 bit, of one sample (n_in,)."""
        out = self._network.forward(x.astype(np.int64), Counters()).tensors[-1].values
        limits = np.iinfo(self._type)
        return np.minimum(np.maximum(shift(out, self._shift), limits.min), limits.max).astype(self._type)


def _node(layer: Layer, tensors: Sequence[Tensor], rules: Rules | None, channel_last: bool) -> Node:
    """The layer as this module runs it; ``tensors``: of the whole network."""
    source = tensors[layer.inputs[0]]
    turned = channel_last and 0 in layer.inputs and source.channels > 1 and source.height * source.width > 1
    assert not turned or layer.op in (Op.DENSE, Op.PAD), "a pad layer turns a sample around"
    if layer.op is Op.DENSE:
        return DenseLayer(layer, rules)
    if layer.op is Op.CONV:
        return ConvLayer(layer, source, rules)
    if layer.op is Op.MAX_POOL:
        return MaxPool(layer, source)
    if layer.op is Op.AVG_POOL:
        return AveragePool(layer, source)
    if layer.op is Op.ADD:
        return Add(layer, [tensors[t].fraction for t in layer.inputs])
    return Pad(layer, source if turned else None)


def _activated(layer: Layer, v: Ints, counters: Counters) -> Ints:
    """Clamp to what the activation and the tensor's bits leave, and count what does not fit the bits."""
    limit = 1 << layer.out.bits
    if layer.activation is Activation.RELU6:
        return np.minimum(np.maximum(v, 0), 6 << layer.fa)
    counters.saturated_activations += int(np.count_nonzero(v > limit - 1))
    if layer.relu:
        return np.minimum(np.maximum(v, 0), limit - 1)
    counters.saturated_activations += int(np.count_nonzero(v < -limit))
    return np.minimum(np.maximum(v, -limit), limit - 1)
