# SPDX-License-Identifier: Apache-2.0
"""The initial model: a small Keras network, masked first and then trained sparse.

The only module that imports TensorFlow, and only when there is something to train.
Pruning after dense training cost 4 points in continual learning; choosing the
mask first costs nothing (docs/algorithm.md, "the initial model").
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from generator import prune
from generator.artefacts import Dataset, FloatLayer, FloatModel, Task
from generator.config import Config

Floats = NDArray[np.float64]


def train(config: Config, dataset: Dataset) -> FloatModel:
    """The initial model: initialised, masked, rescaled and, if the experiment says so, trained.

    Depends on the configuration and the data only: the same seed gives the same bits.
    """
    known = dataset.base or dataset.tasks[0]
    samples = known.x_train[_spread(len(known.x_train), config.initial.mask_samples)] / 2.0**dataset.fraction
    layers = _masked(config, _initialise(config, dataset), samples)
    if config.initial.train != "none":
        layers = _fit(config, dataset, known, layers)
    layers = _with_saliency(layers, samples)
    tasks = [*([dataset.base] if dataset.base else []), *dataset.tasks]
    return FloatModel(layers, {task.name: _accuracy(layers, dataset, task) for task in tasks})


def _spread(total: int, count: int) -> NDArray[np.int64]:
    """``count`` positions evenly over ``total`` samples (which are often sorted by class)."""
    count = min(total, count)
    return np.arange(count) * total // count


def _initialise(config: Config, dataset: Dataset) -> tuple[FloatLayer, ...]:
    """Dense layers: He normal before ReLU, Glorot uniform at the output; biases 0."""
    random = np.random.default_rng(config.experiment.seed)
    widths = [dataset.n_in, *config.model.hidden, dataset.n_classes]
    sparse = prune.sparse_layers(config, len(widths) - 1)
    layers = []
    for k, (n_in, n_out) in enumerate(itertools.pairwise(widths)):
        relu = k < len(widths) - 2
        if relu:
            weight = random.normal(0.0, np.sqrt(2.0 / n_in), (n_in, n_out))
        else:
            limit = np.sqrt(6.0 / (n_in + n_out))
            weight = random.uniform(-limit, limit, (n_in, n_out))
        ones = np.ones((n_in, n_out), dtype=np.bool_)
        layers.append(FloatLayer(weight, np.zeros(n_out), ones, np.abs(weight), sparse[k], relu))
    return tuple(layers)


def _masked(config: Config, layers: Sequence[FloatLayer], samples: Floats) -> tuple[FloatLayer, ...]:
    """Masks by saliency of the initial weights, kept weights rescaled.

    Rescaling gives each layer the sum of squares it had when dense, so that its outputs
    keep the variance the initialisation is made for.
    """
    data_aware = config.initial.mask == "data"
    saliencies = [
        prune.saliency(layer.weight, norms if data_aware else None)
        for layer, norms in zip(layers, _input_norms(layers, samples), strict=True)
    ]
    result = []
    for layer, mask in zip(layers, prune.masks(config, saliencies), strict=True):
        weight = np.where(mask, layer.weight, 0.0)
        if config.initial.rescale:
            weight *= np.sqrt(np.square(layer.weight).sum() / np.square(weight).sum())
        result.append(FloatLayer(weight, layer.bias, mask, layer.saliency, layer.sparse, layer.relu))
    return tuple(result)


def _input_norms(layers: Sequence[FloatLayer], samples: Floats) -> list[Floats]:
    """For each layer, (n_in,): L2 norm of each of its inputs over the samples."""
    norms, x = [], samples
    for layer in layers:
        norms.append(np.sqrt(np.square(x).sum(axis=0)))
        x = _forward([layer], x)
    return norms


def _forward(layers: Sequence[FloatLayer], x: Floats) -> Floats:
    for layer in layers:
        x = x @ layer.weight + layer.bias
        x = np.maximum(x, 0.0) if layer.relu else x
    return x


def _with_saliency(layers: Sequence[FloatLayer], samples: Floats) -> tuple[FloatLayer, ...]:
    """The saliency of the weights as they are now: ``|w| ||x||``, 0 where masked."""
    return tuple(
        FloatLayer(y.weight, y.bias, y.mask, prune.saliency(y.weight, norms), y.sparse, y.relu)
        for y, norms in zip(layers, _input_norms(layers, samples), strict=True)
    )


def _accuracy(layers: Sequence[FloatLayer], dataset: Dataset, task: Task) -> float:
    """Percent of a task's test samples, the arg-max over all classes."""
    z = _forward(layers, task.x_test / 2.0**dataset.fraction)
    return round(100.0 * float(np.mean(z.argmax(axis=1) == task.y_test)), 4)


def _fit(config: Config, dataset: Dataset, known: Task, layers: Sequence[FloatLayer]) -> tuple[FloatLayer, ...]:
    """Train with Keras on the samples the host knows, masks enforced after every update.

    Cross-entropy over all classes, as on the board.  Leaving out the classes that come later looks kinder
    to them, but then their untrained logits enter the replay buffer as targets: class-IL after five tasks
    fell from 90.0 to 85.8 % when the host learns the first task, and was the same (89.5, 89.7) when the
    board does (float simulation, split MNIST-5k, 10 seeds, validation split, 3 epochs on the host).
    """
    keras = _tensorflow(config.experiment.seed)
    network = _network(keras, dataset.n_in, layers)
    network.compile(
        optimizer=keras.optimizers.SGD(learning_rate=config.initial.lr),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    x = (known.x_train / 2.0**dataset.fraction).astype(np.float32)
    network.fit(
        x,
        known.y_train.astype(np.int32),
        batch_size=config.initial.batch,
        epochs=config.initial.epochs,
        shuffle=True,
        verbose=0,
    )
    fitted = []
    for layer, dense in zip(layers, network.layers, strict=True):
        weight, bias = (np.asarray(v, dtype=np.float64) for v in dense.get_weights())
        fitted.append(FloatLayer(weight * layer.mask, bias, layer.mask, layer.saliency, layer.sparse, layer.relu))
    return tuple(fitted)


def _tensorflow(seed: int) -> Any:
    """Keras on TensorFlow, without the start-up messages, seeded and deterministic."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    with _quiet():
        tensorflow = importlib.import_module("tensorflow")
        tensorflow.keras.utils.set_random_seed(seed)
        tensorflow.config.experimental.enable_op_determinism()
        tensorflow.zeros(1)
    return tensorflow.keras


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drop what TensorFlow's C++ writes to standard error before its logging can be configured.

    The exception of a failed import still reaches the caller.
    """
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _network(keras: Any, n_in: int, layers: Sequence[FloatLayer]) -> Any:
    """A Sequential of Dense layers that starts from ``layers``."""

    class Masked(keras.constraints.Constraint):  # type: ignore[misc]
        """Sets absent weights to 0 after each update."""

        def __init__(self, mask: NDArray[np.bool_]) -> None:
            self.mask = keras.ops.convert_to_tensor(mask.astype(np.float32))

        def __call__(self, w: Any) -> Any:
            return w * self.mask

    network = keras.Sequential([keras.Input((n_in,))])
    for layer in layers:
        dense = keras.layers.Dense(
            layer.weight.shape[1],
            activation="relu" if layer.relu else None,
            kernel_constraint=None if layer.mask.all() else Masked(layer.mask),
        )
        network.add(dense)
        dense.set_weights([layer.weight.astype(np.float32), layer.bias.astype(np.float32)])
    return network
