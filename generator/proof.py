# SPDX-License-Identifier: Apache-2.0
"""The proof that no accumulator overflows, with Python's unbounded integers (docs/spec/numerics.md)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from sparcl_mcu.spec.errors import UserError
from sparcl_mcu.spec.types import Activation, Layer, LearningRate, Model, Op, needs_error

INT32_MAX = 2**31 - 1
UINT32_MAX = 2**32 - 1

LARGEST_ERROR = 32768
"""Largest magnitude of an error as it is stored."""


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

    @property
    def holds(self) -> bool:
        """Whether the accumulator cannot overflow."""
        return self.worst <= self.limit


def overflow_proof(model: Model) -> list[ProofLine]:
    """The worst case of every accumulator over all masks, weights and inputs a run can reach.

    Raises ``UserError`` if one does not fit its type.
    """
    lines = [*_prefix_proof(model), *_learning_proof(model), *_loss_proof(model)]
    for line in lines:
        if not line.holds:
            raise UserError(
                f"{line.layer}: {line.accumulator} can reach {line.worst}, more than {line.limit}: "
                "use a smaller layer, learning rate or batch"
            )
    return lines


def proof_text(lines: Sequence[ProofLine]) -> str:
    """The proof as a table for people."""
    first = max(len(line.layer) for line in lines)
    second = max(len(line.accumulator) for line in lines)
    rows = [
        f"{line.layer:<{first}}  {line.accumulator:<{second}}  {line.worst:>11} <= {line.limit:<11}{line.how}"
        for line in lines
    ]
    return "\n".join(rows) + "\n"


# ---------------------------------------------------------------- bounds


def half(shift: int) -> int:
    """The value ``shift(v, s)`` adds before it shifts."""
    return 1 << (shift - 1) if shift > 0 else 0


def shifted(value: int, shift: int) -> int:
    """Upper bound of ``|shift(v, s)|`` for ``|v| <= value``."""
    return (value + half(shift)) >> shift if shift >= 0 else value << -shift


def largest_input(signed: bool) -> int:
    """Largest magnitude of an 8-bit input."""
    return 128 if signed else 255


def magnitude(layer: Layer, inputs: Sequence[int]) -> int:
    """Largest magnitude of a layer's output from those of its inputs."""
    if layer.op in (Op.MAX_POOL, Op.AVG_POOL, Op.PAD):
        return inputs[0]
    if layer.activation is Activation.RELU6:
        return 6 << layer.fa
    return (1 << layer.out.bits) - (1 if layer.out.rectified else 0)


def magnitudes(layers: Iterable[Layer], signed: bool) -> list[int]:
    """Largest magnitude of each tensor; 0 is the 8-bit input."""
    result = [largest_input(signed)]
    for layer in layers:
        result.append(magnitude(layer, [result[t] for t in layer.inputs]))
    return result


def forward_shift(layer: Layer) -> int:
    """How far a sum of ``w * x`` is shifted to become an output (docs/spec/numerics.md)."""
    return layer.fw + layer.fx - layer.fa


def update_shift(layer: Layer, fg: int) -> int:
    """``su`` of docs/spec/numerics.md: how far ``g * x`` is shifted to become a step of a weight."""
    return fg - layer.kg + layer.fx - layer.fw


def bias_shift(layer: Layer, fg: int) -> int:
    """How far a sum of ``g`` is shifted to become a step of a bias (docs/spec/numerics.md)."""
    return fg - layer.kg - layer.fw - layer.fx


def reaching_errors(layers: Sequence[Layer], number: int) -> int:
    """How many errors that are not 0 reach one input value of the convolution ``number``, over all its outputs."""
    layer = layers[number]
    w = layer.window
    assert w is not None
    high, wide = -(-w.kernel_h // w.stride_h), -(-w.kernel_w // w.stride_w)
    positions = min(high * wide, layer.active)
    readers = [r for r in layers if number + 1 in r.inputs]
    if len(readers) == 1 and readers[0].op is Op.MAX_POOL:
        positions = min(positions, _windows_met(readers[0], high, wide))
    return (layer.multiplier or layer.n_out) * positions


def _windows_met(pool: Layer, high: int, wide: int) -> int:
    """How many windows a box of ``high`` x ``wide`` positions can share a value with."""
    w = pool.window
    assert w is not None
    return ((high + w.kernel_h - 2) // w.stride_h + 1) * ((wide + w.kernel_w - 2) // w.stride_w + 1)


def layer_name(model: Model, number: int, *, frozen: bool = False) -> str:
    """A layer for messages and the proof."""
    layer = (model.prefix if frozen else model.layers)[number]
    return f"{'frozen ' if frozen else ''}layer {number} ({layer.name or layer.op})"


# ---------------------------------------------------------------- forward


def _prefix_proof(model: Model) -> Iterator[ProofLine]:
    largest = magnitudes(model.prefix, model.signed)
    for number, layer in enumerate(model.prefix):
        name = layer_name(model, number, frozen=True)
        yield from _forward_proof(name, layer, model.sample.fraction, model.prefix, largest)
    if model.latent is not None:
        cut = model.prefix[-1].fa - model.latent.fraction
        latent = shifted(largest[-1], cut) if cut < 0 else largest[-1] + half(cut)
        yield ProofLine("latent", "value, rounded", latent, INT32_MAX, "static")


def _learning_proof(model: Model) -> Iterator[ProofLine]:
    largest = magnitudes(model.layers, model.input_signed)
    errors = needs_error(model.layers)
    for number, layer in enumerate(model.layers):
        name = layer_name(model, number)
        yield from _forward_proof(name, layer, model.input.fraction, model.layers, largest)
        if not layer.weighted:
            continue
        x = largest[layer.inputs[0]]
        if errors[layer.inputs[0]]:
            yield from error_proof(name, model.layers, number)
        yield from rate_proof(model, name, layer)
        yield from update_proof(model, name, layer, x)
        yield from score_proof(model, name, layer, x)


def _forward_proof(
    name: str, layer: Layer, fraction: int, layers: Sequence[Layer], largest: Sequence[int]
) -> Iterator[ProofLine]:
    """``fraction``: of tensor 0."""
    x = largest[layer.inputs[0]]
    if layer.weighted:
        norm = layer.l1_in or layer.n_in * x
        how: Literal["static", "norm guard"] = "norm guard" if layer.l1_in else "static"
        worst = (norm << layer.wlog) + (1 << layer.blog) - 1 + half(forward_shift(layer))
        yield ProofLine(name, "forward: bias + sum w*x, rounded", worst, INT32_MAX, how)
    if layer.l1_in:
        yield ProofLine(name, "norm guard: sum |x|", layer.n_in * 32768, UINT32_MAX, "static")
        # Halving rounds 1 to 1: the sum of as many ones has to fit.
        yield ProofLine(name, "norm guard: sum |x|, all 1", layer.n_in, layer.l1_in, "static")
    if layer.op is Op.ADD:
        fractions = [layers[t - 1].fa if t else fraction for t in layer.inputs]
        parts = zip(layer.inputs, fractions, strict=True)
        total = sum(max(largest[t] + half(fx - layer.fa), shifted(largest[t], fx - layer.fa)) for t, fx in parts)
        yield ProofLine(name, "forward: sum of the inputs, rounded", total, INT32_MAX, "static")
    if layer.op is Op.AVG_POOL:
        assert layer.window is not None
        area = layer.window.area
        yield ProofLine(name, "forward: 2 * sum of a window + values", 2 * area * x + area, INT32_MAX, "static")


# ---------------------------------------------------------------- backward


def error_proof(name: str, layers: Sequence[Layer], number: int) -> Iterator[ProofLine]:
    """The error a layer with weights propagates to its input."""
    layer = layers[number]
    if layer.op is Op.CONV:
        reach = reaching_errors(layers, number)
        worst = (reach << (layer.wlog + layer.elog)) + half(layer.fw - layer.ke)
        yield ProofLine(name, "error: e, shifted", LARGEST_ERROR + half(layer.ke), INT32_MAX, "static")
        yield ProofLine(name, "error: sum w*e, rounded", worst, INT32_MAX, "clamp")
        return
    yield ProofLine(name, "norm guard: sum |e|", layer.n_pad * LARGEST_ERROR, UINT32_MAX, "static")
    yield ProofLine(name, "norm guard: sum |e|, all 1", layer.n_pad, layer.l1_err, "static")
    worst = (layer.l1_err << layer.wlog) + half(layer.fw)
    yield ProofLine(name, "error: sum w*e, rounded", worst, INT32_MAX, "norm guard")


def rate_proof(model: Model, name: str, layer: Layer) -> Iterator[ProofLine]:
    """Errors times learning rates."""
    rates: tuple[tuple[LearningRate, str], ...] = (
        (model.current, "current"),
        (model.distil, "distil"),
        (model.replay, "replay"),
    )
    for rate, term in rates:
        worst = LARGEST_ERROR * rate.multiplier + half(rate.shift + layer.kg)
        yield ProofLine(name, f"learning rate, {term}: e*multiplier, rounded", worst, INT32_MAX, "clamp")


def update_proof(model: Model, name: str, layer: Layer, x: int) -> Iterator[ProofLine]:
    """Steps of weights and biases; ``x``: largest input.  Raises ``UserError`` if the shifts are out of range."""
    su = update_shift(layer, model.fg)
    batch = model.learning.batch
    terms = 1 if batch == 1 else model.learning.passes * batch
    sum_shift = su if batch == 1 else su - model.sacc
    if not (1 <= su <= 30 and sum_shift >= 1):
        raise UserError(f"{name}: su = {su}, batch shift {model.sacc}: outside of 1..30")
    convolution = layer.op is Op.CONV
    gradient = layer.active << layer.glog if convolution else 32768
    what = "sum of g*x" if convolution else "g*x"
    product = gradient * x
    if batch == 1:
        added = product + (1 << su) - 1
        yield ProofLine(name, f"update: {what} + random bits", added, INT32_MAX, "clamp")
    else:
        yield ProofLine(name, f"update: {what}, rounded", product + half(model.sacc), INT32_MAX, "clamp")
        added = terms * shifted(product, model.sacc) + (1 << sum_shift) - 1
        yield ProofLine(name, f"update: {terms} terms of a batch + random bits", added, INT32_MAX, "clamp")
    yield ProofLine(name, "update: w - d", (1 << layer.wlog) + (added >> sum_shift) + 1, INT32_MAX, "clamp")
    shift = bias_shift(layer, model.fg)
    yield ProofLine(name, "bias: sum of g, rounded", terms * gradient + half(shift), INT32_MAX, "clamp")
    step = (1 << layer.blog) - 1 + shifted(terms * gradient, shift)
    yield ProofLine(name, "bias: b - d", step, INT32_MAX, "clamp")


def score_proof(model: Model, name: str, layer: Layer, x: int) -> Iterator[ProofLine]:
    """TDM and DGM (docs/spec/algorithm.md, "Scores"); ``x``: largest input."""
    learning = model.learning
    if not (layer.sparse and (learning.tdm or learning.dgm)):
        return
    if layer.op is Op.CONV:
        yield ProofLine(name, "score: e, shifted", LARGEST_ERROR + half(layer.kc), INT32_MAX, "static")
        product = layer.active * shifted(LARGEST_ERROR, layer.kc) * x
        yield ProofLine(name, "score: sum of e*x, rounded", product + half(8 - layer.kc), INT32_MAX, "static")
        gradient = learning.capture * shifted(product, 8 - layer.kc)
    else:
        product = LARGEST_ERROR * x
        yield ProofLine(name, "score: x*e, rounded", product + half(8), INT32_MAX, "static")
        gradient = learning.capture * shifted(product, 8)
    yield ProofLine(name, "score: sum of captured gradients", gradient, INT32_MAX, "static")
    unit_worst = gradient << max(0, -unit_shift(layer, learning.capture))
    yield ProofLine(name, "score: gradient in units of a weight", unit_worst, UINT32_MAX, "static")
    coefficients = learning.alpha_q8 + learning.beta_q8
    yield ProofLine(name, "score: coefficients * gradients", coefficients << 20, UINT32_MAX, "clamp")
    importance = (1 << layer.wlog) + ((coefficients * 65535) >> 8)
    block = layer.block * max(importance, (coefficients << 20) >> 8)
    yield ProofLine(name, "score: sum over a block", block, UINT32_MAX, "clamp")


def unit_shift(layer: Layer, capture: int) -> int:
    """How far a captured gradient is shifted right to be in units of a weight."""
    return layer.fx + 6 - layer.fw + capture.bit_length() - 1


def _loss_proof(model: Model) -> Iterator[ProofLine]:
    """Soft-max and mean squared error (docs/spec/numerics.md, "Loss")."""
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
    if model.learning.shared_draws:
        worst = 32768 * 32768 + half(15)  # the shares of both terms make 2^15
        yield ProofLine("loss", "shared draw: e'*share + e''*rest, rounded", worst, INT32_MAX, "static")
