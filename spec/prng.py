# SPDX-License-Identifier: Apache-2.0
"""The 32-bit linear congruential generator (docs/spec/numerics.md, "Random numbers").

``draw`` makes many numbers at once: after k steps the state is
``A[k] * s + C[k]`` modulo 2^32, with tables that double in size when needed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparcl_mcu.spec.fixed import Ints, mulhi

MULTIPLIER = 1664525
INCREMENT = 1013904223
MASK = 0xFFFFFFFF

Words = NDArray[np.uint32]


class _JumpTables:
    """A[k-1] = a^k and C[k-1], the increment of k steps; (size,) uint32 each."""

    def __init__(self) -> None:
        self.multiplier: Words = np.array([MULTIPLIER], dtype=np.uint32)
        self.increment: Words = np.array([INCREMENT], dtype=np.uint32)

    def reach(self, count: int) -> None:
        """Grow the tables to at least ``count`` steps."""
        while self.multiplier.size < count:
            a, c = self.multiplier, self.increment
            self.multiplier = np.concatenate([a, a * a[-1]])
            self.increment = np.concatenate([c, a * c[-1] + c])


_tables = _JumpTables()


class Prng:
    """The generator; ``state`` is the 32-bit state."""

    __slots__ = ("state",)

    def __init__(self, state: int) -> None:
        self.state = state & MASK

    def next(self) -> int:
        """Advance once and return the new state."""
        self.state = (self.state * MULTIPLIER + INCREMENT) & MASK
        return self.state

    def below(self, n: int) -> int:
        """One number in 0..n-1."""
        return mulhi(self.next(), n)

    def draw(self, count: int) -> Words:
        """The next ``count`` states, (count,) uint32."""
        if count == 0:
            return np.empty(0, dtype=np.uint32)
        _tables.reach(count)
        words = _tables.multiplier[:count] * np.uint32(self.state)
        words += _tables.increment[:count]
        self.state = int(words[-1])
        return words

    def draw_below(self, limits: Ints) -> Ints:
        """One ``below(limit)`` per limit in order; limits (count,) int64 below 2^31."""
        return (self.draw(limits.size).astype(np.int64) * limits) >> 32
