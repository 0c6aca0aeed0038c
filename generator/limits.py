# SPDX-License-Identifier: Apache-2.0
"""Limits of the firmware's integers besides numbers: offsets, counts, sizes (firmware/engine)."""

from __future__ import annotations

from collections.abc import Sequence

from sparcl_mcu.generator.arena import keeps_arg
from sparcl_mcu.generator.proof import layer_name
from sparcl_mcu.spec.errors import UserError
from sparcl_mcu.spec.types import Layer, Model, Op

LARGEST = 0xFFFF
"""Outputs, lines and places of a layer, and offsets into the input of a convolution, are 16-bit numbers."""

LARGEST_MULTIPLIER = 0xFF
"""Outputs of a depthwise convolution for each of its inputs."""

LARGEST_MAXIMUM = 256
"""Values under the window of a maximum whose position is kept as a byte."""

LARGEST_SAMPLE = LARGEST - 12
"""Values of a sample that fit a request of the protocol with its head."""

MOST_LAYERS = 0xFF
"""Layers that learn (``n_layers`` in docs/spec/protocol.md)."""


def check(model: Model) -> None:
    """Raises ``UserError`` if the model has something that the firmware has no room for."""
    if model.n_in > LARGEST_SAMPLE:
        raise UserError(f"a sample has {model.n_in} values; at most {LARGEST_SAMPLE} fit a request to the board")
    if len(model.layers) > MOST_LAYERS:
        raise UserError(f"model: {len(model.layers)} layers learn; at most {MOST_LAYERS} are possible: freeze some")
    _check_layers(model, model.prefix, frozen=True)
    _check_layers(model, model.layers, frozen=False)


def _check_layers(model: Model, layers: Sequence[Layer], *, frozen: bool) -> None:
    first = model.sample if frozen else model.input
    for number, layer in enumerate(layers):
        name = layer_name(model, number, frozen=frozen)
        if layer.op is Op.CONV:
            source = layers[layer.inputs[0] - 1].out if layer.inputs[0] else first
            _check_convolution(name, layer, source.size)
        elif layer.op is Op.DENSE and layer.sparse and max(layer.n_in, layer.n_pad) > LARGEST:
            raise UserError(
                f"{name}: {layer.n_in} inputs and {layer.n_out} outputs; with masks at most {LARGEST} of each: "
                "use a smaller layer, or pool its input"
            )
        elif not frozen and keeps_arg(layers, number):
            _check_maximum(name, layer)


def _check_convolution(name: str, layer: Layer, values: int) -> None:
    if values > LARGEST:
        raise UserError(
            f"{name}: its input has {values} values with its margins, a convolution takes at most {LARGEST}; "
            "use a smaller input or fewer channels"
        )
    if layer.n_pad > LARGEST or layer.multiplier > LARGEST_MULTIPLIER:
        raise UserError(
            f"{name}: {layer.n_out} output channels; at most {LARGEST} are possible, "
            f"in a depthwise convolution {LARGEST_MULTIPLIER} for each input channel"
        )


def _check_maximum(name: str, layer: Layer) -> None:
    assert layer.window is not None
    if layer.window.area > LARGEST_MAXIMUM:
        raise UserError(
            f"{name}: max-pooling over {layer.window.area} values; where layers before it learn, at most "
            f"{LARGEST_MAXIMUM}; pool over less, take the average, or freeze the layers before it"
        )
