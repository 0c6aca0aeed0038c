# SPDX-License-Identifier: Apache-2.0
"""Models that the firmware's integers have no room for are refused before anything is rendered."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sparcl_mcu.generator import limits, quantise
from sparcl_mcu.spec.errors import UserError
from sparcl_mcu.spec.types import Activation, Layer, Model, Op, Panel, Tensor
from tests.generator.helpers import config, random_float_model
from tests.reference.models import Spec, conv_model, random_model

CONV = (Spec(Op.CONV, channels=2, kernel=(3, 3), activation=Activation.RELU), Spec(Op.DENSE, channels=4))


def changed(model: Model, number: int, **fields: object) -> Model:
    """With other fields in one layer."""
    layers = list(model.layers)
    layers[number] = replace(layers[number], **fields)
    return replace(model, layers=tuple(layers))


def refused(model: Model, words: str) -> None:
    """By a message that says so."""
    with pytest.raises(UserError, match=words):
        limits.check(model)


def test_an_input_of_a_convolution() -> None:
    """Kernel positions are 16-bit offsets."""
    model = conv_model(1, (1, 8, 8), CONV)
    limits.check(model)
    sample = Tensor(1, 250, 250, 8, 8, rectified=False, left=10, right=10)
    refused(replace(model, sample=sample), "67500 values with its margins")


def test_an_input_of_a_frozen_convolution() -> None:
    """Frozen layers have the same kernels."""
    model = conv_model(1, (1, 8, 8), (CONV[0], *CONV), prefix=1)
    limits.check(model)
    sample = Tensor(1, 250, 250, 8, 8, rectified=False, left=10, right=10)
    refused(replace(model, sample=sample), r"frozen layer 0 .* 67500 values with its margins")


def test_outputs_of_a_convolution() -> None:
    """Channels are counted in 16 bits, those of one input channel in 8."""
    model = conv_model(1, (1, 8, 8), CONV)
    refused(changed(model, 0, n_out=65534, n_pad=65536), "65534 output channels")
    refused(changed(model, 0, n_out=256, n_pad=256, multiplier=256), "in a depthwise convolution 255")
    limits.check(changed(model, 0, n_out=255, n_pad=255, multiplier=255))


def test_a_maximum_over_too_many_values() -> None:
    """Its position has to fit a byte where an error has to find the way back."""
    specs = (
        Spec(Op.CONV, channels=2, activation=Activation.RELU),
        Spec(Op.MAX_POOL, kernel=(17, 17)),
        Spec(Op.DENSE, channels=4),
    )
    refused(conv_model(1, (1, 17, 17), specs), "289 values")
    limits.check(conv_model(1, (1, 17, 17), specs, prefix=2))


def test_a_dense_layer_with_masks() -> None:
    """Its lines and outputs are counted in 16 bits."""
    model = random_model(1, sizes=(12, 9, 4))
    assert isinstance(model.layers[0].panels[0], Panel)
    refused(changed(model, 0, n_in=65536), "65536 inputs")
    refused(changed(model, 0, n_out=65536, n_pad=65536), "65536 outputs")
    whole: Layer = model.layers[1]
    assert not whole.sparse
    limits.check(changed(model, 1, n_in=65536))


def test_a_sample() -> None:
    """It has to fit a request."""
    model = random_model(1, sizes=(12, 9, 4))
    limits.check(replace(model, sample=replace(model.sample, channels=65523)))
    refused(replace(model, sample=replace(model.sample, channels=65524)), "65524 values; at most 65523")


def test_layers() -> None:
    """They are counted in a byte."""
    model = random_model(1, sizes=(12, 9, 4))
    refused(replace(model, layers=(*model.layers[:1] * 255, model.layers[1])), "256 layers learn")


def test_quantise_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model that is made."""
    monkeypatch.setattr(limits, "LARGEST_SAMPLE", 11)
    c = config()
    with pytest.raises(UserError, match="12 values"):
        quantise.quantise(c, *random_float_model(c, 1, shape=(1, 1, 12)))
