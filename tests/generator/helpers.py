# SPDX-License-Identifier: Apache-2.0
"""Small artefacts for the tests; no TensorFlow."""

from __future__ import annotations

from typing import Any

import numpy as np

from generator import train
from generator.artefacts import Dataset, FloatModel, Task
from generator.config import Config


def config(**sections: Any) -> Config:
    """A configuration whose initial model is not trained, unless a section says otherwise."""
    sections.setdefault("initial", {"train": "none"})
    return Config.model_validate(sections)


def dataset(n_in: int = 12, classes: int = 4, *, signed: bool = False, fraction: int = 8, samples: int = 10) -> Dataset:
    """Random inputs of the full range; two classes a task."""
    random = np.random.default_rng(5)
    low, high, kind = (-127, 128, np.int8) if signed else (0, 256, np.uint8)

    def task(number: int) -> Task:
        labels = np.array([2 * number, 2 * number + 1] * samples, dtype=np.uint8)
        x = [random.integers(low, high, (len(labels), n_in)).astype(kind) for _ in range(2)]
        return Task(f"task{number}", (2 * number, 2 * number + 1), x[0], labels, x[1], labels)

    names = tuple(str(c) for c in range(classes))
    return Dataset("random", names, (n_in,), signed, fraction, tuple(task(k) for k in range(classes // 2)))


def float_model(c: Config, d: Dataset) -> FloatModel:
    """The untrained initial model."""
    return train.train(c, d)
