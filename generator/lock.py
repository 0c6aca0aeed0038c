# SPDX-License-Identifier: Apache-2.0
"""One process at a time in a build folder.

The lock is the operating system's, on the file ``.lock``: it ends with the process that holds it, however that
ends.  ``.holder.json`` beside it says who that is, for messages only.  Within one process a folder may be locked
again: the lock ends with the outermost block.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from sparcl_mcu.generator import files
from sparcl_mcu.spec.errors import UserError, one_line

FILE = ".lock"
HOLDER = ".holder.json"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes out of ``folder``, which exists.

    Raises UserError at once when another one is in it, naming that one.
    """
    lock = _lock(folder)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"{folder} is in use by {_holder(folder)}: wait until it is done or stop it, "
            "or give this one another folder with SPARCL_BUILD=FOLDER"
        ) from None
    with _held(lock, folder):
        yield


@contextmanager
def in_turn(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Like `alone`, but wait for the other process; ``say`` is told which one."""
    lock = _lock(folder)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"waiting for {_holder(folder)}, which prepares the same experiment")
        lock.acquire()
    with _held(lock, folder):
        yield


def _lock(folder: Path) -> FileLock:
    # One object per path in the process, for all threads, so that it can be acquired again.
    return FileLock(folder.resolve() / FILE, is_singleton=True, thread_local=False)


@contextmanager
def _held(lock: FileLock, folder: Path) -> Iterator[None]:
    try:
        with suppress(OSError):  # only the name in a message depends on it
            facts = {"pid": os.getpid(), "command": _command(), "since": datetime.now().isoformat(" ", "seconds")}
            (folder / HOLDER).write_text(json.dumps(facts) + "\n", encoding="utf-8")
        yield
    finally:
        lock.release()


def _command() -> str:
    """The running command, as it was typed."""
    name = Path(sys.argv[0]).name
    return shlex.join(["sparcl" if name in ("sparcl", "cli.py") else name, *sys.argv[1:]])


def _holder(folder: Path) -> str:
    """The process that holds the lock of ``folder``, in words."""
    try:
        facts = files.read_json(folder / HOLDER)
        return f"process {int(facts['pid'])} (`{one_line(facts['command'])}`, since {one_line(facts['since'])})"
    except (OSError, ValueError, TypeError, KeyError):
        return "another process"
