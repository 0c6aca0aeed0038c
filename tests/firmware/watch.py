# SPDX-License-Identifier: Apache-2.0
"""The reference under watch: every sum it makes is made once more of magnitudes, and held against the overflow proof.

The reference counts in 64 bits, so a sum that leaves 32 is no error to it; and where the board wraps in the same way,
the two agree.  Magnitudes bound a sum in whatever order it is added up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np

from sparcl_mcu.generator import proof
from sparcl_mcu.generator.proof import INT32_MAX, UINT32_MAX, half
from sparcl_mcu.reference import (
    conv,
    dense,
    layer,
    loss,
    mask,
    network,
    pool,
)
from sparcl_mcu.spec import fixed
from sparcl_mcu.spec.types import Layer, Model


class Overflow(AssertionError):
    """A number of the reference that the board has no room for, or that the proof says cannot be."""


def most(values: Any) -> int:
    """Largest magnitude."""
    return int(np.abs(values).max()) if np.size(values) else 0


class Watch:
    """Holds numbers against their limits: raises ``Overflow`` at the first beyond."""

    def __init__(self, model: Model) -> None:
        self.shares: dict[str, float] = {}
        """By accumulator, the largest number met as a share of its limit."""
        self._bounds: dict[str, dict[str, int]] = {}
        for line in proof.overflow_proof(model):
            self._bounds.setdefault(line.layer, {})[line.accumulator] = line.worst
        self._names: dict[int, str] = {}
        for frozen, layers in ((True, model.prefix), (False, model.layers)):
            for number, found in enumerate(layers):
                self._names[id(found)] = proof.layer_name(model, number, frozen=frozen)

    def fits(self, what: str, value: int, limit: int = INT32_MAX) -> None:
        """Anything that has no layer."""
        self._hold("", what, value, limit)

    def proven(self, of: Layer, begin: str, value: int) -> None:
        """A sum of a layer against the line of the proof whose accumulator begins so."""
        name = self._names[id(of)]
        lines = [worst for accumulator, worst in self._bounds[name].items() if accumulator.startswith(begin)]
        assert lines, f"{name}: the proof says nothing of {begin}"
        self._hold(name, begin, value, min(lines))

    def _hold(self, name: str, what: str, value: int, limit: int) -> None:
        self.shares[what] = max(value / limit, self.shares.get(what, 0.0))
        if value > limit:
            raise Overflow(f"{name}: {what}: {value} is more than {limit}")


@contextmanager
def watching(model: Model) -> Iterator[Watch]:
    """Everything the reference computes inside is watched."""
    watch = Watch(model)
    with ExitStack() as stack:

        def before(owner: Any, name: str, look: Callable[..., None]) -> None:
            original = getattr(owner, name)

            def looked_at(*args: Any, **rest: Any) -> Any:
                look(*args, **rest)
                return original(*args, **rest)

            stack.enter_context(patch.object(owner, name, looked_at))

        for module in (conv, dense, layer, loss, network, pool):
            if hasattr(module, "shift"):
                before(module, "shift", lambda v, s: _shift(watch, v, s))
        for module in (dense, network):
            before(module, "guard", lambda v, *_: watch.fits("norm guard: sum", int(np.abs(v).sum()), UINT32_MAX))
        _watch_sums(watch, before)
        _watch_steps(watch, before)
        _watch_rest(watch, before)
        yield watch


Before = Callable[[Any, str, Callable[..., None]], None]


def _shift(watch: Watch, v: Any, s: int) -> None:
    """What is shifted fits with what rounding adds, and so does a left shift."""
    watch.fits("shift: value, rounded", most(v) + half(s))
    watch.fits("shift: result", proof.shifted(most(v), s))


def _watch_sums(watch: Watch, before: Before) -> None:
    """Forward, and errors that layers with weights propagate."""

    def dense_forward(self: dense.DenseLayer, inputs: Any) -> None:
        total = np.abs(inputs[0].values).astype(np.float64) @ np.abs(self.weight) + np.abs(self.bias)
        watch.proven(self.layer, "forward: bias", most(total) + _rounding(self.layer))

    def conv_forward(self: conv.ConvLayer, inputs: Any) -> None:
        columns = np.abs(inputs[0].extended(0)).astype(np.float64).take(self._under)
        total = (np.abs(self._matrices()) @ columns).reshape(self.layer.n_out, -1)
        total += np.abs(self.bias[: self.layer.n_out, None])
        watch.proven(self.layer, "forward: bias", most(total) + _rounding(self.layer))

    def dense_error(self: dense.DenseLayer, kept: Any, e: Any) -> None:
        total = np.abs(self.weight) @ np.abs(e).astype(np.float64)
        watch.proven(self.layer, "error: sum", most(total) + half(self.layer.fw))

    def conv_error(self: conv.ConvLayer, kept: Any, e: Any) -> None:
        of, limit = self.layer, 1 << self.layer.elog
        watch.proven(of, "error: e", most(e) + half(of.ke))
        clamped = np.abs(np.clip(fixed.shift(e, of.ke), -limit, limit - 1)).astype(np.float64)
        spread = np.abs(self._matrices()).transpose(0, 2, 1) @ clamped.reshape(self._outputs)
        total = np.bincount(self._under.reshape(-1), spread.reshape(-1), minlength=self.source.values + 1)[:-1]
        watch.proven(of, "error: sum", most(total) + half(of.fw - of.ke))

    before(dense.DenseLayer, "forward", dense_forward)
    before(conv.ConvLayer, "forward", conv_forward)
    before(dense.DenseLayer, "error", dense_error)
    before(conv.ConvLayer, "error", conv_error)


def _rounding(of: Layer) -> int:
    return half(of.fw + of.fx - of.fa)


def _watch_steps(watch: Watch, before: Before) -> None:
    """Steps of weights and biases."""

    def dense_products(self: dense.DenseLayer, kept: Any, g: Any) -> None:
        watch.proven(self.layer, "update: g*x", most(kept.values) * most(g) + _added(self))

    def conv_products(self: conv.ConvLayer, kept: Any, g: Any) -> None:
        sums = np.abs(g).astype(np.float64).reshape(self._outputs) @ np.abs(kept).transpose(0, 2, 1)
        watch.proven(self.layer, "update: sum of g*x", most(sums) + _added(self))
        watch.proven(self.layer, "bias: sum", most(np.abs(g).sum(axis=1)) + half(max(0, self.bias_shift)))

    def delta(self: layer.WeightedLayer, product: Any, bits: int, prng: Any) -> None:
        watch.fits("update: random bits added", most(product) + (1 << bits) - 1)

    def subtract(self: layer.WeightedLayer, positions: Any, delta: Any) -> None:
        watch.fits("update: w - d", most(self.weight.reshape(-1).take(positions)) + most(delta))

    def step(self: layer.WeightedLayer, e: Any, rate: Any) -> None:
        added = half(rate.shift + self.layer.kg)
        watch.fits("learning rate: e*multiplier, rounded", most(e) * rate.multiplier + added)

    def step_bias(self: layer.WeightedLayer, g: Any) -> None:
        moved = most(self.bias) + most(fixed.shift(np.abs(g), self.bias_shift)) + 1
        watch.fits("bias: b - d", moved)

    def apply(self: layer.WeightedLayer, prng: Any) -> None:
        watch.fits("update: sum of a batch", most(self.sums) + (1 << (self.su - self.sacc)) - 1)
        watch.fits("bias: sum of a batch", most(self.bias_sums))

    for name in ("_update_weights", "_accumulate_weights"):
        before(dense.DenseLayer, name, lambda self, kept, *e: dense_products(self, kept, _steps(e)))
        before(conv.ConvLayer, name, lambda self, kept, *e: conv_products(self, kept, _steps(e)))
    before(layer.WeightedLayer, "_delta", delta)
    before(layer.WeightedLayer, "_subtract", subtract)
    before(layer.WeightedLayer, "step", step)
    before(layer.WeightedLayer, "_step_bias", step_bias)
    before(layer.WeightedLayer, "apply", apply)


def _steps(arguments: tuple[Any, ...]) -> Any:
    """g of ``_update_weights(kept, e, g, prng)`` and ``_accumulate_weights(kept, g)``."""
    return arguments[1] if len(arguments) > 1 else arguments[0]


def _added(self: layer.WeightedLayer) -> int:
    return half(self.sacc) if self.sums.size else (1 << self.su) - 1


def _watch_rest(watch: Watch, before: Before) -> None:
    """Loss, pooling, sums of tensors, scores."""

    def probabilities(z: Any, fraction: int) -> None:
        watch.fits("soft-max: (m - z)*log2(e)", int(z.max() - z.min()) * loss.LOG2_E + (1 << (fraction + 5)))
        total = 32768 * z.size
        watch.fits("soft-max: power * 2^14 + sum/2", (32768 << 14) + total // 2, UINT32_MAX)

    def mean(self: pool.AveragePool, total: Any) -> None:
        watch.fits("average: 2 * sum + values", 2 * most(total) + most(self._count))

    def add(self: pool.Add, inputs: Any) -> None:
        parts = [np.abs(x.values) << max(0, -s) for x, s in zip(inputs, self._shifts, strict=True)]
        watch.proven(self.layer, "forward: sum of the inputs", most(sum(parts[1:], parts[0])))

    def unit(self: mask.Scores, v: Any) -> None:
        watch.fits("score: captured gradients", most(v))
        right = proof.unit_shift(self.layer, self.learning.capture)
        watch.fits("score: gradient in units of a weight", most(v) << max(0, -right), UINT32_MAX)

    def entry(self: mask.Scores, weights: Any) -> None:
        watch.fits("score: sum over a block", int(weights.sum(axis=-1).max()) if weights.size else 0, UINT32_MAX)

    before(loss, "probabilities", probabilities)
    before(pool.AveragePool, "_mean", mean)
    before(pool.Add, "forward", add)
    before(mask.Scores, "_unit", unit)
    before(mask.Scores, "_entry", entry)
