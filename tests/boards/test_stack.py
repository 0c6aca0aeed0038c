# SPDX-License-Identifier: Apache-2.0
"""The stack that board.toml sets aside is enough: by the call graph for any request, and as measured on the board."""

from __future__ import annotations

from pathlib import Path

import pytest
import stack_bound  # from platforms/common, as board_build

from sparcl_mcu.host_tools import protocol
from sparcl_mcu.host_tools.emulator import Emulator
from sparcl_mcu.spec.boards import load_board
from sparcl_mcu.spec.types import Model
from sparcl_mcu.spec.wire import Command
from tests.boards.test_end_to_end_random import BOARDS, MODELS, EmulatedBoard, convolutional, cross_build
from tests.firmware.native import Teacher, Twin, board_build
from tests.reference.models import random_model

pytestmark = pytest.mark.board

MARGIN = 0.8
"""Share of the stack set aside that these models may use."""
SEED = {"microbit": 18, "emcraft_sf2": 2}
"""Convolutional networks that fit the small boards; the others take both."""
CASES = [pytest.param(b, n, marks=[pytest.mark.slow] * (n > 0)) for n in range(3) for b in BOARDS]


def models(board: str) -> list[Model]:
    """Dense with blocks and masks by gradient, dense in batches, and convolutions."""
    return [*MODELS, convolutional(SEED.get(board, 7))]


def bound(folder: Path) -> int:
    """Of the firmware that was built there, in bytes."""
    return stack_bound.bound(path.read_text() for path in folder.glob("*.ci")).bytes


@pytest.mark.parametrize(("board", "number"), CASES)
def test_the_stack_set_aside_is_enough(board: str, number: int, tmp_path: Path) -> None:
    """What a session used is within the bound, near it, and the bound is within the plan."""
    model = models(board)[number]
    facts = load_board(board)
    image = cross_build(model, board, tmp_path)
    most = bound(tmp_path)
    emulator = Emulator(tmp_path / "board", board)
    try:
        twin = Twin(model, EmulatedBoard(emulator, image))
        teacher = Teacher(twin, number)
        for task, classes in enumerate([(0, 1), (2, 3)]):
            teacher.begin(classes, 10, streamed=task == 1, seed=task)
            teacher.mistakes()
            teacher.evaluate()
            twin.good(Command.SAVE)
            teacher.finish()
        twin.check_dump()
        used = protocol.statistics(twin.link).stack_used
        twin.close()
    finally:
        emulator.stop()
    print(f"{board}, model {number}: {used} bytes used, at most {most}, {facts.memory.stack_bytes} planned")
    assert 0.6 * most < used <= most
    assert most <= MARGIN * facts.memory.stack_bytes
    assert board_build.stack_report(facts, tmp_path) == (
        f"{board}: stack at most {most} of {facts.memory.stack_bytes} bytes",
        False,
    )


def test_more_classes_than_the_stack_holds(tmp_path: Path) -> None:
    """Logits of one sample lie on the stack, several times over: the build says so instead of the board."""
    board = "microbit"
    facts = load_board(board)
    cross_build(random_model(1, sizes=(4, 2, 255), epochs=1, table=4, capacity=2), board, tmp_path)
    report, too_deep = board_build.stack_report(facts, tmp_path)
    assert too_deep
    assert "Raise stack_bytes" in report
    assert "do_train > scl_train_step > learn" in report


def graph(*lines: str) -> stack_bound.Graph:
    """Of one file."""
    found = stack_bound.Graph()
    found.add("\n".join(['graph: { title: "a.c"', *lines]))
    return found


def node(name: str, size: int, kind: str = "static") -> str:
    """A function of the file, as gcc writes it."""
    return f'node: {{ title: "{name}" label: "{name}\\na.c:1:1\\n{size} bytes ({kind})\\n0 dynamic objects" }}'


def edge(caller: str, callee: str) -> str:
    """A call."""
    return f'edge: {{ sourcename: "{caller}" targetname: "{callee}" label: "a.c:1:1" }}'


def test_the_deepest_path_counts() -> None:
    """Frames add up along it; at its end there may be a function of a library."""
    found = graph(node("main", 8), node("a", 100), node("b", 40), node("c", 80), *[edge("main", f) for f in "ab"])
    assert found.depth("main") == (8 + 100 + stack_bound.LIBRARY, ("main", "a"))
    found.add("\n".join(['graph: { title: "a.c"', edge("b", "c")]))
    assert found.depth("main") == (8 + 40 + 80 + stack_bound.LIBRARY, ("main", "b", "c"))


def test_what_has_no_bound() -> None:
    """Recursion, a frame that grows, pointers that nobody described."""
    with pytest.raises(ValueError, match="recursion: main > a > main"):
        graph(node("main", 8), node("a", 8), edge("main", "a"), edge("a", "main")).depth("main")
    with pytest.raises(ValueError, match="only when it runs"):
        graph(node("main", 8, "dynamic"))
    with pytest.raises(ValueError, match=r"a\.c: main calls through a pointer"):
        graph(node("main", 8), edge("main", "__indirect_call")).depth("main")
    with pytest.raises(ValueError, match="nothing about scl_app_main"):
        stack_bound.bound([])
