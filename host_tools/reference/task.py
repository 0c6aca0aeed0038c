# SPDX-License-Identifier: Apache-2.0
"""The task: its table of samples, the shuffle, dynamic data removal, begin and end (docs/algorithm.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from sparcl_mcu.generator.artefacts import DdrScore, Learning
from sparcl_mcu.host_tools.reference.choices import shuffled
from sparcl_mcu.host_tools.reference.fixed import Ints
from sparcl_mcu.host_tools.reference.lesson import Lesson
from sparcl_mcu.host_tools.reference.prng import Prng

if TYPE_CHECKING:
    from sparcl_mcu.host_tools.reference.state import State


class Phase(IntEnum):
    """What the device waits for."""

    IDLE = 0
    FILLING = 1
    TRAINING = 2
    TRAINED = 3


RESIDENT = 0
STREAMED = 1
NO_TASK = 255


@dataclass(slots=True)
class Table:
    """Samples still in the task in the order of the epoch; lists of equal length."""

    ids: list[int] = field(default_factory=list)
    scores: list[int] = field(default_factory=list)

    def copy(self) -> Table:
        """Return an independent copy."""
        return Table(list(self.ids), list(self.scores))

    def shuffle(self, prng: Prng) -> None:
        """Into a random order."""
        chosen = shuffled(len(self.ids), prng)
        self.ids = [self.ids[i] for i in chosen]
        self.scores = [self.scores[i] for i in chosen]

    def remove_least(self, count: int) -> list[int]:
        """Remove the entries of least score, ties: earlier first; return their ids."""
        order: Ints = np.argsort(np.array(self.scores, dtype=np.int64), kind="stable")
        gone = set(order[:count].tolist())
        removed = [self.ids[i] for i in sorted(gone)]
        kept = [i for i in range(len(self.ids)) if i not in gone]
        self.ids = [self.ids[i] for i in kept]
        self.scores = [self.scores[i] for i in kept]
        return removed


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
    state.lessons[state.task] = Lesson.of(n_samples)
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
        state.lessons[state.task].left[gone] = state.epoch + 1
        if learning.ddr_score is DdrScore.MISCLASSIFICATION:
            state.table.scores = [0] * state.n
    state.epoch += 1
    state.pos = 0
    state.shuffled = False
    if state.epoch == learning.epochs:
        state.phase = Phase.TRAINED


def end(state: State) -> None:
    """Task end."""
    state.lessons[state.task].masks = state.masks()
    state.task += 1
    state.phase = Phase.IDLE
    state.mode = RESIDENT
    state.epoch = state.pos = state.n_start = state.received = 0
    state.table = Table()
    state.samples = []
