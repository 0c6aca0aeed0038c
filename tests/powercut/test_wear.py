# SPDX-License-Identifier: Apache-2.0
"""Wear of the journal's flash: even over many tasks; at its end the board says so and keeps what it knows."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sparcl_mcu.host_tools import protocol
from sparcl_mcu.spec.paths import ROOT
from sparcl_mcu.spec.types import Model
from sparcl_mcu.spec.wire import Command
from tests.firmware.native import Process, Teacher, build
from tests.firmware.test_journal import STORE_ERROR, STORE_FULL, Historian
from tests.powercut import harness
from tests.powercut.harness import Geometry, Scenario, numbers, run, small_model
from tests.reference.models import random_samples, samples, task_begin

COUNT = 4


def cheap_model() -> Model:
    """Little to compute: what counts is the journal."""
    return small_model(epochs=1, capacity=4, table=8, tdm=False)


def thousand_tasks(geometry: Geometry, folder: Path) -> dict[str, int]:
    """What powercut says of 1000 tasks without a cut; a board counts 255, so all is forgotten after each 250."""
    model = cheap_model()
    board = harness.facts(model, geometry)
    scenario = Scenario(model, board)
    for number in range(1000):
        scenario.learn(number, streamed=number % 3 == 1, saves=number % 2, count=COUNT)
        if number % 250 == 249:
            scenario.send(Command.RESET, harness.FACTORY)
    path = scenario.write(folder / "scenario.bin", geometry)
    lines = list(run([str(harness.build(model, board, folder)), str(path), "record"]))
    assert lines[-1].startswith("recorded"), lines
    return numbers(lines[-1])


@pytest.mark.parametrize("sector", [1024, 4096])
def test_wear_is_even_over_a_thousand_tasks(sector: int, tmp_path: Path) -> None:
    """The most erased sector and the least differ by 2 at most; counted by the flash, not by the journal."""
    recorded = thousand_tasks(Geometry(8, sector, extra=3), tmp_path)
    assert recorded["erased_min"] > 100
    assert recorded["erased_max"] - recorded["erased_min"] <= 2


def wear_of(flash: Path) -> list[int]:
    """Erases of each sector, as the native board's flash counts them."""
    data = flash.with_name(flash.name + ".wear").read_bytes()
    return [count for (count,) in struct.iter_unpack("<I", data)]


def ask(twin: Historian, command: int, request: bytes = b"") -> int:
    """A request to the board, and when it is accepted to the reference; its status."""
    before = twin.device.copy()
    status, _ = twin.ask(command, request)
    if status == 0:
        twin.device.apply(command, request)
    snapshot = twin.hello().snapshot
    if snapshot != twin.snapshot:
        own = command in (Command.SAVE, Command.TASK_END)
        twin.saved = (twin.device if own else before).copy()
    twin.snapshot = snapshot
    return status


def learn_until_refused(twin: Historian) -> tuple[int, int]:
    """Tasks until the board refuses: the command and its status."""
    for number in range(400):
        classes = harness.TASKS[number % 4]
        x, y = random_samples(twin.model, classes, COUNT, number)
        requests = [(Command.TASK_BEGIN, task_begin(classes, COUNT)), (Command.SAMPLES, samples(0, x, y))]
        requests += [(Command.TRAIN, struct.pack("<HB", COUNT, 0)), (Command.TASK_END, b"")]
        for command, request in requests:
            status = ask(twin, command, request)
            if status:
                return command, status
            twin.check()
    raise AssertionError("no sector wore out")


def test_a_worn_out_journal(tmp_path: Path) -> None:
    """Every sector has had its erases: a clear refusal; the state is there, answers go on, also after a restart."""
    model = cheap_model()
    board = harness.facts(model, Geometry(8, 1024, extra=3))
    board = replace(board, store=replace(board.store, endurance=6))
    process = Process(build(model, tmp_path, board))
    process.start()
    try:
        twin = Historian(model, process)
        _, status = learn_until_refused(twin)
        assert status == STORE_FULL
        assert set(wear_of(process.flash)) == {6}
        counted = protocol.statistics(twin.link)
        assert counted.retired_sectors > 0
        twin.check()  # the state before the request
        twin.check_dump()
        for _ in range(3):
            assert ask(twin, Command.SAVE) == STORE_FULL
            twin.check_dump()
            Teacher(twin, 1).evaluate()
        assert twin.ask(Command.RESET, protocol.reset_request(twin.hello(), protocol.FACTORY))[0] == STORE_FULL
        twin.device = twin.saved.copy()  # a reset that cannot be written changes nothing
        twin.check_dump()
        twin.fall_back(power=True)
        Teacher(twin, 1).evaluate()
        twin.close()
    finally:
        process.kill()


def test_the_native_flash_counts_and_ends(tmp_path: Path) -> None:
    """Erases are counted beside the flash file, over restarts, and no sector is erased more often than it endures."""
    model = cheap_model()
    board = harness.facts(model, Geometry(8, 1024, extra=3))
    process = Process(build(model, tmp_path, board))
    process.start()
    try:
        twin = Historian(model, process)
        for _ in range(3):
            twin.good(Command.SAVE)
        erases = protocol.statistics(twin.link).erases
        twin.power_cut()
        assert sum(wear_of(process.flash)) == erases > 0
        twin.good(Command.SAVE)
        assert sum(wear_of(process.flash)) == erases + protocol.statistics(twin.link).erases
        twin.close()
    finally:
        process.kill()


def test_worn_sectors_close_together(tmp_path: Path) -> None:
    """Nine sectors that fail side by side, in all ways, amid a snapshot: it is complete behind them."""
    geometry = replace(next(g for g in harness.GEOMETRIES if g.name == "u8-s1024-worn"), extra=30)
    model = small_model(table=16)
    board = harness.facts(model, geometry)
    scenario = Scenario(model, board)
    scenario.learn(0, streamed=False, saves=0)
    for _ in range(60):
        scenario.send(Command.SAVE)
    path = scenario.write(tmp_path / "scenario.bin", geometry)
    command = [str(harness.build(model, board, tmp_path)), str(path), "sweep", "1", "9", "1", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    lines = done.stdout.splitlines()
    assert numbers(lines[0])["retired"] > 30
    assert numbers(lines[-1])["lost"] == 0


WRAP = "-Wl,--wrap=scl_port_flash_program,--wrap=scl_port_flash_erase"


class Breaker:
    """Switches the flash of broken.c."""

    def __init__(self, file: Path) -> None:
        self._file = file

    @contextmanager
    def after(self, programs: int) -> Iterator[None]:
        """It takes so many programs more, then none until the end."""
        self._file.write_text(f"{programs}\n")
        yield
        self._file.unlink()

    @contextmanager
    def no_erase(self) -> Iterator[None]:
        """No sector can be erased until the end."""
        self._file.write_text("erase\n")
        yield
        self._file.unlink()


@pytest.fixture
def breakable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Historian, Breaker]]:
    """A board whose flash can be broken; it has learned a task."""
    model = cheap_model()
    board = harness.facts(model, Geometry(8, 1024, extra=30))
    monkeypatch.setenv("SCL_BROKEN", str(tmp_path / "broken"))
    source = ROOT / "tests" / "firmware" / "broken.c"
    process = Process(build(model, tmp_path, board, [str(source), WRAP]))
    process.start()
    try:
        twin = Historian(model, process)
        teacher = Teacher(twin, 1)
        teacher.begin((0, 1), COUNT, streamed=False, seed=0)
        teacher.finish()
        yield twin, Breaker(tmp_path / "broken")
        twin.close()
    finally:
        process.kill()


def test_a_flash_that_fails_altogether(breakable: tuple[Historian, Breaker]) -> None:
    """The command is refused after some sectors; what the board knows stays, and no sector is lost for good."""
    twin, breaker = breakable
    free = protocol.statistics(twin.link).sectors_free
    with breaker.after(0):
        for _ in range(3):
            assert ask(twin, Command.SAVE) == STORE_ERROR
            twin.check_dump()
            Teacher(twin, 1).evaluate()
        assert protocol.statistics(twin.link).sectors_free == free
    twin.good(Command.SAVE)
    twin.fall_back(power=True)


def test_a_flash_that_erases_nothing(breakable: tuple[Historian, Breaker]) -> None:
    """The command is refused when each sector was tried once; then all is as before."""
    twin, breaker = breakable
    for _ in range(2):
        with breaker.no_erase():
            assert ask(twin, Command.SAVE) in (STORE_FULL, STORE_ERROR)
            twin.check_dump()
    twin.good(Command.SAVE)
    twin.fall_back(power=True)


def test_the_state_after_a_store_error(breakable: tuple[Historian, Breaker]) -> None:
    """As docs/spec/protocol.md says: that before the request, or for one that trains that of the last save."""
    twin, breaker = breakable
    x, y = random_samples(twin.model, (2, 3), COUNT, 1)

    def refused(programs: int, command: int, request: bytes) -> None:
        with breaker.after(programs):
            assert ask(twin, command, request) == STORE_ERROR
            twin.check()
        twin.check_dump()

    twin.good(Command.TASK_BEGIN, task_begin((2, 3), COUNT))
    refused(3, Command.SAMPLES, samples(0, x, y))  # some are stored
    twin.good(Command.SAMPLES, samples(0, x, y))
    refused(2, Command.SAVE, b"")
    twin.good(Command.TRAIN, struct.pack("<HB", COUNT, 0))
    refused(0, Command.TASK_END, b"")
    refused(4, Command.TASK_END, b"")
    twin.good(Command.TASK_END)

    twin.good(Command.TASK_BEGIN, task_begin((2, 3), COUNT, 1))
    twin.good(Command.TRAIN, b"\0\0\0")
    for programs in (0, 1):  # the sample's record, that of its logits
        ids = np.array(twin.device.state.table.ids)
        with breaker.after(programs):
            assert twin.ask(Command.STEP, protocol.pack_steps(ids, y[ids], x[ids], 0))[0] == STORE_ERROR
            assert twin.hello().restored
            twin.device = twin.saved.copy()
            twin.check()
        twin.check_dump()
        twin.good(Command.TASK_BEGIN, task_begin((2, 3), COUNT, 1))
        twin.good(Command.TRAIN, b"\0\0\0")
    with breaker.after(0):
        assert twin.ask(Command.RESET, protocol.reset_request(twin.hello(), protocol.FACTORY))[0] == STORE_ERROR
    twin.device = twin.saved.copy()
    twin.check_dump()
    twin.good(Command.RESET, protocol.reset_request(twin.hello(), protocol.FACTORY))
    assert not twin.restart().restored
