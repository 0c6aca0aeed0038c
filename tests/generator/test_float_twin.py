# SPDX-License-Identifier: Apache-2.0
"""The floating-point twin: its network and gradients, its masks, its schedules, and what it learns."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sparcl_mcu.generator import architecture, config, data, float_twin, network, quantise, train
from sparcl_mcu.generator.config import Config
from sparcl_mcu.generator.float_twin import Mask, Twin
from sparcl_mcu.host_tools.stream import replay_records
from sparcl_mcu.reference import Device
from sparcl_mcu.spec.prng import Prng
from sparcl_mcu.spec.types import Activation, Dataset, FloatLayer, FloatModel, Model, Op, Task, Window
from sparcl_mcu.spec.wire import Command, Phase
from tests.reference.models import samples, task_begin

pytestmark = pytest.mark.tensorflow

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
CONVOLUTIONS = (
    {"type": "conv2d", "filters": 6, "kernel": 3},
    {"type": "max_pool", "size": 2},
    {"type": "conv2d", "filters": 12, "kernel": 3},
)
RECIPE: dict[str, Any] = {
    "data": {"set": "digits"},
    "tasks": {"split": ((0, 1), (2, 3))},
    "initial": {"train": "none"},
    "sparsity": {"weights": 0.5, "block": 2},
    "method": {"epochs": 4, "buffer": 50},
    "dgm": {"enabled": True},
    "ddr": {"enabled": True},
}


def experiment(**sections: dict[str, Any]) -> tuple[Config, Dataset, FloatModel, Model]:
    """Artefacts of the recipe with changes."""
    names = RECIPE.keys() | sections.keys()
    settings = Config.model_validate({name: RECIPE.get(name, {}) | sections.get(name, {}) for name in names})
    dataset = data.load(settings)
    float_model = train.train(settings, dataset)
    return settings, dataset, float_model, quantise.quantise(settings, dataset, float_model)


def per_panel(mask: Mask, entries: NDArray[np.bool_]) -> list[int]:
    return [int(entries[:, p.first : p.first + p.places].sum()) for p in mask.layer.panels]


# ---------------------------------------------------------------- learning


@pytest.mark.parametrize(
    ("model", "method"),
    [({"hidden": (32,)}, {}), ({"layers": CONVOLUTIONS}, {"lr": 0.02, "alpha": 0.5, "beta": 1.0, "epochs": 8})],
    ids=["dense", "conv"],
)
def test_it_learns_and_keeps_the_masks(model: dict[str, Any], method: dict[str, Any]) -> None:
    settings, dataset, float_model, quantised = experiment(model=model, method=method)
    twin = Twin(settings, dataset, float_model, quantised)
    before = [None if mask is None else mask.exists.copy() for mask in twin.masks]
    for number, task in enumerate(dataset.tasks):
        twin.learn(number)
        assert twin.accuracy(task)[0] > 85.0
        n = len(task.y_train)
        assert twin.removed[number] == 300 * n // 1000
        assert len(twin.table) == n - twin.removed[number]
        assert len(set(twin.table.tolist())) == len(twin.table)
    assert np.mean([twin.accuracy(task)[0] for task in dataset.tasks]) > 75.0
    assert sum(mask is not None for mask in twin.masks) >= 1
    for weight, mask, old in zip(twin.weights, twin.masks, before, strict=True):
        if mask is None:
            continue
        assert not weight[~mask.spread(mask.exists)].any()
        assert (mask.exists != old).any(), "weights move"
        assert per_panel(mask, mask.exists) == [p.nnz for p in mask.layer.panels]
        assert per_panel(mask, mask.learns) == [p.grad for p in mask.layer.panels]
        assert not (mask.learns & ~mask.exists).any()


@pytest.mark.parametrize("refresh", [True, False])
def test_the_buffer_holds_what_the_network_makes_of_it_at_the_end_of_a_task(refresh: bool) -> None:
    twin = Twin(*experiment(model={"hidden": (32,)}, method={"refresh": refresh}))
    for number in range(2):
        twin.learn(number)
        held, before = twin.buffer.samples, twin.stored.copy()
        assert len(held) == 50
        twin.take_logits()
        assert (before == twin.stored).all() == refresh
        assert len(set(held)) == len(held) or not refresh, "a sample is offered once"


@pytest.mark.parametrize("growth", ["random", "gradient"])
@pytest.mark.parametrize("ddr", [True, False])
@pytest.mark.parametrize("method", [{}, {"refresh": False, "shared_draws": 0}], ids=["default", "published"])
def test_it_chooses_as_the_board_does(method: dict[str, Any], ddr: bool, growth: str) -> None:
    """Order, buffer, draws and growth take the same numbers, though the weights are not the same."""
    base = {"train": "base", "base_classes": (4, 5)}
    tdm = {"p_inter": 0.1, "growth": growth}
    sections = {"data": {"train_per_class": 60}, "initial": base, "method": method, "ddr": {"enabled": ddr}, "tdm": tdm}
    artefacts = experiment(model={"hidden": (32,)}, **sections)
    _, dataset, _, quantised = artefacts
    twin, board = Twin(*artefacts), Board(dataset, quantised)
    assert twin.buffer.samples == board.buffer()
    for number, task in enumerate(dataset.tasks):
        twin.learn(number)
        board.learn(task)
        assert twin.choices.state == board.device.state.choices.state
        if not ddr:
            assert twin.table.tolist() == board.device.state.table.ids
            assert twin.buffer.samples == board.buffer()
        board.ask(Command.TASK_END)
    same = np.mean([a == b for a, b in zip(twin.buffer.samples, board.buffer(), strict=True)])
    assert same > 0.7, "also where DDR removes samples by what has been learned"


class Board:
    """The reference as a board, which learns what the twin learns."""

    def __init__(self, dataset: Dataset, model: Model) -> None:
        assert dataset.base is not None
        self.device = Device(model)
        self._first = [0, len(dataset.base.y_train)]
        for task in dataset.tasks:
            self._first.append(self._first[-1] + len(task.y_train))
        for r in replay_records(dataset.base, 0, model.learning):
            self.ask(Command.REPLAY, struct.pack("<IHBB", r.seen, r.id, r.task, r.label) + r.x.tobytes())

    def ask(self, command: Command, request: bytes = b"") -> None:
        reply = self.device.apply(command, request)
        assert reply is not None
        assert reply.status == 0

    def learn(self, task: Task) -> None:
        self.ask(Command.TASK_BEGIN, task_begin(task.classes, len(task.y_train)))
        self.ask(Command.SAMPLES, samples(0, task.x_train, task.y_train.astype(np.uint8)))
        while self.device.phase == Phase.TRAINING:
            self.ask(Command.TRAIN, struct.pack("<HB", 100, 0))

    def buffer(self) -> list[int]:
        """As the twin numbers samples."""
        return [self._first[slot.sample.task] + slot.sample.id for slot in self.device.state.replay.slots]


def test_weights_outside_of_the_gradient_mask_stay_as_they_are() -> None:
    settings, dataset, float_model, quantised = experiment(
        model={"hidden": (32,)}, method={"epochs": 1}, tdm={"enabled": False, "interval": 1.0}
    )
    twin = Twin(settings, dataset, float_model, quantised)
    old = twin.weights[0].copy()
    mask = twin.masks[0]
    assert mask is not None
    learns = mask.spread(mask.learns)
    twin.learn(0)
    assert (mask.spread(mask.learns) == learns).all(), "no mask update at the end of the only epoch"
    assert (twin.weights[0][~learns] == old[~learns]).all()
    assert (twin.weights[0][learns] != old[learns]).mean() > 0.5


def test_the_same_seed_gives_the_same_result() -> None:
    artefacts = experiment(model={"hidden": (32,)})
    first, second = float_twin.run(*artefacts), float_twin.run(*artefacts)
    assert first.class_il == second.class_il
    assert first.class_il[0][1] is None
    assert first.accuracy == pytest.approx(np.mean(first.class_il[-1]))
    assert all(a <= b for a, b in zip(first.class_il[-1], first.task_il[-1], strict=True) if a is not None)
    *others, model = artefacts
    other = dataclasses.replace(model, learning=dataclasses.replace(model.learning, seed=1))
    assert float_twin.run(*others, other).class_il != first.class_il


def test_the_host_learns_the_first_task() -> None:
    artefacts = experiment(model={"hidden": (32,)}, initial={"train": "first_task"}, tasks={"first": "host"})
    _, dataset, float_model, _ = artefacts
    twin = Twin(*artefacts)
    assert twin.first == 1
    lines: list[str] = []
    result = float_twin.run(*artefacts, progress=lines.append)
    assert result.class_il[0][0] == pytest.approx(float_model.accuracy[dataset.tasks[0].name], abs=0.01)
    assert result.removed[0] == 0
    assert result.removed[1] > 0
    assert result.accuracy > 80.0
    assert len(lines) == 2


def test_frozen_layers_do_not_learn() -> None:
    settings, dataset, float_model, quantised = experiment(model={"layers": CONVOLUTIONS, "freeze": 1})
    twin = Twin(settings, dataset, float_model, quantised)
    assert len(twin.weights) == 2
    twin.learn(0)
    assert twin.accuracy(dataset.tasks[0])[0] > 90.0


# ---------------------------------------------------------------- gradients


def every_operation(random: np.random.Generator) -> FloatModel:
    """A network of pictures with all kinds of layers, strides and margins."""
    same = "same"
    shape = (2, 7, 6)
    window, out = architecture.slide((7, 6), (3, 3), (1, 1), same)
    layers = [architecture.convolution(0, shape, 4, window, (out[0], out[1]), Activation.RELU, "")]
    window, half = architecture.slide((7, 6), (3, 3), (2, 2), same)
    layers.append(architecture.pooling(Op.MAX_POOL, 1, (4, 7, 6), window, half, ""))
    window, _ = architecture.slide(half, (3, 2), (1, 1), same)
    layers.append(architecture.depthwise(2, (4, *half), 2, window, half, Activation.NONE, ""))
    layers.append(architecture.convolution(3, (8, *half), 8, Window(1, 1), half, Activation.RELU6, ""))
    layers.append(architecture.plain(Op.ADD, (4, 3), (8, *half), Activation.RELU, ""))
    window, quarter = architecture.slide(half, (3, 3), (2, 2), same)
    layers.append(architecture.pooling(Op.AVG_POOL, 5, (8, *half), window, quarter, ""))
    layers.append(architecture.plain(Op.PAD, (6,), (8, *quarter), Activation.NONE, ""))
    layers.append(architecture.dense(7, (8, *quarter), 5, Activation.NONE, ""))

    def filled(layer: FloatLayer) -> FloatLayer:
        if not layer.weighted:
            return layer
        deviation = np.sqrt(2.0 / layer.weight.shape[0])
        return dataclasses.replace(
            layer,
            weight=random.normal(0.0, deviation, layer.weight.shape),
            bias=random.normal(0.0, 0.1, layer.bias.shape),
        )

    return FloatModel(shape, tuple(filled(layer) for layer in layers), {})


def logits(float_model: FloatModel, parameters: list[NDArray[np.float64]], x: NDArray[Any]) -> NDArray[np.float64]:
    """By generator.network, with other weights and biases (in this order)."""
    count = len(parameters) // 2
    fresh = iter(zip(parameters[:count], parameters[count:], strict=True))
    layers = []
    for layer in float_model.layers:
        if layer.weighted:
            weight, bias = next(fresh)
            layers.append(dataclasses.replace(layer, weight=weight, bias=bias))
        else:
            layers.append(layer)
    return network.forward(layers, x.astype(np.float64))[-1].reshape(len(x), -1)


def slopes(loss: Any, parameters: list[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """Numerical gradients of ``loss(parameters)``."""
    result = []
    for values in parameters:
        slope = np.zeros_like(values)
        for place in np.ndindex(values.shape):
            kept = values[place]
            values[place] = kept + 1e-6
            above = loss(parameters)
            values[place] = kept - 1e-6
            slope[place] = (above - loss(parameters)) / 2e-6
            values[place] = kept
        result.append(slope)
    return result


@pytest.fixture
def uncompiled() -> Iterator[None]:
    """The same operations one by one: compiled they take seconds before the first step."""
    tensorflow = float_twin._tensorflow()
    tensorflow.config.run_functions_eagerly(True)
    yield
    tensorflow.config.run_functions_eagerly(False)


@pytest.mark.usefixtures("uncompiled")
def test_one_step_with_shared_draws_is_gradient_descent_on_the_losses() -> None:
    test_one_step_is_gradient_descent_on_the_losses(1, 2)


@pytest.mark.parametrize(("batch", "shared"), [(1, 0), pytest.param(4, 0, marks=pytest.mark.slow)])
def test_one_step_is_gradient_descent_on_the_losses(batch: int, shared: int) -> None:
    random = np.random.default_rng(0)
    float_model = every_operation(random)
    settings = Config.model_validate(
        RECIPE | {"method": {"batch": batch, "shared_draws": shared}, "model": {"hidden": (8,)}}
    )
    dataset = data.load(settings)
    learning = quantise.quantise(settings, dataset, train.train(settings, dataset)).learning
    learning = dataclasses.replace(learning, single_head=type(learning.single_head).OFF)
    engine = float_twin._engine(float_twin._nodes(float_model), (0, 1, 2, 3), 5, float_twin._rules(learning))
    weights = [layer.weight.astype(np.float32) for layer in float_model.layers if layer.weighted]
    biases = [layer.bias.astype(np.float32) for layer in float_model.layers if layer.weighted]
    parameters = [a.astype(np.float64) for a in (*weights, *biases)]
    x = random.normal(0.0, 1.0, (4, *float_model.input_shape)).astype(np.float32)
    y = random.integers(0, 5, 4).astype(np.int32)
    stored = random.normal(0.0, 1.0, (6, 5)).astype(np.float32)
    masks = [(random.random(w.shape) < 0.5).astype(np.float32) for w in weights]
    before = logits(float_model, parameters, x)
    np.testing.assert_allclose(engine.logits(weights, biases, x), before, atol=1e-5)

    plan = np.array([[0, 1, 4, 1, 2, 1, 5, 3]], np.int32)  # draws: slot 2 with sample 1, slot 5 with sample 3
    own = np.ones(5, np.bool_)
    samples = engine.constants((x, y))
    done = engine.train(plan, weights, biases, masks, stored, samples, rate=0.1, own=own, capture=True)

    def entropy(sample: int) -> Any:
        def loss(p: list[NDArray[np.float64]]) -> float:
            z = logits(float_model, p, x[sample : sample + 1])[0]
            return float(np.log(np.exp(z).sum()) - z[y[sample]])

        return loss

    def distance(sample: int, slot: int) -> Any:
        def loss(p: list[NDArray[np.float64]]) -> float:
            return float(np.mean(np.square(logits(float_model, p, x[sample : sample + 1])[0] - stored[slot])))

        return loss

    def both(sample: int, slot: int) -> Any:
        """Their mean, weighted by alpha and beta."""
        share = learning.alpha / (learning.alpha + learning.beta)
        first, second = distance(sample, slot), entropy(sample)
        return lambda p: share * first(p) + (1.0 - share) * second(p)

    assert done["loss"][0] == pytest.approx(entropy(0)(parameters), abs=1e-5)
    assert done["wrong"][0] == (before[0].argmax() != y[0])
    np.testing.assert_allclose(done["logits"][4], before[0], atol=1e-5)
    kept = [0, 1, 2, 3, 5]
    assert (done["logits"][kept] == stored[kept]).all()
    waiting = [np.zeros_like(a) for a in parameters]
    terms = [(distance(1, 2), learning.alpha, None), (entropy(3), learning.beta, "replay")]
    if shared:
        weight = (learning.alpha + learning.beta) / 2
        terms = [(both(1, 2), weight, "replay"), (both(3, 5), weight, None)]
    for loss, coefficient, captured in [(entropy(0), 1.0, "current"), *terms]:
        gradients = slopes(loss, parameters)
        if captured:
            for got, expected in zip(done[captured], gradients[: len(weights)], strict=True):
                np.testing.assert_allclose(got, expected, atol=2e-5)
        factors = [*masks, *(1.0 for _ in biases)]
        steps = [0.1 * coefficient * g * f for g, f in zip(gradients, factors, strict=True)]
        waiting = [a + b for a, b in zip(waiting, steps, strict=True)]
        if batch == 1 or captured == "replay":
            parameters = [a - b for a, b in zip(parameters, waiting, strict=True)]
            waiting = [np.zeros_like(a) for a in parameters]
    for got, expected in zip((*done["weights"], *done["biases"]), parameters, strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-5)


# ---------------------------------------------------------------- masks


def test_pruning_takes_the_least_and_growing_the_best_places() -> None:
    _, _, _, quantised = experiment(model={"layers": CONVOLUTIONS})
    layer = next(layer for _, layer in quantised.weighted if layer.sparse and layer.op is Op.CONV)
    panel = layer.panels[0]
    random = np.random.default_rng(1)
    mask = Mask(layer)
    importance, best = random.random(mask.exists.shape), random.random(mask.exists.shape)
    line, place = np.nonzero(mask.exists)
    order = np.argsort(importance[line, place])[: panel.swap]
    gone = set(zip(line[order].tolist(), place[order].tolist(), strict=True))
    old = mask.exists.copy()
    mask.move(importance, best, random)
    assert panel.swap > 0
    assert per_panel(mask, mask.exists) == [p.nnz for p in layer.panels]
    free = np.sort(np.where(old, -1.0, best), axis=None)[-2 * panel.swap :]
    grown = mask.exists & ~old
    assert best[grown].min() >= free[0]
    assert {tuple(p) for p in np.argwhere(old & ~mask.exists).tolist()} <= gone


def test_block_scores_are_means_over_outputs_of_one_place() -> None:
    _, _, _, quantised = experiment(model={"layers": CONVOLUTIONS})
    for _, layer in quantised.weighted:
        if not layer.sparse:
            continue
        mask = Mask(layer)
        values = np.random.default_rng(2).random((layer.n_in, layer.n_out))
        means = mask.blocks(values)
        assert means.shape == mask.exists.shape
        row = means[:, 3] if layer.op is Op.CONV else means[3]
        np.testing.assert_allclose(row, values[3].reshape(-1, layer.block).mean(axis=1))
        assert mask.spread(mask.exists).sum() == mask.exists.sum() * layer.block


def test_growth_between_tasks_is_shrunk_back() -> None:
    settings, dataset, float_model, quantised = experiment(model={"hidden": (32,)}, tdm={"p_inter": 0.1})
    twin = Twin(settings, dataset, float_model, quantised)
    mask = twin.masks[0]
    assert mask is not None
    panel = mask.layer.panels[0]
    assert panel.grow_inter > 0
    mask.grow_between_tasks(Prng(0))
    assert per_panel(mask, mask.exists) == [panel.nnz + panel.grow_inter]
    twin.learn(0)
    assert per_panel(mask, mask.exists) == [panel.nnz]


# ---------------------------------------------------------------- accuracy


def prepare(name: str, seed: int) -> tuple[Config, Dataset, FloatModel, Model]:
    """The artefacts of an example."""
    settings = config.load(EXAMPLES / f"{name}.toml", (), seed)
    dataset = data.load(settings)
    float_model = train.train(settings, dataset)
    return settings, dataset, float_model, quantise.quantise(settings, dataset, float_model)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "low", "high"), [("split_mnist", 87.5, 92.0), ("split_digits", 82.0, 88.0)])
def test_the_accuracy_is_that_of_fixed_point(name: str, low: float, high: float) -> None:
    """Fixed point: 90.9 (split_mnist), 87.3 (split_digits), means over twenty and ten seeds."""
    results = [float_twin.run(*prepare(name, seed)) for seed in range(3)]
    assert low < np.mean([result.accuracy for result in results]) < high


def test_tasks_of_base_classes_fill_the_buffer() -> None:
    artefacts = experiment(
        model={"hidden": (32,)}, initial={"train": "base", "base_classes": (4, 5)}, method={"buffer": 30}
    )
    twin = Twin(*artefacts)
    base: Task | None = artefacts[1].base
    assert base is not None
    before = twin.accuracy(base)[0]
    assert before > 90.0
    for number in range(2):
        twin.learn(number)
    assert twin.accuracy(base)[0] > 60.0
