# SPDX-License-Identifier: Apache-2.0
"""Layers as the network sees them, and what all layers with weights have in common.

A layer with weights keeps them as a float64 matrix of exact integers, masked
weights 0: every sum of the specification stays below 2^53, so the matrix
products are exact in whatever order they are added up.  Panels (sparse.py) hold
only where weights are; ``positions`` says which number of the matrix that is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from sparcl_mcu.reference.sparse import PanelMask
from sparcl_mcu.spec.errors import UserError
from sparcl_mcu.spec.fixed import Counters, Ints, clamp_bias, clamp_weight, shift
from sparcl_mcu.spec.prng import Prng
from sparcl_mcu.spec.types import Layer, LearningRate, Panel

Matrix = NDArray[np.float64]
Positions = NDArray[np.intp]
Flags = NDArray[np.bool_]


class Input:
    """A tensor of one forward pass: its values, (values,) int64, channel first and without margins."""

    __slots__ = ("_active", "values")

    def __init__(self, values: Ints) -> None:
        self.values = values
        self._active: Positions | None = None

    @property
    def active(self) -> Positions:
        """Ascending positions of the values that are not 0."""
        if self._active is None:
            self._active = self.values.nonzero()[0]
        return self._active

    def extended(self, outside: int) -> Ints:
        """The values and one more, (values + 1,): what reading outside of the tensor gives."""
        result = np.empty(self.values.size + 1, dtype=np.int64)
        result[:-1] = self.values
        result[-1] = outside
        return result


class Node(ABC):
    """One layer of a network.  ``inputs``: the tensors it reads."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer

    @abstractmethod
    def forward(self, inputs: Sequence[Input]) -> tuple[Ints, Any]:
        """Outputs before the activation, (values,) int64, and whatever the backward pass needs."""


class Gradient(Protocol):
    """Gradient of the weights from one captured step (docs/spec/algorithm.md, "When a mask update is due")."""

    def at(self, positions: Positions) -> Ints:
        """gD or gM of this step at flat positions of the weight matrix, same shape."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How the weights of a model change (docs/spec/numerics.md, "Backward"); ``sacc`` counts only in a batch."""

    fg: int
    sacc: int
    stochastic: bool
    batch: int


class WeightedLayer(Node):
    """One layer with weights; without ``rules`` it is frozen.

    ``weight``: float64 of integers, (n_in, n_pad) if dense and (n_pad, n_in) if a convolution;
    ``bias``: (n_pad,) int64; ``sums``/``bias_sums``: the batch accumulators ``acc`` and ``bacc``,
    int64; ``panels``: masks, none where every weight exists.
    """

    def __init__(self, layer: Layer, rules: Rules | None, shape: tuple[int, int]) -> None:
        super().__init__(layer)
        self.weight: Matrix = np.zeros(shape)
        self.bias: Ints = layer.bias.astype(np.int64)
        self.panels: tuple[PanelMask, ...] = ()
        self._chosen: Positions = np.empty(0, dtype=np.intp)
        if rules is not None:
            self._learns(rules)
        if layer.sparse:
            masks = tuple(PanelMask.of(panel) for panel in layer.panels)
            for mask, panel in zip(masks, layer.panels, strict=True):
                self.weight.reshape(-1)[self.entries(mask)] = panel.weight
            self.set_panels(masks)
        else:
            assert layer.weight is not None, "a layer without masks has a weight matrix"
            self.weight[tuple(map(slice, layer.weight.shape))] = layer.weight

    def _learns(self, rules: Rules) -> None:
        """Set the constants of learning and empty accumulators."""
        layer = self.layer
        fg = rules.fg - layer.kg
        self.stochastic = rules.stochastic
        self.sacc = rules.sacc if rules.batch > 1 else 0
        self.su = fg + layer.fx - layer.fw
        self.bias_shift = fg - layer.fw - layer.fx
        if not 1 <= self.su - self.sacc <= self.su <= 30:
            raise UserError(f"update shift {self.su} (batch: less {self.sacc}) is not in 1..30: change fw, fx or fg")
        self.sums: Ints = np.zeros(self.weight.shape if rules.batch > 1 else (0, 0), dtype=np.int64)
        self.bias_sums: Ints = np.zeros(layer.n_pad, dtype=np.int64)

    def copy(self) -> Self:
        """Return an independent copy; arrays that are only ever replaced are shared."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.weight = self.weight.copy()
        other.sums = self.sums.copy()
        return other

    # ------------------------------------------------------------ forward and backward

    @abstractmethod
    def outputs(self, e: Ints) -> Ints:
        """The error of the output tensor, (values,), in the shape the functions below take it."""

    @abstractmethod
    def guarded(self, e: Ints, counters: Counters | None) -> Ints:
        """The error after the norm guard of this layer, if it has one."""

    @abstractmethod
    def error(self, kept: Any, e: Ints) -> Ints:
        """The contribution to the input's error before saturation, (values of the input,) int64."""

    def step(self, e: Ints, rate: LearningRate) -> Ints:
        """g: the error times the learning rate, clamped."""
        limit = 1 << self.layer.glog
        g = shift(e * rate.multiplier, rate.shift + self.layer.kg)
        return np.minimum(np.maximum(g, -limit), limit - 1)

    def update(self, kept: Any, e: Ints, g: Ints, prng: Prng) -> None:
        """Learn from one sample."""
        self._update_weights(kept, e, g, prng)
        self._step_bias(self._bias_gradient(g))

    def accumulate(self, kept: Any, g: Ints) -> None:
        """Add one sample of a batch to the accumulators."""
        self._accumulate_weights(kept, g)
        self.bias_sums = self.bias_sums + self._bias_gradient(g)

    def apply(self, prng: Prng) -> None:
        """Learn from the accumulated batch and clear the accumulators."""
        candidates = self._applied()
        flat = self.sums.reshape(-1)
        values = flat if candidates is None else flat.take(candidates)
        nonzero = np.flatnonzero(values)
        positions = nonzero if candidates is None else candidates.take(nonzero)
        self._subtract(positions, self._delta(values.take(nonzero), self.su - self.sacc, prng))
        flat[positions] = 0
        self._step_bias(self.bias_sums)
        self.bias_sums = np.zeros_like(self.bias_sums)

    @abstractmethod
    def captured(self, kept: Any, e: Ints) -> Gradient:
        """The gradient that masks are updated by."""

    # ------------------------------------------------------------ weights and masks

    @abstractmethod
    def positions(self, lines: Ints, places: Ints) -> Positions:
        """Where the weights of entries lie in the flat matrix: (...,) -> (..., block)."""

    @abstractmethod
    def stored(self) -> NDArray[np.int16]:
        """All weights in the order of a layer without masks."""

    def entries(self, panel: PanelMask) -> Positions:
        """Where the weights of a panel lie in the flat matrix, (entries, block)."""
        return self.positions(panel.lines, panel.constants.first + panel.index)

    def places(self, constants: Panel) -> Positions:
        """Where the weights of every place of a panel lie in the flat matrix, (lines, places, block)."""
        places = constants.first + np.arange(constants.places)
        return self.positions(np.arange(constants.split.size)[:, None], places)

    def panel_weights(self, number: int) -> NDArray[np.int16]:
        """Weights of a panel in storage order, (entries, block) int16."""
        return self.weight.reshape(-1).take(self.entries(self.panels[number])).astype(np.int16)

    def clear_removed(self, before: PanelMask, after: PanelMask) -> None:
        """Set the weights (and accumulators) of the entries pruned from a panel to 0."""
        lines, index = np.nonzero(before.used() & ~after.used())
        gone = self.positions(lines, before.constants.first + index)
        self.weight.reshape(-1)[gone] = 0
        if self.sums.size:
            self.sums.reshape(-1)[gone] = 0

    def set_panels(self, panels: tuple[PanelMask, ...]) -> None:
        """Take over new masks; the weights of pruned entries have been cleared before."""
        self.panels = panels
        self._chosen = np.concatenate([self.entries(p)[p.chosen].reshape(-1) for p in panels]).astype(np.intp)

    @abstractmethod
    def _update_weights(self, kept: Any, e: Ints, g: Ints, prng: Prng) -> None:
        """Update the weights: the step of the backward pass that draws random numbers."""

    @abstractmethod
    def _accumulate_weights(self, kept: Any, g: Ints) -> None:
        """acc += shift(..., sacc) for the entries an update would change."""

    @abstractmethod
    def _bias_gradient(self, g: Ints) -> Ints:
        """Gradient of the biases, (n_pad,)."""

    def _applied(self) -> Positions | None:
        """Flat positions a batch may change, in storage order; None: all."""
        return self._chosen if self.layer.sparse else None

    def _step_bias(self, g: Ints) -> None:
        self.bias = clamp_bias(self.bias - shift(g, self.bias_shift), self.layer.blog)

    def _subtract(self, positions: Positions, delta: NDArray[np.signedinteger]) -> None:
        """w = clampw(w - d) at flat positions of the weight matrix."""
        flat = self.weight.reshape(-1)
        flat[positions] = clamp_weight(flat.take(positions) - delta, self.layer.wlog)

    def _delta(self, product: NDArray[np.signedinteger], bits: int, prng: Prng) -> NDArray[np.signedinteger]:
        """Round products down by ``bits``, drawing one number each in order when stochastic.

        int32 products stay int32: |product| <= 2^30 and the addend is below 2^30.
        """
        if not self.stochastic:
            return (product + (1 << (bits - 1))) >> bits
        addend = prng.draw(product.size) >> np.uint32(32 - bits)
        total = addend.view(np.int32).reshape(product.shape) + product
        total >>= bits
        return total
