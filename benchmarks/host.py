# SPDX-License-Identifier: Apache-2.0
"""How long the host's side takes, in CPU seconds: the reference, and a whole `sparcl run`.

What else runs on the machine disturbs CPU time less than the clock, but it is not repeatable as counts of
instructions are: these figures have goals, and no baseline.
"""

from __future__ import annotations

import os
import struct
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass
from itertools import cycle
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

from sparcl_mcu.generator import data, keras_model, quantise, train
from sparcl_mcu.generator.config import load
from sparcl_mcu.host_tools import cli
from sparcl_mcu.host_tools.protocol import pack_labelled
from sparcl_mcu.reference import Device
from sparcl_mcu.spec.errors import BoardError
from sparcl_mcu.spec.types import Dataset, Model
from sparcl_mcu.spec.wire import Command, Phase

from .cases import EXAMPLES, Case

SAMPLES = 20_000

_CHUNK = 100
"""Samples, or training steps, in one request."""


@dataclass(frozen=True)
class HostTimes:
    """CPU seconds: ``run`` of `sparcl run` on split_digits; ``reference`` of ``SAMPLES`` training samples."""

    run: float
    reference: float


def measure(case: Case, seed: int) -> HostTimes:
    """``case``: whose network the reference learns."""
    return HostTimes(run_split_digits_seconds(), reference_seconds(case, seed))


def reference_seconds(case: Case, seed: int, samples: int = SAMPLES) -> float:
    """CPU seconds in which the reference learns from that many training samples."""
    # Replay from the first steps on: samples of every epoch enter the buffer.
    settings = load(case.experiment, (*case.overrides, "initial.train=none", "method.refresh=false"), seed)
    dataset = data.load(settings)
    model = quantise.quantise(settings, dataset, train.train(settings, dataset))
    before = time.process_time()
    learn(model, dataset, samples)
    return time.process_time() - before


def run_split_digits_seconds() -> float:
    """CPU seconds of `sparcl run` on split_digits and the native board, all stages, TensorFlow imported before.

    Of this program and those it waits for, such as the compiler; the board is a process of its own and does not
    count.  BoardError when the run fails.
    """
    with TemporaryDirectory() as build, ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(_run_split_digits, build).result()


def learn(model: Model, dataset: Dataset, samples: int) -> Device:
    """The reference after ``samples`` steps on the tasks of a data set; after the last task the first comes again."""
    device = Device(model)
    for task in cycle(dataset.tasks):
        n = len(task.y_train)
        _ask(device, Command.TASK_BEGIN, struct.pack("<BHB", 0, n, len(task.classes)) + bytes(task.classes))
        for first in range(0, n, _CHUNK):
            part = slice(first, first + _CHUNK)
            rows = pack_labelled(task.y_train[part], task.x_train[part])
            _ask(device, Command.SAMPLES, struct.pack("<H", first) + rows)
        while device.phase == Phase.TRAINING:
            if device.step == samples:
                return device
            _ask(device, Command.TRAIN, struct.pack("<HB", min(_CHUNK, samples - device.step), 0))
        _ask(device, Command.TASK_END, b"")
    raise AssertionError("a data set has tasks")


def _ask(device: Device, command: Command, request: bytes) -> None:
    reply = device.apply(command, request)
    assert reply is not None, f"the reference does not answer {command.name}"
    assert reply.status == 0, f"the reference refuses {command.name}: {reply.status}"


def _run_split_digits(build: str) -> float:
    """Run it in a process of its own, which builds in the folder ``build``."""
    os.environ["SPARCL_BUILD"] = build
    keras_model.start(0)
    before = _cpu_seconds()
    with open(Path(build) / "log", "w", encoding="utf-8") as log, redirect_stdout(log):
        try:
            cli.main(["run", str(EXAMPLES / "split_digits.toml"), "--plain"])
        except SystemExit as end:
            status = end.code
    if status:
        raise BoardError(f"`sparcl run examples/split_digits.toml` failed with status {status}")
    return _cpu_seconds() - before


def _cpu_seconds() -> float:
    """CPU seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])
