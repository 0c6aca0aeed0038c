# SPDX-License-Identifier: Apache-2.0
"""What a person sees of `sparcl stream` and `sparcl run` in a terminal, and what a log gets."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparcl_mcu.host_tools.live.figures import accuracies
from sparcl_mcu.host_tools.stream import StreamResult
from tests.boards.terminal import Terminal
from tests.boards.test_end_to_end import UNOPTIMISED, Sparcl, new, require

pytestmark = pytest.mark.board

EXPERIMENT = """
[data]
set = "digits"
train_per_class = 90
test_per_class = 20
[model]
hidden = [16]
[initial]
train = "none"      # nothing to train: no TensorFlow
[sparsity]
weights = 0.6
[ddr]
enabled = true
"""
TASKS = 5

EPOCH = re.compile(
    r"task (\d/\d): epoch (\d+)/\d+, (\d+) samples, \d+ samples/s, loss ([\d.]+), training accuracy [\d.]+ %"
    r"(?:, (\d+) samples removed, (\d+) left)?(?:, (\d+) instructions per sample)?"
)
BAR = "━"
LEFT = re.compile(r"\(\d of 5\)|instructions (not|\d)|removed    ")
"""What only the view shows."""
COLOUR = re.compile(rb"\x1b\[(?:[\d;]*;)?[349][0-7][;m]")


def unbroken(text: str) -> str:
    """The lines of what was measured, which a terminal shows broken between words."""
    return re.sub(r"\s+", " ", text)


def flashed(folder: Path, text: str) -> Iterator[Sparcl]:
    """A native board that has an experiment's firmware; stopped at the end."""
    result = new(folder, text, **UNOPTIMISED)
    result("flash", "native")
    yield result
    for board in ("native", "microbit"):
        if result.project_folder(board).is_dir():
            result.emulator(board).stop()


@pytest.fixture(scope="module")
def sparcl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sparcl]:
    """A session takes a fraction of a second."""
    yield from flashed(tmp_path_factory.mktemp("live"), EXPERIMENT)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sparcl]:
    """A session takes so long that it can be disturbed halfway."""
    yield from flashed(tmp_path_factory.mktemp("long"), EXPERIMENT.replace("[16]", "[160]"))


def start(
    sparcl: Sparcl, command: str, *options: str, size: tuple[int, int] = (100, 30), board: str = "native", **env: str
) -> Terminal:
    """A command in a terminal of so many columns and rows."""
    environment = {**os.environ, "TERM": "xterm-256color", "SPARCL_BUILD": str(sparcl.folder), **env}
    for name in ("COLUMNS", "LINES", "FORCE_COLOR"):
        environment.pop(name, None)
    if "NO_COLOR" not in env:
        environment.pop("NO_COLOR", None)
    return Terminal([command, str(sparcl.experiment), "--board", board, *options], *size, environment)


def measured(sparcl: Sparcl, board: str = "native") -> StreamResult:
    """What the last session measured."""
    return StreamResult.load(sparcl.project_folder(board) / "stream.json")


def check_lines(shown: str, result: StreamResult) -> None:
    """Every epoch and every test has its line, whole and in order; nothing else was left behind."""
    text = unbroken(shown)
    expected = [
        (
            result.task_names[e.task],
            str(e.epoch + 1),
            str(e.steps),
            f"{e.loss / e.steps:.3f}",
            str(len(e.removed) or ""),
            str(e.samples_left) if e.removed else "",
        )
        for e in result.epochs
    ]
    assert len(expected) == 5 * TASKS
    assert [found[:6] for found in EPOCH.findall(text)] == expected
    assert re.findall(r"after task (\d/\d): accuracy", text) == result.task_names
    assert re.findall(r"after task (\d/\d): flash \d+ live records, \d+ of \d+ sectors free", text) == result.task_names
    assert not LEFT.search(shown)


# -- the live view -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(100, 30), pytest.param((60, 12), marks=pytest.mark.slow)])
def test_view_during_a_session_and_after_it(sparcl: Sparcl, size: tuple[int, int]) -> None:
    terminal = start(sparcl, "stream", "--fresh", size=size)
    frames = list(terminal.frames())
    assert terminal.process.returncode == 0, terminal.text.rstrip()[-2000:]
    second = [f for f in frames if "(2 of 5): training, epoch 3 of 5" in f and "removed      54 of 180 samples" in f]
    assert second, frames[-1]
    view = second[-1]
    assert re.search(rf"{BAR} +\d+/\d+ +\d:\d\d left +[\d,]+ samples/s", view)
    assert re.search(r"session \d:\d\d left", view)
    assert re.search(r"loss         \d\.\d{3} [▁▂▃▄▅▆▇█]{7,8} training accuracy \d+\.\d %", view)
    assert "instructions not counted on this board" in view
    assert re.search(r"flash        \d+ records.* \d+(/| of )\d+ .*free, \d+ (erases )?", view)
    assert re.search(r"accuracy     \d+\.\d % on 1 task so far", view)
    last = [f for f in frames if "% on 5 tasks so far" in f][-1]
    tasks = accuracies(measured(sparcl))
    assert min(task.change for task in tasks) < -0.5
    for task in tasks:
        change = re.escape(f"{round(task.change):+d}") if round(task.change) else ""
        assert re.search(rf"{task.name} [█▉▊▋▌▍▎▏]+ +{task.now:.0f} % *{change}", last), task
    assert not terminal.screen.cursor.hidden
    check_lines(terminal.text, measured(sparcl))
    assert "the board has learned all tasks" in terminal.text


@pytest.mark.slow
def test_a_low_terminal_gets_the_bar_alone(sparcl: Sparcl) -> None:
    terminal = start(sparcl, "stream", "--fresh", size=(80, 10))
    frames = list(terminal.frames())
    bars = [f.splitlines() for f in frames if "(2 of 5): training, epoch 3 of 5" in f]
    assert bars
    assert all(sum(BAR in line for line in bar) == 1 for bar in bars)
    assert not any("flash   " in f or "loss   " in f for f in frames)
    check_lines(terminal.text, measured(sparcl))


@pytest.mark.slow
def test_view_follows_the_size_of_the_terminal(long: Sparcl) -> None:
    terminal = start(long, "stream", "--fresh", size=(100, 30))
    resized, after = False, []
    for frame in terminal.frames():
        if "(2 of 5): training, epoch 3" in frame and not resized:
            terminal.resize(60, 12)
            resized = True
        elif "(4 of 5): training, epoch 3 of" in frame:
            after.append(frame)
    assert terminal.process.returncode == 0, terminal.text.rstrip()[-2000:]
    view = after[-1].splitlines()
    top = next(i for i, line in enumerate(view) if "(4 of 5)" in line)
    names = [line.split()[0] for line in view[top + 2 : top + 7]]
    assert names == ["loss", "removed", "instructions", "flash", "accuracy"]
    assert sum(BAR in line for line in view) == 1, "nothing of the old view is left"
    lines = EPOCH.findall(unbroken(terminal.text))
    assert [found[:2] for found in lines[-10:]] == [(task, str(e)) for task in ("6/7", "8/9") for e in range(1, 6)]
    assert not terminal.screen.cursor.hidden


def test_interrupted(long: Sparcl) -> None:
    """Ctrl-C during task 2: the terminal is as before, and the command to continue with is named; it works."""
    terminal = start(long, "stream", "--fresh")
    typed = False
    for frame in terminal.frames():
        if "(2 of 5): training, epoch 2 of" in frame and not typed:
            terminal.type(b"\x03")
            typed = True
    assert terminal.process.returncode == 130
    assert b"\x1b[?25l" in terminal.written
    assert not terminal.screen.cursor.hidden
    assert not LEFT.search(terminal.text)
    command = f"sparcl stream {long.experiment} --board native --resume"
    assert command in terminal.text
    assert not measured(long).complete
    assert "Traceback" not in terminal.text
    # On a busy machine the key may be seen a task later.
    before = sum(any(row) for row in measured(long).scores)
    assert before >= 1
    resumed = start(long, "stream", "--resume")
    frames = list(resumed.frames())
    assert resumed.process.returncode == 0
    assert any(f"on {before} task" in frame for frame in frames), "what was measured before"
    assert "bit-exact" in long("validate", "native").stdout


@pytest.mark.slow
def test_a_board_that_is_gone(long: Sparcl) -> None:
    """An error restores the terminal too."""
    terminal = start(long, "stream", "--fresh")
    for frame in terminal.frames():
        if "(2 of 5): training, epoch 2 of" in frame and long.emulator("native").is_running():
            long.emulator("native").kill()
    assert terminal.process.returncode == 1
    assert b"\x1b[?25l" in terminal.written
    assert not terminal.screen.cursor.hidden
    assert not LEFT.search(terminal.text)


@pytest.mark.slow
def test_no_colour(sparcl: Sparcl) -> None:
    coloured = start(sparcl, "stream", "--fresh")
    assert [frame for frame in coloured.frames() if "(2 of 5)" in frame]
    assert COLOUR.search(coloured.written)
    grey = start(sparcl, "stream", "--fresh", NO_COLOR="1")
    assert [frame for frame in grey.frames() if "(2 of 5)" in frame]
    assert not COLOUR.search(grey.written)


# -- plain lines -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "environment"),
    [(["--plain"], {}), ([], {"TERM": "dumb"}), ([], {"PYTHONIOENCODING": "latin-1"})],
    ids=["plain", "dumb", "latin-1"],
)
def test_lines_without_control_characters(sparcl: Sparcl, options: list[str], environment: dict[str, str]) -> None:
    """On a terminal as wide as no line is."""
    terminal = start(sparcl, "stream", "--fresh", *options, size=(160, 30), **environment)
    list(terminal.frames())
    assert terminal.process.returncode == 0, terminal.text.rstrip()[-2000:]
    check_plain(terminal.written.replace(b"\r\n", b"\n"), measured(sparcl))


@pytest.mark.slow
def test_plain_run_on_a_terminal_and_run_into_a_log(sparcl: Sparcl) -> None:
    terminal = start(sparcl, "run", "--plain", size=(160, 30))
    list(terminal.frames())
    assert terminal.process.returncode == 0, terminal.text.rstrip()[-2000:]
    check_plain(terminal.written.replace(b"\r\n", b"\n"), measured(sparcl))
    check_plain(sparcl("run", "native").stdout.encode(), measured(sparcl))
    sparcl("flash", "native")


def check_plain(output: bytes, result: StreamResult) -> None:
    """Lines of printable text, none longer than a log shows."""
    assert not re.search(rb"[\x00-\x09\x0b-\x1f\x7f]", output)
    text = output.decode()
    check_lines(text, result)
    assert max(len(line) for line in text.splitlines() if line.startswith(("task", "after"))) <= 160


# -- a board that counts instructions ----------------------------------------------------------------------


@pytest.mark.slow
def test_instructions_agree_with_the_report(sparcl: Sparcl) -> None:
    """Those of the lines, weighted with their samples, and the last ones of the view."""
    require("microbit")
    terminal = start(sparcl, "run", board="microbit", size=(160, 40))
    views = list(terminal.frames())
    assert terminal.process.returncode == 0, views[-1]
    reported = sparcl.report("microbit")["instructions"]["training"]
    epochs = [(int(found[2]), int(found[6])) for found in EPOCH.findall(unbroken(terminal.text))]
    assert len(epochs) == 5 * TASKS
    assert sum(n * each for n, each in epochs) / sum(n for n, _ in epochs) == pytest.approx(reported, abs=1)
    shown = [
        found for view in views if (found := re.search(r"instructions ([\d,]+) per sample, [\d,.]+ million/s", view))
    ]
    assert shown[-1][1] == f"{reported:,.0f}"
    assert shown[0][1] != shown[-1][1]
    assert any("instructions counted at the end of the epoch" in view for view in views)
