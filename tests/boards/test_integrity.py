# SPDX-License-Identifier: Apache-2.0
"""Faults in emulated boards while they learn: bits flipped in their RAM, a core that hangs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sparcl_mcu.host_tools import validate
from sparcl_mcu.host_tools.protocol import TrainingReply
from sparcl_mcu.host_tools.stream import STATE_DAMAGED, WATCHDOG, Observer, stream
from tests.boards.gdb import Gdb
from tests.boards.test_end_to_end import Sparcl, expected, require, sparcl
from tests.boards.test_ports import address_of

__all__ = ["expected", "sparcl"]

pytestmark = pytest.mark.board

ENDLESS_LOOP = b"\xfe\xe7"
"""Thumb: b ."""


class Saboteur(Observer):
    """Does something to the board once, at the first reply of an epoch."""

    def __init__(self, when: tuple[str, int], what: Callable[[], None]) -> None:
        self.when, self.what = when, what
        self.done = 0
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def training(self, task: str, epoch: int, epochs: int, reply: TrainingReply) -> None:
        if (task, epoch) == self.when and not self.done:
            self.done += 1
            self.what()


def sabotage(
    sparcl: Sparcl, board: str, monkeypatch: pytest.MonkeyPatch, fault: Callable[[Gdb, Path], None]
) -> tuple[list[str], list[str], str, bool]:
    """A session in which ``fault`` happens: resets, messages, final digest, whether it was bit-exact."""
    require(board)
    monkeypatch.setenv("SCL_EXTRA_CFLAGS", "-DSCL_WATCHDOG_MS=200u")
    project = sparcl.boot(board, monkeypatch)
    emulator = sparcl.emulator(board)

    def happen() -> None:
        with Gdb(emulator) as gdb:
            fault(gdb, project.image)

    saboteur = Saboteur(("2/3", 1), happen)
    assert emulator.url is not None
    result = stream(project, emulator.url, observer=saboteur)
    emulator.stop()
    assert saboteur.done == 1
    exact = validate.validate(project)[0].bit_exact
    return result.resets, saboteur.messages, f"{result.state_digest:08x}", exact


@pytest.mark.parametrize("board", ["ast1030_evb", "microbit"])
@pytest.mark.parametrize("symbol", ["layer0_panel0_weight", "scl_learner"])
def test_a_bit_of_ram_flips(
    board: str, symbol: str, sparcl: Sparcl, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flip(gdb: Gdb, image: Path) -> None:
        gdb.flip(address_of(image, symbol), 35)

    resets, messages, digest, exact = sabotage(sparcl, board, monkeypatch, flip)
    assert resets == [STATE_DAMAGED]
    assert any("rolled back to step" in text for text in messages)
    assert (digest, exact) == (expected, True)


@pytest.mark.parametrize("board", ["ast1030_evb", "emcraft_sf2", "mps3_an547"])
def test_a_board_that_hangs_is_reset(
    board: str, sparcl: Sparcl, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The core is sent to an endless loop in work space."""

    def hang(gdb: Gdb, image: Path) -> None:
        loop = address_of(image, "scl_scratch")
        gdb.write(loop, ENDLESS_LOOP)
        gdb.go_on_at(loop)

    resets, messages, digest, exact = sabotage(sparcl, board, monkeypatch, hang)
    assert resets == [WATCHDOG]
    assert any("watchdog" in text for text in messages)
    assert (digest, exact) == (expected, True)
