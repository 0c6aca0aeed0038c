# SPDX-License-Identifier: Apache-2.0
"""Random networks through the whole chain: quantised, rendered, compiled, taught.

The board has to equal the reference reply by reply and state by state, and its logits
those of Keras in floating point within the bound that error_bound.py states for each.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sparcl_mcu.generator import keras_model, network, quantise
from sparcl_mcu.host_tools import protocol
from sparcl_mcu.spec.types import Dataset, FloatModel, Growth, Method, Model, Op
from sparcl_mcu.spec.wire import Command
from tests.firmware.native import Teacher, Twin, build, running
from tests.generator.error_bound import logit_bound
from tests.generator.helpers import config, random_float_model

pytestmark = pytest.mark.tensorflow

FLOAT32 = 1e-3
"""What Keras's single precision may add, in the unit of the logits."""


@pytest.fixture(scope="module")
def keras() -> Any:
    """Keras on TensorFlow, imported once."""
    return keras_model.start(0)


def draw(seed: int) -> tuple[Dataset, FloatModel, Model]:
    """A network with masks, and how it learns."""
    rng = random.Random(seed)
    frozen = rng.random() < 0.3
    c = config(
        model={"freeze": 1, "latent": rng.random() < 0.5} if frozen else {},
        sparsity={
            "weights": rng.choice([0.0, 0.5, 0.75]),
            "block": rng.choice([1, 2, 4]),
            "dense_input": rng.choice([None, False]),
            "dense_output": rng.random() < 0.7,
            "dense_depthwise": rng.random() < 0.3,
        },
        method={
            "name": rng.choice(["finetune", "er", "der++", "der++"]),
            "epochs": 2,
            "batch": rng.choice([1, 1, 3]),
            "buffer": 8,
            "lr": rng.choice([0.01, 0.05]),
            "training": rng.choice(["resident", "streamed"]),
        },
        tdm={"interval": 0.5, "p_intra": 0.2, "p_inter": 0.0, "growth": rng.choice(["random", "gradient"])},
        dgm={"enabled": rng.random() < 0.6},
        ddr={"enabled": rng.random() < 0.5},
    )
    data, float_model = random_float_model(c, seed, frozen=frozen)
    return data, float_model, quantise.quantise(c, data, float_model)


def logits(twin: Twin, x: NDArray[np.integer]) -> NDArray[np.float64]:
    """Of the board, which equal the reference's, in the unit of the network."""
    rows = []
    for sample in x:
        payload = twin.good(Command.EVALUATE, protocol.pack_labelled([0], sample[np.newaxis]))
        rows.append(protocol.unpack_evaluation(payload, 1, twin.model.n_classes).logits[0])
    return np.array(rows) * 2.0 ** -twin.model.layers[-1].fa


def runs_in_keras(float_model: FloatModel) -> bool:
    """TensorFlow's depthwise convolution steps equally along both axes."""
    windows = [layer.window for layer in float_model.layers if layer.multiplier and layer.window]
    return all(window.stride_h == window.stride_w for window in windows)


def keras_logits(keras: Any, float_model: FloatModel, x: NDArray[np.integer], fraction: int) -> NDArray[np.float64]:
    """Of the network as a Keras model."""
    tensors = network.channel_first(x, float_model.input_shape, 2.0**-fraction).transpose(0, 2, 3, 1)
    shape = keras_model.keras_shape(float_model.input_shape)
    model = keras_model.to_keras(keras, float_model.input_shape, float_model.layers)
    return keras_model.predict(model, tensors.reshape(-1, *shape).astype(np.float32))


def compare(keras: Any, seed: int, folder: Path) -> None:
    """One random network on the board, in the reference and in Keras."""
    data, float_model, model = draw(seed)
    x = quantise.initial_task(data).x_train[:8]
    exact, bound = logit_bound(float_model, model, x)
    expected = exact
    if runs_in_keras(float_model):
        expected = keras_logits(keras, float_model, x, data.fraction)
        np.testing.assert_allclose(expected, exact, atol=FLOAT32)
    pairs = [f"-DSCL_PAIRS={seed % 2}"]  # every second network with the kernels of cores with DSP instructions
    with running(model, build(model, folder, extra=pairs)) as twin:
        difference = np.abs(logits(twin, x) - expected)
        assert (difference <= bound + FLOAT32).all(), f"off by {difference.max():.4f}, bound {bound.max():.4f}"
        teacher = Teacher(twin, seed)
        for number, classes in enumerate([(0, 1), (2, 3)]):
            teacher.begin(classes, 14, streamed=model.learning.streamed, seed=seed + number)
            teacher.finish()
            twin.check_dump()
        teacher.evaluate()
        assert twin.restart().restored
        twin.check_dump()


QUICK = (0, 3, 4, 6, 7, 9, 11, 127)
"""With every kind of layer, masked and not, and every method; 127: dense layers one behind the other in the prefix."""


def test_the_quick_networks_have_everything() -> None:
    """What could fail each in its own way."""
    models = [draw(seed)[2] for seed in QUICK]
    layers = [layer for model in models for layer in (*model.prefix, *model.layers)]
    assert {layer.op for layer in layers} == set(Op)
    kinds = {(layer.op, layer.sparse) for layer in layers if not layer.multiplier}
    assert {(op, sparse) for op in (Op.CONV, Op.DENSE) for sparse in (False, True)} <= kinds
    assert {layer.sparse for layer in layers if layer.multiplier} == {False, True}
    learning = [model.learning for model in models]
    assert {entry.method for entry in learning} == set(Method)
    assert {entry.growth for entry in learning} == set(Growth)
    assert {entry.batch > 1 for entry in learning} == {entry.streamed for entry in learning} == {False, True}
    assert {bool(model.prefix) for model in models} == {seed % 2 > 0 for seed in QUICK} == {False, True}


@pytest.mark.parametrize("seed", QUICK)
def test_random_networks(keras: Any, seed: int, tmp_path: Path) -> None:
    """On the board as in the reference, and close to Keras."""
    compare(keras, seed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [n for n in (*range(12), *range(100, 180)) if n not in QUICK])
def test_more_random_networks(keras: Any, seed: int, tmp_path: Path) -> None:
    """The same for more of them."""
    compare(keras, seed, tmp_path)


def test_the_bound_is_worth_stating(tmp_path: Path) -> None:
    """It is of the size of the formats' last bits, not of the logits themselves."""
    shares = []
    for seed in range(20):
        data, float_model, model = draw(seed)
        exact, bound = logit_bound(float_model, model, quantise.initial_task(data).x_train[:8])
        shares.append(float(np.median(bound) / max(np.abs(exact).max(), 1e-9)))
    assert float(np.median(shares)) < 0.25
