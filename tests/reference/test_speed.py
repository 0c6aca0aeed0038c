# SPDX-License-Identifier: Apache-2.0
"""The reference stays vectorised: a step executes as many lines of Python whatever the number of weights.

Lines are counted, not seconds: the same on every machine.
"""

from __future__ import annotations

import struct
import sys
from types import FrameType
from typing import Any

import pytest

from sparcl_mcu.reference import Device
from sparcl_mcu.spec.types import Activation, Model, Op
from sparcl_mcu.spec.wire import Command
from tests.reference.models import Spec, conv_model, random_model, random_samples, samples, task_begin

N = 60
"""Training samples; 40 of them are learned before lines are counted, so that the replay buffer is filled."""

DENSE = 1000
CONVOLUTIONAL = 1800
"""Most lines of a DER++ step: about 1.1 times what they are now."""


def lines_per_step(model: Model) -> float:
    """Lines of Python the reference executes in a step without a mask update, on average."""
    device = Device(model)
    x, y = random_samples(model, [0, 1], N)

    def ask(command: Command, request: bytes) -> None:
        reply = device.apply(command, request)
        assert reply is not None
        assert reply.status == 0

    ask(Command.TASK_BEGIN, task_begin([0, 1], N))
    ask(Command.SAMPLES, samples(0, x, y))
    ask(Command.TRAIN, struct.pack("<HB", 40, 0))
    count = 0

    def trace(_frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        ask(Command.TRAIN, struct.pack("<HB", 10, 0))
    finally:
        sys.settrace(before)
    return count / 10


def dense(width: int, **options: Any) -> Model:
    return random_model(1, sizes=(width, width, 4), capacity=16, updates_per_epoch=1, **options)


def convolutional(channels: int) -> Model:
    specs = [
        Spec(Op.CONV, channels=channels, kernel=(3, 3), same=True, activation=Activation.RELU),
        Spec(Op.MAX_POOL, kernel=(2, 2), stride=(2, 2)),
        Spec(Op.CONV, channels=channels, kernel=(3, 3), same=True, activation=Activation.RELU, sparse=True, block=2),
        Spec(Op.DENSE, channels=4),
    ]
    return conv_model(1, (1, 8, 8), specs, capacity=16, updates_per_epoch=1)


@pytest.mark.parametrize(
    "options",
    [{"block": 1}, {"block": 4}, {"sparse": (False, False), "tdm": False, "dgm": False}, {"batch": 5}],
    ids=["block1", "block4", "dense", "batch"],
)
def test_dense_layers(options: dict[str, Any]) -> None:
    few, many = (lines_per_step(dense(width, **options)) for width in (32, 128))
    assert few < DENSE
    assert many < 1.1 * few


def test_convolutions() -> None:
    few, many = (lines_per_step(convolutional(channels)) for channels in (4, 16))
    assert few < CONVOLUTIONAL
    assert many < 1.1 * few
