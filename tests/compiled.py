# SPDX-License-Identifier: Apache-2.0
"""What the tests compile, kept in build/tests: the same sources, flags and compiler make the same program.

So does each source for itself: one that the preprocessor turns into the same text is the same object, since most of
the engine does not depend on most of what models and boards differ in.  All tests and all runs share both.  What was
not used for a week is removed.
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
from contextlib import contextmanager
from pathlib import Path

from sparcl_mcu.spec.paths import ROOT

KEPT = ROOT / "build" / "tests" / "compiled"
WEEK = 7 * 86400.0
READ = (".c", ".h", ".S", ".s", ".ld", ".inc")
"""Files that a compiler finds in a folder."""
SOURCES = (".c", ".S", ".s", ".o", ".a")
LINK = ("-Wl,", "-L", "-T", "-l", "-shared", "-nostartfiles", "--specs=")
"""Flags that mean nothing to the object of one source."""


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
    """A program, or with ``-c`` the object of one source."""
    objects = {a: _object(a, given, compiler) for a in given if a.endswith(".c")}
    with _fresh(entry) as folder:
        for at in objects.values():
            for beside in (path for path in at.parent.iterdir() if path != at):  # what the stack needs, for one
                shutil.copy(beside, folder / f"{Path(name).stem}-{beside.name}")
        if "-c" in given:
            (only,) = objects.values()
            shutil.copy(only, folder / name)
        else:
            _run([compiler, *(str(objects.get(a, a)) for a in given), "-o", str(folder / name)])


def _object(source: str, given: Sequence[str], compiler: str) -> Path:
    """The object of one source; what names folders and macros shows in its text."""
    flags = [a for a in given if a != "-c" and not a.endswith(SOURCES) and not a.startswith(LINK)]
    text = _run([compiler, *flags, "-E", "-P", source])
    result = hashlib.sha256(f"{compiler} {_version(compiler)}\n".encode())
    for part in (*(f for f in flags if f[:2] not in ("-D", "-I")), Path(source).read_text(), text):
        result.update(f"{len(part)} {part}".encode())
    entry = KEPT / f"object-{result.hexdigest()[:32]}"
    made = entry / f"{Path(source).stem}.o"
    if not entry.is_dir():
        with _fresh(entry) as folder:
            _run([compiler, "-pipe", *flags, "-c", source, "-o", str(folder / made.name)])
    os.utime(entry)
    return made


@contextmanager
def _fresh(entry: Path) -> Iterator[Path]:
    """A folder that becomes the entry when it is complete."""
    KEPT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=KEPT, prefix="making-") as temporary:
        fresh = Path(temporary) / "fresh"
        fresh.mkdir()
        yield fresh
        try:
            fresh.rename(entry)
        except OSError:
            assert entry.is_dir()  # another process was faster; what it made is the same


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr}"
    return done.stdout


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
