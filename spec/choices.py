# SPDX-License-Identifier: Apache-2.0
"""Random choices, the same in fixed and floating point (docs/spec/algorithm.md: training step, mask update)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparcl_mcu.spec.fixed import Ints
from sparcl_mcu.spec.prng import Prng


def shuffled(n: int, choices: Prng) -> list[int]:
    """Return 0..n-1 shuffled: entry i = n-1..1 is swapped with entry below(i+1)."""
    result = list(range(n))
    for i, j in zip(range(n - 1, 0, -1), choices.draw_below(np.arange(n, 1, -1)).tolist(), strict=True):
        result[i], result[j] = result[j], result[i]
    return result


def free_places(used: NDArray[np.bool_], count: int, choices: Prng) -> tuple[Ints, Ints]:
    """Lines and places, (count,) each, of ``count`` entries that ``used`` (lines, places) does not have.

    A line for each, the next with room where one is full; then, lines from the last, a place, the next free one.
    """
    used = used.copy()
    lines, places = used.shape
    room = (places - used.sum(axis=1)).tolist()
    chosen = []
    for drawn in choices.draw_below(np.full(count, lines)).tolist():
        line = drawn
        while room[line] == 0:
            line = (line + 1) % lines
        room[line] -= 1
        chosen.append(line)
    chosen.sort(reverse=True)
    index = []
    for line, drawn in zip(chosen, choices.draw_below(np.full(count, places)).tolist(), strict=True):
        place = drawn
        while used[line, place]:
            place = (place + 1) % places
        used[line, place] = True
        index.append(place)
    return np.array(chosen, dtype=np.int64), np.array(index, dtype=np.int64)
