# SPDX-License-Identifier: Apache-2.0
"""Where a training step keeps what, and what the memory plan says of it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict, replace

import pytest
from rich.console import Console

from sparcl_mcu.generator.arena import Placement, arena_bytes, eight_bit, keeps_alive, place, pooled_by
from sparcl_mcu.generator.plan import (
    CODE_IN_RAM,
    DoesNotFit,
    Plan,
    active_words,
    captured_sums,
    check,
    factor_bytes,
    gradient_bytes,
    max_sums,
    plan,
    snapshot_bytes,
    table,
)
from sparcl_mcu.spec.boards import load_board
from sparcl_mcu.spec.types import Activation, Growth, Method, Model, Op, SingleHead, needs_error
from tests.reference.models import Spec, conv_model, random_conv_model, random_model

SEEDS = range(40)

NET = (
    Spec(Op.CONV, channels=6, kernel=(3, 3), same=True, activation=Activation.RELU, sparse=True, block=2),
    Spec(Op.MAX_POOL, kernel=(2, 2), stride=(2, 2)),
    Spec(Op.CONV, channels=4, kernel=(3, 3), same=True, activation=Activation.RELU6),
    Spec(Op.AVG_POOL, kernel=(5, 5)),
    Spec(Op.DENSE, channels=3),
)
"""One of each."""


def small(**options: object) -> Model:
    """A convolutional network on 10 x 10 pixels of one channel."""
    return conv_model(1, (1, 10, 10), NET, **options)  # type: ignore[arg-type]


def rows(p: Plan) -> dict[str, int]:
    """RAM by region."""
    return {row.name: row.size for row in p.ram}


def span(model: Model, name: str) -> tuple[int, int]:
    """First and last moment of something."""
    found = {p.name: p for p in place(model)}[name]
    return found.first, found.last


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("single_head", [SingleHead.LOSS, SingleHead.SCORE])
def test_nothing_alive_is_overwritten(seed: int, single_head: SingleHead) -> None:
    """No two placements that live at the same moment overlap; all lie inside of the arena, aligned."""
    model = random_conv_model(seed, single_head=single_head)
    placements = place(model)
    assert len({p.name for p in placements}) == len(placements)
    for a, b in itertools.combinations(placements, 2):
        together = a.first <= b.last and b.first <= a.last
        assert not together or a.offset + a.size <= b.offset or b.offset + b.size <= a.offset, (a, b)
    size = arena_bytes(model)
    assert size % 2 == 0
    assert all(p.offset % 2 == 0 and 0 <= p.offset <= p.offset + p.size <= size for p in placements)
    assert place(model) == placements


def pooled(model: Model, k: int) -> int | None:
    """The max_pool behind convolution ``k`` from which it takes its errors: the one reader, no window meets another."""
    layer = model.layers[k]
    found = [n for n, reader in enumerate(model.layers) if k + 1 in reader.inputs]
    if layer.op is not Op.CONV or layer.activation is Activation.RELU6 or len(found) != 1:
        return None
    reader = model.layers[found[0]]
    if reader.op is not Op.MAX_POOL or reader.window is None:
        return None
    w = reader.window
    return found[0] if w.stride_h >= w.kernel_h and w.stride_w >= w.kernel_w else None


def touched(model: Model) -> Iterator[tuple[int, str]]:
    """Every (moment, name) at which a pass touches something, told by the rules of docs/spec/numerics.md alone."""
    count = len(model.layers)
    error = needs_error(model.layers)
    for k, layer in enumerate(model.prefix):
        yield k - len(model.prefix), f"prefix{k}_out"
        yield from ((k - len(model.prefix), f"prefix{t - 1}_out") for t in layer.inputs if t)
    held = bool(model.prefix) and not model.latent_stored
    if model.prefix:
        yield -1, f"prefix{len(model.prefix) - 1}_out"
    if held:
        yield -1, "network_input"

    def value(tensor: int) -> str:
        return f"layer{tensor - 1}_out" if tensor else "network_input" if held else ""

    for k, layer in enumerate(model.layers):
        backward = 2 * count - k
        for moment in (k, backward) if layer.weighted else (k,):
            yield from ((moment, value(t)) for t in layer.inputs if value(t))
        written = (t for t in layer.inputs if error[t] and pooled(model, t - 1) is None)
        yield from ((backward, f"layer{t - 1}_error") for t in written)
        if k + 1 == count:
            continue  # the logits and their error are no part of the arena
        yield k, value(k + 1)
        if not error[k + 1]:
            continue
        pool = pooled(model, k)
        yield backward, f"layer{k if pool is None else pool}_error"
        if pool is not None:
            yield backward, f"layer{pool}_arg"
        if layer.op is Op.MAX_POOL:
            yield from ((moment, f"layer{k}_arg") for moment in (k, backward))
        # A value of 0 stops the error: seen by readers with weights, and implied by a maximum of 0.
        blind = [r for r in model.layers if k + 1 in r.inputs and r.op in (Op.ADD, Op.AVG_POOL)]
        if layer.activation is Activation.RELU6 or (layer.out.rectified and blind):
            yield from ((moment, f"layer{k}_alive") for moment in (k, backward))


def check_alive(model: Model) -> None:
    """What a pass touches is in its place at that moment, and nothing else is placed."""
    alive = {p.name: (p.first, p.last) for p in place(model)}
    uses: dict[str, list[int]] = {}
    for moment, name in touched(model):
        uses.setdefault(name, []).append(moment)
    assert {name: (min(moments), max(moments)) for name, moments in uses.items()} == alive


@pytest.mark.parametrize("seed", SEEDS)
def test_all_that_is_needed_is_alive(seed: int) -> None:
    """In random networks."""
    check_alive(random_conv_model(seed))


def test_a_tensor_that_several_layers_with_weights_read() -> None:
    """It lives until the first of them has learned."""
    conv = Spec(Op.CONV, channels=3, kernel=(3, 3), same=True, activation=Activation.RELU)
    branches = (conv, conv, replace(conv, inputs=(1,)), replace(conv, inputs=(1,)))
    check_alive(conv_model(1, (1, 6, 6), (*branches, Spec(Op.ADD, inputs=(2, 3, 4)), Spec(Op.DENSE, channels=3))))


@pytest.mark.parametrize(
    ("stride", "activation", "written"),
    [(2, Activation.RELU, False), (1, Activation.RELU, True), (2, Activation.RELU6, True)],
)
def test_errors_come_straight_from_pooling(stride: int, activation: Activation, written: bool) -> None:
    """Where windows do not overlap and nothing else stops an error, that of the convolution is not in memory."""
    conv = Spec(Op.CONV, channels=3, kernel=(3, 3), same=True, activation=activation)
    pool = Spec(Op.MAX_POOL, kernel=(2, 2), stride=(stride, stride))
    model = conv_model(1, (1, 6, 6), (conv, pool, conv, Spec(Op.DENSE, channels=3)))
    check_alive(model)
    first = next(k for k, layer in enumerate(model.layers) if layer.op is Op.CONV)
    assert (f"layer{first}_error" in {p.name for p in place(model)}) == written
    assert (pooled_by(model.layers, first) is None) == written


def test_values_are_kept_for_the_second_error() -> None:
    """Where the captured error is another than that of the step, backward runs twice on the same values."""
    end = 2 * len(small().layers)
    pool = next(k for k, layer in enumerate(small().layers) if layer.op is Op.MAX_POOL)
    names = (f"layer{pool}_arg", f"layer{pool}_out", f"layer{pool + 1}_alive")
    assert any(span(small(), name)[1] < end for name in names)
    assert all(span(small(single_head=SingleHead.SCORE), name)[1] == end for name in names)


def test_only_what_backward_needs_is_kept() -> None:
    """Values behind weights, maxima as positions, signs as bits."""
    model = small()
    names = {p.name: p for p in place(model)}
    pool = next(k for k, layer in enumerate(model.layers) if layer.op is Op.MAX_POOL)
    assert span(model, f"layer{pool - 1}_out")[1] == pool
    assert names[f"layer{pool}_arg"].size == 6 * 5 * 5
    assert span(model, f"layer{pool + 1}_out")[1] == pool + 2
    assert names[f"layer{pool + 1}_alive"].size == -(-4 * 25 // 8)
    assert not any(keeps_alive(model.layers, k) for k in range(pool + 1))
    assert "layer0_error" not in names, "there are no weights before the first convolution"


def test_margins_and_blocks_have_room() -> None:
    """A tensor is as large as its margins and the padding of a dense layer's block make it."""
    model = random_model(0, sizes=(12, 9, 4), block=4)
    assert {p.name: p.size for p in place(model)} == {"layer0_out": 2 * 12, "layer0_error": 2 * 12}
    names = {p.name: p for p in place(small())}
    assert names["layer0_out"].size == 12 * 12, "8 bit"
    assert names["layer2_out"].size == 2 * 6 * 7 * 7
    assert eight_bit(small().layers)[:3] == (True, True, False)


def test_memory_is_reused() -> None:
    """The arena is smaller than its parts together."""
    assert arena_bytes(small()) < sum(p.size for p in place(small()))


def test_single_layer() -> None:
    """No arena at all."""
    model = random_model(0, sizes=(6, 3), sparse=[True])
    assert place(model) == ()
    assert arena_bytes(model) == 0


def test_frozen_layers_cost_flash_only() -> None:
    """Their parameters are constants; stored latents are what records and buffers hold."""
    board = load_board("native")
    frozen = small(prefix=2, latent_stored=True)
    p = plan(frozen, board)
    assert {row.name for row in p.flash} == {"engine code", "initial model", "frozen layers"}
    learning = sum(2 * layer.n_in * layer.n_out + 4 * layer.n_pad for _, layer in frozen.weighted)
    assert rows(p)["weights and biases"] == learning
    assert rows(p)["latent"] == frozen.input.values == frozen.n_stored == 6 * 5 * 5
    kept = small(prefix=2, latent_stored=False)
    assert "latent" not in rows(plan(kept, board))
    assert kept.n_stored == 100
    assert "network_input" in {q.name for q in place(kept)}


def test_captured_gradients_of_convolutions() -> None:
    """Sums for every weight that exists, or that could."""
    model = small()
    layer = next(layer for layer in model.layers if layer.sparse)
    panel = layer.panels[0]
    assert captured_sums(model, layer, panel) == panel.capacity * 2
    assert factor_bytes(model) == 2 * 4 * panel.capacity * 2
    gradient = small(growth=Growth.GRADIENT)
    assert factor_bytes(gradient) == 2 * 4 * 3 * 9 * 2
    assert factor_bytes(small(tdm=False, dgm=False)) == 0


def test_gradients_of_a_batch() -> None:
    """Entries of the gradient mask, weights without masks, biases."""
    assert gradient_bytes(small()) == 0
    model = small(batch=2)
    sparse = next(layer for layer in model.layers if layer.sparse)
    panel = sparse.panels[0]
    entries = (panel.grad + panel.grow_inter) * 2 + 4 * 6 * 9 + 4 * 3
    assert gradient_bytes(model) == 4 * (entries + 6 + 4 + 3)
    assert snapshot_bytes(model) > snapshot_bytes(small()) + gradient_bytes(model) - 1


def test_sums_of_a_pass() -> None:
    """Errors of a convolution's input with its margins, or the entries of a line; the input of the network has none."""
    model = small()
    assert max_sums(model) == 6 * 7 * 7
    assert max_sums(replace(model, layers=model.layers[:2])) == 9 * 2, "a place and two weights for each position"
    assert max_sums(random_model(0, sizes=(100, 8, 3))) == 8


def test_lists_of_active_errors() -> None:
    """Error and step take two words, a step alone one; a channel of each convolution has 25 errors, in even lists."""
    model = small()
    conv, last = (layer for layer in model.layers if layer.op is Op.CONV)
    assert (conv.active, last.active) == (25, 25)
    assert active_words(model) == max(2 * 26, 1 * 26 * 2)
    assert active_words(replace(model, layers=model.layers[:2])) == 2 * 26
    wide = conv_model(1, (1, 10, 10), (*NET[:2], replace(NET[2], sparse=True, block=4), *NET[3:]))
    assert active_words(wide) == 4 * 26 * 2


def test_advice_names_what_is_largest() -> None:
    """A board with little memory refuses the model and says why."""
    board = load_board("native")
    tight = replace(board, memory=replace(board.memory, ram_bytes=2000))
    with pytest.raises(DoesNotFit, match=r"does not fit: needs .* RAM"):
        check(plan(small(), tight))
    check(plan(small(), board))


def test_code_in_ram_is_counted_once() -> None:
    """A region where the board wants the copy; none where code lies in RAM anyway."""
    board = load_board("emcraft_sf2")
    moved = replace(board.memory, code_in_ram=True)
    here, there = (plan(small(), b) for b in (board, replace(board, memory=moved)))
    assert CODE_IN_RAM not in rows(here)
    assert there.ram_bytes == here.ram_bytes + rows(there)[CODE_IN_RAM]
    assert there.flash == here.flash
    with pytest.raises(ValueError, match="is there already"):
        replace(moved, shared=True)


def test_table_shows_the_arena_of_a_graph() -> None:
    """Fully connected networks need no second table; the plan file has the placements of both."""
    console = Console(width=150)

    def shown(model: Model) -> str:
        with console.capture() as capture:
            console.print(table(plan(model, load_board("native"))))
        return capture.get()

    assert "layer2_error" in shown(small())
    only_output = shown(small(prefix=4, latent_stored=True))
    assert "\u2588" in next(line for line in only_output.splitlines() if "prefix2_out" in line)
    assert "who lives where" not in shown(random_model(0, method=Method.ER))
    written = json.loads(json.dumps(asdict(plan(small(), load_board("native")))))["placements"]
    assert [Placement(**p) for p in written] == list(place(small()))


def test_tags_are_counted() -> None:
    """With a shared key each record and each snapshot is 8 bytes longer (docs/spec/flash-format.md, "Tags")."""
    model, board = small(), load_board("ast1030_evb")
    assert snapshot_bytes(model, keyed=True) == snapshot_bytes(model) + 8
    granule, size = board.store.granule, model.n_stored
    for keyed, head in ((False, 8), (True, 16)):
        p = plan(model, board, keyed=keyed)
        sample = next(row for row in p.store if row.name == "task samples")
        assert sample.note == f"{model.learning.table} x {-(-(head + size) // granule) * granule} B"
        assert next(row for row in p.ram if row.name == "sample buffer").size == head + size
