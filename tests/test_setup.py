# SPDX-License-Identifier: Apache-2.0
"""tools/setup.py: what it says while pip and apt work, and where it cannot continue."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[1] / "tools"
sys.path.insert(0, str(TOOLS))
import progress  # noqa: E402

import setup  # noqa: E402

sys.path.remove(str(TOOLS))

# Where an index has no metadata apart from the packages, and some packages lie on the disk.
ONE_BY_ONE = """\
Looking in indexes: https://pypi.org/simple
Processing /opt/files/keras-3.15.1-py3-none-any.whl (from sparcl-mcu==1.0)
Collecting scikit-learn>=1.4 (from sparcl-mcu==1.0)
  Downloading scikit_learn-1.9.1-cp313-cp313-manylinux_2_28_x86_64.whl (9.1 MB)
Progress 0 of 9121732
Progress 2621732 of 9121732
"""
METADATA_FIRST = """\
Collecting tensorflow<3,>=2.16 (from sparcl-mcu==1.0)
  Downloading tensorflow-2.21.0-cp313-cp313-manylinux_2_27_x86_64.whl.metadata (4.5 kB)
Collecting numpy<3,>=1.26 (from sparcl-mcu==1.0)
  Using cached numpy-2.5.5-cp313-cp313-manylinux_2_28_x86_64.whl.metadata (6 kB)
Using cached numpy-2.5.5-cp313-cp313-manylinux_2_28_x86_64.whl (15.7 MB)
Downloading tensorflow-2.21.0-cp313-cp313-manylinux_2_27_x86_64.whl (271.9 MB)
"""
APT = """\
The following NEW packages will be installed:
  gcc-arm-none-eabi libfoo1
0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded.
Get:1 http://deb.debian.org/debian trixie/main amd64 libfoo1 amd64 1.2-3 [12.3 kB]
Get:2 http://deb.debian.org/debian trixie/main amd64 gcc-arm-none-eabi amd64 15:14.2.rel1-1 [45.1 MB]
"""


def after(watched: progress.Progress, text: str) -> str:
    for line in text.splitlines(keepends=True):
        watched.take(line)
    return str(watched)


def test_pip_says_what_is_fetched_and_how_much_is_left() -> None:
    one_by_one = progress.PipProgress(lambda: None)
    assert after(one_by_one, ONE_BY_ONE) == "fetching scikit_learn 1.9.1 (9.1 MB), package 2, 6.5 MB left"
    assert after(one_by_one, "Processing /opt/files/rich-15.0.0-py3-none-any.whl\n") == "looking up rich, package 3"

    first = progress.PipProgress(lambda: None)
    lines = METADATA_FIRST.splitlines(keepends=True)
    assert after(first, "".join(lines[:3])) == "looking up numpy, package 2"
    assert after(first, "".join(lines[3:5])) == "fetching numpy 2.5.5 (15.7 MB), 1 of 2 packages"
    assert after(first, lines[5]) == "fetching tensorflow 2.21.0 (271.9 MB), 2 of 2 packages"


def test_pip_says_what_is_left_to_install(tmp_path: Path) -> None:
    pip = progress.PipProgress(lambda: tmp_path)
    pip.take("Installing collected packages: MarkupSafe, typing-extensions, scikit-learn\n")
    assert str(pip) == "installing 3 packages, 3 left, now markupsafe"
    (tmp_path / "markupsafe-3.0.4.dist-info").mkdir()
    (tmp_path / "typing_extensions-4.16.0.dist-info").mkdir()
    assert str(pip) == "installing 3 packages, 1 left, now scikit-learn"
    (tmp_path / "scikit_learn-1.9.1.dist-info").mkdir()
    assert str(pip) == "installing 3 packages, 0 left"


def test_apt_says_what_is_fetched_and_set_up() -> None:
    apt = progress.AptProgress()
    assert after(apt, APT) == "fetching gcc-arm-none-eabi, 2 of 2 packages"
    assert after(apt, "Unpacking libfoo1:amd64 (1.2-3) ...\n") == "unpacking libfoo1, 1 of 2 packages"
    assert after(apt, "Setting up libfoo1:amd64 (1.2-3) ...\n") == "setting up libfoo1, 1 of 2 packages"


def test_real_pip_is_understood(tmp_path: Path) -> None:
    """Whatever pip this environment has: a wheel made here, without an index."""
    with zipfile.ZipFile(tmp_path / "tiny-1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny-1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.2\n")
        wheel.writestr("tiny-1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("tiny-1.2.dist-info/RECORD", "")
    pip = [sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check"]
    there = tmp_path / "there"
    seen: list[str] = []

    class Watched(progress.PipProgress):
        def take(self, line: str) -> None:
            super().take(line)
            seen.append(str(self))

    options = ["install", "--no-index", "--find-links", str(tmp_path), "--target", str(there), "tiny"]
    assert setup.run_logged([*pip, *options], tmp_path / "log", Watched(lambda: there)) == 0, seen
    assert "looking up tiny, package 1" in seen
    assert "installing 1 packages, 1 left, now tiny" in seen
    assert "Successfully installed tiny-1.2" in (tmp_path / "log").read_text()


def test_progress_is_said_while_a_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(setup, "PROGRESS_SECONDS", 0)
    script = "import sys; sys.stdout.write(sys.argv[1]); sys.exit(3)"
    command = [sys.executable, "-c", script, METADATA_FIRST]
    assert setup.run_logged(command, tmp_path / "log", progress.PipProgress(lambda: None)) == 3
    assert "... fetching tensorflow 2.21.0 (271.9 MB), 2 of 2 packages (" in capsys.readouterr().err
    assert METADATA_FIRST in (tmp_path / "log").read_text()


def test_an_old_python_is_told_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """The script has to be read by it, so nothing of it may need a newer one."""
    for path in (TOOLS / "setup.py", TOOLS / "progress.py"):
        compile_as_39 = f"import ast; ast.parse(open({str(path)!r}).read(), feature_version=(3, 9))"
        subprocess.run([sys.executable, "-c", compile_as_39], check=True)
    monkeypatch.setattr(setup, "MIN_PYTHON", (3, 99))
    monkeypatch.setattr(sys, "argv", ["setup.py"])
    said: list[str] = []
    monkeypatch.setattr(setup, "say", said.append)
    assert setup.main() == 1
    assert "sudo apt install python3.11 python3.11-venv" in said[0]
    assert f"this is 3.{sys.version_info[1]}" in said[0]


def test_the_demo_takes_native_where_qemu_lacks_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A program of that name that has no machine at all stands for a QEMU that is too old."""
    old = tmp_path / "qemu-system-arm"
    old.write_text("#!/bin/sh\necho QEMU emulator version 6.2.0\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(setup, "missing_packages", lambda *_: [])
    monkeypatch.setattr(setup, "VENV_PYTHON", Path(sys.executable))
    assert setup.pick_board("ast1030_evb", "") == "native"
    said = capsys.readouterr().err
    assert "version 6.2.0) has no machine ast1030-evb, QEMU 7.1 is the first that has" in said
    assert "Install a newer QEMU" in said
    assert setup.pick_board("ast1030_evb", "/dev/ttyUSB0") == "ast1030_evb", "a real board needs no emulator"
    assert setup.pick_board("native", "") == "native"
