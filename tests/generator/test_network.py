# SPDX-License-Identifier: Apache-2.0
"""The network in floating point against loops over its definition, and its errors against differences."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparcl_mcu.generator import network
from sparcl_mcu.spec.types import Activation, FloatLayer, Op, Window

from . import helpers


def under(window: Window, x: np.ndarray, y: int, z: int) -> Iterator[tuple[int, np.ndarray]]:
    """Number of each kernel position that lies within x (channels, height, width), and the values there."""
    for row, col in itertools.product(range(window.kernel_h), range(window.kernel_w)):
        at = (y * window.stride_h + row - window.top, z * window.stride_w + col - window.left)
        if 0 <= at[0] < x.shape[1] and 0 <= at[1] < x.shape[2]:
            yield row * window.kernel_w + col, x[:, at[0], at[1]]


def by_loops(layer: FloatLayer, inputs: Sequence[np.ndarray]) -> np.ndarray:
    """One layer on one sample, (channels, height, width) each, without its activation."""
    x = inputs[0]
    if layer.op is Op.DENSE:
        return (x.ravel() @ layer.weight + layer.bias).reshape(layer.shape)
    if layer.op is Op.ADD:
        return np.asarray(sum(inputs))
    assert layer.window is not None
    result = np.zeros(layer.shape)
    for y, z in itertools.product(range(layer.shape[1]), range(layer.shape[2])):
        values = list(under(layer.window, x, y, z))
        if layer.op is Op.CONV:
            result[:, y, z] = convolved(layer, values)
        elif layer.op is Op.MAX_POOL:
            result[:, y, z] = np.max([v for _, v in values], axis=0)
        else:
            result[:, y, z] = np.mean([v for _, v in values], axis=0)
    return result


def convolved(layer: FloatLayer, values: list[tuple[int, np.ndarray]]) -> np.ndarray:
    assert layer.window is not None
    total = layer.bias.copy()
    for o, (k, v) in itertools.product(range(layer.shape[0]), values):
        if layer.multiplier:
            total[o] += layer.weight[k, o] * v[o // layer.multiplier]
        else:
            total[o] += sum(layer.weight[c * layer.window.area + k, o] * v[c] for c in range(len(v)))
    return total


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6))
def test_forward_is_the_definition(seed: int) -> None:
    _, model = helpers.random_float_model(helpers.config(), seed)
    x = np.random.default_rng(seed).normal(0.0, 2.0, (2, *model.input_shape))
    tensors = network.forward(model.layers, x)
    for number, layer in enumerate(model.layers):
        for sample in range(2):
            expected = by_loops(layer, [tensors[t][sample] for t in layer.inputs])
            expected = network.activate(layer.activation, expected)
            assert np.allclose(tensors[number + 1][sample], expected)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6))
def test_backward_is_the_derivative(seed: int) -> None:
    """Of every tensor, along a random direction; activations and maxima rarely change within the step."""
    _, model = helpers.random_float_model(helpers.config(), seed)
    random = np.random.default_rng(seed)
    x = random.normal(0.0, 1.0, (1, *model.input_shape))
    tensors = network.forward(model.layers, x)
    head = random.normal(0.0, 1.0, tensors[-1].shape)
    errors = network.backward(model.layers, tensors, head)
    step = 1e-6 * random.normal(0.0, 1.0, x.shape)
    ends = [float((network.forward(model.layers, x + s)[-1] * head).sum()) for s in (step, -step)]
    assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(float((errors[0] * step).sum()) * 1e6, rel=1e-4, abs=1e-6)


def test_first_of_equal_maxima_gets_the_error() -> None:
    layer = helpers.layer(Op.MAX_POOL, (0,), (1, 1, 2), window=Window(2, 2, 2, 2))
    x = np.array([[[[1.0, 3.0, 2.0, 2.0], [3.0, 0.0, 2.0, 2.0]]]])
    errors = network.backward([layer], network.forward([layer], x), np.array([[[[5.0, 7.0]]]]))
    assert errors[0].tolist() == [[[[0.0, 5.0, 7.0, 0.0], [0.0, 0.0, 0.0, 0.0]]]]


def test_activations_pass_errors_where_they_are_not_flat() -> None:
    x = np.array([[[[-1.0, 0.0, 3.0, 6.0, 7.0]]]])
    for activation, passed in ((Activation.RELU, [0, 0, 1, 1, 1]), (Activation.RELU6, [0, 0, 1, 0, 0])):
        layer = helpers.layer(Op.ADD, (0,), (1, 1, 5), activation)
        errors = network.backward([layer], network.forward([layer], x), np.ones(x.shape))
        assert errors[0].ravel().tolist() == passed


def test_samples_lie_row_column_channel() -> None:
    x = network.channel_first(np.arange(12).reshape(1, 12), (2, 2, 3), 0.5)
    assert x.tolist() == [[[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]], [[0.5, 1.5, 2.5], [3.5, 4.5, 5.5]]]]
