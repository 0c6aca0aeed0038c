# SPDX-License-Identifier: Apache-2.0
"""The fixed-point model: rounding, storage order, constants, hash."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from enum import StrEnum
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sparcl_mcu.generator import network, proof, prune, quantise
from sparcl_mcu.generator.store import model_hash
from sparcl_mcu.spec.errors import UserError
from sparcl_mcu.spec.types import (
    Activation,
    FloatLayer,
    FloatModel,
    Layer,
    LearningRate,
    Method,
    Model,
    Op,
    Tensor,
    Window,
)

from . import error_bound, helpers


def make(n_in: int = 12, classes: int = 4, **sections: Any) -> Model:
    sections.setdefault("model", {"hidden": (20,)})
    c, d = helpers.config(**sections), helpers.dataset(n_in, classes)
    return quantise.quantise(c, d, helpers.float_model(c, d))


def test_formats_come_from_samples_of_all_classes() -> None:
    c, d = helpers.config(model={"hidden": (20,)}), helpers.dataset(samples=1000)
    f = helpers.float_model(c, d)
    f = replace(f, layers=tuple(replace(layer, weight=20.0 * layer.weight) for layer in f.layers))
    first = d.tasks[0]
    small = first.x_train // 16
    # Sorted by class, and only the second one uses the whole range.
    x = np.where(np.arange(len(small))[:, np.newaxis] < 1000, small, first.x_train)
    sets = (replace(d, tasks=(replace(first, x_train=values), *d.tasks[1:])) for values in (small, x))
    little, sorted_by_class = (quantise.quantise(c, each, f).layers for each in sets)
    assert all(a.fa > b.fa for a, b in zip(little, sorted_by_class, strict=True))


@pytest.mark.parametrize("block", [1, 2, 4])
@pytest.mark.parametrize("hidden", [21, 300, 1030])
def test_panels_hold_the_rounded_weights_in_storage_order(block: int, hidden: int) -> None:
    c = helpers.config(model={"hidden": (hidden,)}, sparsity={"weights": 0.8, "block": block}, dgm={"enabled": True})
    d = helpers.dataset()
    f = helpers.float_model(c, d)
    layer = quantise.quantise(c, d, f).layers[0]
    assert (layer.n_pad % block, layer.n_pad - hidden < block) == (0, True)
    assert sum(p.places for p in layer.panels) * block == layer.n_pad
    check_panels(layer, f.layers[0], c.gradient_sparsity)


def check_panels(layer: Layer, source: FloatLayer, gradient_sparsity: float) -> None:
    """Weights, and the storage order of docs/spec/numerics.md, "Sparse layers"."""
    full = helpers.full_weight(layer)
    assert not full[~source.mask].any()
    assert np.abs(full / 2.0**layer.fw - source.weight).max() <= 0.5 / 2**layer.fw
    for p in layer.panels:
        assert len(p.start) == layer.lines + 1 == len(p.split) + 1
        assert (p.start[0], p.start[-1], len(p.index)) == (0, p.nnz, p.nnz)
        assert p.index.max() < p.places <= 256
        assert int((p.split - p.start[:-1]).sum()) == p.grad
        assert p.grad == min(p.nnz, max(1, round((1 - gradient_sparsity) * layer.lines * p.places)))
        for i in range(layer.lines):
            for part in (p.index[p.start[i] : p.split[i]], p.index[p.split[i] : p.start[i + 1]]):
                assert (np.diff(part) > 0).all()


@pytest.mark.parametrize("block", [1, 2, 4])
def test_panels_of_a_convolution_split_its_kernel_positions(block: int) -> None:
    random = np.random.default_rng(1)
    c = helpers.config(
        sparsity={"weights": 0.6, "block": block, "dense_input": False}, dgm={"enabled": True, "sparsity": 0.8}
    )
    builder = helpers.Builder(random, (70, 3, 3))
    weight = random.normal(0.0, 0.1, (70 * 9, 6))
    builder.add(helpers.layer(Op.CONV, (0,), (6, 1, 1), weight=weight, window=Window(3, 3)))
    builder.dense(1, 4, Activation.NONE)
    f = FloatModel((70, 3, 3), helpers.masked(c, builder.layers), {})
    layer = quantise.quantise(c, helpers.dataset((3, 3, 70)), f).layers[1]
    assert (layer.op, layer.sparse, layer.n_in, layer.lines) == (Op.CONV, True, 630, layer.n_pad // block)
    assert [(p.first, p.places) for p in layer.panels] == [(0, 256), (256, 256), (512, 118)]
    assert sum(p.nnz for p in layer.panels) == round(0.4 * 630 * layer.lines)
    check_panels(layer, f.layers[0], c.gradient_sparsity)


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
    x = network.channel_first(d.tasks[0].x_train, f.input_shape, 1 / 256)
    outputs = network.forward(f.layers, x)[1:]
    for number, (fixed, real, out) in enumerate(zip(model.layers, f.layers, outputs, strict=True)):
        room = 2.0 ** (fixed.wlog - fixed.fw)
        assert room >= max(2.0, 2.0 * np.abs(real.weight).max())
        assert 2.0 ** (fixed.blog - fixed.fw - fixed.fx) >= 2.0 * np.abs(real.bias).max()
        assert 2.0 ** (15 - fixed.fa) >= 4.0 * np.abs(out).max()
        assert (fixed.l1_in == 0) == (number == 0)
        assert fixed.guard == (model.layers[number + 1].l1_in if number < 2 else 0)


def test_an_initial_model_that_is_too_large_is_refused() -> None:
    c = helpers.config(model={"hidden": (20,)})
    d = helpers.dataset()
    f = helpers.float_model(c, d)
    f = replace(f, layers=tuple(replace(y, weight=y.weight * 1e3) for y in f.layers))
    with pytest.raises(UserError, match="too large for 16 bits"):
        quantise.quantise(c, d, f)


@pytest.mark.parametrize(("rate", "alpha", "batch"), [(0.03, 1.0, 1), (0.03, 0.1, 8), (0.5, 2.0, 1), (0.001, 1.0, 32)])
def test_learning_rates(rate: float, alpha: float, batch: int) -> None:
    m = make(method={"lr": rate, "alpha": alpha, "beta": 0.5, "batch": batch, "shared_draws": 0})
    for pair, coefficient in ((m.current, 1.0), (m.distil, alpha), (m.replay, 0.5)):
        assert 16384 <= pair.multiplier <= 32767
        got = pair.multiplier / 2.0**pair.shift * 2.0 ** (14 - m.fg)
        assert got == pytest.approx(rate * coefficient / batch, rel=1 / 16384)
        assert 32768 * pair.multiplier / 2**pair.shift <= 32768.5
    for layer in m.layers:
        assert 1 <= proof.update_shift(layer, m.fg) <= 30
        assert batch == 1 or proof.update_shift(layer, m.fg) - m.sacc >= 1
    assert m.sacc == {1: 0, 8: 5, 32: 7}[batch]


@pytest.mark.parametrize("draws", [1, 2, 4])
def test_shared_draws_have_one_rate_for_both_terms(draws: int) -> None:
    """alpha and beta are spread over the draws, and the error says how much of it is whose."""
    m = make(method={"lr": 0.03, "alpha": 0.5, "beta": 1.5, "batch": 2, "shared_draws": draws})
    assert m.distil == LearningRate(0, 0)
    got = m.replay.multiplier / 2.0**m.replay.shift * 2.0 ** (14 - m.fg)
    assert got == pytest.approx(0.03 * 2.0 / draws / 2, rel=1 / 16384)
    assert m.learning.distil_share == 8192
    assert (m.learning.passes, m.sacc) == (1 + draws, {1: 2, 2: 3, 4: 4}[draws])


@pytest.mark.parametrize(
    ("method", "alpha", "beta", "shared", "capacity"),
    [
        ({"name": "finetune"}, 0.0, 0.0, 0, 0),
        ({"name": "er"}, 0.0, 1.0, 0, 200),
        ({"name": "der++"}, 1.0, 0.5, 1, 200),
        ({"name": "der++", "beta": 0.0}, 1.0, 0.0, 0, 200),
        ({"name": "der++", "alpha": 0.0}, 0.0, 0.5, 0, 200),
    ],
)
def test_methods(method: dict[str, Any], alpha: float, beta: float, shared: int, capacity: int) -> None:
    """Where there is one replay term there is nothing to share."""
    m = make(method=method)
    assert (m.learning.method, m.learning.capacity) == (Method(method["name"]), capacity)
    assert (m.learning.alpha, m.learning.beta, m.learning.shared_draws) == (alpha, beta, shared)
    assert (m.distil == LearningRate(0, 0)) == (alpha == 0.0 or shared > 0)
    assert (m.replay == LearningRate(0, 0)) == (beta == 0.0)
    assert m.learning.refresh == (capacity > 0)


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
    if isinstance(value, Tensor):
        return replace(value, left=value.left + 1)
    if isinstance(value, str) and not isinstance(value, StrEnum):
        return f"{value}!"
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


# ---------------------------------------------------------------- networks of any kind


def random_model(seed: int, *, frozen: bool) -> tuple[FloatModel, Model, np.ndarray]:
    """A random network, quantised, and the data its formats are calibrated with."""
    random = np.random.default_rng(seed)
    c = helpers.config(
        sparsity={
            "weights": float(random.choice([0.0, 0.5, 0.9])),
            "block": int(random.choice([1, 2, 4])),
            "dense_input": bool(random.integers(2)),
        },
        dgm={"enabled": bool(random.integers(2))},
        method={"batch": int(random.choice([1, 1, 8])), "lr": float(random.choice([0.003, 0.03, 0.2]))},
    )
    d, f = helpers.random_float_model(c, seed, frozen=frozen)
    try:
        return f, quantise.quantise(c, d, f), d.tasks[0].x_train
    except UserError:
        assume(False)  # no formats fit, and it says so
        raise


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), frozen=st.booleans())
def test_logits_are_those_of_the_float_model(seed: int, frozen: bool) -> None:
    """Within what rounding can do, and much closer than that on the whole."""
    f, model, x = random_model(seed, frozen=frozen)
    exact, bound = error_bound.logit_bound(f, model, x)
    fixed = helpers.fixed_forward(model, x)[-1].reshape(exact.shape) / 2.0 ** model.layers[-1].fa
    assert (np.abs(fixed - exact) <= bound + 1e-9).all()
    assert np.abs(fixed - exact).mean() <= 0.02 * max(1.0, float(np.abs(exact).max()))


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), frozen=st.booleans())
def test_what_docs_numerics_says_about_tensors(seed: int, frozen: bool) -> None:
    _, model, x = random_model(seed, frozen=frozen)
    networks = [(model.sample, model.prefix)] if model.prefix else []
    for first, layers in [*networks, (model.input, model.layers)]:
        tensors = [first, *(layer.out for layer in layers)]
        for number, layer in enumerate(layers):
            check_tensor(layer, [tensors[t] for t in layer.inputs])
            readers = [r for r in layers if number + 1 in r.inputs]
            limits = [r.l1_in for r in readers if r.l1_in]
            assert layer.guard == min(limits, default=0)
            assert not (layer.out.padded and any(r.op is Op.DENSE for r in readers))
            if layer.op is Op.CONV:
                check_inside(layer, tensors[layer.inputs[0]])
    for layer, values in zip(model.layers, helpers.fixed_forward(model, x)[1:], strict=True):
        assert -(2**layer.out.bits) <= values.min()
        assert values.max() < 2**layer.out.bits
        assert values.min() >= 0 or not layer.out.rectified


def check_tensor(layer: Layer, inputs: list[Tensor]) -> None:
    out = layer.out
    if layer.op in (Op.MAX_POOL, Op.AVG_POOL, Op.PAD):
        assert (out.fraction, out.bits) == (inputs[0].fraction, inputs[0].bits)
    passes = layer.op in (Op.MAX_POOL, Op.PAD) and inputs[0].rectified
    assert out.rectified == (layer.relu or passes)
    if layer.activation is Activation.RELU6:
        assert 6 * 2**out.fraction < 2**out.bits
    if layer.weighted:
        assert layer.fx == inputs[0].fraction
        assert layer.fw + layer.fx >= out.fraction >= 0


def check_inside(layer: Layer, source: Tensor) -> None:
    """A convolution reads no further than the margins of its input, and each side is used."""
    w = layer.window
    assert w is not None
    assert (w.top <= source.top, w.left <= source.left) == (True, True)
    assert (layer.out.height - 1) * w.stride_h + w.kernel_h - w.top <= source.height + source.bottom
    assert (layer.out.width - 1) * w.stride_w + w.kernel_w - w.left <= source.width + source.right


def test_order_of_a_sample() -> None:
    """Dense weights of a sample with channels belong to the channel first order."""
    c, d = helpers.config(sparsity={"weights": 0.0}), helpers.dataset((2, 3, 2))
    builder = helpers.Builder(np.random.default_rng(0), (2, 2, 3))
    builder.dense(0, 4, Activation.NONE)
    f = FloatModel((2, 2, 3), tuple(builder.layers), {})
    model = quantise.quantise(c, d, f)
    assert [layer.op for layer in model.layers] == [Op.PAD, Op.DENSE]
    x = d.tasks[0].x_train[:1]
    tensors = helpers.fixed_forward(model, x)
    assert tensors[1].ravel().tolist() == x.reshape(2, 3, 2).transpose(2, 0, 1).ravel().tolist()


def latent_of(scale: float, activation: Activation) -> Model:
    c, d = helpers.config(sparsity={"weights": 0.0}), helpers.dataset((4, 4, 1), samples=50)
    builder = helpers.Builder(np.random.default_rng(0), (1, 4, 4))
    weight = np.random.default_rng(1).normal(0.0, scale, (9, 5))
    builder.add(helpers.layer(Op.CONV, (0,), (5, 2, 2), activation, weight, window=Window(3, 3)))
    builder.dense(1, 4, Activation.NONE)
    f = FloatModel((1, 4, 4), tuple(builder.layers), {}, frozen=1)
    model = quantise.quantise(c, d, f)
    x = d.tasks[0].x_train
    exact = network.forward(f.layers[:1], network.channel_first(x, (1, 4, 4), 1 / 256))[-1]
    assert model.latent is not None
    limit = (127 if model.latent_signed else 255) / 2.0**model.latent.fraction
    values = exact[exact != 0.0]
    assert np.mean(np.abs(values) > limit) <= 0.006
    return model


@pytest.mark.parametrize("scale", [0.05, 1.0, 20.0])
def test_latent_is_8_bit_and_hardly_clipped(scale: float) -> None:
    rectified, signed = (latent_of(scale, a) for a in (Activation.RELU, Activation.NONE))
    assert (rectified.latent_signed, signed.latent_signed) == (False, True)
    for model in (rectified, signed):
        assert model.latent is not None
        assert (model.input, model.input_signed) == (model.latent, model.latent_signed)
        assert (model.latent.channels, model.latent.height, model.latent.width) == (5, 2, 2)
        assert model.layers[0].fx == model.latent.fraction
        assert (model.layers[0].l1_in, model.layers[0].l1_err, model.prefix[0].guard) == (0, 0, 0)


def test_frozen_layers_do_not_count_for_learning() -> None:
    """Masks of frozen layers would never move."""
    c = helpers.config(sparsity={"weights": 0.5, "dense_input": False, "dense_output": False}, dgm={"enabled": True})
    d = helpers.dataset()
    builder = helpers.Builder(np.random.default_rng(0), (12, 1, 1))
    builder.dense(0, 8, Activation.RELU)
    builder.dense(1, 4, Activation.NONE)
    masked = helpers.masked(c, builder.layers)
    open_output = helpers.layer(Op.DENSE, (1,), (4, 1, 1), weight=builder.layers[1].weight)
    model = quantise.quantise(c, d, FloatModel((12, 1, 1), (masked[0], open_output), {}, frozen=1))
    assert (model.learning.tdm, model.learning.dgm) == (False, False)
    (panel,) = model.prefix[0].panels
    assert (panel.nnz, panel.grad, panel.swap, panel.grow_inter) == (48, 48, 0, 0)


def convolutions(rate: float, pool: Op, *, batch: int = 1) -> Model:
    """Two convolutions, pooling and a dense layer on a picture of 12 x 12."""
    c = helpers.config(method={"lr": rate, "batch": batch}, sparsity={"weights": 0.5})
    random = np.random.default_rng(0)
    layers = []
    for k, (channels, n_out) in enumerate(((1, 8), (8, 16))):
        weight = random.normal(0.0, np.sqrt(2 / (9 * channels)), (9 * channels, n_out))
        shape = (n_out, 12, 12)
        layers.append(helpers.layer(Op.CONV, (k,), shape, Activation.RELU, weight, window=Window(3, 3, 1, 1, 1, 1)))
    side = 3 if pool is Op.MAX_POOL else 12
    layers.append(helpers.layer(pool, (2,), (16, 12 // side, 12 // side), window=Window(side, side, side, side)))
    weight = random.normal(0.0, 0.1, (16 * (12 // side) ** 2, 4))
    layers.append(helpers.layer(Op.DENSE, (3,), (4, 1, 1), weight=weight))
    return quantise.quantise(c, helpers.dataset((12, 12, 1)), FloatModel((1, 12, 12), helpers.masked(c, layers), {}))


def test_active_errors_of_a_channel() -> None:
    assert [y.active for y in convolutions(0.03, Op.MAX_POOL).layers if y.op is Op.CONV] == [144, 16]
    assert [y.active for y in convolutions(0.03, Op.AVG_POOL).layers if y.op is Op.CONV] == [144, 144]


@pytest.mark.parametrize("rate", [0.001, 0.03, 0.5])
@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("pool", [Op.MAX_POOL, Op.AVG_POOL])
def test_clamps_of_a_convolution(rate: float, batch: int, pool: Op) -> None:
    """The greatest that hold; errors as large as on the initial data pass them."""
    model = convolutions(rate, pool, batch=batch)
    largest = proof.magnitudes(model.layers, model.input_signed)
    for number, layer in enumerate(model.layers):
        if layer.op is not Op.CONV:
            continue
        x = largest[layer.inputs[0]]
        assert proof.update_shift(layer, model.fg) - model.sacc >= 1
        wider = replace(layer, glog=layer.glog + 1)
        assert layer.glog == 15 or not all(y.holds for y in proof.update_proof(model, "", wider, x))
        if layer.kc:
            less = replace(layer, kc=layer.kc - 1)
            assert not all(y.holds for y in proof.score_proof(model, "", less, x))
        if number > 1:
            wider = replace(layer, elog=layer.elog + 1)
            layers = (*model.layers[:number], wider, *model.layers[number + 1 :])
            assert layer.elog == 15 or not all(y.holds for y in proof.error_proof("", layers, number))
            assert 2.0 ** (layer.elog + layer.ke - 14) >= (0.02 if pool is Op.AVG_POOL else 0.2)
        else:
            assert (layer.ke, layer.elog, layer.l1_err) == (0, 15, 0)


def test_small_errors_keep_their_bits() -> None:
    """Average pooling spreads the error of an output over many positions: a shift would leave nothing of it."""
    maxima, mean = convolutions(0.03, Op.MAX_POOL), convolutions(0.03, Op.AVG_POOL)
    assert mean.layers[2].ke < maxima.layers[2].ke
    assert mean.layers[2].kg == 0
