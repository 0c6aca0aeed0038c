# SPDX-License-Identifier: Apache-2.0
"""The formats of docs/spec/numerics.md, "Symbols": how many bits every tensor, weight and bias gets.

Chosen from what the initial model does on the initial data, with head-room for what weights
and activations become while the board learns, and so that no sum can overflow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sparcl_mcu.generator import network, proof
from sparcl_mcu.generator.layout import Network
from sparcl_mcu.spec.errors import UserError
from sparcl_mcu.spec.types import Activation, FloatLayer, Layer, Learning, Op, Tensor, needs_error

WEIGHT_LEAST = 4.0
"""Weights of the first and the last layer can grow to this magnitude (seen in float runs: 1.84), ..."""

WEIGHT_LEAST_MIDDLE = 2.0
"""... those between to this one, ..."""

WEIGHT_HEADROOM = 2.0
"""... and all to this multiple of the largest initial weight.  Frozen weights do not grow."""

WEIGHT_LEAST_FROZEN = 0.125
"""Frozen weights that are all smaller than this one do not get more fractional bits."""

WEIGHT_LOG_FIRST, WEIGHT_LOG_MIDDLE, WEIGHT_LOG_LAST = 15, 13, 14
"""Bits of a weight's magnitude.

The norm guards of a later layer allow sum|x| < 2**(31 - wlog) and sum|e| likewise, so
fewer bits leave room: 8.0 for the errors of the output (seen: 7.1), 16.0 for those of a
hidden layer, and 510 for the sum of 512 activations in Q7.8 (seen: 265).
"""

BIAS_LEAST = 8.0
"""Biases can grow to this magnitude where the proof of a static bound leaves room, ..."""

BIAS_LEAST_STATIC = 2.0
"""... and to this one at least."""

ACTIVATION_HEADROOM = 4.0
"""Activations and logits can grow to this multiple of the largest on the initial data, ..."""

ACTIVATION_HEADROOM_FROZEN = 2.0
"""... in frozen layers to this one: there only the data changes."""

ACTIVATION_FRACTION = 8
"""Most fractional bits of activations and logits (Q7.8) that no convolution reads."""

ACTIVATION_SUM_HEADROOM = 1.5
"""The norm guard acts above this multiple of the largest initial sum of activations."""

ACTIVATION_BITS = 12
"""Most bits of a tensor that a convolution reads."""

LATENT_CLIPPED = 0.005
"""Share of the latent's values other than 0 that may be clipped on the initial data."""

CALIBRATION_SAMPLES = 512
"""Samples of the initial data that are looked at, ..."""

CALIBRATION_CHUNK = 32
"""... as many at a time as fit into memory."""


# ---------------------------------------------------------------- what the tensors hold


@dataclass(frozen=True)
class Range:
    """Range of one tensor over the calibration data: its largest magnitude and a sample's largest sum of magnitudes."""

    largest: float
    total: float


def ranges(layers: Sequence[FloatLayer], x: NDArray[np.float64]) -> list[Range]:
    """Range of each tensor; ``x``: (samples, channels, height, width)."""
    result = []
    for first in range(0, len(x), CALIBRATION_CHUNK):
        tensors = network.forward(layers, x[first : first + CALIBRATION_CHUNK])
        sizes = [np.abs(t).reshape(len(t), -1) for t in tensors]
        result.append([(float(v.max()), float(v.sum(axis=1).max())) for v in sizes])
    return [Range(*np.max(values, axis=0).tolist()) for values in zip(*result, strict=True)]


def last_tensor(layers: Sequence[FloatLayer], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The output of a network for ``x`` (samples, channels, height, width)."""
    chunks = range(0, len(x), CALIBRATION_CHUNK)
    return np.concatenate([network.forward(layers, x[k : k + CALIBRATION_CHUNK])[-1] for k in chunks])


def latent_format(boundary: Layer, values: NDArray[np.float64]) -> Tensor:
    """The 8-bit tensor that stands for the output ``values`` of the last frozen layer."""
    out = boundary.out
    sizes = np.abs(values[values != 0.0])
    largest = float(np.quantile(sizes, 1.0 - LATENT_CLIPPED)) if sizes.size else 1.0
    bits = 8 if out.rectified else 7
    fraction = min(out.fraction, math.floor(math.log2((2**bits - 1) / largest)))
    if fraction < 0:
        raise UserError("the output of the frozen layers is too large for 8 bits: freeze fewer layers")
    return Tensor(out.channels, out.height, out.width, fraction, bits, rectified=False)


# ---------------------------------------------------------------- formats


def shells(
    net: Network, x: NDArray[np.float64], first: Tensor, *, signed: bool, learning: Learning | None
) -> list[Layer]:
    """The layers with their formats, without weights and biases; raises ``UserError`` if none fit.

    ``x``: (samples, channels, height, width), the calibration data; ``first``, ``signed``:
    tensor 0; ``learning``: None for frozen layers.
    """
    chooser = _Chooser(net, ranges(net.layers, x), first, signed=signed, learning=learning)
    return chooser.layers()


class _Chooser:
    """Goes through a network from its input to its output."""

    def __init__(
        self, net: Network, seen: Sequence[Range], first: Tensor, *, signed: bool, learning: Learning | None
    ) -> None:
        self._net, self._seen, self._learning = net, seen, learning
        self._roots = _roots(net.layers)
        self._bits = self._tensor_bits()
        self._tensors = [first]
        self._largest = [proof.largest_input(signed)]

    def layers(self) -> list[Layer]:
        result: list[Layer] = []
        for number in range(len(self._net.layers)):
            layer = self._layer(number)
            result.append(layer)
            self._tensors.append(layer.out)
            self._largest.append(proof.magnitude(layer, [self._largest[t] for t in layer.inputs]))
        return [self._finished(result, k) for k in range(len(result))]

    def _layer(self, number: int) -> Layer:
        source = self._net.layers[number]
        shell = Layer(
            source.op,
            source.inputs,
            self._output(number),
            source.activation,
            name=source.name,
            window=source.window,
            multiplier=source.multiplier,
            active=self._net.active(number) if source.op is Op.CONV else 0,
        )
        if source.weighted:
            return self._weighted(number, shell)
        if source.activation is Activation.RELU6 and 6 << shell.fa >= 1 << shell.out.bits:
            # ReLU6 cuts nothing off if no value reaches 6.
            return replace(shell, activation=Activation.RELU)
        return shell

    # ------------------------------------------------------------ tensors

    def _tensor_bits(self) -> list[int]:
        """Bits of the tensors that convolutions read; 15 elsewhere.  Half of what a sum can take, ..."""
        bits = [15] * len(self._roots)
        for number, layer in enumerate(self._net.layers):
            if layer.op is Op.CONV:
                root = self._roots[layer.inputs[0]]
                budget = math.floor(math.log2(0.98 * 2**31 / layer.weight.shape[0]))
                bits[root] = min(bits[root], ACTIVATION_BITS, budget // 2, self._score_bits(number))
        return [bits[root] for root in self._roots]

    def _score_bits(self, number: int) -> int:
        """... and what the sum of the captured gradients can take."""
        learning = self._learning
        if learning is None or not self._net.layers[number].sparse or not (learning.tdm or learning.dgm):
            return ACTIVATION_BITS
        terms = self._net.active(number) * learning.capture
        return math.floor(math.log2(0.98 * 2**24 / terms))

    def _output(self, number: int) -> Tensor:
        """The output of a layer; of one with weights, before its weights are known."""
        layer = self._net.layers[number]
        channels, height, width = layer.shape
        top, left, bottom, right = self._net.margins[number + 1]
        source = self._tensors[layer.inputs[0]]
        inherits = self._roots[number + 1] != number + 1
        rectified = layer.activation is not Activation.NONE
        if layer.op in (Op.MAX_POOL, Op.PAD):
            rectified |= source.rectified
        return Tensor(
            channels,
            height,
            width,
            source.fraction if inherits else self._fraction(number + 1),
            source.bits if inherits else self._bits[number + 1],
            rectified,
            top,
            left,
            bottom,
            right,
        )

    def _fraction(self, tensor: int) -> int:
        """Fractional bits, with room for the largest value and for the sums that dense layers are fed."""
        layer, bits = self._net.layers[tensor - 1], self._bits[tensor]
        room = ACTIVATION_HEADROOM_FROZEN if self._learning is None else ACTIVATION_HEADROOM
        largest = room * max(self._seen[tensor].largest, 1e-6)
        if layer.activation is Activation.RELU6:
            largest = 6.0
        fraction = min(ACTIVATION_FRACTION if bits == 15 else bits, bits - _log2_ceil(largest))
        if layer.op is Op.ADD:
            fraction = min(fraction, max(self._tensors[t].fraction for t in layer.inputs))
        flat = [t for r in self._net.layers if r.op is Op.DENSE for t in r.inputs if self._roots[t] == tensor]
        if flat:
            total = ACTIVATION_SUM_HEADROOM * max(*(self._seen[t].total for t in flat), 1e-6)
            # The layer that reads it has at most WEIGHT_LOG_LAST bits; its bias takes less than 1 % of the limit.
            fraction = min(fraction, math.floor(math.log2(0.99 * 2.0 ** (31 - WEIGHT_LOG_LAST) / total)))
        if fraction < 0:
            raise _too_large(f"outputs of layer {layer.name or tensor - 1}", f"{fraction} fractional bits")
        return fraction

    # ------------------------------------------------------------ weights

    def _weighted(self, number: int, shell: Layer) -> Layer:
        source = self._net.layers[number]
        n_in, n_out = source.weight.shape
        tensor = shell.inputs[0]
        static = self._roots[tensor] == 0
        wlog = self._weight_log(number, static=static)
        fw = wlog - _log2_ceil(self._largest_weight(number, static=static))
        fx = self._tensors[tensor].fraction
        fa = min(shell.fa, fw + fx) if source.op is Op.CONV else shell.fa
        largest_bias = max(float(np.abs(source.bias).max()) * 2.0, BIAS_LEAST)
        layer = replace(
            shell,
            out=replace(shell.out, fraction=fa),
            n_in=n_in,
            n_out=n_out,
            fw=fw,
            fx=fx,
            wlog=wlog,
            blog=fw + fx + _log2_ceil(largest_bias),
        )
        if static or source.op is Op.CONV:
            layer = _fit_static(layer, n_in * self._largest[tensor], source)
        _check_format(number, layer)
        return layer if static or source.op is Op.CONV else replace(layer, l1_in=norm_limit(layer))

    def _weight_log(self, number: int, *, static: bool) -> int:
        if static:
            return WEIGHT_LOG_FIRST
        return WEIGHT_LOG_LAST if number == len(self._net.layers) - 1 else WEIGHT_LOG_MIDDLE

    def _largest_weight(self, number: int, *, static: bool) -> float:
        """Largest magnitude a layer's weights can grow to."""
        largest = float(np.abs(self._net.layers[number].weight).max())
        if self._learning is None:
            return max(WEIGHT_LEAST_FROZEN, largest)
        outer = static or number == len(self._net.layers) - 1
        return max(WEIGHT_LEAST if outer else WEIGHT_LEAST_MIDDLE, WEIGHT_HEADROOM * largest)

    # ------------------------------------------------------------ what needs the layers after it

    def _finished(self, layers: Sequence[Layer], number: int) -> Layer:
        layer = layers[number]
        limits = [r.l1_in for r in layers if number + 1 in r.inputs and r.l1_in]
        layer = replace(layer, guard=min(limits, default=0))
        if layer.op is Op.DENSE and self._learning is not None and needs_error(tuple(layers))[layer.inputs[0]]:
            return replace(layer, l1_err=(proof.INT32_MAX - proof.half(layer.fw)) >> layer.wlog)
        return layer


def norm_limit(layer: Layer) -> int:
    """Largest sum|x| for which the accumulator, its bias and its rounding fit int32."""
    return (proof.INT32_MAX - (1 << layer.blog) - proof.half(layer.fw + layer.fx - layer.fa)) >> layer.wlog


def _roots(layers: Sequence[FloatLayer]) -> list[int]:
    """For each tensor the one whose format it has: pooling and padding keep that of their input."""
    result = [0]
    for number, layer in enumerate(layers, 1):
        inherits = layer.op in (Op.MAX_POOL, Op.AVG_POOL, Op.PAD)
        result.append(result[layer.inputs[0]] if inherits else number)
    return result


def _log2_ceil(value: float) -> int:
    """Least n with 2**n >= value."""
    return math.ceil(math.log2(value))


def _fit_static(layer: Layer, norm: int, source: FloatLayer) -> Layer:
    """Lower ``blog``, then ``wlog`` with ``fw``, until no mask and no input of ``norm`` = sum|x| overflows."""
    least_bias = _log2_ceil(max(BIAS_LEAST_STATIC, 2.0 * float(np.abs(source.bias).max())))
    wide = layer.blog - layer.fw - layer.fx
    while layer.wlog > 0:
        for bias in range(wide, least_bias - 1, -1):
            candidate = replace(layer, blog=layer.fw + layer.fx + bias)
            if candidate.blog < 31 and norm <= norm_limit(candidate):
                return candidate
        layer = replace(layer, wlog=layer.wlog - 1, fw=layer.fw - 1)
        if layer.fw + layer.fx < layer.fa:
            layer = replace(layer, out=replace(layer.out, fraction=layer.fw + layer.fx))
    raise UserError(f"model: {layer.n_in} inputs are too many for 32-bit sums; use fewer inputs")


def _check_format(number: int, layer: Layer) -> None:
    """docs/spec/numerics.md shifts by ``fw``, ``fw + fx - fa`` and the like: none may be negative."""
    if layer.fw < 1 or not 0 < layer.blog < 30 or layer.fw + layer.fx < layer.fa:
        raise _too_large(
            f"weights or outputs of layer {layer.name or number}",
            f"fractional bits: weights {layer.fw}, outputs {layer.fa}",
        )


def _too_large(what: str, bits: str) -> UserError:
    return UserError(
        f"initial model: {what} are too large for 16 bits ({bits}); scale the inputs down, train with a "
        "smaller learning rate (initial.lr), or put BatchNormalization behind the layer"
    )
