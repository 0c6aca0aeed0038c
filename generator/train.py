# SPDX-License-Identifier: Apache-2.0
"""The initial model: made or imported, masked first and then trained sparse.

TensorFlow is imported only when there is something to train or to import (keras_model.py).
Pruning after dense training cost 4 points in continual learning; choosing the
mask first costs nothing (docs/spec/algorithm.md, "the initial model").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparcl_mcu.generator import architecture, keras_model, network, prune
from sparcl_mcu.generator.architecture import Shape, shown
from sparcl_mcu.generator.config import Config
from sparcl_mcu.generator.sizes import MOST_AT_ONCE
from sparcl_mcu.spec.errors import UserError
from sparcl_mcu.spec.types import Activation, Dataset, FloatLayer, FloatModel, Op, Task

Floats = NDArray[np.float64]

CHUNK = 16
"""Samples a convolution looks at together: its windows take much memory."""


def train(config: Config, dataset: Dataset) -> FloatModel:
    """The initial model: initialised or imported, masked, rescaled and, if the experiment says so, trained.

    Depends on the configuration, the data and an imported model only: the same seed gives the same bits.
    """
    known = dataset.base or dataset.tasks[0]
    tasks = [*([dataset.base] if dataset.base else []), *dataset.tasks]
    if config.model.imported:
        input_shape, layers, imported = _import(config, dataset, tasks)
    else:
        input_shape, layers = _initialise(config, dataset)
        imported = {}
    frozen = architecture.frozen_layers(layers, config.model.freeze, config.model.train_last)
    chosen = network.spread(len(known.x_train), config.initial.mask_samples)
    _check_at_once("initial.mask_samples", len(chosen), layers)
    if config.initial_train != "none":
        _check_at_once("initial.batch", min(config.initial.batch, len(known.x_train)), layers)
    samples = _samples(dataset, input_shape, known.x_train[chosen])
    masked = _masked(config, layers, frozen, samples)
    keeps = config.model.imported and config.initial_train == "none" and config.initial.rescale is None
    layers = _matched(layers, masked, samples) if keeps else masked
    if config.initial_train != "none":
        # An imported model's own weights are better than what training on one task would make of them.
        fixed = frozen if config.model.imported else 0
        layers = _fit(config, dataset, known, input_shape, layers, fixed)
    layers = _with_saliency(layers, samples)
    accuracy = {task.name: _accuracy(layers, dataset, input_shape, task) for task in tasks}
    return FloatModel(input_shape, layers, accuracy, frozen, imported)


def _check_at_once(option: str, count: int, layers: Sequence[FloatLayer]) -> None:
    """Raises ``UserError`` where the outputs of all layers for ``count`` samples take too much memory."""
    most = MOST_AT_ONCE // _outputs(layers)
    if count > most:
        raise UserError(f"{option} = {count}: of this network the host looks at no more than {most} samples at once")


def _outputs(layers: Sequence[FloatLayer]) -> int:
    return sum(math.prod(layer.shape) for layer in layers)


def _samples(dataset: Dataset, input_shape: Shape, x: NDArray[np.integer]) -> Floats:
    """Samples as the network sees them: (samples, channels, height, width)."""
    return network.channel_first(x, input_shape, 2.0**-dataset.fraction)


# ---------------------------------------------------------------- made


def _initialise(config: Config, dataset: Dataset) -> tuple[Shape, tuple[FloatLayer, ...]]:
    """He normal before ReLU, Glorot uniform at the output and where no activation follows; biases 0."""
    if config.model.layers is None:
        shape, layers = architecture.hidden_layers(config.model.hidden, dataset.n_in, dataset.n_classes)
    else:
        shape, layers = architecture.listed_layers(config.model.layers, dataset.shape, dataset.n_classes)
    random = np.random.default_rng(config.experiment.seed)
    return shape, tuple(_initial_weights(layer, random) if layer.weighted else layer for layer in layers)


def _initial_weights(layer: FloatLayer, random: np.random.Generator) -> FloatLayer:
    n_in, n_out = layer.weight.shape
    if layer.activation is not Activation.NONE:
        weight = random.normal(0.0, np.sqrt(2.0 / n_in), (n_in, n_out))
    else:
        fan_out = (layer.multiplier or n_out) * (layer.window.area if layer.window else 1)
        limit = np.sqrt(6.0 / (n_in + fan_out))
        weight = random.uniform(-limit, limit, (n_in, n_out))
    return replace(layer, weight=weight)


# ---------------------------------------------------------------- imported


def _import(
    config: Config, dataset: Dataset, tasks: Sequence[Task]
) -> tuple[Shape, tuple[FloatLayer, ...], dict[str, float]]:
    """The user's network with the outputs in the order of learning, and its accuracy as it came."""
    keras_model.check(config)
    keras = keras_model.start(config.experiment.seed)
    model = keras_model.load(keras, config)
    shape = keras_model.sample_shape(model)
    _check_samples(model.name, shape, dataset)
    scale = _input_scale(config, dataset, model)
    input_shape, layers = keras_model.from_keras(model, scale)
    outputs = _output_units(model.name, layers[-1].weight.shape[1], dataset)
    accuracy = {}
    for task in tasks:
        x = (task.x_test * (scale / 2.0**dataset.fraction)).astype(np.float32)
        z = keras_model.predict(model, x.reshape(-1, *shape))[:, outputs]
        accuracy[task.name] = _percent(z, task)
    last = replace(layers[-1], weight=layers[-1].weight[:, outputs], bias=layers[-1].bias[outputs])
    last = replace(last, shape=(len(outputs), 1, 1), mask=np.ones(last.weight.shape, dtype=np.bool_))
    return input_shape, (*layers[:-1], last), accuracy


def _check_samples(name: str, shape: tuple[int, ...], dataset: Dataset) -> None:
    """The model's samples are those of the data, up to axes of length 1 and flattening."""
    sides = [n for n in shape if n != 1]
    if sides != [n for n in dataset.shape if n != 1] and list(shape) != [dataset.n_in]:
        raise UserError(
            f"model {name!r} takes samples of shape {shown(shape)}, but those of {dataset.name} have "
            f"{shown(dataset.shape)}: train it on samples like those, or change them in [data] (size, color, window, "
            "features)"
        )


def _input_scale(config: Config, dataset: Dataset, model: Any) -> float:
    """Factor from the board's input to the model's; 8-bit pictures are x / 256 on the board."""
    if dataset.signed or dataset.fraction != 8:
        if config.model.input is not None:
            raise UserError(
                f'model.input = "{config.model.input}" is for pictures of 8 bit, but {dataset.name} holds other '
                "numbers, which the model gets as they are: leave it out"
            )
        return 1.0
    kind = config.model.input or ("raw" if keras_model.begins_scaled(model) else "unit")
    return 256.0 if kind == "raw" else 256.0 / 255.0


def _output_units(name: str, units: int, dataset: Dataset) -> list[int]:
    """For each class in the order of learning, its unit in the model, whose order is that of the data set."""
    numbers = list(dataset.class_numbers or range(dataset.n_classes))
    left_out = max(numbers) >= len(numbers)
    if units <= max(numbers) or (units > len(numbers) and not left_out):
        raise UserError(
            f"the output layer of model {name!r} has {units} units, but {dataset.name} has {max(numbers) + 1} classes: "
            "give it one unit for each class in the data set's order, also for those it does not know yet"
        )
    return numbers


# ---------------------------------------------------------------- masks


def _masked(config: Config, layers: Sequence[FloatLayer], frozen: int, samples: Floats) -> tuple[FloatLayer, ...]:
    """Masks by saliency of the initial weights, kept weights rescaled; frozen layers stay dense.

    Rescaling gives each layer the sum of squares it had when dense, so that its outputs
    keep the variance the initialisation is made for.
    """
    saliencies = _saliencies(config, layers, samples)
    if frozen:
        # The layer that sparsity.dense_input refers to is frozen.
        sparsity = config.sparsity.model_copy(update={"dense_input": False})
        config = config.model_copy(update={"sparsity": sparsity})
    learning = layers[frozen:]
    sparse = prune.sparse_layers(config, learning)
    masks = prune.masks(config, learning, saliencies[frozen:])
    result = list(layers[:frozen])
    for layer, on, mask in zip(learning, sparse, masks, strict=True):
        weight = np.where(mask, layer.weight, 0.0)
        if config.rescale and not mask.all():
            weight *= np.sqrt(np.square(layer.weight).sum() / np.square(weight).sum())
        result.append(replace(layer, weight=weight, mask=mask, sparse=on))
    return tuple(result)


def _saliencies(config: Config, layers: Sequence[FloatLayer], samples: Floats) -> list[Floats]:
    """Scores that decide which weights exist at first (``initial.mask``)."""
    if config.initial.mask == "random":
        # Not the stream of the weights, or the mask would correlate with them.
        random = np.random.default_rng((config.experiment.seed, 1))
        return [random.random(layer.weight.shape) for layer in layers]
    data_aware = config.initial.mask == "data"
    return [
        prune.saliency(layer.weight, norms if data_aware else None)
        for layer, norms in zip(layers, _input_norms(layers, samples), strict=True)
    ]


CHANNEL_SCALE = 4.0
"""Most by which the weights of an output are scaled to make up for those that are gone."""


def _matched(whole: Sequence[FloatLayer], masked: Sequence[FloatLayer], samples: Floats) -> tuple[FloatLayer, ...]:
    """The masked network whose sums have the mean and the deviation in each channel that they had in the whole one.

    What batch normalisation would do if its statistics were taken again; without it the outputs of a deep network
    that is not trained after pruning are noise (a residual network at sparsity 0.5: 75 % instead of 95 %).
    """
    wanted, found = [samples], [samples]
    result: list[FloatLayer] = []
    changed = False
    for before, layer in zip(whole, masked, strict=True):
        changed |= not layer.mask.all()
        aim, got = _sums(before, wanted), _sums(layer, found)
        if changed and layer.weighted:
            scale = np.clip(_divided(_deviations(aim), _deviations(got)), 1 / CHANNEL_SCALE, CHANNEL_SCALE)
            offset = _means(aim) - scale * _means(got)
            got = got * scale + offset
            a, b = scale[:, 0, 0], offset[:, 0, 0]
            layer = replace(layer, weight=layer.weight * a, bias=layer.bias * a + b)
        result.append(layer)
        wanted.append(network.activate(before.activation, aim))
        found.append(network.activate(layer.activation, got))
    return tuple(result)


def _sums(layer: FloatLayer, tensors: Sequence[Floats]) -> Floats:
    """The output of a layer before its activation."""
    linear = replace(layer, activation=Activation.NONE)
    inputs = zip(*(_parts([layer], tensors[t]) for t in layer.inputs), strict=True)
    return np.concatenate([network.output(linear, parts) for parts in inputs])


def _means(z: Floats) -> Floats:
    """Mean of each channel, (channels, 1, 1)."""
    return np.asarray(z.mean(axis=(0, 2, 3)))[:, np.newaxis, np.newaxis]


def _deviations(z: Floats) -> Floats:
    return np.asarray(z.std(axis=(0, 2, 3)))[:, np.newaxis, np.newaxis]


def _divided(a: Floats, b: Floats) -> Floats:
    """a / b, 1 where b is 0."""
    return np.divide(a, b, out=np.ones_like(a), where=b > 0.0)


def _input_norms(layers: Sequence[FloatLayer], samples: Floats) -> list[Floats | None]:
    """For each layer with weights the norms of what they multiply (prune.py)."""
    tensors = _tensors(layers, samples)
    return [prune.input_norms(layer, tensors[layer.inputs[0]]) if layer.weighted else None for layer in layers]


def _tensors(layers: Sequence[FloatLayer], x: Floats) -> list[Floats]:
    """All tensors of the network."""
    parts = [network.forward(layers, part) for part in _parts(layers, x)]
    return [np.concatenate(tensors) for tensors in zip(*parts, strict=True)]


def _parts(layers: Sequence[FloatLayer], x: Floats) -> list[Floats]:
    """The samples as they are, or few at a time where there are convolutions."""
    chunk = CHUNK if any(layer.op is Op.CONV for layer in layers) else max(1, MOST_AT_ONCE // _outputs(layers))
    return [x[k : k + chunk] for k in range(0, len(x), chunk)]


def _with_saliency(layers: Sequence[FloatLayer], samples: Floats) -> tuple[FloatLayer, ...]:
    """The saliency of the weights as they are now: ``|w| ||x||``, 0 where masked."""
    return tuple(
        replace(layer, saliency=prune.saliency(layer.weight, norms))
        for layer, norms in zip(layers, _input_norms(layers, samples), strict=True)
    )


# ---------------------------------------------------------------- training


def _accuracy(layers: Sequence[FloatLayer], dataset: Dataset, input_shape: Shape, task: Task) -> float:
    """Percent of a task's test samples, the arg-max over all classes."""
    parts = _parts(layers, _samples(dataset, input_shape, task.x_test))
    return _percent(np.concatenate([network.forward(layers, part)[-1] for part in parts]), task)


def _percent(logits: NDArray[Any], task: Task) -> float:
    return round(100.0 * float(np.mean(logits.reshape(len(logits), -1).argmax(axis=1) == task.y_test)), 4)


def _fit(
    config: Config,
    dataset: Dataset,
    known: Task,
    input_shape: Shape,
    layers: Sequence[FloatLayer],
    fixed: int,
) -> tuple[FloatLayer, ...]:
    """Train with Keras on the samples the host knows, masks enforced after every update.

    Cross-entropy over all classes, as on the board.  Leaving out the classes that come later looks kinder
    to them, but then their untrained logits enter the replay buffer as targets: class-IL after five tasks
    fell from 90.0 to 85.8 % when the host learns the first task, and was the same (89.5, 89.7) when the
    board does (float simulation, split MNIST-5k, 10 seeds, validation split, 3 epochs on the host).
    """
    keras = keras_model.start(config.experiment.seed)
    model = keras_model.to_keras(keras, input_shape, layers, fixed)
    model.compile(
        optimizer=keras.optimizers.SGD(learning_rate=config.initial.lr),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    x = (known.x_train / 2.0**dataset.fraction).astype(np.float32)
    model.fit(
        x.reshape(-1, *keras_model.keras_shape(input_shape)),
        known.y_train.astype(np.int32),
        batch_size=config.initial.batch,
        epochs=config.initial.epochs,
        shuffle=True,
        verbose=0,
    )
    return keras_model.trained(model, input_shape, layers)
