# SPDX-License-Identifier: Apache-2.0
"""Every board's port, function by function, on the emulated board.

port_check.c exposes scl_port.h over the serial line; it is built with the
flags, sources and linker script of the board's board.toml.
"""

from __future__ import annotations

import configparser
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import board_build  # from platforms/common
import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from sparcl_mcu.host_tools.emulator import Emulator, EmulatorError, free_url, unavailable
from sparcl_mcu.spec.boards import Board as Facts
from sparcl_mcu.spec.boards import boards, load_board
from sparcl_mcu.spec.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
BOARDS = ("native", "microbit", "emcraft_sf2", "ast1030_evb", "mps3_an547")
POWER_ON, PIN, SOFTWARE, WATCHDOG = 1, 2, 3, 4
WATCHDOG_MS = 500  # instead of board.toml's seconds
PATIENCE = 30.0  # seconds until a test that would hang fails; never waited for otherwise


def board_header(board: Facts) -> str:
    """scl_board.h as the generator renders it (the part that ports use)."""
    store = board.store
    values = {
        "SCL_BOARD_NAME": f'"{board.name}"',
        "SCL_FLASH_SIZE": f"{store.size}U",
        "SCL_FLASH_SECTOR": f"{store.sector}U",
        "SCL_FLASH_PROGRAM_UNIT": f"{store.program_unit}U",
        "SCL_FLASH_MAPPED": int(store.kind == "mapped"),
        "SCL_FLASH_ERASED": f"{store.erased:#x}U",
        "SCL_FLASH_ENDURANCE": "10000U",
        "SCL_FLASH_OFFSET": f"{store.offset}U",
        "SCL_FLASH_MAPPED_BASE": f"{store.mapped_base}U",
        "SCL_STACK_BYTES": f"{board.memory.stack_bytes}U",
        "SCL_MAX_PAYLOAD": f"{board.link.max_payload}U",
        "SCL_LINE_PAYLOAD": f"{board.link.max_payload}U",
        "SCL_WINDOW": f"{board.link.window}U",
        "SCL_STEPS_PER_REQUEST": f"{board.link.steps_per_request}U",
        "SCL_WATCHDOG_MS": f"{WATCHDOG_MS}U",
        "SCL_HAS_FAULTS": int(not board.on_host),  # for port_check.c only
    }
    return "#pragma once\n" + "".join(f"#define {k} {v}\n" for k, v in values.items())


def build(board: Facts, folder: Path) -> Path:
    (folder / "scl_board.h").write_text(board_header(board))
    (folder / "memory.ld").write_text(board_build.memory_ld(board))
    image = folder / "port_check.elf"
    sources = [ROOT / "firmware" / s for s in board_build.board_sources(board)]
    command = [
        board_build.tool(board, "gcc"),
        *board_build.compile_flags(board),
        *(f"-I{p}" for p in board_build.include_folders(folder)),
        *(str(s) for s in [Path(__file__).with_name("port_check.c"), *sources]),
        *board_build.link_flags(board, str(folder)),
        "-o",
        str(image),
    ]
    subprocess.run(command, check=True)
    return image


class Board:
    """The host's side of port_check.c."""

    def __init__(self, emulator: Emulator, facts: Facts) -> None:
        self.emulator = emulator
        self.facts = facts
        self.store = facts.store
        self.nonce = 0
        self.line: socket.socket | None = None

    def connect(self) -> None:
        self.close()
        url = self.emulator.url
        assert url is not None
        self.line = socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), PATIENCE)
        self.line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.info()

    def close(self) -> None:
        if self.line is not None:
            self.line.close()
            self.line = None

    def send(self, data: bytes) -> None:
        assert self.line is not None
        self.line.sendall(data)

    def receive(self, size: int) -> bytes:
        assert self.line is not None
        data = b""
        while len(data) < size:
            part = self.line.recv(size - len(data))
            assert part, "the board closed the line"
            data += part
        return data

    def info(self) -> tuple[int, int]:
        """Reset reason and stack use; asks again while the board still starts."""
        assert self.line is not None
        seen = b""
        for _ in range(60):
            self.nonce = self.nonce % 200 + 1
            begin = bytes([ord("i"), self.nonce])
            self.send(b"I" + begin[1:])
            self.line.settimeout(0.5)
            try:
                while begin not in seen or len(seen) < seen.index(begin) + 7:
                    seen += self.receive(1)
            except TimeoutError:
                continue
            finally:
                self.line.settimeout(PATIENCE)
            return struct.unpack_from("<BI", seen, seen.index(begin) + 2)
        raise AssertionError(f"no answer: {seen!r}")

    def await_start(self) -> None:
        """After a reset on an open line."""
        while self.receive(1) != b"!":
            pass

    def echo(self, data: bytes) -> bytes:
        self.send(b"E" + struct.pack("<H", len(data)) + data)
        return self.receive(len(data))

    def result(self) -> int:
        return int(struct.unpack("<i", self.receive(4))[0])

    def erase(self, address: int) -> int:
        self.send(b"e" + struct.pack("<I", address))
        return self.result()

    def program(self, address: int, data: bytes) -> int:
        self.send(b"p" + struct.pack("<IH", address, len(data)) + data)
        return self.result()

    def read(self, address: int, size: int) -> bytes:
        self.send(b"r" + struct.pack("<IH", address, size))
        assert self.result() == 0
        return self.receive(size)

    def measure(self, rounds: int) -> tuple[int, int]:
        self.send(b"t" + struct.pack("<I", rounds))
        ticks, result = struct.unpack("<II", self.receive(8))
        return ticks, result


@pytest.fixture(scope="module", params=BOARDS)
def facts(request: pytest.FixtureRequest) -> Facts:
    board = load_board(request.param)
    reason = unavailable(request.param)
    if reason is not None:
        pytest.skip(reason)
    needed = [board_build.tool(board, "gcc")]
    if board.emulator is not None and board.emulator.flash == "window":
        needed.append("gcc")
    missing = [program for program in needed if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    return board


@pytest.fixture(scope="module")
def image(facts: Facts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(facts, tmp_path_factory.mktemp(facts.name))


@pytest.fixture(scope="module")
def board(facts: Facts, image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    emulator = Emulator(tmp_path_factory.mktemp("state"), facts.name)
    emulator.start(image)
    board = Board(emulator, facts)
    try:
        board.connect()
        yield board
    finally:
        board.close()
        emulator.stop()


def test_first_start_is_power_on_and_stack_is_measured(board: Board) -> None:
    reason, stack = board.info()
    assert reason == POWER_ON
    if board.facts.on_host:
        assert stack == 0
    else:
        assert 16 < stack < board.facts.memory.stack_bytes // 2


def test_serial_line_carries_every_byte_value(board: Board) -> None:
    values = bytes(range(256))
    assert board.echo(values) == values


def test_serial_line_carries_bursts(board: Board) -> None:
    for seed in range(8):
        burst = bytes((seed * 37 + i * i) & 0xFF for i in range(1024))
        assert board.echo(burst) == burst


def test_flash_erase_program_read(board: Board) -> None:
    sector, unit = board.store.sector, board.store.program_unit
    for address in (0, board.store.size - sector):
        assert board.erase(address) == 0
        assert board.read(address, 1024) == b"\xff" * 1024
        data = bytes((i * 7 + 3) & 0xFF for i in range(1000 // unit * unit))
        start = address + 5 * unit  # crosses pages, begins at none
        assert board.program(start, data[: sector - 5 * unit]) == 0
        assert board.read(start, 600) == data[:600]
        assert board.read(address, 5 * unit) == b"\xff" * 5 * unit
        assert board.read(start + 3, 7) == data[3:10]


def test_any_size_is_programmed_and_read(board: Board) -> None:
    """A serial flash moves bytes in bursts: sizes below, at and above each, from every remainder of an address."""
    unit, sizes = board.store.program_unit, (*range(1, 9), 31, 32, 33, 63, 64, 65, 96, 100)
    assert board.erase(0) == 0
    address = 0
    for size in sizes:
        data = bytes((size * 5 + i * 3) & 0xFF for i in range(-(-size // unit) * unit))
        assert board.program(address, data) == 0
        assert [board.read(address + skip, size - skip) for skip in range(min(size, 4))] == [
            data[skip:size] for skip in range(min(size, 4))
        ]
        address += len(data)
    assert board.read(address, 64) == b"\xff" * 64


def test_erase_leaves_the_neighbours(board: Board) -> None:
    sector = board.store.sector
    for i in range(3):
        assert board.erase(i * sector) == 0
        assert board.program(i * sector, b"\x11\x22\x33\x44") == 0
        assert board.program((i + 1) * sector - 4, b"\x55\x66\x77\x88") == 0
    assert board.erase(sector) == 0
    assert board.read(sector, 4) == board.read(2 * sector - 4, 4) == b"\xff" * 4
    for i in (0, 2):
        assert board.read(i * sector, 4) == b"\x11\x22\x33\x44"
        assert board.read((i + 1) * sector - 4, 4) == b"\x55\x66\x77\x88"


def test_programming_only_clears_bits(board: Board) -> None:
    assert board.erase(0) == 0
    assert board.program(0, b"\xf0\xf0\xf0\xf0") == 0
    assert board.program(0, b"\x30\xf0\x00\xf0") == 0
    assert board.read(0, 4) == b"\x30\xf0\x00\xf0"
    result = board.program(0, b"\x0f\xff\xff\xff")
    assert board.read(0, 4) == b"\x00\xf0\x00\xf0"
    if board.store.kind != "spi-nor":  # these parts do not tell
        assert result < 0


def test_outside_the_partition_is_refused(board: Board) -> None:
    size = board.store.size
    assert board.erase(size) < 0
    assert board.erase(4) < 0
    assert board.program(size - 4, bytes(8)) < 0
    assert board.program(0xFFFFFFFC, bytes(8)) < 0


def test_flash_survives_reset_restart_and_power_cut(board: Board) -> None:
    address = board.store.size - board.store.sector
    assert board.erase(address) == 0
    assert board.program(address, b"kept over resets") == 0

    board.emulator.reset()
    board.await_start()
    assert board.info()[0] == PIN
    assert board.read(address, 16) == b"kept over resets"

    board.send(b"R")
    board.await_start()
    assert board.info()[0] == SOFTWARE
    assert board.read(address, 16) == b"kept over resets"

    assert board.program(address + 16, b"and a power cut.") == 0
    pid = board.emulator.pid
    board.emulator.kill()
    assert not board.emulator.is_running()
    board.emulator.restart()
    assert board.emulator.pid != pid
    board.connect()
    assert board.info()[0] == POWER_ON
    assert board.read(address, 32) == b"kept over resetsand a power cut."


def test_a_new_image_keeps_the_flash_unless_erased(board: Board, image: Path) -> None:
    assert board.erase(0) == 0
    assert board.program(0, b"learnt..") == 0
    url = board.emulator.url
    assert board.emulator.start(image) == url
    board.connect()
    assert board.read(0, 8) == b"learnt.."
    board.emulator.start(image, erase=True)
    board.connect()
    assert board.read(0, 8) == b"\xff" * 8


def test_a_fault_restarts_the_board(board: Board) -> None:
    if board.facts.on_host:
        pytest.skip("a process that faults ends")
    board.send(b"F")
    board.await_start()
    assert board.info()[0] == SOFTWARE


def test_a_kept_word_survives_all_but_power_on(board: Board) -> None:
    board.emulator.kill()
    board.emulator.restart()
    board.connect()
    board.send(b"K")
    assert board.result() == 0
    board.send(b"k" + struct.pack("<I", 0x12345678))
    restarts: list[Callable[[], None]] = [board.emulator.reset, lambda: board.send(b"R")]
    for restart in restarts:
        board.echo(b"kept by now")
        restart()
        board.await_start()
        board.send(b"K")
        assert board.result() == 0x12345678
    board.emulator.kill()
    board.emulator.restart()
    board.connect()
    board.send(b"K")
    assert board.result() == 0


def test_watchdog_resets_a_board_that_hangs(board: Board) -> None:
    if board.facts.watchdog.verified == "not yet":
        pytest.skip("the emulator has no watchdog of this chip")
    board.connect()
    board.send(b"H")  # nobody has started the watchdog yet
    time.sleep(1.0)
    board.emulator.reset()
    board.await_start()
    for _ in range(2):
        board.send(b"W\x21")
        assert board.receive(1) == b"\x21"
        board.send(b"H")
        board.await_start()
        assert board.info()[0] == WATCHDOG
    board.send(b"R")
    board.await_start()
    assert board.info()[0] == SOFTWARE


def test_watchdog_leaves_a_board_alone_that_feeds_it(board: Board) -> None:
    """Several of its periods long, of the board's time."""
    board.emulator.reset()
    board.await_start()
    board.send(b"w")
    time.sleep(2.0)
    board.send(b"\x42")
    assert board.receive(1) == b"\x42"
    assert board.info()[0] == PIN
    board.emulator.reset()  # a watchdog that is a timer's interrupt would go on, and count
    board.await_start()


def test_clients_come_and_go(board: Board) -> None:
    for _ in range(3):
        board.connect()
        assert board.echo(b"hello") == b"hello"


def test_ticks_advance_and_repeat(board: Board, image: Path, tmp_path: Path) -> None:
    rounds = (1, 50, 1000, 20000)
    first = [board.measure(n) for n in rounds]
    assert first[3][0] > first[2][0] > 0
    if board.facts.on_host:
        return
    # the counter's unit, as board.toml has it: the loop is 4 (hardware loop) to 9 instructions
    per_round = (first[3][0] - first[2][0]) / (rounds[3] - rounds[2])
    expected = board.facts.timer.ticks_per_instruction
    assert 3.5 * expected < per_round < 10 * expected

    assert [board.measure(n) for n in rounds] == first
    other = Emulator(tmp_path, board.facts.name)
    other.start(image, free_url())
    second = Board(other, board.facts)
    try:
        second.connect()
        second.echo(bytes(100))  # another history before the same code
        assert [second.measure(n) for n in rounds] == first
    finally:
        second.close()
        other.stop()


def test_ticks_do_not_lose_wraps(board: Board) -> None:
    """A region longer than the hardware counter (AST1030: 2^24 ticks, 84 ms)."""
    if board.facts.on_host:
        pytest.skip("the host's clock is not repeatable")
    short, long = board.measure(1_000_000)[0], board.measure(16_000_000)[0]
    assert abs(long - 16 * short) <= 16 + long // 1000


def address_of(image: Path, function: str) -> int:
    with image.open("rb") as file:
        symbols = ELFFile(file).get_section_by_name(".symtab")
        assert isinstance(symbols, SymbolTableSection)
        (symbol,) = symbols.get_symbol_by_name(function)
        return int(symbol["st_value"])


def test_hot_functions_run_where_the_board_has_them(board: Board, image: Path, tmp_path: Path) -> None:
    """port_check.c's `measure` is one; everything else stays in flash."""
    if board.facts.on_host or board.facts.memory.shared:
        pytest.skip("code has one place only")

    def in_ram(path: Path, function: str) -> bool:
        memory = board.facts.memory
        return 0 <= address_of(path, function) - memory.ram_origin < memory.ram_bytes

    moved = build(replace(board.facts, memory=replace(board.facts.memory, code_in_ram=True)), tmp_path)
    assert in_ram(moved, "measure")
    assert not in_ram(moved, "scl_app_main")
    assert not in_ram(image, "measure")

    emulator = Emulator(tmp_path / "board", board.facts.name)
    emulator.start(moved)
    other = Board(emulator, board.facts)
    try:
        other.connect()
        assert other.measure(1000)[1] == board.measure(1000)[1]
    finally:
        other.close()
        emulator.stop()


def test_build_refuses_float_and_heap() -> None:
    bad = ["__aeabi_fadd", "__aeabi_ddiv", "__aeabi_i2f", "__aeabi_ul2d", "__aeabi_cdcmple"]
    bad += ["__addsf3", "_malloc_r", "_sbrk"]
    good = ["main", "__aeabi_idiv", "__aeabi_uldivmod", "__aeabi_memcpy", "memcpy", "__aeabi_llsl"]
    good += ["__udivmoddi4", "scl_free_slots"]
    assert board_build.forbidden_symbols(good + bad) == sorted(bad)


def test_platformio_ini_agrees_with_the_boards() -> None:
    ini = configparser.ConfigParser(interpolation=None)
    ini.read(ROOT / "platformio.ini")
    assert [n.strip() for n in ini["platformio"]["default_envs"].split(",")] == list(BOARDS)
    for name in BOARDS:
        emulation = load_board(name).emulator
        assert emulation is not None
        port = emulation.port
        section = ini[f"env:{name}"]
        assert section["monitor_port"] == section["upload_port"] == f"socket://localhost:{port}"


def test_sources_of_the_boards_are_there() -> None:
    for board in boards():
        for source in board_build.board_sources(board):
            assert (ROOT / "firmware" / source).is_file()


def test_messages_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="known: ast1030_evb"):
        Emulator(tmp_path, "nonesuch")
    emulator = Emulator(tmp_path, "ast1030_evb")
    with pytest.raises(EmulatorError, match="nothing was uploaded"):
        emulator.restart()
    with pytest.raises(EmulatorError, match="build it first"):
        emulator.start(tmp_path / "missing.elf")
    (tmp_path / "image.elf").write_bytes(b"")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(EmulatorError, match="apt-get install"):
        emulator.start(tmp_path / "image.elf")


def test_a_qemu_without_the_machine_is_named_with_the_remedy(tmp_path: Path) -> None:
    """As ast1030-evb is missing in QEMU 6.2."""
    if unavailable("emcraft_sf2") is not None:
        pytest.skip("no QEMU")
    folder = tmp_path / "firmware" / "boards" / "new"
    folder.mkdir(parents=True)
    text = (ROOT / "firmware" / "boards" / "ast1030_evb" / "board.toml").read_text()
    (folder / "board.toml").write_text(
        text.replace('"ast1030_evb"', '"new"').replace('"ast1030-evb,', '"ast9999-evb,').replace('"7.1"', '"99.1"')
    )
    (tmp_path / "image.elf").write_bytes(b"")
    with pytest.raises(EmulatorError, match=r"version \d+\.\d+.*no machine ast9999-evb, QEMU 99\.1 is.*newer QEMU"):
        Emulator(tmp_path / "state", "new", tmp_path).start(tmp_path / "image.elf")
