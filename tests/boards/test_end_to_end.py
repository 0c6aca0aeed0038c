# SPDX-License-Identifier: Apache-2.0
"""Whole experiments through the command line, as a user runs them, on every emulated board."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import board_build  # from platforms/common
import numpy as np
import pytest

from sparcl_mcu.generator import pipeline
from sparcl_mcu.generator.pipeline import Project
from sparcl_mcu.generator.render import render
from sparcl_mcu.host_tools.emulator import Emulator, unavailable
from sparcl_mcu.host_tools.protocol import TrainingReply
from sparcl_mcu.host_tools.recording import transactions
from sparcl_mcu.host_tools.stream import RECORDING, Epoch, Observer, StreamResult, stream
from sparcl_mcu.host_tools.validate import ValidationResult
from sparcl_mcu.reference import Device
from sparcl_mcu.spec.boards import load_board
from sparcl_mcu.spec.wire import Command
from tests import command_line
from tests.boards.test_end_to_end_random import cross_build
from tests.host_tools.fake_board import FakeBoard

pytestmark = pytest.mark.board

BOARDS = ("native", "microbit", "emcraft_sf2", "ast1030_evb", "mps3_an547")
QEMU = BOARDS[1:]
SECONDS = 300.0
"""Until a command that would hang is killed; never waited for otherwise."""

EXPERIMENT = """
[experiment]
seed = 3
[data]
set = "digits"
train_per_class = 12
test_per_class = 5
[tasks]
split = [[0, 1], [2, 3], [4, 5]]
[model]
hidden = [16]
[initial]
train = "none"      # nothing to train: no TensorFlow
[sparsity]
weights = 0.6
[method]
epochs = 2
buffer = 12
[dgm]
enabled = true
[ddr]
enabled = true
until = 2
"""

STREAMED = ("--set", "method.training=streamed")

UNOPTIMISED = {"SCL_EXTRA_CFLAGS": "-O0"}
"""On native boards, for tests about what is learned, not how fast: compiled in half the time."""


@dataclass
class Sparcl:
    """The command line, with a build folder of its own."""

    folder: Path
    experiment: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, command: str, board: str, *options: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a command that has to end with this status; its output."""
        arguments = [command, str(self.experiment), "--board", board, *options]
        environment = {**os.environ, "SPARCL_BUILD": str(self.folder), **self.environment}
        done = command_line.run(arguments, environment, SECONDS)
        assert done.returncode == status, f"exit status {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done

    def project_folder(self, board: str) -> Path:
        """Where the artefacts of a board are."""
        return self.folder / self.experiment.stem / board

    def emulator(self, board: str) -> Emulator:
        """The board `flash` starts."""
        return Emulator(self.project_folder(board) / "emulator" / board, board)

    def project(self, board: str, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Project:
        """The project, as the commands load it."""
        monkeypatch.setenv("SPARCL_BUILD", str(self.folder))
        return pipeline.generate(self.experiment, board, overrides)

    def boot(self, board: str, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Project:
        """As `flash`, but built in a moment: for tests in which PlatformIO is not the subject."""
        project = self.project(board, monkeypatch, *overrides)
        project.image.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(cross_build(project.model, board, project.folder), project.image)
        self.emulator(board).start(project.image)
        return project

    def report(self, board: str) -> dict[str, Any]:
        """The last report."""
        report: dict[str, Any] = json.loads((self.project_folder(board) / "report.json").read_text())
        return report


def require(board: str) -> None:
    """Skip where the compiler or the emulator of a board is missing."""
    facts = load_board(board)
    if shutil.which(board_build.tool(facts, "gcc")) is None:
        pytest.skip(f"not installed: {board_build.tool(facts, 'gcc')}")
    reason = unavailable(board)
    if reason is not None:
        pytest.skip(reason)


def new(folder: Path, text: str = EXPERIMENT, **environment: str) -> Sparcl:
    """A command line with an experiment file."""
    folder.mkdir(parents=True, exist_ok=True)
    experiment = folder / "tiny.toml"
    experiment.write_text(text)
    return Sparcl(folder / "build", experiment, environment)


@pytest.fixture
def sparcl(built: Path) -> Iterator[Sparcl]:
    """A command line whose boards are stopped in the end; of tests before this one nothing is left but objects."""
    result = new(built)
    yield result
    for board in BOARDS:
        if result.project_folder(board).is_dir():
            result.emulator(board).stop()
    _forget(result)


def _forget(sparcl: Sparcl) -> None:
    """Remove what a test has made, but for what PlatformIO compiled."""
    shutil.rmtree(sparcl.folder / "current", ignore_errors=True)
    experiment = sparcl.folder / sparcl.experiment.stem
    for path in (*experiment.glob("*"), *experiment.glob("*/*")):
        if not path.is_dir():
            path.unlink()
        elif path.parent != experiment and path.name != "pio":
            shutil.rmtree(path)


@pytest.fixture(scope="session")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The state EXPERIMENT ends in: of the reference, which plays the board."""
    sparcl = new(tmp_path_factory.mktemp("expected"))
    with pytest.MonkeyPatch.context() as patch:
        project = sparcl.project("native", patch)
    with FakeBoard(project.model) as board:
        return f"{stream(project, board.url).state_digest:08x}"


@pytest.mark.parametrize("board", BOARDS)
def test_run(board: str, sparcl: Sparcl, expected: str) -> None:
    """Everything in one command: bit-exact, and the same final state on every board."""
    require(board)
    done = sparcl("run", board)
    assert "bit-exact with the NumPy reference" in done.stdout
    report = sparcl.report(board)
    assert report["bit_exact"] is True
    assert report["mismatches"] == 0
    assert report["steps"] == report["steps_compared"] > 100
    assert report["samples_removed"] > 0
    assert report["board"] == board
    assert report["state_digest"] == expected, "as on every other board"
    assert not sparcl.emulator(board).is_running()
    if board in QEMU:
        check_image(sparcl, board)
    sparcl("validate", board)


def check_image(sparcl: Sparcl, board: str) -> None:
    """No float, no heap; the plan covers what was linked, and not by much."""
    facts = load_board(board)
    elf = sparcl.project_folder(board) / "pio" / board / "firmware.elf"
    names = subprocess.run([board_build.tool(facts, "nm"), elf], check=True, capture_output=True, text=True).stdout
    symbols = {line.split()[-1] for line in names.splitlines()}
    assert "scl_protocol_take" in symbols
    assert not [s for s in symbols if re.match(r"__aeabi_[fd]|_*(malloc|calloc|realloc|free|sbrk)(_r)?$", s)]
    plan = json.loads((sparcl.project_folder(board) / "05-plan.json").read_text())
    sizes = board_build.section_sizes(facts, str(elf))
    linked = sum(sizes.get(section, 0) for section in (".data", ".bss", ".noinit", ".stack"))
    planned = sum(row["size"] for row in plan["ram"])
    assert linked <= planned <= linked + 1536, (linked, planned)
    assert sizes[".text"] + sizes.get(".hot", 0) <= sum(row["size"] for row in plan["flash"])


@pytest.mark.parametrize("board", ["native", "microbit"])
def test_streamed_ends_as_resident(board: str, sparcl: Sparcl, expected: str) -> None:
    """Samples sent each epoch instead of kept: the same state in the end."""
    require(board)
    sparcl.environment = UNOPTIMISED if board == "native" else {}
    sparcl("run", board, *STREAMED)
    report = sparcl.report(board)
    assert report["bit_exact"] is True
    assert report["state_digest"] == expected
    commands = [item.command for item in transactions(sparcl.project_folder(board) / RECORDING)]
    assert Command.STEP in commands
    assert Command.SAMPLES not in commands


@pytest.mark.parametrize("board", ["native", "ast1030_evb"])
def test_a_users_own_data(board: str, tmp_path: Path) -> None:
    """Float samples of an odd shape, labels that are words, three classes in two tasks."""
    require(board)
    rng = np.random.default_rng(1)
    names = np.array(["north", "east", "south"])
    centres = rng.normal(size=(3, 7, 5))

    def draw(count: int) -> tuple[Any, Any]:
        labels = np.arange(count) % 3
        return (centres[labels] + rng.normal(size=(count, 7, 5)) * 0.7).astype(np.float32), names[labels]

    x_train, y_train = draw(60)
    x_test, y_test = draw(30)
    np.savez(tmp_path / "own.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    text = """
[data]
set = "npz"
path = "own.npz"
[tasks]
split = [["south", "north"], ["east"]]
[model]
hidden = [20]
[initial]
train = "none"
[method]
epochs = 2
buffer = 15
"""
    sparcl = new(tmp_path, text, **UNOPTIMISED if board == "native" else {})
    sparcl("run", board)
    report = sparcl.report(board)
    assert report["bit_exact"] is True
    assert report["steps"] == 2 * 60
    assert report["accuracy_matrix"][0][0] > 70  # two classes, well apart


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "initial"),
    [
        ('first = "host"', 'train = "first_task"\nepochs = 2'),
        ("", 'train = "base"\nbase_classes = [8, 9]\nepochs = 2'),
    ],
    ids=["host", "base"],
)
def test_host_learns_first(first: str, initial: str, tmp_path: Path) -> None:
    """A model that Keras trained on the first task, or on classes that are in no task."""
    text = EXPERIMENT.replace("[tasks]", f"[tasks]\n{first}")
    text = re.sub(r"train = \"none\".*", initial, text)
    sparcl = new(tmp_path, text)
    for board in ("native", "microbit"):
        require(board)
        sparcl("run", board)
    reports = [sparcl.report(board) for board in ("native", "microbit")]
    assert all(report["bit_exact"] for report in reports)
    assert reports[0]["state_digest"] == reports[1]["state_digest"]
    assert reports[0]["initial_accuracy"]


# -- going on -------------------------------------------------------------------------------------


class Unplugged(Exception):
    """The observer's way to end a session."""


class Stopper(Observer):
    """Ends the session: after a task, or in the middle of one."""

    def __init__(self, task: str, *, midst: bool) -> None:
        self._task = task
        self._midst = midst

    def epoch_done(self, task: str, epochs: int, record: Epoch) -> None:
        """In the midst: after the first epoch."""
        if self._midst and task == self._task:
            raise Unplugged

    def evaluated(self, task: str, row: list[tuple[str, Any]]) -> None:
        """After a task: it has been saved and measured."""
        if not self._midst and task == self._task:
            raise Unplugged


@pytest.mark.parametrize("board", ["native", "microbit"])
@pytest.mark.parametrize("midst", [False, True], ids=["after", "midst"])
def test_resume(board: str, midst: bool, sparcl: Sparcl, monkeypatch: pytest.MonkeyPatch, expected: str) -> None:
    """After task 2 of 3 the power fails, or in the middle of it the board is reset; the end is the same."""
    require(board)
    project = sparcl.boot(board, monkeypatch)
    emulator = sparcl.emulator(board)
    url = emulator.url
    assert url is not None
    with pytest.raises(Unplugged):
        stream(project, url, observer=Stopper("2/3", midst=midst))
    steps = StreamResult.load(project.folder / "stream.json").epochs
    assert [(e.task, e.epoch) for e in steps][-1] == (1, 0 if midst else 1)
    if midst:
        emulator.reset()
    else:
        emulator.kill()
        assert not emulator.is_running()
    sparcl("validate", board, "--no-bisect", status=1)
    done = sparcl("stream", board, "--resume")
    assert expected in done.stdout
    sparcl("validate", board)
    result = ValidationResult.load(project.folder / "validation.json")
    assert result.bit_exact
    assert result.resumed == int(midst)
    sparcl("stream", board, status=2)  # neither --resume nor --fresh
    sparcl("report", board)
    report = sparcl.report(board)
    assert report["sessions"] == 2
    assert report["state_digest"] == expected
    assert len(report["epochs"]) == 6


@pytest.mark.parametrize("board", ["native", "microbit"])
def test_interrupted_while_streaming(
    board: str, sparcl: Sparcl, monkeypatch: pytest.MonkeyPatch, expected: str
) -> None:
    """The host stops between two requests in streamed mode, and the power fails; --resume continues."""
    require(board)
    project = sparcl.boot(board, monkeypatch, STREAMED[1])
    emulator = sparcl.emulator(board)

    class AfterOneRequest(Observer):
        def training(self, task: str, epoch: int, epochs: int, reply: TrainingReply) -> None:
            if task == "2/3" and epoch == 1:
                raise Unplugged

    assert emulator.url is not None
    with pytest.raises(Unplugged):
        stream(project, emulator.url, observer=AfterOneRequest())
    sparcl("stream", board, "--resume", *STREAMED)  # the board kept its power
    sparcl("validate", board, *STREAMED)
    assert StreamResult.load(project.folder / "stream.json").state_digest == int(expected, 16)


# -- faults ---------------------------------------------------------------------------------------


def weight_after(sparcl: Sparcl, step: int, region: str) -> tuple[Any, Device]:
    """The reference's tensor after so many steps of the recorded session."""
    from sparcl_mcu.reference import arrays

    model = pipeline.store.load(sparcl.folder / "tiny" / "04-quantised", pipeline.Model)
    device = Device(model)
    for item in transactions(sparcl.project_folder("native") / RECORDING):
        if item.command == Command.TRAIN and device.step < step:
            left = int.from_bytes(item.request[:2], "little")
            epoch = (device.task, device.epoch)
            while left and device.step < step and (device.task, device.epoch) == epoch and device.phase == 2:
                device.apply(Command.TRAIN, b"\x01\0\0")
                left -= 1
            if device.step == step:
                break
        else:
            device.apply(item.command, item.request)
    assert device.step == step
    return arrays(model, device.dump())[region], device


@pytest.mark.parametrize(
    ("step", "number", "region", "entry", "bit"),
    [(37, 3, "layer0.panel0.weight", 20, 4), (90, 5, "layer1.weight", 33, 9)],
    ids=["sparse", "dense"],
)
def test_a_flipped_bit_is_found(
    step: int, number: int, region: str, entry: int, bit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A debug build damages one weight after one step: `validate` names that step, weight and both values.

    Without the fault the same passes: test_run.
    """
    flag = f"-DSCL_FLIP_STEP={step} -DSCL_FLIP_REGION={number} -DSCL_FLIP_BYTE={2 * entry + bit // 8}"
    monkeypatch.setenv("SCL_EXTRA_CFLAGS", f"-O0 {flag} -DSCL_FLIP_BIT={bit % 8}")
    sparcl = new(tmp_path)
    try:
        sparcl("flash", "native") if region == "layer1.weight" else sparcl.boot("native", monkeypatch)
        sparcl("stream", "native")
        failed = sparcl("validate", "native", status=1)
        right, device = weight_after(sparcl, step, region)
        good = int(right[entry])
        bad = int(np.int16(np.uint16(good & 0xFFFF) ^ np.uint16(1 << bit)))
        if region.startswith("layer0"):
            panel = device.state.layers[0].panels[0]  # type: ignore[attr-defined]
            start = np.frombuffer(device.dump()[16], "<u2")
            source = int(np.searchsorted(start, entry, side="right")) - 1
            place = f"layer 0, panel 0, entry {entry}: input {source}, output {int(panel.index[entry])}"
        else:
            outputs = len(right) // 16
            place = f"layer 1, input {entry // outputs}, output {entry % outputs}"
        told = f"step {step} (task {(step - 1) // 48}): {region}[{entry}] ({place}) is {bad} on the board, {good} in"
        assert told in failed.stderr
        result = ValidationResult.load(sparcl.project_folder("native") / "validation.json")
        assert result.divergence is not None
        assert (result.divergence.step, result.divergence.board) == (step, str(bad))
        assert result.differing == [region]
    finally:
        sparcl.emulator("native").stop()


def test_wrong_firmware_is_refused(sparcl: Sparcl) -> None:
    """Another model on the board: exit 2, and the command that mends it."""
    sparcl.environment = UNOPTIMISED
    sparcl("flash", "native")
    done = sparcl("stream", "native", "--seed", "9", status=2)
    assert re.search(r"sparcl flash|sparcl stream --fresh", done.stderr)
    assert "sparcl flash" in done.stderr
    sparcl("flash", "native", "--seed", "9")
    sparcl("stream", "native", "--seed", "9", "--fresh")
    sparcl("validate", "native", "--seed", "9")


def test_wrong_board_is_refused(sparcl: Sparcl, monkeypatch: pytest.MonkeyPatch) -> None:
    """The port of another board: exit 2."""
    sparcl.boot("native", monkeypatch)
    url = sparcl.emulator("native").url
    assert url is not None
    done = sparcl("stream", "microbit", "--port", url, status=2)
    assert "native" in done.stderr
    assert "microbit" in done.stderr


def test_no_board_to_talk_to(sparcl: Sparcl) -> None:
    """Nothing was flashed: exit 2, and what to do."""
    done = sparcl("stream", "native", status=2)
    assert "sparcl flash" in done.stderr


def test_too_large_for_the_board(tmp_path: Path) -> None:
    """Exit 2 before anything is rendered or built, and what to change."""
    sparcl = new(tmp_path)
    for command in ("build", "run", "flash"):
        done = sparcl(command, "microbit", "--set", "model.hidden=[600]", status=2)
        assert "does not fit" in done.stderr
        assert "RAM" in done.stderr
    folder = sparcl.project_folder("microbit")
    assert not (folder / "pio").exists()
    assert not (folder / "generated").exists()


def times(folder: Path) -> dict[str, int]:
    """When each compiled or rendered file was written."""
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*") if p.suffix in (".o", ".elf", ".bin", ".c", ".h")}


def test_nothing_is_done_twice(sparcl: Sparcl, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same input renders the same bytes, also in another process; a second build compiles nothing."""
    board = "microbit" if shutil.which("arm-none-eabi-gcc") else "native"
    sparcl("build", board)
    folder = sparcl.project_folder(board)
    before = times(folder / "pio"), times(folder / "generated")
    objects = [name for name in before[0] if name.endswith(".o")]
    assert len(objects) > 10
    sparcl("build", board)
    assert (times(folder / "pio"), times(folder / "generated")) == before
    project = sparcl.project(board, monkeypatch)
    rendered = render(project.model, load_board(board))
    assert {p.name: p.read_text() for p in (folder / "generated").iterdir()} == rendered
    other = Sparcl(sparcl.folder, sparcl.experiment, {"PYTHONHASHSEED": "77"})
    other("generate", board, "--force")
    assert {p.name: p.read_text() for p in (folder / "generated").iterdir()} == rendered
    assert times(folder / "generated") == before[1]
