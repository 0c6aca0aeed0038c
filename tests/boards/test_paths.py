# SPDX-License-Identifier: Apache-2.0
"""Folders of any name: the build, PlatformIO's SCons and shell, and the emulator take them for what they are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import plain_paths  # from platforms/common
import pytest
from platformio.project.config import ProjectConfig

from sparcl_mcu.generator import pipeline
from sparcl_mcu.host_tools import firmware, platformio, protocol
from sparcl_mcu.host_tools.emulator import Emulator, free_url
from sparcl_mcu.host_tools.link import Link
from sparcl_mcu.spec import wire
from sparcl_mcu.spec.paths import ROOT
from tests.boards.test_end_to_end import require

EXPERIMENT = """
[data]
set = "digits"
train_per_class = 4
test_per_class = 2
[tasks]
split = [[0, 1]]
[model]
hidden = [4]
[initial]
train = "none"
[method]
epochs = 1
buffer = 4
"""

NAMES = {
    "shell": "x;id>PWNED;&id>PWNED&|",
    "substitution": "R&D's $HOME `id>PWNED` $(id>PWNED)",
    "quotes": "q\"q'q\\",
    "white": "a \t\nb",
    "words": "Ärger 日本",
    "options": "a,b=c%d#e!f?g*[h]{i}~^<j>@k:l",
    "variables": "${PROJECT_DIR}$BUILD_DIR$$TARGET",
    "flag": "-rf",
    "not UTF-8": os.fsdecode(b"a\xffb"),
}
ALL = "R&D's;id>PWNED;${PROJECT_DIR}$HOME`id>PWNED`$(id>PWNED)\"(\t\n,=%d#!?*[h]{i}~^<j>@k:l\\ä日"


def below(folder: Path) -> set[str]:
    """Names of all that is in there, without what is in a folder named build, tmp or core."""
    found = {str(path.relative_to(folder)) for path in folder.iterdir()}
    for path in folder.iterdir():
        if path.is_dir() and path.name not in ("build", "tmp", "core"):
            found |= {f"{path.name}/{name}" for name in below(path)}
    return found


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Emulator]:
    """An emulated board whose folders all have such a name: experiment, build, temporary files, PlatformIO's tools."""
    name, facts = request.param
    require(facts)
    folder = tmp_path / name
    (folder / "tmp").mkdir(parents=True)
    (folder / "tiny.toml").write_text(EXPERIMENT, encoding="utf-8")
    monkeypatch.setenv("SPARCL_BUILD", str(folder / "build"))
    monkeypatch.setenv("TMPDIR", str(folder / "tmp"))
    monkeypatch.setenv("PLATFORMIO_CORE_DIR", str(folder / "core"))
    monkeypatch.setenv("SPARCL_OFFLINE", "1")
    project = pipeline.generate(folder / "tiny.toml", facts)
    emulator = Emulator(project.folder / "emulator" / facts, facts)
    try:
        url = free_url()
        firmware.build(project, ["-t", "upload", "--upload-port", url])
        assert emulator.url == url
        yield emulator
    finally:
        emulator.stop()
    assert not [*tmp_path.rglob("PWNED"), *ROOT.glob("PWNED")]
    assert below(tmp_path) == {name, *(f"{name}/{entry}" for entry in ("build", "core", "tiny.toml", "tmp"))}
    # gcc forgets a file of its own where the name of the folder has a comma.
    assert {path.suffix for path in (folder / "tmp").iterdir()} <= {".res"}


@pytest.mark.board
@pytest.mark.parametrize(
    "board",
    [
        pytest.param((ALL, "native"), id="all"),
        *(
            pytest.param((name, board), id=f"{title}-{board}", marks=pytest.mark.slow)
            for title, name in NAMES.items()
            for board in ("native", "microbit", "emcraft_sf2")
        ),
    ],
    indirect=True,
)
def test_a_board_is_built_uploaded_and_answers_in_folders_of_any_name(board: Emulator) -> None:
    """Nothing is executed, and nothing written beside the folder (see the fixture)."""
    assert board.url is not None
    with Link(board.url) as link:
        assert protocol.hello(link).phase == wire.Phase.IDLE


def test_names_stay_the_same_from_build_to_build(tmp_path: Path) -> None:
    """Else all would be built again; and what starts a board has the environment as it was."""
    project = tmp_path / "R&D"
    (project / "firmware").mkdir(parents=True)
    environment = {"SCL_GENERATED": str(tmp_path / "$x"), "PATH": "/a b"}
    folders = {"PLATFORMIO_BUILD_DIR": str(tmp_path / "plain")}
    seen = []
    for _ in range(2):
        with plain_paths.plain_project(project, ROOT, folders, environment) as (place, changed):
            plain_paths.require_plain(place, *changed["PYTHONPATH"].split(os.pathsep))
            assert (place / "firmware").resolve() == project / "firmware"
            assert (place / plain_paths.ROOT).resolve() == ROOT
            assert Path(changed["SCL_GENERATED"]).resolve() == tmp_path / "$x"
            assert Path(changed["PLATFORMIO_BUILD_DIR"]).resolve() == tmp_path / "plain"
            assert plain_paths.before({**environment, **changed}) == (str(project), environment)
            seen.append(os.path.relpath(changed["SCL_GENERATED"], place))
        assert not place.exists()
    assert seen[0] == seen[1]


def test_plain_folders_stay_as_they_are(tmp_path: Path) -> None:
    with plain_paths.plain_project(tmp_path, ROOT, {"PLATFORMIO_BUILD_DIR": "/x"}, {"TMPDIR": "/tmp"}) as found:
        assert found == (tmp_path, {})
    assert plain_paths.before({"TMPDIR": "/tmp"}) == (None, {"TMPDIR": "/tmp"})


def test_where_links_are_refused_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Windows does by default."""

    def refuse(*_: object) -> None:
        raise OSError(1314, "A required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    (tmp_path / "R&D").mkdir()
    expected = "R&D.* only a link can hide.*required privilege.*names of letters and digits only"
    with (
        pytest.raises(plain_paths.NotPlainError, match=expected),
        plain_paths.plain_project(tmp_path / "R&D", ROOT, {}, {}),
    ):
        pass


def test_what_could_not_be_hidden_is_refused() -> None:
    """The builder asks before it gives a path to SCons."""
    with pytest.raises(plain_paths.NotPlainError, match=r"'/tmp/x;id' would reach a shell: give that folder a name"):
        plain_paths.require_plain("/tmp/x", Path("/tmp/x;id"))


@pytest.mark.parametrize("name", ["plain", "R&D's 50% #1 ;x ${PROJECT_DIR}\n$HOME"])
def test_a_project_elsewhere_finds_a_checkout_of_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """PlatformIO expands and cuts what it reads in platformio.ini."""
    root, project = tmp_path / name, tmp_path / "project"
    (root / "firmware").mkdir(parents=True)
    (project / "build").mkdir(parents=True)
    shutil.copy(ROOT / "platformio.ini", root)
    monkeypatch.setattr(platformio, "ROOT", root)
    monkeypatch.setenv("PLATFORMIO_CORE_DIR", str(root / "core"))
    monkeypatch.chdir(project)
    for _ in range(2):
        platformio.write_environments(project / "build")
    monkeypatch.delenv("PLATFORMIO_CORE_DIR")
    config = ProjectConfig(str(project / "build" / "platformio.ini"))
    assert Path(config.get("platformio", "src_dir")).resolve() == root / "firmware"
    assert Path(config.get("platformio", "core_dir")).resolve() == root / "core"
    uri = config.get("env:microbit", "platform")
    assert Path(uri.removeprefix("symlink://")).resolve() == root / "platforms" / "sparcl_cortexm"


# -- a checkout of any name ---------------------------------------------------------------------------


def site_packages(root: Path) -> Path:
    """Of a virtual environment."""
    return root / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"


@pytest.mark.slow
@pytest.mark.board
@pytest.mark.parametrize("name", ["R&D 'x' $y", 'a#b?c@d=e;id>PWNED;$(id>PWNED)`id>PWNED`"[y]{z} *%,'])
def test_a_clone_of_any_name_builds(tmp_path: Path, name: str) -> None:
    """With the tool, with PlatformIO alone, and through the Makefile; its Python packages lie in there too."""
    clone = tmp_path / name
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    for changed in subprocess.run(
        ["git", "ls-files", "-z", "-m", "-o", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True
    ).stdout.split(b"\0")[:-1]:
        shutil.copy(ROOT / os.fsdecode(changed), clone / os.fsdecode(changed))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(clone / ".venv")], check=True)
    ours, theirs = site_packages(Path(sys.prefix)), site_packages(clone / ".venv")
    for path in ours.iterdir():
        if "sparcl" not in path.name:
            (theirs / path.name).symlink_to(path)
    (theirs / "sparcl_mcu").symlink_to(clone)
    (tmp_path / "tiny.toml").write_text(EXPERIMENT, encoding="utf-8")
    environment = {**os.environ, "SPARCL_OFFLINE": "1"}
    environment = {k: v for k, v in environment.items() if k not in ("SPARCL_BUILD", "PLATFORMIO_CORE_DIR")}
    for command in (
        ["make", "-o", "setup", "boards"],
        ["make", "-o", "setup", "demo", "BOARD=native", "EXAMPLE=../tiny.toml"],
        [".venv/bin/python", "-m", "platformio", "run", "-e", "native"],
    ):
        done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert (clone / "build" / "tiny" / "native" / "report.json").is_file()
    assert (clone / ".pio" / "build" / "native" / "firmware").is_file()
    assert not list(tmp_path.rglob("PWNED"))
    assert {path.name for path in tmp_path.iterdir()} == {name, "tiny.toml"}
