# SPDX-License-Identifier: Apache-2.0
"""Runs side by side: which they are, what differs, the page and the command."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sparcl_mcu.generator.pipeline import Project
from sparcl_mcu.host_tools import report, stream, validate
from sparcl_mcu.host_tools.report import compare
from sparcl_mcu.host_tools.report.schema import Instructions
from sparcl_mcu.spec.errors import UserError
from tests.host_tools.fake_board import FakeBoard
from tests.host_tools.report.test_report import EVIL, Checker, named
from tests.host_tools.test_cli import run


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The build folder, with the run tiny/native and a copy of it elsewhere."""
    folder = tmp_path / "build"
    folder.mkdir()
    monkeypatch.setenv("SPARCL_BUILD", str(folder))
    return folder


@pytest.fixture
def first(project: Project, board: FakeBoard, build: Path) -> Path:
    """report.json of a run in the build folder."""
    stream.stream(project, board.url)
    validate.validate(project)[0].save(project.folder / validate.RESULT)
    path, _ = report.write(report.build(project), project)
    folder = build / "tiny" / "native"
    folder.mkdir(parents=True)
    return Path(shutil.copy(path, folder))


@pytest.fixture
def second(first: Path, tmp_path: Path) -> Path:
    """Another one, with other settings and other figures."""
    made = report.Report.model_validate_json(first.read_bytes())
    settings = {name: dict(keys) for name, keys in made.settings.items()}
    settings["sparsity"]["weights"] = 0.9
    counted = Instructions(
        forward=1000, backward=2000, replay_read=1, mask_update=2, journal_write=3, digest=9, training=4000
    )
    other = made.model_copy(
        update={
            "settings": settings,
            "board": "microbit",
            "class_il": made.class_il + 2.5,
            "forgetting": made.forgetting + 1,
            "non_zeros": made.non_zeros - 100,
            "instructions": counted,
            "tasks": made.tasks[:2],
            "accuracy_matrix": [row[:2] for row in made.accuracy_matrix[:2]],
        }
    )
    path = tmp_path / "other.json"
    path.write_text(other.model_dump_json())
    return path


def test_a_run_is_a_file_a_folder_or_a_name(first: Path, build: Path) -> None:
    for name in (str(first), str(first.parent), "tiny/native", "tiny/native/report.json"):
        assert compare.find(name, build) == first


@pytest.mark.parametrize("name", ["tiny", "tiny/microbit", "/no/such/place", "examples/split_digits.toml", "long" * 99])
def test_what_is_no_run(name: str, first: Path, build: Path) -> None:
    with pytest.raises(UserError, match=f"{name} is not a run.*there are tiny/native"):
        compare.find(name, build)


def test_differences(first: Path, second: Path, build: Path) -> None:
    runs = compare.load([str(first), str(second)], build)
    assert [run.letter for run in runs] == ["A", "B"]
    assert {row.name: [cell.text for cell in row.cells] for row in compare.differing(runs)} == {
        "board": ["native", "microbit"],
        "sparsity.weights": ["0.7", "0.9"],
    }
    rows = {row.name: row.cells[1] for row in compare.figures_side_by_side(runs)}
    accuracy = rows["accuracy at the end, %"]
    assert (accuracy.change, accuracy.better) == ("+2.5", True)
    assert (rows["forgetting, points"].change, rows["forgetting, points"].better) == ("+1.0", False)
    assert (rows["weights"].change, rows["weights"].better) == ("\N{MINUS SIGN}100", None)
    assert rows["instructions per sample"] == compare.Cell("4,000"), "nothing to compare with"
    assert rows["RAM, bytes"].change == ""
    assert rows["tasks until the flash is worn"].text == "no end"
    assert rows["bit-exact with the reference"].text == "yes"


def test_the_same_run_differs_in_nothing(first: Path, build: Path) -> None:
    runs = compare.load([str(first), "tiny/native"], build)
    assert compare.differing(runs) == []
    assert not any(cell.change for row in compare.figures_side_by_side(runs) for cell in row.cells)
    assert "None: these are runs of the same experiment" in compare.html(runs)


def test_curves_of_runs_with_other_tasks(first: Path, second: Path, build: Path) -> None:
    plot = compare.accuracy_plot(compare.load([str(first), str(second)], build))
    assert [len(curve.points) for curve in plot.curves] == [3, 2]
    assert [band.name for band in plot.bands] == ["task 1", "task 2", "task 3"]
    same = compare.accuracy_plot(compare.load([str(first), str(first)], build))
    assert [band.name for band in same.bands] == ["0/1", "2/3", "4/5"]


def test_bars_have_one_scale(first: Path, second: Path, build: Path) -> None:
    runs = compare.load([str(first), str(second)], build)
    bars = compare.instruction_bars(runs)
    assert bars is not None
    (_, nothing, text), (_, counted, total) = bars.rows
    assert (text, sum(part.size for part in nothing)) == ("not counted", 0)
    assert (total, sum(part.share for part in counted)) == ("4,000", pytest.approx(100))
    assert compare.instruction_bars(runs[:1]) is None


def test_page_escapes_names(first: Path, tmp_path: Path, build: Path) -> None:
    hostile = named(report.Report.model_validate_json(first.read_bytes()), EVIL)
    path = tmp_path / "<i>.json"
    path.write_text(hostile.model_dump_json())
    page = compare.html(compare.load([str(first), str(path)], build))
    assert page.count("&lt;img src=x") > 4
    assert not re.search("<img|<i>|</style>.*</style>", page, re.DOTALL)


def test_page(first: Path, second: Path, build: Path) -> None:
    page = compare.html(compare.load([str(first), str(second)], build))
    assert not re.search(r"(src|href)\s*=|https?:|url\(|@import|<script", page)
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert checker.ids >= {"settings", "figures", "accuracy", "matrices", "memory", "instructions", "wear"}


def test_command(first: Path, second: Path, build: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("report", "--compare", "tiny/native", str(second), "tiny/native") == 0
    out = capsys.readouterr().out
    assert re.search(r"sparsity\.weights +0\.7 +0\.9 +0\.7\n", out)
    assert re.search(r"accuracy at the end, % .*\(\+2\.5\)", out)
    assert f"{build / 'compare.html'}" in out
    assert (build / "compare.html").read_text().startswith("<!DOCTYPE html>")
    other = build / "side.html"
    assert run("report", "--compare", "tiny/native", str(second), "--output", str(other)) == 0
    assert "2 runs side by side" in other.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "sparcl report EXP.toml"),
        (["a.toml", "b.toml"], "sparcl report --compare A B"),
        (["--compare"], "at least two runs"),
        (["--compare", "tiny/native"], "at least two runs"),
        (["--compare", "tiny/native", "tiny/none"], "tiny/none is not a run"),
        (["--compare", *["tiny/native"] * 27], "at most 26"),
        (["--compare", "tiny/native", "tiny/native", "--seed", "3"], "--set and --seed go with an experiment file"),
        (["--compare", "tiny/native", "tiny/native", "--set", "a.b=1"], "--set and --seed go with an experiment file"),
        (["a.toml", "--output", "x.html"], "--output is for --compare"),
        (["--compare", "tiny/native", "tiny/native", "--output", "/no/such/folder/x.html"], "/no/such/folder"),
    ],
)
def test_mistakes(arguments: list[str], message: str, first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("report", *arguments) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_what_users_named_is_shown_as_it_is(encoding: str, first: Path, second: Path) -> None:
    """No markup, on whatever terminal: the settings hold paths and names from users' files."""
    data = json.loads(second.read_text())
    data["settings"]["data"]["path"] = "[/old]/Größe[bold].npz"
    second.write_text(json.dumps(data))
    done = subprocess.run(
        [sys.executable, "-m", "sparcl_mcu.host_tools.cli", "report", "--compare", "tiny/native", str(second)],
        env=os.environ | {"PYTHONIOENCODING": encoding, "COLUMNS": "200"},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    shown = "[/old]/Größe[bold].npz".encode(encoding, "replace").decode(encoding)
    assert shown in done.stdout.decode(encoding)


@pytest.mark.parametrize("text", ["", "[]", "{}", "no JSON"])
def test_damaged_report(text: str, first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first.write_text(text)
    assert run("report", "--compare", "tiny/native", "tiny/native") == 2
    err = capsys.readouterr().err
    assert str(first) in err
    assert "sparcl report EXP.toml" in err


def test_report_of_an_older_version(first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads(first.read_text())
    settings = data.pop("settings")
    first.write_text(json.dumps(data))
    assert run("report", "--compare", "tiny/native", "tiny/native") == 2
    assert "(settings: Field required): make it again" in capsys.readouterr().err
    first.write_text(json.dumps(data | {"settings": settings | {"data": "digits"}}))
    assert run("report", "--compare", "tiny/native", "tiny/native") == 2
    assert "(settings.data: Input should be an object): make it again" in capsys.readouterr().err
