# SPDX-License-Identifier: Apache-2.0
"""Another process that is in a build folder."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HOLD = """
import sys
from pathlib import Path
from sparcl_mcu.generator import lock
folder = Path(sys.argv.pop())
with lock.alone(folder):
    print("in", flush=True)
    sys.stdin.read()
"""


@contextmanager
def other_process(folder: Path, *command: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has the lock of ``folder`` to the end of the block, and says that it was typed ``command``."""
    words = [sys.executable, "-c", _HOLD, *command, str(folder)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "in\n"
            yield process
        finally:
            process.kill()
