# SPDX-License-Identifier: Apache-2.0
"""From the initial model in floating point to the model of docs/numerics.md.

Formats are chosen with head-room for what weights and activations become while
the board learns, and every accumulator is proved not to overflow, with Python's
unbounded integers, before any code is generated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from generator import prune
from generator.artefacts import (
    ERROR_FRACTION,
    PANEL_BLOCKS,
    Dataset,
    FloatLayer,
    FloatModel,
    Layer,
    Learning,
    LearningRate,
    Method,
    Model,
    Panel,
    Task,
)
from generator.config import Config
from generator.errors import UserError
from generator.store import model_hash

INT32_MAX = 2**31 - 1
UINT32_MAX = 2**32 - 1

WEIGHT_LEAST = 4.0
"""Weights of the first and the last layer can grow to this magnitude (seen in float runs: 1.84), ..."""

WEIGHT_LEAST_MIDDLE = 2.0
"""... those between to this one, ..."""

WEIGHT_HEADROOM = 2.0
"""... and all to this multiple of the largest initial weight."""

WEIGHT_LOG_FIRST, WEIGHT_LOG_MIDDLE, WEIGHT_LOG_LAST = 15, 13, 14
"""Bits of a weight's magnitude.

The norm guards of a later layer allow sum|x| < 2**(31 - wlog) and sum|e| likewise, so
fewer bits leave room: 8.0 for the errors of the output (seen: 7.1), 16.0 for those of a
hidden layer, and 510 for the sum of 512 activations in Q7.8 (seen: 265).
"""

BIAS_LEAST = 8.0
"""Biases can grow to this magnitude where the first layer's proof leaves room, ..."""

BIAS_LEAST_INPUT = 2.0
"""... and to this one at least in the first layer."""

ACTIVATION_HEADROOM = 4.0
"""Activations and logits can grow to this multiple of the largest on the initial data."""

ACTIVATION_FRACTION = 8
"""Most fractional bits of activations and logits (Q7.8)."""

ACTIVATION_SUM_HEADROOM = 1.5
"""The norm guard acts above this multiple of the largest initial sum of activations."""

CALIBRATION_SAMPLES = 512
"""Samples of the initial data that are looked at."""


@dataclass(frozen=True)
class ProofLine:
    """One sum or product and the most it can be.

    ``how``: bounded by constants (static), by the norm guard, or by a clamp before it.
    """

    layer: str
    accumulator: str
    worst: int
    limit: int
    how: Literal["static", "norm guard", "clamp"]


@dataclass(frozen=True)
class _Format:
    """Formats of one layer (docs/numerics.md, "Symbols")."""

    fw: int
    fx: int
    fa: int
    wlog: int
    blog: int

    @property
    def rounding(self) -> int:
        """What ``shift`` adds to the accumulator before it shifts."""
        s = self.fw + self.fx - self.fa
        return 1 << (s - 1) if s > 0 else 0

    @property
    def norm_limit(self) -> int:
        """Largest sum|x| for which the accumulator, its bias and its rounding fit int32."""
        return (INT32_MAX - (1 << self.blog) - self.rounding) >> self.wlog


def quantise(config: Config, dataset: Dataset, float_model: FloatModel) -> Model:
    """The fixed-point model and the constants of learning; raises ``UserError`` if no formats fit."""
    formats = _calibrate(dataset, float_model)
    learning = _learning(config, dataset, float_model)
    layers = tuple(
        _layer(config, learning, layer, f, first=k == 0)
        for k, (layer, f) in enumerate(zip(float_model.layers, formats, strict=True))
    )
    sacc = math.ceil(math.log2(3 * learning.batch)) if learning.batch > 1 else 0
    coefficients = (1.0, learning.alpha, learning.beta)
    fg = _gradient_fraction(config.method.lr / learning.batch * max(coefficients), layers, sacc)
    current, distil, replay = (_learning_rate(config.method.lr / learning.batch * c, fg) for c in coefficients)
    model = Model(layers, dataset.n_classes, dataset.signed, fg, sacc, current, distil, replay, learning, b"")
    model = replace(model, model_hash=model_hash(model))
    overflow_proof(model)
    return model


# ---------------------------------------------------------------- formats


def initial_task(dataset: Dataset) -> Task:
    """The samples the initial model is made with: the base classes, or else the first task."""
    return dataset.base or dataset.tasks[0]


def forward(layers: Sequence[FloatLayer], x: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Outputs of all layers for x (samples, n_in), after ReLU where there is one."""
    outputs: list[NDArray[np.float64]] = []
    for layer in layers:
        x = x @ layer.weight + layer.bias
        x = np.maximum(x, 0.0) if layer.relu else x
        outputs.append(x)
    return outputs


def _calibrate(dataset: Dataset, float_model: FloatModel) -> list[_Format]:
    x = initial_task(dataset).x_train[:CALIBRATION_SAMPLES] / 2.0**dataset.fraction
    outputs = forward(float_model.layers, x)
    formats: list[_Format] = []
    fx = dataset.fraction
    for number, (layer, output) in enumerate(zip(float_model.layers, outputs, strict=True)):
        last = number == len(outputs) - 1
        wlog = WEIGHT_LOG_FIRST if number == 0 else WEIGHT_LOG_LAST if last else WEIGHT_LOG_MIDDLE
        least = WEIGHT_LEAST if number == 0 or last else WEIGHT_LEAST_MIDDLE
        fw = wlog - _log2_ceil(max(least, WEIGHT_HEADROOM * float(np.abs(layer.weight).max())))
        fa = _activation_fraction(output, last=last)
        largest_bias = max(float(np.abs(layer.bias).max()) * 2.0, BIAS_LEAST)
        f = _Format(fw, fx, fa, wlog, fw + fx + _log2_ceil(largest_bias))
        if number == 0:
            f = _fit_input(f, layer.weight.shape[0] * largest_input(dataset.signed), layer)
        _check_format(number, f)
        formats.append(f)
        fx = fa
    return formats


def _check_format(number: int, f: _Format) -> None:
    """docs/numerics.md shifts by ``fw``, ``fa + 5`` and the like: none may be negative."""
    if f.fw < 1 or f.fa < 0 or not 0 < f.blog < 30 or f.fw + f.fx < f.fa:
        raise UserError(
            f"initial model: weights or outputs of layer {number} are too large for 16 bits "
            f"(fractional bits: weights {f.fw}, outputs {f.fa}); scale the inputs down or lower initial.lr"
        )


def _activation_fraction(output: NDArray[np.float64], *, last: bool) -> int:
    """Fractional bits of a layer's outputs (samples, n_out), with room for the largest and for their sum."""
    largest = ACTIVATION_HEADROOM * max(float(np.abs(output).max()), 1e-6)
    fraction = min(ACTIVATION_FRACTION, 15 - _log2_ceil(largest))
    if last:
        return fraction
    total = ACTIVATION_SUM_HEADROOM * max(float(np.abs(output).sum(axis=1).max()), 1e-6)
    # The next layer has at most WEIGHT_LOG_LAST bits; its bias takes less than 1 % of the limit.
    return min(fraction, math.floor(math.log2(0.99 * 2.0 ** (31 - WEIGHT_LOG_LAST) / total)))


def _log2_ceil(value: float) -> int:
    """Least n with 2**n >= value."""
    return math.ceil(math.log2(value))


def largest_input(signed: bool) -> int:
    """Largest magnitude of an input as it is stored."""
    return 128 if signed else 255


def _fit_input(f: _Format, norm: int, layer: FloatLayer) -> _Format:
    """Lower ``blog``, then ``wlog`` with ``fw``, until the first layer fits for any mask and input."""
    least_bias = _log2_ceil(max(BIAS_LEAST_INPUT, 2.0 * float(np.abs(layer.bias).max())))
    wide = f.blog - f.fw - f.fx
    while f.wlog > 0:
        for bias in range(wide, least_bias - 1, -1):
            candidate = replace(f, blog=f.fw + f.fx + bias)
            if candidate.blog < 31 and norm <= candidate.norm_limit:
                return candidate
        f = replace(f, wlog=f.wlog - 1, fw=f.fw - 1)
    raise UserError(f"model: {layer.weight.shape[0]} inputs are too many for 32-bit sums; use fewer inputs")


# ---------------------------------------------------------------- layers


def _layer(config: Config, learning: Learning, layer: FloatLayer, f: _Format, *, first: bool) -> Layer:
    """Weights and biases rounded half up to their formats, in the order the board stores them."""
    n_in, n_out = layer.weight.shape
    block = config.sparsity.block if layer.sparse else 1
    blocks = prune.blocks_of(n_out, block)
    weight = np.zeros((n_in, blocks * block), dtype=np.int16)
    weight[:, :n_out] = _rounded(layer.weight * layer.mask, f.fw, -(1 << f.wlog), (1 << f.wlog) - 1)
    limit = (1 << f.blog) - 1
    bias = np.zeros(blocks * block, dtype=np.int32)
    bias[:n_out] = _rounded(layer.bias, f.fw + f.fx, -limit, limit)
    return Layer(
        n_in=n_in,
        n_out=n_out,
        n_pad=blocks * block,
        block=block,
        sparse=layer.sparse,
        relu=layer.relu,
        fw=f.fw,
        fx=f.fx,
        fa=f.fa,
        wlog=f.wlog,
        blog=f.blog,
        l1_in=0 if first else f.norm_limit,
        l1_err=0 if first else (INT32_MAX - (1 << (f.fw - 1) if f.fw > 0 else 0)) >> f.wlog,
        bias=bias,
        panels=_panels(config, learning, layer, weight, block) if layer.sparse else (),
        weight=None if layer.sparse else weight,
    )


def _rounded(values: NDArray[np.float64], fraction: int, low: int, high: int) -> NDArray[np.int64]:
    return np.clip(np.floor(values * 2.0**fraction + 0.5), low, high).astype(np.int64)


def _panels(
    config: Config, learning: Learning, layer: FloatLayer, weight: NDArray[np.int16], block: int
) -> tuple[Panel, ...]:
    n_in, n_pad = weight.shape
    present = layer.mask[:, ::block]
    scores = prune.block_scores(layer.saliency, block)
    parts = weight.reshape(n_in, n_pad // block, block)
    return tuple(
        _panel(config, learning, first, present[:, s], scores[:, s], parts[:, s])
        for first, s in ((k, slice(k, k + PANEL_BLOCKS)) for k in range(0, n_pad // block, PANEL_BLOCKS))
    )


def _panel(
    config: Config,
    learning: Learning,
    first: int,
    present: NDArray[np.bool_],
    scores: NDArray[np.float64],
    parts: NDArray[np.int16],
) -> Panel:
    """One panel in storage order.

    ``present``, ``scores``: (n_in, blocks); ``parts``: (n_in, blocks, block).  The first
    gradient mask is the ``grad`` entries of the highest saliency.
    """
    n_in, blocks = present.shape
    places, nnz = n_in * blocks, int(present.sum())
    grad = nnz
    if config.dgm.enabled:
        grad = min(nnz, prune.entries_kept(config.gradient_sparsity, n_in, blocks))
    learns = prune.top_entries(np.where(present, scores, -np.inf), grad)
    inputs, index = np.nonzero(present)
    order = np.lexsort((index, ~learns[inputs, index], inputs))
    inputs, index = inputs[order], index[order]
    start = np.concatenate(([0], np.cumsum(present.sum(axis=1)))).astype(np.int64)
    return Panel(
        first=first,
        blocks=blocks,
        start=start,
        split=start[:-1] + learns.sum(axis=1).astype(np.int64),
        index=index.astype(np.int64),
        weight=np.ascontiguousarray(parts[inputs, index]),
        nnz=nnz,
        grad=grad,
        grow_inter=min(math.floor(config.tdm.p_inter * places + 0.5), places - nnz) if learning.tdm else 0,
        swap=math.floor(config.tdm.p_intra * nnz + 1e-9) if learning.tdm else 0,
    )


# ---------------------------------------------------------------- learning


def _learning(config: Config, dataset: Dataset, float_model: FloatModel) -> Learning:
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
        # ER has one replay term, of the same weight as the current loss (docs/algorithm.md, step 6).
        beta={Method.DERPP: m.beta, Method.ER: 1.0, Method.FINETUNE: 0.0}[m.name],
        tdm=tdm.enabled and any(not layer.mask.all() for layer in float_model.layers),
        updates_per_epoch=updates,
        update_every_epochs=epochs,
        growth=tdm.growth,
        capture=tdm.capture,
        alpha_q8=math.floor(256 * tdm.alpha + 0.5),
        beta_q8=math.floor(256 * tdm.beta + 0.5),
        dgm=config.dgm.enabled and any(layer.sparse for layer in float_model.layers),
        ddr=ddr.enabled,
        ddr_until=config.ddr_until,
        rho_permille=math.floor(1000 * ddr.rho + 0.5),
        ddr_score=ddr.score,
        streamed=m.training == "streamed",
        lr_q8=_lr_q8(m.lr_final, m.epochs),
    )


def _lr_q8(final: float, epochs: int) -> tuple[int, ...]:
    """Shares of the learning rate, falling linearly from 1 to ``final`` over the epochs of a task."""
    if final == 1.0 or epochs == 1:
        return ()
    return tuple(max(1, round(256 * (1 - (1 - final) * t / (epochs - 1)))) for t in range(epochs))


def update_shift(layer: Layer, fg: int) -> int:
    """``su`` of docs/numerics.md: how far ``g * x`` is shifted to become a step of a weight."""
    return fg + layer.fx - layer.fw


def _gradient_fraction(rate: float, layers: Sequence[Layer], sacc: int) -> int:
    """The most fractional bits ``g`` can have.

    ``|e|`` is at most 2, so 2 * rate * 2**fg has to fit int16; more bits lose less of
    small errors.  Then every ``su`` has to stay within 1..30 (and above ``sacc`` for a batch).
    """
    fg = math.floor(math.log2(32767 / (2.0 * rate)))
    fg = min([fg, *(30 - layer.fx + layer.fw for layer in layers), *(layer.fw + layer.fx + 30 for layer in layers)])
    for number, layer in enumerate(layers):
        if update_shift(layer, fg) - sacc < 1:
            raise UserError(
                f"method.lr, method.batch: in layer {number} a weight's step has no bits to round away "
                f"(su = {update_shift(layer, fg)}, batch shift {sacc}); use a smaller lr, or inputs "
                "with more fractional bits"
            )
    return fg


def _learning_rate(rate: float, fg: int) -> LearningRate:
    """``g = shift(e * multiplier, shift)``, multiplier in [16384, 32767]; 0, 0 for no such term."""
    if rate == 0.0:
        return LearningRate(0, 0)
    factor = rate * 2.0 ** (fg - ERROR_FRACTION)
    shift = 14 - math.floor(math.log2(factor))
    multiplier = math.floor(factor * 2.0**shift + 0.5)
    if multiplier > 32767:
        multiplier, shift = 16384, shift - 1
    if not 0 <= shift <= 30:
        raise UserError(f"method.lr, alpha, beta: a learning rate of {rate:g} cannot be expressed beside the others")
    return LearningRate(multiplier, shift)


# ---------------------------------------------------------------- proof


def overflow_proof(model: Model) -> list[ProofLine]:
    """The worst case of every accumulator over all masks, weights and inputs a run can reach.

    Raises ``UserError`` if one does not fit its type.
    """
    lines = [line for number, layer in enumerate(model.layers) for line in _layer_proof(model, number, layer)]
    lines += _loss_proof(model)
    for line in lines:
        if line.worst > line.limit:
            raise UserError(
                f"{line.layer}: {line.accumulator} can reach {line.worst}, more than {line.limit}: "
                "use a smaller layer, learning rate or batch"
            )
    return lines


def _half(shift: int) -> int:
    """What ``shift(v, s)`` adds before it shifts."""
    return 1 << (shift - 1) if shift > 0 else 0


def _shifted(value: int, shift: int) -> int:
    """Upper bound of ``|shift(v, s)|`` for ``|v| <= value``."""
    return (value + _half(shift)) >> shift if shift >= 0 else value << -shift


def _layer_proof(model: Model, number: int, layer: Layer) -> Iterator[ProofLine]:
    first = number == 0
    name = "output" if number == len(model.layers) - 1 else f"hidden {number}"
    largest_x = largest_input(model.signed) if first else 32767
    norm = layer.l1_in or layer.n_in * largest_x
    weights = norm << layer.wlog
    bias = (1 << layer.blog) - 1
    how: Literal["static", "norm guard"] = "norm guard" if layer.l1_in else "static"
    rounding = _half(layer.fw + layer.fx - layer.fa)
    yield ProofLine(name, "forward: bias + sum w*x, rounded", weights + bias + rounding, INT32_MAX, how)
    if not first:
        yield ProofLine(name, "norm guard: sum |x|", layer.n_in * 32768, UINT32_MAX, "static")
        yield ProofLine(name, "norm guard: sum |e|", layer.n_pad * 32768, UINT32_MAX, "static")
        error = (layer.l1_err << layer.wlog) + _half(layer.fw)
        yield ProofLine(name, "error: sum w*e, rounded", error, INT32_MAX, "norm guard")
    for rate, term in ((model.current, "current"), (model.distil, "distil"), (model.replay, "replay")):
        worst = 32768 * rate.multiplier + _half(rate.shift)
        yield ProofLine(name, f"learning rate, {term}: e*multiplier, rounded", worst, INT32_MAX, "clamp")
    yield from _update_proof(model, name, layer, largest_x)
    if layer.sparse:
        yield from _score_proof(model, name, layer, largest_x)


def _update_proof(model: Model, name: str, layer: Layer, largest_x: int) -> Iterator[ProofLine]:
    su = update_shift(layer, model.fg)
    batch = model.learning.batch
    terms = 1 if batch == 1 else 3 * batch
    product = 32768 * largest_x
    sum_shift = su if batch == 1 else su - model.sacc
    if not (1 <= su <= 30 and sum_shift >= 1):
        raise UserError(f"{name}: su = {su}, batch shift {model.sacc}: outside of 1..30")
    if batch == 1:
        added = product + (1 << su) - 1
        yield ProofLine(name, "update: g*x + random bits", added, INT32_MAX, "clamp")
    else:
        yield ProofLine(name, "update: g*x, rounded", product + _half(model.sacc), INT32_MAX, "clamp")
        added = terms * _shifted(product, model.sacc) + (1 << sum_shift) - 1
        yield ProofLine(name, f"update: {terms} terms of a batch + random bits", added, INT32_MAX, "clamp")
    yield ProofLine(name, "update: w - d", (1 << layer.wlog) + (added >> sum_shift) + 1, INT32_MAX, "clamp")
    shift = model.fg - layer.fw - layer.fx
    gradient = terms * 32768
    yield ProofLine(name, "bias: sum of g, rounded", gradient + _half(shift), INT32_MAX, "clamp")
    step = (1 << layer.blog) - 1 + _shifted(gradient, shift)
    yield ProofLine(name, "bias: b - d", step, INT32_MAX, "clamp")


def _score_proof(model: Model, name: str, layer: Layer, largest_x: int) -> Iterator[ProofLine]:
    """TDM and DGM (docs/algorithm.md, "Scores")."""
    learning = model.learning
    if not (learning.tdm or learning.dgm):
        return
    product = 32768 * largest_x
    yield ProofLine(name, "score: x*e, rounded", product + _half(8), INT32_MAX, "static")
    gradient = learning.capture * _shifted(product, 8)
    yield ProofLine(name, "score: sum of captured gradients", gradient, INT32_MAX, "static")
    unit = layer.fx + 6 - layer.fw + int(math.log2(learning.capture))
    unit_worst = gradient << max(0, -unit)
    yield ProofLine(name, "score: gradient in units of a weight", unit_worst, UINT32_MAX, "static")
    coefficients = learning.alpha_q8 + learning.beta_q8
    yield ProofLine(name, "score: coefficients * gradients", coefficients << 20, UINT32_MAX, "clamp")
    importance = (1 << layer.wlog) + ((coefficients * 65535) >> 8)
    block = layer.block * max(importance, (coefficients << 20) >> 8)
    yield ProofLine(name, "score: sum over a block", block, UINT32_MAX, "clamp")


def _loss_proof(model: Model) -> Iterator[ProofLine]:
    """Soft-max and mean squared error (docs/numerics.md, "Loss")."""
    fz = model.layers[-1].fa
    classes = model.n_classes
    yield ProofLine("loss", "soft-max: (m - z)*log2(e), rounded", 65535 * 23637 + (1 << (fz + 5)), INT32_MAX, "clamp")
    total = classes * 32768
    yield ProofLine("loss", "soft-max: sum of powers", total, INT32_MAX, "static")
    yield ProofLine("loss", "soft-max: power * 2^14 + sum/2", (32768 << 14) + total // 2, UINT32_MAX, "static")
    yield ProofLine("loss", "cross-entropy: l2*ln(2)", 65535 * 45426, UINT32_MAX, "clamp")
    if model.learning.alpha > 0.0:
        mq = math.floor(2.0 / classes * 32768 + 0.5)
        yield ProofLine("loss", "mean squared error: d*2/C, rounded", 32767 * mq + (1 << fz), INT32_MAX, "clamp")


def proof_text(lines: Sequence[ProofLine]) -> str:
    """The proof as a table for people."""
    wide = max(len(line.accumulator) for line in lines)
    rows = [
        f"{line.layer:<10}{line.accumulator:<{wide}}  {line.worst:>11} <= {line.limit:<11}{line.how}" for line in lines
    ]
    return "\n".join(rows) + "\n"
