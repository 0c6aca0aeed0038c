# SPDX-License-Identifier: Apache-2.0
"""Types that the stages of the generator hand to each other and to the host tools.

Frozen dataclasses of plain numbers and NumPy arrays; arrays are never written
to after construction.  Number formats are those of docs/spec/numerics.md, the
constants of learning those of docs/spec/algorithm.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

PANEL_PLACES = 256
"""Places on a line of one panel: an index is one byte (docs/spec/numerics.md)."""

ERROR_FRACTION = 14
"""Fractional bits of every error (docs/spec/numerics.md)."""


class Op(StrEnum):
    """What a layer computes (docs/spec/numerics.md, "Layers")."""

    DENSE = "dense"
    CONV = "conv"
    """Convolution over one or two axes; depthwise where ``multiplier`` is not 0."""
    MAX_POOL = "max_pool"
    AVG_POOL = "avg_pool"
    ADD = "add"
    """Sum of its inputs; with one input an activation on its own."""
    PAD = "pad"
    """Copy into a tensor with zero margins."""


class Activation(StrEnum):
    """Activation function after a layer's sums."""

    NONE = "none"
    RELU = "relu"
    RELU6 = "relu6"


class Method(StrEnum):
    """Replay method (docs/spec/algorithm.md, step 6)."""

    FINETUNE = "finetune"
    ER = "er"
    DERPP = "der++"


class SingleHead(StrEnum):
    """Where the logits of other tasks' classes are left out."""

    LOSS = "loss"
    SCORE = "score"
    OFF = "off"


class Growth(StrEnum):
    """How TDM chooses new weights."""

    RANDOM = "random"
    GRADIENT = "gradient"


class DdrScore(StrEnum):
    """Score by which DDR ranks samples."""

    MISCLASSIFICATION = "misclassification"
    LOSS = "loss"


@dataclass(frozen=True)
class Task:
    """One task of the stream: integer inputs as they go to the board.

    ``x_*``: (samples, n_in) uint8 or int8; ``y_*``: (samples,) uint8 labels.
    """

    name: str
    classes: tuple[int, ...]
    x_train: NDArray[np.integer]
    y_train: NDArray[np.uint8]
    x_test: NDArray[np.integer]
    y_test: NDArray[np.uint8]


@dataclass(frozen=True)
class Dataset:
    """The quantised stream of tasks.

    ``signed``: inputs are int8, else uint8.  ``fraction``: fractional bits of
    an input (``x / 2**fraction`` is what the network sees).  ``shape``: of one
    sample before flattening, for pictures.  ``base``: samples the initial model
    was trained on that are not part of any task (``initial.train = "base"``).
    ``class_numbers``: number of each class in the data set's own order, which an imported
    model's outputs have; empty if the order is the same.
    """

    name: str
    class_names: tuple[str, ...]
    shape: tuple[int, ...]
    signed: bool
    fraction: int
    tasks: tuple[Task, ...]
    base: Task | None = None
    class_numbers: tuple[int, ...] = ()

    @property
    def n_in(self) -> int:
        """Values per sample."""
        return int(np.prod(self.shape))

    @property
    def n_classes(self) -> int:
        """Classes over all tasks."""
        return len(self.class_names)


@dataclass(frozen=True)
class Window:
    """How a convolution or a pooling layer moves over its input; one-dimensional data has height 1.

    ``top``, ``left``: zero margin in front, in values of the input; what is needed behind
    follows from the sizes of input and output.
    """

    kernel_h: int
    kernel_w: int
    stride_h: int = 1
    stride_w: int = 1
    top: int = 0
    left: int = 0

    @property
    def area(self) -> int:
        """Values under the window."""
        return self.kernel_h * self.kernel_w

    def behind(self, size: Sequence[int], out: Sequence[int]) -> tuple[int, int]:
        """Rows below and columns right of an input that the window reads; ``size``, ``out``: (height, width)."""
        bottom = (out[0] - 1) * self.stride_h + self.kernel_h - self.top - size[0]
        right = (out[1] - 1) * self.stride_w + self.kernel_w - self.left - size[1]
        return max(0, bottom), max(0, right)


FEW_OUTPUTS = 16
"""A sparse dense layer with no more outputs lies by output: by input its lines would have hardly any entries."""


@dataclass(frozen=True)
class FloatLayer:
    """One layer of the initial model in floating point; all shapes are channel first.

    ``inputs``: the tensors it reads: 0 is the input of the network, k + 1 the output of
    layer k.  ``shape``: (channels, height, width) of its output; a dense layer has (n_out, 1, 1).
    Layers with weights: ``weight``: (n_in, n_out) float64, masked weights are 0, where a
    dense layer's n_in runs over its input channel first, and a convolution's over (channel,
    kernel row, kernel column), without the channel if it is depthwise (``multiplier`` outputs
    for each input channel; 0: not depthwise); ``bias``: (n_out,); ``mask``: (n_in, n_out)
    bool, True where a weight exists; ``saliency``: (n_in, n_out) float64, larger is more
    important (chooses the first gradient mask); ``sparse``: whether masks apply to this
    layer.  Other layers have empty arrays.
    """

    op: Op
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    activation: Activation
    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    mask: NDArray[np.bool_]
    saliency: NDArray[np.float64]
    sparse: bool = False
    window: Window | None = None
    multiplier: int = 0
    name: str = ""
    """The layer's name in the experiment or the imported model."""

    @property
    def weighted(self) -> bool:
        """Whether the layer has weights."""
        return self.op in (Op.DENSE, Op.CONV)

    @property
    def by_output(self) -> bool:
        """Whether its lines, if it is sparse, are its blocks of outputs (docs/spec/numerics.md, "Sparse layers")."""
        return self.op is Op.CONV or (self.op is Op.DENSE and self.weight.shape[1] <= FEW_OUTPUTS)


@dataclass(frozen=True)
class FloatModel:
    """The trained and pruned initial model.

    ``input_shape``: (channels, height, width) of a sample, which is stored as (height, width,
    channels); ``frozen``: how many of the first layers never learn; ``accuracy``: Keras test
    accuracy in percent per task name; ``imported_accuracy``: the same of the imported model
    before anything was masked or trained, empty if none was imported.
    """

    input_shape: tuple[int, ...]
    layers: tuple[FloatLayer, ...]
    accuracy: dict[str, float]
    frozen: int = 0
    imported_accuracy: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Panel:
    """One panel of a sparse layer in storage order (docs/spec/numerics.md, "Sparse layers").

    Lines and places: inputs and blocks of outputs, or, ``by_output``, blocks of outputs and
    inputs (kernel positions of a convolution).  ``start``: (lines + 1,), ``split``: (lines,),
    ``index``: (entries,), all int64; ``weight``: (entries, block) int16.  ``nnz``, ``grad``,
    ``grow_inter``, ``swap``: constants of docs/spec/algorithm.md, in entries.  ``places``:
    places on each line of this panel; ``first``: its first place in the layer.
    """

    first: int
    places: int
    start: NDArray[np.int64]
    split: NDArray[np.int64]
    index: NDArray[np.int64]
    weight: NDArray[np.int16]
    nnz: int
    grad: int
    grow_inter: int
    swap: int

    @property
    def capacity(self) -> int:
        """Most entries the panel ever holds."""
        return self.nnz + self.grow_inter


@dataclass(frozen=True)
class Tensor:
    """One tensor of the network on the board: int16, or 8 bit at the input; channel first with zero margins.

    Value (c, y, x) lies at ``c * plane + (y + top) * row + x + left``.  ``fraction``: fractional
    bits; ``bits``: magnitudes stay below ``2**bits``; ``rectified``: never negative, and its
    error is 0 where it is 0 (docs/spec/numerics.md, "Backward").
    """

    channels: int
    height: int
    width: int
    fraction: int
    bits: int
    rectified: bool
    top: int = 0
    left: int = 0
    bottom: int = 0
    right: int = 0

    @property
    def row(self) -> int:
        """Values from one row to the next."""
        return self.left + self.width + self.right

    @property
    def plane(self) -> int:
        """Values from one channel to the next."""
        return (self.top + self.height + self.bottom) * self.row

    @property
    def values(self) -> int:
        """Values without margins."""
        return self.channels * self.height * self.width

    @property
    def size(self) -> int:
        """Values with margins."""
        return self.channels * self.plane

    @property
    def padded(self) -> bool:
        """Whether there are margins."""
        return self.size != self.values


@dataclass(frozen=True)
class Layer:
    """One layer in fixed point (docs/spec/numerics.md).

    ``inputs``: tensors it reads: 0 is the input of the network, k + 1 the output of layer k.
    ``out``: its output.  ``guard``: limit of the norm guard on its output, 0 for none.

    Layers with weights: ``n_in`` inputs of a dense layer, kernel positions of a convolution
    (depthwise: of one channel); ``n_out`` outputs or output channels, ``n_pad`` rounded up to
    the block.  Sparse layers have ``panels``, whose lines are blocks of outputs if
    ``by_output``, as they always are in convolutions; others have ``weight`` int16, (n_in, n_pad) if
    dense and (n_out, n_in) if a convolution.  ``bias``: (n_pad,) int32, ``fw + fx`` fractional
    bits.  ``ke``, ``elog``: shift and clamp of the error a convolution propagates; ``kg``,
    ``glog``: the same for its steps; ``kc``: shift of the error it is scored by; ``active``:
    most errors other than 0 in one of its output channels.
    """

    op: Op
    inputs: tuple[int, ...]
    out: Tensor
    activation: Activation
    name: str = ""
    guard: int = 0
    window: Window | None = None
    multiplier: int = 0
    n_in: int = 0
    n_out: int = 0
    n_pad: int = 0
    block: int = 1
    sparse: bool = False
    by_output: bool = False
    fw: int = 0
    fx: int = 0
    wlog: int = 0
    blog: int = 0
    l1_in: int = 0
    l1_err: int = 0
    ke: int = 0
    elog: int = 15
    kg: int = 0
    glog: int = 15
    kc: int = 0
    active: int = 0
    bias: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    panels: tuple[Panel, ...] = ()
    weight: NDArray[np.int16] | None = None

    @property
    def weighted(self) -> bool:
        """Whether the layer has weights."""
        return self.op in (Op.DENSE, Op.CONV)

    @property
    def relu(self) -> bool:
        """Whether negative sums become 0."""
        return self.activation is not Activation.NONE

    @property
    def fa(self) -> int:
        """Fractional bits of the output."""
        return self.out.fraction

    @property
    def lines(self) -> int:
        """Lines of a panel: inputs, or blocks of outputs."""
        return self.n_pad // self.block if self.by_output else self.n_in


@dataclass(frozen=True)
class Learning:
    """The constants of learning that are compiled into the firmware (docs/spec/algorithm.md)."""

    method: Method
    epochs: int
    batch: int
    capacity: int
    """Replay slots (0 for finetune)."""
    table: int
    """Largest number of training samples in a task."""
    seed: int
    stochastic: bool
    single_head: SingleHead
    alpha: float
    """Coefficient of the distillation term (0: the pass does not run)."""
    beta: float
    """Coefficient of the replay cross-entropy (0: the pass does not run)."""
    tdm: bool
    updates_per_epoch: int
    update_every_epochs: int
    growth: Growth
    capture: int
    alpha_q8: int
    beta_q8: int
    dgm: bool
    ddr: bool
    ddr_until: int
    rho_permille: int
    ddr_score: DdrScore
    streamed: bool
    lr_q8: tuple[int, ...] = ()
    """Learning rate of each epoch of a task as a share of the first, 8 fractional bits; empty: always the same."""
    shared_draws: int = 0
    """Samples drawn from the buffer in a step, each for both terms at once; 0: one for each term."""
    refresh: bool = False
    """Offer samples to the buffer in the last epoch only, and recompute all its logits at the end of the task."""

    @property
    def passes(self) -> int:
        """Passes of a training step at most, the current sample's included."""
        return 1 + (self.shared_draws or 2)

    def offers(self, epoch: int) -> bool:
        """Whether the samples of an epoch of a task are offered to the buffer."""
        return self.method is not Method.FINETUNE and (not self.refresh or epoch + 1 == self.epochs)

    @property
    def recomputes_logits(self) -> bool:
        """Whether the end of a task changes logits in the buffer; only DER++ keeps any."""
        return self.refresh and self.method is Method.DERPP

    def shipped(self, samples: int) -> NDArray[np.int64]:
        """Indices of the samples that pre-fill the replay buffer, drawn uniformly without replacement."""
        return np.random.default_rng(self.seed).choice(samples, min(self.capacity, samples), replace=False)

    def offered(self, samples: int) -> int:
        """Samples offered to the buffer by a whole task of ``samples`` of which none is removed."""
        return samples * (1 if self.refresh else self.epochs)

    @property
    def distil_share(self) -> int:
        """Share of distillation in the error of a shared draw, 15 fractional bits."""
        return math.floor(32768 * self.alpha / (self.alpha + self.beta) + 0.5) if self.shared_draws else 0


@dataclass(frozen=True)
class LearningRate:
    """``g = sat16(shift(e * multiplier, shift))`` for one term of the loss."""

    multiplier: int
    shift: int


@dataclass(frozen=True)
class Model:
    """Everything the firmware and the reference start from; independent of the board.

    ``prefix``: frozen layers, a network of their own that turns a sample into ``latent``;
    ``layers``: what learns.  ``sample``: a sample as it is sent and, without a stored latent,
    kept: 8 bit, in the order (height, width, channels).  ``latent``: None without a prefix,
    else the 8-bit input of ``layers``, channel first; ``latent_signed``, ``latent_stored``:
    int8 or uint8, and whether records in flash hold it instead of the sample.
    ``model_hash``: first 8 bytes of a SHA-256 over all of it (quantise.py).
    """

    sample: Tensor
    layers: tuple[Layer, ...]
    n_classes: int
    signed: bool
    fg: int
    sacc: int
    current: LearningRate
    distil: LearningRate
    replay: LearningRate
    learning: Learning
    model_hash: bytes
    prefix: tuple[Layer, ...] = ()
    latent: Tensor | None = None
    latent_signed: bool = False
    latent_stored: bool = False

    @property
    def n_in(self) -> int:
        """Values per sample."""
        return self.sample.values

    @property
    def input(self) -> Tensor:
        """The 8-bit input of ``layers``."""
        return self.latent or self.sample

    @property
    def input_signed(self) -> bool:
        """Whether the input is int8; otherwise it is uint8."""
        return self.latent_signed if self.latent else self.signed

    @property
    def n_stored(self) -> int:
        """Values of the input a record in flash holds."""
        return self.input.values if self.latent_stored else self.n_in

    @property
    def weighted(self) -> tuple[tuple[int, Layer], ...]:
        """Layers that learn, with their numbers in ``layers``."""
        return tuple((k, layer) for k, layer in enumerate(self.layers) if layer.weighted)

    def tensor(self, number: int) -> Tensor:
        """Tensor 0 is the input of ``layers``, k + 1 the output of layer k."""
        return self.layers[number - 1].out if number else self.input


def needs_error(layers: tuple[Layer, ...]) -> tuple[bool, ...]:
    """For each tensor (0: the input): whether a layer with weights lies before it."""
    result = [False]
    for layer in layers:
        result.append(layer.weighted or any(result[t] for t in layer.inputs))
    return tuple(result)


@dataclass(frozen=True)
class Region:
    """One dump region (docs/spec/protocol.md): ``itemsize`` bytes per value, signed or not."""

    number: int
    name: str
    itemsize: int
    signed: bool


def position_bytes(model: Model) -> int:
    """Size of an entry number in ``start`` and ``split``: 2, or 4 when a panel is too large for that."""
    largest = max((p.capacity for layer in (*model.prefix, *model.layers) for p in layer.panels), default=0)
    return 2 if largest <= 0xFFFF else 4


def regions(model: Model) -> tuple[Region, ...]:
    """The dump regions of a model, in the order of docs/spec/protocol.md."""
    result = [
        Region(0, "scalars", 1, False),
        Region(1, "table.id", 2, False),
        Region(2, "table.score", 1, False),
        Region(3, "replay", 1, False),
    ]

    def add(name: str, itemsize: int, signed: bool) -> None:
        result.append(Region(12 + len(result), name, itemsize, signed))

    position = position_bytes(model)
    for number, layer in model.weighted:
        if layer.sparse:
            for p in range(len(layer.panels)):
                prefix = f"layer{number}.panel{p}"
                add(f"{prefix}.start", position, False)
                add(f"{prefix}.split", position, False)
                add(f"{prefix}.index", 1, False)
                add(f"{prefix}.weight", 2, True)
        else:
            add(f"layer{number}.weight", 2, True)
        add(f"layer{number}.bias", 4, True)
    return tuple(result)
