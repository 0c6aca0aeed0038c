# SPDX-License-Identifier: Apache-2.0
"""The power fails at a flash operation of an emulated board: what was saved is there, and learning continues from it.

QEMU's debugger stub stops the unchanged firmware where a port's flash function begins.
There the emulator is killed, and the flash file gets what the operation would have done
by then: nothing, some units and some bits, or all.
"""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from sparcl_mcu.generator import plan
from sparcl_mcu.host_tools import protocol
from sparcl_mcu.host_tools.emulator import Emulator, _Qmp, free_port
from sparcl_mcu.host_tools.link import Link, LinkError
from sparcl_mcu.reference import Device
from sparcl_mcu.spec import boards
from sparcl_mcu.spec.types import Model
from tests.boards.test_end_to_end_random import EmulatedBoard, cross_build
from tests.firmware.native import Teacher
from tests.firmware.test_power_cuts import COUNT, TASKS, Cut, finish_task, session
from tests.reference.models import random_model

pytestmark = pytest.mark.board

BOARDS = ("microbit", "emcraft_sf2", "ast1030_evb")
WAYS = ("before", "torn", "after")
SECONDS = 120.0
"""Until a test that would hang fails."""
PROGRAM, ERASE = "scl_port_flash_program", "scl_port_flash_erase"
R0, R1, R2, LR, PC = 0, 1, 2, 14, 15


class Debugger:
    """A client of QEMU's debugger stub (GDB remote serial protocol)."""

    def __init__(self, emulator: Emulator) -> None:
        state = emulator.state()
        assert state is not None
        port = free_port()
        with _Qmp(state["qmp"]) as qmp:
            qmp.execute("human-monitor-command", **{"command-line": f"gdbserver tcp:127.0.0.1:{port}"})
        self._socket = socket.create_connection(("127.0.0.1", port), SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else each packet takes 40 ms
        self._file = self._socket.makefile("rwb")
        self.ask("?")
        self.ask("qC")

    def ask(self, packet: str) -> str:
        """Send a packet; the answer.  That the board stops when a client comes is said without being asked."""
        data = packet.encode()
        self._file.write(b"$%s#%02x" % (data, sum(data) & 0xFF))
        self._file.flush()
        answer = self._answer()
        while answer.startswith("T05") and packet not in ("?", "s", "c"):
            answer = self._answer()
        return answer

    def _answer(self) -> str:
        while self._file.read(1) != b"$":
            pass
        answer = b""
        while (byte := self._file.read(1)) != b"#":
            assert byte, "QEMU has ended"
            answer += byte
        self._file.read(2)
        self._file.write(b"+")
        self._file.flush()
        return answer.decode()

    def stop_at(self, address: int) -> None:
        """Set a breakpoint."""
        assert self.ask(f"Z0,{address & ~1:x},2") == "OK"

    def go(self) -> None:
        """Run to a breakpoint; a step first, as QEMU stops again at the one it stands on."""
        for packet in ("s", "c"):
            assert self.ask(packet).startswith("T05")

    def register(self, number: int) -> int:
        """A core register."""
        return int.from_bytes(bytes.fromhex(self.ask("g")[8 * number : 8 * number + 8]), "little")

    def memory(self, address: int, size: int) -> bytes:
        """Bytes of the board's memory."""
        return bytes.fromhex(self.ask(f"m{address:x},{size:x}"))

    def close(self) -> None:
        """Leave the board alone."""
        self._file.close()
        self._socket.close()


def addresses(image: Path) -> dict[str, int]:
    """Where the flash functions begin."""
    with image.open("rb") as file:
        symbols = ELFFile(file).get_section_by_name(".symtab")
        assert isinstance(symbols, SymbolTableSection)
        found = {s.name: s["st_value"] & ~1 for s in symbols.iter_symbols() if s.name in (PROGRAM, ERASE)}
    assert len(found) == 2
    return found


@dataclass(frozen=True)
class Veteran:
    """A board whose small ring has been used more than once; the reference at the same place."""

    model: Model
    board: boards.Board
    image: Path
    flash: bytes
    device: Device
    snapshot: int
    operations: int
    """Flash operations of one more session."""

    @contextmanager
    def running(self, folder: Path) -> Iterator[tuple[Cut, Emulator]]:
        """The board as it is then."""
        emulator = Emulator(folder, self.board.name)
        folder.mkdir(parents=True, exist_ok=True)
        emulator.flash_path.write_bytes(self.flash)
        try:
            twin = Cut(self.model, EmulatedBoard(emulator, self.image))
            twin.device, twin.saved, twin.snapshot = self.device.copy(), self.device.copy(), self.snapshot
            twin.check()
            yield twin, emulator
        finally:
            emulator.stop()


def grow_old(name: str, folder: Path, laps: int = 1) -> Veteran:
    """Sessions on the least partition that the plan allows, until each sector has been erased ``laps`` times."""
    model = random_model(5, sizes=(14, 24, 4), epochs=1, capacity=6, table=16)
    facts = boards.load_board(name)
    least = plan.plan(model, facts).store_bytes
    facts = replace(facts, store=replace(facts.store, size=least))
    image = cross_build(model, name, folder, planned=facts)
    emulator = Emulator(folder / "board", name)
    try:
        twin = Cut(model, EmulatedBoard(emulator, image))
        session(twin)
        while protocol.statistics(twin.link).erase_min < laps:
            session(twin)
        before = protocol.statistics(twin.link)
        device, snapshot = twin.device.copy(), twin.hello().snapshot
        twin.close()
        emulator.kill()
        flash = emulator.flash_path.read_bytes()
        twin.process.start()
        twin.link = Link(twin.process.url)
        twin.hello()
        session(twin)
        after = protocol.statistics(twin.link)
        twin.close()
        assert before.erases > 0
        return Veteran(model, facts, image, flash, device, snapshot, after.programs + after.erases)
    finally:
        emulator.stop()


def tear(board: boards.Board, flash: Path, address: int, data: bytes | None, rng: random.Random) -> None:
    """What a program of ``data``, or an erase (None), has done when the power fails amid it."""
    at = board.store.offset * (board.store.kind != "mapped") + address
    content = bytearray(flash.read_bytes())
    goal = data if data is not None else b"\xff" * board.store.sector
    whole = rng.randrange(0, len(goal), board.store.program_unit) if rng.random() < 0.5 else 0
    content[at : at + whole] = goal[:whole]
    share = rng.choice((0.1, 0.5, 0.9))
    for k in range(whole, len(goal)):
        bits = sum(1 << bit for bit in range(8) if rng.random() < share)
        content[at + k] ^= (content[at + k] ^ goal[k]) & bits
    flash.write_bytes(content)


def cut(veteran: Veteran, folder: Path, number: int, way: str) -> None:
    """One power failure at an operation of the session, and life after it."""
    with veteran.running(folder) as (twin, emulator):
        failed: list[BaseException] = []

        def learn() -> None:
            try:
                session(twin)
            except (LinkError, AssertionError) as error:
                failed.append(error)

        debugger = Debugger(emulator)
        where = addresses(veteran.image)
        for address in where.values():
            debugger.stop_at(address)
        learner = threading.Thread(target=learn)
        learner.start()
        for _ in range(number):
            debugger.go()
        address, erases = debugger.register(R0), debugger.register(PC) == where[ERASE]
        data = None if erases else debugger.memory(debugger.register(R1), debugger.register(R2))
        if way == "after":
            debugger.stop_at(debugger.register(LR))
            debugger.go()
        emulator.kill()
        debugger.close()
        learner.join(SECONDS)
        assert failed, "the session was not interrupted"
        if way == "torn":
            tear(veteran.board, emulator.flash_path, address, data, random.Random(number))
        states = {device.digest(): device for device in twin.candidates}
        twin.link.close()
        twin.link = Link(twin.process.start())
        twin.snapshot = twin.hello().snapshot
        found = protocol.digest(twin.link).state
        assert found in states, f"cut {way} operation {number}: the state is none that was saved"
        twin.device = states[found]
        twin.saved = twin.device.copy()
        twin.check_dump()
        finish_task(twin)
        teacher = Teacher(twin, number)
        teacher.begin(TASKS[number % 4], COUNT, streamed=False, seed=number)
        teacher.finish()
        twin.fall_back(power=False)
        twin.close()


def test_cut_on_a_board(tmp_path: Path) -> None:
    """The least: the operation before the last, torn, which is within the last snapshot."""
    veteran = grow_old("microbit", tmp_path, laps=0)
    cut(veteran, tmp_path / "cut", veteran.operations - 1, "torn")


@pytest.mark.slow
@pytest.mark.parametrize("board", BOARDS)
def test_cuts_on_boards(board: str, tmp_path: Path) -> None:
    """Operations spread over the session, in all ways; the first and the last among them."""
    veteran = grow_old(board, tmp_path)
    total = veteran.operations
    assert total > 60
    for index, number in enumerate(sorted({1, 2, total - 1, total, *range(3, total, total // 8)})):
        for way in WAYS if index % 4 == 0 else ("torn",):
            cut(veteran, tmp_path / f"{number}-{way}", number, way)
