# SPDX-License-Identifier: Apache-2.0
"""A small project made without TensorFlow, and a fake board that runs it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serial.urlhandler import protocol_socket

from sparcl_mcu.generator import data, plan, quantise, train
from sparcl_mcu.generator.config import Config
from sparcl_mcu.generator.pipeline import Project
from sparcl_mcu.spec import boards
from tests.host_tools.fake_board import FakeBoard

SETTINGS: dict[str, dict[str, Any]] = {
    "experiment": {"name": "tiny", "seed": 3},
    "data": {"set": "digits", "train_per_class": 12, "test_per_class": 6},
    "tasks": {"split": ((0, 1), (2, 3), (4, 5))},
    "model": {"hidden": (24,)},
    "initial": {"train": "none"},
    "sparsity": {"weights": 0.7},
    "method": {"epochs": 2, "buffer": 16, "lr": 0.03},
    "ddr": {"enabled": True, "until": 2},
}


@pytest.fixture(autouse=True)
def _no_nap(monkeypatch: pytest.MonkeyPatch) -> None:
    """pyserial sleeps 0.3 s when it closes a socket; a thousand tests need not."""
    monkeypatch.setattr(protocol_socket.time, "sleep", lambda seconds: None if seconds == 0.3 else nap(seconds))


nap = time.sleep

MakeProject = Callable[..., Project]


def settings(**changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """SETTINGS with some options of some sections replaced."""
    return {name: SETTINGS.get(name, {}) | changes.get(name, {}) for name in {*SETTINGS, *changes}}


@pytest.fixture
def make_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeProject:
    """Project with changed settings; the initial model is random where Keras would have trained it."""
    monkeypatch.setattr(train, "_fit", lambda _config, _dataset, _known, _shape, layers, _fixed: layers)

    def make(**changes: dict[str, Any]) -> Project:
        config = Config.model_validate(settings(**changes))
        dataset = data.load(config)
        float_model = train.train(config, dataset)
        model = quantise.quantise(config, dataset, float_model)
        board = boards.load_board("native")
        return Project(tmp_path, config, dataset, float_model, model, board, plan.plan(model, board))

    return make


@pytest.fixture
def project(make_project: MakeProject) -> Project:
    """The small project."""
    return make_project()


@pytest.fixture
def board(project: Project) -> Iterator[FakeBoard]:
    """A fake board with the small project's firmware."""
    with FakeBoard(project.model) as fake:
        yield fake


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers of a fixed seed."""
    return np.random.default_rng(1)
