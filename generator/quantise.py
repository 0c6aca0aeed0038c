# SPDX-License-Identifier: Apache-2.0
"""From the initial model in floating point to the model of docs/spec/numerics.md.

    layout (a frozen prefix of its own, margins) -> formats -> rates -> weights and biases -> proof

Every accumulator is proved not to overflow before any code is generated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sparcl_mcu.generator import formats, layout, limits, network, prune, rates
from sparcl_mcu.generator.config import Config
from sparcl_mcu.generator.proof import overflow_proof
from sparcl_mcu.generator.store import model_hash
from sparcl_mcu.spec.types import (
    PANEL_PLACES,
    Dataset,
    FloatLayer,
    FloatModel,
    Layer,
    Learning,
    LearningRate,
    Method,
    Model,
    Op,
    Panel,
    Task,
    Tensor,
)

NO_RATE = LearningRate(0, 0)


def quantise(config: Config, dataset: Dataset, float_model: FloatModel) -> Model:
    """The fixed-point model and the constants of learning; raises ``UserError`` if no formats fit."""
    frozen, learns = layout.split(float_model)
    learning = _learning(config, dataset, learns)
    model = _without_layers(dataset, float_model, learning)
    x = _calibration_data(dataset, float_model)
    if frozen:
        model, x = _with_prefix(config, model, frozen, x)
    first = model.input
    net = layout.lay_out(learns, (first.channels, first.height, first.width), sample=not frozen)
    shells = formats.shells(net, x, first, signed=model.input_signed, learning=learning)
    model = replace(model, layers=_blocked(config, shells, net.layers))
    model = _with_rates(config, model, rates.largest_errors(net.layers, x, formats.CALIBRATION_CHUNK))
    filled = tuple(_filled(config, learning, *pair) for pair in zip(model.layers, net.layers, strict=True))
    model = replace(model, layers=filled)
    model = replace(model, model_hash=model_hash(model))
    limits.check(model)
    overflow_proof(model)
    return model


def initial_task(dataset: Dataset) -> Task:
    """The samples the initial model is made with: the base classes, or else the first task."""
    return dataset.base or dataset.tasks[0]


def _calibration_data(dataset: Dataset, float_model: FloatModel) -> NDArray[np.float64]:
    x = initial_task(dataset).x_train
    chosen = network.spread(len(x), formats.CALIBRATION_SAMPLES)
    return network.channel_first(x[chosen], float_model.input_shape, 2.0**-dataset.fraction)


def _without_layers(dataset: Dataset, float_model: FloatModel, learning: Learning) -> Model:
    bits = 7 if dataset.signed else 8
    channels, height, width = float_model.input_shape
    sample = Tensor(channels, height, width, dataset.fraction, bits, rectified=False)
    sacc = math.ceil(math.log2(learning.passes * learning.batch)) if learning.batch > 1 else 0
    return Model(sample, (), dataset.n_classes, dataset.signed, 0, sacc, NO_RATE, NO_RATE, NO_RATE, learning, b"")


def _with_prefix(
    config: Config, model: Model, frozen: Sequence[FloatLayer], x: NDArray[np.float64]
) -> tuple[Model, NDArray[np.float64]]:
    """Quantise the frozen layers: the model with them, and their output on the calibration data."""
    sample = model.sample
    net = layout.lay_out(frozen, (sample.channels, sample.height, sample.width), sample=True)
    shells = _blocked(config, formats.shells(net, x, sample, signed=model.signed, learning=None), net.layers)
    latents = formats.last_tensor(net.layers, x)
    model = replace(
        model,
        prefix=tuple(_filled(config, None, *pair) for pair in zip(shells, net.layers, strict=True)),
        latent=formats.latent_format(shells[-1], latents),
        latent_signed=not shells[-1].out.rectified,
        latent_stored=config.model.latent,
    )
    return model, latents


def _with_rates(config: Config, model: Model, errors: Sequence[float]) -> Model:
    """The model without weights, with its learning rates and what convolutions do to their errors.

    ``errors``: of each tensor the largest that is not to be clamped.
    """
    learning = model.learning
    coefficients = (1.0, learning.alpha, learning.beta)
    if learning.shared_draws:
        coefficients = (1.0, 0.0, (learning.alpha + learning.beta) / learning.shared_draws)
    rate = config.method.lr / learning.batch
    fg = rates.gradient_fraction(rate * max(coefficients), model.layers, model.sacc)
    current, distil, replay = (rates.learning_rate(rate * c, fg) for c in coefficients)
    model = replace(model, fg=fg, current=current, distil=distil, replay=replay)
    for number in range(len(model.layers)):
        layer = rates.tuned(model, number, rate * max(coefficients), errors[number + 1])
        model = replace(model, layers=(*model.layers[:number], layer, *model.layers[number + 1 :]))
    return model


# ---------------------------------------------------------------- weights and biases


def _blocked(config: Config, shells: Sequence[Layer], sources: Sequence[FloatLayer]) -> tuple[Layer, ...]:
    """The layers with what their blocks are, still without weights."""
    result = []
    for layer, source in zip(shells, sources, strict=True):
        block = config.sparsity.block if source.sparse else 1
        n_pad = prune.blocks_of(layer.n_out, block) * block
        by_output = source.sparse and source.by_output
        result.append(replace(layer, n_pad=n_pad, block=block, sparse=source.sparse, by_output=by_output))
    return tuple(result)


def _filled(config: Config, learning: Learning | None, layer: Layer, source: FloatLayer) -> Layer:
    """Weights and biases rounded half up to their formats, in the order the board stores them.

    ``learning``: None for frozen layers.
    """
    if not layer.weighted:
        return layer
    n_in, n_out = source.weight.shape
    weight = np.zeros((n_in, layer.n_pad), dtype=np.int16)
    weight[:, :n_out] = _rounded(source.weight * source.mask, layer.fw, -(1 << layer.wlog), (1 << layer.wlog) - 1)
    limit = (1 << layer.blog) - 1
    bias = np.zeros(layer.n_pad, dtype=np.int32)
    bias[:n_out] = _rounded(source.bias, layer.fw + layer.fx, -limit, limit)
    if source.sparse:
        return replace(layer, bias=bias, panels=_panels(config, learning, source, weight, layer.block))
    return replace(layer, bias=bias, weight=np.ascontiguousarray(weight.T) if layer.op is Op.CONV else weight)


def _rounded(values: NDArray[np.float64], fraction: int, low: int, high: int) -> NDArray[np.int64]:
    return np.clip(np.floor(values * 2.0**fraction + 0.5), low, high).astype(np.int64)


def _panels(
    config: Config, learning: Learning | None, source: FloatLayer, weight: NDArray[np.int16], block: int
) -> tuple[Panel, ...]:
    n_in, n_pad = weight.shape
    present = prune.lines_first(source, source.mask[:, ::block])
    scores = prune.lines_first(source, prune.block_scores(source.saliency, block))
    parts = weight.reshape(n_in, n_pad // block, block)
    if source.by_output:
        parts = parts.transpose(1, 0, 2)
    return tuple(
        _panel(config, learning, first, present[:, s], scores[:, s], parts[:, s])
        for first, s in ((k, slice(k, k + PANEL_PLACES)) for k in range(0, present.shape[1], PANEL_PLACES))
    )


def _panel(
    config: Config,
    learning: Learning | None,
    first: int,
    present: NDArray[np.bool_],
    scores: NDArray[np.float64],
    parts: NDArray[np.int16],
) -> Panel:
    """One panel in storage order.

    ``present``, ``scores``: (lines, places); ``parts``: (lines, places, block).  The first
    gradient mask is the ``grad`` entries of the highest saliency.
    """
    lines, places = present.shape
    nnz = int(present.sum())
    grad = nnz
    if config.dgm.enabled and learning is not None:
        grad = min(nnz, prune.entries_kept(config.gradient_sparsity, lines, places))
    learns = prune.top_entries(np.where(present, scores, -np.inf), grad)
    line, index = np.nonzero(present)
    order = np.lexsort((index, ~learns[line, index], line))
    line, index = line[order], index[order]
    start = np.concatenate(([0], np.cumsum(present.sum(axis=1)))).astype(np.int64)
    moves = learning is not None and learning.tdm
    return Panel(
        first=first,
        places=places,
        start=start,
        split=start[:-1] + learns.sum(axis=1).astype(np.int64),
        index=index.astype(np.int64),
        weight=np.ascontiguousarray(parts[line, index]),
        nnz=nnz,
        grad=grad,
        grow_inter=min(math.floor(config.tdm.p_inter * lines * places + 0.5), lines * places - nnz) if moves else 0,
        swap=math.floor(config.tdm.p_intra * nnz + 1e-9) if moves else 0,
    )


# ---------------------------------------------------------------- learning


def _learning(config: Config, dataset: Dataset, layers: Sequence[FloatLayer]) -> Learning:
    """The constants of learning; ``layers``: those that learn."""
    m, tdm, ddr = config.method, config.tdm, config.ddr
    replays = m.name is not Method.FINETUNE
    on_board = dataset.tasks[1:] if config.tasks.first == "host" else dataset.tasks
    updates, epochs = config.update_interval
    return Learning(
        method=m.name,
        epochs=m.epochs,
        batch=m.batch,
        capacity=m.buffer if replays else 0,
        table=max(len(task.y_train) for task in on_board),
        seed=config.experiment.seed,
        stochastic=m.rounding == "stochastic",
        single_head=m.single_head,
        alpha=m.alpha if m.name is Method.DERPP else 0.0,
        # ER has one replay term, of the same weight as the current loss (docs/spec/algorithm.md, step 6).
        beta={Method.DERPP: m.beta, Method.ER: 1.0, Method.FINETUNE: 0.0}[m.name],
        tdm=tdm.enabled and any(not layer.mask.all() for layer in layers),
        updates_per_epoch=updates,
        update_every_epochs=epochs,
        growth=tdm.growth,
        capture=tdm.capture,
        alpha_q8=math.floor(256 * tdm.alpha + 0.5),
        beta_q8=math.floor(256 * tdm.beta + 0.5),
        dgm=config.dgm.enabled and any(layer.sparse for layer in layers),
        ddr=ddr.enabled,
        ddr_until=config.ddr_until,
        rho_permille=math.floor(1000 * ddr.rho + 0.5),
        ddr_score=ddr.score,
        streamed=m.training == "streamed",
        lr_q8=_lr_q8(m.lr_final, m.epochs),
        shared_draws=m.shared_draws if m.name is Method.DERPP and m.alpha > 0 and m.beta > 0 else 0,
        refresh=m.refresh and replays,
    )


def _lr_q8(final: float, epochs: int) -> tuple[int, ...]:
    """Shares of the learning rate, falling linearly from 1 to ``final`` over the epochs of a task."""
    if final == 1.0 or epochs == 1:
        return ()
    return tuple(max(1, round(256 * (1 - (1 - final) * t / (epochs - 1)))) for t in range(epochs))
