# SPDX-License-Identifier: Apache-2.0
"""Histories of a validated session reduced to figures: overlap of masks, easy and hard samples."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from sparcl_mcu.reference.history import Bits, History
from sparcl_mcu.spec.types import Dataset, Layer, Model

from .schema import LayerOverlap, MaskOverlap, SampleNote, TaskSamples

# -- masks --------------------------------------------------------------------------------------------


def initial_mask(layer: Layer) -> Bits:
    """The mask a sparse layer was shipped with, as `History` keeps them."""
    used = []
    for panel in layer.panels:
        flags = np.zeros((panel.split.size, panel.places), dtype=np.bool_)
        flags[np.repeat(np.arange(panel.split.size), np.diff(panel.start)), panel.index] = True
        used.append(flags.reshape(-1))
    return np.packbits(np.concatenate(used))


Pair = tuple[float, float, float]
"""Weights of two masks: in both, in either, in both if chance had placed them."""


def compare(layer: Layer, first: Bits, second: Bits) -> Pair:
    """Compare two masks of a sparse layer.

    Chance: as many weights of each panel as either mask has, each place being as likely as any other.
    """
    both = either = chance = 0.0
    sizes = [panel.split.size * panel.places for panel in layer.panels]
    borders = np.cumsum([0, *sizes])
    a, b = (np.unpackbits(bits, count=int(borders[-1])).view(np.bool_) for bits in (first, second))
    for begin, end in pairwise(borders.tolist()):
        one, other = a[begin:end], b[begin:end]
        both += int(np.count_nonzero(one & other))
        either += int(np.count_nonzero(one | other))
        chance += int(one.sum()) * int(other.sum()) / max(end - begin, 1)
    return both * layer.block, either * layer.block, chance * layer.block


def overlap(pairs: Sequence[Pair]) -> tuple[float, float]:
    """Intersection over union in percent of masks that belong together: as it is, and as chance would have it."""
    both, either, chance = (sum(pair[k] for pair in pairs) for k in range(3))
    return 100.0 * both / max(either, 1), 100.0 * chance / max(both + either - chance, 1)


def mask_overlap(model: Model, names: Sequence[str], kept: Sequence[History]) -> MaskOverlap | None:
    """Overlap of the masks as shipped and at the end of the tasks ``names``; None without sparse layers."""
    layers = {number: layer for number, layer in model.weighted if layer.sparse}
    masks = {
        number: [initial_mask(layer), *(history.masks[number] for history in kept)] for number, layer in layers.items()
    }
    pairs = {number: _pairs(layer, masks[number]) for number, layer in layers.items()}
    if not layers:
        return None
    return MaskOverlap(
        moments=["start", *names],
        total=_overlap("all", list(layers.values()), list(pairs.values())),
        layers=[_overlap(f"l{n} {layer.name}".strip(), [layer], [pairs[n]]) for n, layer in layers.items()],
    )


def _pairs(layer: Layer, masks: Sequence[Bits]) -> list[list[Pair]]:
    return [[compare(layer, a, b) for b in masks] for a in masks]


def _overlap(name: str, layers: Sequence[Layer], pairs: Sequence[list[list[Pair]]]) -> LayerOverlap:
    moments = range(len(pairs[0]))
    found = [[overlap([of_layer[i][j] for of_layer in pairs]) for j in moments] for i in moments]
    places = sum(panel.split.size * panel.places * layer.block for layer in layers for panel in layer.panels)
    return LayerOverlap(
        name=name,
        density=100.0 * sum(of_layer[-1][-1][0] for of_layer in pairs) / places,
        chance=float(np.mean([found[i][j][1] for i in moments for j in moments if i != j])),
        matrix=[[actual for actual, _ in row] for row in found],
    )


# -- samples ------------------------------------------------------------------------------------------

SHOWN = 8
"""Samples of each kind in a report."""


def task_samples(dataset: Dataset, index: int, history: History, epochs: int) -> TaskSamples:
    """The easiest and the hardest of a task; ``epochs``: of a task."""
    labels = dataset.tasks[index].y_train

    def note(sample: int) -> SampleNote:
        seen = int(history.left[sample]) or epochs
        return SampleNote(
            id=sample,
            label=dataset.class_names[labels[sample]],
            mistakes=int(history.mistakes[sample]),
            epochs=seen,
            loss=float(history.losses[sample]) / 256 / seen,
        )

    return TaskSamples(
        task=index,
        samples=len(labels),
        removed=int(np.count_nonzero(history.left)),
        never_wrong=int(np.count_nonzero(history.mistakes == 0)),
        easiest=[note(i) for i in easiest(history, SHOWN)],
        hardest=[note(i) for i in hardest(history, SHOWN)],
    )


def easiest(history: History, count: int) -> list[int]:
    """Ids of the samples that DDR removed first; of those removed together, the ones with least mistakes and loss."""
    gone = np.flatnonzero(history.left)
    order = np.lexsort((history.losses[gone], history.mistakes[gone], history.left[gone]))
    return [int(i) for i in gone[order][:count]]


def hardest(history: History, count: int) -> list[int]:
    """Ids of the samples with most mistakes, then most loss, of those that stayed to the end."""
    stayed = np.flatnonzero(history.left == 0)
    order = np.lexsort((-history.losses[stayed], -history.mistakes[stayed].astype(np.int64)))
    return [int(i) for i in stayed[order][:count]]
