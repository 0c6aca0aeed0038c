# SPDX-License-Identifier: Apache-2.0
"""The figures of the host: what is timed is what the table says."""

from __future__ import annotations

from typing import Any

import pytest

from sparcl_mcu.benchmarks import host
from sparcl_mcu.benchmarks.cases import EXPERIMENTS, MAIN, cases, sparse
from sparcl_mcu.spec.types import Method


def test_reference_learns_that_many_samples_of_the_network_of_the_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole DER++ step of the main sparse network, with masks."""
    case = next(c for c in cases((MAIN,), quick=True) if c.network == sparse(0.90, 1) and c.mode == "step")
    seen: list[Any] = []
    learn = host.learn

    def spy(*arguments: Any) -> Any:
        seen.append((arguments[0], learn(*arguments)))

    monkeypatch.setattr(host, "learn", spy)
    assert host.reference_seconds(case, 0, 130) > 0
    [(model, device)] = seen
    assert device.step == 130
    assert device.filled == 130
    assert [(layer.n_in, layer.n_out) for layer in model.layers] == [(256, 256), (256, 10)]
    assert model.layers[0].panels[0].nnz == pytest.approx(0.1 * 256 * 256, rel=0.2)
    assert model.learning.method is Method.DERPP
    assert model.learning.tdm
    assert model.learning.dgm


def test_tasks_come_again_until_there_are_enough_samples() -> None:
    """With few samples the reference begins with the first task again."""
    settings = host.load(EXPERIMENTS / "digits.toml", ("initial.train=none", "data.train_per_class=3"), 0)
    dataset = host.data.load(settings)
    model = host.quantise.quantise(settings, dataset, host.train.train(settings, dataset))
    once = sum(len(task.y_train) for task in dataset.tasks) * settings.method.epochs
    device = host.learn(model, dataset, once + 7)
    assert device.step == once + 7
    assert device.task == len(dataset.tasks)
