# SPDX-License-Identifier: Apache-2.0
"""The inputs that fuzzing kept, run once each with gcc's sanitizers: those that failed once do not again."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.fuzz.programs import CORPUS, PROGRAMS, SUBJECTS, TARGETS, build

LIMIT = 300 * 1024
"""Bytes of all inputs that are kept."""


@pytest.mark.parametrize("subject", SUBJECTS)
def test_kept_inputs(subject: str, tmp_path: Path) -> None:
    """No crash, nothing that the targets check fails, and each input ends."""
    images = build(subject, tmp_path, fuzzer=False)
    for program in PROGRAMS:
        if program.subject == subject:
            inputs = sorted(program.corpus.iterdir())
            command = [str(images[program.name]), *map(str, inputs)]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=300)
            assert done.returncode == 0, f"{program.name}: {done.stderr[-3000:]}"
            assert done.stdout == f"{len(inputs)} inputs\n"


def test_corpus_stays_small() -> None:
    """It is minimised before it is kept (tests/fuzz/corpus/README.md)."""
    sizes = [path.stat().st_size for target in TARGETS for path in (CORPUS / target).iterdir()]
    assert len(sizes) > 50
    assert sum(sizes) < LIMIT
