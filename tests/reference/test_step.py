# SPDX-License-Identifier: Apache-2.0
"""The vectorised reference against the one-number-at-a-time step of ``scalar``."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparcl_mcu.reference import Device, arrays
from sparcl_mcu.spec.types import DdrScore, Growth, Method, Model, Op, SingleHead
from sparcl_mcu.spec.wire import Command, Phase
from tests.reference.models import random_conv_model, random_model, random_samples, samples, task_begin
from tests.reference.scalar import Sample, Scalar

OPTIONS = st.fixed_dictionaries(
    {
        "method": st.sampled_from(Method),
        "batch": st.sampled_from([1, 1, 2, 3]),
        "epochs": st.sampled_from([1, 2, 3]),
        "capacity": st.sampled_from([3, 8]),
        "stochastic": st.booleans(),
        "single_head": st.sampled_from(SingleHead),
        "alpha": st.sampled_from([0.0, 0.5]),
        "beta": st.sampled_from([0.0, 1.0]),
        "shared_draws": st.sampled_from([0, 0, 1, 3]),
        "refresh": st.booleans(),
        "tdm": st.booleans(),
        "dgm": st.booleans(),
        "updates_per_epoch": st.sampled_from([1, 2, 5]),
        "growth": st.sampled_from(Growth),
        "capture": st.sampled_from([1, 2, 4]),
        "ddr": st.booleans(),
        "ddr_score": st.sampled_from(DdrScore),
        "block": st.sampled_from([1, 2, 4]),
        "signed": st.booleans(),
        "tight": st.booleans(),
        "fraction": st.sampled_from([8, 9, 12]),
        "scale": st.sampled_from([1.0, 8.0]),
        "learning_rate": st.sampled_from([0.02, 0.5]),
    }
)


def compare(device: Device, scalar: Scalar) -> None:
    """Everything the two hold."""
    got = arrays(device.model, device.dump())
    for name in ("choices", "rounding", "step", "seen", "rolling", "epoch", "pos", "n_start", "shuffled", "grown"):
        assert got[f"scalars.{name}"][0] == getattr(scalar, name), name
    for name in ("saturated_activations", "saturated_errors", "guard_shifts"):
        assert got[f"scalars.{name}"][0] == getattr(scalar, name), name
    assert got["scalars.captured_d"][0] == scalar.captured_d
    assert got["scalars.captured_m"][0] == scalar.captured_m
    assert got["scalars.class_task"].tolist() == scalar.class_task
    assert got["table.id"].tolist() == scalar.ids
    assert got["table.score"].tolist() == scalar.scores
    assert got["replay.id"].tolist() == [sample.id for sample, _ in scalar.slots]
    assert got["replay.sample_crc"].tolist() == [record(scalar, k) for k in range(len(scalar.slots))]
    for number, net in enumerate(scalar.nets):
        if net.layer.op not in (Op.DENSE, Op.CONV):
            continue
        assert got[f"layer{number}.bias"].tolist() == net.bias
        if not net.layer.sparse:
            assert got[f"layer{number}.weight"].tolist() == [e.weight[0] for e in net.panels[0]]
            continue
        for p, entries in enumerate(net.panels):
            prefix = f"layer{number}.panel{p}"
            assert got[f"{prefix}.index"].tolist() == [e.index for e in entries]
            assert got[f"{prefix}.weight"].tolist() == [w for e in entries for w in e.weight]
            lines = [e.line for e in entries]
            start = np.searchsorted(lines, np.arange(net.layer.lines + 1)).tolist()
            chosen = np.bincount([e.line for e in entries if e.chosen], minlength=net.layer.lines)
            assert got[f"{prefix}.start"].tolist() == start
            assert got[f"{prefix}.split"].tolist() == (np.array(start[:-1]) + chosen).tolist()


def record(scalar: Scalar, slot: int) -> int:
    """Checksum of a sample record (docs/spec/flash-format.md)."""
    sample, model = scalar.slots[slot][0], scalar.model
    values = scalar.latent(sample.x) if model.latent_stored else sample.x
    head = struct.pack("<HBB", sample.id, scalar.tasks[slot], sample.label)
    return zlib.crc32(head + bytes(v & 255 for v in values))


def run(model: Model, n: int, tasks: int = 2) -> tuple[Device, Scalar]:
    """Train both on the same tasks, comparing after every step."""
    device, scalar = Device(model), Scalar(model)
    for number in range(tasks):
        classes = [2 * number, 2 * number + 1]
        x, y = random_samples(model, classes, n, seed=number)
        for command, request in (
            (Command.TASK_BEGIN, task_begin(classes, n)),
            (Command.SAMPLES, samples(0, x, y)),
        ):
            reply = device.apply(command, request)
            assert reply is not None
            assert reply.status == 0
        scalar.begin(classes, n)
        compare(device, scalar)
        own = [Sample(k, int(y[k]), [int(v) for v in x[k]]) for k in range(n)]
        while not scalar.trained:
            reply = device.apply(Command.TRAIN, struct.pack("<HB", 1, 0))
            assert reply is not None
            assert reply.status == 0
            scalar.train(own)
            compare(device, scalar)
        reply = device.apply(Command.TASK_END, b"")
        assert reply is not None
        assert reply.status == 0
        scalar.end()
    return device, scalar


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), options=OPTIONS)
def test_random_networks(seed: int, options: dict[str, object]) -> None:
    """Two tasks on nets with two hidden layers and every switch."""
    run(random_model(seed, sizes=(7, 10, 6, 4), **options), n=8)  # type: ignore[arg-type]


CONV_OPTIONS = st.fixed_dictionaries(
    {
        "method": st.sampled_from(Method),
        "batch": st.sampled_from([1, 1, 2, 3]),
        "epochs": st.sampled_from([1, 2]),
        "capacity": st.sampled_from([2, 8]),
        "stochastic": st.booleans(),
        "single_head": st.sampled_from(SingleHead),
        "tdm": st.booleans(),
        "dgm": st.booleans(),
        "updates_per_epoch": st.sampled_from([1, 3]),
        "growth": st.sampled_from(Growth),
        "capture": st.sampled_from([1, 2, 4]),
        "ddr": st.booleans(),
        "tight": st.booleans(),
        "scale": st.sampled_from([1.0, 8.0]),
        "learning_rate": st.sampled_from([0.02, 0.5]),
    }
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), options=CONV_OPTIONS)
def test_random_convolutional_networks(seed: int, options: dict[str, object]) -> None:
    """Two tasks on small nets of layers of every kind."""
    run(random_conv_model(seed, **options), n=4)  # type: ignore[arg-type]


@pytest.mark.parametrize("growth", list(Growth))
@pytest.mark.parametrize("batch", [1, 3])
def test_two_panels(growth: Growth, batch: int) -> None:
    """A first layer of more than 256 blocks."""
    model = random_model(
        5,
        sizes=(4, 530, 7, 5),
        block=2,
        density=0.3,
        growth=growth,
        batch=batch,
        updates_per_epoch=3,
        epochs=1,
    )
    assert len(model.layers[0].panels) == 2
    run(model, n=6)


def test_all_sparse_and_padded() -> None:
    """The output layer sparse too, with sizes that are no multiples of the block."""
    device, _ = run(random_model(3, sizes=(9, 7, 6, 5), sparse=(True, True, True), block=4, density=0.7), n=10)
    assert device.model.layers[-1].n_pad == 8


def test_saturation_and_guard_are_reached() -> None:
    """The corner cases occur in what is compared."""
    model = random_model(8, sizes=(9, 16, 12, 4), tight=True, fraction=12, scale=20.0, learning_rate=0.1)
    device, _ = run(model, n=10)
    assert device.saturated_activations > 0
    assert device.saturated_errors > 0
    assert device.guard_shifts > 0


def test_falling_learning_rate() -> None:
    """Each epoch has its own share of the learning rate."""
    run(random_model(5, epochs=2, lr_q8=(256, 77)), n=8)


@pytest.mark.parametrize(
    ("options", "digest"),
    [
        ({"seed": 1}, 0x9AA88F2B),
        (
            {"seed": 2, "block": 4, "batch": 3, "growth": Growth.GRADIENT, "signed": True, "stochastic": False},
            0x2B863C31,
        ),
        ({"seed": 3, "sparse": (False,) * 3, "tight": True, "fraction": 12, "scale": 20.0}, 0xBDD90730),
    ],
)
def test_the_bits_of_fully_connected_networks_stay(options: dict[str, Any], digest: int) -> None:
    """Known models end in known states: no change of the bits goes unnoticed."""
    device = Device(random_model(**options))
    for number, classes in enumerate([(0, 1), (2, 3)]):
        x, y = random_samples(device.model, classes, 12, seed=number)
        device.apply(Command.TASK_BEGIN, task_begin(classes, 12))
        device.apply(Command.SAMPLES, samples(0, x, y))
        while device.phase == Phase.TRAINING:
            device.apply(Command.TRAIN, struct.pack("<HB", 50, 0))
        device.apply(Command.TASK_END, b"")
    assert device.digest() == digest
