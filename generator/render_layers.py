# SPDX-License-Identifier: Apache-2.0
"""The layers of a model as templates/scl_model.c.j2 writes them: C expressions and constants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparcl_mcu.generator import proof
from sparcl_mcu.generator.arena import captures, eight_bit, keeps_alive, keeps_arg, pooled_by, readers, stored_values
from sparcl_mcu.generator.plan import captured_sums, weight_values
from sparcl_mcu.spec.types import Activation, Layer, Model, Op, Tensor, needs_error


@dataclass(frozen=True)
class Source:
    """One input of a layer.

    ``x``, ``kind``, ``ctype``: C expression of its values, ``scl_kind_t`` and type of a value.
    ``shape``: its ``scl_tensor_t``.  ``error``: C expression of the error the layer contributes
    to, empty if there is none; ``first``: whether it is the first to contribute; ``padding``:
    values of the error behind those it contributes to, which have to be 0; ``errors``: all of them.
    """

    x: str
    kind: str
    ctype: str
    shape: str
    values: int
    rectified: bool
    fraction: int
    by_pixel: bool
    """Whether it is a sample, which lies by row, column, channel."""
    error: str
    pooled: bool
    """Whether the layer before takes its error from this layer's (`arena.pooled_by`)."""
    first: bool
    padding: int
    errors: int


@dataclass(frozen=True)
class PanelView:
    """One panel: names of its arrays and their sizes in C."""

    name: str
    number: int
    first: int
    entries: int
    """Most entries it holds."""
    gradients: int
    """Gradient sums of a batch, 0 for none."""
    captured: int
    """Captured gradients of each kind, 0 for none."""
    constants: str


@dataclass(frozen=True)
class LayerView:
    """One layer; ``layer`` has its constants, the rest is C."""

    layer: Layer
    name: str
    number: int
    title: str
    frozen: bool
    last: bool
    sources: tuple[Source, ...]
    out: str
    out_values: int
    """Values of the output in memory."""
    ctype: str
    """C type of one output value."""
    shape: str
    error: str
    """Empty if the layer is not visited in the backward pass."""
    activation: str
    weights: int
    panels: tuple[PanelView, ...]
    batched: bool
    captured: bool
    """Whether scores of mask updates need its gradients."""
    propagates: bool
    """Whether some input has an error."""
    alive: bool
    """Whether it writes down where its values are alive, above 0 and below ``highest``."""
    highest: int
    arg: bool
    su: int
    bias_shift: int
    unit_shift: int
    geometry: str
    """``scl_conv_t`` or ``scl_pool_t``, field by field."""
    positions: tuple[int, ...]
    """Offsets of a convolution's kernel positions."""
    pooled: str
    """The max_pool layer that has a convolution's error, empty if there is none."""

    @property
    def op(self) -> str:
        """What the layer computes."""
        return self.layer.op.value

    @property
    def source(self) -> Source:
        """The layer's only input, if it has just one."""
        return self.sources[0]


def views(model: Model) -> tuple[LayerView, ...]:
    """The layers that learn."""
    return tuple(_view(model, model.layers, number, frozen=False) for number in range(len(model.layers)))


def frozen_views(model: Model) -> tuple[LayerView, ...]:
    """The layers of the prefix."""
    return tuple(_view(model, model.prefix, number, frozen=True) for number in range(len(model.prefix)))


def _view(model: Model, layers: tuple[Layer, ...], number: int, *, frozen: bool) -> LayerView:
    layer = layers[number]
    last = not frozen and number == len(layers) - 1
    name = f"prefix{number}" if frozen else f"layer{number}"
    with_error = () if frozen else needs_error(layers)
    sources = tuple(
        _source(model, layers, number, t, frozen=frozen, first=t not in layer.inputs[:k])
        for k, t in enumerate(layer.inputs)
    )
    visited = not frozen and with_error[number + 1]
    small = eight_bit(layers)[number + 1]
    return LayerView(
        layer=layer,
        name=name,
        number=number,
        title=_title(layer, layers, number),
        frozen=frozen,
        last=last,
        sources=sources,
        out="scl_logits" if last else f"{name}_out",
        out_values=stored_values(layer),
        ctype="int16_t" if not small else "scl_input_t" if frozen else "scl_latent_t",
        shape=_shape(layer.out),
        error="" if not visited else "scl_logit_error" if last else f"{name}_error",
        activation=_activation(layer),
        weights=weight_values(layer) if layer.weighted and not layer.sparse else 0,
        panels=_panels(model, layer, name, frozen=frozen),
        batched=not frozen and model.learning.batch > 1,
        captured=not frozen and layer.sparse and captures(model),
        propagates=any(source.error for source in sources),
        alive=not frozen and keeps_alive(layers, number),
        highest=6 << layer.fa if layer.activation is Activation.RELU6 else 32767,
        arg=not frozen and keeps_arg(layers, number),
        su=proof.update_shift(layer, model.fg),
        bias_shift=proof.bias_shift(layer, model.fg),
        unit_shift=proof.unit_shift(layer, model.learning.capture),
        geometry=_geometry(layer, _tensor(model, layers, layer.inputs[0], frozen=frozen)),
        positions=_positions(layer, _tensor(model, layers, layer.inputs[0], frozen=frozen)),
        pooled=_pooled(layers, number) if visited else "",
    )


def _pooled(layers: Sequence[Layer], number: int) -> str:
    reader = pooled_by(layers, number)
    return "" if reader is None else f"layer{reader}"


def _title(layer: Layer, layers: Sequence[Layer], number: int) -> str:
    """The comment above a layer's code."""
    window = layer.window
    parts = [layer.op.value]
    if layer.name:
        parts[0] += f" ({layer.name})"
    if window is not None:
        parts[0] += f" {window.kernel_h}x{window.kernel_w}"
        if (window.stride_h, window.stride_w) != (1, 1):
            parts[0] += f", stride {window.stride_h}x{window.stride_w}"
    if layer.weighted:
        parts.append(f"{layer.n_in} -> {layer.n_out}")
        if layer.multiplier:
            parts.append("depthwise")
        if layer.sparse:
            parts.append("sparse")
    if layer.activation is not Activation.NONE:
        parts.append({Activation.RELU: "ReLU", Activation.RELU6: "ReLU6"}[layer.activation])
    if layer.inputs != (number,) or number == 0:
        parts.append("of " + " + ".join("the input" if t == 0 else f"layer {t - 1}" for t in layer.inputs))
    title = ", ".join(parts)
    if layer.weighted:
        title += f"; w Q{15 - layer.fw}.{layer.fw}, x .{layer.fx}, out .{layer.fa}"
    return title


# ---------------------------------------------------------------- inputs


def _tensor(model: Model, layers: Sequence[Layer], tensor: int, *, frozen: bool) -> Tensor:
    if tensor:
        return layers[tensor - 1].out
    return model.sample if frozen else model.input


def _source(model: Model, layers: tuple[Layer, ...], number: int, tensor: int, *, frozen: bool, first: bool) -> Source:
    """Input ``tensor`` of layer ``number``; ``first``: whether the layer has not contributed to it before."""
    shape = _tensor(model, layers, tensor, frozen=frozen)
    error = not frozen and needs_error(layers)[tensor]
    name = f"prefix{tensor - 1}" if frozen else f"layer{tensor - 1}"
    small = eight_bit(layers)[tensor]
    input_kind = "SCL_INPUT_KIND" if frozen else "SCL_LATENT_KIND"
    whole = stored_values(layers[tensor - 1]) if tensor else shape.size
    x = f"{name}_out" if tensor else "network_input" if _keeps_latent(model, frozen=frozen) else "x"
    return Source(
        x=x,
        kind=input_kind if small else "SCL_I16",
        ctype="int16_t" if not small else "scl_input_t" if frozen else "scl_latent_t",
        shape=_shape(shape),
        values=shape.size,
        rectified=shape.rectified,
        fraction=shape.fraction,
        by_pixel=tensor == 0 and (frozen or not model.prefix),
        error=f"{name}_error" if error else "",
        pooled=tensor > 0 and pooled_by(layers, tensor - 1) == number,
        first=first and number == max(readers(layers, tensor)),
        padding=whole - shape.size,
        errors=whole,
    )


def _keeps_latent(model: Model, *, frozen: bool) -> bool:
    return not frozen and bool(model.prefix) and not model.latent_stored


# ---------------------------------------------------------------- constants


def _shape(t: Tensor) -> str:
    """``scl_tensor_t``."""
    origin = t.top * t.row + t.left
    return f"(scl_tensor_t){{{t.channels}, {t.height}, {t.width}, {t.row}, {t.plane}, {origin}}}"


def _activation(layer: Layer) -> str:
    """``scl_activation_t``; what counts as saturated: docs/spec/numerics.md, "Forward"."""
    shift = proof.forward_shift(layer) if layer.weighted else 0
    pools = layer.op in (Op.MAX_POOL, Op.AVG_POOL)  # what they read is within its bits, and so is what they make of it
    most = (1 << (15 if pools else layer.out.bits)) - 1
    low, high, count_low, count_high = {
        Activation.NONE: (-most - 1, most, 1, 1),
        Activation.RELU: (0, most, 0, 1),
        Activation.RELU6: (0, 6 << layer.fa, 0, 0),
    }[layer.activation]
    return f".low = {low}, .high = {high}, .shift = {shift}, .count_low = {count_low}, .count_high = {count_high}"


def _panels(model: Model, layer: Layer, name: str, *, frozen: bool) -> tuple[PanelView, ...]:
    scored = not frozen and layer.op is Op.CONV and captures(model)
    batched = not frozen and model.learning.batch > 1
    return tuple(
        PanelView(
            name=f"{name}_panel{number}",
            number=number,
            first=panel.first,
            entries=len(panel.index) if frozen else panel.capacity,
            gradients=(panel.grad + panel.grow_inter) * layer.block if batched else 0,
            captured=captured_sums(model, layer, panel) if scored else 0,
            constants=f".first = {panel.first}, .places = {panel.places}, .nnz = {panel.nnz}, .grad = {panel.grad}, "
            f".grow_inter = {panel.grow_inter}, .swap = {panel.swap}",
        )
        for number, panel in enumerate(layer.panels)
    )


def _positions(layer: Layer, source: Tensor) -> tuple[int, ...]:
    """Offsets of the kernel positions from the first one, in the order of docs/spec/numerics.md, "Forward"."""
    if layer.op is not Op.CONV:
        return ()
    assert layer.window is not None
    return tuple(
        channel * source.plane + row * source.row + column
        for channel in range(1 if layer.multiplier else source.channels)
        for row in range(layer.window.kernel_h)
        for column in range(layer.window.kernel_w)
    )


def _geometry(layer: Layer, source: Tensor) -> str:
    """How a convolution or a pooling layer moves over its input, field by field."""
    window, out = layer.window, layer.out
    if window is None:
        return ""
    fields: dict[str, int] = {}
    if layer.op is Op.CONV:
        fields |= {"n_in": layer.n_in, "n_out": layer.n_out, "block": layer.block, "multiplier": layer.multiplier}
        origin = (source.top - window.top) * source.row + source.left - window.left
        fields["n_panels"] = len(layer.panels)
    else:
        fields |= {"channels": source.channels, "in_h": source.height, "in_w": source.width}
        fields |= {"top": window.top, "left": window.left}
        origin = source.top * source.row + source.left
    fields |= {"kernel_h": window.kernel_h, "kernel_w": window.kernel_w}
    fields |= {"out_h": out.height, "out_w": out.width, "stride_h": window.stride_h, "stride_w": window.stride_w}
    fields |= {"in_row": source.row, "in_plane": source.plane, "in_origin": origin}
    fields |= {"out_row": out.row, "out_plane": out.plane, "out_origin": out.top * out.row + out.left}
    return ", ".join(f".{key} = {value}" for key, value in fields.items())
