# SPDX-License-Identifier: Apache-2.0
"""Margins, the copies they need, and the cut between what is frozen and what learns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparcl_mcu.generator import layout, network
from sparcl_mcu.spec.errors import UserError
from sparcl_mcu.spec.types import FloatLayer, FloatModel, Op, Window

from . import helpers

SAME = Window(3, 3, 1, 1, 1, 1)


def conv(tensor: int, shape: tuple[int, ...], window: Window = SAME) -> FloatLayer:
    return helpers.layer(Op.CONV, (tensor,), shape, weight=np.ones((1, shape[0])), window=window)


def dense(tensor: int) -> FloatLayer:
    return helpers.layer(Op.DENSE, (tensor,), (2, 1, 1), weight=np.ones((1, 2)))


def laid_out(shape: tuple[int, ...], *layers: FloatLayer, sample: bool = True) -> list[str]:
    """Each layer as ``op(inputs)margins``."""
    net = layout.lay_out(layers, shape, sample=sample)
    rows = []
    for layer, margins in zip(net.layers, net.margins[1:], strict=True):
        inputs = ",".join(str(t) for t in layer.inputs)
        rows.append(f"{layer.op}({inputs})" + ("".join(map(str, margins)) if any(margins) else ""))
    return rows


def test_a_sample_with_one_channel_is_read_as_it_is() -> None:
    assert laid_out((1, 5, 5), conv(0, (4, 3, 3), Window(3, 3)), dense(1)) == ["conv(0)", "dense(1)"]
    assert laid_out((1, 5, 5), dense(0)) == ["dense(0)"]
    assert laid_out((5, 1, 1), conv(0, (4, 1, 1), Window(1, 1)), dense(0)) == ["conv(0)", "dense(0)"]


def test_margins_and_channels_of_a_sample_need_a_copy() -> None:
    assert laid_out((1, 5, 5), conv(0, (4, 5, 5))) == ["pad(0)1111", "conv(1)"]
    assert laid_out((3, 5, 5), conv(0, (4, 3, 3), Window(3, 3))) == ["pad(0)", "conv(1)"]
    assert laid_out((3, 5, 5), dense(0)) == ["pad(0)", "dense(1)"]
    both = laid_out((3, 5, 5), conv(0, (4, 5, 5)), dense(0), conv(0, (4, 5, 5)))
    assert both == ["pad(0)1111", "conv(1)", "pad(0)", "dense(3)", "conv(1)"]
    pool = helpers.layer(Op.MAX_POOL, (0,), (3, 2, 2), window=Window(2, 2, 2, 2))
    assert laid_out((3, 5, 5), pool) == ["pad(0)", "max_pool(1)"]


def test_a_latent_is_channel_first_already() -> None:
    assert laid_out((3, 5, 5), dense(0), sample=False) == ["dense(0)"]
    assert laid_out((3, 5, 5), conv(0, (4, 5, 5)), dense(0), sample=False) == ["pad(0)1111", "conv(1)", "dense(0)"]


def test_a_layer_writes_into_the_margins_of_its_readers() -> None:
    wide = conv(1, (4, 5, 5), Window(5, 5, 1, 1, 2, 2))
    rows = laid_out((1, 7, 7), conv(0, (4, 5, 5), Window(3, 3)), conv(1, (4, 5, 5)), wide)
    assert rows == ["conv(0)2222", "conv(1)", "conv(1)"]


def test_a_dense_layer_reads_without_margins() -> None:
    rows = laid_out((1, 7, 7), conv(0, (4, 5, 5), Window(3, 3)), conv(1, (4, 5, 5)), dense(1), conv(1, (4, 5, 5)))
    assert rows == ["conv(0)", "pad(1)1111", "conv(2)", "dense(1)", "conv(2)"]


@pytest.mark.parametrize(
    ("size", "out", "window", "margins"),
    [
        ((6, 6), (3, 3), Window(3, 3, 2, 2, 0, 0), (0, 0, 1, 1)),
        ((6, 6), (3, 3), Window(3, 3, 2, 2, 1, 1), (1, 1, 0, 0)),
        ((7, 6), (3, 2), Window(3, 3, 2, 2, 0, 0), (0, 0, 0, 0)),
        ((1, 9), (1, 5), Window(1, 3, 1, 2, 0, 1), (0, 1, 0, 1)),
    ],
)
def test_margins_only_as_far_as_they_are_read(
    size: tuple[int, int], out: tuple[int, int], window: Window, margins: tuple[int, ...]
) -> None:
    net = layout.lay_out([conv(0, (2, *out), window)], (1, *size), sample=True)
    assert net.margins[-2] == margins


def test_the_cut_renumbers_and_refuses_two_tensors() -> None:
    sums = helpers.layer(Op.ADD, (1, 2), (2, 1, 1))
    layers = (dense(0), dense(1), sums, dense(3))
    model = FloatModel((1, 1, 1), layers, {}, frozen=3)
    frozen, learns = layout.split(model)
    assert (len(frozen), [y.inputs for y in learns]) == (3, [(0,)])
    with pytest.raises(UserError, match="more than one tensor"):
        layout.split(replace(model, frozen=2))


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6))
def test_no_number_changes(seed: int) -> None:
    _, model = helpers.random_float_model(helpers.config(), seed, frozen=True)
    x = np.random.default_rng(seed).normal(0.0, 1.0, (3, *model.input_shape))
    expected = network.forward(model.layers, x)[-1]
    frozen, learns = layout.split(model)
    shape = frozen[-1].shape if frozen else model.input_shape
    for layers, first, sample in ((frozen, model.input_shape, True), (learns, shape, not frozen)):
        net = layout.lay_out(layers, first, sample=sample)
        x = network.forward(net.layers, x)[-1]
        assert len(net.margins) == len(net.layers) + 1
    assert np.array_equal(x, expected)


def test_errors_of_a_channel_that_are_not_0() -> None:
    """Each window of a maximum has one; whatever else reads the tensor may have all."""
    image = conv(0, (2, 6, 6))
    halves = helpers.layer(Op.MAX_POOL, (1,), (2, 3, 3), window=Window(2, 2, 2, 2))
    thirds = helpers.layer(Op.MAX_POOL, (1,), (2, 2, 2), window=Window(3, 3, 3, 3))
    average = helpers.layer(Op.AVG_POOL, (1,), (2, 1, 1), window=Window(6, 6))

    def active(*readers: FloatLayer) -> int:
        return layout.Network((image, *readers), (layout.NO_MARGINS,) * (2 + len(readers))).active(0)

    assert active(halves) == 9
    assert active(halves, thirds) == 9 + 4
    assert active(halves, average) == 36
    assert active(*(halves,) * 5) == 36
