# SPDX-License-Identifier: Apache-2.0
"""Stages are skipped when nothing has changed, and rerun when their artefact is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparcl_mcu.generator import config, keras_model
from sparcl_mcu.generator.pipeline import generate

EXPERIMENT = """
[data]
set = "digits"
train_per_class = 4
test_per_class = 2
[model]
hidden = [8]
[initial]
train = "none"
[method]
buffer = 4
"""


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("{")], ids=["lost", "damaged"])
@pytest.mark.parametrize("artefact", ["02-data.json", "02-data.npz", "04-quantised.json"])
def test_a_lost_artefact_is_made_anew(
    damage: object, artefact: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARCL_BUILD", str(tmp_path / "build"))
    experiment = tmp_path / "tiny.toml"
    experiment.write_text(EXPERIMENT)
    said: list[str] = []
    first = generate(experiment, "native", progress=said.append)
    said.clear()
    generate(experiment, "native", progress=said.append)
    assert said == []
    assert callable(damage)
    damage(tmp_path / "build" / "tiny" / artefact)
    again = generate(experiment, "native", progress=said.append)
    assert len(said) == 1
    assert again.model.model_hash == first.model.model_hash


def test_an_imported_model_is_read_anew_when_its_file_changes(tmp_path: Path) -> None:
    experiment, module, saved = tmp_path / "own.toml", tmp_path / "net.py", tmp_path / "net.keras"
    for line, file in (('function = "net:build"', module), ('path = "net.keras"', saved)):
        experiment.write_text(f"[model]\n{line}\n")
        file.write_text("one")
        settings = config.load(experiment)
        before = keras_model.fingerprint(settings)
        file.write_text("two")
        assert keras_model.fingerprint(settings) != before
        file.write_text("one")
        assert keras_model.fingerprint(settings) == before
