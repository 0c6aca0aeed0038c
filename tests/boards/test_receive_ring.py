# SPDX-License-Identifier: Apache-2.0
"""Boards that take several requests at once: what comes while they work waits in the port's receive ring."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparcl_mcu.host_tools import link, protocol
from sparcl_mcu.host_tools.emulator import Emulator
from sparcl_mcu.host_tools.link import Link
from sparcl_mcu.spec import boards
from sparcl_mcu.spec.wire import Command
from tests.boards.test_end_to_end_random import EmulatedBoard, cross_build
from tests.boards.test_ports import address_of
from tests.boards.test_power_cuts import Debugger
from tests.firmware.native import Twin
from tests.firmware.test_window import CLASSES, learn
from tests.line import BadFrames, Proxy, whole
from tests.reference.models import random_model, random_samples

pytestmark = pytest.mark.board

INTERRUPT_IDENTIFICATION = {"emcraft_sf2": 0x40000008, "ast1030_evb": 0x7E784008}
"""Where the UART says why it has interrupted."""
BOARDS = tuple(INTERRUPT_IDENTIFICATION)


MODEL = random_model(12, sizes=(16, 12, CLASSES), table=1024, capacity=20)


@pytest.mark.parametrize("board", BOARDS)
def test_no_byte_waits_for_those_behind_it(board: str, tmp_path: Path) -> None:
    """The interrupt says that data is there (4), not that the line has paused (12)."""
    emulator = Emulator(tmp_path / "board", board)
    image = cross_build(MODEL, board, tmp_path)
    try:
        with Link(emulator.start(image)) as line:
            protocol.wait_for_hello(line)
        debugger = Debugger(emulator)
        debugger.stop_at(address_of(image, "scl_cortexm_interrupt"))
        with Link(str(emulator.url)):  # says a zero byte
            debugger.go()
        assert debugger.memory(INTERRUPT_IDENTIFICATION[board], 1)[0] & 15 == 4
        debugger.close()
    finally:
        emulator.stop()


@pytest.mark.parametrize("board", BOARDS)
def test_several_requests_under_way(board: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as board.toml says are sent before the first reply; then whole tasks on a bad line."""
    window = boards.load_board(board).link.window
    assert window > 1
    monkeypatch.setattr(link, "SHORTEST_WAIT", 0.5)
    model = MODEL
    emulator = Emulator(tmp_path / "board", board)
    try:
        twin = Twin(model, EmulatedBoard(emulator, cross_build(model, board, tmp_path)))
        twin.link.close()
        with Proxy(twin.process.url) as proxy:
            twin.link = Link(proxy.url)
            # However busy the computer is, no reply counts as late until all are there.
            twin.link._slowest = dict.fromkeys(Command, 15.0)
            each = protocol.samples_per_frame(twin.hello())
            x, y = random_samples(model, (0, 1), window * each, 3)
            protocol.task_begin(twin.link, (0, 1), len(x), streamed=False)
            state = twin.hello()
            proxy.hold = window
            assert list(protocol.samples(twin.link, state, y, x)) == [each * k for k in range(1, window + 1)]
            assert (proxy.most, twin.link.retries) == (window, 0)
            twin.link._slowest = dict.fromkeys(Command, 0.0)
            proxy.hold = 1
            protocol.reset(twin.link, protocol.FACTORY)
            proxy.hear = proxy.say = BadFrames(1, 1 / 20)
            learn(twin, tmp_path / "r.sclr")
            proxy.hear = proxy.say = whole
            assert twin.link.retries > 0
            twin.check_dump()
            twin.close()
    finally:
        emulator.stop()
