# SPDX-License-Identifier: Apache-2.0
"""A data set before it is cut into tasks, and what all sources of data need."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sparcl_mcu.generator.config import MAX_CLASSES, MAX_VALUES, Config, DataSection
from sparcl_mcu.spec.errors import UserError

Labels: TypeAlias = NDArray[np.int64]

LARGEST = float(np.finfo(np.float32).max)
"""Larger values overflow float32 when squared, so they are rejected."""


@dataclass(frozen=True)
class Samples:
    """``x``: (samples, *shape) numbers; ``y``: (samples,) numbers of ``Raw.class_names``; ``group``: (samples,)
    numbers of ``Raw.group_names``, all 0 where there are no groups.
    """

    x: NDArray[Any]
    y: Labels
    group: Labels

    def take(self, where: Labels) -> Samples:
        """The samples at these positions, in this order."""
        return Samples(self.x[where], self.y[where], self.group[where])


@dataclass(frozen=True)
class Raw:
    """All samples of a data set.

    ``source``: what errors call it.  Names of classes and groups are in their natural order.
    """

    name: str
    source: str
    class_names: tuple[str, ...]
    train: Samples
    test: Samples
    group_names: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(int(n) for n in self.train.x.shape[1:])


def ungrouped(x: NDArray[Any], y: Labels) -> Samples:
    """Samples of a set without groups."""
    return Samples(x, y, np.zeros(len(y), dtype=np.int64))


def natural(names: Iterable[str]) -> tuple[str, ...]:
    """Each name once: in the order of the numbers if all are whole numbers, else of the text."""
    unique = set(names)
    numeric = all(re.fullmatch(r"-?[0-9]{1,99}", name) for name in unique)
    return tuple(sorted(unique, key=lambda name: (int(name), name) if numeric else (0, name)))


def check_classes(source: str, names: tuple[str, ...], config: Config) -> None:
    """Check the number of classes: a label is one byte; a set may have more if the tasks name theirs."""
    if len(names) > MAX_CLASSES and (config.tasks.split is None or config.tasks.by == "group"):
        raise UserError(
            f"{source} has {len(names)} classes; at most {MAX_CLASSES} are possible: name some in tasks.split"
        )


def check_size(raw: Raw) -> None:
    """Raise ``UserError`` if the line cannot carry samples of this size."""
    size = math.prod(raw.shape)
    if not 1 <= size <= MAX_VALUES:
        smaller = ": data.size makes pictures smaller" if size > MAX_VALUES and len(raw.shape) > 1 else ""
        raise UserError(f"{raw.source}: a sample has {size} values; 1 to {MAX_VALUES} are possible{smaller}")


LACKING = "add samples, or leave it out of the tasks with tasks.split"
"""Advice for a class that has too few samples."""


VALIDATION_SHARE = 0.2
"""Share of the training samples that takes the place of the test samples (``data.evaluate = "validation"``)."""


def validation(raw: Raw) -> Raw:
    """Replace the test samples by the last fifth of the training samples of each class (and group)."""
    return hold_out(raw, VALIDATION_SHARE)


def hold_out(raw: Raw, share: float, train_count: int | None = None, test_count: int | None = None) -> Raw:
    """Splits ``raw.train``: the first samples of each class (and group) for training, the last for testing.

    The test set is ``test_count`` samples of each, or else ``share`` of them; the training set
    is ``train_count``, or else the others.  A single sample of a class in a group is for training.
    """
    train, test = [], []
    for where, stratum in _strata(raw, raw.train):
        n_test = test_count if test_count is not None else max(1, math.floor(len(where) * share + 1e-9))
        n_train = train_count if train_count is not None else len(where) - n_test
        if raw.group_names and len(where) == 1 and train_count is None and test_count is None:
            n_train, n_test = 1, 0
        if n_train < 1 or n_train + n_test > len(where):
            asked = f"{n_train} + {n_test} samples of {stratum} asked for, there are {len(where)}"
            counts = "data.train_per_class + data.test_per_class"
            if train_count is None and test_count is None:
                asked = f"{stratum} has a single sample, too few to hold any out for testing: " + LACKING
                counts = raw.source
            raise UserError(f"{counts}: {asked}")
        train.append(where[:n_train])
        test.append(where[len(where) - n_test :])
    return replace(raw, train=raw.train.take(np.concatenate(train)), test=raw.train.take(np.concatenate(test)))


def limit(raw: Raw, data: DataSection) -> Raw:
    """At most the first ``train_per_class`` and ``test_per_class`` samples of each class (and group)."""

    def first(samples: Samples, count: int | None) -> Samples:
        if count is None:
            return samples
        kept = [where[:count] for where, _ in _strata(raw, samples)]
        return samples.take(np.sort(np.concatenate(kept)))

    return replace(raw, train=first(raw.train, data.train_per_class), test=first(raw.test, data.test_per_class))


def _strata(raw: Raw, samples: Samples) -> list[tuple[Labels, str]]:
    """Where the samples of each class (and group) are, and what to call these samples."""
    # Sorted once: a pass over all samples for each class and group takes forever with many groups.
    order = np.lexsort((samples.group, samples.y))
    y, group = samples.y[order], samples.group[order]
    borders = np.flatnonzero((np.diff(y) != 0) | (np.diff(group) != 0)) + 1
    result = []
    for where in np.split(order, borders) if len(order) else []:
        c, g = samples.y[where[0]], samples.group[where[0]]
        place = f" in group {raw.group_names[g]}" if raw.group_names else ""
        result.append((where, f"class {raw.class_names[c]}{place}"))
    return result
