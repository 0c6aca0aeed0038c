# SPDX-License-Identifier: Apache-2.0
"""The power fails inside a flash operation, at each in turn: the board comes back with a state that was saved.

cut.c leaves the operation torn.  The parameter of a failing test is the number
of the operation that replays it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from sparcl_mcu.generator import plan
from sparcl_mcu.host_tools import protocol
from sparcl_mcu.host_tools.link import Link, LinkError
from sparcl_mcu.reference import Device
from sparcl_mcu.spec.types import Method, Model
from sparcl_mcu.spec.wire import Command, Phase
from tests.firmware.native import Process, Teacher, board_facts, build
from tests.firmware.test_journal import Historian
from tests.reference.models import random_model, random_samples, samples

WRAP = "-Wl,--wrap=scl_port_flash_program,--wrap=scl_port_flash_erase"
SECTOR, UNIT = 512, 8
TASKS = [(0, 1), (2, 3), (1, 2), (0, 3)]
COUNT = 12
CUT = 9
"""Exit status of cut.c."""


@dataclass(frozen=True)
class Veteran:
    """A board whose ring is full: its model, program, flash, and the reference at the same place."""

    model: Model
    image: Path
    flash: bytes
    device: Device
    snapshot: int

    def start(self, process: Process) -> Cut:
        """The board, and its twin, as they are after some tasks."""
        process.flash.write_bytes(self.flash)
        process.start()
        twin = Cut(self.model, process)
        twin.device, twin.saved, twin.snapshot = self.device.copy(), self.device.copy(), self.snapshot
        twin.check()
        return twin


@pytest.fixture(scope="module")
def veteran(tmp_path_factory: pytest.TempPathFactory) -> Veteran:
    """The least partition the plan allows, all of it used more than once, with a snapshot of several sectors."""
    model = random_model(5, sizes=(14, 24, 4), epochs=1, capacity=6, table=16)
    folder = tmp_path_factory.mktemp("cuts")
    store = {"sector": SECTOR, "program_unit": UNIT}
    board = board_facts(**store, size=plan.plan(model, board_facts(**store)).store_bytes)
    image = build(model, folder, board, [str(Path(__file__).with_name("cut.c")), WRAP])
    process = Process(image)
    process.start()
    try:
        twin = Cut(model, process)
        for _ in range(5):
            session(twin)
        assert protocol.statistics(twin.link).erase_min >= 2
        snapshot = twin.hello().snapshot
        twin.close()
        process.kill()
        return Veteran(model, image, process.flash.read_bytes(), twin.device, snapshot)
    finally:
        process.kill()


def session(twin: Historian) -> None:
    """Tasks with saves in the middle."""
    teacher = Teacher(twin, 3)
    for number, classes in enumerate(TASKS):
        teacher.begin(classes, COUNT, streamed=number % 2 == 1, seed=number)
        teacher.advance(5)
        twin.good(Command.SAVE)
        teacher.finish()


class Cut(Historian):
    """A twin that also knows the states around a command that is never answered."""

    candidates: tuple[Device, ...] = ()

    def send(self, command: int, request: bytes = b"") -> bytes | None:
        """The saved state, that before the command, or that after it: one of these has to come back."""
        after = self.device.copy()
        after.apply(command, request)
        self.candidates = (self.saved, self.device.copy(), after)
        return super().send(command, request)


def operations(veteran: Veteran, folder: Path) -> int:
    """How many flash operations the session takes."""
    process = Process(veteran.image, folder)
    try:
        twin = veteran.start(process)
        session(twin)
        counted = protocol.statistics(twin.link)
        twin.close()
        return counted.programs + counted.erases
    finally:
        process.kill()


def cut_at(veteran: Veteran, folder: Path, number: int) -> None:
    """One power failure, and life after it."""
    folder.mkdir(exist_ok=True)
    process = Process(veteran.image, folder)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SCL_CUT_AT", str(number))
            twin = veteran.start(process)
        with pytest.raises((LinkError, AssertionError)):
            session(twin)
        assert (process.ended(), process.errors()) == (CUT, "")
        candidates = {device.digest(): device for device in twin.candidates}
        twin.link.close()
        process.kill()
        twin.link = Link(process.start())
        twin.snapshot = twin.hello().snapshot
        found = protocol.digest(twin.link).state
        assert found in candidates, f"cut at operation {number}: the state is none that was saved"
        twin.device = candidates[found]
        twin.saved = twin.device.copy()
        twin.check_dump()
        finish_task(twin)
        for task in range(6):
            Teacher(twin, task).begin(TASKS[task % 4], COUNT, streamed=False, seed=task)
            if task % 2:
                twin.fall_back(power=True)  # to the last save: the samples just sent are forgotten
                Teacher(twin, task).begin(TASKS[task % 4], COUNT, streamed=False, seed=task)
            Teacher(twin, task).finish()
            twin.fall_back(power=False)
        twin.close()
    finally:
        process.kill()


def finish_task(twin: Historian) -> None:
    """Continue the task that was interrupted."""
    device = twin.device
    if device.phase == Phase.IDLE:
        return
    index = device.task % len(TASKS)
    teacher = Teacher(twin, 4)
    teacher.x, teacher.y = random_samples(twin.model, TASKS[index], COUNT, index)
    if device.phase == Phase.FILLING:
        received = device.received
        twin.good(Command.SAMPLES, samples(received, teacher.x[received:], teacher.y[received:]))
    teacher.finish()


def test_cuts(veteran: Veteran, tmp_path: Path) -> None:
    """At some operations spread over the session, the first and the last ones among them."""
    total = operations(veteran, tmp_path)
    assert total > 150
    for number in sorted({1, 2, total - 1, total, *range(3, total, total // 12)}):
        cut_at(veteran, tmp_path / str(number), number)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_every_cut(veteran: Veteran, tmp_path: Path, part: int) -> None:
    """At every operation."""
    total = operations(veteran, tmp_path)
    for number in range(1 + part, total + 1, 4):
        cut_at(veteran, tmp_path / str(number), number)


def test_worn_sectors_are_left_behind(tmp_path: Path) -> None:
    """Three sectors in 31 fail, each in its own way (worn.c): nothing is lost, also not by restarts."""
    model = random_model(5, sizes=(14, 24, 4), epochs=1, capacity=6, table=16)
    board = board_facts(sector=SECTOR, program_unit=UNIT, size=96 * SECTOR)
    image = build(model, tmp_path, board, [str(Path(__file__).with_name("worn.c")), WRAP])
    process = Process(image)
    process.start()
    try:
        twin = Cut(model, process)
        for _ in range(4):
            session(twin)
            twin.check_dump()
        assert protocol.statistics(twin.link).retired_sectors > 0
        twin.power_cut()
        twin.check()
        twin.check_dump()
        session(twin)
        twin.check_dump()
        twin.close()
    finally:
        process.kill()


def test_worn_sectors_where_nothing_else_is_kept(tmp_path: Path) -> None:
    """Without replay the snapshot is all there is: the board comes back with it though a sector before it is worn."""
    model = random_model(5, sizes=(14, 24, 4), epochs=1, method=Method.FINETUNE, capacity=0, table=16)
    board = board_facts(sector=SECTOR, program_unit=UNIT, size=96 * SECTOR)
    process = Process(build(model, tmp_path, board, [str(Path(__file__).with_name("worn.c")), WRAP]))
    process.start()
    try:
        twin = Cut(model, process)
        for _ in range(96):
            twin.good(Command.SAVE)
            snapshot = twin.hello().snapshot
            state = twin.power_cut()
            assert (state.snapshot, state.restored) == (snapshot, 1)
        twin.check_dump()
        twin.close()
    finally:
        process.kill()
