# SPDX-License-Identifier: Apache-2.0
"""The task: its table of samples, the shuffle, dynamic data removal, begin and end (docs/spec/algorithm.md)."""

from __future__ import annotations

from collections.abc import Sequence

from sparcl_mcu.reference.history import History
from sparcl_mcu.reference.state import State, Table
from sparcl_mcu.spec.types import DdrScore, Learning
from sparcl_mcu.spec.wire import RESIDENT, Phase


def removal_count(learning: Learning, epoch: int, n_start: int, n: int) -> int:
    """Samples DDR removes at the end of ``epoch``; at least one sample stays."""
    target = learning.rho_permille * n_start * (epoch + 1) // (1000 * learning.ddr_until)
    return max(0, min(target - (n_start - n), n - 1))


def begin(state: State, classes: Sequence[int], n_samples: int, mode: int) -> None:
    """Task begin, without the growth of masks (mask.grow_between_tasks)."""
    for c in classes:
        state.class_task[c] = state.task
    state.n_start = n_samples
    state.received = state.epoch = state.pos = 0
    state.shuffled = False
    state.captured.clear()
    state.table = Table(list(range(n_samples)), [0] * n_samples)
    state.samples = []
    state.histories[state.task] = History.of(n_samples)
    state.mode = mode
    state.phase = Phase.FILLING if mode == RESIDENT else Phase.TRAINING


def shuffle(state: State) -> None:
    """Bring the table into the order of the epoch, once per epoch."""
    if state.pos == 0 and not state.shuffled:
        state.table.shuffle(state.choices)
        state.shuffled = True


def logarithmic(value: int) -> int:
    """``value``, 0 to 2**14, as a bin, 0 to 176, sixteen to an octave: the score of DDR by loss (step 3)."""
    if value < 16:
        return value
    octave = value.bit_length() - 1
    return (octave - 3) * 16 + (value >> (octave - 4) & 15)


def end_epoch(state: State) -> None:
    """DDR and the next epoch (step 12)."""
    learning = state.model.learning
    if learning.ddr and state.epoch < learning.ddr_until:
        count = removal_count(learning, state.epoch, state.n_start, state.n)
        gone = state.table.remove_least(count)
        state.removed.setdefault(state.task, []).extend(gone)
        state.histories[state.task].left[gone] = state.epoch + 1
        if learning.ddr_score is DdrScore.MISCLASSIFICATION:
            state.table.scores = [0] * state.n
    state.epoch += 1
    state.pos = 0
    state.shuffled = False
    if state.epoch == learning.epochs:
        state.phase = Phase.TRAINED


def end(state: State) -> None:
    """Task end."""
    state.histories[state.task].masks = state.masks()
    state.task += 1
    state.phase = Phase.IDLE
    state.mode = RESIDENT
    state.epoch = state.pos = state.n_start = state.received = 0
    state.table = Table()
    state.samples = []
