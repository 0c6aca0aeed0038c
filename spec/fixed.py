# SPDX-License-Identifier: Apache-2.0
"""Fixed-point primitives and tables (docs/spec/numerics.md, "Primitives" and "Loss").

Functions take Python integers or int64/int32 arrays; an array keeps its dtype,
the caller chooses one that is wide enough.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
"""The reference's ordinary integer array: wide enough for every sum of the specification."""

Number = TypeVar("Number", int, NDArray[np.int64], NDArray[np.int32])

INT16_MIN = -32768
INT16_MAX = 32767

EXP2: Ints = np.array([math.floor(32768 * 2 ** (-f / 256) + 0.5) for f in range(256)], dtype=np.int64)
"""round(32768 * 2^(-f/256)), f = 0..255."""

LOG2: Ints = np.array([math.floor(256 * math.log2(1 + f / 256) + 0.5) for f in range(256)], dtype=np.int64)
"""round(256 * log2(1 + f/256)), f = 0..255."""


@dataclass(slots=True)
class Counters:
    """The saturation counters of the state (docs/spec/algorithm.md); taken modulo 2^32 when stored."""

    saturated_activations: int = 0
    saturated_errors: int = 0
    guard_shifts: int = 0

    def copy(self) -> Counters:
        """Return an independent copy."""
        return Counters(self.saturated_activations, self.saturated_errors, self.guard_shifts)


def shift(v: Number, s: int) -> Number:
    """Round half up on a right shift by ``s``; a left shift when ``s`` is negative."""
    if s == 0:
        return v
    if s > 0:
        return (v + (1 << (s - 1))) >> s
    return v << -s


def sat16(v: Ints) -> Ints:
    """Saturate to 16 bits, dtype kept."""
    return np.minimum(np.maximum(v, INT16_MIN), INT16_MAX)


def clamp_weight(w: NDArray[np.float64], log: int) -> NDArray[np.float64]:
    """Clamp weights held as exact float64 integers to [-2^log, 2^log - 1], in place."""
    limit = float(1 << log)
    np.maximum(w, -limit, out=w)
    np.minimum(w, limit - 1, out=w)
    return w


def clamp_bias(b: Ints, log: int) -> Ints:
    """Clamp biases to +-(2^log - 1)."""
    limit = (1 << log) - 1
    return np.minimum(np.maximum(b, -limit), limit)


def mulhi(a: int, b: int) -> int:
    """Upper 32 bits of the 64-bit product of two unsigned 32-bit numbers."""
    return (a * b) >> 32


def guard(v: Ints, limit: int, counters: Counters | None) -> Ints:
    """Halve a vector until sum|v| <= limit (the norm guard); 0 means no guard.

    ``counters.guard_shifts`` counts the rounds; None where they do not count.
    """
    while limit and int(np.abs(v).sum()) > limit:
        v = shift(v, 1)
        if counters is not None:
            counters.guard_shifts += 1
    return v
