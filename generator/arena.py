# SPDX-License-Identifier: Apache-2.0
"""Plan of what a training step keeps in memory, and when: tensors, errors, what backward needs, all in one arena.

A moment is one layer's turn: frozen layers (negative), forward 0..N-1, the loss N, backward
N+1..2N from the last layer to the first.  What is not alive at the same moment may share memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparcl_mcu.spec.types import Activation, Layer, Model, Op, SingleHead, Tensor, needs_error


@dataclass(frozen=True)
class Placement:
    """Memory of one thing: ``size`` bytes at ``offset`` of the arena, from moment ``first`` to ``last``, both included.

    ``name``, ``ctype``: name and type of a value in the generated C; ``what``: its shape; ``start``, ``end``: the
    moments in words.
    """

    name: str
    what: str
    ctype: str
    size: int
    offset: int
    first: int
    last: int
    start: str
    end: str


@dataclass(frozen=True)
class _Wanted:
    """Something to place."""

    name: str
    what: str
    ctype: str
    size: int
    first: int
    last: int


# ---------------------------------------------------------------- what backward needs


def eight_bit(layers: Sequence[Layer]) -> tuple[bool, ...]:
    """For each tensor (0: the input): whether its values are 8 bit."""
    result = [True]
    for layer in layers:
        result.append(layer.op is Op.PAD and result[layer.inputs[0]])
    return tuple(result)


def readers(layers: Sequence[Layer], tensor: int) -> list[int]:
    """The layers that read a tensor, first to last."""
    return [k for k, layer in enumerate(layers) if tensor in layer.inputs]


def keeps_alive(layers: Sequence[Layer], number: int) -> bool:
    """Whether layer ``number`` keeps one bit per value for the backward pass: where its output's error is not 0.

    Layers with weights mask what they contribute by the values they read, and a maximum is 0 only
    where its error already is.  Averages and sums do not see the values, and only the bit tells
    a ReLU6 that reached its limit.
    """
    layer = layers[number]
    if not (layer.out.rectified and needs_error(tuple(layers))[number + 1]):
        return False
    unseen = (Op.AVG_POOL, Op.ADD)
    return layer.activation is Activation.RELU6 or any(layers[r].op in unseen for r in readers(layers, number + 1))


def keeps_arg(layers: Sequence[Layer], number: int) -> bool:
    """Whether layer ``number`` keeps the positions of its maxima for the backward pass."""
    return layers[number].op is Op.MAX_POOL and needs_error(tuple(layers))[number + 1]


def pooled_by(layers: Sequence[Layer], number: int) -> int | None:
    """The max_pool layer whose error stands for that of the output of convolution ``number``; None where there is none.

    Where it alone reads the output and its windows do not overlap, each of its errors belongs to one value: the
    convolution lists them from there, and the error of its output, most of it 0, is never written.
    """
    if layers[number].op is not Op.CONV or keeps_alive(layers, number):
        return None
    reader, *others = readers(layers, number + 1) or [number]
    window = layers[reader].window
    if others or layers[reader].op is not Op.MAX_POOL or window is None:
        return None
    apart = window.stride_h >= window.kernel_h and window.stride_w >= window.kernel_w
    return reader if apart else None


def captures(model: Model) -> bool:
    """Whether gradients are captured for mask updates."""
    return (model.learning.tdm or model.learning.dgm) and any(layer.sparse for layer in model.layers)


def propagates_twice(model: Model) -> bool:
    """Whether the error that is captured is another one than that of the step, so that each goes back on its own."""
    return captures(model) and model.learning.single_head is SingleHead.SCORE


def stored_values(layer: Layer) -> int:
    """Values of a layer's output in memory: with margins, and with the padding of a dense layer's block."""
    return max(layer.out.size, layer.n_pad) if layer.op is Op.DENSE else layer.out.size


# ---------------------------------------------------------------- places


def place(model: Model) -> tuple[Placement, ...]:
    """Place everything in the arena, sorted by offset; what is alive at the same moment never overlaps.

    Largest first, each at the lowest offset that is free all its life.
    """
    placed: list[tuple[int, _Wanted]] = []
    for wanted in sorted(_wanted(model), key=lambda w: (-w.size, w.first, w.name)):
        placed.append((_lowest_free(wanted, placed), wanted))
    placed.sort(key=lambda p: (p[0], p[1].first))
    return tuple(
        Placement(**vars(w), offset=offset, start=moment_text(model, w.first), end=moment_text(model, w.last))
        for offset, w in placed
    )


def arena_bytes(model: Model) -> int:
    """Size of the arena."""
    return max((p.offset + _even(p.size) for p in place(model)), default=0)


def moment_text(model: Model, moment: int) -> str:
    """A moment in words."""
    count = len(model.layers)
    if moment < 0:
        return f"frozen {moment + len(model.prefix)}"
    if moment < count:
        return f"forward {moment}"
    return "loss" if moment == count else f"backward {2 * count - moment}"


def _lowest_free(wanted: _Wanted, placed: Sequence[tuple[int, _Wanted]]) -> int:
    taken = sorted(
        (offset, offset + _even(other.size))
        for offset, other in placed
        if other.first <= wanted.last and wanted.first <= other.last
    )
    at = 0
    for begin, end in taken:
        if begin - at >= _even(wanted.size):
            break
        at = max(at, end)
    return at


def _even(size: int) -> int:
    return size + size % 2


def _wanted(model: Model) -> list[_Wanted]:
    return _frozen(model) + _latent(model) + _values(model) + _errors(model)


def _frozen(model: Model) -> list[_Wanted]:
    """Outputs of the frozen layers; the last one lives until it has become the latent."""
    layers = model.prefix
    count = len(layers)
    small = eight_bit(layers)
    result = []
    for k, layer in enumerate(layers):
        last = max([k, *readers(layers, k + 1)])
        ctype = "scl_input_t" if small[k + 1] else "int16_t"
        result.append(_tensor(f"prefix{k}_out", layer, ctype, k - count, last - count))
    return result


def _latent(model: Model) -> list[_Wanted]:
    if model.latent is None or model.latent_stored:
        return []
    last = _last_use(model, 0)
    return [_Wanted("network_input", _shape(model.latent), "scl_latent_t", model.latent.size, -1, last)]


def _values(model: Model) -> list[_Wanted]:
    """Outputs of the layers that learn but the last, whose logits have their own place, and what is kept of them."""
    layers = model.layers
    small = eight_bit(layers)
    result = []
    for k, layer in enumerate(layers):
        backward = _end(model) if propagates_twice(model) else 2 * len(layers) - k
        if k + 1 < len(layers):
            ctype = "scl_latent_t" if small[k + 1] else "int16_t"
            result.append(_tensor(f"layer{k}_out", layer, ctype, k, _last_use(model, k + 1)))
        if keeps_alive(layers, k):
            size = -(-stored_values(layer) // 8)
            result.append(_Wanted(f"layer{k}_alive", f"{_shape(layer.out)} bits", "uint8_t", size, k, backward))
        if keeps_arg(layers, k):
            backward = max(backward, _error_use(layers, k))
            result.append(_Wanted(f"layer{k}_arg", _shape(layer.out), "uint8_t", layer.out.values, k, backward))
    return result


def _errors(model: Model) -> list[_Wanted]:
    """Errors of all tensors that have one, from the first contribution to their last use; the logits' is elsewhere."""
    layers = model.layers
    count = len(layers)
    return [
        _tensor(f"layer{k}_error", layer, "int16_t", 2 * count - max(readers(layers, k + 1)), _error_use(layers, k))
        for k, layer in enumerate(layers[:-1])
        if needs_error(layers)[k + 1] and pooled_by(layers, k) is None
    ]


def _error_use(layers: Sequence[Layer], number: int) -> int:
    """The last moment at which the error of a layer's output is read."""
    source = layers[number].inputs[0]
    if source and pooled_by(layers, source - 1) == number:
        number = source - 1
    return 2 * len(layers) - number


def _last_use(model: Model, tensor: int) -> int:
    """The last moment at which the values of a tensor are read."""
    layers = model.layers
    turns = readers(layers, tensor)
    learning = [k for k in turns if layers[k].weighted]
    if learning:
        return _end(model) if propagates_twice(model) else 2 * len(layers) - learning[0]
    return max(turns, default=max(tensor - 1, 0))


def _end(model: Model) -> int:
    return 2 * len(model.layers)


def _tensor(name: str, layer: Layer, ctype: str, first: int, last: int) -> _Wanted:
    what = _shape(layer.out) + (" with margins" if layer.out.padded else "")
    return _Wanted(name, what, ctype, stored_values(layer) * (2 if ctype == "int16_t" else 1), first, last)


def _shape(tensor: Tensor) -> str:
    return f"{tensor.channels}x{tensor.height}x{tensor.width}"
