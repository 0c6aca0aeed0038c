# SPDX-License-Identifier: Apache-2.0
"""What `pip install sparcl_mcu-*.whl` brings: everything a run needs, and no name that is not ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from sparcl_mcu.spec.paths import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from what git knows, so that nothing else that lies in the checkout gets into it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    list_files = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(list_files, cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, names.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"]
    # The environment's own setuptools: nothing is fetched.
    command += ["--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (found,) = folder.glob("*.whl")
    return found


def test_content(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"sparcl_mcu"}, "a generic name in site-packages could be another package's"
    code = {f"sparcl_mcu/{path.relative_to(ROOT)}" for path in (ROOT / "host_tools").rglob("*.py")}
    data = {
        "sparcl_mcu/platformio.ini",
        "sparcl_mcu/templates/scl_model.c.j2",
        "sparcl_mcu/templates/project/experiment.toml.j2",
        "sparcl_mcu/firmware/engine/scl_train.c",
        "sparcl_mcu/firmware/boards/microbit/board.toml",
        "sparcl_mcu/firmware/port/cortexm/cortexm.ld",
        "sparcl_mcu/platforms/sparcl_cortexm/plugin/count.c",
        "sparcl_mcu/host_tools/report/templates/report.html",
    }
    assert code | data <= names
    assert not [name for name in names if "__pycache__" in name or name.endswith((".npz", ".key", "setup.py"))]


@pytest.mark.slow
@pytest.mark.board
def test_two_commands_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    """As in the README, in an environment that sees this one's packages, but not the checkout."""
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    libraries = sysconfig.get_paths(vars={"base": str(environment), "platbase": str(environment)})["purelib"]
    # A .pth inside the folder it names is not read: the editable checkout stays out.
    (Path(libraries) / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True)

    mine = tmp_path / "mine"
    mine.mkdir()
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SPARCL", "SCL", "PYTHON", "PLATFORMIO"))}

    def sparcl(*words: str, folder: Path = mine) -> str:
        done = subprocess.run(
            [environment / "bin" / "sparcl", *words], cwd=folder, env=clean, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout

    where = "import sparcl_mcu.host_tools.cli as cli; print(cli.__file__)"
    found = subprocess.run([python, "-c", where], cwd=mine, env=clean, capture_output=True, text=True, check=True)
    assert found.stdout.startswith(str(environment))
    assert sparcl("new", "my_project").endswith("sparcl run my_project.toml --board native\n")
    digests = set()
    for board in ("native", "microbit"):
        project = mine / "my_project"
        output = sparcl("run", "my_project.toml", "--board", board, folder=project)
        digests.add(output.split("state digest ")[1][:8])
        report = json.loads((project / "build" / "my_project" / board / "report.json").read_text())
        assert report["bit_exact"]
        assert report["class_il"] > 90
    assert len(digests) == 1
    subprocess.run([environment / "bin" / "python", "-m", "platformio", "run", "-e", "native"], cwd=project, check=True)
    installed = Path(libraries) / "sparcl_mcu"
    left = [p for p in installed.rglob("*") if p.is_file() and p.suffix != ".pyc" and not _recorded(p, libraries)]
    assert not left, "nothing is written into the installed package"


def _recorded(path: Path, libraries: str) -> bool:
    (record,) = Path(libraries).glob("sparcl_mcu-*.dist-info/RECORD")
    return f"{path.relative_to(libraries)}," in record.read_text()
