# SPDX-License-Identifier: Apache-2.0
"""The learning algorithm in floating point: what fixed point costs is the difference to the board.

Losses, masks and schedules of docs/spec/algorithm.md, with float32 weights, activations and errors:
nothing is rounded, clamped or guarded, and a latent is not quantised.  What is chosen at random
(the order of samples, what enters the buffer and is drawn from it, where masks grow) is chosen with
the board's own numbers, so that a run can be compared with the board's of the same seed.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sparcl_mcu.generator.config import Config
from sparcl_mcu.generator.network import channel_first, forward
from sparcl_mcu.spec.choices import free_places, shuffled
from sparcl_mcu.spec.prng import Prng
from sparcl_mcu.spec.types import (
    Activation,
    Dataset,
    DdrScore,
    FloatModel,
    Growth,
    Layer,
    Learning,
    Method,
    Model,
    Op,
    Panel,
    SingleHead,
    Task,
    Window,
)

Progress = Callable[[str], None]
Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]
Ints = NDArray[np.int64]
Matrix: TypeAlias = tuple[tuple[float | None, ...], ...]
Tensors: TypeAlias = Any
"""Tensors of TensorFlow, or lists or dictionaries of them: its functions are untyped."""

NEVER = -1e30
"""Logit of a class that is left out, and value outside of the input of a max_pool."""

EVALUATION_BATCH = 100
PREFIX_BATCH = 128


@dataclass(frozen=True)
class Result:
    """Accuracies in percent: ``class_il[i][j]`` on task j after task i has been learned, None for j > i.

    ``task_il`` likewise, where only the task's own classes compete.  ``removed``: samples DDR
    removed from each task.  ``seconds``: what learning and measuring took.
    """

    class_il: Matrix
    task_il: Matrix
    removed: tuple[int, ...]
    seconds: float

    @property
    def accuracy(self) -> float:
        """Mean class-IL accuracy over all tasks at the end."""
        return float(np.mean([value for value in self.class_il[-1] if value is not None]))


def run(
    config: Config, dataset: Dataset, float_model: FloatModel, model: Model, progress: Progress | None = None
) -> Result:
    """Learn all tasks, and measure after each of them as a session with the board does."""
    began = time.perf_counter()
    twin = Twin(config, dataset, float_model, model)
    class_il: list[tuple[float | None, ...]] = []
    task_il: list[tuple[float | None, ...]] = []
    for number, task in enumerate(dataset.tasks):
        if number >= twin.first:
            twin.learn(number)
        rows = zip(*(twin.accuracy(t) for t in dataset.tasks[: number + 1]), strict=True)
        blank = (None,) * (len(dataset.tasks) - number - 1)
        for matrix, row in zip((class_il, task_il), rows, strict=True):
            matrix.append((*row, *blank))
        if progress:
            progress(f"{task.name}: " + " ".join(f"{v:.1f}" for v in class_il[-1] if v is not None))
    removed = tuple(twin.removed.get(number, 0) for number in range(len(dataset.tasks)))
    return Result(tuple(class_il), tuple(task_il), removed, time.perf_counter() - began)


# ---------------------------------------------------------------- the algorithm


@dataclass
class Buffer:
    """The replay buffer: the samples in its slots, as numbers into all training samples, and how many were offered."""

    capacity: int
    samples: list[int]
    seen: int = 0

    def offer(self, sample: int, choices: Prng) -> int:
        """Reservoir sampling: the slot the sample is kept in, or ``capacity`` for none."""
        self.seen += 1
        if len(self.samples) < self.capacity:
            self.samples.append(sample)
            return len(self.samples) - 1
        slot = min(choices.below(self.seen), self.capacity)
        if slot < self.capacity:
            self.samples[slot] = sample
        return slot


class Twin:
    """A learner in floating point.

    ``weights``, ``biases``: of the layers that learn, (n_in, n_out) and (n_out,) each, as in
    ``FloatLayer``; ``masks``: of each of them, None where nothing is masked; ``table``: samples of
    the task that are still learned, as numbers into its training samples; ``first``: the first
    task that is learned here; ``removed``: by task, how many samples DDR removed; ``buffer``: the replay
    buffer, and ``stored``: (slots + 1, classes) its logits, the last row being of no slot; ``choices``: the
    generator of docs/spec/numerics.md, "Random numbers".
    """

    def __init__(self, config: Config, dataset: Dataset, float_model: FloatModel, model: Model) -> None:
        self._config = config
        self._learning = model.learning
        self._dataset = dataset
        self.choices = Prng(model.learning.seed)
        learns = [layer for layer in float_model.layers[float_model.frozen :] if layer.weighted]
        self.weights: list[Floats] = [np.asarray(layer.weight * layer.mask, np.float32) for layer in learns]
        self.biases: list[Floats] = [np.asarray(layer.bias, np.float32) for layer in learns]
        self.masks = [Mask(layer) if layer.sparse else None for _, layer in model.weighted]
        self._inputs = _Inputs(dataset, float_model)
        sparse = tuple(k for k, mask in enumerate(self.masks) if mask)
        self._engine = _engine(_nodes(float_model), sparse, dataset.n_classes, _rules(model.learning))
        self._samples = self._engine.constants((self._inputs.x_train, self._inputs.y_train))
        self.buffer = Buffer(model.learning.capacity, [])
        self.stored = np.zeros((model.learning.capacity + 1, dataset.n_classes), np.float32)
        self._grown = False
        self.table: Ints = np.zeros(0, np.int64)
        self.removed: dict[int, int] = {}
        self.first = int(config.tasks.first == "host")
        self._offset = 0
        """Number of a task on the board minus its number in the data set."""
        self._ship(dataset.tasks[0] if self.first else dataset.base)

    def _ship(self, known: Task | None) -> None:
        """Fill the buffer with samples of what the host has trained."""
        if known is None:
            return
        if not self.buffer.capacity:
            self._offset = -self.first
            return
        self._offset = 1 - self.first
        total = len(known.y_train)
        chosen = self._learning.shipped(total)
        self.buffer.samples = [int(n) for n in self._inputs.first(known) + chosen]
        self.buffer.seen = self._learning.offered(total)
        self.take_logits()

    def take_logits(self) -> None:
        """The logits of the whole buffer as the network computes them now."""
        samples = self.buffer.samples
        self.stored[: len(samples)] = self._engine.logits(self.weights, self.biases, self._inputs.x_train[samples])

    def accuracy(self, task: Task) -> tuple[float, float]:
        """Percent of a task's test samples: the arg-max over all classes, and over the task's own."""
        z = self._engine.logits(self.weights, self.biases, self._inputs.test(task))
        own = np.array(sorted(task.classes))
        return (
            100.0 * float(np.mean(z.argmax(axis=1) == task.y_test)),
            100.0 * float(np.mean(own[z[:, own].argmax(axis=1)] == task.y_test)),
        )

    def learn(self, number: int) -> None:
        """Learn a task of the data set."""
        task, learning = self._dataset.tasks[number], self._learning
        if learning.tdm and number + self._offset > 0 and not self._grown:
            for mask in self.masks:
                if mask and any(panel.grow_inter for panel in mask.layer.panels):
                    mask.grow_between_tasks(self.choices)
                    self._grown = True
        self.table = np.arange(len(task.y_train))
        scores = np.zeros(len(self.table))
        for epoch in range(learning.epochs):
            order = shuffled(len(self.table), self.choices)
            self.table, scores = self.table[order], scores[order]
            scores = self._epoch(task, epoch, scores)
            if learning.ddr and epoch < learning.ddr_until:
                scores = self._remove(number, epoch, len(task.y_train), scores)
        if learning.recomputes_logits:
            self.take_logits()

    def _remove(self, number: int, epoch: int, n_start: int, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """DDR at the end of an epoch; the scores of the samples that stay."""
        learning, n = self._learning, len(self.table)
        target = learning.rho_permille * n_start * (epoch + 1) // (1000 * learning.ddr_until)
        count = max(0, min(target - (n_start - n), n - 1))
        keep = np.ones(n, np.bool_)
        keep[np.argsort(scores, kind="stable")[:count]] = False
        self.table = self.table[keep]
        self.removed[number] = self.removed.get(number, 0) + count
        return scores[keep] * (learning.ddr_score is DdrScore.LOSS)

    def _epoch(self, task: Task, epoch: int, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Learn from the samples in the order of the table; their scores."""
        n, scores = len(self.table), scores.copy()
        due = self._updates(epoch, n)
        applied = {*range(self._learning.batch, n + 1, self._learning.batch), n, *due}
        position = 0
        for end in [*due, *([n] if n not in due else [])]:
            window = max(position, end - self._learning.capture) if end in due else end
            if window > position:
                self._steps(task, epoch, (position, window), applied, scores, capture=False)
            if end in due:
                self._update_masks(self._steps(task, epoch, (window, end), applied, scores, capture=True))
            position = end
        return scores

    def _updates(self, epoch: int, n: int) -> list[int]:
        """Positions of this epoch after which masks are updated."""
        learning = self._learning
        changes = (learning.tdm or learning.dgm) and any(self.masks)
        if not changes or (epoch + 1) % learning.update_every_epochs:
            return []
        due = {j * n // learning.updates_per_epoch for j in range(1, learning.updates_per_epoch + 1)} - {0}
        return sorted(due - ({n} if epoch + 1 == learning.epochs else set()))

    def _steps(
        self,
        task: Task,
        epoch: int,
        span: tuple[int, int],
        applied: set[int],
        scores: NDArray[np.float64],
        *,
        capture: bool,
    ) -> Tensors:
        """Training steps at the positions from ``span[0]`` to ``span[1]``; updates ``scores``."""
        learning = self._learning
        samples = self._inputs.first(task) + self.table[slice(*span)]
        applies = [position + 1 in applied for position in range(*span)]
        plan = self._plan(samples, applies, offered=learning.offers(epoch))
        share = learning.lr_q8[epoch] / 256.0 if learning.lr_q8 else 1.0
        own = np.isin(np.arange(self._dataset.n_classes), task.classes)
        gradient_masks = [mask.spread(mask.learns).astype(np.float32) if mask else None for mask in self.masks]
        done = self._engine.train(
            plan,
            self.weights,
            self.biases,
            gradient_masks,
            self.stored,
            self._samples,
            rate=self._config.method.lr / learning.batch * share,
            own=own,
            capture=capture,
        )
        self.weights, self.biases, self.stored = done["weights"], done["biases"], done["logits"]
        if learning.ddr_score is DdrScore.LOSS:
            scores[slice(*span)] = done["loss"]
        else:
            scores[slice(*span)] += done["wrong"]
        return done

    def _plan(self, samples: Ints, applied: Sequence[bool], *, offered: bool) -> NDArray[np.int32]:
        """Plan which samples each step takes and where it puts its own; independent of what is learned.

        (steps, 4 + 2 draws): sample; whether there is replay; slot the sample goes to; whether a batch
        ends here; then slot and sample of each draw: one for distillation and one for replay, or the shared ones.
        """
        buffer, learning, choices = self.buffer, self._learning, self.choices
        draws = _draws(learning)
        rows = []
        for sample, apply in zip(samples.tolist(), applied, strict=True):
            filled = len(buffer.samples)
            drawn = [choices.below(filled) if filled and draw.weight else 0 for draw in draws]
            pairs = [value for slot in drawn for value in ((slot, buffer.samples[slot]) if filled else (0, 0))]
            slot = buffer.offer(sample, choices) if offered else buffer.capacity
            rows.append((sample, filled > 0, slot, apply, *pairs))
        return np.array(rows, np.int32)

    def _update_masks(self, captured: Tensors) -> None:
        """Mask update of every sparse layer from the gradients captured."""
        learning = self._learning
        alpha, beta = learning.alpha_q8 / 256.0, learning.beta_q8 / 256.0
        sparse = [k for k, mask in enumerate(self.masks) if mask]
        for k, current, replay in zip(sparse, captured["current"], captured["replay"], strict=True):
            mask = self.masks[k]
            assert mask is not None
            gradient = alpha * np.abs(current) + beta * np.abs(replay)
            if learning.tdm:
                importance = mask.blocks(np.abs(self.weights[k]) + gradient / learning.capture)
                best = mask.blocks(gradient) if learning.growth is Growth.GRADIENT else None
                mask.move(importance, best, self.choices)
                self.weights[k] = self.weights[k] * mask.spread(mask.exists)
            mask.select(mask.blocks(gradient) if learning.dgm else None)
        self._grown = False


class Mask:
    """The masks of a sparse layer; matrices are (lines, places) as docs/spec/numerics.md defines them.

    ``exists``: which entries there are; ``learns``: those in the gradient mask.
    """

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.exists = np.zeros((layer.lines, sum(panel.places for panel in layer.panels)), np.bool_)
        self.learns = np.zeros_like(self.exists)
        for panel in layer.panels:
            line = np.repeat(np.arange(layer.lines), np.diff(panel.start))
            self.exists[line, panel.first + panel.index] = True
            self.learns[line, panel.first + panel.index] = np.arange(len(line)) < panel.split[line]

    def blocks(self, values: NDArray[np.floating]) -> NDArray[np.floating]:
        """(n_in, n_out) -> (lines, places): the mean over each block, in which padded outputs count as 0."""
        n_in, n_out = values.shape
        padded = np.zeros((n_in, self.layer.n_pad), values.dtype)
        padded[:, :n_out] = values
        means: NDArray[np.floating] = padded.reshape(n_in, -1, self.layer.block).mean(axis=2)
        return means.T if self.layer.by_output else means

    def spread(self, entries: Flags) -> Flags:
        """(lines, places) -> (n_in, n_out)."""
        rows = entries.T if self.layer.by_output else entries
        return np.repeat(rows, self.layer.block, axis=1)[:, : self.layer.n_out]

    def move(self, importance: NDArray[np.floating], best: NDArray[np.floating] | None, choices: Prng) -> None:
        """Prune to the panel's number of entries less SWAP, then grow SWAP at random or where ``best`` is highest."""
        for panel, s in self._panels():
            line, place = self._entries(s)
            surplus = panel.swap + len(line) - panel.nnz
            gone = np.argsort(importance[:, s][line, place], kind="stable")[: max(surplus, 0)]
            self.exists[:, s][line[gone], place[gone]] = False
            self.learns[:, s][line[gone], place[gone]] = False
            if best is None:
                self._grow_at_random(s, panel.swap, choices)
            else:
                free = np.where(self.exists[:, s], -1.0, best[:, s])
                self._grow(s, *np.unravel_index(np.argsort(-free, axis=None, kind="stable")[: panel.swap], free.shape))

    def select(self, score: NDArray[np.floating] | None) -> None:
        """The gradient mask: the GRAD entries of the highest score in each panel, or all entries."""
        if score is None:
            self.learns = self.exists.copy()
            return
        for panel, s in self._panels():
            line, place = self._entries(s)
            chosen = np.argsort(-score[:, s][line, place], kind="stable")[: panel.grad]
            self.learns[:, s] = False
            self.learns[:, s][line[chosen], place[chosen]] = True

    def grow_between_tasks(self, choices: Prng) -> None:
        """Grow GROW_INTER entries in each panel."""
        for panel, s in self._panels():
            self._grow_at_random(s, panel.grow_inter, choices)

    def _panels(self) -> list[tuple[Panel, slice]]:
        return [(panel, slice(panel.first, panel.first + panel.places)) for panel in self.layer.panels]

    def _entries(self, s: slice) -> tuple[Ints, Ints]:
        """Lines and places (within the panel) of its entries in storage order."""
        line, place = np.nonzero(self.exists[:, s])
        order = np.lexsort((place, ~self.learns[:, s][line, place], line))
        return line[order], place[order]

    def _grow(self, s: slice, line: Ints, place: Ints) -> None:
        self.exists[:, s][line, place] = True
        self.learns[:, s][line, place] = True

    def _grow_at_random(self, s: slice, count: int, choices: Prng) -> None:
        self._grow(s, *free_places(self.exists[:, s], count, choices))


class _Inputs:
    """All samples as the network that learns sees them: (samples, channels, height, width) float32.

    ``x_train``, ``y_train``: the training samples of the base classes and of all tasks, one after another.
    """

    def __init__(self, dataset: Dataset, float_model: FloatModel) -> None:
        self._float_model = float_model
        self._scale = 2.0**-dataset.fraction
        tasks = [*([dataset.base] if dataset.base else []), *dataset.tasks]
        self._first: dict[str, int] = {}
        total = 0
        for task in tasks:
            self._first[task.name] = total
            total += len(task.y_train)
        self.x_train = np.concatenate([self._tensor(task.x_train) for task in tasks])
        self.y_train = np.concatenate([task.y_train for task in tasks]).astype(np.int32)
        self._test: dict[str, Floats] = {}

    def first(self, task: Task) -> int:
        """Number of a task's first training sample."""
        return self._first[task.name]

    def train(self, task: Task) -> Floats:
        """The training samples of a task."""
        first = self.first(task)
        return self.x_train[first : first + len(task.y_train)]

    def test(self, task: Task) -> Floats:
        """The test samples of a task."""
        if task.name not in self._test:
            self._test[task.name] = self._tensor(task.x_test)
        return self._test[task.name]

    def _tensor(self, x: NDArray[np.integer]) -> Floats:
        """Output of the frozen layers for samples as they are stored."""
        prefix = self._float_model.layers[: self._float_model.frozen]
        parts = []
        for first in range(0, len(x), PREFIX_BATCH):
            part = channel_first(x[first : first + PREFIX_BATCH], self._float_model.input_shape, self._scale)
            parts.append(forward(prefix, part)[-1].astype(np.float32))
        return np.concatenate(parts)


# ---------------------------------------------------------------- in TensorFlow


@dataclass(frozen=True)
class _Node:
    """A learning layer without its weights; ``inputs``: tensor 0 is the input of the first such layer."""

    op: Op
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    activation: Activation
    window: Window | None
    multiplier: int


def _nodes(float_model: FloatModel) -> tuple[_Node, ...]:
    """The layers that learn; they read nothing of the frozen ones but the last tensor."""
    frozen = float_model.frozen
    return tuple(
        _Node(y.op, tuple(t - frozen for t in y.inputs), y.shape, y.activation, y.window, y.multiplier)
        for y in float_model.layers[frozen:]
    )


@dataclass(frozen=True)
class _Draw:
    """A sample drawn from the buffer in each step.

    ``weight``: coefficient of its loss, of which ``distil`` is the share of distillation and the rest that of
    the cross-entropy; ``captured``: whether its gradients count in the importance.
    """

    weight: float
    distil: float
    captured: bool


def _draws(learning: Learning) -> list[_Draw]:
    """The draws of a step, in the order they are drawn and learned."""
    a, b, shared = learning.alpha, learning.beta, learning.shared_draws
    if shared:
        return [_Draw((a + b) / shared, a / (a + b), captured=k == 0) for k in range(shared)]
    return [_Draw(a, 1.0, captured=False), _Draw(b, 0.0, captured=b > 0.0)]


@dataclass(frozen=True)
class _Rules:
    """The rules of learning that are compiled into a training step; ``table``: most steps of a call."""

    batch: int
    table: int
    head: SingleHead
    draws: tuple[_Draw, ...]


def _rules(learning: Learning) -> _Rules:
    draws = [] if learning.method is Method.FINETUNE else _draws(learning)
    return _Rules(learning.batch, learning.table, learning.single_head, tuple(draws))


@lru_cache(maxsize=64)
def _engine(nodes: tuple[_Node, ...], sparse: tuple[int, ...], n_classes: int, rules: _Rules) -> _Engine:
    """Compiling takes longer than learning does: what runs the same steps shares them, as all seeds of a method do."""
    return _Engine(nodes, sparse, n_classes, rules)


class _Engine:
    """The layers that learn, compiled: logits of many samples, and training steps one after another.

    ``sparse``: which of the layers with weights have masks.  Values are picked with ``gather``:
    XLA recompiles for every value an index of a slice has.
    """

    def __init__(self, nodes: tuple[_Node, ...], sparse: tuple[int, ...], n_classes: int, rules: _Rules) -> None:
        self._tf = _tensorflow()
        self._nodes = nodes
        self._sparse = sparse
        self._n_classes = n_classes
        self._rules = rules
        # No Python statement depends on a tensor; rewriting them (AutoGraph) would take as long as tracing.
        self._predict = self._tf.function(self._forward, autograph=False, jit_compile=True)
        self._train = self._tf.function(self._loop, autograph=False, jit_compile=True)

    def logits(self, weights: Sequence[Floats], biases: Sequence[Floats], x: Floats) -> Floats:
        """(samples, channels, height, width) -> (samples, classes)."""
        result = []
        for first in range(0, len(x), EVALUATION_BATCH):
            part = x[first : first + EVALUATION_BATCH]
            full = np.zeros((EVALUATION_BATCH, *x.shape[1:]), np.float32)
            full[: len(part)] = part
            result.append(self._predict(self.constants(weights), self.constants(biases), full).numpy()[: len(part)])
        return np.concatenate(result)

    def train(
        self,
        plan: NDArray[np.int32],
        weights: Sequence[Floats],
        biases: Sequence[Floats],
        gradient_masks: Sequence[Floats | None],
        logits: Floats,
        samples: Tensors,
        *,
        rate: float,
        own: Flags,
        capture: bool,
    ) -> dict[str, Any]:
        """Run the steps of ``plan`` (see ``Twin._plan``): the new weights, biases and logits in the buffer, and

        ``wrong``, ``loss``: (steps,) of the samples before the step; ``current``, ``replay``: for
        each sparse layer the sums of gradients, if ``capture``.
        """
        tf, steps = self._tf, len(plan)
        padded = np.zeros((self._rules.table, plan.shape[1]), np.int32)
        padded[:steps] = plan
        masks = {str(k): tf.constant(mask) for k, mask in enumerate(gradient_masks) if mask is not None}
        done = self._train(
            tf.constant(padded),
            tf.constant(steps),
            self.constants(weights),
            self.constants(biases),
            masks,
            tf.constant(logits),
            samples,
            tf.constant(rate, tf.float32),
            tf.constant(own),
            capture,
        )
        result: dict[str, Any] = tf.nest.map_structure(lambda t: t.numpy(), done)
        for name in ("wrong", "loss"):
            result[name] = result[name][:steps]
        return result

    def constants(self, arrays: Sequence[NDArray[Any]]) -> Tensors:
        """Arrays as tensors."""
        return [self._tf.constant(a) for a in arrays]

    def _loop(
        self,
        plan: Tensors,
        steps: Tensors,
        weights: Tensors,
        biases: Tensors,
        masks: Tensors,
        logits: Tensors,
        samples: Tensors,
        rate: Tensors,
        own: Tensors,
        capture: bool,
    ) -> Tensors:
        tf = self._tf
        zeros = [tf.zeros_like(v) for v in (*weights, *biases)] if self._rules.batch > 1 else []
        gradients = [tf.zeros_like(weights[k]) for k in self._sparse] if capture else []
        per_step = tf.zeros(tf.shape(plan)[0])
        state = {
            "weights": weights,
            "biases": biases,
            "sums": zeros,
            "logits": logits,
            "wrong": per_step,
            "loss": per_step,
            "current": gradients,
            "replay": gradients,
        }

        def body(k: Tensors, state: Tensors) -> Tensors:
            return k + 1, self._step(k, tf.gather(plan, k), dict(state), masks, samples, rate, own, capture)

        _, state = tf.while_loop(lambda k, _: k < steps, body, (tf.constant(0), state))
        return {name: value for name, value in state.items() if name != "sums"}

    def _step(
        self,
        k: Tensors,
        row: Tensors,
        state: dict[str, Tensors],
        masks: Tensors,
        samples: Tensors,
        rate: Tensors,
        own: Tensors,
        capture: bool,
    ) -> dict[str, Tensors]:
        """One training step (docs/spec/algorithm.md, "One training step"); the numbers in comments are its steps."""
        tf, rules, (x, y) = self._tf, self._rules, samples
        sample, filled, target, applied = (row[c] for c in range(4))
        filled = tf.cast(filled, tf.float32)
        everything = tf.ones_like(own)
        head = rules.head

        def loss_of(z: Tensors) -> Tensors:
            return self._cross_entropy(z, tf.gather(y, sample), own if head is SingleHead.LOSS else everything)

        def score_of(z: Tensors) -> Tensors:
            return self._cross_entropy(z, tf.gather(y, sample), everything if head is SingleHead.OFF else own)

        def learn(number: Tensors, loss: Callable[[Tensors], Tensors], rate: Tensors) -> tuple[Tensors, Tensors]:
            z, cost, gradients = self._gradients(state, tf.gather(x, number), loss)
            self._descend(state, gradients, rate, masks)
            return z, cost

        if capture:  # 4
            state["current"] = self._captured(state, "current", tf.gather(x, sample), score_of, 1.0)
        z, cost = learn(sample, loss_of, rate)  # 2, 5
        wrong = tf.cast(tf.argmax(z, output_type=tf.int32) != tf.gather(y, sample), tf.float32)
        for name, value in (("wrong", wrong), ("loss", cost)):  # 3
            state[name] = tf.tensor_scatter_nd_update(state[name], [[k]], [value])
        for number, draw in enumerate(rules.draws):  # 6
            slot, drawn = row[4 + 2 * number], row[5 + 2 * number]
            loss = self._replay_loss(draw, tf.gather(state["logits"], slot), tf.gather(y, drawn), everything)
            if capture and draw.captured:
                state["replay"] = self._captured(state, "replay", tf.gather(x, drawn), loss, filled)
            if draw.weight:
                learn(drawn, loss, rate * draw.weight * filled)
        if rules.draws:
            state["logits"] = tf.tensor_scatter_nd_update(state["logits"], [[target]], [z])  # 7
        if rules.batch > 1:  # 10
            self._apply(state, tf.cast(applied, tf.float32), masks)
        return state

    def _replay_loss(
        self, draw: _Draw, stored: Tensors, label: Tensors, everything: Tensors
    ) -> Callable[[Tensors], Tensors]:
        """Loss of a replayed sample's logits: the mean of its terms, weighted by their shares."""
        tf, a, b = self._tf, draw.distil, 1.0 - draw.distil

        def loss(z: Tensors) -> Tensors:
            distil = a * tf.reduce_mean(tf.square(z - stored)) if a else 0.0
            return distil + (b * self._cross_entropy(z, label, everything) if b else 0.0)

        return loss

    def _gradients(
        self, state: dict[str, Tensors], x: Tensors, loss: Callable[[Tensors], Tensors]
    ) -> tuple[Tensors, Tensors, Tensors]:
        """Logits and loss of one sample, and the gradients of all weights and biases."""
        tf = self._tf
        variables = [*state["weights"], *state["biases"]]
        with tf.GradientTape() as tape:
            tape.watch(variables)
            z = self._forward(state["weights"], state["biases"], x[tf.newaxis])[0]
            cost = loss(z)
        return z, cost, tape.gradient(cost, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    def _captured(
        self,
        state: dict[str, Tensors],
        name: str,
        x: Tensors,
        loss: Callable[[Tensors], Tensors],
        factor: Tensors | float,
    ) -> Tensors:
        gradients = self._gradients(state, x, loss)[2]
        return [s + gradients[k] * factor for s, k in zip(state[name], self._sparse, strict=True)]

    def _descend(self, state: dict[str, Tensors], gradients: Tensors, rate: Tensors, masks: Tensors) -> None:
        """Update in place with batch 1; with larger batches, add to the sums."""
        if self._rules.batch > 1:
            state["sums"] = [s + rate * g for s, g in zip(state["sums"], gradients, strict=True)]
        else:
            self._subtract(state, [rate * g for g in gradients], masks)

    def _apply(self, state: dict[str, Tensors], now: Tensors, masks: Tensors) -> None:
        """The end of a batch, if ``now`` is 1 and not 0."""
        self._subtract(state, [now * s for s in state["sums"]], masks)
        state["sums"] = [(1.0 - now) * s for s in state["sums"]]

    def _subtract(self, state: dict[str, Tensors], steps: Tensors, masks: Tensors) -> None:
        count = len(state["weights"])
        weights = []
        for k, (w, d) in enumerate(zip(state["weights"], steps[:count], strict=True)):
            weights.append(w - (d * masks[str(k)] if str(k) in masks else d))
        state["weights"] = weights
        state["biases"] = [b - d for b, d in zip(state["biases"], steps[count:], strict=True)]

    def _cross_entropy(self, z: Tensors, label: Tensors, classes: Tensors) -> Tensors:
        tf = self._tf
        allowed = tf.where(classes, z, NEVER)
        return tf.reduce_logsumexp(allowed) - tf.reduce_sum(allowed * tf.one_hot(label, self._n_classes))

    # ---- the network

    def _forward(self, weights: Tensors, biases: Tensors, x: Tensors) -> Tensors:
        """(samples, channels, height, width) -> (samples, classes)."""
        tensors = [x]
        parameters = iter(zip(weights, biases, strict=True))
        for layer in self._nodes:
            inputs = [tensors[t] for t in layer.inputs]
            tensors.append(self._activate(layer, self._output(layer, inputs, parameters)))
        return self._tf.reshape(tensors[-1], (-1, self._n_classes))

    def _output(self, layer: _Node, inputs: Sequence[Tensors], parameters: Any) -> Tensors:
        tf, x = self._tf, inputs[0]
        if layer.op is Op.DENSE:
            weight, bias = next(parameters)
            flat = tf.reshape(x, (-1, weight.shape[0]))
            return tf.reshape(tf.matmul(flat, weight) + bias, (-1, *layer.shape))
        if layer.op is Op.CONV:
            return self._convolution(layer, x, *next(parameters))
        if layer.op is Op.ADD:
            return tf.add_n(inputs)
        if layer.op is Op.PAD:
            return x
        return self._pooling(layer, x)

    def _activate(self, layer: _Node, v: Tensors) -> Tensors:
        if layer.activation is Activation.NONE:
            return v
        return self._tf.nn.relu(v) if layer.activation is Activation.RELU else self._tf.nn.relu6(v)

    def _convolution(self, layer: _Node, x: Tensors, weight: Tensors, bias: Tensors) -> Tensors:
        tf = self._tf
        columns = tf.stack(self._shifted(layer, x, 0.0), axis=2)  # (samples, channels, kernel positions, h, w)
        _, channels, area, height, width = columns.shape
        if layer.multiplier:
            columns = tf.reshape(columns, (-1, channels, area, height * width))
            kernel = tf.reshape(weight, (area, channels, layer.multiplier))
            v = tf.einsum("ncap,acm->ncmp", columns, kernel)
        else:
            columns = tf.reshape(columns, (-1, channels * area, height * width))
            v = tf.einsum("nip,io->nop", columns, weight)
        return tf.reshape(v, (-1, *layer.shape)) + tf.reshape(bias, (-1, 1, 1))

    def _pooling(self, layer: _Node, x: Tensors) -> Tensors:
        tf = self._tf
        if layer.op is Op.AVG_POOL:
            count = sum(self._shifted(layer, tf.ones_like(x[:1]), 0.0))
            return tf.add_n(self._shifted(layer, x, 0.0)) / count
        first, *others = self._shifted(layer, x, NEVER)
        for other in others:
            first = tf.where(other > first, other, first)  # on ties the first one gets the error
        return first

    def _shifted(self, layer: _Node, x: Tensors, fill: float) -> list[Tensors]:
        """For each kernel position, row by row, the input under it at every position of the output."""
        tf, window = self._tf, layer.window
        assert window is not None
        _, height, width = layer.shape
        rows, columns = (height - 1) * window.stride_h + 1, (width - 1) * window.stride_w + 1
        bottom, right = window.behind(x.shape[2:], (height, width))
        x = tf.pad(x, ((0, 0), (0, 0), (window.top, bottom), (window.left, right)), constant_values=fill)
        return [
            x[:, :, r : r + rows : window.stride_h, c : c + columns : window.stride_w]
            for r in range(window.kernel_h)
            for c in range(window.kernel_w)
        ]


def _tensorflow() -> Any:
    """TensorFlow on one thread: the steps are small, and other work shares the cores."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    tensorflow = importlib.import_module("tensorflow")
    with suppress(RuntimeError):  # it runs already, because an initial model was trained
        tensorflow.config.threading.set_intra_op_parallelism_threads(1)
        tensorflow.config.threading.set_inter_op_parallelism_threads(1)
    return tensorflow
