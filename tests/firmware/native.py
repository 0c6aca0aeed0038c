# SPDX-License-Identifier: Apache-2.0
"""The engine as a process with sanitizers, and its twin: every reply of the board against the reference."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sparcl_mcu.generator.render import render
from sparcl_mcu.host_tools import protocol
from sparcl_mcu.host_tools.link import DeviceError, Link
from sparcl_mcu.host_tools.protocol import Hello
from sparcl_mcu.reference import Device, first_difference
from sparcl_mcu.spec import boards
from sparcl_mcu.spec.boards import Board
from sparcl_mcu.spec.paths import ROOT
from sparcl_mcu.spec.types import Model
from sparcl_mcu.spec.wire import Command, Phase
from tests.compiled import compile_c
from tests.reference.models import random_samples, samples, task_begin

sys.path.append(str(ROOT / "platforms" / "common"))

import board_build

COVERAGE = "SCL_COVERAGE" in os.environ
"""Whether programs count what they execute (tools/coverage.py) instead of looking for faults."""
SANITIZERS = (
    ("--coverage", "-fprofile-abs-path", "-DSCL_COVERAGE")
    if COVERAGE
    else (
        "-fsanitize=address,undefined",
        "-fno-sanitize=null,object-size,pointer-overflow",  # a fifth of the compiler's time
        "-fno-sanitize-recover=all",
    )
)
"""Those left out check an address before it is used: when it is used, the address sanitizer finds a wrong one."""
NOT_OPTIMISED = ("-O0", "-DSCL_INLINE=static inline")
"""One copy of each kernel: as quick without optimisation, compiled in half the time."""
POISON = "-DSCL_POISON=0x55"
"""Fills work space before each forward pass, so that reading what was never written shows."""
SECONDS = 60.0
"""Until a test that would hang fails; never waited for otherwise."""


def board_facts(**store: int) -> Board:
    """The native board, with other flash if asked."""
    native = boards.load_board("native")
    return replace(native, store=replace(native.store, **store))


def generate(model: Model, board: Board, folder: Path, key: bytes | None = None) -> Path:
    """Render the C sources of one model."""
    generated = folder / "generated"
    generated.mkdir(parents=True, exist_ok=True)
    for name, text in render(model, board, key).items():
        (generated / name).write_text(text)
    return generated


def flags(generated: Path, optimise: Sequence[str] = NOT_OPTIMISED) -> list[str]:
    """Those of the board's firmware, with sanitizers and lines for what they report; not optimised, no fault hides."""
    given = board_build.compile_flags(boards.load_board("native"))
    given = ["-g1" if f == "-g" else f for f in given if not f.startswith("-O")]
    include = [f"-I{folder}" for folder in board_build.include_folders(generated)]
    return [*given, *optimise, *SANITIZERS, *include]


FIRMWARE = ROOT / "firmware"
PRIVATE = ("key", "make_tag", "model_hash", "seal")
"""Names that several sources have each for itself."""


def in_one_piece(sources: Sequence[Path], folder: Path) -> Path:
    """One source that includes them: compiled in two thirds of the time."""
    lines = []
    for source in sources:
        lines += [f"#define {name} {name}_of_{source.stem}" for name in PRIVATE]
        lines += [f'#include "{source.name}"', *(f"#undef {name}" for name in PRIVATE)]
    whole = folder / "whole.c"
    whole.write_text("\n".join([*lines, ""]))
    return whole


def build(
    model: Model,
    folder: Path,
    board: Board | None = None,
    extra: Sequence[str] = (),
    firmware: Path = FIRMWARE,
    key: bytes | None = None,
    *,
    apart: bool = False,
) -> Path:
    """Core, generated sources and the native port as one program.

    ``apart``: each source for itself, so that the linker can wrap a function of the core.
    """
    generated = generate(model, board or board_facts(), folder, key)
    sources = [*board_build.firmware_sources(firmware), *sorted(generated.glob("*.c"))]
    if not apart:  # what the sources share shadows nothing in the board's own build
        sources, extra = [in_one_piece(sources, folder)], [*extra, "-Wno-shadow"]
    image = folder / "firmware"
    sources += [ROOT / "firmware/boards/native/port.c"]
    if COVERAGE:
        sources += [Path(__file__).with_name("coverage.c")]
        extra = [*extra, "-Wl,--wrap=execve"]
    compile_c(
        [
            *(f"-I{firmware / part}" for part in board_build.PARTS),
            *flags(generated),
            POISON,
            *extra,
            *sources,
            "-o",
            image,
        ]
    )
    return image


class Process:
    """A board: its program, its flash, a TCP port of its own choice."""

    def __init__(self, image: Path, folder: Path | None = None) -> None:
        self.image = image
        self.folder = folder or image.parent
        self.flash = self.folder / "flash.img"
        self.url = ""
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> str:
        """Power on."""
        with (self.folder / "errors.txt").open("ab") as errors:
            self._process = subprocess.Popen(
                [self.image, "--tcp", "0", "--flash", self.flash],
                stdout=subprocess.PIPE,
                stderr=errors,
                stdin=subprocess.DEVNULL,
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline().decode()
        assert line.startswith("listening on "), self.errors()
        self.url = line.split()[-1]
        return self.url

    def kill(self) -> None:
        """Power off."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate() if COVERAGE else process.kill()
            process.wait(SECONDS)
            assert process.stdout is not None
            process.stdout.close()

    @property
    def pid(self) -> int:
        """Its number, which a restart does not change."""
        assert self._process is not None
        return self._process.pid

    def ended(self) -> int:
        """Its exit status; waits for the end, which has begun."""
        assert self._process is not None
        return self._process.wait(10.0)

    def alive(self) -> bool:
        """Whether no sanitizer has ended it."""
        return self._process is not None and self._process.poll() is None

    def errors(self) -> str:
        """What the sanitizers said."""
        return (self.folder / "errors.txt").read_text(errors="replace")[-6000:]


class Hardware(Protocol):
    """What a twin needs of the board: a process, or an emulator."""

    url: str

    def start(self) -> str:
        """Power on; the URL of the line."""

    def kill(self) -> None:
        """Power off."""

    def alive(self) -> bool:
        """Whether it runs."""

    def errors(self) -> str:
        """What it complained of."""


class Twin:
    """A board and the reference that get the same requests; every reply and every state has to agree."""

    def __init__(self, model: Model, process: Hardware, key: bytes | None = None) -> None:
        self.model = model
        self.process = process
        self.key = key
        self.link = Link(process.url, key=key)
        state = self.hello()
        self.device = Device(model, state.steps_per_request, state.max_payload)

    def hello(self) -> Hello:
        """The board's."""
        return protocol.hello(self.link)

    def send(self, command: int, request: bytes = b"") -> bytes | None:
        """One request to both; None when both refuse it."""
        if command == Command.RESET:
            self.device.nonce = self.hello().nonce
        expected = self.device.apply(command, request)
        assert expected is not None, "the reference does not answer this"
        status, payload = self.ask(command, request)
        assert expected.matches(status, payload), (
            f"{Command(command).name}: board ({status}, {payload.hex()}), "
            f"reference ({int(expected.status)}, {expected.payload.hex()})"
        )
        self.check()
        return None if status else payload

    def good(self, command: int, request: bytes = b"") -> bytes:
        """A request that must not be refused."""
        reply = self.send(command, request)
        assert reply is not None, f"{Command(command).name} was refused"
        return reply

    def ask(self, command: int, request: bytes) -> tuple[int, bytes]:
        """Status and payload of the board's reply."""
        try:
            return 0, self.link.request(command, request, SECONDS)
        except DeviceError as refused:
            return refused.status, b""
        finally:
            assert self.process.alive(), self.process.errors()

    def check(self) -> None:
        """The states are the same."""
        digest = protocol.digest(self.link)
        expected = (self.device.digest(), self.device.rolling, self.device.step)
        if (digest.state, digest.rolling, digest.step) != expected:
            self.check_dump()
            raise AssertionError(f"digest {digest}, reference {expected}, dumps agree")

    def check_dump(self) -> None:
        """Every region is the same, and so is what hello and statistics say of the state."""
        state, device = self.hello(), self.device
        theirs = protocol.dump_regions(self.link, self.model, state)
        difference = first_difference(self.model, theirs, device.dump())
        assert difference is None, str(difference)
        assert state.position() == (
            *(device.step, device.task, device.phase, device.mode, int(device.shuffled)),
            *(device.epoch, device.pos, device.n, device.received, device.filled),
        )
        counted = protocol.statistics(self.link)
        assert (counted.saturated_activations, counted.saturated_errors, counted.guard_shifts) == (
            device.saturated_activations,
            device.saturated_errors,
            device.guard_shifts,
        )

    def restart(self) -> Hello:
        """Software restart."""
        state = protocol.reset(self.link, protocol.RESTART)
        assert self.process.alive(), self.process.errors()
        return state

    def power_cut(self) -> Hello:
        """The process is killed and started again with the same flash."""
        self.link.close()
        self.process.kill()
        self.link = Link(self.process.start(), key=self.key)
        return self.hello()

    def close(self) -> None:
        """End the line."""
        self.link.close()


@contextmanager
def running(model: Model, image: Path, folder: Path | None = None, key: bytes | None = None) -> Iterator[Twin]:
    """A started board and its twin."""
    process = Process(image, folder)
    process.start()
    try:
        twin = Twin(model, process, key)
        yield twin
        twin.close()
        assert process.alive(), process.errors()
    finally:
        process.kill()


class Teacher:
    """Teaches tasks in requests of random sizes."""

    def __init__(self, twin: Twin, seed: int) -> None:
        self.twin = twin
        self.rng = np.random.default_rng(seed)

    def begin(self, classes: Sequence[int], count: int, *, streamed: bool, seed: int) -> None:
        """Begin a task; resident: send its samples."""
        twin = self.twin
        self.x, self.y = self.draw(classes, count, seed)
        twin.good(Command.TASK_BEGIN, task_begin(classes, count, int(streamed)))
        sent = 0
        while not streamed and sent < count:
            most = protocol.samples_per_frame(twin.hello())
            size = int(self.rng.integers(1, min(most, count - sent) + 1))
            part = slice(sent, sent + size)
            twin.good(Command.SAMPLES, samples(sent, self.x[part], self.y[part]))
            sent += size

    def draw(self, classes: Sequence[int], count: int, seed: int) -> tuple[NDArray[np.integer], NDArray[np.uint8]]:
        """Samples of a task: inputs (count, n_in), labels (count,)."""
        return random_samples(self.twin.model, classes, count, seed)

    def advance(self, most: int = 12) -> None:
        """One request that trains."""
        twin, device = self.twin, self.twin.device
        size = int(self.rng.integers(1, most + 1))
        flag = int(self.rng.integers(2))
        if device.mode == 0:
            twin.good(Command.TRAIN, struct.pack("<HB", size, flag))
            return
        if not device.shuffled:
            twin.good(Command.TRAIN, struct.pack("<HB", 0, flag))
        size = min(size, device.n - device.pos, protocol.steps_per_frame(twin.hello()))
        ids = np.array(device.state.table.ids[device.pos : device.pos + size])
        twin.good(Command.STEP, protocol.pack_steps(ids, self.y[ids], self.x[ids], flag))

    def finish(self) -> None:
        """Train to the end of the task, and end it."""
        while self.twin.device.phase == Phase.TRAINING:
            self.advance()
        self.twin.good(Command.TASK_END)

    def evaluate(self, count: int = 5) -> None:
        """Classify some inputs."""
        model = self.twin.model
        x, y = random_samples(model, range(model.n_classes), count, int(self.rng.integers(1 << 30)))
        most = protocol.evaluations_per_frame(self.twin.hello())
        self.twin.good(Command.EVALUATE, protocol.pack_labelled(y[:most], x[:most]))
        self.twin.good(Command.PREDICT, x[0].tobytes())

    def upload(self, count: int, task: int = 0) -> None:
        """Replay records of a task the host learned."""
        x, y = random_samples(self.twin.model, (0, 1), count, 7)
        for k in range(count):
            head = struct.pack("<IHBB", 40 + k, k, task, int(y[k]))
            self.twin.good(Command.REPLAY, head + x[k].tobytes())

    def mistakes(self) -> None:
        """Requests that both refuse."""
        twin = self.twin
        twin.send(Command.TASK_BEGIN, task_begin((0,), twin.model.learning.table + 1))
        twin.send(Command.TASK_BEGIN, task_begin((200,), 3))
        twin.send(Command.SAMPLES, b"\x00\x00\x01")
        twin.send(Command.TRAIN, b"\x01")
        twin.send(Command.STEP, b"\x00\x00")
        twin.send(Command.PREDICT, b"x")
        twin.send(Command.DUMP, struct.pack("<HIH", 256, 0, 1))
        twin.send(Command.RESET, b"\x07")


def flip(path: Path, offset: int, bit: int = 0) -> None:
    """Damage one bit of a flash file."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ (1 << bit)]))


def small_ints(rng: np.random.Generator, low: int, high: int, shape: Any) -> NDArray[np.int64]:
    """Random integers with both ends and zero made likely."""
    values = rng.integers(low, high + 1, size=shape)
    corner = rng.choice([low, high, 0, low + 1, high - 1], size=shape)
    return np.where(rng.random(shape) < 0.4, corner, values)
