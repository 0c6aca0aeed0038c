# SPDX-License-Identifier: Apache-2.0
"""Memory plan: what the firmware needs of a board's RAM, code flash and journal, before anything is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table

from sparcl_mcu.generator.arena import Placement, arena_bytes, captures, eight_bit, place
from sparcl_mcu.generator.journal import Room, max_payload, room
from sparcl_mcu.spec import wire
from sparcl_mcu.spec.boards import Board
from sparcl_mcu.spec.errors import UserError
from sparcl_mcu.spec.types import (
    Growth,
    Layer,
    Model,
    Op,
    Panel,
    needs_error,
    position_bytes,
)

ENGINE_RAM = 640
"""Learner, journal, meters and the port's own variables, in bytes.

tests/boards/test_end_to_end.py holds the plan to the linked image."""

ENGINE_CODE = 32 * 1024
"""Engine code and its constant tables, in bytes; the largest of the boards, rounded up."""

SEAL = 12
"""Bytes of a seal: a counter and a tag (docs/spec/protocol.md, "Shared key")."""

SEAL_CODE = 3072
"""Bytes of flash for the code of seals and tags, rounded up."""

RECORD_HEAD = 8
"""Bytes of a record before its sample or logits (docs/spec/flash-format.md)."""

SNAPSHOT_END = 4
"""Bytes of the digest that a snapshot ends with."""

TAG = 8
"""Bytes of a tag, which records and snapshots have besides where there is a shared key."""

CODE_PER_PASS = 1300
"""Code of one panel or dense layer over all passes, in bytes; kernels are specialised for each."""

CODE_PER_CONV = 2300
"""Code of a convolution without masks over all passes, in bytes; ..."""

CODE_PER_SPARSE_CONV = 4800
"""... of one with masks and one panel, ..."""

CODE_PER_STEP = 800
"""... and of a layer without weights."""

HOT_CODE = 4096
"""Functions in RAM besides the layers' own, in bytes, where a board has them there."""

CODE_IN_RAM = "code in RAM"
"""Region of the functions in RAM."""


LIFE_WIDTH = 24
"""Most columns of the bar that shows when something lives."""


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
    """The firmware's memory.  Sizes in bytes; limits are the board's."""

    board: str
    ram: tuple[Row, ...]
    flash: tuple[Row, ...]
    store: tuple[Row, ...]
    ram_limit: int
    flash_limit: int
    store_limit: int
    shared: bool
    placements: tuple[Placement, ...]
    """What lies where in the arena of activations and errors, and when."""
    graph: bool
    """Whether there are other layers than dense ones."""

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


def line_payload(model: Model, board: Board, keyed: bool) -> int:
    """The longest payload with its seal (``firmware/app/scl_seal.h``)."""
    return max_payload(model, board) + (SEAL if keyed else 0)


def plan(model: Model, board: Board, *, keyed: bool = False) -> Plan:
    """Computes the plan; does not judge it (:func:`check` does).  ``keyed``: requests are sealed with a shared key."""
    ram = _ram(model, board, keyed=keyed)
    flash = _flash(model, keyed=keyed)
    return Plan(
        board=board.name,
        ram=ram,
        flash=flash,
        store=_store(model, board, keyed=keyed),
        ram_limit=board.memory.ram_bytes,
        flash_limit=board.memory.flash_bytes,
        store_limit=board.store.size,
        shared=board.memory.shared,
        placements=place(model),
        graph=any(layer.op is not Op.DENSE for layer in (*model.prefix, *model.layers)),
    )


@dataclass(frozen=True)
class MaskSpace:
    """Work space of a mask update: what it keeps of one line of a panel (``scl_net.h``), in values."""

    places: int
    weights: int
    lines: int

    def size(self, model: Model) -> int:
        """Size in bytes."""
        reach = self.places * (model.learning.growth is Growth.GRADIENT)
        return 2 * self.places + reach + max(256 * position_bytes(model), 2 * self.weights, 2 * self.lines)


def mask_space(model: Model) -> MaskSpace:
    """The longest line and the most lines of all sparse layers."""
    sparse = [(layer, p) for layer in model.layers if layer.sparse for p in layer.panels]
    return MaskSpace(
        places=max((p.places for _, p in sparse), default=0),
        weights=max((p.places * layer.block for layer, p in sparse), default=0),
        lines=max((layer.lines for layer, _ in sparse), default=0),
    )


def active_words(model: Model) -> int:
    """Words of the lists of errors that the backward pass of a convolution walks, those of one line at a time.

    An error and its step take two words, a step alone one; the entries of a list are even in number.
    """
    with_error = needs_error(model.layers)
    lists = [
        layer.block * (layer.active + layer.active % 2) * (2 if with_error[layer.inputs[0]] else 1)
        for layer in model.layers
        if layer.op is Op.CONV
    ]
    return max(lists, default=1)


def work_bytes(model: Model) -> int:
    """``scl_scratch_t``: sums and active errors of a pass, or what a mask update needs."""
    work = 4 * max_sums(model) + 4 * active_words(model)
    if any(layer.sparse for layer in model.layers):
        work = max(work, mask_space(model).size(model))
    return -(-work // 4) * 4


def entry_words(layer: Layer) -> int:
    """Words of an entry in the list a sparse convolution makes: its place, and two weights to a word."""
    return 1 + (layer.block + 1) // 2


def max_sums(model: Model) -> int:
    """Words that a layer's pass needs: sums of outputs or of errors of inputs, entries of a line of a convolution."""
    with_error = needs_error(model.layers)
    layers = (*model.prefix, *model.layers)
    sums = [1]
    sums += [layer.n_in * entry_words(layer) for layer in layers if layer.op is Op.CONV and layer.sparse]
    sums += [layer.n_pad for layer in layers if layer.op is Op.DENSE]
    for layer in model.layers:
        source = layer.inputs[0]
        if layer.weighted and with_error[source]:
            sums.append(layer.n_in if layer.op is Op.DENSE else model.tensor(source).size)
    return max(sums)


def weight_values(layer: Layer) -> int:
    """Weights of a layer without masks, as it stores them."""
    return layer.n_in * (layer.n_pad if layer.op is Op.DENSE else layer.n_out)


def parameter_bytes(layer: Layer, position: int) -> tuple[int, int]:
    """(weights and biases, masks) of a layer at its largest, in bytes."""
    bias = 4 * layer.n_pad
    if not layer.sparse:
        return bias + 2 * weight_values(layer), 0
    entries = sum(p.capacity for p in layer.panels)
    masks = entries + len(layer.panels) * (2 * layer.lines + 1) * position
    return bias + 2 * entries * layer.block, masks


def gradient_bytes(model: Model) -> int:
    """Sums of a batch, for entries of the gradient mask only; none for batch 1."""
    if model.learning.batch == 1:
        return 0
    total = 0
    for _, layer in model.weighted:
        entries = (
            sum((p.grad + p.grow_inter) * layer.block for p in layer.panels) if layer.sparse else weight_values(layer)
        )
        total += 4 * (entries + layer.n_pad)
    return total


def captured_sums(model: Model, layer: Layer, panel: Panel) -> int:
    """Gradients of one kind that a panel of a convolution keeps for its scores."""
    growth = model.learning.growth is Growth.GRADIENT
    return (layer.lines * panel.places if growth else panel.capacity) * layer.block


def factor_bytes(model: Model) -> int:
    """Captured inputs and errors, or gradients, for the scores of mask updates."""
    if not captures(model):
        return 0
    rows = 2 * model.learning.capture
    small = eight_bit(model.layers)
    total = 0
    for layer in model.layers:
        if layer.sparse and layer.op is Op.DENSE:
            total += rows * (layer.n_in * (1 if small[layer.inputs[0]] else 2) + 2 * layer.n_pad)
        elif layer.sparse:
            total += sum(2 * 4 * captured_sums(model, layer, p) for p in layer.panels)
    return total


def receive_ring(board: Board, payload: int) -> int:
    """Bytes for the requests that wait while a board works on one (firmware/port/uart_16550.h); a PC needs none."""
    return 0 if board.core == "host" else (board.link.window - 1) * (payload + payload // 254 + 12)


def _ram(model: Model, board: Board, *, keyed: bool) -> tuple[Row, ...]:
    position = position_bytes(model)
    parameters = [parameter_bytes(layer, position) for layer in model.layers]
    activations = arena_bytes(model) + 4 * model.layers[-1].n_pad
    sample = 0 if board.store.mapped else record_head(keyed=keyed) + model.n_stored
    latent = model.input.values if model.latent_stored else 0
    payload = line_payload(model, board, keyed)
    rows = [
        Row("weights and biases", sum(p[0] for p in parameters), "16 and 32 bit"),
        Row("masks", sum(p[1] for p in parameters), "indices and columns"),
        Row("gradients", gradient_bytes(model), f"batch {model.learning.batch}, gradient mask only"),
        Row("activations and errors", activations, "one sample"),
        Row("work space", work_bytes(model), "sums of a pass; mask updates"),
        Row("gradient factors", factor_bytes(model), f"{model.learning.capture} samples a kind, for TDM and DGM"),
        Row("latent", latent, "output of the frozen layers"),
        Row("task table", 5 * model.learning.table, f"{model.learning.table} samples: address, id, score"),
        Row(
            "replay index",
            4 * (model.learning.capacity + 1),
            f"{model.learning.capacity} slots; the samples are in flash",
        ),
        Row("sample buffer", sample, "one sample read from SPI flash" if sample else "none: flash is memory-mapped"),
        Row("serial buffers", 2 * (payload + 8) + receive_ring(board, payload), f"payload {payload}"),
        Row("engine", ENGINE_RAM, ""),
        Row(CODE_IN_RAM, _hot(model) if board.memory.code_in_ram else 0, "estimate; copied from flash at start"),
        Row("stack", board.memory.stack_bytes, ""),
    ]
    return tuple(row for row in rows if row.size)


def _flash(model: Model, *, keyed: bool) -> tuple[Row, ...]:
    position = position_bytes(model)
    initial = sum(sum(parameter_bytes(layer, position)) for layer in model.layers)
    frozen = sum(sum(parameter_bytes(layer, position)) for layer in model.prefix)
    code = ENGINE_CODE + sum(_code(layer, frozen=False) for layer in model.layers)
    code += sum(_code(layer, frozen=True) for layer in model.prefix)
    rows = (
        Row("engine code", code, "estimate; the build checks it"),
        Row("shared key", SEAL_CODE if keyed else 0, "estimate; key, seals, tags"),
        Row("initial model", initial, "constants"),
        Row("frozen layers", frozen, "constants"),
    )
    return tuple(row for row in rows if row.size)


def _hot(model: Model) -> int:
    """Code that runs in RAM (``SCL_HOT``): all passes of the layers that learn."""
    return HOT_CODE + sum(_code(layer, frozen=False) for layer in model.layers)


def _code(layer: Layer, *, frozen: bool) -> int:
    """Code of a layer over all passes; a convolution has a table of its kernel positions besides."""
    table = 2 * layer.n_in if layer.op is Op.CONV else 0
    if not layer.weighted:
        return CODE_PER_STEP
    if layer.op is Op.DENSE or frozen:
        return table + CODE_PER_PASS * max(1, len(layer.panels))
    if not layer.sparse:
        return table + CODE_PER_CONV
    return table + CODE_PER_SPARSE_CONV + CODE_PER_PASS * (len(layer.panels) - 1)


def record_head(*, keyed: bool) -> int:
    """Bytes of a record before its sample or logits."""
    return RECORD_HEAD + (TAG if keyed else 0)


def snapshot_bytes(model: Model, *, keyed: bool = False) -> int:
    """Largest snapshot of the learner (docs/spec/flash-format.md)."""
    position = position_bytes(model)
    learning = model.learning
    return (
        wire.SCALARS.size
        + model.n_classes
        + 5 * learning.table
        + 4 * learning.capacity
        + sum(sum(parameter_bytes(layer, position)) for layer in model.layers)
        + gradient_bytes(model)
        + factor_bytes(model)
        + SNAPSHOT_END
        + (TAG if keyed else 0)
    )


def journal_room(model: Model, board: Board, *, keyed: bool = False) -> Room:
    """Plan the journal; raises ``UserError`` if a record does not fit a sector."""
    return room(model, board, record_head(keyed=keyed), snapshot_bytes(model, keyed=keyed))


def _store(model: Model, board: Board, *, keyed: bool) -> tuple[Row, ...]:
    """Rows of the journal's regions, which add up to ``least`` sectors."""
    needs = journal_room(model, board, keyed=keyed)
    snapshots = needs.rounds * needs.snapshot
    moving = needs.rounds + needs.free
    request = needs.least - needs.live - snapshots - moving
    counts = (
        ("task samples", needs.task, f"{needs.samples} x {needs.sizes.sample} B"),
        ("replay buffer", needs.live - needs.task, f"{model.learning.capacity} records"),
        ("records of a request", request, f"{board.link.steps_per_request} steps"),
        ("snapshots", snapshots, f"{needs.rounds} x {needs.snapshot_bytes:,} B, one a round"),
        ("room to move records", moving, "kept free"),
    )
    return tuple(Row(name, count * board.store.sector, note) for name, count, note in counts if count)


def check(p: Plan) -> None:
    """Raises :class:`DoesNotFit`, which says what is too large and what to try."""
    model = "a higher [sparsity] weights, frozen layers ([model] freeze) or a smaller [model]"
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


def table(p: Plan) -> RenderableType:
    """The plan for people: one row per region, totals against the board's limits; for a graph, the arena besides."""
    regions = _regions(p)
    return Group(regions, _arena(p.placements)) if p.graph else regions


def _arena(placements: Sequence[Placement]) -> Table:
    """Draw the arena: time runs to the right, through frozen layers, forward through the others and back."""
    title = "Activations and errors, forward and back"
    result = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for heading in ("name", "shape"):
        result.add_column(heading, no_wrap=True)
    for heading in ("bytes", "offset"):
        result.add_column(heading, justify="right")
    result.add_column("lives", no_wrap=True)
    begin = min((q.first for q in placements), default=0)
    moments = 1 + max((q.last for q in placements), default=0) - begin
    for q in placements:
        result.add_row(q.name, q.what, f"{q.size:,}", f"{q.offset:,}", _life(q.first - begin, q.last - begin, moments))
    return result


def _life(begin: int, end: int, moments: int) -> str:
    """A bar from the first to the last moment, no wider than LIFE_WIDTH."""
    width = min(moments, LIFE_WIDTH)
    first, last = begin * width // moments, end * width // moments
    return "".join("\u2588" if first <= column <= last else "\u00b7" for column in range(width))


def _regions(p: Plan) -> Table:
    result = Table(title=f"Memory on {p.board}", title_justify="left", box=None, pad_edge=False, show_header=False)
    result.add_column("region", no_wrap=True)
    result.add_column("bytes", justify="right", no_wrap=True)
    result.add_column("note", style="dim")
    sections = (("RAM", p.ram, p.ram_limit), ("flash", p.flash, p.flash_limit), ("journal", p.store, p.store_limit))
    for name, rows, limit in sections:
        total = sum(row.size for row in rows)
        for row in rows:
            result.add_row(f"{name}: {row.name}", f"{row.size:,}", row.note)
        share = f"{100 * total / limit:.0f} % of {kib(limit)}" + (
            " shared with RAM" if p.shared and name == "flash" else ""
        )
        result.add_row(f"{name} in all", f"{total:,}", share, style="bold")
        result.add_row()
    return result
