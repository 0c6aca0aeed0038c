#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`make coverage`: which lines and branches of firmware/engine and firmware/app the tests execute on this computer.

Prints a table, writes build/coverage/index.html, and exits with 1 below LINES or BRANCHES percent.  Headers count:
their functions are compiled once, not into their callers (SCL_INLINE in scl_types.h), and the kernels for pairs are
among the tests (SCL_PAIRS).  scl_mve.h does not: its vector instructions are for Cortex-M55
(tests/boards/test_kernels.py).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "coverage"
LINES, BRANCHES = 95, 85
TESTS = (
    "tests/firmware/test_modules.py",
    "tests/firmware/test_layers.py",
    "tests/firmware/test_hostile.py",
    "tests/firmware/test_interface.py",
    "tests/firmware/test_window.py",
    "tests/firmware/test_seal.py",
    "tests/fuzz",
)
"""Enough of tests/firmware: `make test` runs the others, with sanitizers instead."""


def main() -> int:
    """Run the tests with counters, then report."""
    jobs = sys.argv[1] if len(sys.argv) > 1 else "2"
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    programs = FOLDER / "programs"
    pytest = [sys.executable, "-m", "pytest", "-q", "-n", jobs, "--dist=worksteal", "-m", "not slow"]
    pytest += [f"--basetemp={programs}", *TESTS]
    status = subprocess.run(pytest, cwd=ROOT, env={**os.environ, "SCL_COVERAGE": "1"}, check=False).returncode
    if status != 0:
        return status
    gcovr = [sys.executable, "-m", "gcovr", "-r", str(ROOT), "-f", "firmware/(engine|app)/", "-j", jobs, str(programs)]
    gcovr += ["--merge-mode-functions=separate", "--txt", "-", "--txt-summary"]
    gcovr += ["--html-details", str(FOLDER / "index.html")]
    gcovr += [f"--fail-under-line={LINES}", f"--fail-under-branch={BRANCHES}"]
    done = subprocess.run(gcovr, cwd=ROOT, check=False).returncode
    shutil.rmtree(programs)
    if done != 0:
        print(f"coverage: below {LINES} % of lines or {BRANCHES} % of branches", file=sys.stderr)
    return min(done, 1)


if __name__ == "__main__":
    sys.exit(main())
