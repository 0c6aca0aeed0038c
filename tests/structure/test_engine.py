# SPDX-License-Identifier: Apache-2.0
"""The engine is a library: it knows neither application nor board, and needs nothing but sparcl.h's port."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sparcl_mcu.generator import pipeline
from sparcl_mcu.host_tools.stream import stream
from sparcl_mcu.spec.paths import ROOT
from tests.boards.test_end_to_end import EXPERIMENT
from tests.compiled import compile_c
from tests.firmware.native import NOT_OPTIMISED, board_facts, generate
from tests.host_tools.fake_board import FakeBoard
from tests.reference.models import random_model

ENGINE = ROOT / "firmware" / "engine"
EMBED = ROOT / "examples" / "embed"
LIBC = {"memcmp", "memcpy", "memmove", "memset", "strlen"}
FLAGS = ("-std=c11", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror")


def includes(generated: Path) -> list[str]:
    """Folders of headers that the engine may use: not firmware/app, firmware/port or a board's."""
    return [f"-I{folder}" for folder in (ROOT / "firmware" / "include", ENGINE, generated)]


@pytest.mark.parametrize("key", [None, bytes(32)], ids=["open", "keyed"])
def test_it_links_with_nothing_but_libc(key: bytes | None, tmp_path: Path) -> None:
    """Engine and generated model name no symbol of anybody else: what they call of a host comes in a struct."""
    generated = generate(random_model(5, sizes=(14, 24, 4)), board_facts(), tmp_path, key)
    whole = tmp_path / "engine.o"
    sources = [*sorted(ENGINE.glob("*.c")), *sorted(generated.glob("*.c"))]
    compile_c([*FLAGS, *NOT_OPTIMISED, *includes(generated), "-r", "-nostdlib", *sources, "-o", whole])
    listing = subprocess.run(["nm", whole], capture_output=True, text=True, check=True).stdout
    symbols = re.findall(r"([A-Za-z]) (\w+)$", listing, re.MULTILINE)
    assert {name for kind, name in symbols if kind == "U"} <= LIBC
    assert "main" not in {name for _, name in symbols}
    assert {name for kind, name in symbols if kind == "T" and name.startswith("sparcl_")} == set(
        re.findall(r"^\w+ (sparcl_\w+)\(", (ROOT / "firmware/include/sparcl.h").read_text(), re.MULTILINE)
    )


def test_an_application_of_sparcl_h_learns_what_a_board_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """examples/embed ends in the digest of a session over the line, and has it again after a power cut."""
    monkeypatch.setenv("SPARCL_BUILD", str(tmp_path / "build"))
    experiment = tmp_path / "tiny.toml"
    experiment.write_text(EXPERIMENT)
    make = ["make", "-C", EMBED, f"EXPERIMENT={experiment}", f"OUT={tmp_path}", f"PYTHON={sys.executable}"]
    told = subprocess.run(make, capture_output=True, text=True, check=True).stdout
    project = pipeline.generate(experiment, "native")
    with FakeBoard(project.model) as board:
        result = stream(project, board.url)
    assert f"digest {result.state_digest:08x}, restored" in told
