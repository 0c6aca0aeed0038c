# SPDX-License-Identifier: Apache-2.0
"""profile.json: what `sparcl bench EXP.toml` hands on to the report."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sparcl_mcu.benchmarks import profile
from sparcl_mcu.benchmarks.cases import EXPERIMENTS
from sparcl_mcu.generator.pipeline import generate
from sparcl_mcu.host_tools.emulator import unavailable
from sparcl_mcu.host_tools.report import profile as results
from sparcl_mcu.spec.errors import UserError

MODEL = "0123456789abcdef"
COUNTS = {"l0_forward": 6000, "l1_forward": 2500, "l0_backward": 1400, "main": 99, "tiny": 1}


def test_figures_are_those_of_a_step() -> None:
    found = profile.reduced(MODEL, COUNTS, 10)
    assert found.instructions == 1000
    assert found.layers == {"l0": {"forward": 600, "backward": 140}, "l1": {"forward": 250}}
    assert list(found.functions.items()) == [
        *(("l0_forward", 600), ("l1_forward", 250), ("l0_backward", 140), ("main", 9.9))
    ], "the largest first, and none below a thousandth"


def test_only_the_counts_of_the_same_model_are_shown(tmp_path: Path) -> None:
    assert results.load(tmp_path, MODEL) is None
    found = profile.reduced(MODEL, COUNTS, 10)
    assert found.save(tmp_path) == tmp_path / "profile.json"
    assert results.load(tmp_path, MODEL) == found
    assert results.load(tmp_path, MODEL[::-1]) is None


@pytest.mark.parametrize("text", ["", "{}", "null", '{"format": 2}'])
def test_damaged(text: str, tmp_path: Path) -> None:
    (tmp_path / results.RESULT).write_text(text)
    with pytest.raises(UserError, match=r"profile\.json.*sparcl bench"):
        results.load(tmp_path, MODEL)


@pytest.mark.board
@pytest.mark.skipif(unavailable("microbit") is not None, reason="needs QEMU")
@pytest.mark.skipif(shutil.which("arm-none-eabi-gcc") is None, reason="needs arm-none-eabi-gcc")
def test_layers_are_most_of_a_step_on_a_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARCL_BUILD", str(tmp_path))
    small = ("model.hidden=[16]", "data.train_per_class=8", "initial.train=none")
    project = generate(EXPERIMENTS / "digits.toml", "microbit", small, 0)
    found = profile.measure(project, lambda _text: None)
    assert found.steps == len(project.dataset.tasks[0].y_train)
    assert found.model_hash == project.model.model_hash.hex()
    assert set(found.layers) == {"l0", "l1"}
    of_layers = sum(sum(passes.values()) for passes in found.layers.values())
    assert 0.5 * found.instructions < of_layers < found.instructions
