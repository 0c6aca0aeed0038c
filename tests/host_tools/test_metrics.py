# SPDX-License-Identifier: Apache-2.0
"""Metrics against values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from sparcl_mcu.host_tools import metrics

MATRIX = [
    [90.0, None, None],
    [80.0, 95.0, None],
    [85.0, 70.0, 99.0],
]


def test_average_accuracy() -> None:
    assert metrics.average_accuracy(MATRIX) == pytest.approx((85 + 70 + 99) / 3)


def test_forgetting() -> None:
    # task 0: best before the end 90, now 85; task 1: best 95, now 70
    assert metrics.forgetting(MATRIX) == pytest.approx((5 + 25) / 2)


def test_forgetting_counts_the_best_not_the_first() -> None:
    assert metrics.forgetting([[50.0, None, None], [80.0, 60.0, None], [70.0, 65.0, 9.0]]) == pytest.approx(
        (10 - 5) / 2
    )


def test_backward_transfer() -> None:
    assert metrics.backward_transfer(MATRIX) == pytest.approx((-5 - 25) / 2)


def test_one_task() -> None:
    assert metrics.forgetting([[70.0]]) == metrics.backward_transfer([[70.0]]) == 0.0
    assert metrics.average_accuracy([[70.0]]) == 70.0


def test_missing_value_is_an_error() -> None:
    with pytest.raises(ValueError, match="not measured"):
        metrics.average_accuracy([[None]])


LOGITS = np.array([[5, 1, 9, 0], [5, 5, 1, 0], [0, 7, 8, 7], [-5, -7, -6, -8]], dtype=np.int16)
LABELS = np.array([0, 1, 1, 2], dtype=np.uint8)


def test_class_correct() -> None:
    # arg-max: 2, 0 (tie, lowest), 2, 0
    assert metrics.class_correct(LOGITS, LABELS) == 0
    assert metrics.class_correct(LOGITS, np.array([2, 0, 2, 0])) == 4


def test_task_correct_restricts_to_the_classes() -> None:
    # among classes 0 and 1: 0, 0 (tie), 1, 0
    assert metrics.task_correct(LOGITS, LABELS, (1, 0)) == 2
    # among 2 and 3: 2, 2, 2, 2
    assert metrics.task_correct(LOGITS, np.array([2, 2, 3, 2]), (2, 3)) == 3


def test_percent() -> None:
    assert metrics.percent(1, 8) == 12.5
    assert metrics.percent(0, 0) == 0.0
