# SPDX-License-Identifier: Apache-2.0
"""The user's own arrays, from an .npz or a function: types, shares held out, groups, windows, errors."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparcl_mcu.generator import config, data
from sparcl_mcu.generator.config import Config
from sparcl_mcu.spec.errors import UserError
from sparcl_mcu.spec.types import Dataset

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(**sections: Any) -> Dataset:
    return data.load(Config.model_validate(sections))


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


def load_npz(tmp_path: Path, contents: dict[str, Any], **options: Any) -> Dataset:
    path = tmp_path / "own.npz"
    np.savez(path, **contents)
    tasks = options.pop("tasks", {})
    return load(data={"set": "npz", "path": path, **options}, tasks=tasks)


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
        ({"x_train": np.full((40, 3, 2), np.nan)}, r"x_train has NaN or infinite values, the first in x_train\[0\]"),
        ({"y_test": np.arange(8)}, "y_test contains class 4, which never occurs in y_train"),
        ({"y_train": np.arange(40) / 2}, "one label"),
        ({"x_train": np.full((40, 3, 2), 300.0)}, "magnitudes up to 300.*set data.standardise = true"),
        ({"x_train": None}, "lacks x_train; it has y_train"),
        ({"x_test": None}, "lacks x_test; it has x_train"),
        (
            {"x_test": None, "y_test": None, "y_train": np.arange(40) % 40},
            "class 0 has a single sample, too few to hold any out.*tasks.split",
        ),
        ({"x_train": np.zeros((40, 65536)), "x_test": np.zeros((8, 65536))}, "a sample has 65536 values"),
        ({"x_train": np.zeros((0, 3, 2)), "y_train": np.zeros(0, int)}, "x_train is empty"),
        ({"x_train": np.array([["a"]] * 40)}, "array of numbers"),
        ({"x_train": np.array([None] * 40)}, "x_train holds Python objects; save plain numbers"),
        ({"y_train": np.array(["a", "b"] * 20, object)}, r"y_train holds Python objects.*y_train.astype\(str\)"),
        ({"y_train": np.array(["a", "b", "", "c"] * 10)}, r"y_train\[2\] is empty"),
        ({"y_train": np.zeros(40, int), "y_test": np.zeros(8, int)}, "has too few classes: two are needed, there is 0"),
        ({"y_test": np.arange(8) % 2}, "class 2 has no test samples: add samples, or leave it out"),
        ({"x_train": np.full((40, 3, 2), 1e39)}, "x_train has magnitudes up to 1e.39, which is too large"),
        ({"x_train": np.full((40, 3, 2), 1e-3)}, "magnitudes of at most 0.001, too small for.*standardise = true"),
        ({"x_train": np.zeros((40, 3, 2))}, "magnitudes of at most 0, too small.*all the same"),
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
    path.write_text("a,b,label")
    with pytest.raises(UserError, match=r"not an \.npz; numpy.savez"):
        load(data={"set": "npz", "path": path})
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(UserError, match="is a single array"):
        load(data={"set": "npz", "path": path})
    np.savez_compressed(path, **arrays())
    content = bytearray(path.read_bytes())
    content[200:300] = bytes(100)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x_train cannot be read .*is the file whole"):
        load(data={"set": "npz", "path": path})
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        load(data={"set": "npz", "path": tmp_path})


def test_npz_labels_in_natural_order(tmp_path: Path) -> None:
    for names in (np.array(["9", "10", "2", "1"]), np.array([b"9", b"10", b"2", b"1"])):
        d = load_npz(tmp_path, arrays(y_train=names[np.arange(40) % 4], y_test=names[np.arange(8) % 4]))
        assert d.class_names == ("1", "2", "9", "10")


def test_classes_in_no_task_may_be_many_and_rare(tmp_path: Path) -> None:
    contents = arrays(
        x_train=np.ones((340, 2)),
        x_test=None,
        y_test=None,
        y_train=np.concatenate([np.arange(40) % 2, np.arange(300)]),
    )
    d = load_npz(tmp_path, contents, tasks={"split": ((1,), (0,))})
    assert (d.class_names, [len(t.y_train) for t in d.tasks]) == (("1", "0"), [17, 17])
    with pytest.raises(UserError, match="y_train has 300 classes; at most 255 are possible: name some in"):
        load_npz(tmp_path, contents)


def test_a_single_sample_of_a_class_in_a_group_is_for_training(tmp_path: Path) -> None:
    contents = arrays(x_test=None, y_test=None, y_train=np.arange(40) % 2, group_train=np.arange(40) // 39)
    contents["group_train"][[0, 2]] = 1
    d = load_npz(tmp_path, contents, tasks={"by": "group"})
    assert [(len(t.y_train), len(t.y_test)) for t in d.tasks] == [(31, 6), (2, 1)]


def test_tasks_have_names_of_their_own(tmp_path: Path) -> None:
    names = np.array(["a", "b", "a/b", "base"])
    contents = arrays(y_train=names[np.arange(40) % 4], y_test=names[np.arange(8) % 4])
    d = load_npz(tmp_path, contents, tasks={"split": (("a", "b"), ("a/b",), ("base",))})
    assert [t.name for t in d.tasks] == ["a/b", "a/b (2)", "base (2)"]


def test_too_many_tasks(tmp_path: Path) -> None:
    contents = arrays(x_train=np.ones((1024, 1)), y_train=np.arange(1024) % 2, x_test=None, y_test=None)
    contents["group_train"] = np.arange(1024) // 4
    with pytest.raises(UserError, match=r"there are 256 tasks; at most 255 are possible: set tasks\.groups_per_task"):
        load_npz(tmp_path, contents, tasks={"by": "group"})
    assert len(load_npz(tmp_path, contents, tasks={"by": "group", "groups_per_task": 2}).tasks) == 128


def test_a_task_of_too_many_samples(tmp_path: Path) -> None:
    contents = arrays(
        x_train=np.ones((66000, 1), np.uint8), y_train=np.arange(66000) % 4, x_test=np.ones((8, 1), np.uint8)
    )
    with pytest.raises(UserError, match=r"task 0, 1, 2, 3 has 66000 training samples.*data.train_per_class"):
        load_npz(tmp_path, contents, tasks={"classes_per_task": 4})
    assert len(load_npz(tmp_path, contents, tasks={"classes_per_task": 4}, train_per_class=9).tasks[0].y_train) == 36


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="a file that cannot be read")
def test_a_file_that_cannot_be_read() -> None:
    for kind in ("npz", "csv"):
        settings = Config.model_validate({"data": {"set": kind, "path": Path("/proc/self/mem")}})
        with pytest.raises(UserError, match="/proc/self/mem: cannot be read"):
            data.fingerprint(settings)
        with pytest.raises(UserError, match="/proc/self/mem: cannot be read"):
            data.load(settings)


def test_npz_holds_out_the_last_samples(tmp_path: Path) -> None:
    x = np.arange(40, dtype=np.uint8)[:, np.newaxis]
    d = load_npz(tmp_path, arrays(x_train=x, x_test=None, y_test=None))
    # Class 0 has samples 0, 4, ..., 36: two of ten are held out.
    assert d.tasks[0].x_train[d.tasks[0].y_train == 0].ravel().tolist() == list(range(0, 32, 4))
    assert d.tasks[0].x_test[d.tasks[0].y_test == 0].ravel().tolist() == [32, 36]
    d = load_npz(tmp_path, arrays(x_train=x, x_test=None, y_test=None), train_per_class=3, test_per_class=1)
    assert d.tasks[0].x_test[d.tasks[0].y_test == 0].ravel().tolist() == [36]
    assert [len(t.y_train) for t in d.tasks] == [6, 6]


def test_npz_standardised(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    scales = np.array([1000.0, 0.01, 3.0])
    d = load_npz(
        tmp_path,
        arrays(x_train=random.normal(size=(40, 3)) * scales, x_test=random.normal(size=(8, 3)) * scales),
        standardise=True,
    )
    known = d.tasks[0].x_train / 2.0**d.fraction
    assert np.allclose(known.mean(axis=0), 0.0, atol=0.05)
    assert np.allclose(known.std(axis=0), 1.0, atol=0.05)


GROUPS = {"group_train": np.repeat(["ann", "bob", "eve", "joe"], 10), "group_test": np.repeat(["ann", "eve"], 4)}


def test_npz_by_group(tmp_path: Path) -> None:
    contents = arrays(**GROUPS)
    d = load_npz(tmp_path, contents, tasks={"by": "group", "split": (("eve",), ("ann", "bob"))})
    assert [t.name for t in d.tasks] == ["eve", "ann/bob"]
    assert [t.classes for t in d.tasks] == [(0, 1, 2, 3)] * 2
    assert d.class_numbers == (0, 1, 2, 3)
    assert [(len(t.y_train), len(t.y_test)) for t in d.tasks] == [(10, 4), (20, 4)]
    assert d.tasks[0].y_train.tolist() == contents["y_train"][20:30].tolist()


def test_npz_by_group_names_only_classes_that_occur(tmp_path: Path) -> None:
    y = np.where(np.arange(40) < 20, np.arange(40) % 2, 2 + np.arange(40) % 2) + 5
    d = load_npz(
        tmp_path,
        arrays(y_train=y, x_test=None, y_test=None, group_train=np.arange(40) // 10),
        tasks={"by": "group", "split": ((2,), (3,))},
    )
    assert d.class_names == ("7", "8")
    assert d.class_numbers == (2, 3)
    assert [t.classes for t in d.tasks] == [(0, 1), (0, 1)]


def test_npz_by_group_holds_out_of_each_group(tmp_path: Path) -> None:
    contents = arrays(x_test=None, y_test=None, y_train=np.arange(40) % 2, group_train=np.arange(40) // 20)
    d = load_npz(tmp_path, contents, tasks={"by": "group"})
    assert [t.name for t in d.tasks] == ["0", "1"]
    assert [(len(t.y_train), np.bincount(t.y_test).tolist()) for t in d.tasks] == [(16, [2, 2])] * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_train": None}, r'lacks group_train \(tasks.by = "group"\)'),
        ({"group_test": None}, "lacks group_test"),
        ({"group_train": np.zeros(3, int)}, "x_train has 40 samples, group_train has 3"),
        ({"group_train": np.zeros(40)}, "group_train has to hold one group"),
        ({}, "group bob has no test samples"),
    ],
)
def test_npz_group_errors(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_npz(tmp_path, arrays(**GROUPS | changes), tasks={"by": "group"})


def test_npz_windows(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    x = random.normal(50.0, 9.0, size=(40, 30, 3))
    d = load_npz(tmp_path, arrays(x_train=x, x_test=x[:8]), window=10, hop=5)
    assert d.shape == (10, 3)
    assert [len(t.y_train) for t in d.tasks] == [100, 100]
    mean, deviation = (f(x[np.arange(40) % 4 < 2], axis=(0, 1)) for f in (np.mean, np.std))
    second = (x[0, 5:15] - mean) / deviation
    assert np.allclose(d.tasks[0].x_train[1].reshape(10, 3) / 2.0**d.fraction, second, atol=0.07)


def test_npz_features_of_whole_samples(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(40, 30))
    d = load_npz(tmp_path, arrays(x_train=x, x_test=x[:8]), features=("max", "min"), standardise=False)
    assert d.shape == (2,)
    assert np.allclose(d.tasks[0].x_test[0] / 2.0**d.fraction, [x[0].max(), x[0].min()], atol=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 31}, "samples have 30 time steps, less than data.window = 31"),
        ({"features": ("mean",)}, r"need samples of shape \(time, channels\), not \(30, 2, 2\)"),
    ],
)
def test_npz_window_errors(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    x = np.zeros((40, 30, 2, 2) if "features" in options else (40, 30, 2))
    with pytest.raises(UserError, match=message):
        load_npz(tmp_path, arrays(x_train=x, x_test=x[:8]), **options)


FUNCTION = """
import numpy as np
import helper_of_mine

def pair():
    return helper_of_mine.X, np.arange(40) % 4

def four():
    x, y = pair()
    return x, y, x[:8], y[:8]

def groups():
    x, y = pair()
    return {"x_train": x.tolist(), "y_train": list(y), "group_train": ["a"] * 20 + ["b"] * 20}

def wrong():
    return 3

def ragged():
    return [[1], [1, 2]], [0, 1]

def fails():
    raise KeyError("sensor 7")

def leaves():
    raise SystemExit("bye")

def talks():
    raise ValueError("line one\\nline two")

def nested():
    x, y = pair()
    return (x, y), (x[:8], y[:8])

def pandas():
    x, y = pair()
    return [x, np.array([f"class {k}" for k in y], object)]

number = 4
"""


def experiment(tmp_path: Path, function: str, extra: str = "") -> Config:
    (tmp_path / "random.py").write_text(FUNCTION)  # in Python's library too: the one in the folder counts
    (tmp_path / "helper_of_mine.py").write_text("import numpy as np\nX = np.eye(40)\n")
    path = tmp_path / "exp.toml"
    path.write_text(f'[data]\nset = "function"\nfunction = "{function}"\n{extra}')
    return config.load(path)


@pytest.mark.parametrize("name", ["pair", "four", "groups", "nested", "pandas"])
def test_function(tmp_path: Path, name: str) -> None:
    extra = '[tasks]\nby = "group"\n' if name == "groups" else ""
    d = data.load(experiment(tmp_path, f"random:{name}", extra))
    assert (d.name, d.shape, len(d.tasks)) == ("random", (40,), 2)
    assert sum(len(t.y_train) for t in d.tasks) == (40 if name in ("four", "nested") else 32)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("random:wrong", r"returned int; it has to return \(x_train, y_train\)"),
        ("random:ragged", "x_train is not an array of equal rows"),
        ("random:fails", r"failed: KeyError: 'sensor 7' \(.*random.py:23\)"),
        ("random:leaves", "failed: SystemExit: bye"),
        ("random:talks", r"failed: ValueError: line one line two \(.*random.py:29\)$"),
        ("random:number", "module random has no function number"),
        ("random:nothing", "module random has no function nothing"),
        ("no_such_module:load", "there is no module no_such_module in .* or installed"),
    ],
)
def test_function_errors(tmp_path: Path, function: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        data.load(experiment(tmp_path, function))


def test_fingerprint_follows_the_file(tmp_path: Path) -> None:
    first = experiment(tmp_path, "random:pair")
    before = data.fingerprint(first)
    assert before == data.fingerprint(first)
    (tmp_path / "random.py").write_text(FUNCTION + "# changed\n")
    assert before != data.fingerprint(first)


@pytest.mark.tensorflow
def test_the_example_of_own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script makes what the experiment file beside it reads."""
    shutil.copy(EXAMPLES / "own_data.toml", tmp_path)
    monkeypatch.setattr("sys.argv", ["own_data.py", str(tmp_path)])
    runpy.run_path(str(EXAMPLES / "own_data.py"), run_name="__main__")
    settings = config.load(tmp_path / "own_data.toml")
    assert settings.model.path is not None
    assert settings.model.path.is_file()
    d = data.load(settings)
    assert (d.shape, d.n_classes, [t.name for t in d.tasks]) == ((8, 8, 1), 10, ["6/7", "8/9"])
    assert d.base is not None
    assert len(d.base.y_train) > 500
