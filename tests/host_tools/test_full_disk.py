# SPDX-License-Identifier: Apache-2.0
"""Disks and outputs without room, and readers that go away (docs/evidence/security.md, "Files you did not make")."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparcl_mcu.generator import files
from sparcl_mcu.host_tools import cli, failures, output
from sparcl_mcu.host_tools.recording import Header, Recorder
from sparcl_mcu.spec.errors import UserError

resource = pytest.importorskip("resource")

FULL = Path("/dev/full")
HEADER = Header("tiny", "native", b"12345678", 1, "1.0")
COMMAND = [sys.executable, "-c", "from sparcl_mcu.host_tools.cli import main; main()"]


@contextlib.contextmanager
def room(size: int) -> Iterator[None]:
    """No file can grow beyond ``size`` bytes: what a full disk is, without one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def generate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> int:
    """Exit status of `sparcl generate` that writes into ``folder``."""
    experiment = tmp_path / "exp.toml"
    experiment.write_text('[data]\nset = "digits"\n[model]\nhidden = [8]\n[initial]\ntrain = "none"\n')
    monkeypatch.setenv("SPARCL_BUILD", str(folder))
    with pytest.raises(SystemExit) as caught:
        cli.main(["generate", str(experiment)])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_files_may_not_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with room(10_000):
        assert generate(tmp_path, monkeypatch, tmp_path / "build") == 2
    err = capsys.readouterr().err
    assert f"{tmp_path}/build/exp/02-data.npz: File too large (" in err
    assert " KiB needed, " in err
    assert "SPARCL_BUILD=FOLDER" in err
    assert generate(tmp_path, monkeypatch, tmp_path / "build") == 0  # nothing is left that is taken for whole


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        assert generate(tmp_path, monkeypatch, disk) == 2
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    err = capsys.readouterr().err
    assert f"{disk}/exp/" in err
    assert "No space left on device (" in err
    assert "bug" not in err


@pytest.mark.skipif(not FULL.exists(), reason="has no /dev/full")
def test_recording_names_its_file(tmp_path: Path) -> None:
    """Also where the file is closed, which tries to write what is left once more."""
    path = tmp_path / "session.rec"
    path.symlink_to(FULL)
    with pytest.raises(UserError, match=r"session.rec cannot be written \(No space left on device\): free some space"):
        Recorder(path, HEADER)
    path.unlink()
    recorder = Recorder(path, HEADER)
    refused = pytest.raises(UserError, match=r"session.rec cannot be written \(File too large\)")
    with refused, room(path.stat().st_size), recorder:
        recorder.entry("<", b"12345")


def test_an_error_without_a_file_names_the_disks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("SPARCL_BUILD", str(tmp_path))
    assert failures.call(fail) == 2
    err = capsys.readouterr().err
    assert f"No space left on device: the build folder ({tmp_path}) has " in err


def test_no_memory(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise MemoryError("Unable to allocate 32.0 GiB")

    assert failures.call(fail) == 2
    assert "not enough memory (Unable to allocate 32.0 GiB)" in capsys.readouterr().err


def test_a_log_that_cannot_be_written_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> int:
        raise ZeroDivisionError("oh")

    (tmp_path / "file").touch()
    monkeypatch.setattr(failures.log, "folder", tmp_path / "file")
    monkeypatch.setattr(failures.tempfile, "gettempdir", lambda: str(tmp_path / "file"))
    assert failures.call(fail) == 1
    assert "report it with this:\nTraceback" in capsys.readouterr().err


def test_writing_says_what_was_needed(tmp_path: Path) -> None:
    with room(100), pytest.raises(OSError, match=r"File too large \(2 KiB needed, .* free\)"):
        files.write(tmp_path / "it", "x" * 2048)


# ---------------------------------------------------------------- what is printed


@pytest.mark.skipif(not FULL.exists(), reason="has no /dev/full")
def test_output_that_does_not_arrive() -> None:
    """Of small outputs the interpreter itself would notice at its very end, and exit with 120."""
    pipe, end = os.pipe()
    os.close(pipe)
    with FULL.open("wb") as full, os.fdopen(end, "wb") as gone:
        cases = {
            "full": subprocess.Popen([*COMMAND, "boards"], stdout=full, stderr=subprocess.PIPE, text=True),
            "help": subprocess.Popen([*COMMAND, "--help"], stdout=full, stderr=subprocess.PIPE, text=True),
            "gone": subprocess.Popen([*COMMAND, "boards"], stdout=gone, stderr=subprocess.PIPE, text=True),
            "no errors": subprocess.Popen([*COMMAND, "run", "x.toml"], stdout=subprocess.DEVNULL, stderr=full),
        }
        said = {name: (process.communicate()[1], process.returncode) for name, process in cases.items()}
    assert said == {
        "full": ("sparcl: standard output: No space left on device\n", 2),
        "help": ("sparcl: standard output: No space left on device\n", 2),
        "gone": ("", 141),
        "no errors": (None, 2),
    }


@pytest.mark.skipif(not FULL.exists(), reason="has no /dev/full")
def test_output_is_lost_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with FULL.open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(output.OutputLost, match="standard output: No space left"), output.guarded():
            print("x" * 100_000)
        assert sys.stdout is full
        with output.guarded():
            print("x")
            with pytest.raises(output.OutputLost):
                output.settle()
            output.settle()


def test_a_thread_whose_output_is_lost_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    def draw(error: Exception) -> None:
        raise error

    lost = output.OutputLost(OSError(errno.EPIPE, "Broken pipe"))
    with output.guarded():
        for error in (lost, ZeroDivisionError("oh")):
            thread = threading.Thread(target=draw, args=(error,))
            thread.start()
            thread.join()
    assert lost.reader_gone
    assert capsys.readouterr().err.count("Traceback") == 1


def test_output_of_any_kind_is_left_alone() -> None:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), output.guarded():
        print("x")
        output.settle()
    assert text.getvalue() == "x\n"
