# SPDX-License-Identifier: Apache-2.0
"""What the step means: gradients, batches, data removal, reservoir."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sparcl_mcu.reference import loss
from sparcl_mcu.reference.layer import Input, WeightedLayer
from sparcl_mcu.reference.network import learning_network
from sparcl_mcu.reference.replay import Replay, Sample, Slot
from sparcl_mcu.reference.state import State, Table
from sparcl_mcu.reference.task import logarithmic, removal_count
from sparcl_mcu.spec.prng import Prng
from sparcl_mcu.spec.types import DdrScore, Layer, Model
from tests.reference.models import LEARNING, random_model, random_samples

Array = NDArray[np.float64]
RATE = 0.05
EMPTY = np.zeros(1, dtype=np.uint8)


def float_gradients(model: Model, x: Array, label: int) -> tuple[list[Array], list[Array]]:
    """Gradients of the cross-entropy over all classes by textbook back-propagation."""
    state = State.initial(model)
    weights = [s.weight / 2.0**s.layer.fw for _, s in state.network.weighted]
    biases = [s.bias / 2.0 ** (s.layer.fw + s.layer.fx) for _, s in state.network.weighted]
    inputs = [x]
    for number, (w, b) in enumerate(zip(weights, biases, strict=True)):
        z = inputs[-1] @ w + b
        inputs.append(np.maximum(z, 0) if model.layers[number].relu else z)
    e = np.exp(inputs[-1] - inputs[-1].max())
    e /= e.sum()
    e[label] -= 1
    dw, db = [], []
    for number in reversed(range(len(weights))):
        dw.append(np.outer(inputs[number], e))
        db.append(e)
        e = (weights[number] @ e) * (inputs[number] > 0)
    return dw[::-1], db[::-1]


def stored_and_chosen(state: WeightedLayer) -> NDArray[np.bool_]:
    """Where the gradient mask is, (n_in, n_pad)."""
    result = np.ones(state.weight.shape, dtype=np.bool_)
    if state.layer.sparse:
        result[...] = False
        for panel in state.panels:
            result.reshape(-1)[state.entries(panel)[panel.chosen]] = True
    return result


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_update_is_the_gradient(seed: int, batch: int) -> None:
    """With rounding to nearest an update is learning rate times gradient, to within rounding."""
    model = random_model(seed, sizes=(12, 16, 10, 4), stochastic=False, batch=batch, learning_rate=RATE, fraction=11)
    state = State.initial(model)
    xs, labels = random_samples(model, range(4), batch, seed)
    before = [(s.weight.copy(), s.bias.copy()) for _, s in state.network.weighted]
    dw: list[Array] = [np.zeros_like(s.weight) for _, s in state.network.weighted]
    db: list[Array] = [np.zeros(s.bias.size) for _, s in state.network.weighted]
    for x, label in zip(xs, labels.tolist(), strict=True):
        trace = state.network.forward(x.astype(np.int64), state.counters)
        e, _ = loss.cross_entropy(trace.z, np.arange(4), label, model.layers[-1].fa, 4)
        state.network.backward(trace, e, model.current, state.rounding, state.counters, batch=batch > 1)
        one_w, one_b = float_gradients(model, x / 2.0 ** model.layers[0].fx, label)
        dw = [a + b / batch for a, b in zip(dw, one_w, strict=True)]
        db = [a + b / batch for a, b in zip(db, one_b, strict=True)]
    if batch > 1:
        state.network.apply(state.rounding)
    for number, layer in state.network.weighted:
        fw, fx = layer.layer.fw, layer.layer.fx
        chosen = stored_and_chosen(layer)
        got_w = (before[number][0] - layer.weight) / 2.0**fw
        assert not got_w[~chosen].any()
        # An error is good to about 2^-7 (soft-max), a weight to half a unit.
        tolerance = RATE * 2.0**-6 * max(1.0, float(np.abs(dw[number]).max())) + 0.51 * 2.0**-fw
        assert np.abs(got_w - RATE * dw[number])[chosen].max() < tolerance
        got_b = (before[number][1] - layer.bias) / 2.0 ** (fw + fx)
        assert np.abs(got_b - RATE * db[number]).max() < RATE * 2.0**-6 * max(1.0, np.abs(db[number]).max())
    assert any(np.abs(RATE * d).max() > 2.0**-8 for d in dw)


def test_stochastic_rounding_is_unbiased() -> None:
    """Many small updates add up to their sum."""
    model = random_model(2, sizes=(3, 4), sparse=(False,), learning_rate=RATE)
    layer = next(learning_network(model).weighted)[1]
    x, g, prng = np.array([3, 0, 200]), np.array([1, -2, 40, -90]), Prng(3)
    layer.weight[...] = 0
    for _ in range(4000):
        layer.update(Input(x), g, g, prng)
    expected = -4000 * np.outer(x, g) / 2.0**layer.su
    assert np.abs(layer.weight - expected).max() < 4 * np.sqrt(4000 / 4)


def test_batch_equals_single_without_rounding_loss() -> None:
    """Two samples with weights frozen in between, applied once: the accumulators are cleared."""
    model = random_model(1, batch=2, stochastic=False)
    _, layer = next(learning_network(model).weighted)
    x, g = Input(np.full(12, 255)), np.full(layer.layer.n_pad, 3000)
    before = layer.weight.copy()
    layer.accumulate(x, g)
    layer.accumulate(x, g)
    assert (layer.weight == before).all()
    layer.apply(Prng(1))
    assert not layer.sums.any()
    assert not layer.bias_sums.any()
    d = 2 * (3000 * 255) / 2.0**layer.su
    changed = (before - layer.weight)[stored_and_chosen(layer)]
    assert np.abs(changed - d).max() <= 1
    prng = Prng(5)
    layer.apply(prng)
    assert prng.state == 5


def test_removal_counts() -> None:
    """Shares add up to rho at the end, whatever the rounding; one sample stays."""
    learning = LEARNING
    for n_start in (1, 2, 7, 10, 100, 1001):
        n = n_start
        for epoch in range(learning.ddr_until):
            n -= removal_count(learning, epoch, n_start, n)
            assert n_start - n == 300 * n_start * (epoch + 1) // (1000 * learning.ddr_until)
    everything: dict[str, Any] = {**learning.__dict__, "rho_permille": 1000, "ddr_until": 1}
    assert removal_count(type(learning)(**everything), 0, 10, 10) == 9


def test_scores_by_loss_tell_errors_apart_that_differ_by_a_sixteenth() -> None:
    """However small they are: the samples that leave are those of the smallest errors."""
    bins = [logarithmic(error) for error in range((1 << 14) + 1)]
    assert bins == sorted(bins)
    assert bins[-1] <= 255, "8 bits"
    assert all(bins[error] < bins[error + max(1, -(-error // 16))] for error in range(15_000))


def test_least_scores_leave() -> None:
    """Ties: the earlier in the table goes; the order of the rest stays."""
    table = Table([5, 3, 9, 1, 7], [1, 0, 2, 0, 1])
    assert table.remove_least(3) == [5, 3, 1]
    assert table.ids == [9, 7]
    assert table.scores == [2, 1]


def test_shuffle_is_a_permutation() -> None:
    """All entries, ids with their scores, and n - 1 draws."""
    table, prng, twin = Table(list(range(50)), list(range(50))), Prng(9), Prng(9)
    table.shuffle(prng)
    twin.draw(49)
    assert prng.state == twin.state
    assert sorted(table.ids) == list(range(50))
    assert table.ids == table.scores
    assert table.ids != list(range(50))


def test_reservoir_is_uniform() -> None:
    """Every sample of the stream stays equally often."""
    prng, hits, rounds, length, capacity = Prng(11), np.zeros(60), 800, 60, 12
    slots = [Slot(Sample(k, 0, 0, EMPTY, EMPTY), None) for k in range(length)]
    for _ in range(rounds):
        replay = Replay(capacity)
        for slot in slots:
            replay.offer(slot, prng)
        assert replay.filled == capacity
        for slot in replay.slots:
            hits[slot.sample.id] += 1
    expected = rounds * capacity / length
    assert np.abs(hits - expected).max() < 5 * np.sqrt(expected)


def test_learns() -> None:
    """A task is learned, DDR removes what it should, and a second task does not lose the buffer."""
    from sparcl_mcu.reference import Device
    from tests.reference.models import samples, task_begin

    model = random_model(
        3, sizes=(24, 32, 4), epochs=6, learning_rate=0.1, capacity=20, ddr_score=DdrScore.LOSS, density=0.5
    )
    device = Device(model)
    x, y = random_samples(model, [0, 1, 2, 3], 60, seed=1)
    for command, request in ((2, task_begin(range(4), 60)), (3, samples(0, x, y))):
        assert device.apply(command, request) is not None
    while device.phase == 2:
        device.apply(4, (100).to_bytes(2, "little") + b"\0")
    reply = device.apply(6, bytes([60]) + samples(0, x, y)[3:])
    assert reply is not None
    assert reply.payload[0] >= 55
    assert device.n == 60 - 18
    assert len(device.removed(0)) == len(set(device.removed(0))) == 18
    assert device.passes > 2 * device.training_steps


def test_single_head_needs_own_classes() -> None:
    """With SINGLE_HEAD = loss other classes' outputs get no error."""
    z = np.array([100, 200, 300, 400])
    error, _ = loss.cross_entropy(z, np.array([1, 2]), 2, 8, 4)
    assert error[0] == error[3] == 0
    assert abs(int(error.sum())) <= 2


def test_padding_stays_zero() -> None:
    """Padded outputs never get a weight, a bias or an activation."""
    model = random_model(6, sizes=(8, 7, 5), sparse=(True, True), block=4, density=1.0)
    state = State.initial(model)
    weighted = [s for _, s in state.network.weighted]
    layers: list[Layer] = [s.layer for s in weighted]
    for seed in range(5):
        x = random_samples(model, [0], 1, seed)[0][0].astype(np.int64)
        trace = state.network.forward(x, state.counters)
        e, _ = loss.cross_entropy(trace.z, np.arange(5), 0, layers[-1].fa, layers[-1].n_out)
        state.network.backward(trace, e, model.current, state.rounding, state.counters, batch=False)
    for layer, s in zip(layers, weighted, strict=True):
        assert not s.weight[:, layer.n_out :].any()
        assert not s.bias[layer.n_out :].any()
