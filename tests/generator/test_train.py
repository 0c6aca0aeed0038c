# SPDX-License-Identifier: Apache-2.0
"""The initial model: masks kept, variance kept, the same bits every time."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from generator import data, prune, train
from generator.config import Config

from . import helpers

ROOT = Path(__file__).parents[2]

SCRIPT = """
import sys
from generator import data, store, train
from generator.config import Config
kind = sys.argv[1]
c = Config.model_validate({
    "data": {"set": "digits", "train_per_class": 40}, "model": {"hidden": (16,)},
    "sparsity": {"weights": 0.7}, "initial": {"train": kind, "epochs": 8},
    "experiment": {"seed": int(sys.argv[2])},
})
model = train.train(c, data.load(c))
print(store.digest(model).hex(), "tensorflow" in sys.modules, model.accuracy["0/1"])
assert all((y.weight[~y.mask] == 0).all() for y in model.layers)
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


def test_accuracy_is_reported_per_task_and_for_the_base() -> None:
    c = Config.model_validate(
        {"data": {"set": "digits"}, "initial": {"train": "none"}, "tasks": {"split": ((0, 1), (2, 3, 4))}}
    )
    assert set(train.train(c, data.load(c)).accuracy) == {"0/1", "2/3/4"}
