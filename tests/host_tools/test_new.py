# SPDX-License-Identifier: Apache-2.0
"""`sparcl new`: what it writes is an experiment with samples, and nothing that is there is lost."""

from __future__ import annotations

import os
import runpy
import tomllib
from pathlib import Path

import numpy as np
import pytest

from sparcl_mcu.generator import config, data, pipeline
from sparcl_mcu.host_tools import new
from sparcl_mcu.spec.errors import UserError
from tests.boards.terminal import Terminal
from tests.host_tools.test_cli import run

KINDS = [(d, n) for d in new.DATA for n in new.NETWORKS if (d, n) != ("csv", "conv")]


@pytest.mark.parametrize(("samples", "network"), KINDS)
def test_project_is_complete(samples: str, network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The samples are there, two tasks of two classes or the ten digits; the smallest board has room for it all."""
    folder = tmp_path / "my_project"
    assert run("new", str(folder), "--data", samples, "--network", network) == 0
    settings = config.load(folder / "my_project.toml")
    dataset = data.load(settings)
    assert settings.experiment.name == "my_project"
    assert len(dataset.tasks) == (5 if samples == "digits" else 2)
    assert all(len(np.unique(task.y_train)) == 2 for task in dataset.tasks)
    written = {path.name for path in folder.iterdir()}
    monkeypatch.setenv("SPARCL_BUILD", str(tmp_path / "build"))
    pipeline.generate(folder / "my_project.toml", "microbit", ("initial.train=none",))
    assert {"my_project.toml", "README.md", "platformio.ini", ".gitignore"} <= written
    assert (new.SCRIPT in written) == (samples != "digits")


def test_samples_come_out_the_same_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "table"
    assert run("new", str(folder), "--data", "csv") == 0
    before = (folder / "table.csv").read_bytes()
    (folder / "table.csv").unlink()
    monkeypatch.chdir(folder)
    runpy.run_path(str(folder / new.SCRIPT), run_name="__main__")
    assert (folder / "table.csv").read_bytes() == before


def test_what_is_there_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("precious")
    assert run("new", str(folder)) == 2
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    (tmp_path / "file").write_text("")
    assert run("new", str(tmp_path / "file")) == 2


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("my-project", (), "sparcl new my_project"),
        ("2fast", (), "sparcl new my_2fast"),
        ("bench", (), "sparcl new my_bench"),
        ("a b;c", (), "sparcl new a_b_c"),
        ("fine", ("--data", "parquet"), "choose one of npz, csv"),
        ("fine", ("--network", "lstm"), "choose one of dense, conv"),
        ("fine", ("--data", "csv", "--network", "conv"), "table of features"),
        ("fine", ("--board", "microbt"), "did you mean 'microbit'"),
    ],
)
def test_mistakes(
    name: str, options: tuple[str, ...], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("new", str(tmp_path / name), *options) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / name).exists()


def test_every_board_can_be_chosen(tmp_path: Path) -> None:
    choices = new.choose(tmp_path / "x", "npz", "dense", "microbit")
    assert choices.board == "microbit"
    with pytest.raises(UserError):
        new.choose(tmp_path / "x", "npz", "dense", "nothing")


def test_dialogue(tmp_path: Path) -> None:
    """Somebody at a terminal is asked, and can take what is proposed by Enter."""
    terminal = Terminal(["new", str(tmp_path / "asked")], 80, 24, os.environ)
    terminal.type(b"images\n\nmicrobit\n")
    *_, last = terminal.frames()
    assert terminal.process.returncode == 0, last
    assert "npz/csv/images/digits" in last
    made = tomllib.loads((tmp_path / "asked" / "asked.toml").read_text())
    assert made["data"]["set"] == "images"
    assert made["model"] == {"hidden": [64]}
    assert "--board microbit" in (tmp_path / "asked" / "README.md").read_text()
