# SPDX-License-Identifier: Apache-2.0
"""Prune, grow and select keep counts, order, zero new weights and tie-breaking."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sparcl_mcu.reference import mask
from sparcl_mcu.reference.dense import DenseLayer, Factors
from sparcl_mcu.reference.sparse import PanelMask, grown_best, grown_random, pruned, selected
from sparcl_mcu.reference.state import State
from sparcl_mcu.spec.prng import Prng
from sparcl_mcu.spec.types import Growth
from tests.reference.models import random_model

N_IN = 9


def panel_of(seed: int, density: float = 0.5) -> PanelMask:
    """A random panel, by input or by output."""
    model = random_model(seed, sizes=(N_IN, 12, 3), density=density)
    return PanelMask.of(model.layers[0].panels[0])


def keys(panel: PanelMask) -> list[tuple[int, bool, int]]:
    """Storage order as sortable triples."""
    rows = zip(panel.lines.tolist(), (~panel.chosen).tolist(), panel.index.tolist(), strict=True)
    return list(rows)


def check(panel: PanelMask) -> None:
    """Storage order, no entry twice, start and split consistent."""
    assert keys(panel) == sorted(keys(panel))
    assert len({(i, o) for i, _, o in keys(panel)}) == panel.entries
    start, split = panel.start(), panel.split()
    assert start[-1] == panel.entries
    for i in range(panel.n_lines):
        assert (panel.lines[start[i] : start[i + 1]] == i).all()
        assert panel.chosen[start[i] : split[i]].all()
        assert not panel.chosen[split[i] : start[i + 1]].any()


@given(seed=st.integers(0, 1000), levels=st.integers(1, 5), share=st.floats(0, 1))
def test_prune(seed: int, levels: int, share: float) -> None:
    """The least go, the earlier of equals, the rest stays as it was."""
    panel = panel_of(seed)
    score = np.random.default_rng(seed).integers(0, levels, size=panel.entries)
    count = int(share * panel.entries)
    gone = {k for _, k in sorted((int(s), k) for k, s in enumerate(score))[:count]}
    after = pruned(panel, score, count)
    assert keys(after) == [key for k, key in enumerate(keys(panel)) if k not in gone]
    check(after)


@given(seed=st.integers(0, 1000), levels=st.integers(1, 5), share=st.floats(0, 1))
def test_select(seed: int, levels: int, share: float) -> None:
    """The highest are chosen, the earlier of equals."""
    panel = panel_of(seed)
    score = np.random.default_rng(seed).integers(0, levels, size=panel.entries)
    count = int(share * panel.entries)
    best = {k for _, k in sorted((-int(s), k) for k, s in enumerate(score))[:count]}
    after = selected(panel, score, count)
    expected = [(i, k not in best, o) for k, (i, _, o) in enumerate(keys(panel))]
    assert keys(after) == sorted(expected)
    check(after)


@given(seed=st.integers(0, 1000), share=st.floats(0, 1))
def test_grow_random(seed: int, share: float) -> None:
    """Any number up to all free places; two draws for each."""
    panel = panel_of(seed)
    count = int(share * (panel.n_lines * panel.constants.places - panel.entries))
    prng, twin = Prng(seed), Prng(seed)
    after = grown_random(panel, count, prng)
    twin.draw(2 * count)
    assert prng.state == twin.state
    assert after.entries == panel.entries + count
    assert set(keys(panel)) <= set(keys(after))
    assert int(after.chosen.sum()) == int(panel.chosen.sum()) + count
    check(after)


@given(seed=st.integers(0, 1000), levels=st.integers(1, 5), share=st.floats(0, 1))
def test_grow_best(seed: int, levels: int, share: float) -> None:
    """The best free places, ties by line, then place."""
    panel = panel_of(seed)
    places = panel.constants.places
    score = np.random.default_rng(seed).integers(0, levels, size=(panel.n_lines, places))
    used = {(i, o) for i, _, o in keys(panel)}
    free = [(-int(score[i, o]), i, o) for i in range(panel.n_lines) for o in range(places) if (i, o) not in used]
    count = int(share * len(free))
    after = grown_best(panel, count, score)
    new = {(i, o) for i, _, o in keys(after)} - used
    assert new == {(i, o) for _, i, o in sorted(free)[:count]}
    check(after)


@settings(max_examples=20)
@given(
    seed=st.integers(0, 1000),
    growth=st.sampled_from(Growth),
    block=st.sampled_from([1, 2, 4]),
    dgm=st.booleans(),
)
def test_update_keeps_the_budget(seed: int, growth: Growth, block: int, dgm: bool) -> None:
    """After growth between tasks an update brings NNZ and GRAD back; what is new starts at zero."""
    model = random_model(
        seed, sizes=(N_IN, 16, 3), block=block, growth=growth, dgm=dgm, p_intra=0.4, p_inter=0.3, density=0.5
    )
    state = State.initial(model)
    state.task = 1
    mask.grow_between_tasks(state)
    assert state.grown
    layer = cast(DenseLayer, state.layers[0])
    panel = layer.panels[0]
    assert panel.entries == panel.constants.capacity
    check(panel)
    before = layer.weight.copy()
    mask.grow_between_tasks(state)
    assert layer.panels[0].entries == panel.constants.capacity
    rng = np.random.default_rng(seed)
    for number in range(3):
        x, e = rng.integers(0, 256, N_IN), rng.integers(-16384, 16384, model.layers[0].n_pad)
        kind = state.captured.current if number else state.captured.replay
        kind.append((Factors(x, e), None))
    mask.update(state)
    after = layer.panels[0]
    assert after.entries == after.constants.nnz
    assert int(after.chosen.sum()) == (after.constants.grad if dgm else after.constants.nnz)
    assert not state.grown
    assert not state.captured.current
    check(after)
    stored = np.zeros_like(before, dtype=np.bool_)
    stored.reshape(-1)[layer.entries(after)] = True
    assert not layer.weight[~stored].any()
    changed = layer.weight != before
    assert not layer.weight[changed].any()


def test_regrown_entry_starts_at_zero() -> None:
    """An entry that is pruned and grown again at once loses its weight."""
    model = random_model(4, sizes=(2, 2, 2), block=1, density=1.0, p_intra=1.0, p_inter=0.0)
    state = State.initial(model)
    layer = cast(DenseLayer, state.layers[0])
    assert layer.weight.any()
    mask.update(state)
    assert layer.panels[0].entries == 4
    assert not layer.weight.any()


def test_schedule() -> None:
    """Positions, windows, epochs without an update, and none at the very end."""
    model = random_model(0, epochs=4, updates_per_epoch=3, capture=4)
    state = State.initial(model)
    state.table.ids = list(range(10))

    def due() -> list[int]:
        found = []
        for pos in range(1, 11):
            state.pos = pos
            if mask.is_due(state):
                found.append(pos)
        return found

    def windows() -> list[int]:
        found = []
        for pos in range(10):
            state.pos = pos
            if mask.in_window(state):
                found.append(pos)
        return found

    assert due() == [3, 6, 10]
    assert windows() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    state.epoch = 3
    assert due() == [3, 6]
    assert windows() == [0, 1, 2, 3, 4, 5]
    learning = replace(model.learning, updates_per_epoch=1, update_every_epochs=2)
    state.model = replace(model, learning=learning)
    state.epoch = 1
    assert due() == [10]
    assert windows() == [6, 7, 8, 9]
    state.epoch = 2
    assert due() == []
    assert windows() == []
    state.epoch = 3
    assert due() == []
