# SPDX-License-Identifier: Apache-2.0
"""Where a shared key ends up when a firmware is built: nowhere that another user of the computer can read."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparcl_mcu.generator import pipeline
from sparcl_mcu.host_tools.emulator import Emulator, free_url
from sparcl_mcu.host_tools.platformio import run_pio
from sparcl_mcu.spec.paths import ROOT
from tests.boards.test_paths import EXPERIMENT

KEY = bytes(range(100, 132))
FORMS = (KEY, KEY.hex().encode(), KEY.hex().upper().encode(), ", ".join(f"0x{byte:02x}" for byte in KEY).encode())


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that every user of the computer can look into, as is usual below /home."""
    with tempfile.TemporaryDirectory() as name:
        before = os.umask(0)
        os.chmod(name, 0o755)
        yield Path(name)
        os.umask(before)


def holders(folder: Path) -> list[Path]:
    """Files with the key in them."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in files if any(form in path.read_bytes() for form in FORMS)]


def reachable(path: Path, folder: Path) -> bool:
    """Whether others may enter all folders on the way from ``folder``, and read the file."""
    ways = [parent for parent in path.parents if parent.is_relative_to(folder)]
    return all(way.stat().st_mode & 0o011 for way in ways) and bool(path.stat().st_mode & 0o044)


@pytest.mark.board
@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_no_other_user_reads_the_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the project, and in folders of the build and of the board that lie elsewhere; nor what was there before."""
    monkeypatch.setenv("TEST_KEY", KEY.hex())
    monkeypatch.setenv("SPARCL_BUILD", str(folder / "build"))
    (folder / "tiny.toml").write_text(EXPERIMENT, encoding="utf-8")
    before = folder / "build" / "tiny" / "native" / "pio" / "native"
    before.mkdir(parents=True)
    (before / "firmware").touch()
    project = pipeline.generate(folder / "tiny.toml", "native", ['link.key="env:TEST_KEY"'])
    for path in (project.folder, project.folder / "pio", before, before / "firmware"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path

    url = free_url()
    elsewhere = {
        "SCL_GENERATED": str(project.generated),
        "PLATFORMIO_BUILD_DIR": str(folder / "pio"),
        "SCL_EMULATOR_DIR": str(folder / "emulator"),
    }
    try:
        run_pio(["run", "-e", "native", "-t", "upload", "--upload-port", url], elsewhere, cwd=ROOT)
    finally:
        Emulator(folder / "emulator" / "native", "native").stop()
    found = holders(folder)
    assert {path.name for path in found} == {"scl_key.h", "scl_seal.o", "firmware", "flash.elf"}
    assert not [path for path in found if reachable(path, folder)]
