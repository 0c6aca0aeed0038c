# SPDX-License-Identifier: Apache-2.0
"""The overflow proof against full-scale corners, in Python's unbounded integers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from generator import quantise
from generator.artefacts import Layer, Model
from generator.errors import UserError

from . import helpers

INT32 = range(-(2**31), 2**31)


def shift(v: int, s: int) -> int:
    """docs/numerics.md, with what it adds checked to fit too."""
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
    largest = quantise.largest_input(model.signed) if number == 0 else 32767
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
    su = quantise.update_shift(layer, model.fg)
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
                total, cut = 3 * batch * shift(g * x, model.sacc), su - model.sacc
                assert total in INT32
                assert total + (1 << cut) - 1 in INT32
            shift(total, cut)
            for w in (-(1 << layer.wlog), (1 << layer.wlog) - 1):
                assert w - ((total + (1 << cut) - 1) >> cut) in INT32
        b = shift(g * (1 if batch == 1 else 3 * batch), model.fg - layer.fw - layer.fx)
        for limit in (-(1 << layer.blog) + 1, (1 << layer.blog) - 1):
            assert limit - b in INT32


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.filter_too_much])
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
    lines = quantise.overflow_proof(model)
    assert {"hidden 0", "output", "loss"} == {line.layer for line in lines}
    forward = next(line for line in lines if line.accumulator.startswith("forward"))
    assert forward.how == "static"
    assert forward.worst > 0.9 * forward.limit
    assert "norm guard" in quantise.proof_text(lines)


@pytest.mark.parametrize(
    "change",
    [{"blog": 30}, {"l1_err": 2**18}, {"l1_in": 2**18}, {"fx": 30}, {"fw": 31}],
    ids=["bias", "error norm", "input norm", "fx", "fw"],
)
def test_a_format_that_overflows_is_refused(change: dict[str, int]) -> None:
    model = make(256, (512,), signed=False, fraction=8, scale=1.0)
    broken = replace(model, layers=(model.layers[0], replace(model.layers[1], **change)))
    with pytest.raises(UserError):
        quantise.overflow_proof(broken)


def test_many_inputs_lower_the_weight_bits() -> None:
    small, large = (make(n, (8,), signed=False, fraction=8, scale=1.0).layers[0] for n in (64, 784))
    assert (small.wlog, small.fw) == (15, 13)
    assert large.wlog < 15
    assert large.wlog - large.fw == 2
