# SPDX-License-Identifier: Apache-2.0
"""Random models on the emulated Cortex-M boards, request by request against the reference.

The weights are large and the norm guards tight, so that values saturate: the
cores compute that with instructions of their own.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from sparcl_mcu.generator import plan
from sparcl_mcu.host_tools import protocol
from sparcl_mcu.host_tools.emulator import Emulator, unavailable
from sparcl_mcu.host_tools.image import measure
from sparcl_mcu.reference import Device
from sparcl_mcu.spec import boards
from sparcl_mcu.spec.paths import ROOT
from sparcl_mcu.spec.types import Growth, Method, Model, SingleHead
from sparcl_mcu.spec.wire import Command
from tests.compiled import compile_c
from tests.firmware.native import Teacher, Twin, board_build, generate
from tests.reference.models import random_conv_model, random_model

pytestmark = pytest.mark.board

BOARDS = ("microbit", "emcraft_sf2", "ast1030_evb", "mps3_an547")

MODELS = [
    random_model(
        1,
        sizes=(13, 18, 9, 4),
        block=4,
        scale=15.0,
        fraction=12,
        tight=True,
        stochastic=True,
        growth=Growth.GRADIENT,
        learning_rate=0.4,
    ),
    random_model(
        2,
        sizes=(15, 14, 4),
        block=1,
        scale=15.0,
        fraction=12,
        sparse=[True, True],
        signed=True,
        batch=3,
        stochastic=False,
        method=Method.ER,
        single_head=SingleHead.SCORE,
        learning_rate=0.4,
    ),
]

# Lists and rows of several vectors and parts of one, as wide as what stays in registers and wider, in blocks of 1 and 2
# and dense; 260 inputs leave the weights of the first layer 14 bits.
VECTOR_MODELS = [
    random_model(3, sizes=(260, 75, 37, 10), block=1, scale=15.0, fraction=10, stochastic=True, learning_rate=0.4),
    random_model(4, sizes=(31, 75, 22, 19), block=2, scale=15.0, signed=True, stochastic=True, learning_rate=0.4),
    random_model(5, sizes=(260, 35, 13, 9), sparse=[False] * 3, scale=15.0, stochastic=True, learning_rate=0.4),
]

# Every kind of layer is in one of them: residual connections, depthwise convolutions and ReLU6 in all,
# kernels with so many positions that they need two panels on the larger boards.
CONVOLUTIONS = [("microbit", 18), ("emcraft_sf2", 2), ("ast1030_evb", 7), ("mps3_an547", 7)]
MORE_CONVOLUTIONS = [(board, seed) for seed in (0, 1, 4, 6, 11, 23) for board in BOARDS]


# Cores without vectors compute as native boards do, with which tests/firmware compares many more models.
MODELS_OF_BOARDS = [
    *(("microbit", 0), pytest.param("microbit", 1, marks=pytest.mark.slow)),
    *(("emcraft_sf2", 1), pytest.param("emcraft_sf2", 0, marks=pytest.mark.slow)),
    *((board, number) for board in ("ast1030_evb", "mps3_an547") for number in range(len(MODELS))),
]


class EmulatedBoard:
    """What `Twin` needs of a process."""

    def __init__(self, emulator: Emulator, image: Path) -> None:
        self.emulator = emulator
        self.url = emulator.start(image)

    def start(self) -> str:
        """Power on."""
        return self.emulator.restart()

    def kill(self) -> None:
        """Power off."""
        self.emulator.kill()

    def alive(self) -> bool:
        """Whether the emulator runs."""
        return self.emulator.is_running()

    def errors(self) -> str:
        """What it said."""
        return self.emulator.log_path.read_text(errors="replace")


def cross_build(
    model: Model,
    board: str,
    folder: Path,
    code_in_ram: bool = False,
    planned: boards.Board | None = None,
    key: bytes | None = None,
) -> Path:
    """As the platform's builder does it; ``planned``: other facts to render."""
    facts = boards.load_board(board)
    facts = replace(facts, memory=replace(facts.memory, code_in_ram=code_in_ram))
    if shutil.which(board_build.tool(facts, "gcc")) is None or unavailable(board):
        pytest.skip("no cross compiler or no emulator")
    generated = generate(model, planned or boards.load_board(board), folder, key)
    if not facts.on_host:
        (folder / "memory.ld").write_text(board_build.memory_ld(facts))
    sources = [*board_build.firmware_sources(), *sorted(generated.glob("*.c"))]
    sources += [ROOT / "firmware" / source for source in board_build.board_sources(facts)]
    image = folder / "firmware.elf"
    include = [f"-I{path}" for path in board_build.include_folders(generated)]
    flags = [*board_build.compile_flags(facts), *include]
    compile_c(
        [*flags, *sources, *board_build.link_flags(facts, str(folder)), "-o", image], board_build.tool(facts, "gcc")
    )
    assert board_build.check_image(facts, str(image)) is None
    return image


def compare(model: Model, board: str, number: int, folder: Path) -> Device:
    """Two tasks, a save and a power cut; the reference as it is in the end.  Weights reach their limits."""
    emulator = Emulator(folder / "board", board)
    try:
        twin = Twin(model, EmulatedBoard(emulator, cross_build(model, board, folder)))
        teacher = Teacher(twin, number)
        for task, classes in enumerate([(0, 1), (2, 3)]):
            teacher.begin(classes, 14, streamed=task == number, seed=task)
            teacher.advance()
            teacher.mistakes()
            twin.good(Command.SAVE)
            assert (twin.power_cut() if task else twin.restart()).restored
            teacher.evaluate()
            teacher.finish()
            twin.check_dump()
        assert protocol.statistics(twin.link).weights_at_clamp > 0
        twin.close()
        return twin.device
    finally:
        emulator.stop()


@pytest.mark.parametrize(("board", "number"), MODELS_OF_BOARDS)
def test_random_models(board: str, number: int, tmp_path: Path) -> None:
    """Values saturate too."""
    device = compare(MODELS[number], board, number, tmp_path)
    assert min(device.saturated_activations, device.saturated_errors, device.guard_shifts) > 0


@pytest.mark.parametrize("number", range(len(VECTOR_MODELS)))
def test_random_models_with_vectors(number: int, tmp_path: Path) -> None:
    """A core that computes up to eight weights at once."""
    compare(VECTOR_MODELS[number], "mps3_an547", number, tmp_path)


def test_code_in_ram(tmp_path: Path) -> None:
    """No board here needs it; the layers then run in RAM, as large as planned, and compute the same."""
    board, model = "emcraft_sf2", MODELS[0]
    facts = boards.load_board(board)
    facts = replace(facts, memory=replace(facts.memory, code_in_ram=True))
    image = cross_build(model, board, tmp_path, code_in_ram=True)
    with image.open("rb") as file:
        symbols = ELFFile(file).get_section_by_name(".symtab")
        assert isinstance(symbols, SymbolTableSection)
        passes = [s for s in symbols.iter_symbols() if re.match(r"l\d+_(forward|backward)", s.name)]
    assert len(passes) == 2 * len(model.layers)
    assert all(s["st_value"] >= boards.load_board(board).memory.ram_origin for s in passes)
    memory = plan.plan(model, facts)
    sizes = measure(image, memory)
    assert 0 < sizes.ram[plan.CODE_IN_RAM] <= {row.name: row.size for row in memory.ram}[plan.CODE_IN_RAM]
    assert sum(sizes.ram.values()) <= memory.ram_bytes

    emulator = Emulator(tmp_path / "board", board)
    try:
        twin = Twin(model, EmulatedBoard(emulator, image))
        teacher = Teacher(twin, 0)
        teacher.begin((0, 1), 14, streamed=False, seed=0)
        teacher.advance()
        teacher.evaluate()
        teacher.finish()
        twin.check_dump()
        assert twin.restart().restored
        twin.close()
    finally:
        emulator.stop()


def convolutional(seed: int) -> Model:
    """A random network; odd and even seeds round and grow differently, every third learns in batches."""
    return random_conv_model(
        seed,
        scale=8.0,
        tight=True,
        stochastic=bool(seed % 2),
        batch=3 if seed % 3 == 2 else 1,
        growth=Growth.GRADIENT if seed % 2 else Growth.RANDOM,
        learning_rate=0.3,
        table=16,
        capacity=4,
    )


def teach(board: str, seed: int, folder: Path) -> Device:
    """Two tasks, the second streamed, with a restart between them; the reference as it is in the end."""
    model = convolutional(seed)
    emulator = Emulator(folder / "board", board)
    try:
        twin = Twin(model, EmulatedBoard(emulator, cross_build(model, board, folder)))
        teacher = Teacher(twin, seed)
        for task, classes in enumerate([(0, 1), (2, 3)]):
            teacher.begin(classes, 9, streamed=task == 1, seed=task)
            teacher.advance()
            teacher.evaluate()
            teacher.finish()
            twin.check_dump()
            assert task or twin.restart().restored
        twin.close()
        return twin.device
    finally:
        emulator.stop()


@pytest.mark.parametrize(("board", "seed"), CONVOLUTIONS)
def test_random_convolutions(board: str, seed: int, tmp_path: Path) -> None:
    """Values saturate here too."""
    device = teach(board, seed, tmp_path)
    assert min(device.saturated_activations, device.saturated_errors) > 0


@pytest.mark.slow
@pytest.mark.parametrize(("board", "seed"), MORE_CONVOLUTIONS)
def test_more_random_convolutions(board: str, seed: int, tmp_path: Path) -> None:
    """The same for more of them."""
    teach(board, seed, tmp_path)
