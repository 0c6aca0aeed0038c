# SPDX-License-Identifier: Apache-2.0
"""The history of a task's learning: kept beside the state for the report, not part of the digest."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint8]


@dataclass(slots=True)
class History:
    """History of one task.  ``mistakes``, ``losses``, ``left``: by sample id, (n,) each.

    ``mistakes``: uint16, epochs in which the sample was misclassified just before it was learned from; ``losses``:
    int64, sum of its cross-entropies, 8 fractional bits; ``left``: uint16, epochs after which DDR removed it, 0: it
    stayed.  ``masks``: by number of layer, the entries that existed when the task ended: one bit for each line and
    place of one panel after the other (``numpy.packbits``).
    """

    mistakes: NDArray[np.uint16]
    losses: NDArray[np.int64]
    left: NDArray[np.uint16]
    masks: dict[int, Bits] = field(default_factory=dict)

    @classmethod
    def of(cls, samples: int) -> Self:
        """The empty history of a task of ``samples`` training samples."""
        return cls(np.zeros(samples, np.uint16), np.zeros(samples, np.int64), np.zeros(samples, np.uint16))

    def copy(self) -> Self:
        """Return an independent copy."""
        return replace(self, mistakes=self.mistakes.copy(), losses=self.losses.copy(), left=self.left.copy())

    def note(self, sample: int, wrong: bool, loss: int) -> None:
        """Take in one training step."""
        self.mistakes[sample] += wrong
        self.losses[sample] += loss
