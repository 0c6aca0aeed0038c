# SPDX-License-Identifier: Apache-2.0
"""Small artefacts for the tests; no TensorFlow."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparcl_mcu.generator import network, prune, train
from sparcl_mcu.generator.config import Config
from sparcl_mcu.spec.types import (
    Activation,
    Dataset,
    FloatLayer,
    FloatModel,
    Layer,
    Model,
    Op,
    Task,
    Window,
)

INPUT_SHAPES = ((1, 8, 8), (3, 6, 5), (2, 1, 17), (1, 1, 12), (4, 3, 3), (5, 1, 1))


def config(**sections: Any) -> Config:
    """A configuration whose initial model is not trained, unless a section says otherwise."""
    sections.setdefault("initial", {"train": "none"})
    return Config.model_validate(sections)


def dataset(
    n_in: int | tuple[int, ...] = 12,
    classes: int = 4,
    *,
    signed: bool = False,
    fraction: int = 8,
    samples: int = 10,
) -> Dataset:
    """Random inputs of the full range; two classes a task.  ``n_in``: values of a sample, or its shape."""
    random = np.random.default_rng(5)
    low, high, kind = (-127, 128, np.int8) if signed else (0, 256, np.uint8)
    shape = n_in if isinstance(n_in, tuple) else (n_in,)

    def task(number: int) -> Task:
        labels = np.array([2 * number, 2 * number + 1] * samples, dtype=np.uint8)
        x = [random.integers(low, high, (len(labels), int(np.prod(shape)))).astype(kind) for _ in range(2)]
        return Task(f"task{number}", (2 * number, 2 * number + 1), x[0], labels, x[1], labels)

    names = tuple(str(c) for c in range(classes))
    return Dataset("random", names, shape, signed, fraction, tuple(task(k) for k in range(classes // 2)))


def float_model(c: Config, d: Dataset) -> FloatModel:
    """The untrained initial model."""
    return train.train(c, d)


# ---------------------------------------------------------------- random networks


def layer(
    op: Op,
    inputs: Iterable[int],
    shape: tuple[int, ...],
    activation: Activation = Activation.NONE,
    weight: NDArray[np.float64] | None = None,
    bias: NDArray[np.float64] | None = None,
    **rest: Any,
) -> FloatLayer:
    """A layer without masks."""
    weight = np.zeros((0, 0)) if weight is None else weight
    bias = np.zeros(weight.shape[1]) if bias is None else bias
    mask = np.ones(weight.shape, dtype=np.bool_)
    return FloatLayer(op, tuple(inputs), shape, activation, weight, bias, mask, np.abs(weight), **rest)


class Builder:
    """Draws a network layer by layer; ``shapes``: of its tensors."""

    def __init__(self, random: np.random.Generator, shape: tuple[int, ...]) -> None:
        self.random = random
        self.shapes = [shape]
        self.layers: list[FloatLayer] = []

    def add(self, made: FloatLayer) -> int:
        self.layers.append(made)
        self.shapes.append(made.shape)
        return len(self.layers)

    def activation(self) -> Activation:
        kinds = (Activation.NONE, Activation.RELU, Activation.RELU, Activation.RELU6)
        return kinds[int(self.random.integers(4))]

    def window(self, tensor: int, largest: int = 3) -> tuple[Window, int, int]:
        """A window that fits, and the size of its output; with margins as Keras's "same" has them, or without."""
        _, height, width = self.shapes[tensor]
        kernel = [int(self.random.integers(1, min(largest, n) + 1)) for n in (height, width)]
        stride = [int(self.random.integers(1, 3)) if n > 2 else 1 for n in (height, width)]
        sizes, front = [], []
        same = bool(self.random.random() < 0.5)
        for n, k, s in zip((height, width), kernel, stride, strict=True):
            sizes.append(-(-n // s) if same else (n - k) // s + 1)
            front.append(max(0, (sizes[-1] - 1) * s + k - n) // 2 if same else 0)
        return Window(*kernel, *stride, *front), sizes[0], sizes[1]

    def conv(self, tensor: int, n_out: int | None = None) -> int:
        channels = self.shapes[tensor][0]
        window, height, width = self.window(tensor)
        multiplier = int(self.random.integers(1, 3)) if self.random.random() < 0.3 else 0
        n_out = channels * multiplier if multiplier else n_out or int(self.random.integers(1, 7))
        n_in = window.area * (1 if multiplier else channels)
        weight, bias = self._weights(n_in, n_out)
        shape = (n_out, height, width)
        made = layer(Op.CONV, (tensor,), shape, self.activation(), weight, bias, window=window, multiplier=multiplier)
        return self.add(made)

    def pool(self, tensor: int) -> int:
        window, height, width = self.window(tensor)
        op = (Op.MAX_POOL, Op.AVG_POOL)[int(self.random.integers(2))]
        activation = self.activation() if self.random.random() < 0.3 else Activation.NONE
        return self.add(layer(op, (tensor,), (self.shapes[tensor][0], height, width), activation, window=window))

    def sum(self, tensors: Iterable[int]) -> int:
        tensors = tuple(tensors)
        return self.add(layer(Op.ADD, tensors, self.shapes[tensors[0]], self.activation()))

    def dense(self, tensor: int, n_out: int, activation: Activation) -> int:
        weight, bias = self._weights(int(np.prod(self.shapes[tensor])), n_out)
        return self.add(layer(Op.DENSE, (tensor,), (n_out, 1, 1), activation, weight, bias))

    def step(self, tensor: int) -> int:
        """One more layer, or two tensors of the same shape added."""
        kind = self.random.random()
        if kind < 0.55:
            return self.conv(tensor)
        if kind < 0.75:
            return self.pool(tensor)
        alike = [t for t, shape in enumerate(self.shapes) if t and t != tensor and shape == self.shapes[tensor]]
        return self.sum((tensor, alike[0]) if alike else (tensor,))

    def _weights(self, n_in: int, n_out: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        weight = self.random.normal(0.0, np.sqrt(2.0 / n_in), (n_in, n_out))
        return weight, self.random.normal(0.0, 0.1, n_out)


def random_float_model(
    c: Config,
    seed: int,
    *,
    classes: int = 4,
    depth: int | None = None,
    frozen: bool = False,
    shape: tuple[int, ...] = (),
) -> tuple[Dataset, FloatModel]:
    """A random network for random data: convolutions, pooling and sums in any order, then dense layers.

    ``depth``: layers before the dense ones; ``frozen``: whether some never learn; ``shape``:
    (channels, height, width) of a sample.  Weights are drawn, and masked as the configuration says.
    """
    random = np.random.default_rng(seed)
    shape = shape or INPUT_SHAPES[int(random.integers(len(INPUT_SHAPES)))]
    signed = bool(random.integers(2))
    builder = Builder(random, shape)
    tensor = 0
    for _ in range(int(random.integers(6)) if depth is None else depth):
        tensor = builder.step(tensor)
    if random.random() < 0.7:
        tensor = builder.dense(tensor, int(random.integers(3, 12)), Activation.RELU)
    if len(builder.layers) > 2 and random.random() < 0.3:
        other = builder.dense(int(random.integers(len(builder.layers))), builder.shapes[tensor][0], Activation.NONE)
        tensor = builder.sum((tensor, other)) if builder.shapes[tensor] == builder.shapes[other] else other
    builder.dense(tensor, classes, Activation.NONE)
    layers = _only_read(builder.layers)
    cut = _cut(random, layers) if frozen else 0
    channels, height, width = shape
    data = dataset((height, width, channels), classes, signed=signed, fraction=int(random.integers(4, 9)))
    return data, FloatModel(shape, (*layers[:cut], *masked(c, layers[cut:])), {}, frozen=cut)


def masked(c: Config, layers: Iterable[FloatLayer]) -> tuple[FloatLayer, ...]:
    """The layers with masks by magnitude."""
    layers = tuple(layers)
    sparse = prune.sparse_layers(c, layers)
    masks = prune.masks(c, layers, [y.saliency for y in layers])
    return tuple(
        replace(y, weight=y.weight * m, mask=m, saliency=y.saliency * m, sparse=s)
        for y, m, s in zip(layers, masks, sparse, strict=True)
    )


def _only_read(layers: Iterable[FloatLayer]) -> tuple[FloatLayer, ...]:
    """Without the layers that nothing reads."""
    layers = list(layers)
    k = len(layers) - 2
    while k >= 0:
        if not any(k + 1 in y.inputs for y in layers):
            del layers[k]
            renumbered = [replace(y, inputs=tuple(t - (t > k + 1) for t in y.inputs)) for y in layers]
            layers = renumbered
            k = len(layers) - 1
        k -= 1
    return tuple(layers)


def _cut(random: np.random.Generator, layers: tuple[FloatLayer, ...]) -> int:
    """A number of layers that one tensor alone leaves, and after which something learns; 0 if there is none."""
    cuts = [
        k
        for k in range(1, len(layers))
        if all(t >= k for y in layers[k:] for t in y.inputs) and any(y.weighted for y in layers[k:])
    ]
    return int(random.choice(cuts)) if cuts else 0


# ---------------------------------------------------------------- fixed point


def fixed_forward(model: Model, x: NDArray[np.integer]) -> list[NDArray[np.float64]]:
    """Every tensor of the layers that learn, docs/spec/numerics.md's integers, for samples as they are stored.

    Tensors are (samples, channels, height, width) without margins; sums are exact in float64.
    The norm guard is left out.
    """
    sample = model.sample
    first = network.channel_first(x, (sample.channels, sample.height, sample.width), 1.0)
    if model.latent is not None:
        value = _shift(_fixed(model.prefix, first, sample.fraction)[-1], model.prefix[-1].fa - model.latent.fraction)
        first = np.clip(value, *((-128, 127) if model.latent_signed else (0, 255)))
    return _fixed(model.layers, first, model.input.fraction)


def _fixed(layers: Iterable[Layer], first: NDArray[np.float64], fraction: int) -> list[NDArray[np.float64]]:
    tensors, fractions = [first], [fraction]
    for board in layers:
        tensors.append(_fixed_layer(board, [tensors[t] for t in board.inputs], [fractions[t] for t in board.inputs]))
        fractions.append(board.fa)
    return tensors


def _fixed_layer(board: Layer, inputs: list[NDArray[np.float64]], fractions: list[int]) -> NDArray[np.float64]:
    out = board.out
    shape = (out.channels, out.height, out.width)
    weight = full_weight(board).astype(np.float64) if board.weighted else None
    bias = board.bias[: board.n_out].astype(np.float64)
    source = layer(board.op, (0,), shape, weight=weight, bias=bias, window=board.window, multiplier=board.multiplier)
    if board.weighted:
        v = _shift(network.output(source, inputs), board.fw + board.fx - board.fa)
    elif board.op is Op.ADD:
        v = sum((_shift(x, fx - board.fa) for x, fx in zip(inputs, fractions, strict=True)), np.zeros(1))
    elif board.op is Op.AVG_POOL:
        v = np.floor(network.output(source, inputs) + 0.5)
    else:
        v = network.output(source, inputs)
    low = 0 if board.relu else -(1 << out.bits)
    return np.clip(v, low, 6 << out.fraction if board.activation is Activation.RELU6 else (1 << out.bits) - 1)


def _shift(v: NDArray[np.float64], s: int) -> NDArray[np.float64]:
    return np.asarray(np.floor(v * 2.0**-s + 0.5))


def full_weight(board: Layer) -> NDArray[np.int64]:
    """(n_in, n_out) from how the board stores the weights."""
    if board.weight is not None:
        weight = board.weight.T if board.op is Op.CONV else board.weight
        return weight[:, : board.n_out].astype(np.int64)
    blocks = board.n_pad // board.block
    lines, places = (blocks, board.n_in) if board.by_output else (board.n_in, blocks)
    full = np.zeros((lines, places, board.block), dtype=np.int64)
    for p in board.panels:
        for line in range(lines):
            inside = slice(p.start[line], p.start[line + 1])
            full[line, p.first + p.index[inside]] = p.weight[inside]
    full = full.transpose(1, 0, 2) if board.by_output else full
    return full.reshape(board.n_in, board.n_pad)[:, : board.n_out]
