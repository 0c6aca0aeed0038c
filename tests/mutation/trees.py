# SPDX-License-Identifier: Apache-2.0
"""Copies of the checkout that faults are put into, and pytest within one, in a process of its own."""

from __future__ import annotations

import hashlib
import importlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

HERE = Path(__file__).parent
OWN = ("tests", "sparcl_mcu", "spec", "reference", "generator", "host_tools", "benchmarks", "board_build")
"""Packages of a checkout: a copy has its own."""
PRELOAD = (
    *("numpy", "hypothesis", "pydantic", "serial", "serial.urlhandler.protocol_socket", "cobs.cobs", "msgpack"),
    *("jinja2", "rich.console", "typer", "PIL.Image", "sklearn.datasets", "_pytest.pytester", "zmq", "psutil"),
)
"""What all tests import: a process that is forked has it."""
STUCK = 240.0
"""Seconds without a test that ends and with next to no work, until a process counts as hung."""
LARGEST_FILE = 1 << 30
LARGEST_MEMORY = 3 << 30


@dataclass(frozen=True)
class Ended:
    """How a process ended: exit status, or None when it had to be stopped; ``seconds`` of CPU time."""

    status: int | None
    seconds: float
    why: str = ""


class Tree:
    """A copy of all files that git knows or would add, without the environment."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root = root
        self.folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        for name in files(root):
            target = folder / "tree" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target)
        self.path = folder / "tree"
        # Before the environment's own `sparcl_mcu`, which is the checkout.
        (self.path / "sparcl_mcu").symlink_to(".")
        if (root / ".venv").exists():
            (self.path / ".venv").symlink_to(root / ".venv")
        self._gcc()

    def _gcc(self) -> None:
        compiler = shutil.which("gcc")
        if compiler is None:
            return
        cache = self.folder.parent / "objects"
        cache.mkdir(exist_ok=True)
        words = (sys.executable, "-S", "-E", HERE / "gcc.py", compiler, cache)
        wrapper = self.folder / "bin" / "gcc"
        wrapper.parent.mkdir()
        wrapper.write_text(f'#!/bin/sh\nexec {" ".join(f"{str(w)!r}" for w in words)} "$@"\n')
        wrapper.chmod(0o755)

    @property
    def log(self) -> Path:
        """What the last process printed."""
        return self.folder / "log.txt"

    def pytest(self, tests: Sequence[str], plugin: object, limit: float, mutated: str = "") -> Ended:
        """Run tests in this copy, to the first that fails; ``limit``: seconds of CPU time."""
        scratch = self.folder / "tmp"
        shutil.rmtree(scratch, ignore_errors=True)
        options = ["-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore"]

        def work() -> int:
            os.environ["SPARCL_MUTATED"] = str(self.path / mutated) if mutated else "/"
            return int(pytest.main([*options, f"--basetemp={scratch}", *tests], plugins=[plugin]))

        return self.run(work, limit)

    def run(self, work: Callable[[], int], limit: float) -> Ended:
        """Call ``work`` within this copy, in another process."""
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            status = 70
            try:
                self._enter(limit)
                status = work()
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        return self._watch(child, limit)

    def _enter(self, limit: float) -> None:
        os.setsid()
        out = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        resource.setrlimit(resource.RLIMIT_CPU, (int(limit) + 1, int(limit) + 2))
        resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.chdir(self.path)
        os.environ["PATH"] = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        os.environ["PYTHONPATH"] = str(self.path)
        for name in [n for n in sys.modules if n.split(".")[0] in OWN]:
            del sys.modules[name]
        others = [p for p in sys.path if p and Path(p).resolve() not in (self.root, HERE.parents[1])]
        sys.path[:] = [str(self.path), *others]
        importlib.invalidate_caches()

    def _watch(self, child: int, limit: float) -> Ended:
        process = psutil.Process(child)
        used, why, quiet_since, known = 0.0, "", time.monotonic(), (-1, 0.0)
        while True:
            ended, status, usage = os.wait4(child, os.WNOHANG)
            if ended:
                seconds = usage.ru_utime + usage.ru_stime
                return Ended(os.waitstatus_to_exitcode(status) if not why else None, seconds, why)
            family = _family(process)
            used = sum(_cpu(p) for p in family)
            now = (self.log.stat().st_size if self.log.exists() else 0, used)
            if now[0] != known[0] or now[1] > known[1] + 5.0:
                known, quiet_since = now, time.monotonic()
            if used > limit:
                why = "takes too much time"
            elif time.monotonic() - quiet_since > STUCK:
                why = "hangs"
            elif sum(_memory(p) for p in family) > LARGEST_MEMORY:
                why = "takes too much memory"
            if why:
                for p in reversed(family):
                    _kill(p)
            time.sleep(0.1)


def _family(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return [process]


def _cpu(process: psutil.Process) -> float:
    try:
        return sum(process.cpu_times()[:4])
    except psutil.Error:
        return 0.0


def _memory(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _kill(process: psutil.Process) -> None:
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.Error:
        return


def files(root: Path) -> list[str]:
    """All that belongs to the checkout, whether committed or not."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    return sorted({name for name in names if name and (root / name).is_file()})


def digest(root: Path, names: Sequence[str]) -> str:
    """Of the contents of these files."""
    result = hashlib.sha256()
    for name in names:
        result.update(name.encode() + b"\0" + (root / name).read_bytes())
    return result.hexdigest()[:16]


def preload(names: Sequence[str] = PRELOAD) -> None:
    """Import what all tests need, before anything is forked."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            continue
