# SPDX-License-Identifier: Apache-2.0
"""Every file in examples/, cut short, through the whole of `sparcl run`.

The command's function runs in this process, so that TensorFlow starts once for all of them.
"""

from __future__ import annotations

import json
import runpy
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparcl_mcu.generator import pipeline
from sparcl_mcu.generator.pipeline import Project
from sparcl_mcu.host_tools.commands.run import run as run_command
from sparcl_mcu.host_tools.image import measure
from sparcl_mcu.host_tools.stream import FINAL, RESULT, StreamResult, stream
from sparcl_mcu.spec.paths import ROOT
from tests.boards.test_end_to_end import require
from tests.host_tools.fake_board import FakeBoard

pytestmark = [pytest.mark.board, pytest.mark.tensorflow]

EXAMPLES = ROOT / "examples"
FEW = ("data.train_per_class=4", "data.test_per_class=2")
SHORT = ("method.epochs=1", "method.buffer=8", "initial.epochs=1")

FEW_WINDOWS = ("data.train_per_class=6", "data.test_per_class=3")
"""Of seven exercises that are learned two or three at a time."""

PLACES: dict[str, tuple[str, tuple[str, ...]]] = {
    "cnn_watch": ("native", FEW_WINDOWS),
    "split_digits": ("native", FEW),
    "split_mnist": ("native", FEW),
    "split_mnist_dense": ("native", FEW),
    "split_mnist_paper": ("native", ("data.train_per_class=16", "data.test_per_class=2", "method.epochs=2")),
    "split_mnist_released": ("native", ("data.train_per_class=16", "data.test_per_class=2", "method.epochs=2")),
    "watch": ("native", FEW_WINDOWS),
    "watch_by_person": ("native", FEW_WINDOWS),
}
"""Board and settings of the examples that have no test of their own."""

OWN_TESTS = {"cnn_mnist", "latent_replay", "own_data"}


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The build folder of a test."""
    folder = tmp_path / "build"
    monkeypatch.setenv("SPARCL_BUILD", str(folder))
    return folder


def run(experiment: Path, board: str, settings: Sequence[str]) -> Project:
    """`sparcl run EXPERIMENT --board BOARD --set ...`, which raises unless every bit is right; the project."""
    require(board)
    settings = (*SHORT, *settings)
    with pytest.MonkeyPatch.context() as patch:
        if board == "native":
            patch.setenv("SCL_EXTRA_CFLAGS", "-O0")
        run_command(experiment, board=board, plain=True, overrides=list(settings))
    project = pipeline.generate(experiment, board, settings)
    report = report_of(project)
    assert report["bit_exact"] is True
    assert report["mismatches"] == 0
    assert report["steps"] == report["steps_compared"] > 0
    return project


def learnt(experiment: Path, settings: Sequence[str]) -> Project:
    """The project, taught to a board that the reference plays."""
    project = pipeline.generate(experiment, "native", (*SHORT, *settings))
    with FakeBoard(project.model) as board:
        stream(project, board.url)
    return project


def report_of(project: Project) -> dict[str, Any]:
    """The last report."""
    report: dict[str, Any] = json.loads((project.folder / "report.json").read_text())
    return report


def test_every_example_has_a_test() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.toml")} == PLACES.keys() | OWN_TESTS


@pytest.mark.parametrize("name", PLACES)
def test_example(name: str, build: Path) -> None:
    """Runs, bit for bit as the reference."""
    board, settings = PLACES[name]
    run(EXAMPLES / f"{name}.toml", board, settings)


@pytest.mark.parametrize(
    "boards",
    [("emcraft_sf2", "ast1030_evb"), pytest.param(("native", "mps3_an547"), marks=pytest.mark.slow)],
    ids=lambda names: " ".join(names),
)
def test_cnn_mnist_is_the_same_on_every_board(boards: tuple[str, ...], build: Path) -> None:
    """The state that it ends in; and the images are as large as planned."""
    projects = [run(EXAMPLES / "cnn_mnist.toml", board, FEW) for board in boards]
    assert len({report_of(project)["state_digest"] for project in projects}) == 1
    for project in projects:
        if project.board.name in ("emcraft_sf2", "ast1030_evb"):
            check_sizes(project)


def check_sizes(project: Project) -> None:
    """What was linked is what was planned: never more RAM, and little less; the code is an estimate."""
    plan = project.plan
    linked = measure(project.image, plan)
    unused = plan.ram_bytes - sum(linked.ram.values())
    assert 0 <= unused <= 400
    planned = {row.name: row.size for row in plan.flash}
    assert linked.flash["initial model"] == planned["initial model"]
    assert planned["engine code"] / 2 < linked.flash["engine code"] <= planned["engine code"]


def test_cnn_mnist_needs_little_ram(build: Path) -> None:
    """With its own settings, the stack included; a model that is not trained is as large."""
    project = pipeline.generate(EXAMPLES / "cnn_mnist.toml", "emcraft_sf2", ['initial.train="none"'])
    assert project.plan.ram_bytes <= 56 * 1024


def test_latent_replay_learns_what_replay_learns(build: Path) -> None:
    """Whether the frozen layers run once for each sample or each time it is looked at: the same weights, the
    same accuracies.  The second is learned by the reference, as the first was."""
    experiment = EXAMPLES / "latent_replay.toml"
    results = []
    for latent in ("true", "false"):
        settings = (*FEW, f"model.latent={latent}")
        project = run(experiment, "native", settings) if latent == "true" else learnt(experiment, settings)
        assert project.model.latent_stored is (latent == "true")
        with np.load(project.folder / FINAL) as regions:
            weights = {name: regions[name].tobytes() for name in regions if name.startswith("layer")}
        results.append((weights, StreamResult.load(project.folder / RESULT).scores))
    assert any("panel" in name for name in results[0][0])
    assert results[0] == results[1]


def test_own_data(build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script, and the file that reads what it wrote."""
    monkeypatch.setattr("sys.argv", ["own_data.py", str(tmp_path)])
    runpy.run_path(str(EXAMPLES / "own_data.py"), run_name="__main__")
    shutil.copy(EXAMPLES / "own_data.toml", tmp_path)
    run(tmp_path / "own_data.toml", "native", FEW)
