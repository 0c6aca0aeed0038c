# SPDX-License-Identifier: Apache-2.0
"""The networks of experiment files: entries of ``model.layers``, and the layers without weights they stand for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeAlias, cast, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PlainValidator
from pydantic_core import PydanticCustomError

from sparcl_mcu.generator.sizes import MOST_IN_KERNEL, MOST_OUTPUTS, MOST_UNDER_WINDOWS, MOST_WEIGHTS
from sparcl_mcu.spec.errors import UserError
from sparcl_mcu.spec.types import Activation, FloatLayer, Op, Window

Shape: TypeAlias = tuple[int, int, int]
"""Channels, height, width."""


def _extent(value: Any) -> int | tuple[int, int]:
    """A size of 1 to 255, or [height, width]."""
    pair = value if isinstance(value, tuple) else (value, value)
    if len(pair) != 2 or any(type(n) is not int or not 1 <= n <= 255 for n in pair):
        raise PydanticCustomError("extent", "Input should be a whole number from 1 to 255, or [height, width]")
    return cast(int | tuple[int, int], value)


Extent: TypeAlias = Annotated[int | tuple[int, int], PlainValidator(_extent)]
"""Extent of a window: one number for both axes (or the only one), or (height, width)."""

Width = Annotated[int, Field(ge=1, le=65535)]
Side = Annotated[int, Field(ge=1, le=255)]


class _LayerEntry(BaseModel):
    """Base of the entries of ``model.layers``: frozen, strict types, no unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class _WindowEntry(_LayerEntry):
    """Base of the layers that move a window over their input."""

    padding: Literal["same", "valid"]


class _ConvolutionEntry(_WindowEntry):
    padding: Literal["same", "valid"] = Field("same", description="Zeros around the input, or none")
    activation: Activation = Field(Activation.RELU, strict=False, description="What follows")


class Conv2dEntry(_ConvolutionEntry):
    """Convolution of pictures."""

    type: Literal["conv2d"]
    filters: Width = Field(description="Output channels")
    kernel: Extent = Field(description="Size of the kernel")
    stride: Extent = Field(1, description="Step of the kernel")


class DepthwiseConv2dEntry(_ConvolutionEntry):
    """Convolution of each channel of a picture on its own."""

    type: Literal["depthwise_conv2d"]
    kernel: Extent = Field(description="Size of the kernel")
    stride: Side = Field(1, description="Step of the kernel")
    multiplier: Side = Field(1, description="Output channels of each input channel")


class Conv1dEntry(_ConvolutionEntry):
    """Convolution over time."""

    type: Literal["conv1d"]
    filters: Width = Field(description="Output channels")
    kernel: Side = Field(description="Size of the kernel")
    stride: Side = Field(1, description="Step of the kernel")


class DepthwiseConv1dEntry(_ConvolutionEntry):
    """Convolution of each channel over time on its own."""

    type: Literal["depthwise_conv1d"]
    kernel: Side = Field(description="Size of the kernel")
    stride: Side = Field(1, description="Step of the kernel")
    multiplier: Side = Field(1, description="Output channels of each input channel")


class DenseEntry(_LayerEntry):
    """Fully connected layer."""

    type: Literal["dense"]
    units: Width = Field(description="Outputs")
    activation: Activation = Field(Activation.RELU, strict=False, description="What follows")


class PoolEntry(_WindowEntry):
    """Greatest or mean value under a window."""

    type: Literal["max_pool", "avg_pool"]
    size: Extent = Field(description="Size of the window")
    stride: Extent | None = Field(None, description="Step of the window; default: its size")
    padding: Literal["same", "valid"] = Field("valid", description="Windows that reach over the edge, or none")


class GlobalAvgPoolEntry(_LayerEntry):
    """Mean of each channel."""

    type: Literal["global_avg_pool"]


class FlattenEntry(_LayerEntry):
    """Flatten; adds no layer, because a dense layer reads all values of its input anyway."""

    type: Literal["flatten"]


class AddEntry(_LayerEntry):
    """Sum of the layer before and an earlier one (residual connection)."""

    type: Literal["add"]
    from_: Annotated[int, Field(ge=1)] = Field(alias="from", description="Number of an earlier layer, counted from 1")
    activation: Activation = Field(Activation.NONE, strict=False, description="What follows")


LayerEntry: TypeAlias = Annotated[
    Conv2dEntry
    | DepthwiseConv2dEntry
    | Conv1dEntry
    | DepthwiseConv1dEntry
    | DenseEntry
    | PoolEntry
    | GlobalAvgPoolEntry
    | FlattenEntry
    | AddEntry,
    Field(discriminator="type"),
]

LAYER_ENTRIES: tuple[type[_LayerEntry], ...] = get_args(get_args(LayerEntry)[0])


def layer_conflicts(entries: Sequence[LayerEntry]) -> Iterator[tuple[int, str]]:
    """Mistakes in a list of layers that do not depend on the data: the number of an entry, and what to change."""
    one = [k for k, entry in enumerate(entries, 1) if entry.type.endswith("conv1d")]
    two = [k for k, entry in enumerate(entries, 1) if entry.type.endswith("conv2d")]
    if one and two:
        yield max(one[0], two[0]), "convolutions over one and over two axes do not go together"
    flat = False
    for number, entry in enumerate(entries, 1):
        if flat and not isinstance(entry, DenseEntry | AddEntry | FlattenEntry):
            yield number, f"{entry.type} comes after a dense layer or flatten: it has to come before"
        flat = flat or isinstance(entry, DenseEntry | FlattenEntry)
        if isinstance(entry, AddEntry) and number < 3:
            yield number, "add needs two layers before it"
        elif isinstance(entry, AddEntry) and entry.from_ >= number - 1:
            yield number, f"from = {entry.from_} has to be a layer before entry {number - 1}, which is added anyway"


# ---------------------------------------------------------------- layers without weights


class TooLarge(ValueError):
    """A network that the host has no room for; raised before anything is allocated."""


def _too_many(count: int, what: str, most: int) -> str:
    return f"{count:,} {what}; at most {most:,} are possible: use fewer units or filters, or a smaller input"


def _check_windows(shape: Shape, window: Window, out: tuple[int, int], *, learns: bool = True) -> None:
    if window.area > MOST_IN_KERNEL and learns:
        raise TooLarge(f"a kernel of {window.area:,} places; at most {MOST_IN_KERNEL:,} are possible")
    values = shape[0] * window.area * math.prod(out)
    if values > MOST_UNDER_WINDOWS:
        raise TooLarge(
            f"{values:,} values under its windows; at most {MOST_UNDER_WINDOWS:,} are possible: use a smaller kernel, "
            "a larger stride or a smaller input"
        )


def _check_total(weights: int) -> None:
    if weights > MOST_WEIGHTS:
        raise TooLarge(f"the network has {_too_many(weights, 'weights', MOST_WEIGHTS)}")


def dense(inputs: int, shape: Shape, units: int, activation: Activation, name: str) -> FloatLayer:
    """A dense layer that reads tensor ``inputs`` of ``shape``; weights 0."""
    return _weighted(Op.DENSE, inputs, int(np.prod(shape)), units, (units, 1, 1), activation, name)


def convolution(
    inputs: int, shape: Shape, filters: int, window: Window, out: tuple[int, int], activation: Activation, name: str
) -> FloatLayer:
    """A convolution with ``filters`` outputs; weights 0.  Raises ``TooLarge``, as all functions here do."""
    _check_windows(shape, window, out)
    layer = _weighted(Op.CONV, inputs, shape[0] * window.area, filters, (filters, *out), activation, name)
    return replace(layer, window=window)


def depthwise(
    inputs: int, shape: Shape, multiplier: int, window: Window, out: tuple[int, int], activation: Activation, name: str
) -> FloatLayer:
    """A depthwise convolution with ``multiplier`` outputs for each channel; weights 0."""
    _check_windows(shape, window, out)
    filters = shape[0] * multiplier
    layer = _weighted(Op.CONV, inputs, window.area, filters, (filters, *out), activation, name)
    return replace(layer, window=window, multiplier=multiplier)


def pooling(op: Op, inputs: int, shape: Shape, window: Window, out: tuple[int, int], name: str) -> FloatLayer:
    """A pooling layer."""
    _check_windows(shape, window, out, learns=False)
    return replace(plain(op, (inputs,), (shape[0], *out), Activation.NONE, name), window=window)


def plain(op: Op, inputs: tuple[int, ...], shape: tuple[int, ...], activation: Activation, name: str) -> FloatLayer:
    """A layer without weights."""
    none = np.zeros((0, 0))
    return FloatLayer(op, inputs, shape, activation, none, np.zeros(0), none.astype(np.bool_), none, name=name)


def _weighted(
    op: Op, inputs: int, n_in: int, n_out: int, shape: Shape, activation: Activation, name: str
) -> FloatLayer:
    if n_in * n_out > MOST_WEIGHTS:
        raise TooLarge(_too_many(n_in * n_out, "weights", MOST_WEIGHTS))
    if math.prod(shape) > MOST_OUTPUTS:
        raise TooLarge(_too_many(math.prod(shape), "outputs", MOST_OUTPUTS))
    weight = np.zeros((n_in, n_out))
    ones = np.ones((n_in, n_out), dtype=np.bool_)
    return FloatLayer(op, (inputs,), shape, activation, weight, np.zeros(n_out), ones, weight, name=name)


def slide(size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], padding: str) -> tuple[Window, Any]:
    """The window over an input of ``size``, and the size of the output, with Keras's meaning of same and valid.

    Raises ``ValueError`` if the kernel does not fit.
    """
    if padding == "valid":
        if kernel[0] > size[0] or kernel[1] > size[1]:
            raise ValueError(f"a window of {kernel[0]}x{kernel[1]} does not fit an input of {size[0]}x{size[1]}")
        out = tuple((n - k) // s + 1 for n, k, s in zip(size, kernel, stride, strict=True))
        return Window(*kernel, *stride), out
    out = tuple(-(-n // s) for n, s in zip(size, stride, strict=True))
    missing = [max(0, (o - 1) * s + k - n) for n, o, k, s in zip(size, out, kernel, stride, strict=True)]
    return Window(*kernel, *stride, missing[0] // 2, missing[1] // 2), out


# ---------------------------------------------------------------- from the experiment file


def hidden_layers(widths: Sequence[int], n_in: int, n_classes: int) -> tuple[Shape, tuple[FloatLayer, ...]]:
    """The network of ``model.hidden``: the shape of its input and its layers, weights 0."""
    try:
        _check_total(sum(a * b for a, b in itertools.pairwise((n_in, *widths, n_classes))))
    except TooLarge as error:
        raise UserError(f"model.hidden = {list(widths)}: {error}") from None
    layers: list[FloatLayer] = []
    shape: Shape = (1, 1, n_in)
    for k, units in enumerate(widths):
        layers.append(dense(k, shape, units, Activation.RELU, f"dense{k + 1}"))
        shape = (units, 1, 1)
    layers.append(dense(len(widths), shape, n_classes, Activation.NONE, "output"))
    return (1, 1, n_in), tuple(layers)


def listed_layers(
    entries: Sequence[LayerEntry], sample: tuple[int, ...], n_classes: int
) -> tuple[Shape, tuple[FloatLayer, ...]]:
    """The network of ``model.layers`` for samples of shape ``sample``; raises ``UserError`` where they do not fit."""
    builder = _Builder(_input_shape(entries, sample))
    for number, entry in enumerate(entries, 1):
        try:
            builder.append(entry)
            _check_total(sum(layer.weight.size for layer in builder.layers))
        except ValueError as error:
            raise UserError(f"model.layers: entry {number} ({entry.type}): {error}") from None
    try:
        builder.layers.append(dense(builder.last, builder.shape, n_classes, Activation.NONE, "output"))
    except TooLarge as error:
        raise UserError(f"model.layers: the output layer: {error}") from None
    return builder.input_shape, tuple(builder.layers)


def _input_shape(entries: Sequence[LayerEntry], sample: tuple[int, ...]) -> Shape:
    """(channels, height, width) of the samples as the layers look at them."""
    if any(entry.type.endswith("conv1d") for entry in entries):
        if len(sample) > 2:
            raise UserError(
                f"model.layers: conv1d needs samples of shape (time, channels), but the data have {shown(sample)}: "
                "use conv2d"
            )
        return (sample[1] if len(sample) == 2 else 1, 1, sample[0])
    if any(isinstance(entry, _WindowEntry | GlobalAvgPoolEntry) for entry in entries):
        if len(sample) not in (2, 3):
            hint = "use dense or conv1d" if len(sample) == 1 else "pictures are needed"
            raise UserError(
                "model.layers: conv2d and pooling need samples of shape (height, width) or (height, width, channels), "
                f"but the data have {shown(sample)}: {hint}"
            )
        return (sample[2] if len(sample) == 3 else 1, sample[0], sample[1])
    return (1, 1, int(np.prod(sample)))


def shown(shape: Sequence[int | None]) -> str:
    """A shape as a user would write it."""
    return "(" + ", ".join(str(n) for n in shape) + ")"


@dataclass
class _Builder:
    """Layers so far; ``tensors``: the tensor each entry of the file made."""

    input_shape: Shape

    def __post_init__(self) -> None:
        self.layers: list[FloatLayer] = []
        self.tensors: list[int] = []
        self.last = 0

    @property
    def shape(self) -> Shape:
        """Shape of the last tensor."""
        return self._shape_of(self.last)

    def _shape_of(self, tensor: int) -> Shape:
        return cast(Shape, self.layers[tensor - 1].shape) if tensor else self.input_shape

    def append(self, entry: LayerEntry) -> None:
        """Add the layers an entry stands for; ``ValueError`` if it does not fit."""
        name = f"{entry.type}{len(self.tensors) + 1}"
        if not isinstance(entry, FlattenEntry):
            self.layers.append(self._layer(entry, name))
            self.last = len(self.layers)
        self.tensors.append(self.last)

    def _layer(self, entry: LayerEntry, name: str) -> FloatLayer:
        if isinstance(entry, DenseEntry):
            return dense(self.last, self.shape, entry.units, entry.activation, name)
        if isinstance(entry, AddEntry):
            other = self.tensors[entry.from_ - 1]
            if self._shape_of(other) != self.shape:
                raise ValueError(
                    f"the layer before makes {_sizes(self.shape)}, layer {entry.from_} {_sizes(self._shape_of(other))}"
                )
            return plain(Op.ADD, (self.last, other), self.shape, entry.activation, name)
        if isinstance(entry, GlobalAvgPoolEntry):
            return pooling(Op.AVG_POOL, self.last, self.shape, Window(*self.shape[1:]), (1, 1), name)
        assert not isinstance(entry, FlattenEntry)
        return self._window(entry, name)

    def _window(
        self, entry: PoolEntry | Conv1dEntry | Conv2dEntry | DepthwiseConv1dEntry | DepthwiseConv2dEntry, name: str
    ) -> FloatLayer:
        kernel = self._extent(entry.size if isinstance(entry, PoolEntry) else entry.kernel)
        stride = self._extent(entry.stride) if entry.stride else kernel
        window, out = slide(self.shape[1:], kernel, stride, entry.padding)
        if isinstance(entry, PoolEntry):
            return pooling(Op(entry.type), self.last, self.shape, window, out, name)
        if isinstance(entry, Conv1dEntry | Conv2dEntry):
            return convolution(self.last, self.shape, entry.filters, window, out, entry.activation, name)
        return depthwise(self.last, self.shape, entry.multiplier, window, out, entry.activation, name)

    def _extent(self, value: int | tuple[int, int]) -> tuple[int, int]:
        """(height, width); data over time have height 1."""
        if isinstance(value, tuple):
            return value
        return (1 if self.input_shape[1] == 1 else value, value)


def _sizes(shape: Shape) -> str:
    return f"{shape[1]}x{shape[2]}x{shape[0]}"


# ---------------------------------------------------------------- frozen layers


def frozen_layers(layers: Sequence[FloatLayer], freeze: int | None, train_last: int | None) -> int:
    """How many of the layers never learn: as far as the next layer with weights that does.

    ``freeze``, ``train_last``: numbers of layers with weights, of which one may be given.  What learns reads one
    tensor of what does not, the last; raises ``UserError`` with what is possible.
    """
    weighted = [k for k, layer in enumerate(layers) if layer.weighted]
    if freeze is None and train_last is None:
        return 0
    key = "freeze" if freeze is not None else "train_last"
    wanted = freeze if freeze is not None else len(weighted) - cast(int, train_last)
    cuts = {n: _cut(layers, weighted[n - 1], weighted[n]) for n in range(1, len(weighted))}
    possible = [n if key == "freeze" else len(weighted) - n for n, cut in cuts.items() if cut is not None]
    cut = cuts.get(wanted)
    if cut is None:
        numbers = ", ".join(str(n) for n in sorted(possible)) or "nothing: leave it out"
        why = (
            "more than one tensor leads from the frozen layers to the others"
            if wanted in cuts
            else f"the network has {len(weighted)} layers with weights"
        )
        value = freeze if freeze is not None else train_last
        raise UserError(f"model.{key} = {value}: {why}; possible: {numbers}")
    return cut


def _cut(layers: Sequence[FloatLayer], last: int, following: int) -> int | None:
    """The most layers, between two with weights, after which only the newest tensor is read; None if there are none."""
    for cut in range(following, last, -1):
        crossing = {t for layer in layers[cut:] for t in layer.inputs if t <= cut}
        if crossing == {cut}:
            return cut
    return None
