# SPDX-License-Identifier: Apache-2.0
"""Random experiments at the limits of everything, on the board with sanitizers and in the reference under watch.

python -m tests.firmware.extremes FIRST COUNT     seeds FIRST, FIRST + 1, ...; says which fail, and why, and how close
                                                  to its limit each accumulator came
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from sparcl_mcu.generator import plan, proof, quantise
from sparcl_mcu.generator.config import Config
from sparcl_mcu.generator.store import model_hash
from sparcl_mcu.spec.boards import load_board
from sparcl_mcu.spec.errors import UserError
from sparcl_mcu.spec.types import Dataset, FloatModel, Layer, Model, Op, Panel, Task
from sparcl_mcu.spec.wire import Command
from tests.firmware import native
from tests.firmware.native import Teacher, Twin, running
from tests.firmware.watch import Watch, watching
from tests.generator.helpers import INPUT_SHAPES, config, random_float_model

SHAPES = (*INPUT_SHAPES, (300, 1, 1), (1, 20, 20), (1, 1, 64), (8, 4, 4))
"""Long sums besides."""
INPUTS = ("low", "high", "zero", "corners", "any", "mixed")
WEIGHTS = ("as they are", "as they are", "low", "high", "corners", "rows")
SAMPLES = 12


@dataclass(frozen=True)
class Experiment:
    """What is generated, and what its samples look like; ``weights``: what they were replaced by."""

    seed: int
    settings: Config
    model: Model
    inputs: str
    weights: str

    def __str__(self) -> str:
        m = self.settings.method
        layers = " ".join(f"{'sparse ' * layer.sparse}{layer.op.value}" for layer in self.model.layers)
        return (
            f"seed {self.seed}: {m.name.value}, lr {m.lr:g}, alpha {m.alpha:g}, beta {m.beta:g}, batch {m.batch}, "
            f"inputs {self.inputs}, weights {self.weights}; {len(self.model.prefix)} frozen, {layers}"
        )


def drawn(seed: int) -> Experiment:
    """The first draw that the generator accepts: it refuses what has no formats."""
    for attempt in range(200):
        chance = random.Random(f"{seed}.{attempt}")
        try:
            return _attempt(chance, seed, 1000 * seed + attempt)
        except (UserError, ValidationError):
            continue
    raise AssertionError(f"seed {seed}: the generator refuses everything")


def _attempt(chance: random.Random, seed: int, network: int) -> Experiment:
    settings = _settings(chance)
    data, floats = random_float_model(
        settings, network, depth=chance.choice([None, None, 0]), frozen=chance.random() < 0.25,
        shape=chance.choice(SHAPES),
    )  # fmt: skip
    inputs = chance.choice(INPUTS)
    floats = _scaled(floats, chance.choice([0.01, 1.0, 1.0, 30.0, 1000.0]))
    known = _with_inputs(data, inputs, network) if chance.random() < 0.5 else data  # else the data is a surprise
    model = quantise.quantise(settings, known, floats)
    weights = chance.choice(WEIGHTS)
    model = _cornered(model, weights, np.random.default_rng(network))
    proof.overflow_proof(model)
    plan.check(plan.plan(model, load_board("native")))
    return Experiment(seed, settings, model, inputs, weights)


def _settings(chance: random.Random) -> Config:
    return config(
        model={"freeze": 1, "latent": chance.random() < 0.5} if chance.random() < 0.25 else {},
        sparsity={
            "weights": chance.choice([0.0, 0.3, 0.6, 0.9]),
            "block": chance.choice([1, 2, 4]),
            "dense_input": chance.choice([None, False]),
            "dense_output": chance.random() < 0.5,
            "dense_depthwise": chance.random() < 0.3,
        },
        method={
            "name": chance.choice(["finetune", "er", "der++", "der++", "der++"]),
            "epochs": 2,
            "batch": chance.choice([1, 1, 2, 16, 256]),
            "buffer": 6,
            "lr": chance.choice([1e-4, 0.03, 0.3, 1.0]),
            "lr_final": chance.choice([1.0, 0.01]),
            "alpha": chance.choice([0.0, 0.01, 1.0, 16.0]),
            "beta": chance.choice([0.0, 0.5, 16.0]),
            "shared_draws": chance.choice([0, 1, 4]),
            "refresh": chance.random() < 0.5,
            "rounding": chance.choice(["stochastic", "nearest"]),
            "single_head": chance.choice(["off", "score", "loss"]),
            "training": chance.choice(["resident", "streamed"]),
        },
        tdm={
            "enabled": chance.random() < 0.7,
            "interval": 0.5,
            "p_intra": 0.3,
            "p_inter": chance.choice([0.0, 0.2]),
            "growth": chance.choice(["random", "gradient"]),
            "alpha": chance.choice([0.0, 0.5, 4.0]),
            "beta": chance.choice([0.0, 1.0, 4.0]),
            "capture": chance.choice([1, 2, 16]),
        },
        dgm={"enabled": chance.random() < 0.5},
        ddr={"enabled": chance.random() < 0.5, "score": chance.choice(["misclassification", "loss"])},
    )


def _scaled(floats: FloatModel, by: float) -> FloatModel:
    return replace(floats, layers=tuple(replace(y, weight=y.weight * by, bias=y.bias * by) for y in floats.layers))


def extreme(kind: str, signed: bool, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.integer]:
    """Samples of 8 bit: all the same, corners, or anything."""
    low, high = (-128, 127) if signed else (0, 255)
    dtype = np.int8 if signed else np.uint8
    fixed = {"low": low, "high": high, "zero": 0}
    if kind == "mixed":
        rows = [extreme(str(rng.choice(INPUTS[:-1])), signed, shape[1:], rng) for _ in range(shape[0])]
        return np.array(rows, dtype=dtype)
    if kind in fixed:
        return np.full(shape, fixed[kind], dtype=dtype)
    if kind == "corners":
        return rng.choice(np.array([low, high], dtype=dtype), size=shape)
    return rng.integers(low, high + 1, size=shape).astype(dtype)


def _with_inputs(data: Dataset, kind: str, seed: int) -> Dataset:
    rng = np.random.default_rng(seed)

    def changed(task: Task) -> Task:
        return replace(task, x_train=extreme(kind, data.signed, task.x_train.shape, rng))

    return replace(data, tasks=tuple(map(changed, data.tasks)))


# ---------------------------------------------------------------- weights


def _cornered(model: Model, kind: str, rng: np.random.Generator) -> Model:
    """Weights and biases at the ends of their ranges, where a run can take them."""
    if kind == "as they are":
        return model
    layers = tuple(_corner(layer, kind, rng) if layer.weighted else layer for layer in model.layers)
    model = replace(model, layers=layers)
    return replace(model, model_hash=model_hash(model))


def _corner(layer: Layer, kind: str, rng: np.random.Generator) -> Layer:
    low, high = -(1 << layer.wlog), (1 << layer.wlog) - 1
    outputs = {
        "low": np.full(layer.n_pad, low),
        "high": np.full(layer.n_pad, high),
    }.get(kind, rng.choice([low, high], size=layer.n_pad))  # "rows": all weights of an output alike

    def weights(output: NDArray[np.integer]) -> NDArray[np.int16]:
        values = rng.choice([low, high], size=output.shape) if kind == "corners" else outputs[output]
        return np.where(output < layer.n_out, values, 0).astype(np.int16)

    limit = (1 << layer.blog) - 1
    bias = np.where(np.arange(layer.n_pad) < layer.n_out, np.sign(outputs) * limit, 0).astype(np.int32)
    if layer.sparse:
        return replace(layer, bias=bias, panels=tuple(_corner_panel(layer, p, weights) for p in layer.panels))
    assert layer.weight is not None
    rows, columns = np.indices(layer.weight.shape)
    return replace(layer, bias=bias, weight=weights(columns if layer.op is Op.DENSE else rows))


def _corner_panel(layer: Layer, panel: Panel, weights: Any) -> Panel:
    line = np.repeat(np.arange(layer.lines), np.diff(panel.start))
    block = line if layer.by_output else panel.first + panel.index
    return replace(panel, weight=weights(block[:, None] * layer.block + np.arange(layer.block)))


# ---------------------------------------------------------------- a run


class Extremist(Teacher):
    """Teaches samples of one kind."""

    def __init__(self, twin: Twin, experiment: Experiment) -> None:
        super().__init__(twin, experiment.seed)
        self.kind = experiment.inputs

    def draw(self, classes: Sequence[int], count: int, seed: int) -> tuple[NDArray[np.integer], NDArray[np.uint8]]:
        """Inputs that say nothing of their labels."""
        x = extreme(self.kind, self.twin.model.signed, (count, self.twin.model.n_in), self.rng)
        return x, self.rng.choice(np.array(classes), size=count).astype(np.uint8)


def build(model: Model, folder: Path) -> Path:
    """Overflows need no address sanitizer."""
    return native.build(model, folder, extra=("-fno-sanitize=address", "-w"))


def run(experiment: Experiment, folder: Path) -> Watch:
    """Two tasks; the board and the reference agree in every reply and state, and nothing leaves what was proven."""
    model = experiment.model
    image = build(model, folder)
    with watching(model) as watch, running(model, image) as twin:
        teacher = Extremist(twin, experiment)
        for number, classes in enumerate([(0, 1), (2, 3)]):
            teacher.begin(classes, SAMPLES, streamed=model.learning.streamed, seed=number)
            teacher.finish()
            for kind in INPUTS[:-1]:
                twin.good(Command.PREDICT, extreme(kind, model.signed, (model.n_in,), teacher.rng).tobytes())
        twin.check_dump()
    return watch


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=int)
    parser.add_argument("count", type=int, nargs="?", default=1)
    given = parser.parse_args()
    failed, began = [], time.monotonic()
    shares: dict[str, float] = {}
    for seed in range(given.first, given.first + given.count):
        experiment = drawn(seed)
        print(experiment, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            try:
                for what, share in run(experiment, Path(folder)).shares.items():
                    shares[what] = max(share, shares.get(what, 0.0))
            except AssertionError as error:
                failed.append(seed)
                print(f"   failed: {error}", flush=True)
    for what, share in sorted(shares.items()):
        print(f"{100 * share:6.1f} %  {what}")
    print(f"{given.count} experiments in {time.monotonic() - began:.0f} s, failed: {failed or 'none'}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
