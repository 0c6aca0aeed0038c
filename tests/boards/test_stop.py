# SPDX-License-Identifier: Apache-2.0
"""`sparcl stop` ends what `sparcl flash` and PlatformIO's upload started, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparcl_mcu.host_tools import emulator
from sparcl_mcu.host_tools.emulator import Emulator
from tests.boards.test_end_to_end import Sparcl, new
from tests.host_tools.test_cli import run

pytestmark = pytest.mark.board


def test_stops_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    sparcl: Sparcl = new(tmp_path)
    monkeypatch.setenv("SPARCL_BUILD", str(sparcl.folder))
    sparcl.boot("native", monkeypatch)
    flashed = sparcl.emulator("native")
    uploaded = Emulator(emulator.default_state_dir("native"), "native")
    uploaded.start(flashed.image_path)
    other = tmp_path / "other.toml"
    other.write_text(sparcl.experiment.read_text())
    try:
        for arguments in ([str(other)], ["--board", "microbit"]):
            assert run("stop", *arguments) == 0
            assert capsys.readouterr().out == "no emulated board runs\n"
        assert flashed.is_running()
        assert run("stop", str(sparcl.experiment)) == 0
        assert capsys.readouterr().out == f"stopped native ({flashed.state_dir})\n"
        assert not flashed.is_running()
        assert uploaded.is_running()

        assert emulator.main(["--board", "native", "--state-dir", str(flashed.state_dir), "stop"]) == 0
        assert "nothing runs in" in capsys.readouterr().out
        assert run("stop") == 0
        assert capsys.readouterr().out == f"stopped native ({uploaded.state_dir})\n"
        assert not uploaded.is_running()
    finally:
        flashed.stop()
        uploaded.stop()
