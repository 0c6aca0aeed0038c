# SPDX-License-Identifier: Apache-2.0
"""The command line: exit statuses, messages, the whole chain with a fake board."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from sparcl_mcu import generator
from sparcl_mcu.generator import pipeline
from sparcl_mcu.generator.pipeline import Project
from sparcl_mcu.host_tools import cli, failures, platformio
from sparcl_mcu.spec.errors import BoardError, UserError, ValidationFailed
from tests.host_tools.fake_board import FakeBoard


def run(*arguments: str) -> int:
    """Run the command; its exit status."""
    with pytest.raises(SystemExit) as caught:
        cli.main(list(arguments))
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.fixture
def pio(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What PlatformIO would have been called with."""
    calls: list[list[str]] = []
    monkeypatch.setattr(platformio, "run_pio", lambda arguments, *_args, **_kwargs: calls.append(arguments))
    return calls


@pytest.fixture
def generated(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Every command finds the small project generated."""
    monkeypatch.setattr(pipeline, "generate", lambda *_args, **_kwargs: project)
    return project


def test_help_imports_little_and_teaches() -> None:
    """Help has to come at once: nothing that is slow to import is."""
    code = (
        "import sys; from sparcl_mcu.host_tools import cli\n"
        "try: cli.main(['--help'])\n"
        "finally: print(sorted({'numpy', 'tensorflow', 'jinja2', 'pydantic'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "sparcl run my_project.toml -b microbit" in done.stdout


def test_help_fits_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """80 columns: neither a summary nor an example is cut."""
    monkeypatch.setenv("COLUMNS", "80")
    names = sorted(name for name, _ in cli.found())
    for arguments in ([], *([name] for name in names)):
        assert run(*arguments, "--help") == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line for line in lines if len(line) > 80 or re.search(r"\w\.\.\.$", line)] == []


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"sparcl-mcu {generator.__version__}\n"


def test_completion_of_the_shell() -> None:
    """As the shell asks; the script for it is printed by --show-completion."""
    environment = os.environ | {"_SPARCL_COMPLETE": "complete_bash", "COMP_WORDS": "sparcl ge", "COMP_CWORD": "1"}
    command = [Path(sys.executable).parent / "sparcl"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["generate"]


@pytest.mark.parametrize("command", ["generate", "build", "flash", "stream", "validate", "report", "run"])
def test_every_command_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    out = capsys.readouterr().out
    assert f"Example: sparcl {command} " in out
    for option in ("--board", "--set", "--seed"):
        assert option in out


def test_boards(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("boards") == 0
    out = capsys.readouterr().out
    assert "native" in out
    assert "microbit" in out
    assert "emulated" in out


@pytest.mark.parametrize(
    "arguments",
    [["no-such-command"], ["run"], ["run", "x.toml", "--no-such-option"], ["run", "x.toml", "--seed", "one"]],
)
def test_mistakes_on_the_command_line(arguments: list[str]) -> None:
    assert run(*arguments) == 2


def test_missing_experiment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", str(tmp_path / "none.toml")) == 2
    err = capsys.readouterr().err
    assert "none.toml" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("error", "status"),
    [(UserError("a"), 2), (BoardError("a"), 1), (ValidationFailed("a"), 1), (KeyboardInterrupt(), 130)],
)
def test_exit_status(
    error: BaseException, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise error

    monkeypatch.setattr(pipeline, "generate", fail)
    assert run("report", "x.toml") == status
    assert "Traceback" not in capsys.readouterr().err


def test_unexpected_error_is_written_to_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(pipeline, "generate", fail)
    monkeypatch.setattr(failures.log, "folder", tmp_path / "build")
    assert run("report", "x.toml") == 1
    err = capsys.readouterr().err
    assert "ZeroDivisionError: oh" in err
    assert "Traceback" not in err
    assert "Traceback" in (tmp_path / "build" / "error.log").read_text()


def test_a_folder_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = tmp_path / "tiny.toml"
    experiment.write_text('[data]\nset = "digits"\n')
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPARCL_BUILD", str(tmp_path / "file"))
    assert run("generate", str(experiment)) == 2
    assert "SPARCL_BUILD" in capsys.readouterr().err

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/somewhere/report.json")

    monkeypatch.setattr(pipeline, "generate", refuse)
    assert run("report", str(experiment)) == 2
    err = capsys.readouterr().err
    assert "/somewhere/report.json: Permission denied" in err
    assert "bug" not in err


def test_the_log_of_an_error_goes_elsewhere_when_its_folder_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise ZeroDivisionError("oh")

    (tmp_path / "file").write_text("")
    monkeypatch.setattr(pipeline, "generate", fail)
    monkeypatch.setattr(failures.log, "folder", tmp_path / "file")
    monkeypatch.setattr(failures.tempfile, "gettempdir", lambda: str(tmp_path))
    assert run("report", "x.toml") == 1
    assert str(tmp_path / "sparcl-error.log") in capsys.readouterr().err
    assert "Traceback" in (tmp_path / "sparcl-error.log").read_text()


def test_hints_can_be_pasted(generated: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("stream", "my tiny.toml", "--set", "data.path=a b") == 2
    assert "sparcl flash 'my tiny.toml' --board native --set 'data.path=a b'`" in capsys.readouterr().err
    with FakeBoard(generated.model) as board:
        board.model_hash = bytes(8)
        assert run("stream", "my tiny.toml", "--seed", "4", "--port", board.url) == 2
    assert "`sparcl flash 'my tiny.toml' --board native --seed 4`" in capsys.readouterr().err


def test_chain_with_a_board_at_a_port(
    generated: Project, pio: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeBoard(generated.model) as board:
        assert run("run", "tiny.toml", "--port", board.url) == 0
        out = capsys.readouterr().out
        assert "bit-exact with the NumPy reference" in out
        assert f"({board.device.step} steps)" in out
        assert pio == [["run", "-e", "native", "-t", "upload", "--upload-port", board.url]]
        report = json.loads((generated.folder / "report.json").read_text())
        assert report["bit_exact"] is True
        # a second time: the board has learned something, and nobody asked to forget it
        assert run("run", "tiny.toml", "--port", board.url) == 2
        assert "--fresh" in capsys.readouterr().err
        assert run("run", "tiny.toml", "--port", board.url, "--fresh", "--plain") == 0
        assert "after task" in capsys.readouterr().out
    assert run("validate", "tiny.toml", "--plain") == 0
    assert run("report", "tiny.toml") == 0


def test_difference_fails_the_run_but_is_reported(
    generated: Project, pio: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeBoard(generated.model) as board:
        board.alter = lambda command, data: data[:-1] + bytes([data[-1] ^ 1]) if command == 4 else data
        assert run("run", "tiny.toml", "--port", board.url) == 1
        err = capsys.readouterr().err
        assert "rolling digest" in err
        assert json.loads((generated.folder / "report.json").read_text())["bit_exact"] is False
        assert "step" in err
        # with a port to ask, validate repeats the session there
        board.alter = lambda _command, data: data
        assert run("validate", "tiny.toml", "--port", board.url) == 1
        assert "now agree" in capsys.readouterr().err


def test_resume_and_fresh_exclude_each_other(generated: Project) -> None:
    with FakeBoard(generated.model) as board:
        assert run("stream", "tiny.toml", "--port", board.url, "--resume", "--fresh") == 2


def test_nothing_to_talk_to(generated: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("stream", "tiny.toml", "--seed", "4", "--set", "ddr.rho=0.2") == 2
    assert "sparcl flash tiny.toml --board native --set ddr.rho=0.2 --seed 4" in capsys.readouterr().err


def test_validate_and_report_without_session(generated: Project) -> None:
    assert run("validate", "tiny.toml") == 2
    assert run("report", "tiny.toml") == 2


def test_interrupted_stream_says_how_to_go_on(
    generated: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sparcl_mcu.host_tools import stream

    def interrupt(*_args: object, **_kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stream._Session, "_learn", interrupt)
    with FakeBoard(generated.model) as board:
        assert run("stream", "tiny.toml", "--port", board.url) == 130
        assert "--resume" in capsys.readouterr().err
        monkeypatch.undo()


def test_failed_build_shows_the_error(
    generated: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise platformio.PioError("`pio run` failed:", 1, ["x.c:1: error: no"], "everything")

    monkeypatch.setattr(platformio, "run_pio", fail)
    assert run("build", "tiny.toml") == 1
    assert "x.c:1: error: no" in capsys.readouterr().err
    assert (generated.folder / "pio.log").read_text() == "everything"


def test_only_a_named_port_is_flashed(
    generated: Project, pio: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    real = replace(generated, board=replace(generated.board, emulator=None))
    monkeypatch.setattr(pipeline, "generate", lambda *_args, **_kwargs: real)
    assert run("flash", "tiny.toml") == 2
    assert "--port" in capsys.readouterr().err
    assert pio == []


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("run", "sparcl_mcu.benchmarks.commands.bench:bench", "adds the command run, which is there already"),
        ("other", "no_such_module:other", r"does not work \(No module named 'no_such_module'\)"),
        ("other", "sparcl_mcu.benchmarks.commands.bench:other", "does not work .*has no attribute 'other'"),
    ],
)
def test_a_command_of_another_package_that_cannot_be_one(
    name: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The package is named, no traceback."""
    monkeypatch.setattr(cli, "entry_points", lambda group: [EntryPoint(name, value, group)])
    assert run("boards") == 2
    told = capsys.readouterr().err
    assert re.search(says, told)
    assert value in told
