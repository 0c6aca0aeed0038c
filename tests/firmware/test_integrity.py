# SPDX-License-Identifier: Apache-2.0
"""Flipped bits are found and undone, a board that hangs starts again, one that computes wrongly does not learn."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sparcl_mcu.generator import plan
from sparcl_mcu.host_tools import protocol, report, stream, validate
from sparcl_mcu.host_tools.link import DeviceError
from sparcl_mcu.spec.boards import Board, Watchdog
from sparcl_mcu.spec.errors import BoardError
from sparcl_mcu.spec.wire import Command, Phase, Status
from tests.firmware.memory import Memory
from tests.firmware.native import FIRMWARE, Process, Teacher, Twin, board_facts, build, running
from tests.host_tools.conftest import MakeProject, make_project
from tests.reference.models import random_model, random_samples, task_begin

__all__ = ["make_project"]

MODEL = random_model(5, sizes=(14, 24, 4), epochs=2, capacity=6, table=16)
COUNT = 12
NONE, TRAIN = b"", struct.pack("<HB", 1, 0)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The firmware as it is."""
    return build(MODEL, tmp_path_factory.mktemp("integrity"))


@pytest.fixture
def twin(image: Path, tmp_path: Path) -> Iterator[Twin]:
    """A board in the middle of its second task: a snapshot, and three steps since."""
    with running(MODEL, image, tmp_path) as board:
        teacher = Teacher(board, 3)
        teacher.begin((0, 1), COUNT, streamed=False, seed=0)
        teacher.finish()
        teacher.begin((2, 3), COUNT, streamed=False, seed=1)
        board.good(Command.TRAIN, struct.pack("<HB", 5, 0))
        board.good(Command.SAVE)
        board.saved = board.device.copy()  # type: ignore[attr-defined]
        board.good(Command.TRAIN, struct.pack("<HB", 3, 0))
        yield board


def memory(twin: Twin) -> Memory:
    assert isinstance(twin.process, Process)
    return Memory(twin.process.image, twin.process.pid)


def refused(twin: Twin, command: int, request: bytes = NONE) -> int:
    """Status of a reply; the process must survive."""
    return twin.ask(command, request)[0]


def comes_back(twin: Twin) -> protocol.Hello:
    """The board starts again with what was saved, and learns on."""
    state = protocol.wait_for_hello(twin.link)
    twin.device = twin.saved.copy()  # type: ignore[attr-defined]
    twin.check_dump()
    twin.check()
    assert state.health == protocol.RESTORED
    return state


def finish(twin: Twin) -> None:
    """The rest of the task, compared step by step."""
    while twin.device.phase == Phase.TRAINING:
        twin.good(Command.TRAIN, struct.pack("<HB", 7, 1))
    twin.good(Command.TASK_END)


@pytest.mark.parametrize(
    ("symbol", "bit"),
    [
        ("layer0_panel0_weight", 37),
        ("layer0_panel0_index", 7),
        ("layer0_panel0_start", 20),
        ("layer0_panel0_split", 3),
        ("layer0_bias", 95),
        ("layer1_bias", 0),
        ("scl_learner", 0),  # the PRNG
        ("scl_learner", 32 + 31),  # step
        ("scl_table", 5),
        ("scl_slots", 17),
        ("scl_journal", 2),
    ],
)
def test_flipped_bit_is_found_before_the_next_request_and_undone(twin: Twin, symbol: str, bit: int) -> None:
    protocol.digest(twin.link)
    idle(twin)
    memory(twin).flip(symbol, bit)
    assert refused(twin, Command.TRAIN, TRAIN) == Status.DAMAGED
    assert comes_back(twin).faults == 1
    finish(twin)


def idle(twin: Twin) -> None:
    """Until the background pass has taken all sums: requests that only read do as much of it as an idle wait."""
    for _ in range(40):
        protocol.digest(twin.link)


def test_a_reset_that_is_refused_hides_nothing(twin: Twin) -> None:
    """It comes without the nonce; damage of before is found afterwards."""
    memory(twin).flip("layer0_panel0_weight", 37)
    assert twin.ask(Command.RESET, b"\x01" + bytes(8))[0] == Status.WRONG_NONCE
    assert refused(twin, Command.TRAIN, TRAIN) == Status.DAMAGED
    comes_back(twin)


@pytest.mark.parametrize("bit", [31, 12 * 8 + 5])
def test_a_reset_to_factory_does_not_trust_damaged_books(twin: Twin, bit: int) -> None:
    """Of the journal: its numbers come from the flash."""
    request = protocol.reset_request(twin.hello(), protocol.FACTORY)
    memory(twin).flip("scl_journal", bit)
    assert twin.ask(Command.RESET, request)[0] == 0
    assert not twin.restart().restored


def test_a_snapshot_is_not_made_of_what_is_damaged(tmp_path: Path) -> None:
    """Also one that makes room for a replay record, which itself has nothing to do with weights."""
    model = random_model(5, sizes=(14, 24, 4), epochs=1, capacity=300, table=8)
    least = plan.plan(model, board_facts(sector=1024, program_unit=4)).store_bytes
    image = build(model, tmp_path, board_facts(size=least, sector=1024, program_unit=4))
    x, y = random_samples(model, (0, 1), 1, 7)
    requests = [(Command.REPLAY, struct.pack("<IHBB", 4000 + k, k, 0, int(y[0])) + x[0].tobytes()) for k in range(300)]
    requests = [item for pair in zip(requests, [(Command.SAVE, NONE)] * 300, strict=True) for item in pair]
    with running(model, image, tmp_path) as twin:
        executed, before = [], 0
        for command, request in requests:
            twin.good(command, request)
            if command == Command.REPLAY and snapshot(twin) != before:
                break
            executed.append((command, request))
            before = snapshot(twin)
    (tmp_path / "again").mkdir()
    with running(model, image, tmp_path / "again") as twin:
        for earlier in executed[:-1]:
            twin.good(*earlier)
        board, pid = memory(twin), twin.process.pid
        board.names()  # looked up before it is urgent: a board that idles would compare everything
        twin.ask(*executed[-1])
        os.kill(pid, signal.SIGSTOP)
        board.flip("layer0_panel0_weight", 37)
        threading.Timer(0.1, os.kill, (pid, signal.SIGCONT)).start()
        assert refused(twin, command, request) == Status.DAMAGED
        assert protocol.wait_for_hello(twin.link).snapshot == before


def snapshot(twin: Twin) -> int:
    return twin.hello().snapshot


def test_what_only_reads_does_not_answer_from_a_damaged_state(twin: Twin) -> None:
    idle(twin)
    time.sleep(0.1)  # the board sees that the line is idle
    memory(twin).flip("layer0_panel0_weight", 2)
    assert refused(twin, Command.PREDICT, bytes(MODEL.n_in)) == Status.DAMAGED
    comes_back(twin)


def test_hello_does_not_tell_a_damaged_place(twin: Twin) -> None:
    memory(twin).flip("scl_learner", 35)
    assert refused(twin, Command.HELLO) == Status.DAMAGED
    comes_back(twin)


def test_two_faults_are_counted_until_power_on(twin: Twin) -> None:
    for count in (1, 2):
        memory(twin).flip("scl_learner", 40)
        assert refused(twin, Command.TRAIN, TRAIN) == Status.DAMAGED
        assert comes_back(twin).faults == count
    state = protocol.reset(twin.link, protocol.RESTART)
    assert (state.health, state.faults) == (0, 2)
    assert twin.power_cut().faults == 0


@pytest.mark.parametrize("symbol", ["layer0_panel0_weight_initial", "scl_golden_digest", "layer0_panel0_index_initial"])
def test_constants_are_compared_in_the_background(twin: Twin, symbol: str) -> None:
    memory(twin).flip(symbol, 9)
    size = Path(twin.process.image).stat().st_size  # type: ignore[attr-defined]
    for _ in range(size // 1024 + 100):  # 256 words in each
        if refused(twin, Command.DIGEST):
            break
    else:
        pytest.fail("not found")
    comes_back(twin)
    finish(twin)


def test_idle_board_restarts_and_refuses_what_was_meant_for_the_state_before(twin: Twin) -> None:
    memory(twin).flip("layer0_panel0_index", 8)
    deadline = time.monotonic() + 30
    before = Path(f"/proc/{twin.process.pid}/environ").read_bytes()  # type: ignore[attr-defined]
    while Path(f"/proc/{twin.process.pid}/environ").read_bytes() == before:  # type: ignore[attr-defined]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for command, request in ((Command.TRAIN, TRAIN), (Command.EVALUATE, b"\0"), (Command.SAVE, NONE)):
        assert refused(twin, command, request) == Status.DAMAGED
    comes_back(twin)
    finish(twin)


def test_restart_that_the_host_does_not_know_of(twin: Twin) -> None:
    """Before its next hello the board does nothing that was meant for another state."""
    os.kill(twin.process.pid, signal.SIGUSR1)  # type: ignore[attr-defined]
    time.sleep(0.5)
    assert refused(twin, Command.TRAIN, TRAIN) == Status.OUT_OF_TURN
    assert refused(twin, Command.DIGEST) == Status.OUT_OF_TURN
    assert twin.hello().reset_reason == 2
    twin.device = twin.saved.copy()  # type: ignore[attr-defined]
    finish(twin)


@pytest.mark.parametrize(
    "model",
    [
        MODEL,
        random_model(6, sizes=(9, 8, 3), epochs=1, capacity=4, table=8, batch=4),
    ],
)
def test_every_bit_of_the_state(model: object, tmp_path: Path) -> None:
    """Not one flip is missed: before a request, in the background, and those of masks in training steps."""
    source = str(Path(__file__).with_name("flips.c"))
    program = build(model, tmp_path, None, [source, "-Wl,--wrap=scl_app_main"])  # type: ignore[arg-type]
    done = subprocess.run(
        [program, "--pty", "--flash", tmp_path / "f.img"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if not line.startswith("serial")]
    names = [row[0] for row in rows]
    assert {"learner", "journal", "table", "slots", "mask", "learnt", "training"} <= set(names)
    flipped = sum(int(row[1]) for row in rows)
    assert flipped > 5000
    for name, bits, found, slices, steps in rows:
        assert found == bits, f"{name}: {found} of {bits} flips were found"
        assert int(slices) < 2000, f"{name}: {slices} slices"
        assert int(steps) < 8000, f"{name}: {steps} steps"


# -- whole sessions ------------------------------------------------------------------------------------


def facts(period_ms: int) -> Board:
    return replace(board_facts(), watchdog=Watchdog(period_ms=period_ms, verified="emulated"))


class Vandal(stream.Observer):
    """Flips bits while the board learns."""

    def __init__(self, process: Process, flips: dict[tuple[str, int], tuple[str, int]]) -> None:
        self.process = process
        self.flips = dict(flips)
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def training(self, task: str, epoch: int, epochs: int, reply: protocol.TrainingReply) -> None:
        flip = self.flips.pop((task, epoch), None)
        if flip is not None:
            Memory(self.process.image, self.process.pid).flip(*flip)


@pytest.mark.parametrize("mode", ["resident", "streamed"])
def test_stream_goes_on_after_flipped_bits(make_project: MakeProject, tmp_path: Path, mode: str) -> None:
    project = make_project(method={"training": mode})
    process = Process(build(project.model, tmp_path / "build"), tmp_path)
    process.start()
    try:
        calm = stream.stream(project, process.url).state_digest
        flips = {("2/3", 0): ("layer0_panel0_weight", 11), ("4/5", 1): ("scl_learner", 3)}
        if mode == "streamed":
            flips["2/3", 0] = ("scl_learner", 99)
        vandal = Vandal(process, flips)
        result = stream.stream(project, process.url, fresh=True, observer=vandal)
        assert result.resets == [stream.STATE_DAMAGED] * 2
        assert result.state_digest == calm
        checked, _ = validate.validate(project)
        assert checked.bit_exact, checked.first
        assert sum("rolled back to step" in text for text in vandal.messages) == 2
        assert ("faults recovered from", f"2 x {stream.STATE_DAMAGED}") in report.build(project).key_figures()
    finally:
        process.kill()


def test_stream_gives_up_a_board_that_is_damaged_again_and_again(make_project: MakeProject, tmp_path: Path) -> None:
    project = make_project()
    process = Process(build(project.model, tmp_path / "build"), tmp_path)
    process.start()

    class Always(stream.Observer):
        def training(self, *_: object) -> None:
            Memory(process.image, process.pid).flip("scl_learner", 1)

    try:
        with pytest.raises(BoardError, match=r"started again 3 times in a row.*a bit flipped.*--resume"):
            stream.stream(project, process.url, observer=Always())
    finally:
        process.kill()


def test_hung_board_is_reset_and_the_session_goes_on(make_project: MakeProject, tmp_path: Path) -> None:
    project = make_project()
    source = str(Path(__file__).with_name("hang.c"))
    hanging = build(project.model, tmp_path / "build", facts(300), [source, "-Wl,--wrap=scl_replay_offer"], apart=True)
    process = Process(hanging, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCL_HANG_AT", "31")
        process.start()
    try:
        vandal = Vandal(process, {})
        result = stream.stream(project, process.url, observer=vandal)
        assert result.resets == [stream.WATCHDOG]
        assert any("watchdog" in text for text in vandal.messages)
        assert validate.validate(project)[0].bit_exact
        calm = Process(hanging, tmp_path / "build")
        calm.start()
        try:
            assert stream.stream(project, calm.url).state_digest == result.state_digest
        finally:
            calm.kill()
    finally:
        process.kill()


def test_waiting_and_working_boards_are_not_reset(tmp_path: Path) -> None:
    """Much longer than the period, without a pause that the watchdog would not take for a hang."""
    quick = build(MODEL, tmp_path, facts(100))
    with running(MODEL, quick) as twin:
        teacher = Teacher(twin, 1)
        for number in range(3):
            teacher.begin((0, 1), COUNT, streamed=False, seed=number)
            teacher.finish()
        assert twin.hello().reset_reason == 1


# -- self-test -----------------------------------------------------------------------------------------

MUTATIONS = {
    "random numbers": ("scl_prng.h", "1664525u", "1664527u"),
    "loss": ("scl_loss.c", "(ex << 14)", "(ex << 13)"),
    "backward": ("scl_sparse.h", "index + begin, split[i] - begin,", "index + begin, split[i] - begin - (i == 0u),"),
    "forward": ("scl_sparse.h", "xi);\n  }", "xi + 1);\n  }"),
}


def mutated(folder: Path, file: str, old: str, new: str) -> Path:
    firmware = folder / "mutated"
    shutil.copytree(FIRMWARE, firmware)
    path = firmware / "engine" / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return firmware


def check_refuses(image: Path, folder: Path) -> None:
    """A board whose self-test has failed evaluates and dumps, and learns nothing."""
    process = Process(image, folder)
    process.start()
    try:
        with protocol.Link(process.url) as link:
            state = protocol.hello(link)
            assert state.health == protocol.SELF_TEST_FAILED
            x, y = random_samples(MODEL, (0, 1), 1, 1)
            learning = {
                Command.TASK_BEGIN: task_begin((0, 1), 4),
                Command.TRAIN: TRAIN,
                Command.REPLAY: struct.pack("<IHBB", 1, 1, 0, 0) + x[0].tobytes(),
                Command.TASK_END: NONE,
                Command.SAVE: NONE,
            }
            for command, request in learning.items():
                with pytest.raises(DeviceError, match="self-test failed") as error:
                    link.request(command, request)
                assert error.value.status == Status.SELF_TEST
            assert protocol.digest(link).step == 0
            assert len(list(protocol.evaluations(link, state, y, x, MODEL.n_classes))) == 1
            assert protocol.dump_regions(link, MODEL, state)
    finally:
        process.kill()


@pytest.mark.parametrize("kernel", MUTATIONS)
def test_board_that_computes_wrongly_does_not_learn(tmp_path: Path, kernel: str) -> None:
    firmware = mutated(tmp_path, *MUTATIONS[kernel])
    check_refuses(build(MODEL, tmp_path, None, [], firmware), tmp_path)


def test_flipped_initial_weight_fails_the_self_test(tmp_path: Path, image: Path) -> None:
    """In the program as it is stored, where no sum has been taken yet."""
    damaged = tmp_path / "firmware"
    data = bytearray(image.read_bytes())
    weights = MODEL.layers[0].panels[0].weight.astype("<i2").tobytes()
    at = data.find(weights)
    assert at > 0
    data[at] ^= 4
    damaged.write_bytes(data)
    damaged.chmod(0o755)
    check_refuses(damaged, tmp_path)


def test_stream_says_that_the_self_test_has_failed(make_project: MakeProject, tmp_path: Path) -> None:
    project = make_project()
    firmware = mutated(tmp_path, *MUTATIONS["loss"])
    process = Process(build(project.model, tmp_path / "build", None, [], firmware), tmp_path)
    process.start()
    try:
        with pytest.raises(BoardError, match=r"self-test failed.*does not learn"):
            stream.stream(project, process.url)
    finally:
        process.kill()
