# SPDX-License-Identifier: Apache-2.0
"""Keras models as layers of the initial model: the same outputs, or an error that says what to change."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from sparcl_mcu.generator import architecture, keras_model, network, train
from sparcl_mcu.generator.config import Config
from sparcl_mcu.spec.errors import UserError
from sparcl_mcu.spec.types import Activation, Dataset, FloatLayer, Op, Task

pytestmark = pytest.mark.tensorflow

PICTURE = (7, 6, 2)
SERIES = (11, 3)


@pytest.fixture(scope="module")
def keras() -> Any:
    return keras_model.start(0)


def randomise(model: Any, seed: int = 3) -> Any:
    """All weights random: biases, and means and variances of batch normalisation too."""
    random = np.random.default_rng(seed)
    for layer in model.layers:
        if hasattr(layer, "layers"):
            randomise(layer, seed + 1)
        else:
            layer.set_weights(
                [
                    random.uniform(0.2, 0.9, w.shape) * random.choice([1, 1, -1], w.shape)
                    if "variance" not in v.name
                    else random.uniform(0.3, 2.0, w.shape)
                    for v, w in zip(layer.weights, layer.get_weights(), strict=True)
                ]
            )
    return model


def sequential(keras: Any, shape: tuple[int, ...], *layers: Any) -> Any:
    return randomise(keras.Sequential([keras.Input(shape), *layers]))


def compare(model: Any, scale: float = 1.0, softmax: bool = False) -> tuple[FloatLayer, ...]:
    """Imports, and compares the outputs with Keras's own."""
    input_shape, layers = keras_model.from_keras(model, scale)
    shape = tuple(model.inputs[0].shape[1:])
    x = np.random.default_rng(9).uniform(-1.0, 1.0, (5, *shape))
    wanted = keras_model.predict(model, (x * scale).astype(np.float32))
    z = network.forward(layers, network.channel_first(x, input_shape, 1.0))[-1].reshape(5, -1)
    if softmax:
        z = np.exp(z - z.max(axis=1, keepdims=True))
        z = z / z.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(z, wanted, rtol=1e-4, atol=1e-4)
    return layers


PICTURE_LAYERS: dict[str, Callable[[Any], list[Any]]] = {
    "conv same": lambda k: [k.Conv2D(4, 3, padding="same", activation="relu")],
    "conv valid": lambda k: [k.Conv2D(4, (3, 2), activation="relu6")],
    "conv stride same": lambda k: [k.Conv2D(4, 3, strides=2, padding="same"), k.ReLU()],
    "conv stride (1, 2)": lambda k: [k.Conv2D(4, (2, 3), strides=(1, 2), padding="same", use_bias=False)],
    "conv stride valid": lambda k: [k.Conv2D(4, 2, strides=3)],
    "depthwise": lambda k: [k.DepthwiseConv2D(3, padding="same", depth_multiplier=3), k.ReLU(max_value=6)],
    "depthwise stride": lambda k: [k.DepthwiseConv2D((3, 2), strides=2, use_bias=False)],
    "separable": lambda k: [k.SeparableConv2D(5, 3, padding="same", depth_multiplier=2, activation="relu")],
    "max pool": lambda k: [k.Conv2D(4, 3), k.MaxPooling2D(2)],
    "max pool same": lambda k: [k.Conv2D(4, 3), k.MaxPooling2D((3, 2), strides=2, padding="same")],
    "avg pool": lambda k: [k.AveragePooling2D(2)],
    "avg pool same": lambda k: [k.Conv2D(3, 1), k.AveragePooling2D(3, strides=2, padding="same")],
    "global avg": lambda k: [k.Conv2D(4, 3), k.GlobalAveragePooling2D()],
    "global max": lambda k: [k.Conv2D(4, 3), k.GlobalMaxPooling2D(keepdims=True)],
    "padding": lambda k: [k.ZeroPadding2D(((1, 2), (0, 1))), k.Conv2D(3, 3, strides=2), k.ReLU()],
    "padding and same": lambda k: [k.ZeroPadding2D(1), k.Conv2D(3, 4, strides=2, padding="same")],
    "padding before max pool": lambda k: [
        *(k.Conv2D(3, 3, activation="relu"), k.ZeroPadding2D(1), k.MaxPooling2D(3, strides=2)),
    ],
    "normalised": lambda k: [k.Conv2D(4, 3, use_bias=False), k.BatchNormalization(), k.Activation("relu")],
    "normalised depthwise": lambda k: [k.DepthwiseConv2D(3, depth_multiplier=2), k.BatchNormalization(scale=False)],
    "normalised after relu": lambda k: [k.Conv2D(4, 3, activation="relu"), k.BatchNormalization(), k.Conv2D(3, 2)],
    "normalised before padding": lambda k: [
        *(k.Conv2D(4, 3, activation="relu"), k.BatchNormalization(), k.Conv2D(3, 3, padding="same")),
    ],
    "normalised before zero padding": lambda k: [
        *(k.Conv2D(4, 3, activation="relu"), k.BatchNormalization(), k.ZeroPadding2D(1), k.Conv2D(3, 3)),
    ],
    "normalised before pools": lambda k: [
        *(k.Conv2D(4, 3, activation="relu"), k.BatchNormalization(), k.MaxPooling2D(2), k.AveragePooling2D(2)),
    ],
    "normalised at the start": lambda k: [k.BatchNormalization(), k.DepthwiseConv2D(3)],
    "normalised after flatten": lambda k: [k.Conv2D(4, 3), k.Flatten(), k.BatchNormalization()],
    "normalised twice": lambda k: [k.Conv2D(4, 3), k.BatchNormalization(), k.BatchNormalization(center=False)],
    "rescaled": lambda k: [k.Rescaling(1 / 8, offset=-0.5), k.Conv2D(4, 3, activation="relu")],
    "rescaled, padding": lambda k: [k.Rescaling(1 / 8), k.Conv2D(4, 3, padding="same")],
    "offset, padding": lambda k: [k.Rescaling(1 / 8, offset=-1.0), k.Conv2D(4, 3, padding="same", activation="relu")],
    "normalised by constants, padding": lambda k: [
        *(k.Normalization(mean=[0.3, -1.0], variance=[0.5, 2.0]), k.ZeroPadding2D(1), k.Conv2D(4, 3)),
    ],
    "relu of a flat input": lambda k: [k.Flatten(), k.Rescaling(0.5, offset=0.1), k.ReLU()],
    "relu of the input": lambda k: [k.ReLU(), k.Conv2D(4, 3)],
    "dense at each position": lambda k: [
        *(k.Conv2D(4, 3, activation="relu"), k.BatchNormalization(), k.Dense(6, activation="relu"), k.MaxPooling2D(2)),
    ],
    "dense at each position of the input": lambda k: [k.Dense(3, activation="relu6")],
    "normalised by constants": lambda k: [k.Normalization(mean=[0.3, -1.0], variance=[0.5, 2.0]), k.Conv2D(4, 3)],
    "only in training": lambda k: [
        *(k.RandomFlip(), k.GaussianNoise(0.1), k.Conv2D(4, 3), k.SpatialDropout2D(0.5), k.ReLU(), k.Dropout(0.5)),
    ],
    "reshaped": lambda k: [k.Conv2D(4, 3), k.GlobalAveragePooling2D(), k.Reshape((1, 1, 4)), k.Conv2D(3, 1)],
    "reshaped input": lambda k: [k.Reshape((6, 7, 2)), k.Conv2D(4, 3)],
    "relu on its own": lambda k: [k.Conv2D(4, 3), k.MaxPooling2D(2), k.ReLU()],
    "nothing": lambda k: [],
}


@pytest.mark.parametrize("name", PICTURE_LAYERS)
def test_layers_of_pictures(keras: Any, name: str) -> None:
    k = keras.layers
    compare(sequential(keras, PICTURE, *PICTURE_LAYERS[name](k), k.Flatten(), k.Dense(5)), scale=1.7)


SERIES_LAYERS: dict[str, Callable[[Any], list[Any]]] = {
    "conv": lambda k: [k.Conv1D(4, 3, padding="same", activation="relu"), k.MaxPooling1D(2), k.Conv1D(4, 2, strides=2)],
    "causal": lambda k: [k.Conv1D(4, 3, padding="causal")],
    "depthwise": lambda k: [k.DepthwiseConv1D(4, strides=3, padding="same", depth_multiplier=2)],
    "separable": lambda k: [k.SeparableConv1D(4, 3, activation="relu"), k.BatchNormalization()],
    "pools": lambda k: [k.AveragePooling1D(3, padding="same"), k.Conv1D(4, 2), k.GlobalAveragePooling1D()],
    "global max": lambda k: [k.ZeroPadding1D((2, 1)), k.Conv1D(4, 2), k.GlobalMaxPooling1D()],
}


@pytest.mark.parametrize("name", SERIES_LAYERS)
def test_layers_of_time_series(keras: Any, name: str) -> None:
    k = keras.layers
    compare(sequential(keras, SERIES, *SERIES_LAYERS[name](k), k.Flatten(), k.Dense(5)))


def test_dense_networks_keep_the_order_of_the_sample(keras: Any) -> None:
    k = keras.layers
    model = sequential(keras, (4, 3, 2), k.Flatten(), k.Dense(6, activation="relu"), k.Dense(5, activation="softmax"))
    layers = compare(model, softmax=True)
    assert [layer.op for layer in layers] == [Op.DENSE, Op.DENSE]
    assert keras_model.from_keras(model)[0] == (1, 1, 24)
    assert np.array_equal(layers[0].weight, model.layers[1].get_weights()[0].astype(np.float64))


def test_flat_input_of_a_convolution(keras: Any) -> None:
    k = keras.layers
    model = sequential(keras, (48,), k.Reshape((6, 4, 2)), k.Conv2D(3, 3), k.Flatten(), k.Dense(4), k.Softmax())
    compare(model, softmax=True)


def residual(keras: Any) -> Any:
    k = keras.layers
    x = keras.Input(PICTURE)
    a = k.Conv2D(4, 3, padding="same", use_bias=False, name="stem")(x)
    a = k.ReLU()(k.BatchNormalization()(a))
    b = k.Conv2D(4, 3, padding="same", activation="relu", name="first")(a)
    b = k.BatchNormalization()(k.Conv2D(4, 3, padding="same", name="second")(b))
    c = k.ReLU()(k.Add()([a, b]))
    d = k.Conv2D(6, 3, strides=2, padding="same", name="third")(c)
    e = k.Conv2D(6, 1, strides=2, name="short")(c)
    f = k.ReLU()(k.Add()([d, e]))
    y = k.Dense(5, name="logits")(k.GlobalAveragePooling2D()(f))
    return randomise(keras.Model(x, y, name="resnet"))


HEADS: dict[str, Callable[[Any], list[Any]]] = {
    "convolution over all": lambda k: [k.Conv2D(3, 3, activation="relu"), k.Conv2D(4, (5, 4))],
    "size 1 after the mean": lambda k: [
        *(k.Conv2D(3, 3), k.GlobalAveragePooling2D(keepdims=True), k.Conv2D(4, 1, use_bias=False), k.Flatten()),
    ],
    "size 1 before the mean": lambda k: [
        *(k.Conv2D(3, 3, activation="relu"), k.Conv2D(4, 1), k.GlobalAveragePooling2D()),
    ],
}


@pytest.mark.parametrize("name", HEADS)
def test_convolutions_at_the_end_are_dense_layers(keras: Any, name: str) -> None:
    layers = compare(sequential(keras, PICTURE, *HEADS[name](keras.layers), keras.layers.Softmax()), softmax=True)
    assert layers[-1].op is Op.DENSE


def test_functions_of_keras_ops(keras: Any) -> None:
    k = keras.layers
    x = keras.Input(PICTURE)
    a = keras.ops.relu(k.Conv2D(2, 3, padding="same")(x))
    b = keras.ops.relu6(k.Conv2D(2, 3, padding="same")(a)) + a
    layers = compare(randomise(keras.Model(x, k.Dense(3)(k.Flatten()(b + x)))))
    assert [layer.activation for layer in layers[:2]] == [Activation.RELU, Activation.RELU6]


def test_residual_networks(keras: Any) -> None:
    layers = compare(residual(keras))
    assert [layer.op for layer in layers].count(Op.ADD) == 2
    assert all(layer.activation is Activation.RELU for layer in layers if layer.op is Op.ADD)
    assert layers[0].activation is Activation.RELU
    assert next(layer.name for layer in layers if layer.weighted) == "stem"


def test_an_activation_of_a_tensor_others_read_is_a_layer(keras: Any) -> None:
    k = keras.layers
    x = keras.Input(PICTURE)
    a = k.Conv2D(2, 3, padding="same")(x)
    b = k.Add()([k.ReLU(name="alone")(a), a])
    model = randomise(keras.Model(x, k.Dense(3)(k.Flatten()(b))))
    layers = compare(model)
    assert [(layer.op, layer.name) for layer in layers][1] == (Op.ADD, "alone")
    assert layers[1].inputs == (1,)


def test_models_inside_of_models(keras: Any) -> None:
    k = keras.layers
    inner = keras.Sequential([keras.Input(PICTURE), k.Conv2D(4, 3), k.BatchNormalization(), k.ReLU()], name="inner")
    x = keras.Input(PICTURE)
    y = k.Dense(3)(k.Flatten()(inner(k.Rescaling(0.5)(x))))
    assert len(compare(randomise(keras.Model(x, y)))) == 2


def test_back_to_keras(keras: Any) -> None:
    k = keras.layers
    models = [
        residual(keras),
        *(
            sequential(keras, PICTURE, *PICTURE_LAYERS[name](k), k.Flatten(), k.Dense(5))
            for name in (
                "conv stride same",
                "depthwise",
                "max pool same",
                "avg pool same",
                "padding before max pool",
                "padding",
            )
        ),
        *(
            sequential(keras, SERIES, *SERIES_LAYERS[name](k), k.Flatten(), k.Dense(5))
            for name in ("conv", "causal", "depthwise", "pools")
        ),
    ]
    for model in models:
        shape, layers = keras_model.from_keras(model)
        again = keras_model.to_keras(keras, shape, layers)
        x = np.random.default_rng(1).uniform(-1.0, 1.0, (4, *again.inputs[0].shape[1:])).astype(np.float32)
        wanted = keras_model.predict(model, x.reshape(4, *model.inputs[0].shape[1:]))
        np.testing.assert_allclose(keras_model.predict(again, x), wanted, rtol=1e-4, atol=1e-4)
        for old, new in zip(layers, keras_model.trained(again, shape, layers), strict=True):
            np.testing.assert_allclose(new.weight, old.weight, rtol=1e-6)


# ---------------------------------------------------------------- errors


def test_all_unsupported_layers_are_named(keras: Any) -> None:
    k = keras.layers
    x = keras.Input((8, 8, 4))
    y = k.LayerNormalization(name="norm")(x)
    y = k.Conv2D(4, 3, activation="gelu", name="a")(y)
    y = k.Conv2D(4, 3, dilation_rate=2, name="b")(y)
    y = k.Conv2D(4, 1, groups=2, name="c")(y)
    y = k.LeakyReLU(name="leak")(y)
    y = k.Dense(3, activation="sigmoid", name="head")(k.Flatten()(y))
    with pytest.raises(UserError) as caught:
        keras_model.from_keras(keras.Model(x, y, name="net"))
    text = str(caught.value)
    assert text.startswith("model 'net' has layers the board cannot compute:")
    for part in (
        "norm (LayerNormalization): use BatchNormalization",
        "a (Conv2D): activation gelu; use relu",
        "b (Conv2D): dilation_rate (2, 2); use 1",
        "c (Conv2D): groups = 2",
        "leak (LeakyReLU): use ReLU",
        "head (Dense): activation sigmoid",
        "possible are ",
    ):
        assert part in text


def test_recurrent_networks_are_refused(keras: Any) -> None:
    model = keras.Sequential([keras.Input(SERIES), keras.layers.LSTM(4, name="memory"), keras.layers.Dense(3)])
    with pytest.raises(UserError, match=r"memory \(LSTM\): use Conv1D over a window of time"):
        keras_model.from_keras(model)


WRONG: dict[str, tuple[Callable[[Any], list[Any]], str]] = {
    "no dense layer at the end": (
        lambda k: [k.Conv2D(2, 3), k.GlobalAveragePooling2D(name="g")],
        "ends with g: it has",
    ),
    "activation at the end": (lambda k: [k.Flatten(), k.Dense(3, activation="relu", name="o")], "ends with o: it has"),
    "dense on zero padding": (
        lambda k: [k.ZeroPadding2D(1), k.Dense(3, name="d"), k.Flatten(), k.Dense(3)],
        r"d \(Dense\): comes after zero padding",
    ),
    "normalisation of a flat input": (
        lambda k: [k.Flatten(), k.BatchNormalization(name="n"), k.ReLU(), k.Dense(3)],
        r"n \(BatchNormalization\): has to be followed by a convolution or a dense layer",
    ),
    "softmax inside": (
        lambda k: [k.Flatten(), k.Dense(4, "softmax"), k.Dense(3, name="d")],
        r"d \(Dense\): comes after",
    ),
    "padding before averages": (
        lambda k: [k.ZeroPadding2D(1), k.AveragePooling2D(2, name="p"), k.Flatten(), k.Dense(3)],
        r'p \(AveragePooling2D\): comes after zero padding: use padding="same"',
    ),
    "rows become columns": (
        lambda k: [k.Conv2D(2, 3), k.Reshape((4, 5, 2), name="r"), k.Flatten(), k.Dense(3)],
        r"r \(Reshape\): only axes of length 1",
    ),
    "no layers": (lambda k: [k.Dropout(0.5)], "ends with its input"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_folded_is_named(keras: Any, name: str) -> None:
    make, message = WRONG[name]
    with pytest.raises(UserError, match=message):
        keras_model.from_keras(keras.Sequential([keras.Input(PICTURE), *make(keras.layers)]))


def test_dense_networks_cannot_add_their_input(keras: Any) -> None:
    x = keras.Input((4,))
    y = keras.layers.Dense(3)(keras.layers.Add(name="sum")([x, keras.layers.Dense(4)(x)]))
    with pytest.raises(UserError, match=r"sum \(Add\): adds the input itself: put a Dense layer between them"):
        keras_model.from_keras(keras.Model(x, y))


def test_layers_used_twice_are_refused(keras: Any) -> None:
    x = keras.Input((4,))
    twice = keras.layers.Dense(4, name="twice")
    with pytest.raises(UserError, match=r"twice \(Dense\): is used more than once"):
        keras_model.from_keras(keras.Model(x, keras.layers.Dense(3)(twice(twice(x)))))


def test_models_without_a_fixed_input_are_refused(keras: Any) -> None:
    k = keras.layers
    with pytest.raises(UserError, match=r"samples of shape \(None, None, 1\), but a board needs fixed sizes"):
        keras_model.from_keras(keras.Sequential([keras.Input((None, None, 1)), k.GlobalAveragePooling2D(), k.Dense(3)]))
    with pytest.raises(UserError, match="is not built"):
        keras_model.from_keras(keras.Sequential([k.Flatten(), k.Dense(3)]))


# ---------------------------------------------------------------- files


def test_files_are_read_in_safe_mode(keras: Any, tmp_path: Path) -> None:
    k = keras.layers
    model = sequential(keras, (4, 4, 1), k.Conv2D(2, 3), k.Flatten(), k.Dense(3))
    bad = keras.Sequential([keras.Input((4,)), k.Lambda(lambda x: x), k.Dense(3)])
    for ending in (".keras", ".h5"):
        model.save(tmp_path / f"good{ending}")
        read = keras_model.load(keras, config_for(tmp_path / f"good{ending}"))
        for a, b in zip(model.get_weights(), read.get_weights(), strict=True):
            assert np.array_equal(a, b)
        bad.save(tmp_path / f"bad{ending}")
        with pytest.raises(UserError, match="holds Python code"):
            keras_model.load(keras, config_for(tmp_path / f"bad{ending}"))
        (tmp_path / f"broken{ending}").write_bytes(b"no model")
        with pytest.raises(UserError, match="is corrupt or not a"):
            keras_model.load(keras, config_for(tmp_path / f"broken{ending}"))
        whole = (tmp_path / f"good{ending}").read_bytes()
        (tmp_path / f"short{ending}").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError, match=r"is corrupt or not a|cannot be read \(.*truncated"):
            keras_model.load(keras, config_for(tmp_path / f"short{ending}"))
    with pytest.raises(UserError, match="no such file"):
        keras_model.load(keras, config_for(tmp_path / "gone.keras"))
    model.save_weights(tmp_path / "only.weights.h5")
    with pytest.raises(UserError, match="holds weights without their model"):
        keras_model.load(keras, config_for(tmp_path / "only.weights.h5"))


@pytest.mark.parametrize("ending", [".keras", ".h5"])
def test_weights_are_counted_before_they_are_allocated(
    keras: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    model = sequential(keras, (4, 4, 1), keras.layers.Flatten(), keras.layers.Dense(5), keras.layers.Dense(3))
    path = tmp_path / f"net{ending}"
    model.save(path)
    with monkeypatch.context() as patch:
        patch.setattr(keras_model, "MOST_WEIGHTS", 100)
        with pytest.raises(UserError, match=f"net{ending}: has 103 weights; at most 100 are possible"):
            keras_model.load(keras, config_for(path))
    _enlarge(path, 5, 2_000_000_000)  # 128 GB in float32
    with pytest.raises(UserError, match=r"2,?000,?000,?000"):
        keras_model.load(keras, config_for(path))


def _enlarge(path: Path, units: int, to: int) -> None:
    """The same file with another size of a layer in its description."""
    before, after = f'"units": {units}', f'"units": {to}'
    if path.suffix == ".h5":
        with h5py.File(path, "r+") as file:
            file.attrs["model_config"] = file.attrs["model_config"].replace(before, after)
        return
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["config.json"] = members["config.json"].replace(before.encode(), after.encode())
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_classes_that_are_not_keras_s_are_named(keras: Any, tmp_path: Path) -> None:
    class Twice(keras.layers.Layer):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            return 2 * x

    model = keras.Sequential([keras.Input((4,)), Twice(), keras.layers.Dense(3)])
    for ending, where in ((".keras", f" of {__name__}"), (".h5", "")):
        model.save(tmp_path / f"own{ending}")
        with pytest.raises(UserError, match=f"needs Twice{where}, which is not Keras's own: use Keras's layers"):
            keras_model.load(keras, config_for(tmp_path / f"own{ending}"))
    with pytest.raises(UserError, match=r"twice \(.*Twice\): leave it out or use other layers"):
        keras_model.from_keras(model)


def test_weights_that_are_not_finite_are_refused(keras: Any) -> None:
    model = sequential(keras, (4, 4, 1), keras.layers.Flatten(), keras.layers.Dense(3, name="bad"))
    kernel, bias = model.get_weights()
    model.set_weights([kernel, bias * np.nan])
    with pytest.raises(UserError, match=r"bad/bias holds values that are not finite: its training has diverged"):
        keras_model.from_keras(model)


def config_for(path: Path) -> Config:
    return Config.model_validate({"model": {"path": path}})


MODULE = """
import keras
from sizes import CLASSES

def build():
    keras.utils.set_random_seed(1)
    k = keras.layers
    return keras.Sequential([
        keras.Input((4, 4, 1)), k.Rescaling(1 / 255), k.Conv2D(3, 3, activation="relu"), k.Flatten(), k.Dense(CLASSES)
    ])

def nothing():
    return 3

def broken():
    raise ValueError("out of cheese")
"""


def test_functions_beside_the_experiment(keras: Any, tmp_path: Path) -> None:
    from sparcl_mcu.generator import config

    (tmp_path / "nets.py").write_text(MODULE)
    (tmp_path / "sizes.py").write_text("CLASSES = 4\n")
    experiment = tmp_path / "own.toml"

    def load(function: str) -> Any:
        experiment.write_text(f'[model]\nfunction = "{function}"\n')
        return keras_model.load(keras, config.load(experiment))

    assert keras_model.begins_scaled(load("nets:build"))
    with pytest.raises(UserError, match="returned int, not a Keras model"):
        load("nets:nothing")
    with pytest.raises(UserError, match="ValueError: out of cheese"):
        load("nets:broken")
    with pytest.raises(UserError, match="has no attribute 'gone'"):
        load("nets:gone")
    with pytest.raises(UserError, match="No module named 'nowhere'"):
        load("nowhere:build")


# ---------------------------------------------------------------- the initial model


def pictures(classes: int = 4, order: tuple[int, ...] = ()) -> Dataset:
    random = np.random.default_rng(5)

    def task(number: int) -> Task:
        labels = np.array([2 * number, 2 * number + 1] * 10, dtype=np.uint8)
        x = [random.integers(0, 256, (20, 16)).astype(np.uint8) for _ in range(2)]
        return Task(f"task{number}", (2 * number, 2 * number + 1), x[0], labels, x[1], labels)

    names = tuple(str(c) for c in (order or range(classes)))
    tasks = tuple(task(k) for k in range(classes // 2))
    return Dataset("pictures", names, (4, 4), False, 8, tasks, class_numbers=order)


def saved(keras: Any, tmp_path: Path, *, raw: bool = False, units: int = 4) -> tuple[Path, Any]:
    k = keras.layers
    first = [k.Rescaling(1 / 255)] if raw else []
    model = sequential(keras, (4, 4, 1), *first, k.Conv2D(3, 3, activation="relu"), k.Flatten(), k.Dense(units))
    model.save(tmp_path / "net.keras")
    return tmp_path / "net.keras", model


def imported(path: Path, d: Dataset, model: dict[str, Any] | None = None, **sections: Any) -> Any:
    sections.setdefault("sparsity", {"weights": 0.0})
    return train.train(Config.model_validate({"model": {"path": path} | (model or {})} | sections), d)


@pytest.mark.parametrize("raw", [False, True])
def test_an_imported_model_is_not_trained_and_keeps_its_outputs(keras: Any, tmp_path: Path, raw: bool) -> None:
    path, model = saved(keras, tmp_path, raw=raw)
    d = pictures(order=(2, 0, 3, 1))
    result = imported(path, d)
    task = d.tasks[1]
    x = task.x_test.reshape(-1, 4, 4, 1).astype(np.float32)
    wanted = keras_model.predict(model, x if raw else x / np.float32(255))[:, [2, 0, 3, 1]]
    z = network.forward(result.layers, network.channel_first(task.x_test, result.input_shape, 1 / 256))[-1]
    np.testing.assert_allclose(z.reshape(wanted.shape), wanted, rtol=1e-4, atol=1e-4)
    assert result.imported_accuracy == result.accuracy
    accuracy = 100.0 * float(np.mean(wanted.argmax(axis=1) == task.y_test))
    assert result.imported_accuracy["task1"] == pytest.approx(accuracy, abs=1e-3)


def test_an_imported_model_is_masked_and_trained_on_demand(keras: Any, tmp_path: Path) -> None:
    path, _ = saved(keras, tmp_path)
    d = pictures()
    dense = imported(path, d).layers
    sparsity = {"weights": 0.5, "dense_output": False}
    masked = imported(path, d, sparsity=sparsity, initial={"rescale": False})
    assert masked.layers[0].mask.all()
    assert masked.layers[1].mask.mean() == pytest.approx(0.5)
    assert np.array_equal(masked.layers[1].weight, np.where(masked.layers[1].mask, dense[1].weight, 0.0))
    trained = imported(path, d, {"freeze": 1}, sparsity=sparsity, initial={"train": "first_task"})
    assert np.array_equal(trained.layers[0].weight, dense[0].weight.astype(np.float32))
    assert trained.frozen == 1
    assert not np.array_equal(trained.layers[1].weight, masked.layers[1].weight)
    assert (trained.layers[1].weight[~trained.layers[1].mask] == 0.0).all()
    assert trained.imported_accuracy == masked.imported_accuracy


def test_pruning_keeps_mean_and_deviation_of_each_channel(keras: Any, tmp_path: Path) -> None:
    path, _ = saved(keras, tmp_path)
    d = pictures()
    x = network.channel_first(d.tasks[0].x_train, (1, 4, 4), 1 / 256)

    def sums(result: Any) -> list[NDArray[np.float64]]:
        layers = [replace(layer, activation=Activation.NONE) for layer in result.layers]
        tensors = network.forward(result.layers, x)
        return [network.output(layer, [tensors[t] for t in layer.inputs]) for layer in layers]

    sparsity = {"weights": 0.3, "dense_output": False, "dense_input": False}
    whole, masked = imported(path, d), imported(path, d, sparsity=sparsity)
    assert masked.layers[0].mask.mean() == pytest.approx(0.7, abs=0.02)
    assert (masked.layers[0].weight[~masked.layers[0].mask] == 0.0).all()
    for a, b in zip(sums(whole), sums(masked), strict=True):
        np.testing.assert_allclose(b.mean(axis=(0, 2, 3)), a.mean(axis=(0, 2, 3)), atol=1e-9)
        np.testing.assert_allclose(b.std(axis=(0, 2, 3)), a.std(axis=(0, 2, 3)), rtol=1e-6)
    frozen = imported(path, d, {"freeze": 1}, sparsity=sparsity)
    assert np.array_equal(frozen.layers[0].weight, whole.layers[0].weight)
    assert np.array_equal(frozen.layers[0].bias, whole.layers[0].bias)


def test_a_model_has_to_fit_the_data(keras: Any, tmp_path: Path) -> None:
    path, _ = saved(keras, tmp_path, units=5)
    with pytest.raises(UserError, match="has 5 units, but pictures has 4 classes"):
        imported(path, pictures())
    assert imported(path, pictures(order=(4, 0, 3, 1))).layers[-1].shape == (4, 1, 1)
    with pytest.raises(UserError, match=r"takes samples of shape \(4, 4, 1\), but those of pictures have \(2, 8\)"):
        imported(path, replace(pictures(), shape=(2, 8)))
    with pytest.raises(UserError, match=r'model\.input = "raw" is for pictures of 8 bit'):
        imported(path, replace(pictures(), fraction=5), {"input": "raw"})


def test_where_a_network_can_be_cut(keras: Any) -> None:
    _, layers = keras_model.from_keras(residual(keras))
    names = [layer.name for layer in layers]
    assert names[: architecture.frozen_layers(layers, 1, None)] == ["stem"]
    assert layers[architecture.frozen_layers(layers, 3, None) - 1].op is Op.ADD
    with pytest.raises(UserError, match=r"model.freeze = 2: more than one tensor .*; possible: 1, 3, 5$"):
        architecture.frozen_layers(layers, 2, None)
    with pytest.raises(UserError, match=r"model.train_last = 4: more than one tensor .*; possible: 1, 3, 5$"):
        architecture.frozen_layers(layers, None, 4)
    with pytest.raises(UserError, match=r"model.freeze = 6: the network has 6 layers with weights; possible: 1, 3, 5$"):
        architecture.frozen_layers(layers, 6, None)
