# SPDX-License-Identifier: Apache-2.0
"""CSV tables: what is read, and errors with file, row and column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparcl_mcu.generator import data
from sparcl_mcu.generator.config import Config
from sparcl_mcu.spec.errors import UserError
from sparcl_mcu.spec.types import Dataset


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def load(path: Path, *, tasks: dict[str, Any] | None = None, **options: Any) -> Dataset:
    return data.load(Config.model_validate({"data": {"set": "csv", "path": path, **options}, "tasks": tasks or {}}))


def lines(n: int = 40, classes: int = 4) -> list[str]:
    """A table whose values tell the row: a = row, b = 1000 row."""
    return ["a,b,label,who", *(f"{k},{1000 * k},{k % classes},{'ann' if k < n // 2 else 'bob'}" for k in range(n))]


def table(tmp_path: Path, rows: list[str] | None = None, separator: str = "\n") -> Path:
    return write(tmp_path / "own.csv", separator.join(rows or lines()) + separator)


def test_columns_are_standardised(tmp_path: Path) -> None:
    d = load(table(tmp_path), columns=("a", "b"))
    assert (d.name, d.shape, d.class_names) == ("own", (2,), ("0", "1", "2", "3"))
    assert [(len(t.y_train), len(t.y_test)) for t in d.tasks] == [(16, 4), (16, 4)]
    known = d.tasks[0].x_train / 2.0**d.fraction
    assert np.allclose(known.mean(axis=0), 0.0, atol=0.03)
    assert np.allclose(known.std(axis=0), 1.0, atol=0.03)
    # The last rows are held out.
    assert d.tasks[0].x_test.min() > d.tasks[0].x_train.max()


@pytest.mark.parametrize("separator", ["\n", "\r\n", "\n\n"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_other_ways_to_write_a_table(tmp_path: Path, separator: str, delimiter: str) -> None:
    expected = load(table(tmp_path), group="who")
    rows = [line.replace(",", f" {delimiter} ") for line in lines()]
    path = write(tmp_path / "own.csv", "\ufeff" + separator.join(rows))
    found = load(path, group="who")
    assert np.array_equal(found.tasks[1].x_train, expected.tasks[1].x_train)
    assert found.class_names == expected.class_names


def test_classes_in_natural_order(tmp_path: Path) -> None:
    rows = ["x,label", *(f"{k},{(8, 9, 10, 11)[k % 4]}" for k in range(40))]
    assert load(table(tmp_path, rows)).class_names == ("8", "9", "10", "11")
    rows = ["x,kind", *(f'{k},"{("walk, slow", "run")[k % 2]}"' for k in range(40))]
    assert load(table(tmp_path, rows), label="kind").class_names == ("run", "walk, slow")


def test_test_path(tmp_path: Path) -> None:
    train = table(tmp_path, ["a,b,label", *(f"{k},{-k},{k % 2}" for k in range(20))])
    test = write(tmp_path / "test.csv", "label,more,b,a\n0,x,-4,4\n1,x,-5,5\n")
    d = load(train, test_path=test)
    assert np.array_equal(d.tasks[0].x_test, d.tasks[0].x_train[4:6])
    assert d.tasks[0].y_test.tolist() == [0, 1]


def test_groups(tmp_path: Path) -> None:
    d = load(table(tmp_path), group="who", tasks={"by": "group"})
    assert [(t.name, t.classes) for t in d.tasks] == [("ann", (0, 1, 2, 3)), ("bob", (0, 1, 2, 3))]
    assert [(len(t.y_train), len(t.y_test)) for t in d.tasks] == [(16, 4), (16, 4)]


def test_numbers_as_they_are(tmp_path: Path) -> None:
    rows = ["x,y,label", *(f"{k / 64},{-k / 64},{k % 2}" for k in range(40))]
    d = load(table(tmp_path, rows), standardise=False)
    # Classes one after the other.
    assert np.allclose(d.tasks[0].x_train[3] / 2.0**d.fraction, [6 / 64, -6 / 64])
    rows = ["x,y,label", *(f"{k},{255 - k},{k % 2}" for k in range(40))]
    d = load(table(tmp_path, rows), standardise=False)
    assert (d.signed, d.fraction, d.tasks[0].x_train[3].tolist()) == (False, 8, [6, 249])


def recording(tmp_path: Path) -> Path:
    """Two recordings of 60 and 40 steps; the first changes from walk to run after 37 steps."""
    rows = ["t,label,file"]
    rows += [f"{k},{'walk' if k < 37 else 'run'},one" for k in range(60)]
    rows += [f"{100 + k},run,two" for k in range(40)]
    return table(tmp_path, rows)


def values(d: Dataset, x: np.ndarray[Any, Any]) -> list[list[int]]:
    """First and last step of each window; the numbers are 1/256 of the steps."""
    return [[int(v[0]), int(v[-1])] for v in x.reshape(len(x), *d.shape)[:, :, 0]]


def test_windows(tmp_path: Path) -> None:
    d = load(recording(tmp_path), window=10, hop=10, recording="file", standardise=False)
    assert (d.shape, d.class_names) == ((10, 1), ("run", "walk"))
    task = d.tasks[0]
    walk, run = ([values(d, x[y == c]) for x, y in parts] for c, parts in ((1, halves(task)), (0, halves(task))))
    # 37 steps of walking: the last 10 are for testing, 27 give two windows.
    assert walk == [[[0, 9], [10, 19]], [[27, 36]]]
    # 23 steps and 40 steps of running, 10 of each for testing.
    assert run == [[[37, 46], [100, 109], [110, 119], [120, 129]], [[50, 59], [130, 139]]]


def halves(task: Any) -> list[tuple[Any, Any]]:
    return [(task.x_train, task.y_train), (task.x_test, task.y_test)]


def test_windows_do_not_span_recordings(tmp_path: Path) -> None:
    together = load(recording(tmp_path), window=18, hop=1, standardise=False, columns=("t",))
    apart = load(recording(tmp_path), window=18, hop=1, standardise=False, recording="file")
    for d, borders in ((together, (37,)), (apart, (37, 100))):
        for first, last in values(d, np.concatenate([x for x, _ in halves(d.tasks[0])])):
            assert not any(first < border <= last for border in borders)


def test_window_features(tmp_path: Path) -> None:
    d = load(
        recording(tmp_path), window=10, hop=10, columns=("t",), features=("max", "mean_abs_diff"), standardise=False
    )
    assert d.shape == (2,)
    walk = d.tasks[0].x_test[d.tasks[0].y_test == 1] / 2.0**d.fraction
    assert walk.tolist() == [[36, 1]]


def test_windows_of_groups(tmp_path: Path) -> None:
    rows = ["t,label,who", *(f"{k},{k // 20 % 2},{k // 40}" for k in range(120))]
    d = load(table(tmp_path, rows), window=5, group="who", standardise=False, tasks={"by": "group"})
    assert [(t.name, t.classes) for t in d.tasks] == [("0", (0, 1)), ("1", (0, 1)), ("2", (0, 1))]
    assert values(d, d.tasks[1].x_test) == [[55, 59], [75, 79]]


def replaced(number: int, text: str) -> list[str]:
    """A table whose line ``number`` (from 1) is ``text``."""
    rows = lines()
    rows[number - 1] = text
    return rows


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (replaced(7, "1,x12,0,ann"), '{own}:7:2: "x12" is not a number (column b)'),
        (replaced(7, "1,1_000,0,ann"), '{own}:7:2: "1_000" is not a number (column b)'),
        (replaced(40, ",2,0,ann"), "{own}:40:1: a value is missing (column a)"),
        (replaced(3, "1,nan,0,ann"), "{own}:3:2: nan is not a finite number (column b)"),
        (replaced(3, "1,1e999,0,ann"), "{own}:3:2: 1e999 is not a finite number (column b)"),
        (replaced(3, "1,2,,ann"), "{own}:3:3: a value is missing (column label)"),
        (replaced(3, "1,2,0,"), "{own}:3:4: a value is missing (column who)"),
        (replaced(3, ",,,"), "{own}:3:1: a value is missing (column a)"),
        (replaced(3, "1,2,0"), "{own}:3: 3 fields, but the header has 4"),
        (replaced(41, "1,2,0,ann,"), "{own}:41: 5 fields, but the header has 4"),
        (replaced(5, '1,"2,0,ann'), "{own}:5: not CSV (unexpected end of data in a row that begins here: is a quote"),
        (replaced(5, "1,1e39,0,ann"), "{own}:5:2: 1e39 is too large (column b)"),
        (["a;b;label;who", "0,5;2;0;ann"], '{own}:2:1: "0,5" is not a number: decimals need a point (column a)'),
        (["a b label who", "1 2 0 ann"], '{own}:1: no column "label" (data.label); there is only "a b label who"'),
        (["label,a,who", "0,1,ann", "0,2,ann"], "{own} has too few classes: two are needed, there is 0"),
        (replaced(5, '1,"2"3,0,ann'), "{own}:5: not CSV"),
        (replaced(1, "a,a,label,who"), "{own}:1:2: column a is there twice"),
        (replaced(1, ",b,label,who"), "{own}:1:1: a column without a name"),
        (replaced(1, "a,b,class,who"), '{own}:1: no column "label" (data.label); there are a, b, class, who'),
        (replaced(1, "1,2,3,4"), "{own}:1: the first row has numbers only; it has to name the columns"),
        (["label,who"], "{own}:1: no column of numbers beside label, who"),
        (lines()[:1], "{own}: has a header, but no rows"),
        (["", " ", ""], "{own}: is empty"),
        (lines(n=600, classes=300), "{own}: column label has 300 classes; at most 255 are possible"),
    ],
)
def test_errors_name_the_row(tmp_path: Path, rows: list[str], message: str) -> None:
    path = table(tmp_path, rows)
    with pytest.raises(UserError) as caught:
        load(path, group="who")
    assert str(caught.value).startswith(message.format(own=path))


def test_blank_lines_count(tmp_path: Path) -> None:
    path = table(tmp_path, ["", *lines()[:3], "", "x,2,0,ann"])
    with pytest.raises(UserError) as caught:
        load(path, group="who")
    assert str(caught.value).startswith(f'{path}:6:1: "x" is not a number')


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    path = write(tmp_path / "own.csv", b"a,label\n1,caf\xe9\n")
    with pytest.raises(UserError) as caught:
        load(path)
    assert str(caught.value) == f"{path}:2: not UTF-8 text (byte 6 of the row): save it as UTF-8"


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"own\.csv: no such data file"):
        load(tmp_path / "own.csv")
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        load(tmp_path)
    with pytest.raises(UserError, match=r"own\.csv: is empty"):
        load(write(tmp_path / "own.csv", ""))


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ("a,b,label\n1,2,0\n3,4,7\n", '{test}:3:3: class "7" is not in {own}'),
        ("a,label\n1,0\n", '{test}:1: no column "b" (as in {own}); there are a, label'),
        ("a,b,label\n1,2,0\n3,,1\n", "{test}:3:2: a value is missing (column b)"),
    ],
)
def test_errors_in_the_test_table(tmp_path: Path, test: str, message: str) -> None:
    own = table(tmp_path, ["a,b,label", *(f"{k},{-k},{k % 2}" for k in range(20))])
    path = write(tmp_path / "test.csv", test)
    with pytest.raises(UserError) as caught:
        load(own, test_path=path)
    assert str(caught.value) == message.format(own=own, test=path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": ("a", "c")}, ':1: no column "c" (data.columns); there are a, b, label, who'),
        ({"group": "person"}, ':1: no column "person" (data.group); there are a, b, label, who'),
        ({"window": 2, "recording": "file", "group": "who"}, ':1: no column "file" (data.recording)'),
        ({}, ':2:4: "ann" is not a number (column who)'),
        (
            {"window": 9, "group": "who"},
            ": no window of 9 time steps (data.window) fits, for training and for testing; "
            "the longest stretch of one recording, class and group has 1",
        ),
    ],
)
def test_options_that_do_not_fit_the_table(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    path = table(tmp_path)
    with pytest.raises(UserError) as caught:
        load(path, **options)
    assert str(caught.value).startswith(f"{path}{message}")
