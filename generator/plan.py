# SPDX-License-Identifier: Apache-2.0
"""Memory plan: what the firmware needs of a board's RAM, code flash and journal, before anything is built."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table

from generator.artefacts import Layer, Method, Model, position_bytes
from generator.boards import Board
from generator.errors import UserError

ENGINE_RAM = 640
"""Learner, journal, meters and the port's own variables, in bytes.

tests/boards/test_end_to_end.py holds the plan to the linked image."""

ENGINE_CODE = 30 * 1024
"""Engine code and its constant tables, in bytes; the largest of the boards, rounded up."""

CODE_PER_PASS = 900
"""Code of one panel or dense layer over all passes, in bytes; kernels are specialised for each."""


class DoesNotFit(UserError):
    """The model needs more of the board than there is; ``plan`` shows where it goes."""

    def __init__(self, message: str, plan: Plan) -> None:
        super().__init__(message)
        self.plan = plan


@dataclass(frozen=True)
class Row:
    """One region: ``size`` bytes."""

    name: str
    size: int
    note: str = ""


@dataclass(frozen=True)
class Plan:
    """What the firmware needs.  Sizes in bytes; limits are the board's."""

    board: str
    ram: tuple[Row, ...]
    flash: tuple[Row, ...]
    store: tuple[Row, ...]
    ram_limit: int
    flash_limit: int
    store_limit: int
    shared: bool

    @property
    def ram_bytes(self) -> int:
        """All RAM, stack included."""
        return sum(row.size for row in self.ram)

    @property
    def flash_bytes(self) -> int:
        """Code flash."""
        return sum(row.size for row in self.flash)

    @property
    def store_bytes(self) -> int:
        """Least size of the journal's partition."""
        return sum(row.size for row in self.store)


def max_payload(model: Model, board: Board) -> int:
    """Payload limit of the protocol: the board's, or what one sample with its head needs (docs/protocol.md)."""
    statistics_reply = 128
    prediction = 3 + 2 * model.n_classes
    return max(board.link.max_payload, model.n_in + 12, prediction, statistics_reply)


def plan(model: Model, board: Board) -> Plan:
    """Computes the plan; does not judge it (:func:`check` does)."""
    ram = _ram(model, board)
    flash = _flash(model)
    return Plan(
        board=board.name,
        ram=ram,
        flash=flash,
        store=_store(model, board),
        ram_limit=board.memory.ram_bytes,
        flash_limit=board.memory.flash_bytes,
        store_limit=board.store.size,
        shared=board.memory.shared,
    )


def spread_sizes(model: Model) -> tuple[int, int]:
    """Weights of the widest panel and inputs of the largest sparse layer: work space of a mask update."""
    sparse = [layer for layer in model.layers if layer.sparse]
    weights = max((p.blocks * layer.block for layer in sparse for p in layer.panels), default=0)
    return weights, max((layer.n_in for layer in sparse), default=0)


def captures(model: Model) -> bool:
    """Whether gradients are captured for mask updates."""
    return (model.learning.tdm or model.learning.dgm) and any(layer.sparse for layer in model.layers)


def max_pad(model: Model) -> int:
    """Values that the sums of a pass need: the widest output, or the widest input of a layer above the first."""
    return max([layer.n_pad for layer in model.layers] + [layer.n_in for layer in model.layers[1:]])


def scaled_size(model: Model) -> int:
    """Scaled errors kept beside the errors: layers above the first need both at once."""
    return max((layer.n_pad for layer in model.layers[1:]), default=0)


def parameter_bytes(layer: Layer, position: int) -> tuple[int, int]:
    """(weights and biases, masks) of a layer at its largest, in bytes."""
    bias = 4 * layer.n_pad
    if not layer.sparse:
        return bias + 2 * layer.n_in * layer.n_pad, 0
    entries = sum(p.capacity for p in layer.panels)
    masks = entries + len(layer.panels) * (2 * layer.n_in + 1) * position
    return bias + 2 * entries * layer.block, masks


def gradient_bytes(model: Model) -> int:
    """Sums of a batch, for entries of the gradient mask only; none for batch 1."""
    if model.learning.batch == 1:
        return 0
    total = 0
    for layer in model.layers:
        entries = (
            sum((p.grad + p.grow_inter) * layer.block for p in layer.panels)
            if layer.sparse
            else layer.n_in * layer.n_pad
        )
        total += 4 * (entries + layer.n_pad)
    return total


def factor_bytes(model: Model) -> int:
    """Captured inputs and errors for the scores of mask updates."""
    if not captures(model):
        return 0
    rows = 2 * model.learning.capture
    return sum(
        rows * (layer.n_in * (1 if number == 0 else 2) + 2 * layer.n_pad)
        for number, layer in enumerate(model.layers)
        if layer.sparse
    )


def _ram(model: Model, board: Board) -> tuple[Row, ...]:
    position = position_bytes(model)
    parameters = [parameter_bytes(layer, position) for layer in model.layers]
    weights, inputs = spread_sizes(model)
    activations = sum(4 * layer.n_pad for layer in model.layers) + 2 * scaled_size(model)
    work = max(4 * max_pad(model), 1024, 2 * weights + 2 * inputs + 256) if weights else 4 * max_pad(model)
    sample = 0 if board.store.mapped else 8 + model.n_in
    payload = max_payload(model, board)
    rows = [
        Row("weights and biases", sum(p[0] for p in parameters), "16 and 32 bit"),
        Row("masks", sum(p[1] for p in parameters), "indices and columns of sparse layers"),
        Row("gradients", gradient_bytes(model), f"batch {model.learning.batch}, gradient mask only"),
        Row("activations and errors", activations, "one sample"),
        Row("work space", work, "sums of a pass; mask updates"),
        Row("gradient factors", factor_bytes(model), f"{model.learning.capture} samples of each kind, for TDM and DGM"),
        Row("task table", 5 * model.learning.table, f"{model.learning.table} samples: address, id, score"),
        Row(
            "replay index",
            4 * (model.learning.capacity + 1),
            f"{model.learning.capacity} slots; the samples are in flash",
        ),
        Row("sample buffer", sample, "one sample read from SPI flash" if sample else "none: flash is memory-mapped"),
        Row("serial buffers", 2 * (payload + 8), f"payload {payload}"),
        Row("engine", ENGINE_RAM, ""),
        Row("stack", board.memory.stack_bytes, ""),
    ]
    return tuple(row for row in rows if row.size)


def _flash(model: Model) -> tuple[Row, ...]:
    position = position_bytes(model)
    initial = sum(sum(parameter_bytes(layer, position)) for layer in model.layers)
    passes = sum(max(1, len(layer.panels)) for layer in model.layers)
    return (
        Row("engine code", ENGINE_CODE + CODE_PER_PASS * passes, "estimate; the build checks the true size"),
        Row("initial model", initial, "constants"),
    )


def snapshot_bytes(model: Model) -> int:
    """Largest snapshot of the learner (docs/flash-format.md)."""
    position = position_bytes(model)
    learning = model.learning
    return (
        48
        + model.n_classes
        + 5 * learning.table
        + 4 * learning.capacity
        + sum(sum(parameter_bytes(layer, position)) for layer in model.layers)
        + gradient_bytes(model)
        + factor_bytes(model)
    )


def _store(model: Model, board: Board) -> tuple[Row, ...]:
    store, learning = board.store, model.learning

    def rounded(size: int, unit: int) -> int:
        return -(-size // unit) * unit

    header = rounded(rounded(48, store.program_unit), store.granule)
    room = store.sector - header
    sample = rounded(8 + model.n_in, store.granule)
    logits = rounded(8 + 2 * model.n_classes, store.granule) if learning.method == Method.DERPP else 0
    if max(sample, logits) > room:
        raise UserError(
            f"a sample of {model.n_in} bytes with {model.n_classes} logits does not fit a flash sector of "
            f"{board.name} ({store.sector} bytes): fewer inputs, or another board"
        )
    table = 0 if learning.streamed else learning.table
    # As sectors_for in scl_store.c, which refuses a task that does not fit by this count.
    largest = max(sample, logits)
    useful = room - largest if room > 2 * largest else room // largest * largest
    samples = rounded(table * sample, useful) // useful * store.sector
    replay = rounded(learning.capacity * (sample + logits), useful) // useful * store.sector
    snapshot = rounded(snapshot_bytes(model), room) // room * store.sector
    return (
        Row("task samples", samples, f"{table} x {sample} B"),
        Row("replay samples and logits", replay, f"{learning.capacity} x {sample + logits} B"),
        Row("snapshots", 3 * snapshot, "the last one, the next, and one that is garbage"),
        Row("garbage collection", replay + 6 * store.sector, "kept free, so that records can be moved"),
    )


def check(p: Plan) -> None:
    """Raises :class:`DoesNotFit`, which says what is too large and what to try."""
    model = "a higher [sparsity] weights or a narrower [model] hidden"
    _check("RAM", p, p.ram, p.ram_limit, f"{model}, or fewer samples in a task")
    if p.shared:
        _check("RAM for code and data", p, (*p.ram, *p.flash), p.ram_limit, model)
    else:
        _check("flash", p, p.flash, p.flash_limit, model)
    smaller = 'a smaller [method] buffer, fewer samples in a task, or training = "streamed"'
    _check("flash for the journal", p, p.store, p.store_limit, smaller)


def kib(size: int) -> str:
    """Bytes as text."""
    return f"{size / 1024:.1f} KiB"


def _check(what: str, p: Plan, rows: tuple[Row, ...], limit: int, advice: str) -> None:
    need = sum(row.size for row in rows)
    if need <= limit:
        return
    largest = ", ".join(f"{r.name} {kib(r.size)}" for r in sorted(rows, key=lambda r: -r.size)[:3])
    raise DoesNotFit(
        f"does not fit: needs {kib(need)} {what}, {p.board} has {kib(limit)}; largest: {largest}; "
        f"try {advice}, or a larger board (`sparcl boards`)",
        p,
    )


def table(p: Plan) -> Table:
    """The plan for people: one row per region, totals against the board's limits."""
    result = Table(title=f"Memory on {p.board}", title_justify="left")
    result.add_column("region")
    result.add_column("bytes", justify="right")
    result.add_column("", style="dim")
    sections = (("RAM", p.ram, p.ram_limit), ("flash", p.flash, p.flash_limit), ("journal", p.store, p.store_limit))
    for name, rows, limit in sections:
        total = sum(row.size for row in rows)
        for row in rows:
            result.add_row(f"{name}: {row.name}", f"{row.size:,}", row.note)
        share = f"{100 * total / limit:.0f} % of {kib(limit)}" + (
            " shared with RAM" if p.shared and name == "flash" else ""
        )
        result.add_row(f"{name} in all", f"{total:,}", share, style="bold", end_section=True)
    return result
