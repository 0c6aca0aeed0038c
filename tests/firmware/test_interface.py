# SPDX-License-Identifier: Apache-2.0
"""sparcl.h: what it does in order, what it refuses, what a power cut and a check of the host end in."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from sparcl_mcu.spec.paths import ROOT
from sparcl_mcu.spec.types import Model
from tests.compiled import compile_c
from tests.firmware.native import board_facts, flags, generate
from tests.reference.models import random_model

ENGINE = ROOT / "firmware" / "engine"


@pytest.mark.parametrize(
    "model",
    [random_model(6, sizes=(14, 24, 4), epochs=2, capacity=6), random_model(1, sizes=(9, 8, 3), tdm=False, dgm=False)],
    ids=["masks change", "masks stay"],
)
def test_a_program_of_its_own(model: Model, tmp_path: Path) -> None:
    """interface.c says what is not as it should be."""
    generated = generate(model, board_facts(), tmp_path)
    sources = [*sorted(ENGINE.glob("*.c")), *sorted(generated.glob("*.c")), Path(__file__).with_name("interface.c")]
    compile_c([*flags(generated), *sources, "-o", tmp_path / "interface"])
    done = subprocess.run([tmp_path / "interface"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
