# SPDX-License-Identifier: Apache-2.0
"""The overflow proof against full-scale corners, in Python's unbounded integers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from sparcl_mcu.generator import layout, network, proof, quantise
from sparcl_mcu.spec.errors import UserError
from sparcl_mcu.spec.types import Activation, FloatModel, Layer, Model, Op, Window, needs_error

from . import helpers

INT32 = range(-(2**31), 2**31)


def shift(v: int, s: int) -> int:
    """docs/spec/numerics.md, with what it adds checked to fit too."""
    if s <= 0:
        return v << -s
    assert v + (1 << (s - 1)) in INT32
    return (v + (1 << (s - 1))) >> s


def make(n_in: int, hidden: tuple[int, ...], signed: bool, fraction: int, scale: float, **method: Any) -> Model:
    c = helpers.config(model={"hidden": hidden}, method=method, dgm={"enabled": True})
    d = helpers.dataset(n_in, signed=signed, fraction=fraction)
    f = helpers.float_model(c, d)
    f = replace(f, layers=tuple(replace(y, weight=y.weight * scale, bias=y.bias + 0.1 * scale) for y in f.layers))
    return quantise.quantise(c, d, f)


def test_both_errors_of_a_shared_draw_fit_whatever_their_shares() -> None:
    lines = {line.accumulator: line for line in proof.overflow_proof(make(20, (8,), False, 8, 1.0))}
    line = lines["shared draw: e'*share + e''*rest, rounded"]
    for share in (0, 1, 16384, 32767, 32768):
        for a in (-32768, 32767):
            for b in (-32768, 32767):
                blended = a * share + b * (32768 - share)
                assert abs(blended) + (1 << 14) <= line.worst
                assert shift(blended, 15) in range(-32768, 32768)
    assert line.holds
    assert not any(
        "shared" in y.accumulator for y in proof.overflow_proof(make(20, (8,), False, 8, 1.0, shared_draws=0))
    )


def corner_inputs(layer: Layer, largest: int, signs: np.random.Generator) -> list[int]:
    """Full-scale inputs within the norm guard's limit, if there is one."""
    left = layer.l1_in or layer.n_in * largest
    result = []
    for _ in range(layer.n_in):
        x = min(left, largest)
        left -= x
        result.append(x if signs.random() < 0.5 else -x)
    return result


def check_layer(model: Model, number: int, layer: Layer, random: np.random.Generator) -> None:
    largest = proof.largest_input(model.signed) if number == 0 else 32767
    top = 1 << layer.wlog
    for agree in (True, False):
        x = corner_inputs(layer, largest, random)
        weights = [(-top if v >= 0 else top - 1) if agree else int(random.choice([-top, top - 1])) for v in x]
        for bias in ((1 << layer.blog) - 1, -(1 << layer.blog) + 1):
            acc = bias
            for w, v in zip(weights, x, strict=True):
                acc += w * v
                assert acc in INT32
            shift(acc, layer.fw + layer.fx - layer.fa)
    if number:
        shift(layer.l1_err * -top, layer.fw)
        shift(layer.l1_err * top, layer.fw)
    check_update(model, layer, largest)


def check_update(model: Model, layer: Layer, largest: int) -> None:
    """g, one step of a weight, a whole batch, and the bias, with g and x at their corners."""
    su = proof.update_shift(layer, model.fg)
    for rate in (model.current, model.distil, model.replay):
        for e in (-32768, 32767):
            shift(e * rate.multiplier, rate.shift)
    batch = model.learning.batch
    for g in (-32768, 32767):
        for x in (-largest, largest):
            if batch == 1:
                assert g * x + (1 << su) - 1 in INT32
                total, cut = g * x, su
            else:
                total, cut = model.learning.passes * batch * shift(g * x, model.sacc), su - model.sacc
                assert total in INT32
                assert total + (1 << cut) - 1 in INT32
            shift(total, cut)
            for w in (-(1 << layer.wlog), (1 << layer.wlog) - 1):
                assert w - ((total + (1 << cut) - 1) >> cut) in INT32
        b = shift(g * (1 if batch == 1 else model.learning.passes * batch), model.fg - layer.fw - layer.fx)
        for limit in (-(1 << layer.blog) + 1, (1 << layer.blog) - 1):
            assert limit - b in INT32


@settings(max_examples=60, suppress_health_check=[HealthCheck.filter_too_much])
@given(
    n_in=st.sampled_from([1, 2, 48, 64, 256, 784, 3000]),
    hidden=st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple),
    signed=st.booleans(),
    fraction=st.integers(2, 8),
    scale=st.sampled_from([0.1, 1.0, 8.0]),
    lr=st.floats(0.001, 0.2),
    batch=st.sampled_from([1, 2, 8, 16]),
    alpha=st.sampled_from([0.0, 0.1, 1.0, 2.0]),
    seed=st.integers(0, 99),
)
def test_full_scale_corners_stay_within_int32(
    n_in: int,
    hidden: tuple[int, ...],
    signed: bool,
    fraction: int,
    scale: float,
    lr: float,
    batch: int,
    alpha: float,
    seed: int,
) -> None:
    try:
        model = make(n_in, hidden, signed, fraction, scale, lr=lr, batch=batch, alpha=alpha)
    except UserError:
        assume(False)  # no formats fit, and it says so
    random = np.random.default_rng(seed)
    for number, layer in enumerate(model.layers):
        check_layer(model, number, layer, random)


def test_proof_covers_every_layer_and_is_tight() -> None:
    model = make(256, (512,), signed=False, fraction=8, scale=1.0)
    lines = proof.overflow_proof(model)
    assert {"layer 0 (dense1)", "layer 1 (output)", "loss"} == {line.layer for line in lines}
    forward = next(line for line in lines if line.accumulator.startswith("forward"))
    assert forward.how == "static"
    assert forward.worst > 0.9 * forward.limit
    assert "norm guard" in proof.proof_text(lines)


@pytest.mark.parametrize(
    "change",
    [{"blog": 30}, {"l1_err": 2**18}, {"l1_in": 2**18}, {"fx": 30}, {"fw": 31}],
    ids=["bias", "error norm", "input norm", "fx", "fw"],
)
def test_a_format_that_overflows_is_refused(change: dict[str, int]) -> None:
    model = make(256, (512,), signed=False, fraction=8, scale=1.0)
    broken = replace(model, layers=(model.layers[0], replace(model.layers[1], **change)))
    with pytest.raises(UserError):
        proof.overflow_proof(broken)


@pytest.mark.parametrize("limit", ["l1_in", "l1_err"])
def test_a_norm_guard_that_would_not_end_is_refused(limit: str) -> None:
    """Halving leaves a 1 as it is, so that a limit below the number of values is never reached."""
    model = make(12, (16,), signed=False, fraction=8, scale=1.0)
    layer = model.layers[1]
    count = layer.n_in if limit == "l1_in" else layer.n_pad
    for value, holds in ((count, True), (count - 1, False)):
        changed = replace(model, layers=(model.layers[0], replace(layer, **{limit: value})))
        if holds:
            proof.overflow_proof(changed)
            continue
        with pytest.raises(UserError, match="all 1"):
            proof.overflow_proof(changed)


def test_many_inputs_lower_the_weight_bits() -> None:
    small, large = (make(n, (8,), signed=False, fraction=8, scale=1.0).layers[0] for n in (64, 784))
    assert (small.wlog, small.fw) == (15, 13)
    assert large.wlog < 15
    assert large.wlog - large.fw == 2


# ---------------------------------------------------------------- convolutions


def random_model(seed: int, *, frozen: bool = False) -> Model:
    random = np.random.default_rng(seed)
    c = helpers.config(
        sparsity={"weights": float(random.choice([0.0, 0.7])), "dense_input": False},
        dgm={"enabled": True},
        tdm={"capture": int(random.choice([1, 16]))},
        method={"batch": int(random.choice([1, 4, 16])), "lr": float(random.choice([0.001, 0.03, 0.5]))},
    )
    d, f = helpers.random_float_model(c, seed, frozen=frozen)
    try:
        return quantise.quantise(c, d, f)
    except UserError:
        assume(False)  # no formats fit, and it says so
        raise


@settings(max_examples=60, suppress_health_check=[HealthCheck.filter_too_much])
@given(seed=st.integers(0, 10**6))
def test_full_scale_corners_of_convolutions_stay_within_int32(seed: int) -> None:
    model = random_model(seed)
    largest = proof.magnitudes(model.layers, model.input_signed)
    errors = needs_error(model.layers)
    for number, layer in enumerate(model.layers):
        if layer.op is Op.CONV:
            x = largest[layer.inputs[0]]
            check_sums(layer, x)
            if errors[layer.inputs[0]]:
                check_error(layer, proof.reaching_errors(model.layers, number))
            check_steps(model, layer, x)
            check_scores(model, layer, x)
        if layer.op is Op.ADD:
            fractions = [model.tensor(t).fraction for t in layer.inputs]
            values = [shift(largest[t], fx - layer.fa) for t, fx in zip(layer.inputs, fractions, strict=True)]
            assert sum(values) in INT32
        if layer.op is Op.AVG_POOL:
            assert layer.window is not None
            assert 2 * layer.window.area * largest[layer.inputs[0]] + layer.window.area in INT32


def check_sums(layer: Layer, x: int) -> None:
    """Forward, all values at their corners."""
    top = 1 << layer.wlog
    for sign in (-1, 1):
        for bias in ((1 << layer.blog) - 1, -(1 << layer.blog) + 1):
            acc = bias + sign * layer.n_in * top * x
            assert acc in INT32
            shift(acc, layer.fw + layer.fx - layer.fa)


def check_error(layer: Layer, reach: int) -> None:
    """The error of the input, likewise."""
    for sign in (-1, 1):
        top, e = 1 << layer.wlog, sign * (1 << layer.elog)
        shift(sign * 32768 - (sign > 0), layer.ke)
        assert reach * top * e in INT32
        shift(reach * top * e, layer.fw - layer.ke)


def check_steps(model: Model, layer: Layer, x: int) -> None:
    su, batch = proof.update_shift(layer, model.fg), model.learning.batch
    assert 1 <= su <= 30
    for rate in (model.current, model.distil, model.replay):
        for e in (-32768, 32767):
            shift(e * rate.multiplier, rate.shift + layer.kg)
    for g in (-(1 << layer.glog), (1 << layer.glog) - 1):
        total = layer.active * g * x
        assert total in INT32
        cut = su
        if batch > 1:
            total, cut = model.learning.passes * batch * shift(total, model.sacc), su - model.sacc
        assert cut >= 1
        assert total + (1 << cut) - 1 in INT32
        step = (total + (1 << cut) - 1) >> cut
        assert all(w - step in INT32 for w in (-(1 << layer.wlog), (1 << layer.wlog) - 1))
        b = shift(
            (1 if batch == 1 else model.learning.passes * batch) * layer.active * g,
            model.fg - layer.kg - layer.fw - layer.fx,
        )
        assert b in INT32
        assert all(sign * ((1 << layer.blog) - 1) - b in INT32 for sign in (-1, 1))


def check_scores(model: Model, layer: Layer, x: int) -> None:
    if not layer.sparse:
        return
    learning = model.learning
    total = layer.active * shift(-32768, layer.kc) * x
    assert total in INT32
    gradient = learning.capture * shift(total, 8 - layer.kc)
    assert gradient in INT32
    assert abs(gradient) << max(0, -proof.unit_shift(layer, learning.capture)) < 2**32


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6))
def test_bounds_on_active_errors_hold(seed: int) -> None:
    """Errors of the float network that are not 0: in one channel of a convolution's output, and those that reach one
    value of its input."""
    model = random_model(seed)
    c = helpers.config()
    _, f = helpers.random_float_model(c, seed)
    net = layout.lay_out(f.layers, f.input_shape, sample=True)
    random = np.random.default_rng(seed)
    x = random.normal(0.0, 1.0, (4, *f.input_shape))
    tensors = network.forward(net.layers, x)
    errors = network.backward(net.layers, tensors, random.normal(0.0, 1.0, tensors[-1].shape))
    for number, layer in enumerate(net.layers):
        if layer.op is not Op.CONV:
            continue
        found = errors[number + 1] != 0.0
        assert found.sum(axis=(2, 3)).max() <= model.layers[number].active
        ones = replace(layer, weight=np.ones_like(layer.weight), inputs=(0,), activation=Activation.NONE)
        source = tensors[layer.inputs[0]]
        reached = network.backward([ones], [source, found.astype(float)], found.astype(float))[0]
        assert reached.max() <= proof.reaching_errors(model.layers, number) + 1e-9


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_frozen_layers_are_proved_too(seed: int) -> None:
    model = random_model(seed, frozen=True)
    lines = proof.overflow_proof(model)
    assert all(line.holds for line in lines)
    names = {line.layer for line in lines}
    for number, layer in enumerate(model.prefix):
        assert not layer.weighted or f"frozen layer {number} ({layer.name or layer.op})" in names


@pytest.mark.parametrize(
    "change", [{"wlog": 14}, {"elog": 15}, {"glog": 15}, {"kg": 15}, {"blog": 31}, {"active": 2**17}]
)
def test_a_convolution_that_overflows_is_refused(change: dict[str, int]) -> None:
    c = helpers.config(sparsity={"weights": 0.0})
    random = np.random.default_rng(0)
    builder = helpers.Builder(random, (1, 12, 12))
    window = Window(3, 3, 1, 1, 1, 1)
    for k, n_out in enumerate((32, 32)):
        weight = random.normal(0.0, 0.1, (9 * (32 if k else 1), n_out))
        builder.add(helpers.layer(Op.CONV, (k,), (n_out, 12, 12), weight=weight, window=window))
    builder.dense(2, 4, Activation.NONE)
    f = FloatModel((1, 12, 12), tuple(builder.layers), {})
    model = quantise.quantise(c, helpers.dataset((12, 12, 1)), f)
    broken = replace(model.layers[2], **change)
    with pytest.raises(UserError):
        proof.overflow_proof(replace(model, layers=(*model.layers[:2], broken, *model.layers[3:])))
