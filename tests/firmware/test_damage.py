# SPDX-License-Identifier: Apache-2.0
"""Damaged, old and forged flash: what a board mounts is a state it saved, with the records it had, or it says so."""

from __future__ import annotations

import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparcl_mcu.spec.types import Method, Model
from tests.firmware.flash_image import HEADER, STATE, FlashImage, Layout, split
from tests.firmware.native import board_build, board_facts, compile_c, flags, generate
from tests.reference.models import random_model, random_samples

KEY = bytes(range(32))
SECTOR, SECTORS, COUNT = 1024, 48, 12
TASKS = ((0, 1), (2, 3), (1, 2), (0, 3), (1, 3))


def model(**learning: Any) -> Model:
    """A model whose snapshot takes some sectors."""
    return random_model(5, sizes=(14, 24, 4), **({"epochs": 2, "capacity": 6, "table": 16, "batch": 2} | learning))


@dataclass(frozen=True)
class Mounted:
    """What a board says that was given a flash; ``records``: of table and slots, empty where it calls one lost."""

    restored: bool
    snapshot: int
    lost: int
    content: bytes
    records: list[bytes]


class MemoryBoard:
    """mounts.c as a process."""

    def __init__(self, layout: Layout, process: subprocess.Popen[bytes]) -> None:
        self.layout = layout
        assert process.stdin is not None
        assert process.stdout is not None
        self._in, self._out = process.stdin, process.stdout

    def order(self, letter: bytes, arguments: bytes = b"") -> None:
        """Something that learns or saves."""
        self._tell(letter + arguments)
        (status,) = struct.unpack("<i", self._take(4))
        assert status == 0, f"{letter!r} is refused with {-status}"

    def flash(self) -> bytes:
        """What it holds now."""
        self._tell(b"g")
        return self._take(self.layout.board.store.size)

    def mount(self, flash: bytes) -> Mounted:
        """Power on with another flash."""
        self._tell(b"m" + flash)
        restored, snapshot, lost, size = struct.unpack("<IIII", self._take(16))
        content = self._take(size)[: -self.layout.end]
        resident, filled = struct.unpack("<II", self._take(8))
        table = [self._sized() for _ in range(resident)]
        pairs = [(self._sized(), self._sized()) for _ in range(filled)]
        logits = [pair[1] for pair in pairs if self.layout.model.learning.method == Method.DERPP]
        return Mounted(bool(restored), snapshot, lost, content, [*table, *(pair[0] for pair in pairs), *logits])

    def _sized(self) -> bytes:
        return self._take(struct.unpack("<I", self._take(4))[0])

    def _tell(self, data: bytes) -> None:
        self._in.write(data)
        self._in.flush()

    def _take(self, size: int) -> bytes:
        data = self._out.read(size)
        assert len(data) == size, "the board has ended"
        return data


def build(layout: Layout, folder: Path, key: bytes | None) -> Path:
    """mounts.c with the engine."""
    generated = generate(layout.model, layout.board, folder, key)
    sources = [*board_build.firmware_sources(), *sorted(generated.glob("*.c")), Path(__file__).with_name("mounts.c")]
    image = folder / "mounts"
    compile_c([*flags(generated), "-Wl,--wrap=scl_journal_snapshot_write", *sources, "-o", image])
    return image


@contextmanager
def running(layout: Layout, image: Path) -> Iterator[MemoryBoard]:
    """A board with erased flash."""
    with subprocess.Popen([image], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield MemoryBoard(layout, process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60.0) == 0


# -- what the board has been through ----------------------------------------------------------------------------------


@dataclass
class History:
    """The flash after each order, and each state that was saved: its content, and the records that belong to it."""

    layout: Layout
    initial: bytes
    flashes: list[bytes] = field(default_factory=list)
    saved: dict[bytes, list[bytes]] = field(default_factory=dict)
    numbers: dict[int, bytes] = field(default_factory=dict)

    def look(self, board: MemoryBoard) -> None:
        """Remember the flash, and what is new in it."""
        image = FlashImage(self.layout, board.flash())
        numbers = image.snapshots()
        self.flashes += [bytes(image.data)] if numbers else []
        for number in numbers:
            if number not in self.numbers:
                content = image.payload(number)[: -self.layout.end]
                self.numbers[number] = content
                self.saved[content] = image.records(content)

    def image(self, rng: np.random.Generator) -> FlashImage:
        """The flash at some time, late times more often."""
        at = int(len(self.flashes) * np.sqrt(rng.random()))
        return FlashImage(self.layout, self.flashes[at])


def live(board: MemoryBoard) -> History:
    """Tasks with saves in the middle, until the ring has wrapped."""
    layout = board.layout
    history = History(layout, board.mount(b"\xff" * layout.board.store.size).content)
    for number, classes in enumerate(TASKS):
        x, y = random_samples(layout.model, classes, COUNT, number)
        orders = [(b"f", struct.pack("<HB", k, int(y[k])) + x[k].tobytes()) for k in range(COUNT)]
        orders[7:7] = [(b"s", b"")]
        orders += [(b"t", bytes([5])), (b"s", b""), (b"t", bytes([4])), (b"s", b""), (b"t", bytes([3]))]
        orders += [(b"t", bytes([7])), (b"s", b""), (b"t", bytes([30])), (b"e", b"")]
        for letter, arguments in [(b"b", bytes([COUNT, len(classes), *classes])), *orders]:
            board.order(letter, arguments)
            if letter != b"f":
                history.look(board)
    sequences = [h.sequence for h in FlashImage(layout, history.flashes[-1]).headers()]
    assert max(sequences) > SECTORS, "the ring has wrapped"
    return history


# -- what is done to the flash -----------------------------------------------------------------------------------------


Damage = Callable[[np.random.Generator, History], bytes]


def sectors(image: FlashImage) -> list[int]:
    """Where sectors begin that were ever written."""
    return [header.at for header in image.headers()]


def pick(rng: np.random.Generator, values: list[Any]) -> Any:
    """One of them."""
    return values[int(rng.integers(len(values)))]


def swapped(rng: np.random.Generator, history: History) -> bytes:
    """Two genuine sectors change places."""
    image = history.image(rng)
    a, b = pick(rng, sectors(image)), pick(rng, sectors(image))
    one, other = image.data[a : a + SECTOR], image.data[b : b + SECTOR]
    image.data[a : a + SECTOR], image.data[b : b + SECTOR] = other, one
    return bytes(image.data)


def brought_back(rng: np.random.Generator, history: History) -> bytes:
    """Sectors as they were at an earlier time, or what was in another place then."""
    image, earlier = history.image(rng), history.image(rng)
    for _ in range(int(rng.integers(1, 6))):
        at = pick(rng, sectors(earlier))
        to = at if rng.random() < 0.7 else pick(rng, sectors(image))
        image.data[to : to + SECTOR] = earlier.data[at : at + SECTOR]
    return bytes(image.data)


def scribble(rng: np.random.Generator, data: bytearray, low: int, high: int) -> None:
    """Other bytes, some of them near to what was there."""
    for at in rng.integers(low, high, size=int(rng.integers(1, 5))):
        data[at] = (data[at] + int(rng.choice([1, 255, rng.integers(1, 256)]))) % 256


def forged_payload(rng: np.random.Generator, history: History) -> bytes:
    """Bytes of one or of all snapshots; the checksums of parts and headers are right."""
    image = history.image(rng)
    numbers = list(image.snapshots())
    for number in numbers if rng.random() < 0.5 else numbers[-1:]:
        payload = bytearray(image.payload(number))
        scribble(rng, payload, 0, len(payload) if rng.random() < 0.5 else min(len(payload), 150))
        image.put_payload(number, bytes(payload))
    return bytes(image.data)


def exchanged_parts(rng: np.random.Generator, history: History) -> bytes:
    """A part of another snapshot in the place of one; the header says that it belongs there."""
    image, other = history.image(rng), history.image(rng)
    numbers = image.snapshots()
    ours = pick(rng, numbers[max(numbers)])
    like = [h for h in other.headers() if h.kind == STATE and h.part == ours.part]
    theirs = pick(rng, like) if like else ours
    begin = image.layout.header
    image.data[ours.at + begin : ours.at + SECTOR] = other.data[theirs.at + begin : theirs.at + SECTOR]
    ours.size, ours.crc = theirs.size, theirs.crc
    image.put_header(ours)
    return bytes(image.data)


def forged_header(rng: np.random.Generator, history: History) -> bytes:
    """Numbers of headers; checksums are right.  (Of no bytes a snapshot is a reset: that stays possible.)"""
    image = history.image(rng)
    for _ in range(int(rng.integers(1, 4))):
        header = pick(rng, list(image.headers()))
        name = str(
            rng.choice(["sequence", "snapshot", "part", "parts", "size", "crc", "tail_sector", "tail_sequence", "kind"])
        )
        limit = {"part": 6, "parts": 6, "kind": 3, "tail_sector": SECTORS + 2, "size": SECTOR + 2}.get(name, 1 << 31)
        near = max(0, int(getattr(header, name)) + int(rng.integers(-3, 4))) % limit
        setattr(header, name, max(name == "size", near if rng.random() < 0.6 else int(rng.integers(limit))))
        image.put_header(header)
    return bytes(image.data)


def forged_record(rng: np.random.Generator, history: History) -> bytes:
    """A live record says other things; its checksum is right."""
    image = history.image(rng)
    content, at, size = live_record(rng, image)
    if content:
        place = pick(rng, [at + 4, at + 5, at + 6, at + 7, at + image.layout.head + int(rng.integers(size))])
        image.data[place] = int(rng.integers(6)) if rng.random() < 0.5 else int(rng.integers(256))
        body = image.data[at + image.layout.head : at + image.layout.head + size]
        struct.pack_into("<I", image.data, at, zlib.crc32(image.data[at + 4 : at + 8] + body))
    return bytes(image.data)


def live_record(rng: np.random.Generator, image: FlashImage) -> tuple[bytes, int, int]:
    """Content of the newest snapshot, where a record of it lies, and bytes of its body; no content: no record."""
    number, layout = max(image.snapshots()), image.layout
    content = image.payload(number)[: -layout.end]
    parts = split(layout.model, content)
    found = [(address, layout.model.n_stored) for address in (*parts.addresses, *parts.slot_samples)]
    found += [(address, 2 * layout.model.n_classes) for address in parts.slot_logits if address != 0xFFFF]
    if not found:
        return b"", 0, 0
    address, size = found[int(rng.integers(len(found)))]
    return content, layout.address(address), size


def exchanged_records(rng: np.random.Generator, history: History) -> bytes:
    """A live record is replaced by another genuine one of its kind, of now or of earlier."""
    image, other = history.image(rng), history.image(rng)
    content, at, size = live_record(rng, image)
    _, source, other_size = live_record(rng, other)
    if content and size == other_size:
        length = image.layout.head + size
        image.data[at : at + length] = other.data[source : source + length]
    return bytes(image.data)


def flipped(rng: np.random.Generator, history: History) -> bytes:
    """Some bits, anywhere where something was written."""
    image = history.image(rng)
    for _ in range(int(rng.integers(1, 9))):
        at = pick(rng, sectors(image)) + int(rng.integers(HEADER if rng.random() < 0.2 else SECTOR))
        image.data[at] ^= 1 << int(rng.integers(8))
    return bytes(image.data)


def cut(rng: np.random.Generator, history: History) -> bytes:
    """Sectors that are erased from some byte on, or up to one, or wholly."""
    image = history.image(rng)
    for _ in range(int(rng.integers(1, 4))):
        at, where = pick(rng, sectors(image)), int(rng.integers(SECTOR))
        low, high = pick(rng, [(0, SECTOR), (where, SECTOR), (0, where)])
        image.data[at + low : at + high] = b"\xff" * (high - low)
    return bytes(image.data)


def renumbered(rng: np.random.Generator, history: History) -> bytes:
    """The newest snapshot, or one of the same flash before it, gets a number that none has had yet."""
    image = history.image(rng)
    numbers = image.snapshots()
    for header in numbers[pick(rng, list(numbers))]:
        header.snapshot = max(numbers) + 1 + int(rng.integers(2))
        image.put_header(header)
    return bytes(image.data)


DAMAGES: tuple[Damage, ...] = (
    *(swapped, brought_back, forged_payload, exchanged_parts, forged_header, forged_record, exchanged_records),
    *(flipped, cut, renumbered),
)


def twice(rng: np.random.Generator, history: History) -> bytes:
    """Two kinds of damage, one after the other."""
    first: Damage = pick(rng, list(DAMAGES))
    second: Damage = pick(rng, list(DAMAGES))
    begun = History(history.layout, history.initial, [first(rng, history)], history.saved, history.numbers)
    image = FlashImage(history.layout, begun.flashes[0])
    numbers = image.snapshots()
    # Where the newest snapshot is none any more, the second kind does not find its way.
    genuine = bool(numbers) and image.payload(max(numbers))[: -image.layout.end] in history.saved
    return second(rng, begun) if genuine else begun.flashes[0]


def forged_wholly(rng: np.random.Generator, history: History) -> bytes:
    """All snapshots have another weight or bias, and every checksum and digest is right."""
    image = history.image(rng)
    for number in image.snapshots():
        payload = bytearray(image.payload(number))
        scribble(rng, payload, len(payload) - image.layout.end - 2, len(payload) - image.layout.end)
        image.put_payload(number, image.close(bytes(payload)))
    return bytes(image.data)


def forged_under_its_checksum(rng: np.random.Generator, history: History) -> bytes:
    """A live record has another content, made up so that its checksum stays what it is in the digest."""
    image = history.image(rng)
    content, at, size = live_record(rng, image)
    if content:
        body = at + image.layout.head
        message = image.data[at + 4 : at + 8] + image.data[body : body + size]
        message[8] ^= 1
        match_crc(message, 8 + size - 8, int.from_bytes(image.data[at : at + 4], "little"))
        image.data[body : body + size] = message[4:]
    return bytes(image.data)


def match_crc(message: bytearray, at: int, checksum: int) -> None:
    """Choose four bytes so that the CRC-32 of all is ``checksum``: it is linear, so bits are solved for one by one."""
    message[at : at + 4] = bytes(4)
    wanted, rows = zlib.crc32(message) ^ checksum, []
    for bit in range(32):
        message[at : at + 4] = (1 << bit).to_bytes(4, "little")
        changed = zlib.crc32(message)
        message[at : at + 4] = bytes(4)
        rows.append((changed ^ zlib.crc32(message), 1 << bit))
    chosen = 0
    for bit in range(32):
        pivot = next(k for k, (row, _) in enumerate(rows) if row >> bit & 1)
        row, bits = rows.pop(pivot)
        rows = [(r ^ row, b ^ bits) if r >> bit & 1 else (r, b) for r, b in rows]
        if wanted >> bit & 1:
            wanted, chosen = wanted ^ row, chosen ^ bits
    message[at : at + 4] = chosen.to_bytes(4, "little")


# -- what may come of it -----------------------------------------------------------------------------------------------


def complaint(history: History, flash: bytes, found: Mounted) -> str | None:
    """What is wrong with a mount; None if nothing is."""
    layout = history.layout
    ours = [h for h in FlashImage(layout, flash).headers() if h.kind == STATE]
    ours = [h for h in ours if h.model_hash == layout.model.model_hash and max(h.snapshot, h.sequence) < 0x7FFFFFFF]
    newest = max((h.snapshot for h in ours if h.part + 1 == h.parts), default=0)
    if newest > (found.snapshot if found.restored else 0) and not found.lost:
        return f"snapshot {newest} is passed over in silence"
    if not found.restored:
        return None if found.content == history.initial else "nothing is restored, and the state is not the initial one"
    if layout.keyed and history.numbers.get(found.snapshot) != found.content:
        return f"snapshot {found.snapshot} was another state"
    truth = history.saved.get(found.content)
    if truth is None:
        return "a state that the board never saved"
    if any(record and record != right for record, right in zip(found.records, truth, strict=True)):
        return "a record that the state does not have"
    return None


@dataclass
class Subject:
    """A board and its history."""

    board: MemoryBoard
    history: History

    def try_all(self, damages: tuple[Damage, ...], each: int, seed: int = 0) -> dict[str, int]:
        """Mount ``each`` images of every kind; how many of a kind brought nothing, or another than the newest state."""
        noticed = {}
        for kind, damage in enumerate(damages):
            rng = np.random.default_rng([seed, kind])
            noticed[damage.__name__] = 0
            for number in range(each):
                flash = damage(rng, self.history)
                found = self.board.mount(flash)
                wrong = complaint(self.history, flash, found)
                assert wrong is None, f"{damage.__name__}, image {number} of seed {seed}: {wrong}"
                noticed[damage.__name__] += found.lost > 0 or not all(found.records)
        return noticed


@contextmanager
def subject(folder: Path, key: bytes | None = None, **learning: Any) -> Iterator[Subject]:
    """A board that has learned."""
    store = board_facts(size=SECTORS * SECTOR, sector=SECTOR, program_unit=4)
    layout = Layout(model(**learning), store, keyed=key is not None)
    with running(layout, build(layout, folder, key)) as board:
        yield Subject(board, live(board))


@pytest.mark.parametrize("key", [None, KEY], ids=["open", "keyed"])
def test_damaged_flash(key: bytes | None, tmp_path: Path) -> None:
    """Of each kind."""
    with subject(tmp_path, key) as it:
        for flash in it.history.flashes:
            found = it.board.mount(flash)
            assert found.restored
            assert not found.lost
            assert all(found.records)
            assert complaint(it.history, flash, found) is None
        kinds = (*DAMAGES, twice, *((forged_wholly, forged_under_its_checksum) if key else ()))
        noticed = it.try_all(kinds, 50)
        assert min(noticed.values()) >= 5, noticed


def test_without_a_key_nothing_stops_who_knows_the_format(tmp_path: Path) -> None:
    """Checks are no seals: what docs/evidence/security.md says of a flash that somebody else writes."""
    with subject(tmp_path) as it:
        rng = np.random.default_rng(1)
        found = it.board.mount(forged_wholly(rng, it.history))
        assert (found.restored, found.lost, found.content in it.history.saved) == (True, 0, False)
        wrong = (forged_under_its_checksum(rng, it.history) for _ in range(20))
        complaints = [complaint(it.history, flash, it.board.mount(flash)) for flash in wrong]
        assert "a record that the state does not have" in complaints


def test_an_old_flash_is_genuine(tmp_path: Path) -> None:
    """Even with a key a board accepts the whole of an earlier flash (docs/evidence/security.md, "Rollback")."""
    with subject(tmp_path, KEY) as it:
        found = it.board.mount(it.history.flashes[3])
        assert (found.restored, found.lost) == (True, 0)
        assert found.content in it.history.saved


@pytest.mark.slow
@pytest.mark.parametrize("key", [None, KEY], ids=["open", "keyed"])
@pytest.mark.parametrize("method", list(Method))
def test_more_damaged_flash(method: Method, key: bytes | None, tmp_path: Path) -> None:
    """Many of each kind, also without replay or logits."""
    learning = {"capacity": 0} if method == Method.FINETUNE else {}
    with subject(tmp_path, key, method=method, **learning) as it:
        for seed in range(1, 4):
            it.try_all((*DAMAGES, twice, *((forged_wholly,) if key else ())), 150, seed)
