# SPDX-License-Identifier: Apache-2.0
"""The initial model: masks kept, variance kept, the same bits every time."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparcl_mcu.generator import data, prune, train
from sparcl_mcu.generator.config import Config
from sparcl_mcu.spec.errors import UserError
from sparcl_mcu.spec.types import FloatModel

from . import helpers

ROOT = Path(__file__).parents[2]

SCRIPT = """
import hashlib
import sys
from sparcl_mcu.generator import data, store, train
from sparcl_mcu.generator.config import Config
kind = sys.argv[1]
convolutions = (
    {"type": "conv2d", "filters": 4, "kernel": 3, "activation": "relu6"},
    {"type": "avg_pool", "size": 3, "stride": 2, "padding": "same"},
    {"type": "depthwise_conv2d", "kernel": 3, "stride": 2, "multiplier": 2},
    {"type": "conv2d", "filters": 8, "kernel": 1},
    {"type": "add", "from": 3},
    {"type": "max_pool", "size": 2, "padding": "same"},
)
digests, accuracies = [], []
for network in ({"hidden": (16,)}, {"layers": convolutions, "freeze": 1}):
    c = Config.model_validate({
        "data": {"set": "digits", "train_per_class": 40}, "model": network,
        "sparsity": {"weights": 0.7}, "initial": {"train": kind, "epochs": 8},
        "experiment": {"seed": int(sys.argv[2])},
    })
    model = train.train(c, data.load(c))
    assert all((y.weight[~y.mask] == 0).all() for y in model.layers)
    digests.append(store.digest(model))
    accuracies.append(model.accuracy["0/1"])
print(hashlib.sha256(b"".join(digests)).hexdigest(), "tensorflow" in sys.modules, min(accuracies))
"""


def run(kind: str, seed: int = 0) -> tuple[str, bool, float, str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, kind, str(seed)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    digest, imported, accuracy = done.stdout.split()
    return digest, imported == "True", float(accuracy), done.stderr


def test_training_is_deterministic_sparse_and_silent() -> None:
    first, second = run("first_task"), run("first_task")
    assert first[0] == second[0]
    assert first[1] is True
    assert first[2] > 80.0
    assert first[3] == ""


def test_no_tensorflow_without_training() -> None:
    first, second, other = run("none"), run("none"), run("none", seed=1)
    assert first[0] == second[0] != other[0]
    assert first[1] is False


def test_rescaling_keeps_the_variance_of_a_dense_layer() -> None:
    d = helpers.dataset(n_in=100)
    dense = helpers.float_model(helpers.config(sparsity={"weights": 0.0}), d).layers[0]
    sparse = helpers.float_model(helpers.config(sparsity={"weights": 0.9}), d).layers[0]
    plain = helpers.float_model(
        helpers.config(sparsity={"weights": 0.9}, initial={"train": "none", "rescale": False}), d
    ).layers[0]
    assert np.square(sparse.weight).sum() == pytest.approx(np.square(dense.weight).sum())
    assert np.array_equal(plain.weight[plain.mask], dense.weight[plain.mask])
    assert np.array_equal(sparse.mask, plain.mask)


def test_data_aware_mask_leaves_dead_inputs_alone() -> None:
    d = helpers.dataset(n_in=20)
    x = d.tasks[0].x_train.copy()
    x[:, :10] = 0
    d = replace(d, tasks=(replace(d.tasks[0], x_train=x), *d.tasks[1:]))
    for kind, dead in (("data", 0), ("magnitude", 50)):
        c = helpers.config(initial={"train": "none", "mask": kind})
        mask = helpers.float_model(c, d).layers[0].mask
        assert int(mask.sum()) == prune.entries_kept(0.92, 20, 512)
        assert (int(mask[:10].sum()) > dead) == (kind == "magnitude")


def test_random_masks_do_not_look_at_weights_or_data_and_follow_the_seed() -> None:
    d = helpers.dataset(n_in=20)

    def masked(seed: int) -> FloatModel:
        c = helpers.config(initial={"train": "none", "mask": "random", "rescale": False}, experiment={"seed": seed})
        return helpers.float_model(c, d)

    first, again, other = masked(0), masked(0), masked(1)
    layer = first.layers[0]
    assert np.array_equal(layer.mask, again.layers[0].mask)
    assert not np.array_equal(layer.mask, other.layers[0].mask)
    assert int(layer.mask.sum()) == prune.entries_kept(0.92, 20, 512)
    dense = (
        helpers.float_model(helpers.config(sparsity={"weights": 0.0}, initial={"train": "none"}), d).layers[0].weight
    )
    # By magnitude all kept weights would be above the 92nd percentile.
    assert np.abs(layer.weight[layer.mask]).mean() == pytest.approx(np.abs(dense).mean(), rel=0.1)


def test_random_masks_do_not_follow_the_stream_of_the_weights() -> None:
    """Weights of a layer without ReLU are uniform numbers, as those that the mask is drawn by."""
    d = helpers.dataset(n_in=20)
    layers = ({"type": "dense", "units": 64, "activation": "none"},)
    sections = {"model": {"layers": layers}, "initial": {"train": "none", "mask": "random", "rescale": False}}
    masked = helpers.float_model(helpers.config(sparsity={"weights": 0.5}, **sections), d).layers[0]
    dense = helpers.float_model(helpers.config(sparsity={"weights": 0.0}, **sections), d).layers[0].weight
    assert abs(np.corrcoef(masked.mask.ravel(), dense.ravel())[0, 1]) < 0.1


def test_accuracy_is_reported_per_task_and_for_the_base() -> None:
    c = Config.model_validate(
        {"data": {"set": "digits"}, "initial": {"train": "none"}, "tasks": {"split": ((0, 1), (2, 3, 4))}}
    )
    model = train.train(c, data.load(c))
    assert set(model.accuracy) == {"0/1", "2/3/4"}
    assert model.imported_accuracy == {}


LAYERS = (
    {"type": "conv2d", "filters": 6, "kernel": 3},
    {"type": "max_pool", "size": 2},
    {"type": "conv2d", "filters": 8, "kernel": 3, "activation": "none"},
    {"type": "dense", "units": 20},
)


def convolutional(**sections: Any) -> FloatModel:
    sections.setdefault("model", {"layers": LAYERS})
    c = helpers.config(sparsity={"weights": 0.75} | sections.pop("sparsity", {}), **sections)
    return helpers.float_model(c, replace(helpers.dataset(n_in=64), shape=(8, 8)))


def test_variance_of_initial_weights_counts_the_positions_of_a_kernel() -> None:
    layers = convolutional(sparsity={"weights": 0.0}, initial={"train": "none", "mask": "magnitude"}).layers
    assert layers[0].weight.std() == pytest.approx(np.sqrt(2 / 9), rel=0.2)
    assert np.abs(layers[2].weight).max() == pytest.approx(np.sqrt(6 / (9 * 6 + 9 * 8)), rel=0.02)
    assert layers[3].weight.std() == pytest.approx(np.sqrt(2 / 128), rel=0.05)


@pytest.mark.parametrize(
    ("sparsity", "sparse"),
    [
        ({}, [False, True, True, False]),
        ({"dense_input": False}, [True, True, True, False]),
        ({"dense_output": False}, [False, True, True, True]),
        ({"dense_input": False, "scope": "global"}, [True, True, True, False]),
        ({"weights": 0.0}, [False] * 4),
    ],
)
def test_which_layers_are_sparse(sparsity: dict[str, Any], sparse: list[bool]) -> None:
    layers = [layer for layer in convolutional(sparsity=sparsity).layers if layer.weighted]
    assert [layer.sparse for layer in layers] == sparse
    for layer in layers:
        assert (layer.mask.mean() < 1.0) == layer.sparse
        assert (layer.saliency[~layer.mask] == 0.0).all()
        assert layer.saliency.shape == layer.weight.shape
    kept = sum(int(layer.mask.sum()) for layer in layers if layer.sparse)
    assert kept == pytest.approx(0.25 * sum(layer.mask.size for layer in layers if layer.sparse), abs=2)


@pytest.mark.parametrize("way", [{"freeze": 2}, {"train_last": 2}])
def test_frozen_layers_stay_dense(way: dict[str, int]) -> None:
    model = convolutional(model={"layers": LAYERS} | way)
    assert model.frozen == 3
    assert [layer.sparse for layer in model.layers] == [False, False, False, True, False]
    assert model.layers[2].mask.all()


def test_a_frozen_first_layer_leaves_the_next_one_sparse() -> None:
    model = convolutional(model={"layers": LAYERS, "freeze": 1})
    assert model.frozen == 2
    assert [layer.sparse for layer in model.layers] == [False, False, True, True, False]


def test_freezing_everything_is_refused() -> None:
    with pytest.raises(UserError, match=r"model.freeze = 4: the network has 4 layers with weights; possible: 1, 2, 3$"):
        convolutional(model={"layers": LAYERS, "freeze": 4})


def test_a_single_channel_over_time_is_trained() -> None:
    """A sample of (time,) or (time, 1) for a one-dimensional convolution."""
    c = helpers.config(
        model={"layers": ({"type": "conv1d", "filters": 2, "kernel": 3}, {"type": "max_pool", "size": 2})},
        initial={"train": "first_task", "epochs": 1},
    )
    for shape in ((12,), (12, 1)):
        model = train.train(c, helpers.dataset(shape))
        assert model.input_shape == (1, 1, 12)
        assert np.isfinite(model.layers[0].weight).all()
