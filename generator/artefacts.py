# SPDX-License-Identifier: Apache-2.0
"""What the stages of the generator hand to each other and to the host tools.

Frozen dataclasses of plain numbers and NumPy arrays; arrays are never written
to after construction.  Number formats are those of docs/numerics.md, the
constants of learning those of docs/algorithm.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

PANEL_BLOCKS = 256
"""Blocks of outputs in one panel: an index is one byte (docs/numerics.md)."""

ERROR_FRACTION = 14
"""Fractional bits of every error (docs/numerics.md)."""


class Method(StrEnum):
    """Replay method (docs/algorithm.md, step 6)."""

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
    """What DDR ranks samples by."""

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
    """

    name: str
    class_names: tuple[str, ...]
    shape: tuple[int, ...]
    signed: bool
    fraction: int
    tasks: tuple[Task, ...]
    base: Task | None = None

    @property
    def n_in(self) -> int:
        """Values per sample."""
        return int(np.prod(self.shape))

    @property
    def n_classes(self) -> int:
        """Classes over all tasks."""
        return len(self.class_names)


@dataclass(frozen=True)
class FloatLayer:
    """A fully connected layer of the initial model in floating point.

    ``weight``: (n_in, n_out) float64, masked weights are 0; ``bias``: (n_out,);
    ``mask``: (n_in, n_out) bool, True where a weight exists; ``saliency``:
    (n_in, n_out) float64, larger is more important (chooses the first gradient
    mask); ``sparse``: whether masks apply to this layer.
    """

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    mask: NDArray[np.bool_]
    saliency: NDArray[np.float64]
    sparse: bool
    relu: bool


@dataclass(frozen=True)
class FloatModel:
    """The trained and pruned initial model; ``accuracy``: Keras test accuracy in percent per task name."""

    layers: tuple[FloatLayer, ...]
    accuracy: dict[str, float]


@dataclass(frozen=True)
class Panel:
    """One panel of a sparse layer in storage order (docs/numerics.md).

    ``start``: (n_in + 1,), ``split``: (n_in,), ``index``: (entries,), all int64;
    ``weight``: (entries, block) int16.  ``nnz``, ``grad``, ``grow_inter``,
    ``swap``: constants of docs/algorithm.md, in entries.  ``blocks``: blocks of
    outputs in this panel; ``first``: its first block in the layer.
    """

    first: int
    blocks: int
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
class Layer:
    """One fully connected layer in fixed point (docs/numerics.md).

    Sparse layers have ``panels``; dense layers have ``weight`` (n_in, n_pad)
    int16.  ``bias``: (n_pad,) int32, ``fw + fx`` fractional bits.
    """

    n_in: int
    n_out: int
    n_pad: int
    block: int
    sparse: bool
    relu: bool
    fw: int
    fx: int
    fa: int
    wlog: int
    blog: int
    l1_in: int
    l1_err: int
    bias: NDArray[np.int32]
    panels: tuple[Panel, ...] = ()
    weight: NDArray[np.int16] | None = None


@dataclass(frozen=True)
class Learning:
    """The constants of learning that are compiled into the firmware (docs/algorithm.md)."""

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


@dataclass(frozen=True)
class LearningRate:
    """``g = sat16(shift(e * multiplier, shift))`` for one term of the loss."""

    multiplier: int
    shift: int


@dataclass(frozen=True)
class Model:
    """Everything the firmware and the reference start from; independent of the board.

    ``model_hash``: first 8 bytes of a SHA-256 over all of it (quantise.py).
    """

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

    @property
    def n_in(self) -> int:
        """Values per sample."""
        return self.layers[0].n_in


@dataclass(frozen=True)
class Region:
    """One dump region (docs/protocol.md): ``itemsize`` bytes per value, signed or not."""

    number: int
    name: str
    itemsize: int
    signed: bool


def position_bytes(model: Model) -> int:
    """Size of an entry number in ``start`` and ``split``: 2, or 4 when a panel is too large for that."""
    largest = max((p.capacity for layer in model.layers for p in layer.panels), default=0)
    return 2 if largest <= 0xFFFF else 4


def regions(model: Model) -> tuple[Region, ...]:
    """The dump regions of a model, in the order of docs/protocol.md."""
    result = [
        Region(0, "scalars", 1, False),
        Region(1, "table.id", 2, False),
        Region(2, "table.score", 1, False),
        Region(3, "replay", 1, False),
    ]

    def add(name: str, itemsize: int, signed: bool) -> None:
        result.append(Region(12 + len(result), name, itemsize, signed))

    position = position_bytes(model)
    for number, layer in enumerate(model.layers):
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
