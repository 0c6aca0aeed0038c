# SPDX-License-Identifier: Apache-2.0
"""The replay buffer: records, their checksums, reservoir sampling.

Docs: flash-format.md ("Sample record", "Logits record"), algorithm.md (step 7).
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sparcl_mcu.spec.fixed import Ints
from sparcl_mcu.spec.prng import MASK, Prng


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample record.

    ``stored``: what the record holds, the sample or its latent; ``x``: the input of the layers
    that learn; both 8 bit.  ``crc``: checksum of the record.
    """

    id: int
    task: int
    label: int
    stored: NDArray[np.integer]
    x: NDArray[np.integer]
    crc: int = field(init=False)

    def __post_init__(self) -> None:
        head = struct.pack("<HBB", self.id, self.task, self.label)
        object.__setattr__(self, "crc", zlib.crc32(head + self.stored.tobytes()))

    def input(self) -> Ints:
        """The input of the layers that learn as int64."""
        return self.x.astype(np.int64)


@dataclass(frozen=True, slots=True)
class Slot:
    """One replay slot; ``logits``: (classes,) int64, None where the method keeps none."""

    sample: Sample
    logits: Ints | None

    @property
    def logits_crc(self) -> int:
        """Checksum of the logits record, 0 if there is none."""
        if self.logits is None:
            return 0
        head = struct.pack("<HBB", self.sample.id, self.sample.task, 0)
        return zlib.crc32(head + self.logits.astype("<i2").tobytes())


@dataclass(slots=True)
class Replay:
    """The buffer: ``capacity`` slots, ``seen`` samples offered so far."""

    capacity: int
    slots: list[Slot] = field(default_factory=list)
    seen: int = 0

    @property
    def filled(self) -> int:
        """Slots in use."""
        return len(self.slots)

    def copy(self) -> Replay:
        """Return an independent copy."""
        return Replay(self.capacity, list(self.slots), self.seen)

    def pick(self, prng: Prng) -> Slot:
        """Draw a slot at random."""
        return self.slots[prng.below(self.filled)]

    def offer(self, slot: Slot, prng: Prng) -> None:
        """Reservoir sampling: keep the slot's sample, perhaps."""
        self.seen = (self.seen + 1) & MASK
        if self.filled < self.capacity:
            self.slots.append(slot)
            return
        r = prng.below(self.seen)
        if r < self.capacity:
            self.slots[r] = slot
