# SPDX-License-Identifier: Apache-2.0
"""board.toml has one reader, and it takes nothing that it does not know."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sparcl_mcu.spec.boards import BOARDS, board_names, boards, load_board
from sparcl_mcu.spec.errors import UserError
from sparcl_mcu.spec.paths import ROOT


def project(folder: Path, old: str, new: str, name: str = "microbit") -> Path:
    """A project with one board, whose board.toml has ``new`` in place of ``old``."""
    text = (BOARDS / "microbit" / "board.toml").read_text()
    assert text.count(old) == 1
    board = folder / "firmware" / "boards" / name
    board.mkdir(parents=True)
    (board / "board.toml").write_text(text.replace(old, new))
    return folder


def test_every_board_is_read() -> None:
    """All of them, and the values have the types of their fields."""
    assert [board.name for board in boards()] == board_names()
    microbit = load_board("microbit")
    assert microbit.memory.flash_origin == 0
    assert microbit.timer.ticks_per_instruction == 0.016
    assert microbit.build.cflags == ("-mcpu=cortex-m0", "-mthumb", "-mfloat-abi=soft")
    assert microbit.store.endurance == 10_000
    assert microbit.store.mapped
    assert microbit.silicon.active_ma == 4.4
    assert load_board("native").on_host


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "offset = 0x20000",
            "offset = 0x20000\nendurence = 5",
            "store.endurence: unknown key; did you mean 'endurance'?",
        ),
        ("[silicon]", "[sillicon]", "sillicon: unknown key; did you mean 'silicon'?"),
        ("sector = 1024\n", "", "store.sector: missing"),
        ("sector = 1024", 'sector = "1024"', "store.sector: int, not '1024'"),
        ("sector = 1024", "sector = true", "store.sector: int, not True"),
        ("sector = 1024", "sector = -1024", "store.sector: -1024 is negative"),
        ("erased = 0xFF", "erased = 0x80", "store.erased: one of [0, 255], not 128"),
        ("baud = 115200", "baud = 115200\nwindow = 17", "link.window: 1 to 16"),
        ("period_ms = 4000", "period_ms = 99", "watchdog.period_ms: at least 100"),
        ('ram_block = "nrf51_soc.flash"', "", "emulator.flash = 'window' needs ram_block"),
        ('"window" # a', '"mtd" # a', "emulator.flash = 'mtd' needs device_bytes"),
        ("port = 5602", "", "emulator.kind = 'qemu' needs port"),
        ('sources = ["port/cortexm/startup.c"]', 'sources = "x"', "build.sources: a list of strings"),
        ("[timer]", "[timer", "board.toml: "),
        ('core = "cortex-m0"', "core = 0", "core: str, not 0"),
        ('name = "microbit"', 'name = "other"', "name: 'other', but the folder is 'microbit'"),
        ("sector = 1024", "sector = 1000", "store.size: whole sectors of 1000 bytes"),
        ("program_unit = 4", "program_unit = 3", "store.sector: whole program units of 3 bytes"),
        ("program_unit = 4", "program_unit = 0", "store.sector, program_unit: at least 1"),
        ("offset = 0x20000", "offset = 0x20000\nendurance = 0", "store.endurance: at least 1"),
    ],
)
def test_a_wrong_file_is_refused(old: str, new: str, says: str, tmp_path: Path) -> None:
    """With the key, what is wrong with it, and the file."""
    with pytest.raises(UserError) as refused:
        load_board("microbit", project(tmp_path, old, new))
    assert says in str(refused.value)
    assert str(tmp_path / "firmware/boards/microbit/board.toml") in str(refused.value)


def test_an_unknown_board_is_named_with_the_nearest_one() -> None:
    """And with all others."""
    with pytest.raises(UserError, match=r"unknown board 'micorbit'; did you mean 'microbit'\? \(known: .*native"):
        load_board("micorbit")


def test_it_is_read_by_a_python_without_packages() -> None:
    """PlatformIO may have one of its own: neither the package nor anything installed is needed."""
    program = f"import sys; sys.path.append({str(ROOT)!r}); from spec.boards import boards; print(len(boards()))"
    done = subprocess.run([sys.executable, "-S", "-I", "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) == len(board_names())
