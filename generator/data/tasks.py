# SPDX-License-Identifier: Apache-2.0
"""From all samples to a stream of tasks with 8-bit inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparcl_mcu.generator.config import MAX_CLASSES, ClassName, Config
from sparcl_mcu.generator.data import series
from sparcl_mcu.generator.data.raw import LACKING, Labels, Raw, Samples, hold_out
from sparcl_mcu.spec.errors import UserError
from sparcl_mcu.spec.types import Dataset, Task

CALIBRATION_QUANTILE = 0.99
"""Share of the non-zero magnitudes of float inputs that must not be clipped."""

MAX_TASKS = 255
"""A task's number is one byte and 255 means none (docs/spec/algorithm.md, ``class_task``)."""

BASE = "base"
"""Name of the base classes where tasks have theirs."""

SMALLEST = 8
"""Steps of 1/256 that float inputs have to reach."""


@dataclass(frozen=True)
class Part:
    """The samples of a task or of the base set: those of some classes, or of some groups."""

    members: tuple[int, ...]
    by_group: bool = False

    def where(self, samples: Samples) -> Labels:
        """Positions of its samples."""
        return np.flatnonzero(np.isin(samples.group if self.by_group else samples.y, self.members))

    def classes(self, raw: Raw) -> list[int]:
        """The part's classes, in the order of the experiment file; by group all that occur."""
        if not self.by_group:
            return list(self.members)
        return sorted({int(c) for s in (raw.train, raw.test) for c in np.unique(s.y[self.where(s)])})


@dataclass(frozen=True)
class Plan:
    """The base classes the host may know from the start, and the tasks."""

    base: Part | None
    tasks: tuple[Part, ...]

    @property
    def known(self) -> Part:
        """The samples the host has when it makes the initial model."""
        return self.base or self.tasks[0]


def plan(config: Config, raw: Raw) -> Plan:
    """The tasks an experiment asks for."""
    result = _by_group(config, raw) if config.tasks.by == "group" else _by_class(config, raw)
    if len(result.tasks) > MAX_TASKS:
        larger = "tasks.groups_per_task" if config.tasks.by == "group" else "tasks.classes_per_task"
        raise UserError(f"there are {len(result.tasks)} tasks; at most {MAX_TASKS} are possible: set {larger}")
    order = _order(raw, result)
    if len(order) < 2:
        names = ", ".join(raw.class_names[c] for c in order) or "none"
        where = "the tasks have" if len(raw.class_names) > 1 else f"{raw.source} has"
        raise UserError(f"{where} too few classes: two are needed, there is {names}")
    if len(order) > MAX_CLASSES:
        raise UserError(f"tasks.split names {len(order)} classes; at most {MAX_CLASSES} are possible")
    if config.tasks.first == "host" and len(result.tasks) < 2:
        raise UserError('tasks.first = "host": there is no second task for the board to learn')
    return result


def _by_class(config: Config, raw: Raw) -> Plan:
    base = _split([config.initial.base_classes], raw, raw.class_names, "initial.base_classes")[0]
    if config.tasks.split is not None:
        tasks = _split(config.tasks.split, raw, raw.class_names)
    else:
        rest = [c for c in range(len(raw.class_names)) if c not in base]
        per = config.tasks.classes_per_task
        tasks = [rest[k : k + per] for k in range(0, len(rest), per)]
        if len(tasks) > 1 and len(tasks[-1]) == 1 < per:
            # A last task of one class would not be a task: 7 classes by 2 are 2 + 2 + 3.
            tasks[-2:] = [tasks[-2] + tasks[-1]]
    _check_once([base, *tasks], "tasks.split, initial.base_classes: a class")
    return Plan(Part(tuple(base)) if base else None, tuple(Part(tuple(task)) for task in tasks))


def _by_group(config: Config, raw: Raw) -> Plan:
    if config.tasks.split is not None:
        tasks = _split(config.tasks.split, raw, raw.group_names)
    else:
        per = config.tasks.groups_per_task
        everything = list(range(len(raw.group_names)))
        tasks = [everything[k : k + per] for k in range(0, len(everything), per)]
    _check_once(tasks, "tasks.split: a group")
    return Plan(None, tuple(Part(tuple(task), by_group=True) for task in tasks))


def _split(
    split: Sequence[Sequence[ClassName]], raw: Raw, names: tuple[str, ...], option: str = "tasks.split"
) -> list[list[int]]:
    """The numbers of the classes or groups of each task."""
    number = {name: k for k, name in enumerate(names)}
    return [[_member(raw, names, number, name, option) for name in task] for task in split]


def _member(raw: Raw, names: tuple[str, ...], number: Mapping[str, int], name: ClassName, option: str) -> int:
    """Number of a class or group given by name, or by number where they have other names."""
    if (known := number.get(str(name))) is not None:
        return known
    numeric = all(n.lstrip("-").isdigit() for n in names)
    if isinstance(name, int) and not numeric and 0 <= name < len(names):
        return name
    what = "group" if names is raw.group_names else "class"
    raise UserError(f"{option}: {raw.name} has no {what} {name!r}; it has {', '.join(_few(names))}")


def _few(names: Sequence[str]) -> Sequence[str]:
    """The names, or only the first and the last if there are many."""
    return names if len(names) <= 20 else (*names[:10], "...", names[-1])


def _check_once(tasks: Sequence[Sequence[int]], what: str) -> None:
    flat = [member for task in tasks for member in task]
    if len(set(flat)) != len(flat):
        raise UserError(f"{what} is named twice (once by name, once by number?)")


def _order(raw: Raw, wanted: Plan) -> list[int]:
    """Classes in the order of their labels: of learning, or if tasks share them their natural order."""
    parts = (wanted.base, *wanted.tasks) if wanted.base else wanted.tasks
    classes = [c for part in parts for c in part.classes(raw)]
    return sorted(set(classes)) if wanted.known.by_group else classes


def chosen(config: Config, raw: Raw) -> Raw:
    """Drop the training samples that are in no task: a class nobody asks for may have too few of them."""
    wanted = plan(config, raw)
    parts = [part.where(raw.train) for part in (wanted.base, *wanted.tasks) if part is not None]
    return replace(raw, train=raw.train.take(np.sort(np.concatenate(parts))))


def held_out(config: Config, raw: Raw) -> Raw:
    """Test samples from the training samples of the tasks, as many as the experiment file says."""
    return hold_out(
        chosen(config, raw), config.data.test_share, config.data.train_per_class, config.data.test_per_class
    )


def check_samples(config: Config, raw: Raw, wanted: Plan) -> None:
    """Check that each task has training and test samples, and so has each class if tasks bring new classes."""
    for part in (wanted.base, *wanted.tasks):
        if part is not None:
            for kind, samples in (("training", raw.train), ("test", raw.test)):
                _check_part(config, raw, part, kind, samples)


def _check_part(config: Config, raw: Raw, part: Part, kind: str, samples: Samples) -> None:
    names, numbers = (raw.group_names, samples.group) if part.by_group else (raw.class_names, samples.y)
    where = part.where(samples)
    present = set(np.unique(numbers[where]).tolist())
    lacking = [m for m in part.members if m not in present]
    title = ", ".join(_few([names[m] for m in part.members]))
    if lacking and not (part.by_group and len(where)):
        what = f"group {title}" if part.by_group else f"class {names[lacking[0]]}"
        short = " (is it too short for data.window?)" if series.wanted(config.data) else ""
        raise UserError(f"{raw.source}: {what} has no {kind} samples{short}: {LACKING}")
    if kind == "training" and len(where) > 65535:
        raise UserError(
            f"tasks: task {title} has {len(where)} training samples, at most 65535 are possible: make smaller tasks, "
            "or set data.train_per_class"
        )


# ---------------------------------------------------------------- numbers


def to_integers(config: Config, raw: Raw, known: NDArray[np.int64]) -> tuple[Raw, bool, int]:
    """Quantise inputs: the integers, whether they are signed, and their fractional bits.

    uint8 means x / 256, int8 means x / 128.  Floats get the finest power of two at which no more than 1 % of
    the non-zero magnitudes the host knows are clipped.  ``known``: positions of the training samples it knows.
    """
    raw = _standardised(raw, known) if _standardises(config) else _number_type(config, raw)
    train, test = raw.train.x, raw.test.x
    if train.dtype == np.uint8:
        return raw, False, 8
    if train.dtype == np.int8:
        return raw, True, 7
    signed = bool((train < 0.0).any() or (test < 0.0).any())
    top = 127 if signed else 255
    largest = _magnitude(train[known])
    if largest * 256 < SMALLEST:
        advice = "scale them to about -1..1 or 0..1, or set data.standardise = true"
        if _standardises(config) or largest == 0.0:
            advice = "they are all the same"
        raise UserError(
            f"{raw.source}: inputs of the samples the host knows have magnitudes of at most {largest:.3g}, too small "
            f"for steps of 1/256: {advice}"
        )
    fraction = int(np.clip(np.floor(np.log2((top + 1) / largest)), 0, 8))
    low, dtype = (-top, np.int8) if signed else (0, np.uint8)

    def integer(x: NDArray[Any]) -> NDArray[Any]:
        return np.clip(np.floor(x * 2.0**fraction + 0.5), low, top).astype(dtype)

    return _with_x(raw, integer(train), integer(test)), signed, fraction


def _with_x(raw: Raw, train: NDArray[Any], test: NDArray[Any]) -> Raw:
    return replace(raw, train=replace(raw.train, x=train), test=replace(raw.test, x=test))


def _standardises(config: Config) -> bool:
    data = config.data
    if data.standardise is not None:
        return data.standardise
    return data.set == "csv" or series.wanted(data)


def _standardised(raw: Raw, known: NDArray[np.int64]) -> Raw:
    """Scale to mean 0 and deviation 1 over the training samples the host knows when it makes the initial model.

    Of each value of flat samples, else of each channel (the last axis).  A product would ship these constants;
    statistics over all seven exercises of the watch were no better (0.84 on unseen people with either, jointly
    trained).
    """
    x = raw.train.x[known].astype(np.float64)
    axes = tuple(range(max(1, x.ndim - 1)))
    mean, deviation = x.mean(axis=axes), np.maximum(x.std(axis=axes), 1e-9)
    return _with_x(raw, (raw.train.x - mean) / deviation, (raw.test.x - mean) / deviation)


def _number_type(config: Config, raw: Raw) -> Raw:
    """Convert bool to black and white, keep uint8 and int8, and turn all else into float64."""
    train, test = raw.train.x, raw.test.x
    if train.dtype == test.dtype and train.dtype in (np.uint8, np.int8):
        return raw
    if train.dtype == test.dtype == np.bool_:
        return _with_x(raw, train.astype(np.uint8) * np.uint8(255), test.astype(np.uint8) * np.uint8(255))
    if config.data.set == "csv" and all(_bytes(x) for x in (train, test)):
        return _with_x(raw, train.astype(np.uint8), test.astype(np.uint8))
    train, test = train.astype(np.float64), test.astype(np.float64)
    largest = _magnitude(train)
    if largest >= 128.0:
        raise UserError(
            f"{raw.source}: x_train has magnitudes up to {largest:.4g}; scale them to about -1..1 or 0..1, or "
            "set data.standardise = true (pictures of 0..255: save them as uint8)"
        )
    return _with_x(raw, train, test)


def _bytes(x: NDArray[Any]) -> bool:
    """Whether these are pictures: whole numbers from 0 to 255, more than black and white."""
    return bool(((x >= 0) & (x <= 255) & (x == np.floor(x))).all() and x.max() > 1)


def _magnitude(x: NDArray[Any]) -> float:
    """The calibration quantile of the non-zero magnitudes; 0 if there are none."""
    magnitudes = np.abs(x[x != 0.0])
    return float(np.quantile(magnitudes, CALIBRATION_QUANTILE)) if magnitudes.size else 0.0


# ---------------------------------------------------------------- tasks


def cut(raw: Raw, wanted: Plan, signed: bool, fraction: int) -> Dataset:
    """The stream of tasks; ``raw`` has integer inputs."""
    order = _order(raw, wanted)
    number = np.zeros(len(raw.class_names), dtype=np.uint8)
    number[order] = np.arange(len(order))
    base = _task(raw, wanted.base, number, BASE) if wanted.base else None
    tasks: list[Task] = []
    for part in wanted.tasks:
        task = _task(raw, part, number)
        # Names have to be unique, even with a class "base", or "a/b" beside "a" and "b".
        taken = {BASE, *(other.name for other in tasks)}
        names = (task.name, *(f"{task.name} ({k})" for k in range(2, MAX_TASKS + 2)))
        tasks.append(replace(task, name=next(name for name in names if name not in taken)))
    return Dataset(
        name=raw.name,
        class_names=tuple(raw.class_names[c] for c in order),
        shape=raw.shape,
        signed=signed,
        fraction=fraction,
        tasks=tuple(tasks),
        base=base,
        class_numbers=tuple(order),
    )


def _task(raw: Raw, part: Part, number: NDArray[np.uint8], name: str | None = None) -> Task:
    """The samples of a part, flattened, in the order of the data set."""
    members = [(raw.group_names if part.by_group else raw.class_names)[m] for m in part.members]
    train, test = raw.train.take(part.where(raw.train)), raw.test.take(part.where(raw.test))
    # The names of classes or groups, shortened when there are many.
    name = name or "/".join(members if len(members) <= 6 else [*members[:2], "...", members[-1]])
    return Task(
        name,
        tuple(int(number[c]) for c in part.classes(raw)),
        _flat(train.x),
        number[train.y],
        _flat(test.x),
        number[test.y],
    )


def _flat(x: NDArray[Any]) -> NDArray[np.integer]:
    return np.ascontiguousarray(x.reshape(len(x), -1))
