# SPDX-License-Identifier: Apache-2.0
"""No command imports what it does not need: TensorFlow takes seconds, and is needed only to train or import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparcl_mcu.generator import pipeline, train
from sparcl_mcu.host_tools import cli
from tests.host_tools.fake_board import FakeBoard

NEVER = {"tensorflow", "keras", "matplotlib", "scipy", "sklearn", "pandas"}
"""Not even to read what their packages hold."""
SLOW = NEVER | {
    "numpy",
    "jinja2",
    "serial",
    "PIL",
    "platformio",
    "sparcl_mcu.benchmarks.bench",
    "sparcl_mcu.benchmarks.sweep",
}
"""Not to print a text."""

SCRIPT = """
import json, sys
from sparcl_mcu.host_tools import cli
lines, slow = json.loads(sys.argv[1])
for line in lines:
    try:
        cli.main(line)
    except SystemExit as end:
        found = sorted(set(slow) & set(sys.modules))
        print(json.dumps([line[0], end.code, found]), file=sys.stderr)
"""


def imported(lines: list[list[str]], slow: set[str], build: Path) -> list[list[object]]:
    """Run commands in one new process; of each its name, its exit status and what of ``slow`` is imported by then."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps([lines, sorted(slow)])],
        env=os.environ | {"SPARCL_BUILD": str(build)},
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_help_and_boards(tmp_path: Path) -> None:
    names = sorted(name for name, _ in cli.found())
    assert {"generate", "run"} <= set(names)
    lines = [[name, "--help"] for name in names] + [["boards"]]
    assert imported(lines, SLOW, tmp_path) == [[line[0], 0, []] for line in lines]


@pytest.mark.parametrize("trained", ["none", "first_task"])
def test_stages_after_training(trained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The initial model is random, or was trained by an earlier command."""
    experiment = tmp_path / "tiny.toml"
    experiment.write_text(
        '[data]\nset = "digits"\ntrain_per_class = 8\ntest_per_class = 4\n[tasks]\nsplit = [[0, 1], [2, 3]]\n'
        f'[model]\nhidden = [8]\n[initial]\ntrain = "{trained}"\n[method]\nepochs = 1\nbuffer = 4\n'
    )
    build = tmp_path / "build"
    monkeypatch.setenv("SPARCL_BUILD", str(build))
    with monkeypatch.context() as patch:
        # What Keras would do is left out here, and cannot be done again without importing it.
        patch.setattr(train, "_fit", lambda _config, _dataset, _known, _shape, layers, _fixed: layers)
        project = pipeline.generate(experiment, "native")
    if trained == "none":
        for path in project.folder.parent.glob("0*.inputs"):
            path.unlink()
    with FakeBoard(project.model) as board:
        name = str(experiment)
        lines = [["generate", name], ["stream", name, "--port", board.url], ["validate", name], ["report", name]]
        assert imported(lines, NEVER, build) == [[line[0], 0, []] for line in lines]
