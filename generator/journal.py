# SPDX-License-Identifier: Apache-2.0
"""How many sectors the journal needs: what it holds, what a request adds, what is kept free to move records.

docs/spec/flash-format.md, "Room", says why; ``scl_board.h`` hands the numbers to the engine, which counts alike or
fails to compile.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparcl_mcu.spec.boards import Board
from sparcl_mcu.spec.errors import UserError
from sparcl_mcu.spec.types import Method, Model

SECTOR_HEADER = 48
"""Bytes at the beginning of a sector, before they are padded."""

SPARE = 2
"""Sectors that may fail in a lap of the ring without the board missing them."""


@dataclass(frozen=True)
class Records:
    """Counts of records, by kind."""

    samples: int = 0
    logits: int = 0

    def __add__(self, other: Records) -> Records:
        return Records(self.samples + other.samples, self.logits + other.logits)


@dataclass(frozen=True)
class Sizes:
    """Bytes: of records with their padding, and of a sector without its header; addresses are in granules."""

    sample: int
    logits: int
    sector: int
    granule: int

    @property
    def mixed(self) -> int:
        """Bytes of a sector that records of both kinds fill at least, on average, in any order; the last sector aside.

        A record goes to the next sector when it does not fit: so a sector is filled but for less than the larger of
        them, and a sector with the first record of the next one is more than full.
        """
        largest = max(self.sample, self.logits)
        return max(self.sector - largest + self.granule, (self.sector + self.granule) // 2)

    def sectors(self, records: Records) -> int:
        """Sectors for records that are written one after another; as ``SCL_SECTORS_FOR`` in the engine."""
        if records.logits == 0:
            return _ceil(records.samples, self.sector // self.sample)
        if records.samples == 0:
            return _ceil(records.logits, self.sector // self.logits)
        return _ceil(records.samples * self.sample + records.logits * self.logits, self.mixed)


@dataclass(frozen=True)
class Room:
    """The journal's sectors, and bytes of records.

    ``samples``: of a task, as far as they are kept in flash.  ``task``, ``replay``: sectors of these and of the full
    buffer, each alone; ``live``: of both together, in any order.  ``snapshot``: of the largest.  ``resident``,
    ``streamed``: what one request to train appends at most.  ``rounds``: checkpoints that move all live records;
    ``free``: sectors kept free for them whenever no request is under way.  ``least``: of the partition.
    """

    sizes: Sizes
    snapshot_bytes: int
    samples: int
    task: int
    replay: int
    live: int
    resident: int
    streamed: int
    rounds: int
    free: int
    least: int
    spare: int = SPARE

    @property
    def snapshot(self) -> int:
        """Sectors of the largest snapshot."""
        return _ceil(self.snapshot_bytes, self.sizes.sector)


def room(model: Model, board: Board, head: int, snapshot_bytes: int) -> Room:
    """Compute the room the journal needs.

    ``head``: bytes of a record in front of a sample; ``snapshot_bytes``: size of the largest snapshot.
    Raises ``UserError`` if a record does not fit a sector.
    """
    sizes = _sizes(model, board, head)
    learning = model.learning
    task = Records(0 if learning.streamed else learning.table)
    replay = Records(learning.capacity, learning.capacity if learning.method is Method.DERPP else 0)
    alone, buffer, live = (sizes.sectors(r) for r in (task, replay, task + replay))
    resident, streamed = (sizes.sectors(_request(model, board, streamed=s)) for s in (False, True))
    # A task whose samples are kept, before they come and while it is learned; one whose samples are not.
    phases = [buffer + alone, live + max(1, 0 if learning.streamed else resident), buffer + streamed]
    rounds, free, moving = min(
        (_moving(live, _ceil(snapshot_bytes, sizes.sector), n) for n in range(1, 65)), key=lambda found: found[2]
    )
    return Room(
        sizes=sizes,
        snapshot_bytes=snapshot_bytes,
        samples=task.samples,
        task=alone,
        replay=buffer,
        live=live,
        resident=resident,
        streamed=streamed,
        rounds=rounds,
        free=free,
        least=max(phases) + moving,
    )


def _moving(live: int, snapshot: int, rounds: int) -> tuple[int, int, int]:
    """(rounds, sectors kept free, sectors in all besides those of packed records) where so many rounds move all.

    A round moves records to what is free, but for its snapshot and what is spare.  Where all that it moves is live,
    it wins nothing, and the next one lacks its snapshot: with f sectors to use, n rounds move
    (f - p) + (f - 2 p) + ... + (f - n p).  Then all that is no longer needed lies behind the tail, but for their
    snapshots and for a sector of each, and of the one written to before them, that is filled in part.
    """
    needed = live + rounds + snapshot * rounds * (rounds + 1) // 2
    free = _ceil(needed, rounds) + SPARE
    return rounds, free, rounds * (snapshot + 1) + free


def _sizes(model: Model, board: Board, head: int) -> Sizes:
    store = board.store
    header = _rounded(_rounded(SECTOR_HEADER, store.program_unit), store.granule)
    sizes = Sizes(
        sample=_rounded(head + model.n_stored, store.granule),
        logits=_rounded(head + 2 * model.n_classes, store.granule),
        sector=store.sector - header,
        granule=store.granule,
    )
    if max(sizes.sample, sizes.logits) > sizes.sector:
        raise UserError(
            f"a sample of {model.n_stored} bytes with {model.n_classes} logits does not fit a flash sector of "
            f"{board.name} ({store.sector} bytes): fewer inputs, or another board"
        )
    return sizes


def _request(model: Model, board: Board, *, streamed: bool) -> Records:
    """Records a request to train appends at most; as ``scl_train_reserve`` in the engine.  Finetuning keeps nothing."""
    learning = model.learning
    if learning.method is Method.FINETUNE:
        return Records()
    steps = min(board.link.steps_per_request, learning.table)
    if streamed:
        steps = min(steps, (max_payload(model, board) - 2) // (3 + model.n_in))
    logits = steps + (learning.capacity if learning.refresh else 0) if learning.method is Method.DERPP else 0
    return Records(steps if streamed else 0, logits)


def max_payload(model: Model, board: Board) -> int:
    """Payload limit of the protocol: the board's, or what one sample with its head needs (docs/spec/protocol.md)."""
    statistics_reply = 128
    prediction = 3 + 2 * model.n_classes
    return max(board.link.max_payload, model.n_in + 12, prediction, statistics_reply)


def _ceil(value: int, by: int) -> int:
    return -(-value // by)


def _rounded(size: int, unit: int) -> int:
    return _ceil(size, unit) * unit
