# SPDX-License-Identifier: Apache-2.0
"""Convolutional networks: special cases of the arithmetic, gradients, frozen prefixes, words for a difference."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparcl_mcu.generator import network as floating
from sparcl_mcu.reference import Device, arrays, first_difference, loss, mask
from sparcl_mcu.reference.conv import ConvLayer, GradientSums
from sparcl_mcu.reference.layer import Input, WeightedLayer
from sparcl_mcu.reference.network import Network, Prefix, learning_network
from sparcl_mcu.reference.pool import AveragePool, MaxPool, add_saturating
from sparcl_mcu.reference.state import State
from sparcl_mcu.spec.fixed import Counters, Ints
from sparcl_mcu.spec.prng import Prng
from sparcl_mcu.spec.types import Activation, FloatLayer, Growth, Layer, Model, Op, Tensor, Window, regions
from sparcl_mcu.spec.wire import Command
from tests.reference.models import (
    Masks,
    Spec,
    conv_model,
    random_conv_model,
    random_samples,
    samples,
    task_begin,
)

RELU, RELU6 = Activation.RELU, Activation.RELU6
SMALL = (
    Spec(Op.CONV, channels=4, kernel=(3, 3), same=True, activation=RELU, sparse=True, block=2),
    Spec(Op.MAX_POOL, kernel=(2, 2), stride=(2, 2)),
    Spec(Op.CONV, multiplier=2, kernel=(2, 2), stride=(1, 2), activation=RELU, sparse=True, block=4),
    Spec(Op.DENSE, channels=4),
)
"""A little of everything that has weights."""

# ---------------------------------------------------------------- layers on their own


def plane(height: int, width: int, channels: int = 1, **other: Any) -> Tensor:
    """A tensor without margins."""
    return Tensor(channels, height, width, 8, 12, **({"rectified": False} | other))


def tensors(layers: tuple[Layer, ...], x: list[int], source: Tensor) -> tuple[list[list[int]], Counters]:
    """Every tensor of a network without weights."""
    counters = Counters()
    network = Network(layers, source, 4, None, channel_last=False)
    return [t.values.tolist() for t in network.forward(np.array(x), counters).tensors], counters


@given(
    start=st.lists(st.integers(-32768, 32767), min_size=3, max_size=3),
    steps=st.lists(st.tuples(st.integers(0, 2), st.integers(-32768, 32767)), max_size=9),
)
def test_add_saturating(start: list[int], steps: list[tuple[int, int]]) -> None:
    """One after another, each sum within 16 bits."""
    at, values = np.array([k for k, _ in steps], dtype=np.intp), np.array([v for _, v in steps], dtype=np.int64)
    got = add_saturating(np.array(start), at, values)
    for k, v in steps:
        start[k] = max(-32768, min(32767, start[k] + v))
    assert got.tolist() == start


def test_overlapping_windows_saturate_in_order() -> None:
    """The middle of three is the greatest of both windows: -32768 + 30000 is not what a sum that overflows gives."""
    layer = Layer(Op.MAX_POOL, (0,), plane(1, 4), Activation.NONE, window=Window(1, 2))
    pool = MaxPool(layer, plane(1, 5))
    v, kept = pool.forward([Input(np.array([1, 5, 2, 5, 5]))])
    assert v.tolist() == [5, 5, 5, 5]
    assert kept.tolist() == [1, 1, 3, 3]
    e = np.array([-30000, -30000, 20000, 20000])
    assert pool.spread(kept, e, None, 5).tolist() == [0, -32768, 0, 32767, 0]
    before = np.array([7, 30000, 0, -30000, 0])
    assert pool.spread(kept, e, before, 5).tolist() == [7, -30000, 0, 10000, 0]


def test_averages_of_negative_sums() -> None:
    """Halves are rounded up; positions outside do not count."""
    layer = Layer(Op.AVG_POOL, (0,), plane(1, 3), Activation.NONE, window=Window(1, 2, 1, 2, 0, 1))
    pool = AveragePool(layer, plane(1, 5))
    v, _ = pool.forward([Input(np.array([-7, -1, -2, -3, -6]))])
    assert v.tolist() == [-7, -1, -4]  # -7 alone, -1.5, -4.5
    assert pool.spread(None, np.array([-3, -3, 5]), None, 5).tolist() == [-3, -1, -1, 3, 3]


def test_pools_over_channels() -> None:
    """Each channel on its own, the whole of it."""
    layer = Layer(Op.AVG_POOL, (0,), plane(1, 1, 2), Activation.NONE, window=Window(2, 2))
    v, _ = AveragePool(layer, plane(2, 2, 2)).forward([Input(np.arange(8))])
    assert v.tolist() == [2, 6]


def test_add_of_one_tensor_twice() -> None:
    """Each input is rounded on its own, the error comes back twice, saturated."""
    out = Tensor(1, 1, 3, 7, 12, rectified=False)
    layer = Layer(Op.ADD, (0, 0), out, Activation.NONE)
    values, _ = tensors((layer,), [1, 2, -3], plane(1, 3))
    assert values[1] == [2, 2, -2]
    model = conv_model(
        1, (1, 1, 5), [Spec(Op.CONV, channels=1), Spec(Op.ADD, inputs=(1, 1)), Spec(Op.DENSE, channels=4)]
    )
    network = learning_network(model)
    trace = network.forward(np.arange(5), Counters())
    seen: dict[int, Ints] = {}
    network._visit(trace, np.array([30000, 0, 0, 0]), None, lambda k, _, e: seen.__setitem__(k, e.reshape(-1)))
    last = [layer for _, layer in network.weighted][-1]
    once = np.clip(last.error(None, last.guarded(last.outputs(np.array([30000, 0, 0, 0])), None)), -32768, 32767)
    assert seen[0].tolist() == np.clip(2 * once, -32768, 32767).tolist()
    assert once.any()


def test_relu6() -> None:
    """Clipped at 6 without counting; no error where it clips, also when the guard halves what is left."""
    out = Tensor(1, 1, 4, 8, 11, rectified=True)
    layer = Layer(Op.ADD, (0,), out, RELU6, guard=2000)
    values, counters = tensors((layer,), [-5, 300, 1536, 9000], plane(1, 4))
    assert values[1] == [0, 150, 768, 768]
    assert counters == Counters(guard_shifts=1)
    network = Network((layer,), plane(1, 4), 4, None, channel_last=False)
    trace = network.forward(np.array([-5, 300, 1536, 9000]), Counters())
    assert trace.clipped[0] is not None
    assert trace.clipped[0].tolist() == [False, False, True, True]


def test_saturated_activations_are_counted_by_bits() -> None:
    """Above 2^bits - 1 always, below -2^bits only without an activation."""
    for activation, expected, count in ((Activation.NONE, [-8, 7, 7], 3), (RELU, [0, 7, 7], 2)):
        layer = Layer(Op.ADD, (0,), Tensor(1, 1, 3, 8, 3, rectified=False), activation)
        values, counters = tensors((layer,), [-9, 8, 100], plane(1, 3))
        assert values[1] == expected
        assert counters.saturated_activations == count


def test_pad_turns_a_sample_around() -> None:
    """From (row, column, channel) to channel first; a latent already is."""
    layer = Layer(Op.PAD, (0,), plane(2, 2, 2, top=1), Activation.NONE)
    x = np.arange(8)
    for last, expected in ((True, [0, 2, 4, 6, 1, 3, 5, 7]), (False, list(range(8)))):
        network = Network((layer,), plane(2, 2, 2), 4, None, channel_last=last)
        assert network.forward(x, Counters()).tensors[1].values.tolist() == expected


def convolution(specs: list[Spec], seed: int = 1, **options: Any) -> tuple[Model, ConvLayer]:
    """A model whose first layer is a convolution of a 1 x 4 x 5 input."""
    model = conv_model(seed, (1, 4, 5), [*specs, Spec(Op.DENSE, channels=4)], **options)
    layer = next(learning_network(model).weighted)[1]
    assert isinstance(layer, ConvLayer)
    return model, layer


@pytest.mark.parametrize("sparse", [False, True])
def test_a_channel_without_error_draws_nothing(sparse: bool) -> None:
    """Draws are for active channels only, also where their sum is 0."""
    spec = Spec(Op.CONV, channels=3, kernel=(2, 2), sparse=sparse, block=2)
    _, layer = convolution([spec], masks=Masks(density=1.0, grad_share=1.0))
    _, kept = layer.forward([Input(np.arange(20))])
    e = np.zeros((3, 12), dtype=np.int64)
    prng, before = Prng(3), layer.weight.copy()
    layer.update(kept, e, e, prng)
    assert prng.state == 3
    e[1, 7] = -9
    layer.update(kept, e, np.zeros_like(e), prng)  # g may well be 0
    twin = Prng(3)
    twin.draw(4)
    assert prng.state == twin.state
    assert (layer.weight == before).all()
    e[2, 0] = 1
    layer.update(kept, e, 10000 * e, prng)
    twin.draw(8)
    assert prng.state == twin.state
    assert (layer.weight[0] == before[0]).all()
    assert (layer.weight[1:3] != before[1:3]).any(axis=1).all()


def test_errors_and_steps_of_a_convolution_are_clamped() -> None:
    """ke, elog, kg and glog as written."""
    _, layer = convolution([Spec(Op.CONV, channels=1)])
    layer.layer = replace(layer.layer, ke=2, elog=4, kg=1, glog=5, fw=6)
    layer.weight[...] = 64
    e = np.array([[1000, -1000, 5, 6, -6] * 4])
    expected = [(min(max((v + 2) >> 2, -16), 15) * 64 + 8) >> 4 for v in e[0].tolist()]
    assert layer.error(np.zeros((1, 1, 1)), e).tolist() == expected
    g = layer.step(e, replace(convolution([Spec(Op.CONV, channels=1)])[0].current, multiplier=3, shift=2))
    assert g[0].tolist() == [min(max((3 * v + 4) >> 3, -32), 31) for v in e[0].tolist()]


# ---------------------------------------------------------------- networks against floating point


def float_layers(model: Model) -> tuple[FloatLayer, ...]:
    """The layers that learn in floating point."""
    result = []
    weights = dict(learning_network(model).weighted)
    for number, layer in enumerate(model.layers):
        weight, bias, none = np.zeros((0, 0)), np.zeros(0), np.zeros((0, 0), dtype=np.bool_)
        if number in weights:
            whole = weights[number].stored() / 2.0**layer.fw
            weight = (whole if layer.op is Op.DENSE else whole.T)[:, : layer.n_out]
            bias = layer.bias[: layer.n_out] / 2.0 ** (layer.fw + layer.fx)
        shape = (layer.out.channels, layer.out.height, layer.out.width)
        activation, window, multiplier = layer.activation, layer.window, layer.multiplier
        floats = FloatLayer(layer.op, layer.inputs, shape, activation, weight, bias, none, weight, layer.sparse)
        result.append(replace(floats, window=window, multiplier=multiplier))
    return tuple(result)


def float_input(model: Model, x: NDArray[np.integer], fraction: int | None = None) -> NDArray[np.float64]:
    """Samples as tensor 0."""
    sample = model.sample
    shape = (sample.channels, sample.height, sample.width)
    return floating.channel_first(x, shape, 2.0 ** -(sample.fraction if fraction is None else fraction))


@pytest.mark.parametrize("seed", range(30))
def test_forward_is_the_float_network(seed: int) -> None:
    """To within rounding, where nothing saturates: each weight meets the value it should."""
    model = random_conv_model(seed, prefix=False, scale=0.5)
    x, _ = random_samples(model, range(4), 3, seed)
    got = floating.forward(float_layers(model), float_input(model, x))
    for row in range(3):
        counters = Counters()
        trace = learning_network(model).forward(x[row].astype(np.int64), counters)
        if counters.saturated_activations or counters.guard_shifts:
            continue
        for number, tensor in enumerate(trace.tensors[1:]):
            fixed = tensor.values / 2.0 ** model.layers[number].fa
            worst = np.abs(fixed - got[number + 1][row].reshape(-1)).max()
            assert worst < 0.05 * max(1.0, np.abs(fixed).max()), (number, model.layers[number].op)


GRADIENTS = (
    SMALL,
    (
        Spec(Op.CONV, channels=3, kernel=(2, 3), stride=(2, 1), same=True),
        Spec(Op.CONV, channels=3, kernel=(3, 3), same=True, activation=RELU6),
        Spec(Op.ADD, inputs=(1, 2, 2), activation=RELU),
        Spec(Op.AVG_POOL, kernel=(2, 2), stride=(1, 2), same=True),
        Spec(Op.DENSE, channels=6, activation=RELU),
        Spec(Op.DENSE, channels=4),
    ),
)


@pytest.mark.parametrize("specs", GRADIENTS)
@pytest.mark.parametrize("batch", [1, 2])
def test_update_is_the_gradient(specs: tuple[Spec, ...], batch: int) -> None:
    """Updates against differences of the cross-entropy of the float network."""
    rate = 0.1
    everything = Masks(density=1.0, grad_share=1.0)
    model = conv_model(5, (2, 6, 6), specs, masks=everything, stochastic=False, batch=batch, learning_rate=rate)
    # The kept weights are those of a net that neither saturates nor clamps.
    state = State.initial(model)
    x, labels = random_samples(model, range(4), batch, 3)
    before = {k: (w.stored().astype(np.float64), w.bias.copy()) for k, w in state.network.weighted}
    for sample, label in zip(x, labels.tolist(), strict=True):
        trace = state.network.forward(sample.astype(np.int64), state.counters)
        e, _ = loss.cross_entropy(trace.z, np.arange(4), label, model.layers[-1].fa, 4)
        state.network.backward(trace, e, model.current, state.rounding, state.counters, batch=batch > 1)
    if batch > 1:
        state.network.apply(state.rounding)
    assert state.counters == Counters()
    floats = float_layers(model)

    def cost(layers: tuple[FloatLayer, ...]) -> float:
        z = floating.forward(layers, float_input(model, x))[-1].reshape(batch, -1)
        return float(np.mean(np.log(np.exp(z).sum(axis=1)) - z[np.arange(batch), labels]))

    rng = np.random.default_rng(0)
    for number, layer in state.network.weighted:
        own = floats[number]
        moved = before[number][0] - layer.stored()
        moved = moved if own.op is Op.DENSE else moved.T
        differences = []
        for _ in range(12):
            i, o = int(rng.integers(own.weight.shape[0])), int(rng.integers(own.weight.shape[1]))
            differences.append((moved[i, o] * 2.0**-layer.layer.fw, _slope(floats, number, (i, o), cost)))
        for o in range(layer.layer.n_out):
            step = (before[number][1][o] - layer.bias[o]) * 2.0 ** -(layer.layer.fw + layer.layer.fx)
            differences.append((step, _slope(floats, number, o, cost)))
        got, expected = (np.array(column) for column in zip(*differences, strict=True))
        assert np.abs(got - rate * expected).max() < 0.1 * np.abs(rate * expected).max() + 2.0**-layer.layer.fw
        assert np.abs(expected).max() > 0.005


def _slope(layers: tuple[FloatLayer, ...], number: int, at: Any, cost: Any) -> float:
    """Derivative by one weight (i, o) or one bias o."""
    step, ends = 2.0**-12, []
    for sign in (-1, 1):
        own = layers[number]
        name = "weight" if isinstance(at, tuple) else "bias"
        changed = getattr(own, name).copy()
        changed[at] += sign * step
        ends.append(cost((*layers[:number], replace(own, **{name: changed}), *layers[number + 1 :])))
    return float(ends[1] - ends[0]) / (2 * step)


# ---------------------------------------------------------------- the device


def learnt(model: Model, n: int = 10, tasks: tuple[tuple[int, ...], ...] = ((0, 1), (2, 3))) -> Device:
    """After some tasks."""
    device = Device(model)
    for number, classes in enumerate(tasks):
        x, y = random_samples(model, classes, n, seed=number)
        for command, request in (
            (Command.TASK_BEGIN, task_begin(classes, n)),
            (Command.SAMPLES, samples(0, x, y)),
            *[(Command.TRAIN, struct.pack("<HB", 100, 0))] * model.learning.epochs,
            (Command.TASK_END, b""),
        ):
            reply = device.apply(command, request)
            assert reply is not None
            assert reply.status == 0
    return device


def test_learns() -> None:
    """A small convolutional network learns a task; masks keep their budget, removed weights are 0."""
    model = conv_model(2, (1, 8, 8), SMALL, epochs=10, learning_rate=0.1, capacity=20)
    device = learnt(model, 60, ((0, 1, 2, 3),))
    x, y = random_samples(model, range(4), 60, seed=0)
    reply = device.apply(Command.EVALUATE, bytes([60]) + samples(0, x, y)[3:])
    assert reply is not None
    assert reply.payload[0] >= 50
    for _, layer in device.state.network.weighted:
        for panel in layer.panels:
            assert panel.entries == panel.constants.nnz
        if layer.panels:
            assert not layer.weight.reshape(-1)[np.setdiff1d(_all(layer), _existing(layer))].any()


def _all(layer: WeightedLayer) -> NDArray[np.intp]:
    return np.concatenate([layer.places(p.constants).reshape(-1) for p in layer.panels])


def _existing(layer: WeightedLayer) -> NDArray[np.intp]:
    return np.concatenate([layer.entries(p).reshape(-1) for p in layer.panels])


@pytest.mark.parametrize("signed", [False, True])
def test_latents_stored_or_not(signed: bool) -> None:
    """What records hold changes their checksums and nothing else; the prefix's guards do not count."""
    specs = [*SMALL[:2], *SMALL]
    both = [
        conv_model(3, (2, 8, 8), specs, prefix=2, latent_stored=stored, latent_signed=signed, tight=True)
        for stored in (True, False)
    ]
    assert [m.n_stored for m in both] == [64, 128]
    assert both[0].prefix
    devices = [learnt(m) for m in both]
    ours, theirs = (arrays(d.model, d.dump()) for d in devices)
    assert {name for name in ours if not np.array_equal(ours[name], theirs[name])} == {"replay.sample_crc"}
    slot = devices[0].state.replay.slots[0].sample
    head = struct.pack("<HBB", slot.id, slot.task, slot.label)
    assert slot.x.dtype == (np.int8 if signed else np.uint8)
    assert slot.x.size == 64
    assert slot.crc == zlib.crc32(head + slot.x.tobytes())


def test_a_latent_is_rounded_and_clamped() -> None:
    """From the format of the prefix's last layer to 8 bits."""
    model = conv_model(
        1, (1, 2, 4), [Spec(Op.ADD), Spec(Op.DENSE, channels=4)], prefix=1, latent_signed=True, signed=True
    )
    assert model.latent is not None
    fa, fl = model.prefix[0].fa, model.latent.fraction
    x = np.array([-128, -1, 0, 1, 2, 3, 100, 127], dtype=np.int8)
    for fraction in (fl, fl + 2, fl - 2):
        shifted = replace(model, latent=replace(model.latent, fraction=fraction))
        half, full = 2.0 ** (fa - 7), 2.0 ** (fraction - fa)
        limits = -(1 << model.prefix[0].out.bits), (1 << model.prefix[0].out.bits) - 1
        v = np.clip(np.floor(x * half + 0.5), *limits)
        assert Prefix(shifted).latent(x).tolist() == np.clip(np.floor(v * full + 0.5), -128, 127).tolist()


def test_new_weights_have_no_gradient_yet() -> None:
    """Growth at random: gradient sums are those of weights that existed; by gradient: of every weight."""
    for growth, moved in ((Growth.RANDOM, False), (Growth.GRADIENT, True)):
        options: dict[str, Any] = {"masks": Masks(density=0.5, grad_share=0.5, p_intra=1.0), "growth": growth}
        model, _ = convolution([Spec(Op.CONV, channels=4, kernel=(3, 3), sparse=True)], **options)
        state = State.initial(model)
        layer = next(state.network.weighted)[1]
        captured = GradientSums(np.full(layer.weight.shape, 1 << 12))
        state.captured.current = [(captured, None)]
        everything = layer.panels[0].entries
        mask.update(state)
        panel = layer.panels[0]
        assert panel.entries == everything
        # All were pruned: with scores of 0 the first in storage order are chosen.
        first = np.lexsort((panel.index, panel.lines))[: panel.constants.grad]
        assert panel.chosen[first].all()
        scores = mask.Scores(model.learning, model.layers[0], (captured,), ())
        assert (scores.gradient(layer.entries(panel)) > 0).all()
        assert moved == (growth is Growth.GRADIENT)


def test_digest_and_regions() -> None:
    """Only layers with weights that learn, under their own numbers."""
    device = learnt(conv_model(4, (2, 8, 8), [*SMALL[:2], *SMALL], prefix=2))
    names = [r.name for r in regions(device.model)]
    own = [f"layer{k}" for k, _ in device.model.weighted]
    assert {name.split(".")[0] for name in names[4:]} == set(own)
    dump = device.dump()
    assert list(dump) == [r.number for r in regions(device.model)]
    slots = b"".join(dump[3][k + 4 : k + 12] for k in range(0, len(dump[3]), 12))
    layers = b"".join(dump[number] for number in dump if number >= 16)
    assert device.digest() == zlib.crc32(dump[0] + layers + dump[1] + dump[2] + slots)


def test_weights_lie_as_written() -> None:
    """Without masks: output channel, input channel, kernel row, kernel column."""
    specs = [Spec(Op.CONV, channels=3, kernel=(2, 3)), Spec(Op.DENSE, channels=4)]
    model = conv_model(1, (2, 4, 5), specs)
    got = arrays(model, Device(model).dump())["layer1.weight"]
    assert model.layers[1].weight is not None
    assert got.tolist() == model.layers[1].weight.reshape(-1).tolist()
    assert model.layers[1].weight.shape == (3, 12)


def told(model: Model, region: str, value: int) -> str:
    """The words for a value that differs."""
    dump = Device(model).dump()
    found = next(r for r in regions(model) if r.name == region)
    data = bytearray(dump[found.number])
    data[found.itemsize * value] ^= 1
    difference = first_difference(model, {**dump, found.number: bytes(data)}, dump)
    assert difference is not None
    assert (difference.region, difference.index) == (region, value)
    return difference.where


def test_words_for_a_difference() -> None:
    """Output channel, input channel, row and column of the kernel."""
    specs = [
        Spec(Op.CONV, channels=3, kernel=(2, 3)),
        Spec(Op.CONV, channels=4, kernel=(2, 2), sparse=True, block=2),
        Spec(Op.CONV, multiplier=2, kernel=(2, 2)),
        Spec(Op.DENSE, channels=4),
    ]
    model = conv_model(1, (2, 5, 6), specs, masks=Masks(density=1.0, grad_share=1.0))
    assert told(model, "layer1.weight", 12 + 6 + 3 + 1) == (
        "layer 1, output channel 1, input channel 1, kernel row 1, column 1"
    )
    assert told(model, "layer1.bias", 2) == "layer 1, output channel 2"
    assert told(model, "layer2.panel0.weight", 2 * (12 + 7) + 1) == (
        "layer 2, panel 0, entry 19: output channel 3, input channel 1, kernel row 1, column 1"
    )
    assert told(model, "layer2.panel0.split", 1) == "layer 2, panel 0, block of output channels 1"
    assert told(model, "layer3.weight", 4 * 5 + 2) == (
        "layer 3, output channel 5, input channel 2, kernel row 1, column 0"
    )


def test_random_models_hold_everything() -> None:
    """What ``random_conv_model`` draws covers the specification."""
    models = [random_conv_model(seed) for seed in range(60)]
    layers = [layer for model in models for layer in (*model.prefix, *model.layers)]
    convolutions = [layer for layer in layers if layer.op is Op.CONV]
    assert {layer.op for layer in layers} == set(Op)
    assert {layer.activation for layer in convolutions} == set(Activation)
    assert {layer.multiplier for layer in convolutions} == {0, 1, 2}
    assert {layer.block for layer in convolutions} == {1, 2, 4}
    assert {len(layer.panels) for layer in convolutions} == {0, 1, 2}
    assert any(layer.out.channels % layer.block for layer in convolutions)
    assert {layer.out.padded for layer in layers} == {False, True}
    assert any(layer.kg for layer in convolutions)
    assert any(layer.ke for layer in convolutions)
    assert any(layer.guard for layer in layers)
    assert any(len(layer.inputs) == 3 for layer in layers)
    assert {bool(model.latent) for model in models} == {False, True}
    assert {model.latent_stored for model in models if model.latent} == {False, True}
    assert any(model.layers[0].op is Op.PAD and model.sample.channels > 1 and model.signed for model in models)
    assert any(model.sample.height == 1 and model.sample.width > 1 for model in models)
    assert any(layer.window.stride_w == 2 for layer in layers if layer.window)
