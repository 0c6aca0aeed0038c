# SPDX-License-Identifier: Apache-2.0
"""Random small models and tasks for tests: valid artefacts without the generator."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from generator.artefacts import (
    PANEL_BLOCKS,
    DdrScore,
    Growth,
    Layer,
    Learning,
    LearningRate,
    Method,
    Model,
    Panel,
    SingleHead,
)

BLOG = 24
FG = 18
SUM_MAX = 2**31 - 1

LEARNING = Learning(
    method=Method.DERPP,
    epochs=2,
    batch=1,
    capacity=8,
    table=64,
    seed=1,
    stochastic=True,
    single_head=SingleHead.LOSS,
    alpha=0.5,
    beta=0.5,
    tdm=True,
    updates_per_epoch=2,
    update_every_epochs=1,
    growth=Growth.RANDOM,
    capture=4,
    alpha_q8=128,
    beta_q8=256,
    dgm=True,
    ddr=True,
    ddr_until=2,
    rho_permille=300,
    ddr_score=DdrScore.MISCLASSIFICATION,
    streamed=False,
)
"""Everything switched on; ``random_model`` takes replacements by keyword."""


def rate(value: float, batch: int = 1) -> LearningRate:
    """A learning rate as multiplier (15 bits) and shift for ``FG`` fractional bits."""
    if value == 0:
        return LearningRate(0, 0)
    scaled = value / batch * 2.0 ** (FG - 14)
    exponent = 14 - int(np.floor(np.log2(scaled)))
    return LearningRate(round(scaled * 2.0**exponent), exponent)


def random_model(
    seed: int = 0,
    *,
    sizes: Sequence[int] = (12, 16, 8, 4),
    sparse: Sequence[bool] | None = None,
    block: int = 2,
    density: float = 0.4,
    grad_share: float = 0.6,
    p_intra: float = 0.2,
    p_inter: float = 0.1,
    signed: bool = False,
    scale: float = 1.0,
    tight: bool = False,
    fraction: int = 9,
    learning_rate: float = 0.05,
    **learning: Any,
) -> Model:
    """A model with random weights and masks.

    ``sizes``: n_in, hidden sizes, classes.  ``sparse``: per layer; by default
    all but the last.  ``block``: of the sparse layers.  ``scale``: of the
    weights.  ``tight``: norm guards that act.  ``fraction``: fractional bits of
    hidden activations.  Other keywords replace fields of ``Learning``.
    """
    rng = np.random.default_rng(seed)
    constants = replace(LEARNING, **({"seed": seed} | learning))
    if constants.method is Method.FINETUNE:
        constants = replace(constants, capacity=0)
    count = len(sizes) - 1
    masked = [number + 1 < count for number in range(count)] if sparse is None else list(sparse)
    layers = []
    for number in range(count):
        width = block if masked[number] else 1
        layer = _layer(rng, number, sizes, width, masked[number], signed, tight, fraction)
        weight = rng.normal(size=(layer.n_in, layer.n_out)) * scale / np.sqrt(layer.n_in * max(density, 0.1))
        layers.append(_filled(layer, rng, weight, density, grad_share, p_intra, p_inter))
    batch = constants.batch
    der = constants.method is Method.DERPP
    return Model(
        layers=tuple(layers),
        n_classes=sizes[-1],
        signed=signed,
        fg=FG,
        sacc=int(np.ceil(np.log2(3 * batch))),
        current=rate(learning_rate, batch),
        distil=rate(learning_rate * constants.alpha * der, batch),
        replay=rate(learning_rate * constants.beta, batch),
        learning=constants,
        model_hash=rng.bytes(8),
    )


def random_samples(
    model: Model, classes: Sequence[int], count: int, seed: int = 0
) -> tuple[NDArray[np.integer], NDArray[np.uint8]]:
    """Inputs (count, n_in), about a third zero, that depend on their labels (count,)."""
    rng = np.random.default_rng(seed)
    dtype = np.int8 if model.signed else np.uint8
    low, high = (-128, 127) if model.signed else (0, 255)
    labels = rng.choice(np.array(classes), size=count)
    centres = np.random.default_rng(99).uniform(low, high, size=(model.n_classes, model.n_in))
    x = centres[labels] * (centres[labels] > 0) + rng.normal(size=(count, model.n_in)) * 40
    x[rng.random(x.shape) < 0.33] = 0
    return np.clip(np.round(x), low, high).astype(dtype), labels.astype(np.uint8)


def task_begin(classes: Sequence[int], count: int, mode: int = 0) -> bytes:
    """Request ``task_begin``."""
    return struct.pack("<BHB", mode, count, len(classes)) + bytes(classes)


def samples(first: int, x: NDArray[np.integer], y: NDArray[np.uint8]) -> bytes:
    """Request ``samples``."""
    rows = b"".join(bytes([label]) + row.tobytes() for label, row in zip(y.tolist(), x, strict=True))
    return struct.pack("<HB", first, len(y)) + rows


def _layer(
    rng: np.random.Generator,
    number: int,
    sizes: Sequence[int],
    block: int,
    sparse: bool,
    signed: bool,
    tight: bool,
    fraction: int,
) -> Layer:
    """The constants of one layer, without weights."""
    n_in, n_out = sizes[number], sizes[number + 1]
    n_pad = -(-n_out // block) * block
    first = number == 0
    largest = n_in * (128 if signed else 255)
    wlog = 15
    while first and largest << wlog > SUM_MAX - (1 << BLOG):
        wlog -= 1
    fw = wlog - 3
    fx = (7 if signed else 8) if first else fraction
    limit = 0 if first else (SUM_MAX - (1 << BLOG)) >> wlog
    l1_err = SUM_MAX >> wlog
    if tight:
        limit, l1_err = limit // 64, l1_err // 8
    bias = np.zeros(n_pad, dtype=np.int32)
    bias[:n_out] = rng.integers(-(1 << (fw + fx - 4)), 1 << (fw + fx - 4), size=n_out)
    last = number == len(sizes) - 2
    return Layer(
        n_in=n_in,
        n_out=n_out,
        n_pad=n_pad,
        block=block,
        sparse=sparse,
        relu=not last,
        fw=fw,
        fx=fx,
        fa=10 if last else fraction,
        wlog=wlog,
        blog=BLOG,
        l1_in=limit,
        l1_err=l1_err,
        bias=bias,
    )


def _filled(
    layer: Layer,
    rng: np.random.Generator,
    weight: NDArray[np.float64],
    density: float,
    grad_share: float,
    p_intra: float,
    p_inter: float,
) -> Layer:
    """The layer with weights (n_in, n_out), in panels if it is sparse."""
    limit = 1 << layer.wlog
    integers = np.zeros((layer.n_in, layer.n_pad), dtype=np.int16)
    rounded = np.round(weight * (1 << layer.fw))
    integers[:, : layer.n_out] = np.clip(rounded, -limit, limit - 1).astype(np.int16)
    if not layer.sparse:
        return replace(layer, weight=integers)
    blocks = layer.n_pad // layer.block
    panels = []
    for first in range(0, blocks, PANEL_BLOCKS):
        size = min(PANEL_BLOCKS, blocks - first)
        columns = slice(first * layer.block, (first + size) * layer.block)
        values = integers[:, columns].reshape(layer.n_in, size, layer.block)
        panels.append(_panel(rng, first, values, density, grad_share, p_intra, p_inter))
    return replace(layer, panels=tuple(panels))


def _panel(
    rng: np.random.Generator,
    first: int,
    values: NDArray[np.int16],
    density: float,
    grad_share: float,
    p_intra: float,
    p_inter: float,
) -> Panel:
    """One panel with a random mask; ``values``: (n_in, blocks, block)."""
    n_in, blocks, _ = values.shape
    places = n_in * blocks
    nnz = max(1, int(density * places))
    grad = max(1, int(grad_share * nnz))
    chosen = rng.permutation(places)[:nnz]
    rank = np.arange(nnz) >= grad
    order = np.lexsort((chosen % blocks, rank, chosen // blocks))
    inputs, index, outside = chosen[order] // blocks, chosen[order] % blocks, rank[order]
    start = np.concatenate([[0], np.cumsum(np.bincount(inputs, minlength=n_in))])
    split = start[:-1] + np.bincount(inputs[~outside], minlength=n_in)
    return Panel(
        first=first,
        blocks=blocks,
        start=start.astype(np.int64),
        split=split.astype(np.int64),
        index=index.astype(np.int64),
        weight=values[inputs, index],
        nnz=nnz,
        grad=grad,
        grow_inter=min(int(p_inter * nnz), places - nnz),
        swap=int(p_intra * nnz),
    )
