# SPDX-License-Identifier: Apache-2.0
"""Primitives, tables and the generator against plain Python integers."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparcl_mcu.reference import loss
from sparcl_mcu.reference.dense import DenseLayer
from sparcl_mcu.reference.layer import Input, Rules
from sparcl_mcu.spec import fixed
from sparcl_mcu.spec.errors import UserError
from sparcl_mcu.spec.prng import Prng
from tests.reference.models import FG, random_model

CORNERS = [-(2**31), -(2**31) + 1, -32769, -32768, -1, 0, 1, 32767, 32768, 2**31 - 1]
INT32 = st.one_of(st.sampled_from(CORNERS), st.integers(-(2**31), 2**31 - 1))


@given(v=INT32, s=st.integers(0, 31))
def test_shift_rounds_half_up(v: int, s: int) -> None:
    """Integers and arrays, against exact fractions."""
    expected = math.floor(Fraction(v, 2**s) + (Fraction(1, 2) if s else 0))
    assert fixed.shift(v, s) == expected
    assert fixed.shift(np.array([v]), s)[0] == expected


@given(v=st.integers(-(2**15), 2**15), s=st.integers(0, 15))
def test_shift_left(v: int, s: int) -> None:
    """Negative shifts multiply."""
    assert fixed.shift(v, -s) == v * 2**s
    assert fixed.shift(np.array([v]), -s)[0] == v * 2**s


@given(v=INT32, k=st.integers(0, 15))
def test_saturation(v: int, k: int) -> None:
    """sat16 and both clamps."""
    assert fixed.sat16(np.array([v]))[0] == max(-32768, min(32767, v))
    assert fixed.clamp_weight(np.array([float(v)]), k)[0] == max(-(2**k), min(2**k - 1, v))
    assert fixed.clamp_bias(np.array([v]), k)[0] == max(-(2**k) + 1, min(2**k - 1, v))


@given(v=st.lists(st.integers(-32768, 32767), min_size=1, max_size=20), spare=st.integers(0, 10**6))
def test_guard(v: list[int], spare: int) -> None:
    """The limit holds, and each round is counted."""
    counters, limit = fixed.Counters(), len(v) + spare
    got = fixed.guard(np.array(v), limit, counters)
    for _ in range(counters.guard_shifts):
        assert sum(map(abs, v)) > limit
        v = [(a + 1) >> 1 for a in v]
    assert got.tolist() == v
    assert sum(map(abs, v)) <= limit


def test_tables() -> None:
    """Corners of the tables."""
    assert (fixed.EXP2[0], fixed.EXP2[128], fixed.EXP2[255]) == (32768, 23170, 16428)
    assert (fixed.LOG2[0], fixed.LOG2[128], fixed.LOG2[255]) == (0, 150, 255)


@given(seed=st.integers(0, 2**32 - 1), counts=st.lists(st.integers(0, 3000), max_size=4))
def test_draw_is_next(seed: int, counts: list[int]) -> None:
    """Many at once are the same numbers as one by one."""
    many, one = Prng(seed), Prng(seed)
    for count in counts:
        assert many.draw(count).tolist() == [one.next() for _ in range(count)]
    assert many.state == one.state


@given(seed=st.integers(0, 2**32 - 1), limits=st.lists(st.integers(1, 2**31 - 1), max_size=50))
def test_draw_below_is_below(seed: int, limits: list[int]) -> None:
    """The same for limited numbers, also at the largest limits."""
    many, one = Prng(seed), Prng(seed)
    assert many.draw_below(np.array(limits, dtype=np.int64)).tolist() == [one.below(n) for n in limits]


@given(
    z=st.lists(st.integers(-32768, 32767), min_size=2, max_size=100),
    fraction=st.integers(6, 14),
    data=st.data(),
)
def test_soft_max_is_close(z: list[int], fraction: int, data: st.DataObject) -> None:
    """Probabilities within 1/256, loss within 3/256 of floating point where it does not saturate."""
    label = data.draw(st.integers(0, len(z) - 1))
    error, cost = loss.cross_entropy(np.array(z), np.arange(len(z)), label, fraction, len(z) + 2)
    real = np.array(z) / 2**fraction
    exact = np.exp(real - real.max())
    one_hot = np.arange(len(z)) == label
    assert np.abs(error[:-2] / 16384 - (exact / exact.sum() - one_hot)).max() < 1 / 256
    assert not error[-2:].any()
    expected = math.log(exact.sum()) + real.max() - real[label]
    # Terms below 2^-15 of the largest are cut off: at most 100 * 2^-15 of the sum.
    if expected < 170:
        assert abs(cost / 256 - expected) < 3 / 256


def test_soft_max_at_full_scale() -> None:
    """The widest spread fits 32 bits and saturates as written."""
    error, cost = loss.cross_entropy(np.array([32767, -32768]), np.arange(2), 1, 0, 2)
    assert error.tolist() == [16384, -16384]
    assert cost == (65535 * 45426) >> 16
    assert 65535 * 23637 + 2**5 < 2**31


@given(st.integers(-32768, 32767), st.integers(-32768, 32767), st.integers(0, 12))
def test_squared_error_corners(z: int, stored: int, fraction: int) -> None:
    """Against integers, with saturation."""
    error = loss.squared_error(np.array([z, 0, 0]), np.array([stored, 0, 0]), fraction, 4)
    product = max(-32767, min(32767, z - stored)) * round(2 / 3 * 2**15)
    expected = (product + 2**fraction) >> (fraction + 1)
    assert error.tolist() == [max(-32768, min(32767, expected)), 0, 0, 0]


@pytest.mark.parametrize("corner", [-32768, 32767])
def test_update_at_full_scale(corner: int) -> None:
    """The largest products and a 30-bit shift stay exact in 32 bits."""
    model = random_model(1, sizes=(3, 4), sparse=(False,), signed=True)
    layer = model.layers[0]
    fg = 30 - layer.fx + layer.fw
    state = DenseLayer(layer, Rules(fg, 0, True, 1))
    x = np.array([-128, 0, 127])
    g = np.full(4, corner)
    prng, twin = Prng(7), Prng(7)
    before = state.stored()
    state.update(Input(x), g, g, prng)
    for i in (0, 2):
        for o in range(4):
            d = (int(g[o]) * int(x[i]) + (twin.next() >> 2)) >> 30
            limit = 2**layer.wlog
            assert state.weight[i, o] == max(-limit, min(limit - 1, int(before[i, o]) - d))
    assert prng.state == twin.state
    assert (state.stored()[1] == before[1]).all()


def test_shift_out_of_range_is_refused() -> None:
    """An update shift of 0 or 31 is no model."""
    layer = random_model(1, sizes=(3, 4), sparse=(False,)).layers[0]
    for su in (0, 31):
        with pytest.raises(UserError, match="update shift"):
            DenseLayer(layer, Rules(su + layer.fw - layer.fx, 0, True, 1))
    DenseLayer(layer, Rules(FG, 0, True, 1))
