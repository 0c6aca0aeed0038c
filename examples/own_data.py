# SPDX-License-Identifier: Apache-2.0
"""Makes what own_data.toml reads, in the way your own project would: data, and a network that knows some of it.

    python examples/own_data.py [FOLDER]

writes own_data.npz, all digits of scikit-learn, and own_data.keras, a small convolutional network
that was trained on six of them. FOLDER is that of this file by default, where own_data.toml looks for them.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

KNOWN = 6
"""The network knows the digits 0 to 5; the board will learn the others."""


def pictures() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(1797, 8, 8, 1) uint8 of 0..255, and the digit of each."""
    bunch = load_digits()
    x = np.minimum(bunch.images * 16, 255).astype(np.uint8)
    return x[..., np.newaxis], bunch.target.astype(np.int64)


def save_data(path: Path) -> None:
    """All that an .npz needs; without x_test and y_test the last fifth of each class would be held out."""
    x, y = pictures()
    test = np.arange(len(y)) >= 1400
    np.savez_compressed(path, x_train=x[~test], y_train=y[~test], x_test=x[test], y_test=y[test])


def save_network(data: Path, path: Path) -> None:
    """A network as it comes from Keras, with an output for each class, also for those it has never seen."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(16, 3, padding="same", use_bias=False),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.ReLU(),
            keras.layers.Conv2D(24, 3, padding="same", use_bias=False),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.ReLU(),
            keras.layers.MaxPooling2D(2),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    network.compile(optimizer="adam", loss="sparse_categorical_crossentropy")
    with np.load(data) as arrays:
        known = arrays["y_train"] < KNOWN
        x, y = arrays["x_train"][known], arrays["y_train"][known]
    # Pictures of 8 bit are 0..1 to a network, unless own_data.toml says [model] input = "raw".
    network.fit(x / 255.0, y, batch_size=32, epochs=8, verbose=0)
    network.save(path)


def main() -> None:
    """Writes both files."""
    parser = argparse.ArgumentParser(description="writes own_data.npz and own_data.keras")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent, help="default: beside this file")
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    save_data(folder / "own_data.npz")
    save_network(folder / "own_data.npz", folder / "own_data.keras")
    print(f"wrote {folder / 'own_data.npz'} and {folder / 'own_data.keras'}")


if __name__ == "__main__":
    main()
