# SPDX-License-Identifier: Apache-2.0
"""Random small models and tasks for tests: valid artefacts without the generator.

``random_model``: fully connected; ``conv_model``: any network that is written down as
``Spec``s; ``random_conv_model``: draws the specs too.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparcl_mcu.spec.types import (
    PANEL_PLACES,
    Activation,
    DdrScore,
    Growth,
    Layer,
    Learning,
    LearningRate,
    Method,
    Model,
    Op,
    Panel,
    SingleHead,
    Tensor,
    Window,
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
    constants = _constants(seed, learning)
    count = len(sizes) - 1
    masked = [number + 1 < count for number in range(count)] if sparse is None else list(sparse)
    layers = []
    for number in range(count):
        width = block if masked[number] else 1
        layer = _layer(rng, number, sizes, width, masked[number], signed, tight, fraction)
        weight = rng.normal(size=(layer.n_in, layer.n_out)) * scale / np.sqrt(layer.n_in * max(density, 0.1))
        layers.append(_filled(layer, rng, weight, Masks(density, grad_share, p_intra, p_inter)))
    guards = [layer.l1_in for layer in layers[1:]] + [0]
    return Model(
        sample=_input(sizes[0], 1, 1, signed),
        layers=tuple(replace(layer, guard=limit) for layer, limit in zip(layers, guards, strict=True)),
        n_classes=sizes[-1],
        signed=signed,
        learning=constants,
        model_hash=rng.bytes(8),
        **_rates(constants, learning_rate),
    )


@dataclass(frozen=True)
class Masks:
    """How masks are drawn: shares of the places, of the entries in the gradient mask, swapped, and grown."""

    density: float = 0.4
    grad_share: float = 0.6
    p_intra: float = 0.2
    p_inter: float = 0.1


@dataclass(frozen=True)
class Spec:
    """One layer of ``conv_model``, without numbers.

    ``inputs``: tensors as in ``Layer``, empty: the output of the layer before.  ``channels``:
    of the output of dense layers and convolutions; a depthwise one has ``multiplier`` for each
    input channel instead.  ``same``: margins that keep height / stride, else none.
    """

    op: Op
    inputs: tuple[int, ...] = ()
    channels: int = 0
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    same: bool = False
    activation: Activation = Activation.NONE
    multiplier: int = 0
    sparse: bool = False
    block: int = 1


def conv_model(
    seed: int,
    shape: tuple[int, int, int],
    specs: Sequence[Spec],
    *,
    signed: bool = False,
    prefix: int = 0,
    latent_stored: bool = True,
    latent_signed: bool = False,
    masks: Masks | None = None,
    scale: float = 1.0,
    tight: bool = False,
    learning_rate: float = 0.05,
    **learning: Any,
) -> Model:
    """A model with random weights, masks and formats, of the layers ``specs``.

    ``shape``: (channels, height, width) of a sample.  ``prefix``: that many of the specs are
    frozen; the others read none of their outputs but the last.  ``tight``: norm guards and
    clamps that act.  Pad layers are put in where the board needs them.  The last layer is
    dense, without activation.
    """
    rng = np.random.default_rng(seed)
    constants = _constants(seed, learning)
    make = _Maker(rng, constants, masks or Masks(), scale, tight)
    sample = _input(*shape, signed)
    frozen: tuple[Layer, ...] = ()
    latent = None
    if prefix:
        frozen = make.network(specs[:prefix], sample, channel_last=True)
        out = frozen[-1].out
        latent = _input(out.channels, out.height, out.width, latent_signed, fraction=5 - latent_signed)
        specs = [replace(s, inputs=tuple(t - prefix for t in s.inputs)) for s in specs[prefix:]]
    layers = make.network(specs, latent or sample, channel_last=latent is None)
    return Model(
        sample=sample,
        layers=layers,
        n_classes=layers[-1].n_out,
        signed=signed,
        learning=constants,
        model_hash=rng.bytes(8),
        prefix=frozen,
        latent=latent,
        latent_signed=bool(prefix) and latent_signed,
        latent_stored=bool(prefix) and latent_stored,
        **_rates(constants, learning_rate),
    )


def random_conv_model(
    seed: int,
    *,
    classes: int = 4,
    prefix: bool | None = None,
    latent_stored: bool | None = None,
    signed: bool | None = None,
    tight: bool = False,
    scale: float = 1.0,
    learning_rate: float = 0.05,
    **learning: Any,
) -> Model:
    """A small model of random layers of every kind; what is None is drawn."""
    rng = np.random.default_rng(seed)
    shape, specs = _random_specs(rng, classes)
    frozen = 0
    if prefix if prefix is not None else rng.random() < 0.3:
        # A cut through which one tensor goes: nothing behind it reads what lies before.  What is frozen has weights.
        weighted = [k for k, s in enumerate(specs) if s.op in (Op.CONV, Op.DENSE)]
        cuts = [k for k in range(weighted[0] + 1, len(specs) - 1) if all(t >= k for s in specs[k:] for t in s.inputs)]
        frozen = int(rng.choice(cuts)) if cuts else 0
    return conv_model(
        seed,
        shape,
        specs,
        signed=bool(rng.integers(2)) if signed is None else signed,
        prefix=frozen,
        latent_stored=bool(rng.integers(2)) if latent_stored is None else latent_stored,
        latent_signed=bool(rng.integers(2)),
        masks=Masks(density=float(rng.uniform(0.2, 0.9))),
        scale=scale,
        tight=tight,
        learning_rate=learning_rate,
        **learning,
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
        op=Op.DENSE,
        inputs=(number,),
        out=Tensor(n_out, 1, 1, 10 if last else fraction, 15, rectified=not last),
        activation=Activation.NONE if last else Activation.RELU,
        n_in=n_in,
        n_out=n_out,
        n_pad=n_pad,
        block=block,
        sparse=sparse,
        fw=fw,
        fx=fx,
        wlog=wlog,
        blog=BLOG,
        l1_in=limit,
        l1_err=l1_err,
        bias=bias,
    )


def _constants(seed: int, learning: dict[str, Any]) -> Learning:
    """``LEARNING`` with replacements."""
    constants = replace(LEARNING, **({"seed": seed} | learning))
    if constants.method is not Method.DERPP or constants.alpha == 0.0 or constants.beta == 0.0:
        constants = replace(constants, shared_draws=0)  # there are no two terms to share a draw
    return replace(constants, capacity=0) if constants.method is Method.FINETUNE else constants


def _rates(constants: Learning, learning_rate: float) -> dict[str, Any]:
    """What a model says of its steps."""
    batch, der, draws = constants.batch, constants.method is Method.DERPP, constants.shared_draws
    return {
        "fg": FG,
        "sacc": int(np.ceil(np.log2((1 + (draws or 2)) * batch))),
        "current": rate(learning_rate, batch),
        "distil": rate(0.0 if draws else learning_rate * constants.alpha * der, batch),
        "replay": rate(learning_rate * (constants.alpha + constants.beta) / draws, batch)
        if draws
        else rate(learning_rate * constants.beta, batch),
    }


def _input(channels: int, height: int, width: int, signed: bool, fraction: int | None = None) -> Tensor:
    """An 8-bit tensor."""
    bits = 7 if signed else 8
    return Tensor(channels, height, width, bits if fraction is None else fraction, bits, rectified=False)


def _filled(layer: Layer, rng: np.random.Generator, weight: NDArray[np.float64], masks: Masks) -> Layer:
    """The layer with weights (n_in, n_out), in panels if it is sparse."""
    limit = 1 << layer.wlog
    integers = np.zeros((layer.n_in, layer.n_pad), dtype=np.int16)
    rounded = np.round(weight * (1 << layer.fw))
    integers[:, : layer.n_out] = np.clip(rounded, -limit, limit - 1).astype(np.int16)
    dense = layer.op is Op.DENSE
    if not layer.sparse:
        return replace(layer, weight=integers if dense else np.ascontiguousarray(integers.T))
    # The generator chooses by the number of outputs; the weights are as good as a coin, and both ways are tried.
    heads = layer.n_out <= 16 and int(integers.astype(np.int64).sum()) % 2 == 0
    layer = replace(layer, by_output=not dense or heads)
    grid = integers.reshape(layer.n_in, -1, layer.block)
    grid = grid.transpose(1, 0, 2) if layer.by_output else grid
    parts = [(first, grid[:, first : first + PANEL_PLACES]) for first in range(0, grid.shape[1], PANEL_PLACES)]
    return replace(layer, panels=tuple(_panel(rng, first, values, masks) for first, values in parts))


def _panel(rng: np.random.Generator, first: int, values: NDArray[np.int16], masks: Masks) -> Panel:
    """One panel with a random mask; ``values``: (lines, places, block)."""
    lines, places, _ = values.shape
    nnz = max(1, int(masks.density * lines * places))
    grad = max(1, int(masks.grad_share * nnz))
    chosen = rng.permutation(lines * places)[:nnz]
    rank = np.arange(nnz) >= grad
    order = np.lexsort((chosen % places, rank, chosen // places))
    line, index, outside = chosen[order] // places, chosen[order] % places, rank[order]
    start = np.concatenate([[0], np.cumsum(np.bincount(line, minlength=lines))])
    split = start[:-1] + np.bincount(line[~outside], minlength=lines)
    return Panel(
        first=first,
        places=places,
        start=start.astype(np.int64),
        split=split.astype(np.int64),
        index=index.astype(np.int64),
        weight=values[line, index],
        nnz=nnz,
        grad=grad,
        grow_inter=min(int(masks.p_inter * nnz), lines * places - nnz),
        swap=int(masks.p_intra * nnz),
    )


def _padding(size: int, kernel: int, stride: int, same: bool) -> tuple[int, int]:
    """Values of the output along one axis, and the margin in front."""
    if not same:
        return (size - kernel) // stride + 1, 0
    out = -(-size // stride)
    return out, max(0, (out - 1) * stride + kernel - size) // 2


def _behind(size: int, out: int, kernel: int, stride: int, front: int) -> int:
    """The margin a convolution needs behind."""
    return max(0, (out - 1) * stride + kernel - front - size)


@dataclass(frozen=True)
class _Shaped:
    """A spec with the shape of its output."""

    spec: Spec
    inputs: tuple[int, ...]
    shape: tuple[int, int, int]
    window: Window | None


def _shaped(specs: Iterable[Spec], tensor: Tensor) -> list[_Shaped]:
    """Shapes and windows of all layers."""
    shapes = [(tensor.channels, tensor.height, tensor.width)]
    result = []
    for spec in specs:
        inputs = spec.inputs or (len(shapes) - 1,)
        channels, height, width = shapes[inputs[0]]
        window = None
        if spec.op is Op.DENSE:
            shape = (spec.channels, 1, 1)
        elif spec.op in (Op.ADD, Op.PAD):
            shape = (channels, height, width)
        else:
            (kh, kw), (sh, sw) = spec.kernel, spec.stride
            out_h, top = _padding(height, kh, sh, spec.same)
            out_w, left = _padding(width, kw, sw, spec.same)
            assert out_h > 0 < out_w, "the kernel is larger than its input"
            window = Window(kh, kw, sh, sw, top, left)
            outputs = spec.channels or channels * max(1, spec.multiplier)
            shape = (outputs, out_h, out_w)
        assert all(shapes[t] == shapes[inputs[0]] for t in inputs), "what is added has one shape"
        shapes.append(shape)
        result.append(_Shaped(spec, inputs, shape, window))
    return result


def _with_pads(shaped: Sequence[_Shaped], tensor: Tensor, channel_last: bool) -> list[_Shaped]:
    """With a pad layer wherever a reader needs what its input has not.

    The 8-bit input has no margins, and lies channel last if it is a sample; a tensor that a
    dense layer reads has no margins either.
    """
    result: list[_Shaped] = []
    number = {0: 0}
    padded: dict[int, int] = {}
    shapes = [(tensor.channels, tensor.height, tensor.width), *(s.shape for s in shaped)]
    turned = channel_last and tensor.channels > 1 and tensor.height * tensor.width > 1
    flat = {t for s in shaped if s.spec.op is Op.DENSE for t in s.inputs}
    for k, s in enumerate(shaped):
        inputs = []
        for t in s.inputs:
            margins = s.spec.op is Op.CONV and any(_margins(s, shapes[t]))
            order = t == 0 and turned and s.spec.op not in (Op.DENSE, Op.PAD)
            if order or (margins and (t == 0 or t in flat)):
                if t not in padded:
                    result.append(_Shaped(Spec(Op.PAD), (number[t],), shapes[t], None))
                    padded[t] = len(result)
                inputs.append(padded[t])
            else:
                inputs.append(number[t])
        result.append(replace(s, inputs=tuple(inputs)))
        number[k + 1] = len(result)
    return result


def _margins(s: _Shaped, shape: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Top, left, bottom and right margin a convolution needs around an input of ``shape``."""
    w = s.window
    assert w is not None
    bottom = _behind(shape[1], s.shape[1], w.kernel_h, w.stride_h, w.top)
    right = _behind(shape[2], s.shape[2], w.kernel_w, w.stride_w, w.left)
    return w.top, w.left, bottom, right


@dataclass(frozen=True)
class _Maker:
    """Draws the numbers of a network that satisfy docs/spec/numerics.md ("No overflow")."""

    rng: np.random.Generator
    learning: Learning
    masks: Masks
    scale: float
    tight: bool

    def network(self, specs: Iterable[Spec], tensor: Tensor, *, channel_last: bool) -> tuple[Layer, ...]:
        """All layers on an 8-bit input."""
        shaped = _with_pads(_shaped(specs, tensor), tensor, channel_last)
        tensors = [tensor]
        wide = [255 if tensor.bits == 8 else 128]
        """Largest magnitude in each tensor."""
        layers: list[Layer] = []
        for k, s in enumerate(shaped):
            readers = [r for r in shaped if k + 1 in r.inputs]
            x = [tensors[t] for t in s.inputs]
            out = self._tensor(s, x, readers, last=k + 1 == len(shaped))
            layer = Layer(s.spec.op, s.inputs, out, s.spec.activation, window=s.window)
            if s.spec.op in (Op.DENSE, Op.CONV):
                layer = self._weighted(layer, s, x[0], wide[s.inputs[0]], readers)
            layers.append(layer)
            tensors.append(out)
            eight = s.spec.op is Op.PAD and s.inputs == (0,)
            wide.append(wide[0] if eight else 1 << out.bits)
        limits = {t: [r.l1_in for r in layers if r.l1_in and t in r.inputs] for t in range(len(tensors))}
        return tuple(replace(layer, guard=min(limits[k + 1], default=0)) for k, layer in enumerate(layers))

    def _tensor(self, s: _Shaped, x: Sequence[Tensor], readers: Sequence[_Shaped], *, last: bool) -> Tensor:
        """The output of a layer, with the margins its readers need."""
        spec = s.spec
        keeps = spec.op in (Op.MAX_POOL, Op.AVG_POOL, Op.PAD)
        if keeps:
            fraction, bits = x[0].fraction, x[0].bits
        elif spec.op is Op.DENSE:
            fraction, bits = 10 if last else 9, 15
        else:
            bits = int(self.rng.integers(10, 14))
            fraction = bits - int(self.rng.integers(3, 6))
        if spec.activation is Activation.RELU6:
            assert 6 << fraction < 1 << bits, "6 has to fit"
        kept = spec.op in (Op.MAX_POOL, Op.PAD) and x[0].rectified
        needed = [_margins(r, s.shape) for r in readers if r.spec.op is Op.CONV]
        margins = np.max(needed, axis=0).tolist() if needed else [0, 0, 0, 0]
        rectified = kept or spec.activation is not Activation.NONE
        return Tensor(*s.shape, fraction, bits, rectified, *margins)

    def _weighted(self, layer: Layer, s: _Shaped, x: Tensor, largest: int, readers: Sequence[_Shaped]) -> Layer:
        """The constants and the weights of a dense layer or convolution."""
        rng, spec, n_out = self.rng, s.spec, s.shape[0]
        block = spec.block if spec.sparse else 1
        dense = layer.op is Op.DENSE
        n_in = x.values if dense else spec.kernel[0] * spec.kernel[1] * (1 if spec.multiplier else x.channels)
        layer = replace(layer, n_in=n_in, n_out=n_out, n_pad=-(-n_out // block) * block, block=block)
        layer = replace(layer, sparse=spec.sparse, multiplier=spec.multiplier, fx=x.fraction, blog=BLOG)
        static = not dense or largest < 256
        wlog = 15 if static else int(rng.integers(12, 15))
        while static and (n_in * largest << wlog) > SUM_MAX - (1 << BLOG) - (1 << 20):
            wlog -= 1
        layer = replace(layer, wlog=wlog, fw=wlog - 3)
        if dense:
            wide = 0 if static else (SUM_MAX - (1 << BLOG) - (1 << 20)) >> wlog
            err = (SUM_MAX - (1 << layer.fw)) >> wlog
            layer = replace(layer, l1_in=wide // (16 if self.tight else 1), l1_err=err // (8 if self.tight else 1))
        else:
            layer = self._steps(layer, s, largest, readers)
        bias = np.zeros(layer.n_pad, dtype=np.int32)
        wide = 1 << (layer.fw + layer.fx - 4)
        bias[:n_out] = rng.integers(-wide, wide, size=n_out)
        weight = rng.normal(size=(n_in, n_out)) * self.scale / np.sqrt(n_in * max(self.masks.density, 0.1))
        return _filled(replace(layer, bias=bias), rng, weight, self.masks)

    def _steps(self, layer: Layer, s: _Shaped, largest: int, readers: Sequence[_Shaped]) -> Layer:
        """``ke``, ``elog``, ``kg``, ``glog``, ``kc`` and ``active`` of a convolution."""
        assert layer.window is not None
        active = s.shape[1] * s.shape[2]
        if readers and all(r.spec.op is Op.MAX_POOL for r in readers):
            active = min(active, sum(r.shape[1] * r.shape[2] for r in readers))
        reaching = (layer.multiplier or layer.n_out) * layer.window.area
        slack = int(self.rng.integers(1, 4)) if self.tight else 0
        elog = 15
        while (reaching << (layer.wlog + elog)) + (1 << layer.fw) > SUM_MAX:
            elog -= 1
        glog = 15
        while glog > 0:
            kg = max(0, 15 - glog - slack)
            su = FG - kg + layer.fx - layer.fw
            left = max(0, layer.fw + layer.fx + kg - FG)
            bias = (self.learning.batch * active << (glog + left)) + (1 << BLOG)
            if (active * largest << glog) + (1 << su) <= SUM_MAX and bias <= SUM_MAX:
                break
            glog -= 1
        kc = 0
        while (active * largest << (15 - kc)) + 128 > SUM_MAX:
            kc += 1
        assert self.learning.capture * active * largest << 7 <= SUM_MAX, "the captured gradient fits 32 bits"
        ke = max(0, 15 - elog - slack)
        return replace(layer, ke=ke, elog=elog, kg=kg, glog=glog, kc=kc, active=active)


def _random_specs(rng: np.random.Generator, classes: int) -> tuple[tuple[int, int, int], list[Spec]]:
    """Shape of a sample, and layers on it: a few of every kind, then dense ones."""
    flat = rng.random() < 0.25
    shape = (int(rng.integers(1, 4)), 1 if flat else int(rng.integers(5, 10)), int(rng.integers(6, 12)))
    specs: list[Spec] = []
    at = shape
    for _ in range(int(rng.integers(2, 6))):
        specs += _random_part(rng, at, len(specs))
        at = _shaped(specs, Tensor(*shape, 0, 8, rectified=False))[-1].shape
    if rng.random() < 0.4:
        specs.append(Spec(Op.AVG_POOL, kernel=at[1:], activation=_activation(rng, relu6=False)))
    if rng.random() < 0.5:
        specs.append(_mask(rng, Spec(Op.DENSE, channels=int(rng.integers(4, 9)), activation=Activation.RELU)))
    specs.append(_mask(rng, Spec(Op.DENSE, channels=classes), share=0.3))
    return shape, specs


def _random_part(rng: np.random.Generator, at: tuple[int, int, int], count: int) -> list[Spec]:
    """A layer, or a few that belong together, on an input of shape ``at``, which is tensor ``count``."""
    channels, height, width = at
    kernel = (int(rng.integers(1, min(3, height) + 1)), int(rng.integers(1, min(4, width) + 1)))
    stride = (int(rng.integers(1, 3)), int(rng.integers(1, 3)))
    same = bool(rng.integers(2))
    kind = rng.choice(["conv", "conv", "depthwise", "max", "avg", "residual", "many"])
    if rng.random() < 0.1:
        return [Spec(Op.PAD), _mask(rng, Spec(Op.CONV, channels=3, kernel=kernel, same=same))]
    if kind in ("max", "avg"):
        op = Op.MAX_POOL if kind == "max" else Op.AVG_POOL
        activation = _activation(rng, relu6=False) if rng.random() < 0.3 else Activation.NONE
        return [Spec(op, kernel=kernel, stride=stride, same=same, activation=activation)]
    conv = Spec(Op.CONV, kernel=kernel, stride=stride, same=same, activation=_activation(rng))
    if kind == "depthwise":
        multiplier = int(rng.integers(1, 3)) if channels < 8 else 1
        return [_mask(rng, replace(conv, multiplier=multiplier))]
    conv = replace(conv, channels=int(rng.integers(2, 7)))
    if kind == "many" and width >= 8 and height * width <= 50:
        # So many kernel positions that they need a second panel.
        wide = Spec(Op.CONV, channels=33, activation=_activation(rng))
        long = (3, 3) if height >= 3 else (1, 8)
        return [wide, _mask(rng, replace(conv, kernel=long, channels=3), share=1.0)]
    if kind == "residual":
        # Two branches of the same shape; sometimes one tensor twice, sometimes an activation on its own.
        first = _mask(rng, replace(conv, stride=(1, 1), same=True, channels=channels))
        second = _mask(rng, replace(first, inputs=(count + 1,), activation=Activation.NONE))
        source = count if count else count + 1
        extra = [count + 2] if rng.random() < 0.3 else []
        add = Spec(Op.ADD, inputs=(source, count + 2, *extra), activation=_activation(rng))
        return [first, second, add] + ([Spec(Op.ADD, activation=Activation.RELU)] if rng.random() < 0.3 else [])
    return [_mask(rng, conv)]


def _activation(rng: np.random.Generator, *, relu6: bool = True) -> Activation:
    """Mostly a rectifier; pooling keeps a format in which 6 may not fit."""
    kinds = [Activation.NONE, Activation.RELU, Activation.RELU, *([Activation.RELU6] * relu6)]
    return kinds[int(rng.integers(len(kinds)))]


def _mask(rng: np.random.Generator, spec: Spec, share: float = 0.6) -> Spec:
    """Perhaps sparse."""
    return replace(spec, sparse=True, block=int(rng.choice([1, 2, 4]))) if rng.random() < share else spec
