# SPDX-License-Identifier: Apache-2.0
"""The journal on the native board's file flash: wraps, restarts, power cuts, damage and shortage of room."""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Callable, Container
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparcl_mcu.generator import plan
from sparcl_mcu.host_tools import protocol
from sparcl_mcu.host_tools.link import Link
from sparcl_mcu.reference import Device
from sparcl_mcu.reference.decode import SCALARS
from sparcl_mcu.spec.boards import Board
from sparcl_mcu.spec.types import Method, Model, position_bytes
from sparcl_mcu.spec.wire import Command, Phase
from tests.firmware.flash_image import FlashImage, Layout
from tests.firmware.native import Process, Teacher, Twin, board_facts, build, flip, running
from tests.reference.models import random_model, random_samples, samples, task_begin

STORE_FULL, STORE_ERROR = 8, 9
KEY = bytes(range(32))
SECTOR = 1024
HEADER, STATE = 48, 2
"""Of a sector: bytes of its header, and the kind that holds a snapshot."""


def small(seed: int = 4, **learning: Any) -> Model:
    """A model whose snapshot takes a few sectors."""
    return random_model(seed, sizes=(14, 16, 4), **({"epochs": 1, "capacity": 8, "table": 16} | learning))


FINETUNED = small(method=Method.FINETUNE, capacity=0, batch=2, dgm=True, epochs=2)
LARGE_SECTORS = board_facts(size=64 * 4096, sector=4096, program_unit=4)
"""A model without replay and a flash whose sectors hold a snapshot: what uses both shares a program."""


class Historian(Twin):
    """A twin that remembers the state of the last snapshot."""

    def __init__(self, model: Model, process: Process) -> None:
        super().__init__(model, process)
        self.saved = self.device.copy()
        self.snapshot = 0

    def send(self, command: int, request: bytes = b"") -> bytes | None:
        """A command that needs room saves before it does its work; save and task end save after it."""
        before = self.device.copy()
        reply = super().send(command, request)
        snapshot = self.hello().snapshot
        if snapshot != self.snapshot:
            own = command in (Command.SAVE, Command.TASK_END, Command.RESET)
            self.saved = self.device.copy() if own else before
        self.snapshot = snapshot
        return reply

    def fall_back(self, *, power: bool) -> None:
        """Restart; the board has to be where its last snapshot was."""
        state = self.power_cut() if power else self.restart()
        assert state.snapshot == self.snapshot
        assert state.restored == (self.snapshot > 0)
        self.device = self.saved.copy()
        self.check_dump()
        self.check()


def live_through(twin: Historian, tasks: int, erasures: int = 1 << 30) -> None:
    """Tasks with restarts until sectors have been erased so often."""
    teacher = Teacher(twin, 2)
    number = 0
    while number < tasks and (number % 4 or protocol.statistics(twin.link).erase_max < erasures):
        teacher.begin([(0, 1), (2, 3), (1, 3)][number % 3], 16, streamed=number % 3 == 2, seed=number)
        if number % 5 == 2:
            teacher.advance()
            twin.good(Command.SAVE)
            teacher.advance(3)
        if number % 5 == 4:
            teacher.advance()
            twin.fall_back(power=number % 2 == 0)
            if twin.device.phase == Phase.IDLE:  # fallen back to before the task
                continue_with = number % 3
                teacher.begin([(0, 1), (2, 3), (1, 3)][continue_with], 16, streamed=continue_with == 2, seed=number)
        teacher.finish()
        if number % 4 == 3:
            twin.fall_back(power=number % 8 == 3)
        number += 1


@pytest.mark.parametrize("unit", [1, 4, 8, 256])
def test_ring_wraps(unit: int, tmp_path: Path) -> None:
    """Many tasks in 64 sectors: every restart finds the last save, and all sectors wear alike."""
    model = small(batch=1 if unit == 1 else 2, method=Method.ER if unit == 4 else Method.DERPP)
    board = board_facts(size=64 * SECTOR, sector=SECTOR, program_unit=unit)
    process = Process(build(model, tmp_path, board))
    process.start()
    try:
        twin = Historian(model, process)
        live_through(twin, tasks=100, erasures=4)
        counted = protocol.statistics(twin.link)
        assert counted.erase_max >= 4
        assert counted.erase_max - counted.erase_min <= 2
        assert counted.sectors == 64
        assert counted.live_records <= 2 * model.learning.capacity
        state = twin.hello()
        assert (state.sector, state.store_size, state.program_unit) == (SECTOR, 64 * SECTOR, unit)
        twin.close()
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("method", "unit", "sector", "refresh", "key"),
    [
        (Method.DERPP, 4, 512, False, None),
        (Method.DERPP, 4, 512, True, KEY),
        (Method.ER, 8, 1024, True, None),
        (Method.FINETUNE, 1, 2048, False, None),
    ],
)
def test_the_planned_partition_is_enough(
    method: Method, unit: int, sector: int, refresh: bool, key: bytes | None, tmp_path: Path
) -> None:
    """In the least partition that the plan allows, no command finds the store full; with a key, tags are counted."""
    model = small(7, method=method, capacity=20, table=24, refresh=refresh)
    keyed = key is not None
    least = plan.plan(model, board_facts(sector=sector, program_unit=unit), keyed=keyed).store_bytes
    board = board_facts(sector=sector, program_unit=unit, size=least)
    plan.check(plan.plan(model, board, keyed=keyed))
    with running(model, build(model, tmp_path, board, key=key), key=key) as twin:
        teacher = Teacher(twin, 3)
        for number in range(20):
            teacher.begin([(0, 1), (2, 3)][number % 2], 24, streamed=False, seed=number)
            twin.good(Command.SAVE)
            teacher.finish()
        assert protocol.statistics(twin.link).erase_min >= 2


def test_the_planned_partition_is_enough_to_take_all_logits_anew(tmp_path: Path) -> None:
    """More logits than the rest of the plan has room to spare for, when the buffer is full of older tasks."""
    model = small(7, capacity=500, table=40, refresh=True, ddr=False)
    # The granule depends on the size: plan for about the size that comes out.
    least = plan.plan(model, board_facts(sector=512, program_unit=4, size=1 << 17)).store_bytes
    with running(model, build(model, tmp_path, board_facts(sector=512, program_unit=4, size=least))) as twin:
        teacher = Teacher(twin, 3)
        for number in range(15):
            teacher.begin([(0, 1), (2, 3)][number % 2], 40, streamed=False, seed=number)
            teacher.finish()


@pytest.mark.parametrize(("method", "refresh"), [(Method.DERPP, False), (Method.DERPP, True), (Method.ER, True)])
def test_the_planned_partition_is_enough_for_a_large_task(method: Method, refresh: bool, tmp_path: Path) -> None:
    """Many records, some of which would just fill a sector: the plan and the board count the cut-offs alike."""
    sizes: dict[str, Any] = {"sizes": (108, 8, 4), "epochs": 1, "capacity": 20, "table": 400}
    model = random_model(7, **sizes, method=method, refresh=refresh, tdm=False, dgm=False)
    # The granule depends on the size: plan for about the size that comes out.
    least = plan.plan(model, board_facts(sector=512, program_unit=4, size=1 << 17)).store_bytes
    board = board_facts(sector=512, program_unit=4, size=least)
    plan.check(plan.plan(model, board))
    with running(model, build(model, tmp_path, board)) as twin:
        teacher = Teacher(twin, 3)
        for number in range(3):
            teacher.begin([(0, 1), (2, 3)][number % 2], 400, streamed=False, seed=number)
            teacher.finish()


def tiny_store(model: Model, tmp_path: Path, sectors: int) -> tuple[Board, Path]:
    board = board_facts(size=sectors * 512, sector=512, program_unit=4)
    return board, build(model, tmp_path, board)


def status(twin: Twin, command: int, request: bytes) -> int:
    """What the board alone says."""
    return twin.ask(command, request)[0]


def test_store_full(tmp_path: Path) -> None:
    """Too many samples for the partition: refused, nothing changes, and a smaller task works."""
    model = random_model(4, sizes=(40, 8, 4), epochs=1, capacity=4, table=400, tdm=False, dgm=False)
    _, image = tiny_store(model, tmp_path, 48)
    with running(model, image) as twin:
        before = twin.hello()
        for _ in range(3):
            assert status(twin, Command.TASK_BEGIN, task_begin((0, 1), 400)) == STORE_FULL
            twin.check_dump()
            twin.check()
        assert twin.hello().position() == before.position()
        teacher = Teacher(twin, 1)
        for number, classes in enumerate([(0, 1), (2, 3)]):
            teacher.begin(classes, 10, streamed=False, seed=number)
            teacher.finish()
            assert status(twin, Command.TASK_BEGIN, task_begin((0, 1), 400)) == STORE_FULL
            twin.check()
        assert twin.restart().restored
        twin.check_dump()


def test_replay_upload_into_a_full_store(tmp_path: Path) -> None:
    """Also a command that brings one record at a time finds out, and changes nothing then."""
    model = random_model(4, sizes=(100, 8, 4), epochs=1, capacity=200, table=4, tdm=False, dgm=False)
    _, image = tiny_store(model, tmp_path, 32)
    x, y = random_samples(model, (0, 1), 1, 1)
    with running(model, image) as twin:
        request = struct.pack("<IHBB", 9, 1, 0, int(y[0])) + x[0].tobytes()
        twin_status = status(twin, Command.REPLAY, request)
        assert twin_status == STORE_FULL
        twin.check()
        twin.check_dump()


def offset_of_sample(flash: Path, x: bytes) -> int:
    """Where a sample lies in the flash file."""
    data = flash.read_bytes()
    assert data.count(x) == 1
    return data.index(x)


def is_back(twin: Twin, saved: Device) -> None:
    """The board is in the state of its last save, and the twin with it."""
    twin.device = saved.copy()
    assert twin.hello().restored
    twin.check_dump()
    twin.check()


def test_damaged_sample_is_found(tmp_path: Path) -> None:
    """One flipped bit in a sample: training on it says so, the board is at its last save, and learns from there."""
    model = small()
    with running(model, build(model, tmp_path)) as twin:
        x, y = random_samples(model, (0, 1), 12, 5)
        twin.good(Command.SAVE)
        saved = twin.device.copy()
        for attempt in range(2):
            twin.good(Command.TASK_BEGIN, task_begin((0, 1), 12))
            twin.good(Command.SAMPLES, samples(0, x, y))
            if attempt == 0:
                flip(twin.process.flash, offset_of_sample(twin.process.flash, x[7].tobytes()) + 3)
                assert status(twin, Command.TRAIN, struct.pack("<HB", 12, 0)) == STORE_ERROR
                is_back(twin, saved)
        twin.good(Command.TRAIN, struct.pack("<HB", 12, 0))
        twin.check_dump()


@pytest.mark.parametrize("logits", [False, True])
def test_damaged_replay_record_is_found(logits: bool, tmp_path: Path) -> None:
    """The same for a record of the replay buffer, when it is drawn; the checksum, not a mark, tells."""
    model = small(capacity=1, method=Method.DERPP)
    with running(model, build(model, tmp_path)) as twin:
        x, _ = random_samples(model, (0,), 1, 6)
        twin.good(Command.REPLAY, struct.pack("<IHBB", 1000000, 3, 0, 0) + x[0].tobytes())
        reply = twin.good(Command.PREDICT, x[0].tobytes())
        record = reply[1:] if logits else x[0].tobytes()
        at = offset_of_sample(twin.process.flash, record) + 2
        twin.good(Command.TASK_BEGIN, task_begin((1,), 1, 1))
        twin.good(Command.TRAIN, b"\0\0\0")
        twin.good(Command.SAVE)
        saved = twin.device.copy()
        step = protocol.pack_steps([0], [1], x, 0)
        flip(twin.process.flash, at, bit=5)
        assert status(twin, Command.STEP, step) == STORE_ERROR
        flip(twin.process.flash, at, bit=5)
        is_back(twin, saved)
        twin.good(Command.STEP, step)


def test_another_models_journal_is_left_alone(tmp_path: Path) -> None:
    """New firmware starts from its own initial model; its snapshots replace the old ones in time."""
    first, second = small(1), small(2)
    folders = [tmp_path / name for name in ("a", "b")]
    images = [build(model, folder) for model, folder in zip((first, second), folders, strict=True)]
    for number, (model, image) in enumerate([(first, images[0]), (second, images[1]), (second, images[1])]):
        with running(model, image, tmp_path) as twin:
            state = twin.hello()
            assert state.restored == (number == 2)
            if number < 2:
                twin.check_dump()
                teacher = Teacher(twin, number)
                teacher.begin((0, 1), 8, streamed=False, seed=number)
                teacher.finish()
            else:
                assert (state.task, state.step) == (1, 8)


def test_a_like_models_journal_is_left_alone(tmp_path: Path) -> None:
    """Every list of the two is as long as the other's: only the hash tells them apart."""
    first = small()
    second = replace(first, model_hash=bytes(8))
    folders = [tmp_path / name for name in ("a", "b")]
    images = [build(model, folder) for model, folder in zip((first, second), folders, strict=True)]
    with running(first, images[0], tmp_path) as twin:
        teacher = Teacher(twin, 1)
        teacher.begin((0, 1), 8, streamed=False, seed=1)
        teacher.finish()
    with running(second, images[1], tmp_path) as twin:
        state = twin.hello()
        assert (state.restored, state.snapshot, state.health, state.fresh) == (0, 0, 0, True)
        twin.check_dump()
    with running(first, images[0], tmp_path) as twin:
        assert twin.hello().restored


def test_a_journal_with_other_tags_or_none_is_refused(tmp_path: Path) -> None:
    """The board says that there was a save; its own it takes."""
    model = small()
    keys = {"open": None, "keyed": KEY, "other": KEY[::-1]}
    images = {name: build(model, tmp_path / name, key=key) for name, key in keys.items()}
    for name, key in keys.items():
        (tmp_path / "flash.img").unlink(missing_ok=True)
        with running(model, images[name], tmp_path, key) as twin:
            teacher = Teacher(twin, 1)
            teacher.begin((0, 1), 8, streamed=False, seed=1)
            teacher.finish()
            twin.power_cut()
            twin.check_dump()
        for reader, second in keys.items():
            with running(model, images[reader], tmp_path, second) as twin:
                state = twin.hello()
                assert (state.restored, state.health) == ((1, 0) if reader == name else (0, protocol.LOST_SAVE))


def exchange(flash: Path, one: bytes, other: bytes, size: int, head: int = 8) -> None:
    """The record with one content lies where that with the other is; ``size``: of the content."""
    data = bytearray(flash.read_bytes())
    source, to = (offset_of_sample(flash, content) - head for content in (one, other))
    data[to : to + head + size] = data[source : source + head + size]
    flash.write_bytes(data)


def refuses_what_is_not_meant(twin: Twin, command: Command, request: bytes) -> None:
    """As a lost record, which is counted; the save whose record is gone does not come back, and that is said."""
    before = protocol.statistics(twin.link).lost_records
    assert status(twin, command, request) == STORE_ERROR
    assert protocol.statistics(twin.link).lost_records == before + 1
    assert twin.hello().health == protocol.LOST_SAVE


@pytest.mark.parametrize("other", ["id", "task"])
def test_another_sample_than_the_table_means_is_lost(other: str, tmp_path: Path) -> None:
    """A genuine record, put there while the board runs."""
    model = small(capacity=1, method=Method.ER)
    with running(model, build(model, tmp_path)) as twin:
        x, y = random_samples(model, (0, 1), 8, 5)
        teacher = Teacher(twin, 1)
        teacher.begin((0, 1), 8, streamed=False, seed=9)
        earlier = teacher.x[3]
        teacher.finish()
        twin.good(Command.TASK_BEGIN, task_begin((0, 1), 8))
        twin.good(Command.SAMPLES, samples(0, x, y))
        twin.good(Command.SAVE)
        source = x[4] if other == "id" else earlier
        exchange(twin.process.flash, source.tobytes(), x[3].tobytes(), model.n_in)
        refuses_what_is_not_meant(twin, Command.TRAIN, struct.pack("<HB", 8, 0))


def test_logits_of_another_sample_are_lost(tmp_path: Path) -> None:
    """They are genuine, too; which sample they belong to is in their head."""
    model = small(capacity=2, method=Method.DERPP)
    with running(model, build(model, tmp_path)) as twin:
        x, _ = random_samples(model, (0,), 2, 6)
        logits = []
        for number, row in enumerate(x):
            twin.good(Command.REPLAY, struct.pack("<IHBB", 1000000, 3 + number, 0, 0) + row.tobytes())
            logits.append(twin.good(Command.PREDICT, row.tobytes())[1:])
        twin.good(Command.TASK_BEGIN, task_begin((1,), 8, 1))
        twin.good(Command.TRAIN, b"\0\0\0")
        twin.good(Command.SAVE)
        ids = twin.device.state.table.ids
        exchange(twin.process.flash, logits[0], logits[1], 2 * model.n_classes)
        step = protocol.pack_steps(ids, [1] * 8, np.repeat(x[:1], 8, 0), 0)
        refuses_what_is_not_meant(twin, Command.STEP, step)


@pytest.mark.parametrize(("task", "label"), [(2, 0), (0, 2)])
def test_a_replayed_sample_of_no_task_is_lost(task: int, label: int, tmp_path: Path) -> None:
    """Its checksum is right; the task is yet to come, or no task had the class."""
    model = small(capacity=1, method=Method.ER)
    with running(model, build(model, tmp_path)) as twin:
        x, _ = random_samples(model, (0,), 1, 6)
        twin.good(Command.REPLAY, struct.pack("<IHBB", 1000000, 3, 0, 0) + x[0].tobytes())
        twin.good(Command.TASK_BEGIN, task_begin((1,), 1, 1))
        twin.good(Command.TRAIN, b"\0\0\0")
        twin.good(Command.SAVE)
        at = offset_of_sample(twin.process.flash, x[0].tobytes()) - 8
        flash = bytearray(twin.process.flash.read_bytes())
        flash[at + 6 : at + 8] = bytes([task, label])
        struct.pack_into("<I", flash, at, zlib.crc32(flash[at + 4 : at + 8 + model.n_in]))
        twin.process.flash.write_bytes(flash)
        refuses_what_is_not_meant(twin, Command.STEP, protocol.pack_steps([0], [1], x, 0))


def test_torn_snapshot_does_not_count(tmp_path: Path) -> None:
    """Damage in any sector of the newest snapshot: the one before it is found."""
    model = random_model(4, sizes=(30, 40, 4), epochs=1, capacity=8, table=16)
    board = board_facts(size=64 * SECTOR, sector=SECTOR, program_unit=4)
    process = Process(build(model, tmp_path, board))
    process.start()
    try:
        twin = Historian(model, process)
        teacher = Teacher(twin, 1)
        teacher.begin((0, 1), 8, streamed=False, seed=1)
        teacher.finish()
        older = twin.saved.copy()
        teacher.begin((2, 3), 8, streamed=False, seed=2)
        teacher.finish()
        newer = twin.saved.copy()
        twin.close()
        process.kill()
        intact = process.flash.read_bytes()
        headers = {at: intact[at : at + HEADER] for at in range(0, len(intact), SECTOR)}
        newest = struct.pack("<I", 2)
        parts = [at for at, h in headers.items() if h[:4] == b"SCLJ" and h[5] == STATE and h[16:20] == newest]
        assert len(parts) > 1
        for at in parts:
            for damage in (at + 9, at + HEADER + 1):
                process.flash.write_bytes(intact)
                flip(process.flash, damage)
                twin.link = Link(process.start())
                twin.device = older.copy()
                assert twin.hello().snapshot == 1
                twin.check_dump()
                twin.close()
                process.kill()
        process.flash.write_bytes(intact)
        twin.link = Link(process.start())
        twin.device = newer
        twin.check_dump()
        twin.close()
    finally:
        process.kill()


def forge(
    twin: Twin, board: Board, change: Callable[[bytearray], None], numbers: Container[int] = range(1 << 31)
) -> bytes:
    """The flash with snapshots changed, checksums, digest and all; ``numbers``: of these snapshots."""
    assert isinstance(twin.process, Process)
    image = FlashImage(Layout(twin.model, board), twin.process.flash.read_bytes())
    chosen = [number for number in image.snapshots() if number in numbers]
    assert chosen, "there is a snapshot"
    for number in chosen:
        payload = bytearray(image.payload(number))
        change(payload)
        # What cannot be taken apart any more keeps its digest: it is refused before that is compared.
        with suppress(struct.error, IndexError):
            payload = bytearray(image.close(bytes(payload)))
        image.put_payload(number, bytes(payload))
    return bytes(image.data)


def test_restored_after_removals(tmp_path: Path) -> None:
    """DDR has removed samples, so that fewer are left than were received; learning continues to the same end."""
    model = small(method=Method.DERPP, capacity=4, batch=1, ddr=True, rho_permille=500, ddr_until=2, epochs=3)
    with running(model, build(model, tmp_path)) as twin:
        teacher = Teacher(twin, 1)
        teacher.begin((0, 1), 8, streamed=False, seed=1)
        while twin.device.epoch < 1:
            teacher.advance(1)
        assert twin.device.n < 8
        twin.good(Command.SAVE)
        state = twin.power_cut()
        assert (state.restored, state.received, state.n) == (1, 8, twin.device.n)
        twin.check_dump()
        teacher.finish()
        twin.check_dump()


def test_counters_of_saturation_come_back(tmp_path: Path) -> None:
    """They are a part of the state, and large numbers here."""
    model = random_model(8, sizes=(9, 16, 12, 4), tight=True, fraction=12, scale=20.0, learning_rate=0.1)
    with running(model, build(model, tmp_path)) as twin:
        teacher = Teacher(twin, 1)
        teacher.begin((0, 1), 12, streamed=False, seed=1)
        teacher.finish()
        device = twin.device
        assert device.guard_shifts > 0
        assert device.saturated_errors > 0
        assert device.saturated_activations > 0
        assert twin.power_cut().restored
        twin.check_dump()
        twin.check()


def put(kind: str, at: int, value: int) -> Callable[[bytearray], None]:
    """Writes one number into a snapshot."""
    return lambda content: struct.pack_into(kind, content, at, value)


def scalar(name: str, value: int) -> Callable[[bytearray], None]:
    """Writes one of the scalars, which a snapshot begins with."""
    assert SCALARS.fields is not None
    kind, at = SCALARS.fields[name][:2]
    return put(f"<{kind.char}", at, value)


def all_learn(content: bytearray, start: int, lines: int) -> None:
    """Every entry of a panel whose lists begin at ``start`` is in the gradient mask; each line ascends as it has to."""
    ends = struct.unpack_from(f"<{lines + 1}H", content, start)
    index = start + 2 * (2 * lines + 1)
    content[start + 2 * (lines + 1) : index] = content[start + 2 : start + 2 * (lines + 1)]
    for low, high in itertools.pairwise(ends):
        content[index + low : index + high] = bytes(sorted(content[index + low : index + high]))


def forgeries(model: Model) -> dict[str, Callable[[bytearray], None]]:
    """Snapshots that no learner of the model wrote, in the middle of a task of 8 samples, without replay."""
    panel, lines = model.layers[0].panels[0], model.layers[0].lines
    position = position_bytes(model)
    assert position == 2
    start = SCALARS.itemsize + model.n_classes + 5 * 8
    split = start + position * (lines + 1)
    index = split + position * lines
    first = next(int(end) for begin, end in itertools.pairwise(panel.start) if end - begin > 1) - 1
    addresses = SCALARS.itemsize + model.n_classes + 3 * 8
    return {
        "more entries than fit": put("<H", start + position * lines, panel.capacity + 1),
        "far more": put("<H", start + position * lines, 0xFFFF),
        "start does not begin at 0": put("<H", start, 1),
        "start falls": put("<H", start + position, 0xFFF0),
        "split before start": put("<H", split + position * (lines - 1), 0),
        "split after the line": put("<H", split, 0xFFF0),
        "no such place": put("<B", index, panel.places),
        "a gradient mask that is too large": lambda content: all_learn(content, start, lines),
        "position": scalar("pos", 8),
        "samples": scalar("n", model.learning.table + 1),
        "samples at the beginning": scalar("n_start", 7),
        "slots": scalar("filled", model.learning.capacity + 1),
        "received": scalar("received", 9),
        "epoch": scalar("epoch", model.learning.epochs),
        "phase": scalar("phase", 4),
        "mode": scalar("mode", 2),
        "an epoch in progress that was not shuffled": scalar("shuffled", 0),
        "the byte that pads": scalar("pad", 1),
        "grown masks that have not grown": scalar("grown", 1),
        "an entry twice": lambda content: content.__setitem__(index + first, content[index + first - 1]),
        "a record nowhere": put("<H", addresses, 0xFFFF),
        "a record in a header": put("<H", addresses, 0),
        "a record across sectors": put("<H", addresses, 4096 // 4 - 1),
        "a record where nothing is needed": put("<H", addresses, 60 * 4096 // 4 + 20),
    }


def test_forged_snapshots(tmp_path: Path) -> None:
    """With checksums that fit: the board starts from the initial model and continues."""
    model, board = FINETUNED, LARGE_SECTORS
    panel = model.layers[0].panels[0]
    assert panel.nnz > panel.grad + panel.grow_inter, "there are entries that do not learn"
    with running(model, build(model, tmp_path, board)) as twin:
        teacher = Teacher(twin, 1)
        teacher.begin((0, 1), 8, streamed=False, seed=1)
        teacher.advance(3)
        twin.good(Command.SAVE)
        assert twin.power_cut().restored
        steps = twin.device.step
        intact = twin.process.flash.read_bytes()
        for name, change in {"": lambda content: None, **forgeries(model)}.items():
            twin.process.flash.write_bytes(intact)
            twin.process.flash.write_bytes(forge(twin, board, change))
            state = twin.power_cut()
            assert (state.restored, state.step) == ((1, steps) if name == "" else (0, 0)), name
            assert state.health == (0 if name == "" else protocol.LOST_SAVE), name


def test_a_save_that_cannot_be_loaded_leaves_the_one_before(tmp_path: Path) -> None:
    """Its checksums fit, and no learner wrote it."""
    model, board = FINETUNED, LARGE_SECTORS
    with running(model, build(model, tmp_path, board)) as twin:
        teacher = Teacher(twin, 1)
        teacher.begin((0, 1), 8, streamed=False, seed=1)
        teacher.advance(3)
        twin.good(Command.SAVE)
        before = twin.device.copy()
        teacher.advance(2)
        twin.good(Command.SAVE)
        number = twin.hello().snapshot
        twin.process.flash.write_bytes(forge(twin, board, scalar("epoch", model.learning.epochs), {number}))
        state = twin.power_cut()
        assert (state.restored, state.snapshot, state.health) == (1, number - 1, protocol.LOST_SAVE)
        twin.device = before
        twin.check_dump()
        teacher.finish()
        twin.check_dump()


def test_bytes_that_no_checksum_covers_are_not_restored(tmp_path: Path) -> None:
    """A snapshot that is shorter, or longer, than the state it begins with."""
    model = FINETUNED
    with running(model, build(model, tmp_path, LARGE_SECTORS)) as twin:
        Teacher(twin, 1).begin((0, 1), 8, streamed=False, seed=1)
        twin.good(Command.SAVE)
        intact = twin.process.flash.read_bytes()
        for change in (0, -1, -200, 1, 16):
            forged = bytearray(intact)
            for at in (at for at in range(0, len(intact), 4096) if intact[at + 5] == STATE):
                size = struct.unpack_from("<I", intact, at + 24)[0] + change
                struct.pack_into("<I", forged, at + 24, size)
                struct.pack_into("<I", forged, at + 28, zlib.crc32(intact[at + HEADER : at + HEADER + size]))
                struct.pack_into("<I", forged, at + 44, zlib.crc32(forged[at : at + 44]))
            twin.process.flash.write_bytes(forged)
            assert twin.power_cut().restored == (change == 0), change


def test_a_record_of_no_class_is_refused(tmp_path: Path) -> None:
    """Its checksum is right: a label would be an index into the errors of the last layer."""
    model = FINETUNED
    with running(model, build(model, tmp_path, LARGE_SECTORS)) as twin:
        x, y = random_samples(model, (0, 1), 8, 5)
        twin.good(Command.TASK_BEGIN, task_begin((0, 1), 8))
        twin.good(Command.SAMPLES, samples(0, x, y))
        twin.good(Command.SAVE)
        intact = twin.process.flash.read_bytes()
        at = offset_of_sample(twin.process.flash, x[3].tobytes()) - 8
        for label, expected in ((4, STORE_ERROR), (255, STORE_ERROR), (int(y[3]), 0)):
            twin.process.flash.write_bytes(intact)
            assert twin.power_cut().restored
            flash = bytearray(intact)
            flash[at + 7] = label
            struct.pack_into("<I", flash, at, zlib.crc32(flash[at + 4 : at + 8 + model.n_in]))
            twin.process.flash.write_bytes(flash)
            assert status(twin, Command.TRAIN, struct.pack("<HB", 8, 0)) == expected


@pytest.mark.parametrize("kind", [1, STATE])
def test_damaged_sector_headers_lose_nothing(kind: int, tmp_path: Path) -> None:
    """The records behind one stay where they are, are saved, restored, and moved when their sector's turn comes."""
    model = small(method=Method.DERPP, capacity=8)
    board = board_facts(size=64 * SECTOR, sector=SECTOR, program_unit=4)
    process = Process(build(model, tmp_path, board))
    process.start()
    try:
        twin = Historian(model, process)
        teacher = Teacher(twin, 2)
        for number in range(24):
            teacher.begin([(0, 1), (2, 3)][number % 2], 16, streamed=number % 3 == 0, seed=number)
            teacher.finish()
            if number % 3 == 1:  # all sectors of this kind, that of the newest snapshot included
                flash = process.flash.read_bytes()
                for at in range(0, len(flash), SECTOR):
                    if flash[at : at + 4] == b"SCLJ" and flash[at + 5] == kind:
                        flip(process.flash, at + 9)
                twin.good(Command.SAVE)
                twin.fall_back(power=True)
        assert protocol.statistics(twin.link).sectors == 64
        twin.close()
    finally:
        process.kill()


@pytest.mark.parametrize(("field", "number"), [(8, 0x7FFFFFFF), (16, 0x7FFFFFFE), (8, 0xFFFFFFFF), (16, 0xFFFFFFFF)])
@pytest.mark.parametrize("save", [True, False])
def test_numbers_that_no_board_comes_to(field: int, number: int, save: bool, tmp_path: Path) -> None:
    """The last sector or snapshot number: a save is refused rather than lost, and a reset to factory starts over."""
    model = small()
    with running(model, build(model, tmp_path, board_facts(size=64 * SECTOR, sector=SECTOR, program_unit=4))) as twin:
        Teacher(twin, 1).begin((0, 1), 8, streamed=False, seed=1)
        twin.good(Command.SAVE)
        forged = bytearray(twin.process.flash.read_bytes())
        for at in (at for at in range(0, len(forged), SECTOR) if forged[at + 5] == STATE):
            struct.pack_into("<I", forged, at + field, number)
            struct.pack_into("<I", forged, at + 44, zlib.crc32(forged[at : at + 44]))
        twin.process.flash.write_bytes(forged)
        restored = twin.power_cut().restored
        assert restored == (number < 1 << 31)
        if save:
            assert status(twin, Command.SAVE, b"") == (STORE_FULL if restored else 0)
        assert status(twin, Command.RESET, protocol.reset_request(twin.hello(), protocol.FACTORY)) == 0
        twin.device = Device(model, twin.hello().steps_per_request, twin.hello().max_payload)
        teacher = Teacher(twin, 1)
        teacher.begin((0, 1), 8, streamed=False, seed=1)
        teacher.finish()
        assert twin.power_cut().restored
        twin.check_dump()
