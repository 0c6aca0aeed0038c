# SPDX-License-Identifier: Apache-2.0
"""The command line that most tests use does what a user's does."""

from __future__ import annotations

import os
import subprocess

import pytest

from sparcl_mcu.spec.paths import ROOT
from tests import command_line


@pytest.mark.parametrize(
    "arguments", [["boards"], ["stop", "missing.toml"], ["no-command"]], ids=lambda words: words[0]
)
def test_as_the_real_one(arguments: list[str]) -> None:
    """Status, output and errors."""
    forked = command_line.run(arguments, os.environ, 60)
    real = subprocess.run([*command_line.SPARCL, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (forked.returncode, forked.stdout, forked.stderr) == (real.returncode, real.stdout, real.stderr)
    assert forked.stdout or forked.stderr
