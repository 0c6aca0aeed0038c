# SPDX-License-Identifier: Apache-2.0
"""`sparcl doctor` on computers that have everything, nothing, or half of it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from sparcl_mcu.host_tools import doctor, platformio
from tests.host_tools.test_cli import run


@pytest.fixture(autouse=True)
def _no_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not asked: whether the network is up is no subject of these tests."""
    monkeypatch.setattr(platformio, "registry_answers", lambda: False)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH of its own, with nothing on it yet."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def script(path: Path, *lines: str) -> None:
    """A program that prints something."""
    path.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
    path.chmod(0o755)


def test_nothing_installed(programs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The host's compiler is needed; of what only other boards need it is said what works without."""
    assert run("doctor") == 1
    said = capsys.readouterr()
    assert "missing: gcc" in said.err
    assert "note    arm-none-eabi-gcc without it no firmware for any board but native" in said.out
    assert "note    qemu-system-arm   without it no emulated boards; real ones and native" in said.out


def test_what_a_board_needs(programs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script(programs / "apt-get")
    assert run("doctor", "--board", "microbit") == 1
    said = capsys.readouterr()
    assert "missing: arm-none-eabi-gcc, qemu-system-arm" in said.err
    assert "sudo apt-get install --no-install-recommends gcc-arm-none-eabi libnewlib-arm-none-eabi" in said.out
    assert "sudo apt-get install --no-install-recommends qemu-system-arm" in said.out


def test_compiler_without_its_library(programs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Debian packages newlib apart from the compiler."""
    script(programs / "arm-none-eabi-gcc", 'test "$1" = --version && echo compiler 14.2 || echo nano.specs')
    assert run("doctor", "--board", "microbit") == 1
    assert "compiler 14.2, without newlib's nano.specs" in capsys.readouterr().out


def test_emulator_without_a_machine(programs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script(
        programs / "qemu-system-arm",
        'test "$1" = --version && echo QEMU 5.0 && exit',
        "echo 'microbit             BBC micro:bit'",
    )
    assert run("doctor", "--board", "ast1030_evb") == 1
    said = capsys.readouterr()
    assert "missing qemu-system-arm   QEMU 5.0" in said.out
    assert "has no machine ast1030-evb, QEMU 7.1 is the first that has" in said.out
    assert run("doctor", "--board", "microbit") == 1  # for want of the compiler
    assert "ok      qemu-system-arm" in capsys.readouterr().out


@pytest.mark.parametrize("board", [None, "native", "microbit"])
def test_everything_there(board: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    absent = [name for name in ("gcc", "arm-none-eabi-gcc", "qemu-system-arm") if shutil.which(name) is None]
    if absent:
        pytest.skip(f"not installed: {', '.join(absent)}")
    assert run("doctor", *([] if board is None else ["--board", board])) == 0
    assert "missing" not in capsys.readouterr().out


def test_little_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SPARCL_BUILD", str(tmp_path / "not" / "there" / "yet"))
    monkeypatch.setattr(doctor, "FREE_BYTES", shutil.disk_usage(tmp_path).total + 1)
    run("doctor")
    assert "note    disk" in capsys.readouterr().out
    assert os.listdir(tmp_path) == []


def test_environment_changed_by_hand(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: {"numpy": "1.0", "cobs": None}.get(name, found(name)))
    assert run("doctor") == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "numpy 1.0 (needs " in shown
    assert "cobs absent (needs " in shown
