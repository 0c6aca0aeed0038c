# SPDX-License-Identifier: Apache-2.0
"""The command `sparcl` in a process of its own, forked from one that has made its imports: most commands take less.

All else is as on a command line: exit status, environment, folder, output, signals.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import termios
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import reduction
from typing import Any, Protocol

from sparcl_mcu.spec.paths import ROOT

SPARCL = (sys.executable, "-m", "sparcl_mcu.host_tools.cli")
"""The real thing."""
_IMPORTED = (
    *("numpy", "rich.live", "rich.progress", "rich.table", "typer.rich_utils"),
    *("sparcl_mcu.host_tools.cli", "sparcl_mcu.generator.pipeline", "sparcl_mcu.host_tools.platformio"),
    *("sparcl_mcu.host_tools.firmware", "sparcl_mcu.host_tools.emulator", "sparcl_mcu.host_tools.stream"),
    *("sparcl_mcu.host_tools.validate", "sparcl_mcu.host_tools.image", "sparcl_mcu.host_tools.histories"),
)
"""Not host_tools/view.py, which looks at its terminal when it is imported; not TensorFlow, which starts threads."""

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(list(_IMPORTED))


class Running(Protocol):
    """A command that was started."""

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, negative for a signal; ``subprocess.TimeoutExpired`` when it takes longer."""

    def kill(self) -> None:
        """End it."""

    @property
    def returncode(self) -> int | None:
        """Its exit status; None while it runs."""


class _Stream:
    """A file descriptor that is handed to the process."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __reduce__(self) -> tuple[Callable[[Any], int], tuple[Any]]:
        return _detached, (reduction.DupFd(self._number),)


def _detached(passed: Any) -> int:
    return int(passed.detach())


class _Forked:
    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], streams: Sequence[int]) -> None:
        given = (list(arguments), dict(environment), [_Stream(number) for number in streams])
        self._process = _server.Process(target=_sparcl, args=given, daemon=True)
        self._process.start()

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        status = self._process.exitcode
        if status is None:
            raise subprocess.TimeoutExpired("sparcl", timeout or 0)
        return status

    def kill(self) -> None:
        self._process.kill()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode


def start(arguments: Sequence[str], environment: Mapping[str, str], streams: Sequence[int]) -> Running:
    """Start `sparcl` in the checkout.  ``streams``: descriptors of its standard input, output and error.

    Without a fork where Python itself reads the environment when it starts.
    """
    if _of_python(environment) == _of_python(os.environ):
        return _Forked(arguments, environment, streams)
    command = [*SPARCL, *arguments]
    stdin, stdout, stderr = streams
    return subprocess.Popen(
        command, stdin=stdin, stdout=stdout, stderr=stderr, env=dict(environment), cwd=ROOT, preexec_fn=_become_session
    )


def _of_python(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith("PYTHON")}


def run(arguments: Sequence[str], environment: Mapping[str, str], timeout: float) -> subprocess.CompletedProcess[str]:
    """The same until it ends, with what it printed."""
    with open(os.devnull) as nothing, tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        running = start(arguments, environment, [file.fileno() for file in (nothing, out, err)])
        try:
            status = running.wait(timeout)
        except BaseException:
            running.kill()
            raise
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(list(arguments), status, out.read(), err.read())


def _become_session() -> None:
    """With its terminal, if it has one, so that Ctrl-C is sent to it."""
    os.setsid()
    if os.isatty(0):
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background job


def _sparcl(arguments: list[str], environment: Mapping[str, str], streams: Sequence[int]) -> None:
    """What the forked process does."""
    from sparcl_mcu.host_tools import cli

    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    _become_session()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    cli.main(arguments)
