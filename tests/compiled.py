# SPDX-License-Identifier: Apache-2.0
"""What the tests compile, kept in build/tests: the same sources, flags and compiler make the same program.

All tests and all runs share it.  What was not used for a week is removed.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from sparcl_mcu.spec.paths import ROOT

KEPT = ROOT / "build" / "tests" / "compiled"
WEEK = 7 * 86400.0
READ = (".c", ".h", ".S", ".s", ".ld", ".inc")
"""Files that a compiler finds in a folder."""


def compile_c(arguments: Sequence[str | Path], compiler: str = "gcc") -> None:
    """Compile what ``-o`` names, unless it is kept; the assertion shows what the compiler says.

    Arguments are flags, sources and folders of headers or linker scripts (``-I``, ``-L``).
    """
    given = [str(a) for a in arguments]
    at = given.index("-o")
    output = Path(given[at + 1])
    if "--coverage" in given:  # counts are written beside the place it was compiled to
        _run([compiler, *given])
        return
    del given[at : at + 2]
    entry = KEPT / digest(given, output.name, compiler)
    if not entry.is_dir():
        _make(given, output.name, compiler, entry)
    os.utime(entry)
    for made in entry.iterdir():  # the program, and what gcc writes beside it
        shutil.copy(made, output.with_name(made.name))


def _make(given: Sequence[str], name: str, compiler: str, entry: Path) -> None:
    KEPT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=KEPT, prefix="making-") as temporary:
        fresh = Path(temporary) / "fresh"
        fresh.mkdir()
        _run([compiler, *given, "-o", str(fresh / name)])
        try:
            fresh.rename(entry)
        except OSError:
            assert entry.is_dir()  # another process was faster; what it made is the same


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr}"


def digest(given: Sequence[str], name: str, compiler: str) -> str:
    """Of all that decides what is compiled; where its folders are does not."""
    result = hashlib.sha256(f"{compiler} {_version(compiler)} {name}\n".encode())
    for part in _parts(given):
        result.update(f"{len(part)} ".encode() + part)
    return result.hexdigest()[:32]


def _parts(given: Sequence[str]) -> Iterator[bytes]:
    folders: list[Path] = []
    for argument in given:
        prefix = argument[:2] if argument[:2] in ("-I", "-L", "-T") else ""
        path = Path(argument[len(prefix) :])
        if path.is_dir():
            yield prefix.encode()
            folders.append(path)
        elif path.is_file():
            yield prefix.encode() + path.name.encode()
            yield path.read_bytes()
            folders.append(path.parent)  # #include "..." looks there first
        else:
            yield argument.encode()
    for folder in dict.fromkeys(folders):
        for path in sorted(p for p in folder.iterdir() if p.suffix in READ):
            yield path.name.encode()
            yield path.read_bytes()


@functools.cache
def _version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout


def forget_unused(seconds: float = WEEK) -> None:
    """Remove what was not used for so long."""
    for entry in KEPT.glob("*"):
        if time.time() - entry.stat().st_mtime > seconds:
            shutil.rmtree(entry, ignore_errors=True)
