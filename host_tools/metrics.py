# SPDX-License-Identifier: Apache-2.0
"""Measures of continual learning from the accuracy matrix.

``matrix[i][j]``: accuracy in percent on task j after task i has been learned,
None where it was not measured (j > i).  Definitions as in Mammoth and in
Lopez-Paz and Ranzato, "Gradient Episodic Memory", NeurIPS 2017.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Matrix = Sequence[Sequence[float | None]]


def percent(correct: int, total: int) -> float:
    """``correct`` of ``total`` in percent; 0 when there is nothing to count."""
    return 100.0 * correct / total if total else 0.0


def class_correct(logits: NDArray[np.integer], labels: NDArray[np.integer]) -> int:
    """Samples whose highest logit over all classes is their label's; the lowest class wins ties."""
    return int(np.count_nonzero(np.argmax(logits, axis=1) == labels))


def task_correct(logits: NDArray[np.integer], labels: NDArray[np.integer], classes: Iterable[int]) -> int:
    """Samples whose highest logit over the task's own ``classes`` is their label's."""
    own = np.array(sorted(classes))
    return int(np.count_nonzero(own[np.argmax(logits[:, own], axis=1)] == labels))


def average_accuracy(matrix: Matrix) -> float:
    """Mean accuracy over all tasks after the last one (class-IL or task-IL, as the matrix is)."""
    return float(np.mean([_measured(value) for value in matrix[-1]])) if matrix else 0.0


def forgetting(matrix: Matrix) -> float:
    """Mean over the earlier tasks of (best accuracy before the last task - accuracy at the end)."""
    last = len(matrix) - 1
    if last < 1:
        return 0.0
    losses = []
    for task in range(last):
        before = [_measured(matrix[after][task]) for after in range(task, last)]
        losses.append(max(before) - _measured(matrix[last][task]))
    return float(np.mean(losses))


def backward_transfer(matrix: Matrix) -> float:
    """Mean over the earlier tasks of (accuracy at the end - accuracy just after learning the task)."""
    last = len(matrix) - 1
    if last < 1:
        return 0.0
    return float(np.mean([_measured(matrix[last][task]) - _measured(matrix[task][task]) for task in range(last)]))


def _measured(value: float | None) -> float:
    if value is None:
        raise ValueError("an accuracy that the measure needs was not measured")
    return value
