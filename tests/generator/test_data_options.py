# SPDX-License-Identifier: Apache-2.0
"""[data] and [tasks] of the experiment file: paths, and options that do not go together."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from sparcl_mcu.generator import config
from sparcl_mcu.spec.errors import UserError


def write(tmp_path: Path, data: str = "", tasks: str = "", rest: str = "") -> Path:
    path = tmp_path / "exp.toml"
    path.write_text(f"[data]\n{data}\n[tasks]\n{tasks}\n{rest}", encoding="utf-8")
    return path


def test_short_forms(tmp_path: Path) -> None:
    c = config.load(write(tmp_path, 'set = "images"\npath = "pictures"\nsize = 12'))
    assert c.data.size == (12, 12)
    assert c.data.path == (tmp_path / "pictures").resolve()
    c = config.load(write(tmp_path, 'set = "watch"\nfeatures = "raw"'))
    assert c.data.features == ("raw",)


def test_paths_are_those_of_the_experiment_file(tmp_path: Path) -> None:
    c = config.load(write(tmp_path, 'set = "csv"\npath = "a.csv"\ntest_path = "../b.csv"'))
    assert (c.data.path, c.data.test_path) == ((tmp_path / "a.csv").resolve(), (tmp_path.parent / "b.csv").resolve())
    c = config.load(write(tmp_path, 'set = "function"\nfunction = "own:load"'))
    assert c.data.path == tmp_path.resolve()


NPZ, CSV = 'set = "npz"\npath = "a"', 'set = "csv"\npath = "a"'


@pytest.mark.parametrize(
    ("data", "tasks", "message"),
    [
        ('set = "csv"', "", '2: data.set = "csv" needs data.path'),
        ('set = "images"', "", '2: data.set = "images" needs data.path'),
        ('set = "function"', "", '2: data.set = "function" needs data.function'),
        ('set = "keras"', "", '2: data.set = "keras" needs data.name'),
        ('set = "function"\nfunction = "load"', "", '3: data.function = "load": write it as "module:name"'),
        ('path = "a"', "", '2: data.path is for data.set = "npz" or "csv" or "images" or "function", but the set is'),
        (f'{NPZ}\ntest_path = "b"', "", '4: data.test_path is for data.set = "csv", but the set is "npz"'),
        (f'{NPZ}\nlabel = "b"', "", '4: data.label is for data.set = "csv"'),
        ('name = "mnist"', "", '2: data.name is for data.set = "keras"'),
        ('set = "digits"\nsize = 8', "", '3: data.size is for data.set = "mnist5k" or "images" or "keras"'),
        ("size = 14", "", '2: data.set = "mnist5k" has data.size = 16 or 28'),
        ("size = [16, 28]", "", '2: data.set = "mnist5k" has data.size = 16 or 28'),
        ("size = 0", "", "2: data.size: entry 1: has to be greater than or equal to 1"),
        ("size = true", "", "2: data.size: entry 1: has to be an integer"),
        ("color = true", "", '2: data.color is for data.set = "images"'),
        ("window = 8", "", '2: data.window is for data.set = "watch" or'),
        ("standardise = true", "", '2: data.standardise is for data.set = "npz" or'),
        ("test_share = 0.1", "", "2: data.test_share is for data.set ="),
        (f'{CSV}\ntest_path = "b"\ntest_share = 0.1', "", "5: data.test_share holds out test samples: leave out"),
        (f"{NPZ}\ntest_per_class = 5\ntest_share = 0.1", "", "5: data.test_share holds out test samples: leave out"),
        ('set = "watch"\ntest_share = 0.1', "", '3: data.test_share: "watch" has test people of its own'),
        (f'{CSV}\ngroup = "label"', "", "4: data.group and data.label are the same column, label"),
        (f'{CSV}\ncolumns = ["a", "a"]', "", "4: data.columns names a twice"),
        (f'{CSV}\ngroup = "a"\ncolumns = ["b", "a"]', "", "5: data.columns names a, which is data.group"),
        (f"{CSV}\nhop = 4", "", "4: data.hop needs data.window"),
        (f'{CSV}\nrecording = "a"', "", "4: data.recording needs data.window"),
        (f'{CSV}\nfeatures = ["std"]', "", "4: data.features needs data.window"),
        (f"{NPZ}\nhop = 4", "", "4: data.hop needs data.window"),
        ('set = "watch"\nfeatures = ["raw", "std"]', "", '3: data.features: "raw" is every value'),
        ('set = "watch"\nfeatures = ["std", "std"]', "", "3: data.features names a feature twice"),
        ('set = "watch"\nfeatures = ["var"]', "", "3: data.features: entry 1: has to be 'raw', 'mean', 'std'"),
        ('set = "watch"\nfeatures = []', "", "3: data.features"),
        ('set = "watch"\nrate = 50.0', "", "3: data.rate is for data.set"),
        (f'{NPZ}\nfeatures = "bands"', "", "4: data.features: bands needs data.rate"),
        ('set = "watch"\nbands = [5.0, 2.0]', "", "3: data.bands have to rise from above 0 to below half of data.rate"),
        ('set = "watch"\nbands = [2.0, 25.0]', "", "3: data.bands have to rise"),
        (f'{NPZ}\nfeatures = "bands"\nrate = 8.0', "", "5: data.bands have to rise"),
        ("", 'by = "group"', '4: tasks.by = "group": data.set = "mnist5k" has no groups'),
        (CSV, 'by = "group"', '5: tasks.by = "group" needs data.group'),
        (NPZ, 'by = "group"\nclasses_per_task = 3', '6: tasks.by = "group" has tasks.groups_per_task, not'),
        (NPZ, 'by = "group"\nsplit = [[1]]\ngroups_per_task = 2', "7: tasks.split replaces tasks.groups_per_task"),
        (NPZ, 'by = "group"\nsplit = [[1], [1]]', "6: tasks.split names group 1 more than once"),
        (NPZ, 'by = "group"\nsplit = [[1], []]', "6: tasks.split has no tasks, or a task without groups"),
        (NPZ, 'by = "group"\n[initial]\ntrain = "base"', "7: classes that the model ships with need tasks.by"),
        (NPZ, 'by = "group"\n[initial]\nbase_classes = [1]', "7: classes that the model ships with need tasks.by"),
        (NPZ, "groups_per_task = 2", '5: tasks.groups_per_task needs tasks.by = "group"'),
    ],
)
def test_options_that_do_not_go_together(tmp_path: Path, data: str, tasks: str, message: str) -> None:
    path = write(tmp_path, data, tasks)
    with pytest.raises(UserError) as caught:
        config.load(path)
    assert str(caught.value).startswith(f"{path}:{message}")


def test_the_examples_of_the_page_about_data(tmp_path: Path) -> None:
    """Each block of docs/reference/data.md that begins a file is one."""
    text = (Path(__file__).parents[2] / "docs" / "reference" / "data.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^(?:    .*)?\n)+", text, re.MULTILINE)
    files = [textwrap.dedent(block) for block in blocks if block.lstrip().startswith("[data]")]
    assert len(files) == 6
    for content in files:
        (tmp_path / "example.toml").write_text(content, encoding="utf-8")
        config.load(tmp_path / "example.toml")


def test_a_wrong_name_of_a_class_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text("[tasks]\nsplit = [[0, 1.5], [2]]\n")
    with pytest.raises(UserError) as caught:
        config.load(path)
    assert str(caught.value).startswith(f"{path}:2: tasks.split: entry 1: has to be a name or a whole number, not 1.5")
    assert "\n" not in str(caught.value)


def test_a_list_with_a_wrong_entry_is_not_too_short_as_well(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text('[data]\nset = "csv"\npath = "a.csv"\nwindow = 5\nfeatures = ["median"]\n')
    with pytest.raises(UserError, match=r"features: entry 1: has to be 'raw'") as caught:
        config.load(path)
    assert "\n" not in str(caught.value)
