# SPDX-License-Identifier: Apache-2.0
"""Masks: panels in storage order, their pruning, growth and gradient mask.

Docs: numerics.md ("Sparse layers: panels"), algorithm.md ("Mask update").  A
panel is a list of entries (line, place) in storage order; the weights themselves
live in the layer's matrix, so a mask update moves none of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from sparcl_mcu.spec.choices import free_places
from sparcl_mcu.spec.fixed import Ints
from sparcl_mcu.spec.prng import Prng
from sparcl_mcu.spec.types import Panel

Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class PanelMask:
    """The entries of one panel in storage order; arrays are never written to.

    ``lines``, ``index``: (entries,) int64, line and place within the panel;
    ``chosen``: (entries,) bool, True for the gradient mask.
    """

    constants: Panel
    lines: Ints
    index: Ints
    chosen: Flags

    @classmethod
    def of(cls, panel: Panel) -> Self:
        """Make the mask of an initial panel."""
        lines = np.repeat(np.arange(panel.split.size), np.diff(panel.start))
        chosen = np.arange(panel.index.size) < panel.split[lines]
        return cls(panel, lines.astype(np.int64), panel.index.astype(np.int64), chosen)

    @property
    def entries(self) -> int:
        """Entries now in the panel."""
        return int(self.lines.size)

    @property
    def n_lines(self) -> int:
        """Lines of the panel, with or without entries."""
        return int(self.constants.split.size)

    def start(self) -> Ints:
        """First entry of each line and the end, (lines + 1,) int64."""
        result = np.zeros(self.n_lines + 1, dtype=np.int64)
        np.cumsum(np.bincount(self.lines, minlength=self.n_lines), out=result[1:])
        return result

    def split(self) -> Ints:
        """First entry of each line outside the gradient mask, (lines,) int64."""
        return self.start()[:-1] + np.bincount(self.lines[self.chosen], minlength=self.n_lines)

    def used(self) -> Flags:
        """Which entries exist, (lines, places) bool."""
        result = np.zeros((self.n_lines, self.constants.places), dtype=np.bool_)
        result[self.lines, self.index] = True
        return result

    def ordered(self) -> Self:
        """Sort the entries into storage order: line, gradient mask first, place."""
        order = np.lexsort((self.index, ~self.chosen, self.lines))
        return replace(self, lines=self.lines[order], index=self.index[order], chosen=self.chosen[order])


def pruned(panel: PanelMask, score: Ints, count: int) -> PanelMask:
    """The mask without the ``count`` entries of least score, (entries,); ties: earlier first."""
    keep = np.ones(panel.entries, dtype=np.bool_)
    keep[np.argsort(score, kind="stable")[: max(count, 0)]] = False
    return replace(panel, lines=panel.lines[keep], index=panel.index[keep], chosen=panel.chosen[keep])


def selected(panel: PanelMask, score: Ints, count: int) -> PanelMask:
    """The mask with the ``count`` entries of highest score as gradient mask; ties: earlier first."""
    chosen = np.zeros(panel.entries, dtype=np.bool_)
    chosen[np.argsort(-score, kind="stable")[:count]] = True
    return replace(panel, chosen=chosen).ordered()


def all_selected(panel: PanelMask) -> PanelMask:
    """The mask with every entry in the gradient mask."""
    return replace(panel, chosen=np.ones(panel.entries, dtype=np.bool_)).ordered()


def grown_random(panel: PanelMask, count: int, prng: Prng) -> PanelMask:
    """The mask with ``count`` new entries at random free places, in the gradient mask."""
    return _with(panel, *free_places(panel.used(), count, prng))


def grown_best(panel: PanelMask, count: int, score: Ints) -> PanelMask:
    """The mask grown by the ``count`` free places of highest score, (lines, places); ties: lower line, then place."""
    ranked = np.where(panel.used(), -1, score).reshape(-1)
    best = np.argsort(-ranked, kind="stable")[:count]
    best = best[ranked[best] >= 0]
    return _with(panel, best // score.shape[1], best % score.shape[1])


def _with(panel: PanelMask, lines: Ints, index: Ints) -> PanelMask:
    return replace(
        panel,
        lines=np.concatenate([panel.lines, lines]),
        index=np.concatenate([panel.index, index]),
        chosen=np.concatenate([panel.chosen, np.ones(lines.size, dtype=np.bool_)]),
    ).ordered()
