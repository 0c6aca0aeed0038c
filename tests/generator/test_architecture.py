# SPDX-License-Identifier: Apache-2.0
"""Networks written out in the experiment file: shapes as in Keras, errors that name the entry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sparcl_mcu.generator import architecture, config
from sparcl_mcu.generator.config import Config
from sparcl_mcu.spec.errors import UserError
from sparcl_mcu.spec.types import Activation, Op, Window

CONV: dict[str, Any] = {"type": "conv2d", "filters": 4, "kernel": 3}
CONV_1D: dict[str, Any] = {"type": "conv1d", "filters": 4, "kernel": 3}


def layers_of(sample: tuple[int, ...], *entries: dict[str, Any]) -> tuple[Any, Any]:
    c = Config.model_validate({"model": {"layers": entries}})
    assert c.model.layers is not None
    return architecture.listed_layers(c.model.layers, sample, 10)


def test_pictures() -> None:
    input_shape, layers = layers_of(
        (9, 8, 3),
        CONV,
        {"type": "depthwise_conv2d", "kernel": (3, 2), "padding": "valid", "multiplier": 2},
        {"type": "max_pool", "size": 2},
        CONV | {"stride": (2, 1), "filters": 8},
        {"type": "avg_pool", "size": 3, "stride": 2, "padding": "same"},
        {"type": "flatten"},
        {"type": "dense", "units": 5},
    )
    assert input_shape == (3, 9, 8)
    assert [y.shape for y in layers] == [(4, 9, 8), (8, 7, 7), (8, 3, 3), (8, 2, 3), (8, 1, 2), (5, 1, 1), (10, 1, 1)]
    weights = [(27, 4), (6, 8), (0, 0), (72, 8), (0, 0), (16, 5), (5, 10)]
    assert [y.weight.shape for y in layers] == weights
    assert layers[0].window == Window(3, 3, 1, 1, 1, 1)
    assert (layers[1].multiplier, layers[1].window) == (2, Window(3, 2))
    assert [y.activation for y in layers[-2:]] == [Activation.RELU, Activation.NONE]
    assert layers[-1].name == "output"


def test_time_series() -> None:
    input_shape, layers = layers_of(
        (20, 6),
        CONV_1D | {"stride": 2},
        {"type": "depthwise_conv1d", "kernel": 4},
        {"type": "max_pool", "size": 2},
        {"type": "global_avg_pool"},
    )
    assert input_shape == (6, 1, 20)
    assert [layer.shape for layer in layers] == [(4, 1, 10), (4, 1, 10), (4, 1, 5), (4, 1, 1), (10, 1, 1)]
    assert layers[0].window == Window(1, 3, 1, 2, 0, 0)
    assert layers[1].window == Window(1, 4, 1, 1, 0, 1)
    assert layers_of((20,), CONV_1D)[0] == (1, 1, 20)


def test_residual_connections() -> None:
    _, layers = layers_of((6, 6), CONV, {"type": "max_pool", "size": 2}, CONV, CONV, {"type": "add", "from": 2})
    assert (layers[4].op, layers[4].inputs, layers[4].activation) == (Op.ADD, (4, 2), Activation.NONE)
    _, layers = layers_of(
        (6,), {"type": "dense", "units": 4}, {"type": "flatten"}, {"type": "dense", "units": 4},
        {"type": "add", "from": 2, "activation": "relu"},
    )  # fmt: skip
    assert layers[2].inputs == (2, 1)


def test_dense_layers_alone_read_any_shape() -> None:
    input_shape, layers = layers_of((4, 5, 2), {"type": "flatten"}, {"type": "dense", "units": 3})
    assert input_shape == (1, 1, 40)
    assert layers[0].inputs == (0,)


@pytest.mark.parametrize(
    ("sample", "entries", "message"),
    [
        ((20,), [CONV], r"conv2d and pooling need samples of shape .* but the data have \(20\): use dense or conv1d"),
        ((8, 8, 3), [CONV_1D], r"conv1d needs samples of shape \(time, channels\), but the data have \(8, 8, 3\)"),
        (
            (4, 4),
            [CONV | {"kernel": 5, "padding": "valid"}],
            r"entry 1 \(conv2d\): a window of 5x5 does not fit .* 4x4",
        ),
        (
            (4, 4),
            [CONV, CONV | {"filters": 3}, {"type": "add", "from": 1}],
            r"entry 3 \(add\): .* 4x4x3, layer 1 4x4x4",
        ),
    ],
)
def test_networks_that_do_not_fit_the_data(
    sample: tuple[int, ...], entries: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        layers_of(sample, *entries)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layers = []", "3: model.layers is empty"),
        ("layers = 3", "3: model.layers: has to be a list, not 3"),
        ("layers = [3]", '3: model.layers: entry 1: has to be a table such as { type = "dense", units = 64 }, not 3'),
        ("layers = [{ units = 3 }]", "3: model.layers: entry 1: a layer needs a type: conv2d, "),
        ("layers = [{ type = 'conv3d' }]", "3: model.layers: entry 1: unknown type 'conv3d'; did you mean 'conv2d'?"),
        ("layers = [{ type = 'dense' }]", "3: model.layers: entry 1: dense needs 'units' (Outputs)"),
        (
            "layers = [\n  { type = 'flatten' },\n  { type = 'dense', units = 3, kernl = 3 },\n]",
            "5: model.layers: entry 2: unknown key 'kernl'; there are type, units, activation",
        ),
        (
            "[[model.layers]]\ntype = 'dense'\nunits = 3\n[[model.layers]]\ntype = 'max_pool'\nsize = 0",
            "6: model.layers: entry 2: size: has to be a whole number from 1 to 255, or [height, width], not 0",
        ),
        (
            "layers = [{ type = 'dense', units = 3, activation = 'tanh' }]",
            "3: model.layers: entry 1: activation: has to be 'none', 'relu' or 'relu6', not 'tanh'",
        ),
        ("layers = [{ type = 'add', from = 1 }]", "3: model.layers: entry 1: add needs two layers before it"),
        (
            "layers = [\n{ type = 'flatten' },\n{ type = 'flatten' },\n{ type = 'add', from = 2 }\n]",
            "6: model.layers: entry 3: from = 2 has to be a layer before entry 2, which is added anyway",
        ),
        (
            "layers = [{ type = 'flatten' }, { type = 'max_pool', size = 2 }]",
            "3: model.layers: entry 2: max_pool comes after a dense layer or flatten",
        ),
        (
            "layers = [{ type = 'conv1d', filters = 1, kernel = 3 }, { type = 'conv2d', filters = 1, kernel = 3 }]",
            "3: model.layers: entry 2: convolutions over one and over two axes do not go together",
        ),
        ("hidden = [3]\npath = 'a.keras'", "4: model.path and model.hidden are two ways to give the network"),
        ("path = 'a.keras'\nfunction = 'a:b'", "3: model.path and model.function are two ways"),
        ("path = 'a.tflite'", "3: model.path has to be a .keras or .h5 file, not a.tflite"),
        ("function = 'a'", "3: model.function has to be \"module:function\", not 'a'"),
        ("freeze = 1\ntrain_last = 1", "4: model.freeze and model.train_last say the same"),
        ("latent = true", "3: model.latent needs frozen layers"),
        ("input = 'raw'", "3: model.input is for a model from Keras"),
        ("input = 'half'", "3: model.input: has to be 'unit' or 'raw', not 'half'"),
        ("freeze = 0", "3: model.freeze: has to be greater than or equal to 1, not 0"),
    ],
)
def test_errors_name_the_entry_and_the_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "exp.toml"
    path.write_text(f"# a comment\n{'' if text.startswith('[[') else '[model]'}\n{text}\n")
    with pytest.raises(UserError) as caught:
        config.load(path)
    assert str(caught.value).startswith(f"{path}:{message}")


def test_defaults_of_the_initial_model_depend_on_where_it_comes_from() -> None:
    own, keras = Config(), Config.model_validate({"model": {"path": Path("a.keras")}})
    trained = Config.model_validate({"model": {"path": Path("a.keras")}, "initial": {"train": "first_task"}})
    assert (own.initial_train, own.rescale) == ("first_task", True)
    assert (keras.initial_train, keras.rescale) == ("none", False)
    assert (trained.initial_train, trained.rescale) == ("first_task", True)


def test_an_imported_model_may_know_the_first_task_or_base_classes() -> None:
    model = {"path": Path("a.keras")}
    Config.model_validate({"model": model, "tasks": {"first": "host"}})
    Config.model_validate({"model": model, "initial": {"base_classes": (0, 1)}})


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "exp.toml"
    path.write_text("[model]\npath = 'nets/a.keras'\n")
    assert config.load(path).model.path == (tmp_path / "nets" / "a.keras").resolve()
    (tmp_path / "net.py").write_text("")
    path.write_text("[model]\nfunction = 'net:build'\n")
    assert config.load(path).model.function == f"{(tmp_path / 'net.py').resolve()}:build"
    path.write_text("[model]\nfunction = 'package.net:build'\n")
    assert config.load(path).model.function == "package.net:build"
