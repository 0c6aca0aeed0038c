# SPDX-License-Identifier: Apache-2.0
"""One process at a time in a build folder."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from sparcl_mcu.generator import lock
from sparcl_mcu.generator.pipeline import generate
from sparcl_mcu.host_tools import cli
from sparcl_mcu.spec.errors import UserError
from tests.generator.test_pipeline import EXPERIMENT
from tests.holder import other_process


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An experiment that is quick to generate, and not generated yet."""
    monkeypatch.setenv("SPARCL_BUILD", str(tmp_path / "build"))
    path = tmp_path / "tiny.toml"
    path.write_text(EXPERIMENT)
    return path


@pytest.mark.parametrize("command", ["generate", "build", "flash", "stream", "validate", "report", "run"])
def test_a_second_run_says_at_once_who_is_there(
    experiment: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing of the other run is touched, whatever the second one was to do."""
    folder = experiment.parent / "build" / "tiny" / "native"
    folder.mkdir(parents=True)
    with other_process(folder, "run", "tiny.toml", "--seed", "7") as other:
        before = sorted(path.name for path in experiment.parent.rglob("*"))
        with pytest.raises(SystemExit) as caught:
            cli.main([command, str(experiment)])
        assert caught.value.code == 2
        assert sorted(path.name for path in experiment.parent.rglob("*")) == before
    said = capsys.readouterr().err
    assert f"in use by process {other.pid} (`-c run tiny.toml --seed 7`, since 20" in said
    assert "SPARCL_BUILD" in said


def test_the_lock_ends_with_its_process_however_that_ends(tmp_path: Path) -> None:
    with other_process(tmp_path) as other:
        with pytest.raises(UserError):
            lock.alone(tmp_path).__enter__()
        other.kill()
        other.wait()
        with lock.alone(tmp_path):
            assert json.loads((tmp_path / lock.HOLDER).read_text())["pid"] == os.getpid()


def test_the_lock_ends_with_the_command(experiment: Path) -> None:
    """Also with one that fails."""
    for arguments, status in ((["generate", str(experiment)], 0), (["report", str(experiment)], 2)):
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        assert caught.value.code == status
        with other_process(experiment.parent / "build" / "tiny" / "native"):
            pass


def test_within_a_process_a_folder_may_be_locked_again(tmp_path: Path) -> None:
    with lock.alone(tmp_path):
        with lock.alone(tmp_path), lock.in_turn(tmp_path, pytest.fail):
            pass
        thread = threading.Thread(target=lambda: lock.alone(tmp_path).__enter__())
        thread.start()
        thread.join()


def test_boards_of_an_experiment_are_generated_in_turn(experiment: Path) -> None:
    """What they share is not written by two at a time; the second waits, and is told for whom."""
    shared = experiment.parent / "build" / "tiny"
    shared.mkdir(parents=True)
    said: list[str] = []
    with other_process(shared) as other:

        def say(text: str) -> None:
            said.append(text)
            if len(said) == 1:
                assert list(shared.glob("0*")) == []
                other.kill()

        project = generate(experiment, "native", progress=say)
    assert f"waiting for process {other.pid} " in said[0]
    assert project.generated.is_dir()


@pytest.mark.parametrize(
    "holder", ["", "{", "[]", '{"pid": "x"}', '{"pid": 1, "command": "a\\u001b[31m", "since": "now"}']
)
def test_what_says_who_is_there_may_be_damaged(tmp_path: Path, holder: str) -> None:
    with other_process(tmp_path):
        (tmp_path / lock.HOLDER).write_text(holder)
        with pytest.raises(UserError, match=r"another process|process 1 \(`a \[31m`, since now\)"):
            lock.alone(tmp_path).__enter__()
