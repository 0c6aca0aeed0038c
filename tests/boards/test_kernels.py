# SPDX-License-Identifier: Apache-2.0
"""Inner loops of fully connected layers with a core's vector instructions, against the plain C on the same core.

kernel_check.c runs them on the emulated board with every count from 0 on, so that lists end anywhere in a vector.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from sparcl_mcu.host_tools.emulator import Emulator, unavailable
from sparcl_mcu.spec import boards
from sparcl_mcu.spec.paths import ROOT
from tests.compiled import compile_c
from tests.firmware.native import board_build, generate
from tests.reference.models import random_model

pytestmark = pytest.mark.board

BOARD = "mps3_an547"
VECTORS = {"wlstp.32", "wlstp.16", "letp"}  # the others binutils take for a coprocessor's
PLAIN = ["-DSCL_MVE=0", "-DSCL_PAIRS=0"]


def build(folder: Path, extra: list[str]) -> Path:
    """kernel_check.c for the board."""
    folder.mkdir()
    facts = boards.load_board(BOARD)
    if shutil.which(board_build.tool(facts, "gcc")) is None or unavailable(BOARD):
        pytest.skip("no cross compiler or no emulator")
    generated = generate(random_model(1, stochastic=True), boards.load_board(BOARD), folder)
    (folder / "memory.ld").write_text(board_build.memory_ld(facts))
    sources = [Path(__file__).with_name("kernel_check.c")]
    sources += [ROOT / "firmware" / source for source in board_build.board_sources(facts)]
    image = folder / "kernel_check.elf"
    flags = [*board_build.compile_flags(facts), *(f"-I{p}" for p in board_build.include_folders(generated)), *extra]
    compile_c(
        [*flags, *sources, *board_build.link_flags(facts, str(folder)), "-o", image], board_build.tool(facts, "gcc")
    )
    return image


def instructions(image: Path) -> set[str]:
    """Mnemonics of the image's code."""
    objdump = board_build.tool(boards.load_board(BOARD), "objdump")
    out = subprocess.run([objdump, "-d", image], capture_output=True, text=True, check=True).stdout
    return {word for line in out.splitlines() for word in line.split("\t")[2:3]}


def said(image: Path, folder: Path) -> list[str]:
    """What the program says."""
    emulator = Emulator(folder, BOARD)
    try:
        port = int(emulator.start(image).rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port), 60.0) as line:
            line.sendall(b"!")
            text = b""
            while not text.endswith(b"end\n"):
                part = line.recv(4096)
                assert part, emulator.log_path.read_text(errors="replace")
                text += part
        return text.decode().splitlines()
    finally:
        emulator.stop()


def test_vectors_have_the_bits_of_plain_c(tmp_path: Path) -> None:
    """The same weights, sums, errors and random numbers."""
    vector, plain = build(tmp_path / "vector", []), build(tmp_path / "plain", PLAIN)
    assert instructions(vector) >= VECTORS
    assert not instructions(plain) & VECTORS
    expected = said(plain, tmp_path / "plain_board")
    assert len(expected) == 41 * (3 * 6 + 2) + 21 * 4 + 1
    assert said(vector, tmp_path / "vector_board") == expected
