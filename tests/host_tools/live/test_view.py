# SPDX-License-Identifier: Apache-2.0
"""How the live view is drawn in cases that tests/boards/test_live.py does not come to."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from sparcl_mcu.host_tools.live import LiveView
from sparcl_mcu.host_tools.protocol import TrainingReply
from sparcl_mcu.host_tools.stream import Epoch, Outline, Score, StreamResult
from sparcl_mcu.spec.wire import Phase

OUTLINE = Outline(train=(100,), test=(10,), base_test=0, epochs=2, ddr=True, streamed=False, ticks_per_instruction=0.0)
COUNTERS = {"training": 0, "training_steps": 0, "live_records": 7, "sectors_free": 60, "sectors": 64, "erases": 3}


def outline(tasks: int, **changes: object) -> Outline:
    return replace(OUTLINE, train=(100,) * tasks, test=(10,) * tasks, **changes)


def result(names: list[str], correct: list[list[int]] | None = None) -> StreamResult:
    """Accuracies in tenths, row by row."""
    rows = correct or []
    scores = [[Score(c, c, 10) for c in row] + [None] * (len(names) - len(row)) for row in rows]
    scores += [[None] * len(names) for _ in range(len(names) - len(rows))]
    return StreamResult("e", "b", 0, "", "", names, 0, scores, statistics=dict(COUNTERS))


def drawn(outline: Outline, result: StreamResult, width: int = 80, height: int = 30) -> list[str]:
    """The lines of the view in the middle of a task's first epoch."""
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None)
    view = LiveView(console)
    view.begins(outline, result)
    view.training("", 0, outline.epochs, TrainingReply(50, 0, 50, 100, Phase.TRAINING, 0, 0.0, None, ()))
    with console.capture() as capture:
        console.print(view)
    view.close()
    return capture.get().splitlines()


def test_many_tasks_show_the_most_forgotten_ones() -> None:
    names = [f"t{i}" for i in range(40)]
    rows = [[9] * (i + 1) for i in range(39)]
    rows[38][5], rows[38][20] = 2, 4
    lines = drawn(outline(40), result(names, rows), height=12)
    assert len(lines) == 9
    tasks = " ".join(lines[7:])
    assert tasks.index("t5 ") < tasks.index("t20 "), "in the order they were learned"
    assert "20 %  -70" in tasks
    assert "40 %  -50" in tasks
    assert "t38" not in tasks


@pytest.mark.parametrize("height", [11, 12, 13, 24])
def test_three_lines_stay_for_what_scrolls(height: int) -> None:
    rows = [[9] * (i + 1) for i in range(39)]
    lines = drawn(outline(40), result([f"t{i}" for i in range(40)], rows), height=height)
    assert len(lines) == min(10, height - 3)


@pytest.mark.parametrize(("width", "height"), [(49, 30), (80, 10), (20, 3)])
def test_small_terminals_get_one_line(width: int, height: int) -> None:
    (line,) = drawn(outline(1), result(["a"]), width, height)
    assert line.startswith("task a")
    assert len(line) <= width
    assert "50/100" in line


@pytest.mark.parametrize("width", [50, 60, 80, 200])
def test_lines_fit(width: int) -> None:
    names = ["a rather long name of a task", "[red]b[/red]", "c"]
    lines = drawn(outline(3), result(names, [[9], [8, 7]]), width)
    assert max(map(len, lines)) <= width
    assert any("[red]b" in line for line in lines), "names are no markup"


def test_base_classes_and_no_removal() -> None:
    measured = result(["a", "b"], [[9]])
    measured.base = [Score(7, 7, 10), None]
    lines = drawn(outline(2, ddr=False, base_test=10), measured)
    assert any("90.0 % on 1 task so far, base classes 70.0 %" in line for line in lines)
    assert any("none: DDR is off" in line for line in lines)


def test_loss_is_of_the_present_epoch_and_its_curve_of_all() -> None:
    measured = result(["a"])
    measured.epochs = [Epoch(0, 0, 10, 5, 20.0), Epoch(0, 1, 10, 1, 1.0), Epoch(0, 2)]
    (line,) = (line for line in drawn(outline(1), measured) if line.startswith("loss"))
    assert line.split() == ["loss", "0.100", "█▁", "training", "accuracy", "90.0", "%"]


def test_lines_break_between_words() -> None:
    """80 columns show the lines of an epoch whole: no word is cut, and none is lost."""
    console = Console(file=io.StringIO(), width=80, color_system=None)
    view = LiveView(console)
    view.begins(outline(1), result(["sitting/walking"]))
    with console.capture() as capture:
        view.epoch_done("sitting/walking", 5, Epoch(0, 0, 291, 79, 264.5, 0.1, 262, list(range(29))))
    view.close()
    lines = [line.rstrip() for line in capture.get().splitlines()]
    assert len(lines) == 2
    assert all(len(line) <= 80 for line in lines)
    assert " ".join(line.strip() for line in lines) == (
        "task sitting/walking: epoch 1/5, 291 samples, 2910 samples/s, loss 0.909, training accuracy 72.9 %, "
        "29 samples removed, 262 left"
    )
