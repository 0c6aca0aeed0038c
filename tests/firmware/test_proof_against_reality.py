# SPDX-License-Identifier: Apache-2.0
"""The overflow proof against reality: experiments at the limits of everything (extremes.py, watch.py)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sparcl_mcu.reference import Device
from sparcl_mcu.spec.wire import Command
from tests.firmware.extremes import drawn, run
from tests.firmware.watch import Overflow, watching
from tests.reference.models import random_model


def check(seed: int, folder: Path) -> None:
    """Board, under a sanitizer, and reference, under watch, agree; again: ``python -m tests.firmware.extremes N``."""
    experiment = drawn(seed)
    print(experiment)
    run(experiment, folder)


@pytest.mark.parametrize("seed", [10, 11, 12])
def test_a_few_extremes(seed: int, tmp_path: Path) -> None:
    """DER++ in batches of 2, mixed inputs in batches of 256, sums of tensors with weights at their ends."""
    check(seed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1200))
def test_extremes(seed: int, tmp_path: Path) -> None:
    """Data, weights, rates, batches and networks drawn."""
    check(seed, tmp_path)


def test_a_sum_that_was_not_proven_is_noticed() -> None:
    """Weights beyond their bits, which only the reference has: 64 bits hold the sum, 32 do not."""
    model = random_model(1, sizes=(784, 3), sparse=[False])
    (layer,) = model.layers
    assert layer.weight is not None
    assert layer.wlog < 15
    x = np.full(model.n_in, 255, dtype=np.uint8).tobytes()
    for value in ((1 << layer.wlog) - 1, 32767):
        weight = np.full(layer.weight.shape, value, dtype=np.int16)
        changed = replace(model, layers=(replace(layer, weight=weight),))
        with watching(changed):
            if value >> layer.wlog:
                with pytest.raises(Overflow, match="forward"):
                    Device(changed).apply(Command.PREDICT, x)
            else:
                Device(changed).apply(Command.PREDICT, x)
