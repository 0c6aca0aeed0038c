# SPDX-License-Identifier: Apache-2.0
"""Exactly the planned partition holds whatever a host does: full tasks, a full buffer, saves at any moment."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparcl_mcu.generator.plan import journal_room
from sparcl_mcu.host_tools.link import ERRORS
from sparcl_mcu.spec.boards import Board
from sparcl_mcu.spec.types import Method, Model
from tests.compiled import compile_c
from tests.firmware.native import board_build, board_facts, flags, generate, in_one_piece
from tests.reference.models import random_model

FUZZ = Path(__file__).parents[1] / "fuzz"


@dataclass(frozen=True)
class Case:
    """A model and the board with the least partition that the plan allows."""

    model: Model
    board: Board

    @property
    def sectors(self) -> int:
        """Of the partition."""
        return self.board.store.size // self.board.store.sector

    def __str__(self) -> str:
        s, learning = self.board.store, self.model.learning
        return (
            f"{learning.method.value}{' streamed' * learning.streamed}{' refresh' * learning.refresh}, "
            f"unit {s.program_unit}, {self.sectors} sectors of {s.sector}, {self.board.link.steps_per_request} steps, "
            f"{learning.table} samples of {self.model.n_in}, {learning.capacity} kept, {self.model.n_classes} classes"
        )


def least(model: Model, board: Board, fewer: int = 0) -> Board:
    """The board with the least partition, or with some sectors less."""
    for _ in range(4):  # the granule depends on the size
        sectors = journal_room(model, board).least - fewer
        store = replace(board.store, size=sectors * board.store.sector)
        board = replace(board, store=store)
    return board


def drawn(seed: int) -> Case:
    """Any flash, method, size of request, number of classes, size of samples."""
    random = np.random.default_rng(seed)
    sector = 1 << int(random.choice([8, 9, 10, 10, 11, 11, 12, 12, 13, 14, 16]))
    unit = min(1 << int(random.integers(0, 10)), sector // 4)
    header = -(-48 // unit) * unit
    room = (sector - header) // max(unit, 4) * max(unit, 4)
    classes = int(random.integers(2, min(16, (room - 8) // 2) + 1))
    n_in = int(min(room - 8, 900, np.exp(random.uniform(np.log(3), np.log(900)))))
    method = list(Method)[int(random.choice([0, 1, 2, 2, 2]))]
    model = random_model(
        seed,
        sizes=(n_in, int(random.integers(1, 12)), classes),
        block=1,
        method=method,
        epochs=int(random.integers(1, 4)),
        batch=int(random.choice([1, 1, 4])),
        table=int(np.exp(random.uniform(np.log(8), np.log(300)))),
        capacity=int(np.exp(random.uniform(np.log(1), np.log(150)))),
        refresh=bool(random.integers(2)) and method is not Method.FINETUNE,
        streamed=bool(random.random() < 0.2),
        ddr=bool(random.integers(2)),
        tdm=bool(random.integers(2)),
    )
    board = board_facts(sector=sector, program_unit=unit)
    steps = int(random.choice([1, 10, 100, 200]))
    link = replace(board.link, steps_per_request=steps)
    return Case(model, least(model, replace(board, link=link)))


def build(case: Case, folder: Path) -> Path:
    """The engine and the host that fills it, in one program."""
    generated = generate(case.model, case.board, folder)
    inside = in_one_piece([*board_build.firmware_sources(), *sorted(generated.glob("*.c"))], folder)
    around = [FUZZ / f"{name}.c" for name in ("board", "line", "base")]
    sources = [FUZZ / "edge_begin.c", inside, FUZZ / "edge_end.c", *around, Path(__file__).with_name("fill.c")]
    given = [f for f in flags(generated) if not f.startswith("-fsanitize")]
    image = folder / "fill"
    compile_c([*given, "-Wno-shadow", f"-I{FUZZ}", f"-DFUZZ_LARGEST_STATUS={max(ERRORS)}u", *sources, "-o", image])
    return image


def fill(case: Case, folder: Path, seeds: Iterable[int], requests: int = 2000) -> str:
    """Hosts with different habits, one after the other; what the first of them tells that is refused something."""
    image = build(case, folder)
    for seed in seeds:
        command = [image, str(seed), str(requests), str(int(case.model.learning.streamed))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"{case}, host {seed}: {done.stdout}{done.stderr}"
    return ""


def made(
    fewer: int = 0, *, sector: int = 1024, unit: int = 4, n_in: int = 60, classes: int = 4, **learning: Any
) -> Case:
    """A network that hardly matters."""
    constants: dict[str, Any] = {"epochs": 2, "tdm": False, "dgm": False, "ddr": False, "refresh": False}
    model = random_model(1, sizes=(n_in, 4, classes), block=1, **(constants | learning))
    return Case(model, least(model, board_facts(sector=sector, program_unit=unit), fewer))


LARGE: dict[str, Any] = {"method": Method.ER, "n_in": 120, "table": 300, "capacity": 5}


@pytest.mark.parametrize("sector", [1024, *(pytest.param(n, marks=pytest.mark.slow) for n in (2048, 4096))])
def test_records_of_a_request_to_train(sector: int, tmp_path: Path) -> None:
    """Each step reserves a record of logits, padded to a large unit: 100 steps are many sectors."""
    case = made(sector=sector, unit=256, classes=10, method=Method.DERPP, table=100, capacity=20)
    assert case.board.link.steps_per_request == 100
    assert fill(case, tmp_path, range(4)) == ""


def test_saves_amid_a_large_task(tmp_path: Path) -> None:
    """Garbage lies behind samples that fill most of the ring: all of them have to be moved to get at it."""
    assert fill(made(**LARGE), tmp_path, range(4)) == ""


@pytest.mark.slow
def test_the_partition_is_not_wasteful(tmp_path: Path) -> None:
    """An eighth less is too little."""
    whole = made(**LARGE)
    less = made(whole.sectors // 8, **LARGE)
    assert less.sectors < whole.sectors
    assert "status 8" in fill(less, tmp_path, range(8))


@pytest.mark.parametrize("seed", [9, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(100, 160))])
def test_any_planned_partition(seed: int, tmp_path: Path) -> None:
    """Flash, method, size of requests, samples and buffer drawn; a failure names them."""
    assert fill(drawn(seed), tmp_path, range(6)) == ""
