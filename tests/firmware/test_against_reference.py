# SPDX-License-Identifier: Apache-2.0
"""The C engine and the NumPy reference, request by request, on random models.

Every program is built with the address and undefined behaviour sanitizers.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparcl_mcu.host_tools import protocol
from sparcl_mcu.spec.types import Activation, DdrScore, Growth, Layer, Method, Model, Op, SingleHead
from sparcl_mcu.spec.wire import Command, Phase
from tests.firmware.native import Teacher, Twin, build, running
from tests.reference.models import Masks, Spec, conv_model, random_conv_model, random_model

Case = Mapping[str, Any]

FACTORS: dict[str, tuple[Any, ...]] = {
    "method": tuple(Method),
    "batch": (1, 2, 3),
    "block": (1, 2, 4),
    "layers": (1, 2, 3),
    "panels": (1, 2),
    "sparse_output": (False, True),
    "tdm": (False, True),
    "dgm": (False, True),
    "ddr": (False, True),
    "ddr_score": tuple(DdrScore),
    "growth": tuple(Growth),
    "p_inter": (0.0, 0.15),
    "single_head": tuple(SingleHead),
    "stochastic": (False, True),
    "streamed": (False, True),
    "signed": (False, True),
    "tight": (False, True),
    "updates": ((3, 1), (1, 2), (1, 1)),
    "capture": (1, 4),
    "terms": ((0.5, 0.5), (0.5, 0.0), (0.0, 0.5)),
    "shared_draws": (0, 1, 2),
    "refresh": (False, True),
    "lr_q8": ((), (256, 100)),
    "upload": (False, True),
    "interrupted": (False, True),
}
"""``terms``: alpha and beta.  ``upload``: replay records of a first task come from the host.
``interrupted``: saves and restarts in the middle of tasks."""

Pair = tuple[tuple[str, int], tuple[str, int]]


def pairs(case: Mapping[str, int]) -> set[Pair]:
    """All pairs of levels in one configuration (levels by number)."""
    return set(itertools.combinations(sorted(case.items()), 2))


def all_pairs() -> set[Pair]:
    """What the configurations have to cover."""
    return {
        ((a, i), (b, j))
        for a, b in itertools.combinations(sorted(FACTORS), 2)
        for i in range(len(FACTORS[a]))
        for j in range(len(FACTORS[b]))
    }


def covering() -> list[Case]:
    """Few configurations in which every pair of levels occurs (greedy, always the same)."""
    rng = random.Random(5)
    missing = all_pairs()
    rows: list[dict[str, int]] = []
    while missing:
        best: dict[str, int] = {}
        ordered = sorted(missing)
        for _ in range(60):
            row: dict[str, int] = dict(rng.choice(ordered))
            for name in rng.sample(sorted(FACTORS), len(FACTORS)):
                if name not in row:
                    gains = [
                        (sum(tuple(sorted((p, (name, level)))) in missing for p in row.items()), rng.random(), level)
                        for level in range(len(FACTORS[name]))
                    ]
                    row[name] = max(gains)[2]
            if not best or len(pairs(row) & missing) > len(pairs(best) & missing):
                best = row
        rows.append(best)
        missing -= pairs(best)
    return [{name: FACTORS[name][level] for name, level in row.items()} for row in rows]


CASES = covering()


def describe(case: Case) -> str:
    """A short name for a configuration."""
    on = [name for name in ("tdm", "dgm", "ddr", "streamed", "signed") if case[name]]
    return f"{case['method'].value}-b{case['batch']}-x{case['block']}-l{case['layers']}-{'-'.join(on)}"


def make(case: Case, seed: int) -> Model:
    """The model of a configuration."""
    layers, block = case["layers"], case["block"]
    rng = np.random.default_rng(seed)
    hidden = [int(rng.integers(5, 20)) for _ in range(layers - 1)]
    if case["panels"] > 1 and hidden:
        hidden[0] = 256 * block + int(rng.integers(1, 30))
    sizes = (int(rng.integers(6, 18)), *hidden, 5)
    return random_model(
        seed,
        sizes=sizes,
        sparse=[True] * (layers - 1) + [case["sparse_output"]],
        block=block,
        p_inter=case["p_inter"],
        signed=case["signed"],
        tight=case["tight"],
        scale=float(rng.choice([0.5, 1.0, 3.0])),
        density=float(rng.choice([0.2, 0.4])),
        grad_share=0.6 if case["dgm"] else 1.0,
        **learning(case),
    )


LEARNING = ("method", "batch", "tdm", "dgm", "ddr", "ddr_score", "growth", "capture", "single_head", "stochastic")


def learning(case: Case) -> dict[str, Any]:
    """The fields of ``Learning`` of a configuration."""
    alpha, beta = case["terms"]
    per_epoch, every = case["updates"]
    fields = {name: case[name] for name in (*LEARNING, "streamed", "lr_q8", "shared_draws", "refresh")}
    return fields | {"alpha": alpha, "beta": beta, "updates_per_epoch": per_epoch, "update_every_epochs": every}


def make_conv(case: Case, seed: int) -> Model:
    """A convolutional model of a configuration; its layers and sizes are drawn."""
    rng = np.random.default_rng(seed)
    scale = float(rng.choice([0.5, 1.0, 3.0]))
    model = random_conv_model(
        seed, classes=5, signed=case["signed"], tight=case["tight"], scale=scale, **learning(case)
    )
    if case["dgm"]:
        return model
    return replace(model, layers=tuple(all_learn(layer) for layer in model.layers))


def all_learn(layer: Layer) -> Layer:
    """Without DGM the gradient mask has room for all entries."""
    return replace(layer, panels=tuple(replace(panel, grad=panel.nnz) for panel in layer.panels))


def learn(twin: Twin, case: Case, seed: int) -> None:
    """Two tasks, with tests and mistakes in between."""
    teacher = Teacher(twin, seed)
    streamed = case["streamed"]
    twin.check_dump()
    if case["upload"] and twin.model.learning.method is not Method.FINETUNE:
        teacher.upload(min(3, twin.model.learning.capacity))
    for number, classes in enumerate([(0, 1), (2, 4)]):
        teacher.begin(classes, 23 - 6 * number, streamed=streamed, seed=seed + number)
        teacher.advance()
        teacher.mistakes()
        if case["interrupted"]:
            teacher.advance()
            twin.good(Command.SAVE)
            state = twin.restart() if number else twin.power_cut()
            assert state.restored
            twin.check_dump()
        teacher.evaluate()
        teacher.finish()
        twin.check_dump()
    teacher.evaluate()
    device = twin.device
    counted = protocol.statistics(twin.link)
    if not case["interrupted"]:
        assert (counted.training_steps, counted.passes) == (device.training_steps, device.passes)
    assert twin.restart().restored
    twin.check_dump()
    twin.good(Command.RESET, protocol.reset_request(twin.hello(), protocol.FACTORY))
    twin.check_dump()


def test_the_configurations_cover_all_pairs() -> None:
    """Every two features meet in at least one of the configurations below."""
    levels = [{name: FACTORS[name].index(case[name]) for name in FACTORS} for case in CASES]
    assert set().union(*map(pairs, levels)) == all_pairs()
    assert len(CASES) <= 20


@pytest.mark.parametrize("number", range(len(CASES)), ids=[describe(case) for case in CASES])
def test_pairs_of_features(number: int, tmp_path: Path) -> None:
    """Reply by reply and state by state equal to the reference."""
    case = CASES[number]
    model = make(case, 100 + number)
    with running(model, build(model, tmp_path)) as twin:
        learn(twin, case, number)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(60))
def test_random_features(number: int, tmp_path: Path) -> None:
    """The same for random configurations."""
    rng = random.Random(1000 + number)
    case = {name: rng.choice(levels) for name, levels in FACTORS.items()}
    model = make(case, 1000 + number)
    with running(model, build(model, tmp_path)) as twin:
        learn(twin, case, number)


@pytest.mark.parametrize("growth", Growth)
@pytest.mark.parametrize("block", [1, 4])
def test_gradient_sums_of_convolutions(growth: Growth, block: int, tmp_path: Path) -> None:
    """Masks that follow the captured gradients of both kinds, with restarts while these are captured.

    Errors pass a ReLU6 and norm guards; with blocks those captured are not those of the step.
    """
    conv = Spec(Op.CONV, channels=6, kernel=(3, 3), activation=Activation.RELU6, sparse=True, block=block)
    fork = (conv, conv, replace(conv, inputs=(1,)), Spec(Op.ADD, inputs=(2, 3), activation=Activation.RELU6))
    # Six outputs in blocks of four: errors of what is only there to fill the block have to stay 0.
    dense = Spec(Op.DENSE, channels=6, activation=Activation.RELU, sparse=True, block=block)
    linear = replace(dense, activation=Activation.NONE)
    tail = (dense, Spec(Op.CONV, channels=6), linear, Spec(Op.ADD, activation=Activation.RELU))
    model = conv_model(
        block,
        (2, 6, 6),
        [*fork, *(tail if growth is Growth.GRADIENT else (dense,)), Spec(Op.DENSE, channels=4)],
        scale=8.0,
        tight=True,
        single_head=SingleHead.LOSS if block == 1 else SingleHead.SCORE,
        masks=Masks(density=0.5, grad_share=0.5, p_intra=0.3, p_inter=0.2),
        growth=growth,
        method=Method.ER,
        alpha_q8=1024,
        beta_q8=1024,
        updates_per_epoch=3,
        ddr=False,
    )
    with running(model, build(model, tmp_path)) as twin:
        teacher = Teacher(twin, 1)
        for number, classes in enumerate([(0, 1), (2, 3)]):
            teacher.begin(classes, 20, streamed=False, seed=number)
            while twin.device.phase == Phase.TRAINING:
                teacher.advance(2)
                twin.good(Command.SAVE)
                twin.power_cut()
                twin.check_dump()
            teacher.finish()
        assert twin.device.state.counters.guard_shifts > 0


def few(cases: Sequence[Case]) -> set[int]:
    """Numbers of some in which every level of every feature, every layer and every use of a prefix still occurs."""
    models = [make_conv(case, 200 + number) for number, case in enumerate(cases)]
    offers = [{*case.items(), *kinds([model])} for case, model in zip(cases, models, strict=True)]
    missing, chosen = set().union(*offers), set()
    while missing:
        best = max(range(len(cases)), key=lambda number: len(offers[number] & missing))
        chosen.add(best)
        missing -= offers[best]
    return chosen


def kinds(models: Sequence[Model]) -> set[tuple[str, Any]]:
    """Layers masked and not, with a prefix stored as latent or not."""
    layers = [layer for model in models for layer in model.layers]
    convolutions = {("convolution", (k.sparse, k.multiplier > 0)) for k in layers if k.op is Op.CONV}
    prefixes = {("latent", model.latent_stored) for model in models if model.prefix}
    return {("op", layer.op) for layer in layers} | convolutions | prefixes


FEW = few(CASES)


@pytest.mark.parametrize(
    "number",
    [pytest.param(n, id=describe(case), marks=[] if n in FEW else pytest.mark.slow) for n, case in enumerate(CASES)],
)
def test_convolutional(number: int, tmp_path: Path) -> None:
    """The same pairs of features with convolutions, pooling, sums and frozen prefixes; quick: each feature."""
    case = CASES[number]
    model = make_conv(case, 200 + number)
    with running(model, build(model, tmp_path)) as twin:
        learn(twin, case, number)


def test_the_convolutional_models_have_every_kind_of_layer() -> None:
    """Those that are quick too, with each level of each feature."""
    convolutions = {("convolution", kind) for kind in itertools.product((False, True), repeat=2)}
    every = {("op", op) for op in Op} | convolutions | {("latent", stored) for stored in (False, True)}
    assert kinds([make_conv(CASES[number], 200 + number) for number in FEW]) == every
    for name, levels in FACTORS.items():
        assert {CASES[number][name] for number in FEW} == set(levels)
    assert len(FEW) <= 9


@pytest.mark.slow
@pytest.mark.parametrize("number", range(60))
def test_random_convolutional(number: int, tmp_path: Path) -> None:
    """Random models with random features."""
    rng = random.Random(2000 + number)
    case = {name: rng.choice(levels) for name, levels in FACTORS.items()}
    model = make_conv(case, 2000 + number)
    with running(model, build(model, tmp_path)) as twin:
        learn(twin, case, number)


def test_positions_of_32_bits(tmp_path: Path) -> None:
    """A panel with more than 65535 entries."""
    model = random_model(2, sizes=(300, 256, 3), block=1, density=0.9, p_intra=0.02, epochs=1, capture=1, table=16)
    assert model.layers[0].panels[0].capacity > 65535
    with running(model, build(model, tmp_path)) as twin:
        teacher = Teacher(twin, 1)
        for number, classes in enumerate([(0, 1), (1, 2)]):
            teacher.begin(classes, 6, streamed=False, seed=number)
            teacher.finish()
        twin.restart()
        twin.check_dump()
