# SPDX-License-Identifier: Apache-2.0
"""Power cuts at every flash operation of a scenario, in memory (powercut.c), over flash geometries.

    python -m tests.powercut.harness             every cut of every geometry
    python -m tests.powercut.harness ID          one cut, told step by step

An ID is the name of a geometry and of a cut: ``u8-s4096-c37-torn-r3``, and with a second cut
while the board recovers from the first ``u8-s4096-c37-torn-r3+c5-before``.
"""

from __future__ import annotations

import argparse
import re
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sparcl_mcu.generator import journal, plan
from sparcl_mcu.host_tools import protocol
from sparcl_mcu.host_tools.frame import REQUEST, Frame
from sparcl_mcu.reference import Device
from sparcl_mcu.spec.boards import Board
from sparcl_mcu.spec.paths import ROOT
from sparcl_mcu.spec.types import Model
from sparcl_mcu.spec.wire import Command, Phase
from tests.compiled import compile_c
from tests.firmware.native import board_build, board_facts, flags, generate
from tests.reference.models import random_model, random_samples, samples, task_begin

HERE = Path(__file__).parent
FIRMWARE = ROOT / "firmware"
WRAPPED = ("scl_journal_snapshot_begin", "scl_journal_snapshot_end", "scl_journal_format")
FACTORY = bytes([protocol.FACTORY]) + bytes(8)
"""A reset to factory; powercut.c puts in the nonce."""
MAPPED_BASE = 0x50000000
"""Where powercut.c maps the flash of a board that reads it in place."""
LAPS = 2.3
"""Times the scenario goes around the journal at least, in sectors taken."""
TASKS = ((0, 1), (2, 3), (1, 2), (0, 3))
COUNT = 12
WORN = 6
"""Kinds of wear in powercut.c, 0 (sound) included."""


@dataclass(frozen=True)
class Geometry:
    """One kind of flash; sizes in bytes.

    ``worn``: some sectors fail, each in its own way; ``extra``: sectors more than the plan asks for, so that less than
    a quarter of them fail (more of them look like forged numbers to a reset); ``count``: samples of a task.
    """

    unit: int
    sector: int
    erased: int = 0xFF
    mapped: bool = False
    worn: bool = False
    extra: int = 0
    count: int = COUNT
    endurance: int = 0
    step: int = 1
    """Cut at every so many operations only, where a scenario is long."""

    @property
    def name(self) -> str:
        """As in an ID."""
        parts = [f"u{self.unit}", f"s{self.sector}"]
        parts += ["e00"] * (self.erased == 0) + ["mapped"] * self.mapped + ["worn"] * self.worn
        parts += ["large"] * (self.count > COUNT)
        return "-".join(parts)


GEOMETRIES = (
    *(Geometry(unit, sector) for unit in (1, 4, 8, 256) for sector in (1024, 4096, 16384, 65536)),
    *(Geometry(unit, 2048, erased=0x00) for unit in (1, 256)),
    Geometry(4, 1024, mapped=True),
    Geometry(8, 512, count=90, step=6),
    Geometry(8, 1024, worn=True, extra=30),
    Geometry(256, 4096, worn=True, extra=24),
)


def facts(model: Model, geometry: Geometry) -> Board:
    """The board with the least partition that the plan allows."""
    store: dict[str, Any] = {"sector": geometry.sector, "program_unit": geometry.unit, "erased": geometry.erased}
    if geometry.mapped:
        store |= {"kind": "mapped", "mapped_base": MAPPED_BASE}
    size = geometry.sector
    for _ in range(3):  # the granule depends on the size
        size = plan.plan(model, board_facts(**store, size=size)).store_bytes
    return board_facts(**store, size=size + geometry.extra * geometry.sector)


@dataclass
class Scenario:
    """Requests, with what the reference answers and the state it is in then."""

    model: Model
    board: Board
    requests: list[tuple[bytes, bytes, int, int]] = field(default_factory=list)
    """Frame, payload of the reply, bytes at its beginning that the reference does not know, state digest."""

    def __post_init__(self) -> None:
        payload = journal.max_payload(self.model, self.board)
        self.device = Device(self.model, self.board.link.steps_per_request, payload)
        self.initial = self.device.digest()
        self.rng = np.random.default_rng(1)

    def send(self, command: Command, request: bytes = b"") -> None:
        """Add one request."""
        reply = self.device.apply(command, request)
        assert reply is not None, "the reference answers it"
        assert reply.status == 0, "the reference accepts it"
        unknown = reply.masked.stop if reply.masked is not None else 0
        wire = Frame(REQUEST, len(self.requests) % 199, command, 0, request).encode()
        self.requests.append((wire, reply.payload, unknown, self.device.digest()))

    def upload(self, count: int) -> None:
        """Replay records of a task that the host learned."""
        x, y = random_samples(self.model, (0, 1), count, 7)
        for k in range(count):
            self.send(Command.REPLAY, struct.pack("<IHBB", 40 + k, k, 0, int(y[k])) + x[k].tobytes())

    def learn(self, number: int, *, streamed: bool, saves: int, count: int = COUNT) -> None:
        """One task; some samples are removed by DDR; ``saves`` in the middle of it."""
        classes = TASKS[number % len(TASKS)]
        x, y = random_samples(self.model, classes, count, number)
        self.send(Command.TASK_BEGIN, task_begin(classes, count, int(streamed)))
        for first in range(0, 0 if streamed else count, 5):
            part = slice(first, first + 5)
            self.send(Command.SAMPLES, samples(first, x[part], y[part]))
            if first == 5 and saves:
                self.send(Command.SAVE)
        requests = 0
        while self.device.phase == Phase.TRAINING:
            self._train(x, y)
            requests += 1
            if requests % 2 == 1 and requests // 2 < saves:
                self.send(Command.SAVE)
        self.send(Command.TASK_END)

    def _train(self, x: np.ndarray, y: np.ndarray) -> None:
        size = int(self.rng.integers(2, max(8, self.device.n // 2)))
        if self.device.mode == 0:
            self.send(Command.TRAIN, struct.pack("<HB", size, 1))
            return
        if not self.device.shuffled:
            self.send(Command.TRAIN, struct.pack("<HB", 0, 0))
        ids = np.array(self.device.state.table.ids[self.device.pos : self.device.pos + size])
        self.send(Command.STEP, protocol.pack_steps(ids, y[ids], x[ids], 1))

    def write(self, path: Path, geometry: Geometry) -> Path:
        """As powercut.c reads it."""

        def sized(data: bytes) -> bytes:
            return struct.pack("<I", len(data)) + data

        sectors = self.board.store.size // self.board.store.sector
        # Two runs of sectors that follow each other, with all kinds of wear.
        bad = (*range(3, 12), 20, 21)
        worn = bytes(s % (WORN - 1) + 1 if geometry.worn and s in bad else 0 for s in range(sectors))
        hello, ask = (Frame(REQUEST, 200, command, 0, b"").encode() for command in (Command.HELLO, Command.DIGEST))
        parts = [struct.pack("<II", self.initial, geometry.endurance), worn, sized(hello), sized(ask)]
        parts.append(struct.pack("<I", len(self.requests)))
        for wire, reply, unknown, digest in self.requests:
            parts += [sized(wire), sized(reply), struct.pack("<II", unknown, digest)]
        path.write_bytes(b"".join(parts))
        return path


def full_scenario(model: Model, board: Board, count: int = COUNT) -> Scenario:
    """Fill the replay buffer, learn with DDR removals and saves, change tasks, forget all halfway, learn again."""
    scenario = Scenario(model, board)
    sectors = board.store.size // board.store.sector
    commits = 0
    for half in range(2):
        scenario.upload(3)
        for number in range(3):
            saves = 2 if sectors < 30 else 4
            scenario.learn(number, streamed=number == 1, saves=saves, count=count)
            commits += saves + 1
        if half == 0:
            scenario.send(Command.RESET, FACTORY)
    # Each save takes a sector for the snapshot and has the records after it begin another.
    while commits * 1.6 < LAPS * sectors:
        scenario.learn(commits, streamed=commits % 2 == 1, saves=3, count=count)
        commits += 4
    return scenario


def small_model(**learning: Any) -> Model:
    """All features on; a snapshot takes some sectors of 1 KiB."""
    return random_model(5, sizes=(14, 24, 4), **({"epochs": 2, "capacity": 6} | learning))


def build(model: Model, board: Board, folder: Path, firmware: Path = FIRMWARE) -> Path:
    """powercut.c with the engine, for one model and flash."""
    generated = generate(model, board, folder)
    image = folder / "powercut"
    options = [f for f in flags(generated, ("-O2",)) if not f.startswith("-fsanitize")]
    options = [f.replace(str(FIRMWARE), str(firmware)) for f in options]
    options += ["-w"] * (firmware != FIRMWARE)  # a mutant may leave something unused
    wrap = "-Wl," + ",".join(f"--wrap={name}" for name in WRAPPED)
    sources = [*board_build.firmware_sources(firmware), *sorted(generated.glob("*.c")), HERE / "powercut.c"]
    compile_c([*options, wrap, *sources, "-o", image])
    return image


@dataclass
class Result:
    """Of one geometry: ``tried`` by way; ``lost``: IDs and reasons."""

    geometry: Geometry
    tried: dict[str, int] = field(default_factory=dict)
    recorded: dict[str, int] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)


def numbers(line: str) -> dict[str, int]:
    """Names and numbers of a line of powercut's output."""
    words = line.split()[1:]
    return {key: int(value) for key, value in zip(words[::2], words[1::2], strict=True)}


def prepare(geometry: Geometry, folder: Path, firmware: Path = FIRMWARE) -> list[str]:
    """Build the program and write its scenario; the command without what is to be done."""
    folder.mkdir(parents=True, exist_ok=True)
    model = small_model(table=geometry.count + 4)
    board = facts(model, geometry)
    image = build(model, board, folder, firmware)
    scenario = full_scenario(model, board, geometry.count).write(folder / "scenario.bin", geometry)
    return [str(image), str(scenario)]


def sweep(
    geometry: Geometry, folder: Path, *, step: int = 1, torn: int = 3, second: int = 2, firmware: Path = FIRMWARE
) -> Result:
    """Cut at every ``step``-th operation: before, torn and unstable (``torn`` ways each), after, and again after it."""
    command = [*prepare(geometry, folder, firmware), "sweep", "1", str(step * geometry.step), str(torn), str(second)]
    result = Result(geometry)
    for line in run(command):
        kind = line.split(maxsplit=1)[0]
        if kind == "lost":
            _, cut, reason = line.split(maxsplit=2)
            result.lost.append(f"{geometry.name}-{cut}: {reason}")
        elif kind == "failed:":
            result.lost.append(f"{geometry.name}: {line}")
        elif kind == "done":
            result.tried = {key: value for key, value in numbers(line).items() if key != "lost"}
        elif kind == "recorded":
            result.recorded = numbers(line)
    if not result.tried and not result.lost:
        result.lost.append(f"{geometry.name}: powercut ended early")
    return result


def run(command: Sequence[str]) -> Iterator[str]:
    """Lines of its output as they come."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield line.rstrip("\n")


def main() -> int:
    """Entry point of ``make powercut``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("id", nargs="?", help="one cut to replay")
    parser.add_argument("--step", type=int, default=1, help="cut at every so many operations")
    parser.add_argument("--torn", type=int, default=3, help="torn ways at each")
    parser.add_argument("--second", type=int, default=2, help="second cuts after each")
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    folder = ROOT / "build" / "powercut"
    if given.id:
        return replay(given.id, folder)
    with ThreadPoolExecutor(given.jobs) as pool:
        jobs = [
            pool.submit(sweep, g, folder / g.name, step=given.step, torn=given.torn, second=given.second)
            for g in sorted(GEOMETRIES, key=lambda g: (-g.count, g.sector))
        ]
        results = [show(number, job.result()) for number, job in enumerate(as_completed(jobs), 1)]
    tried = sum(sum(result.tried.values()) for result in results)
    lost = sum(len(result.lost) for result in results)
    print(f"power cuts: {tried} tried, {lost} states lost")
    return int(lost > 0)


def show(number: int, result: Result) -> Result:
    """Print a line about a geometry, and what was lost."""
    ways = ", ".join(f"{count} {way}" for way, count in result.tried.items())
    operations, laps = (result.recorded.get(key, 0) for key in ("operations", "erased_max"))
    name = f"{number:2}/{len(GEOMETRIES)} {result.geometry.name:16}"
    print(f"{name} {operations:5} operations, {laps:2} laps; cuts: {ways}; {len(result.lost)} lost", flush=True)
    for lost in result.lost[:10]:
        print(f"   {lost}")
    return result


def replay(name: str, folder: Path, firmware: Path = FIRMWARE) -> int:
    """Show one cut."""
    cut = r"c[1-9]\d*-(?:before|after|(?:torn|unstable)-r\d+)"
    match = re.fullmatch(rf"(.+?)-({cut}(?:\+{cut})?)", name)
    known = {g.name: g for g in GEOMETRIES}
    if match is None or match[1] not in known:
        print(f"powercut: {name}: geometries are {', '.join(known)}")
        print("          cuts are c12-before, c12-torn-r3, c12-unstable-r0, c12-after, c12-torn-r3+c4-before")
        return 2
    geometry = known[match[1]]
    command = [*prepare(geometry, folder / geometry.name, firmware), "replay", match[2]]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
