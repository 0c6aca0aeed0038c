#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Brings a fresh checkout to the point where the demo and the tests run.

    python3.11 tools/setup.py               what `make setup`, `make demo` and `make test` call
    python3.11 tools/setup.py --pick-board ast1030_evb    print it, or `native` if it cannot be built
    python3.11 tools/setup.py --need cppcheck             what only some targets use: install it, or say what to type

Makes .venv, installs the project and its Python packages there, installs compilers
and the emulator with apt when it may (root, or sudo without a password; never with
SPARCL_NO_APT set), and prepares PlatformIO. Whatever is there already is skipped.
It runs before the virtual environment exists: standard library only.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from progress import AptProgress, PipProgress, Progress

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
STAMP = VENV / "sparcl-setup.json"
LOG = VENV / "sparcl-setup.log"
# What the Python side of the setup depends on: a change of one runs pip again.
INPUTS = ("pyproject.toml", "setup.py", "requirements-data.txt", "tools/setup.py")

MIN_PYTHON = (3, 11)
HEARTBEAT_SECONDS = 30  # between two lines that say the same
PROGRESS_SECONDS = 10  # between two lines at all
PIP_WITH_BYTES = (24, 1)  # the first pip that can print how much of a file it has
LOG_TAIL_LINES = 20

HOST_PACKAGES = ("gcc", "libc6-dev")
ARM_PACKAGES = ("gcc-arm-none-eabi", "libnewlib-arm-none-eabi")
EMULATOR_PACKAGES = ("qemu-system-arm",)
EXTRA_PACKAGES = ("cppcheck", "clang", "libclang-rt-dev", "chromium")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

NO_NETWORK = re.compile(
    r"NewConnectionError|NameResolutionError|Temporary failure|Network is unreachable"
    r"|ConnectTimeout|ConnectionResetError|ProxyError|Could not find a version"
)


class SetupError(Exception):
    """Setup cannot continue; the message says what to do."""


def say(text: str) -> None:
    """A progress message, on standard error: standard output belongs to --pick-board."""
    print("setup: " + text.replace("\n", "\n       "), file=sys.stderr, flush=True)


# --- system packages -----------------------------------------------------------------


def finds_file(compiler: str, name: str) -> bool:
    """Whether `compiler` finds the library file `name`: it answers with a path, else the bare name."""
    if shutil.which(compiler) is None:
        return False
    query = [compiler, f"-print-file-name={name}"]
    answer = subprocess.run(query, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    return os.path.isabs(os.fsdecode(answer.stdout).strip())


def links_fuzzer() -> bool:
    """Whether clang finds its fuzzing library, which has another name for each kind of computer."""
    if shutil.which("clang") is None:
        return False
    target = b"int LLVMFuzzerTestOneInput(const char *data, unsigned long size) { return data == (void *)size; }"
    link = ["clang", "-fsanitize=fuzzer,address", "-x", "c", "-", "-o", os.devnull]
    return subprocess.run(link, input=target, capture_output=True, check=False).returncode == 0


def missing_packages(wanted: Sequence[str] = HOST_PACKAGES + ARM_PACKAGES + EMULATOR_PACKAGES) -> list[str]:
    """Debian names of what is not there; looks for the programs, however they were installed."""
    present = {
        "gcc": shutil.which("gcc") is not None,
        # Only Linux packages the C library separately from the compiler.
        "libc6-dev": sys.platform != "linux" or finds_file("gcc", "crt1.o"),
        "gcc-arm-none-eabi": shutil.which("arm-none-eabi-gcc") is not None,
        "libnewlib-arm-none-eabi": finds_file("arm-none-eabi-gcc", "libc.a"),
        "qemu-system-arm": shutil.which("qemu-system-arm") is not None,
        "cppcheck": shutil.which("cppcheck") is not None,
        "clang": shutil.which("clang") is not None,
        "chromium": any(shutil.which(name) for name in BROWSERS),
        "libclang-rt-dev": "libclang-rt-dev" not in wanted or links_fuzzer(),
    }
    return [package for package in wanted if not present[package]]


def apt_prefix() -> list[str] | None:
    """What to put before apt-get: nothing for root, sudo if it asks nothing; None if it may not."""
    if shutil.which("apt-get") is None or os.environ.get("SPARCL_NO_APT"):
        return None
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo") is None:
        return None
    probe = subprocess.run(
        ["sudo", "-n", "true"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    return ["sudo", "-n"] if probe.returncode == 0 else None


def apt_install(prefix: list[str], packages: list[str], log: Path) -> bool:
    """Install `packages`; whether that worked. The package lists are fetched if it fails without."""
    say("installing with apt: " + " ".join(packages))
    apt = [*prefix, "env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C", "apt-get", "-q", "-y"]
    apt += ["-o", "DPkg::Lock::Timeout=120", "-o", "Acquire::Retries=1"]
    install = [*apt, "install", "--no-install-recommends", *packages]
    if run_logged(install, log, AptProgress()) == 0:
        return True
    return run_logged([*apt, "update"], log) == 0 and run_logged(install, log, AptProgress()) == 0


def install_system_packages(failed_before: list[str], explicit: bool) -> list[str]:
    """Install what is missing if that is allowed; the packages that are still missing.

    What apt could not install the last time is tried again only by an explicit
    `make setup`, so that without a network `make test` does not wait for apt each time.
    """
    missing = missing_packages()
    if not missing:
        return []
    prefix = apt_prefix()
    if prefix is not None and (explicit or missing != failed_before):
        if not apt_install(prefix, missing, LOG):
            say(f"apt failed, the end of {LOG}:\n" + log_tail(LOG))
        missing = missing_packages()
    if missing:
        say(advice(missing))
    return missing


def need(packages: list[str]) -> None:
    """Install packages that only some targets use, if that is allowed.

    Raises:
        SetupError: it is not, or it did not work.
    """
    missing = missing_packages(packages)
    prefix = apt_prefix()
    if missing and prefix is not None:
        if not apt_install(prefix, missing, LOG):
            say(f"apt failed, the end of {LOG}:\n" + log_tail(LOG))
        missing = missing_packages(packages)
    if missing:
        raise SetupError(advice(missing))


def advice(missing: list[str]) -> str:
    """What to type, and what works without the missing packages."""
    names = " ".join(missing)
    if shutil.which("apt-get"):
        how = "to install it, type:\n  sudo apt-get install -y --no-install-recommends " + names
    else:
        how = "install it with your system's package manager (the names are Debian's)"
    if set(missing) & set(HOST_PACKAGES):
        effect = "without a compiler for this machine neither the demo nor the tests can run"
    elif set(missing) & set(EXTRA_PACKAGES):
        effect = "everything else works without"
    elif set(missing) & set(ARM_PACKAGES):
        effect = "until then firmware is built for `native` only"
    else:
        effect = "until then emulated boards cannot run; `native` and real boards can"
    return f"not installed: {names}\n{how}\n{effect}"


def pick_board(board: str, port: str) -> str:
    """`board`, or `native` when the tools for `board` are missing, or its machine in this QEMU.

    Raises:
        SetupError: a port was given, so a real board is meant, but it cannot be built for.
    """
    needed = set(ARM_PACKAGES if port else ARM_PACKAGES + EMULATOR_PACKAGES)
    missing = [package for package in missing_packages() if package in needed]
    if board == "native":
        return board
    names = " ".join(missing)
    if missing and port:
        raise SetupError(f"cannot build for the board at {port} without: {names}")
    why = f"{names} is not installed." if missing else "" if port else emulator_problem(board)
    if not why:
        return board
    say(
        f"NOTE: no `{board}` here: {why}\n"
        "The demo runs on `native` instead: the same firmware, compiled for this machine.\n"
        f"BOARD={board} insists on the board."
    )
    return "native"


def emulator_problem(board: str) -> str:
    """Why the installed emulator cannot run `board`; empty where it can."""
    command = [str(VENV_PYTHON), "-m", "sparcl_mcu.host_tools.emulator", "--board", board, "check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stderr.strip().removeprefix("Error: ") if done.returncode != 0 else ""


# --- running commands ----------------------------------------------------------------


def run_logged(command: list[str], log: Path, progress: Progress | None = None) -> int:
    """Run `command` with its output added to `log`; its exit status. Says now and then what it is doing."""
    log.parent.mkdir(parents=True, exist_ok=True)
    lines: queue.Queue[bytes | None] = queue.Queue()
    with log.open("ab", buffering=0) as file:
        file.write(f"\n$ {' '.join(command)}\n".encode())
        with subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            assert process.stdout is not None
            threading.Thread(target=_queue_lines, args=(process.stdout, lines), daemon=True).start()
            try:
                _follow(lines, file, progress)
            except KeyboardInterrupt:
                process.terminate()
                raise
    return process.returncode


def _queue_lines(source: IO[bytes], lines: queue.Queue[bytes | None]) -> None:
    for line in source:
        lines.put(line)
    lines.put(None)


def _follow(lines: queue.Queue[bytes | None], file: IO[bytes], progress: Progress | None) -> None:
    """Log the lines until the last; say what `progress` makes of them, and that it lasts when that does not change."""
    started = said_at = time.monotonic()
    said = ""
    while True:
        try:
            line = lines.get(timeout=1)
        except queue.Empty:
            line = b""
        if line is None:
            return
        file.write(line)
        if progress is not None and line:
            progress.take(line.decode(errors="replace"))
        now = time.monotonic()
        if now - said_at < PROGRESS_SECONDS:
            continue
        text = str(progress or "")
        if text != said or now - said_at >= HEARTBEAT_SECONDS:
            say(f"... {text or 'still at it'} ({now - started:.0f} s)")
            said, said_at = text, now


def log_tail(log: Path) -> str:
    """The last lines of `log`."""
    lines = log.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()
    return "\n".join(lines[-LOG_TAIL_LINES:])


# --- Python --------------------------------------------------------------------------


@dataclass(frozen=True)
class Stamp:
    """What the last complete setup left behind."""

    inputs: str = ""
    root: str = ""
    apt_failed: tuple[str, ...] = ()

    @staticmethod
    def read() -> Stamp:
        """The stored stamp; an empty one if there is none or it cannot be read."""
        try:
            data = json.loads(STAMP.read_text(encoding="utf-8"))
            return Stamp(data["inputs"], data["root"], tuple(data["apt_failed"]))
        except (OSError, ValueError, KeyError, TypeError):
            return Stamp()

    def write(self) -> None:
        """Store the stamp, unless it is there already."""
        text = json.dumps({**self.__dict__, "apt_failed": list(self.apt_failed)}) + "\n"
        if not STAMP.is_file() or STAMP.read_text(encoding="utf-8") != text:
            STAMP.write_text(text, encoding="utf-8")


def inputs_digest() -> str:
    """A hash of INPUTS and of the version of Python."""
    digest = hashlib.sha256(repr(sys.version_info[:2]).encode())
    for name in INPUTS:
        digest.update(name.encode() + b"\0" + (ROOT / name).read_bytes())
    return digest.hexdigest()


def venv_problem(stamp: Stamp) -> str | None:
    """Why .venv has to be (re)built, or None if it can stay. One made by hand is adopted."""
    if not VENV_PYTHON.exists():  # also when it points to a Python that was removed
        return "making"
    if stamp.root and stamp.root != str(ROOT):
        return "the checkout was moved; rebuilding"
    try:
        config = (VENV / "pyvenv.cfg").read_text(encoding="utf-8")
    except OSError:
        return "its pyvenv.cfg is gone; rebuilding"
    found = re.search(r"^version(?:_info)?\s*=\s*(\d+)\.(\d+)", config, re.MULTILINE)
    if found and tuple(map(int, found.groups())) != sys.version_info[:2]:
        return f"it holds Python {found[1]}.{found[2]}; rebuilding"
    return None


def python_advice() -> str:
    """What to type where this Python is too old, as on Ubuntu 22.04."""
    return (
        f"Python {MIN_PYTHON[0]}.{MIN_PYTHON[1]} or newer is needed, this is "
        f"{sys.version_info[0]}.{sys.version_info[1]} ({sys.executable}).\n"
        "Ubuntu 22.04 has a newer one beside it; type:\n"
        "  sudo apt install python3.11 python3.11-venv\n"
        "  make setup\n"
        "Debian 12, Ubuntu 24.04 and later have one as python3; or name any other: make PYTHON=/path/to/python3 ..."
    )


def require_venv_module() -> None:
    """Make sure that this Python can make virtual environments: Debian ships that apart."""
    if importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip"):
        return
    package = "python{}.{}-venv".format(*sys.version_info)
    prefix = apt_prefix()
    if prefix is not None:
        # Not LOG: a folder .venv must not exist before there is an environment in it.
        log = ROOT / "build" / "setup-apt.log"
        if apt_install(prefix, [package], log):
            return
        say(f"apt failed, the end of {log}:\n" + log_tail(log))
    raise SetupError(
        "this Python cannot make virtual environments; type:\n"
        f"  sudo apt install {package}        (or: sudo apt install python3-venv)"
    )


def make_venv(why: str) -> None:
    """Rebuild .venv with the Python that runs this."""
    require_venv_module()
    say(f".venv: {why} (Python {sys.version_info[0]}.{sys.version_info[1]})")
    # When this runs in the old .venv, its Python is about to be removed.
    python = getattr(sys, "_base_executable", None) or sys.executable
    command = [python, "-m", "venv", "--clear", str(VENV)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        raise SetupError(f"`{' '.join(command)}` failed:\n{done.stdout.strip()}")


def site_packages() -> Path | None:
    """Where .venv keeps its packages."""
    return next(VENV.glob("[Ll]ib*/**/site-packages"), None)


def pip_version(pip: list[str]) -> tuple[int, ...] | None:
    """The version of the environment's pip; None without one."""
    done = subprocess.run([*pip, "--version"], capture_output=True, text=True, check=False)
    found = re.match(r"pip (\d+)\.(\d+)", done.stdout)
    return None if done.returncode != 0 or found is None else (int(found[1]), int(found[2]))


def pip_install() -> None:
    """Install the project, its dependencies and the data packages into .venv."""
    pip = [str(VENV_PYTHON), "-m", "pip", "--disable-pip-version-check", "--no-input"]
    if pip_version(pip) is None:
        run_logged([str(VENV_PYTHON), "-m", "ensurepip"], LOG)  # some tools leave pip out
    bar = "raw" if (pip_version(pip) or (0,)) >= PIP_WITH_BYTES else "off"
    say("installing Python packages (the first time this takes minutes: TensorFlow is large)")
    install = [*pip, "install", "--progress-bar", bar]
    for arguments in (["--editable", ".[dev]"], ["--no-deps", "-r", "requirements-data.txt"]):
        if run_logged([*install, *arguments], LOG, PipProgress(site_packages)) != 0:
            tail = log_tail(LOG)
            hint = ""
            if NO_NETWORK.search(tail):
                hint = "\nIs the network up? If you use a proxy or a mirror, does pip know it?"
            raise SetupError(f"pip failed, the end of {LOG}:\n{tail}{hint}")


def prepare_platformio() -> None:
    """Settings and build tool of PlatformIO, in .venv/platformio unless the environment says else."""
    command = [str(VENV_PYTHON), "-m", "sparcl_mcu.host_tools.platformio"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SetupError(f"`{' '.join(command)}` failed:\n{done.stdout.strip()}")
    say(done.stdout.strip())


def set_up(explicit: bool) -> None:
    """Do what is left to do. `explicit`: the user asked for it, rather than for demo or test."""
    started = time.monotonic()
    stamp = Stamp.read()
    digest = inputs_digest()
    problem = venv_problem(stamp)
    installed = (VENV / "bin" / "sparcl").exists() and stamp.inputs == digest
    if problem or not installed:
        if problem:
            make_venv(problem)
        LOG.unlink(missing_ok=True)
        pip_install()
        prepare_platformio()
        # In case apt is interrupted below: the Python side is done.
        Stamp(digest, str(ROOT), stamp.apt_failed).write()
    missing = install_system_packages(list(stamp.apt_failed), explicit)
    # If apt may not run, nothing was tried, and earlier failures stay recorded.
    failed = missing if not missing or apt_prefix() is not None else stamp.apt_failed
    Stamp(digest, str(ROOT), tuple(failed)).write()
    if problem or not installed:
        say(f"done in {time.monotonic() - started:.0f} s")
    elif explicit and not missing:
        say("nothing left to do")


def main() -> int:
    """The command line; 0 on success, 1 with a message on standard error otherwise."""
    parser = argparse.ArgumentParser(description="Prepare this checkout.")
    parser.add_argument("--explicit", action="store_true", help="try again what failed before")
    parser.add_argument("--pick-board", metavar="BOARD", help="print BOARD, or native")
    parser.add_argument("--need", metavar="PACKAGE", nargs="+", choices=EXTRA_PACKAGES, help="install them")
    parser.add_argument("--port", default="", help="with --pick-board: where a real board is")
    options = parser.parse_args()
    try:
        if sys.version_info < MIN_PYTHON:
            raise SetupError(python_advice())
        if options.pick_board:
            print(pick_board(options.pick_board, options.port))
        elif options.need:
            need(options.need)
        else:
            set_up(options.explicit)
    except SetupError as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted; run `make setup` again to continue")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
