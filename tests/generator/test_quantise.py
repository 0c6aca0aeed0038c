# SPDX-License-Identifier: Apache-2.0
"""The fixed-point model: rounding, storage order, constants, hash."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from generator import prune, quantise
from generator.artefacts import Layer, LearningRate, Method, Model
from generator.errors import UserError
from generator.store import model_hash

from . import helpers


def make(n_in: int = 12, classes: int = 4, **sections: Any) -> Model:
    sections.setdefault("model", {"hidden": (20,)})
    c, d = helpers.config(**sections), helpers.dataset(n_in, classes)
    return quantise.quantise(c, d, helpers.float_model(c, d))


def dense_of(layer: Layer) -> np.ndarray:
    """(n_in, n_pad) from panels in storage order."""
    full = np.zeros((layer.n_in, layer.n_pad), dtype=np.int64)
    for p in layer.panels:
        for i in range(layer.n_in):
            for k in range(p.start[i], p.start[i + 1]):
                first = (p.first + p.index[k]) * layer.block
                full[i, first : first + layer.block] = p.weight[k]
    return full


@pytest.mark.parametrize("block", [1, 2, 4])
@pytest.mark.parametrize("hidden", [21, 300, 1030])
def test_panels_hold_the_rounded_weights_in_storage_order(block: int, hidden: int) -> None:
    c = helpers.config(model={"hidden": (hidden,)}, sparsity={"weights": 0.8, "block": block}, dgm={"enabled": True})
    d = helpers.dataset()
    f = helpers.float_model(c, d)
    layer = quantise.quantise(c, d, f).layers[0]
    full = dense_of(layer)
    assert (layer.n_pad % block, layer.n_pad - hidden < block) == (0, True)
    assert not full[:, hidden:].any()
    assert not full[:, :hidden][~f.layers[0].mask].any()
    assert np.abs(full[:, :hidden] / 2.0**layer.fw - f.layers[0].weight).max() <= 0.5 / 2**layer.fw
    assert sum(p.blocks for p in layer.panels) * block == layer.n_pad
    for p in layer.panels:
        assert (p.start[0], p.start[-1], len(p.index)) == (0, p.nnz, p.nnz)
        assert p.index.max() < p.blocks <= 256
        assert int((p.split - p.start[:-1]).sum()) == p.grad
        assert p.grad == min(p.nnz, round((1 - c.gradient_sparsity) * layer.n_in * p.blocks))
        for i in range(layer.n_in):
            for part in (p.index[p.start[i] : p.split[i]], p.index[p.split[i] : p.start[i + 1]]):
                assert (np.diff(part) > 0).all()


def test_first_gradient_mask_is_the_most_salient() -> None:
    c = helpers.config(model={"hidden": (20,)}, sparsity={"weights": 0.5}, dgm={"enabled": True, "sparsity": 0.8})
    d = helpers.dataset()
    f = helpers.float_model(c, d)
    (p,) = quantise.quantise(c, d, f).layers[0].panels
    inside, outside = [], []
    for i in range(12):
        for k in range(p.start[i], p.start[i + 1]):
            (inside if k < p.split[i] else outside).append(f.layers[0].saliency[i, p.index[k]])
    assert (len(inside), len(outside)) == (48, 72)
    assert min(inside) >= max(outside)


def test_without_dgm_every_entry_learns() -> None:
    (p,) = make(sparsity={"weights": 0.8}).layers[0].panels
    assert (p.grad, np.array_equal(p.split, p.start[1:])) == (p.nnz, True)


def test_swap_and_growth_between_tasks() -> None:
    (p,) = make(sparsity={"weights": 0.5}, tdm={"p_intra": 0.3, "p_inter": 0.1}).layers[0].panels
    assert (p.nnz, p.swap, p.grow_inter, p.capacity) == (120, 36, 24, 144)
    (p,) = make(sparsity={"weights": 0.5}, tdm={"enabled": False, "p_inter": 0.1}).layers[0].panels
    assert (p.swap, p.grow_inter) == (0, 0)


def test_layer_kinds() -> None:
    assert [y.sparse for y in make().layers] == [True, False]
    assert [y.sparse for y in make(sparsity={"dense_output": False}).layers] == [True, True]
    dense = make(sparsity={"weights": 0.0})
    assert [y.sparse for y in dense.layers] == [False, False]
    assert dense.learning.tdm is False
    masked = make(sparsity={"weights": 0.0}, dgm={"enabled": True, "sparsity": 0.5})
    assert [y.sparse for y in masked.layers] == [True, False]
    assert (masked.layers[0].panels[0].nnz, masked.layers[0].panels[0].grad) == (240, 120)


def test_dense_weights_and_biases_are_rounded_to_nearest() -> None:
    c = helpers.config(model={"hidden": (20,)}, sparsity={"weights": 0.0})
    d = helpers.dataset()
    f = helpers.float_model(c, d)
    for fixed, real in zip(quantise.quantise(c, d, f).layers, f.layers, strict=True):
        assert fixed.weight is not None
        assert np.abs(fixed.weight / 2.0**fixed.fw - real.weight).max() <= 0.5 / 2**fixed.fw


@pytest.mark.parametrize("scale", [0.01, 1.0, 3.0])
def test_formats_leave_room_to_grow(scale: float) -> None:
    c = helpers.config(model={"hidden": (20, 20)})
    d = helpers.dataset()
    f = helpers.float_model(c, d)
    f = replace(f, layers=tuple(replace(y, weight=y.weight * scale, bias=y.bias + scale) for y in f.layers))
    model = quantise.quantise(c, d, f)
    outputs = quantise.forward(f.layers, d.tasks[0].x_train / 256.0)
    for number, (fixed, real, out) in enumerate(zip(model.layers, f.layers, outputs, strict=True)):
        room = 2.0 ** (fixed.wlog - fixed.fw)
        assert room >= max(2.0, 2.0 * np.abs(real.weight).max())
        assert 2.0 ** (fixed.blog - fixed.fw - fixed.fx) >= 2.0 * np.abs(real.bias).max()
        assert 2.0 ** (15 - fixed.fa) >= 4.0 * np.abs(out).max()
        assert (fixed.l1_in == 0) == (number == 0)


def test_an_initial_model_that_is_too_large_is_refused() -> None:
    c = helpers.config(model={"hidden": (20,)})
    d = helpers.dataset()
    f = helpers.float_model(c, d)
    f = replace(f, layers=tuple(replace(y, weight=y.weight * 1e3) for y in f.layers))
    with pytest.raises(UserError, match="too large for 16 bits"):
        quantise.quantise(c, d, f)


@pytest.mark.parametrize(("rate", "alpha", "batch"), [(0.03, 1.0, 1), (0.03, 0.1, 8), (0.5, 2.0, 1), (0.001, 1.0, 32)])
def test_learning_rates(rate: float, alpha: float, batch: int) -> None:
    m = make(method={"lr": rate, "alpha": alpha, "batch": batch})
    for pair, coefficient in ((m.current, 1.0), (m.distil, alpha), (m.replay, 0.5)):
        assert 16384 <= pair.multiplier <= 32767
        got = pair.multiplier / 2.0**pair.shift * 2.0 ** (14 - m.fg)
        assert got == pytest.approx(rate * coefficient / batch, rel=1 / 16384)
        assert 32768 * pair.multiplier / 2**pair.shift <= 32768.5
    for layer in m.layers:
        assert 1 <= quantise.update_shift(layer, m.fg) <= 30
        assert batch == 1 or quantise.update_shift(layer, m.fg) - m.sacc >= 1
    assert m.sacc == {1: 0, 8: 5, 32: 7}[batch]


@pytest.mark.parametrize(
    ("method", "alpha", "beta", "capacity"),
    [("finetune", 0.0, 0.0, 0), ("er", 0.0, 1.0, 200), ("der++", 1.0, 0.5, 200)],
)
def test_methods(method: str, alpha: float, beta: float, capacity: int) -> None:
    m = make(method={"name": method})
    assert (m.learning.method, m.learning.capacity) == (Method(method), capacity)
    assert (m.learning.alpha, m.learning.beta) == (alpha, beta)
    assert (m.distil == LearningRate(0, 0), m.replay == LearningRate(0, 0)) == (alpha == 0.0, beta == 0.0)


def test_learning_constants() -> None:
    m = make(tdm={"interval": 0.25, "alpha": 0.3}, ddr={"enabled": True, "rho": 0.25}, experiment={"seed": 9})
    y = m.learning
    assert (y.updates_per_epoch, y.update_every_epochs, y.alpha_q8, y.beta_q8) == (4, 1, 77, 256)
    assert (y.ddr, y.rho_permille, y.ddr_until, y.table, y.seed) == (True, 250, 3, 20, 9)


def test_table_leaves_out_what_the_host_has_learnt() -> None:
    c = helpers.config(tasks={"first": "host"}, initial={"train": "first_task"})
    d = helpers.dataset()
    first = replace(d.tasks[0], x_train=np.tile(d.tasks[0].x_train, (3, 1)), y_train=np.tile(d.tasks[0].y_train, 3))
    f = helpers.float_model(helpers.config(), d)
    assert quantise.quantise(c, replace(d, tasks=(first, d.tasks[1])), f).learning.table == 20


def test_hash_is_stable() -> None:
    assert make().model_hash == make().model_hash
    assert len(make().model_hash) == 8


def changed(value: Any) -> Any:
    """Something else of the same type."""
    if isinstance(value, np.ndarray):
        other = value.copy()
        other.flat[0] += 1
        return other
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, LearningRate):
        return LearningRate(value.multiplier, value.shift + 1)
    if isinstance(value, tuple):
        return (*value, 1)
    if value is None:
        return np.zeros(1, dtype=np.int16)
    return next(m for m in type(value) if m is not value)


def test_hash_changes_with_every_field() -> None:
    model = make(sparsity={"weights": 0.5})
    layer = model.layers[0]
    panel = layer.panels[0]
    variants = [
        replace(model, **{f.name: changed(getattr(model, f.name))})
        for f in dataclasses.fields(Model)
        if f.name not in ("layers", "learning", "model_hash")
    ]
    variants += [
        replace(model, learning=replace(model.learning, **{f.name: changed(getattr(model.learning, f.name))}))
        for f in dataclasses.fields(model.learning)
    ]
    variants += [
        replace(model, layers=(replace(layer, **{f.name: changed(getattr(layer, f.name))}), *model.layers[1:]))
        for f in dataclasses.fields(layer)
        if f.name != "panels"
    ]
    variants += [
        replace(
            model,
            layers=(
                replace(layer, panels=(replace(panel, **{f.name: changed(getattr(panel, f.name))}),)),
                model.layers[1],
            ),
        )
        for f in dataclasses.fields(panel)
    ]
    hashes = [model_hash(v) for v in [model, *variants]]
    assert len(set(hashes)) == len(hashes) > 50


def test_sparsity_of_the_recipe() -> None:
    model = make(n_in=256, model={"hidden": (512,)}, dgm={"enabled": True})
    nnz = sum(p.nnz for p in model.layers[0].panels)
    assert nnz == prune.entries_kept(0.92, 256, 512) == 10486


def test_falling_learning_rate() -> None:
    """Linear from 1 to lr_final over the epochs; no table when it stays the same."""
    assert make(method={"epochs": 5, "lr_final": 0.25}).learning.lr_q8 == (256, 208, 160, 112, 64)
    assert make(method={"epochs": 5}).learning.lr_q8 == ()
