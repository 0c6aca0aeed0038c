# SPDX-License-Identifier: Apache-2.0
"""Between Keras and the initial model: networks of the user's are read, ours are trained.

The only module that imports TensorFlow, and only when it is called.  Keras has channels
last, the initial model channels first: weights are turned around on the way.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import json
import lzma
import math
import os
import re
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from sparcl_mcu.generator import architecture, archives, files, user_module
from sparcl_mcu.generator.architecture import Shape, TooLarge, shown
from sparcl_mcu.generator.config import Config
from sparcl_mcu.generator.sizes import (
    LARGEST_DESCRIPTION,
    LARGEST_MODEL,
    MOST_AT_ONCE,
    MOST_LAYERS,
    MOST_OUTPUTS,
    MOST_WEIGHTS,
)
from sparcl_mcu.generator.sizes import shown as shown_size
from sparcl_mcu.spec.errors import UserError
from sparcl_mcu.spec.types import Activation, FloatLayer, Op, Window

Floats = NDArray[np.float64]
Array = NDArray[Any]


def start(seed: int) -> Any:
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


# ---------------------------------------------------------------- ours to Keras


def to_keras(keras: Any, input_shape: Shape, layers: Sequence[FloatLayer], fixed: int = 0) -> Any:
    """A functional model that starts from ``layers``; absent weights stay 0, the first ``fixed`` layers as they are.

    Its input is (height, width, channels), or (n_in,) where all layers are dense.
    """
    tensors = [keras.Input(keras_shape(input_shape))]
    for k, layer in enumerate(layers):
        x = [tensors[t] for t in layer.inputs]
        shape = _shape(input_shape, layers, layer.inputs[0])
        tensors.append(_keras_layer(keras, layer, shape, x, trainable=k >= fixed))
    return keras.Model(tensors[0], tensors[-1])


def keras_shape(shape: Shape) -> tuple[int, ...]:
    """Shape of a sample in ``to_keras``'s model."""
    channels, height, width = shape
    return (width,) if channels == height == 1 else (height, width, channels)


def trained(network: Any, input_shape: Shape, layers: Sequence[FloatLayer]) -> tuple[FloatLayer, ...]:
    """``layers`` with the weights of the model ``to_keras`` made from them."""
    weighted = iter([layer for layer in network.layers if layer.get_weights()])
    result = []
    for layer in layers:
        if layer.weighted:
            kernel, bias = (np.asarray(v, dtype=np.float64) for v in next(weighted).get_weights())
            weight = _from_kernel(layer, _shape(input_shape, layers, layer.inputs[0]), kernel)
            layer = replace(layer, weight=weight * layer.mask, bias=bias)
        result.append(layer)
    return tuple(result)


def _shape(input_shape: Shape, layers: Sequence[FloatLayer], tensor: int) -> Shape:
    channels, height, width = layers[tensor - 1].shape if tensor else input_shape
    return channels, height, width


def _keras_layer(keras: Any, layer: FloatLayer, shape: Shape, inputs: Sequence[Any], *, trainable: bool) -> Any:
    """The output of one layer on the symbolic ``inputs``, the first of which has ``shape``."""
    x = inputs[0]
    if layer.window is not None and len(x.shape) == 2:
        # One channel over time looks like a flat sample, and the output of a dense layer is one.
        x = keras.layers.Reshape((shape[1], shape[2], shape[0]))(x)
    if layer.op is Op.ADD:
        x = keras.layers.Add()(list(inputs)) if len(inputs) > 1 else x
        return _keras_activation(keras, layer.activation, x)
    if not layer.weighted:
        return _keras_activation(keras, layer.activation, _keras_pooling(keras, layer, shape, x))
    constraint = None if layer.mask.all() else _masked(keras, _to_kernel(layer, shape, layer.mask.astype(np.float64)))
    activation = {Activation.NONE: None, Activation.RELU: "relu", Activation.RELU6: "relu6"}[layer.activation]
    options = {"activation": activation, "trainable": trainable}
    if layer.op is Op.DENSE:
        x = keras.layers.Flatten()(x) if len(x.shape) > 2 else x
        made = keras.layers.Dense(layer.weight.shape[1], kernel_constraint=constraint, **options)
    else:
        x, window = _padded(keras, layer, shape, x)
        if layer.multiplier:
            made = keras.layers.DepthwiseConv2D(
                depth_multiplier=layer.multiplier, depthwise_constraint=constraint, **window, **options
            )
        else:
            made = keras.layers.Conv2D(layer.weight.shape[1], kernel_constraint=constraint, **window, **options)
    y = made(x)
    made.set_weights([_to_kernel(layer, shape, layer.weight).astype(np.float32), layer.bias.astype(np.float32)])
    return y


def _masked(keras: Any, mask: Floats) -> Any:
    class Masked(keras.constraints.Constraint):  # type: ignore[misc]
        """Sets absent weights to 0 after each update."""

        def __init__(self) -> None:
            self.mask = keras.ops.convert_to_tensor(mask.astype(np.float32))

        def __call__(self, w: Any) -> Any:
            return w * self.mask

    return Masked()


def _keras_activation(keras: Any, activation: Activation, x: Any) -> Any:
    return x if activation is Activation.NONE else keras.layers.Activation(activation.value)(x)


def _keras_pooling(keras: Any, layer: FloatLayer, shape: Shape, x: Any) -> Any:
    x, window = _padded(keras, layer, shape, x)
    size = window.pop("kernel_size")
    kind = keras.layers.MaxPooling2D if layer.op is Op.MAX_POOL else keras.layers.AveragePooling2D
    return kind(size, **window)(x)


def _padded(keras: Any, layer: FloatLayer, shape: Shape, x: Any) -> tuple[Any, dict[str, Any]]:
    """The input with margins where Keras has no name for them, and the window as arguments."""
    window = layer.window
    assert window is not None
    kernel, stride = (window.kernel_h, window.kernel_w), (window.stride_h, window.stride_w)
    # The rows of one-dimensional data: TensorFlow wants depthwise strides to be equal.
    steps = (stride[1], stride[1]) if shape[1] == 1 == layer.shape[1] else stride
    options = {"kernel_size": kernel, "strides": steps}
    for padding in ("valid", "same"):
        with contextlib.suppress(ValueError):
            if architecture.slide(shape[1:], kernel, stride, padding) == (window, tuple(layer.shape[1:])):
                return x, options | {"padding": padding}
    bottom, right = window.behind(shape[1:], layer.shape[1:])
    margins = ((window.top, bottom), (window.left, right))
    return keras.layers.ZeroPadding2D(margins)(x), options | {"padding": "valid"}


def _to_kernel(layer: FloatLayer, shape: Shape, weight: Floats) -> Floats:
    """(n_in, n_out) as Keras keeps it; ``shape``: of the layer's input."""
    channels, height, width = shape
    if layer.op is Op.DENSE:
        return weight.reshape(channels, height, width, -1).transpose(1, 2, 0, 3).reshape(weight.shape)
    assert layer.window is not None
    size = (layer.window.kernel_h, layer.window.kernel_w)
    if layer.multiplier:
        return weight.reshape(*size, channels, layer.multiplier)
    return weight.reshape(channels, *size, -1).transpose(1, 2, 0, 3)


def _from_kernel(layer: FloatLayer, shape: Shape, kernel: Floats) -> Floats:
    """The inverse of ``_to_kernel``."""
    channels, height, width = shape
    if layer.op is Op.DENSE:
        return kernel.reshape(height, width, channels, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
    if layer.multiplier:
        return kernel.reshape(layer.weight.shape)
    return kernel.transpose(2, 0, 1, 3).reshape(layer.weight.shape)


# ---------------------------------------------------------------- the user's model


def load(keras: Any, config: Config) -> Any:
    """Load the model of ``model.path`` or ``model.function``; raises ``UserError`` if it is not a usable model."""
    section = config.model
    if section.path is not None:
        check(config)
        return _load_file(keras, section.path, config.experiment.seed)
    assert section.function is not None
    place = f"model.function = {section.function!r}"
    model = _call(section.function, place)
    if not isinstance(model, keras.Model):
        raise UserError(f"{place}: returned {type(model).__name__}, not a Keras model")
    if getattr(model, "inputs", None):
        _check_weights(place, model)
    return model


def check(config: Config) -> None:
    """Raises ``UserError`` for a model file that Keras must not see; TensorFlow, which takes long, is not needed."""
    path = config.model.path
    if path is None:
        return
    try:
        with files.opened(path, LARGEST_MODEL) as file:
            whole = zipfile.is_zipfile(file) if path.suffix == ".keras" else file.read(4) == b"\x89HDF"
    except FileNotFoundError:
        raise UserError(f"{path}: no such file (model.path)") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}) (model.path)") from None
    if not whole:
        raise UserError(f"{path}: is corrupt or not a {path.suffix} file: write it with Keras's model.save()")
    _check_harmless(path)
    _check_declared(path)


def _load_file(keras: Any, path: Path, seed: int) -> Any:
    """Load a file without running code from it: such code is refused here, and again by Keras's safe mode."""
    try:
        with _quiet():
            # Built first without memory for the weights: only then is it known what the description asks for.
            try:
                with keras.StatelessScope(initialize_variables=False):
                    _check_weights(str(path), keras.models.load_model(path, compile=False, safe_mode=True))
            finally:
                keras.utils.clear_session()  # else Keras makes up for these weights later
                keras.utils.set_random_seed(seed)
            return keras.models.load_model(path, compile=False, safe_mode=True)
    except UserError:
        raise
    except Exception as error:  # Keras raises whatever its readers raise
        raise UserError(f"{path}: {_unreadable(error)}") from None


def _check_weights(name: str, model: Any) -> None:
    """Raises ``UserError`` for a network that the host has no room for."""
    count = int(model.count_params())
    if count > MOST_WEIGHTS:
        raise UserError(f"{name}: has {count:,} weights; at most {MOST_WEIGHTS:,} are possible: make it smaller")


_CODE = frozenset(
    {"Lambda", "__lambda__", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer"}
    | {"StringLookup", "IntegerLookup", "IndexLookup", "TextVectorization"}
)
"""Classes of Keras that run code from the file, or read other files that it names."""

_OWN = re.compile(
    r"keras(\.src)?(\.(layers|models|initializers|regularizers|constraints|activations|ops|dtype_policies|quantizers"
    r"|optimizers|losses|metrics)(\.\w+)*)?"
)
"""Modules of Keras that a network is made of.  Others, keras.utils for one, do things when they are called."""


def _check_harmless(path: Path) -> None:
    """Refuse a file that names code.  The safe mode of older versions of Keras does not look at .h5 files."""
    description = _description(path)
    if (count := _layer_count(description)) > MOST_LAYERS:
        raise UserError(f"{path}: has {count:,} layers; at most {MOST_LAYERS:,} are possible")
    for name, module in _named_classes(description):
        if name in _CODE:
            raise UserError(
                f"{path}: holds Python code, or names a file to be read ({name}), which the board cannot run: "
                "write it with other layers"
            )
        if module and not _OWN.fullmatch(module) and module != "builtins":
            raise UserError(
                f"{path}: needs {name} of {module}, which is not Keras's own: use Keras's layers in a Sequential or "
                "functional model"
            )


def _description(path: Path) -> Any:
    """The network as JSON; None where there is none, which Keras then says better."""
    try:
        if path.suffix == ".keras":
            with path.open("rb") as packed, archives.opened(packed) as archive:
                if archive.getinfo("config.json").file_size > LARGEST_DESCRIPTION:
                    raise UserError(
                        f"{path}: config.json does not describe a network: write it with Keras's model.save()"
                    )
                return json.loads(archives.contents(archive, "config.json", LARGEST_DESCRIPTION))
        with importlib.import_module("h5py").File(path, "r") as file:
            if file.attrs.get_id("model_config").get_storage_size() > LARGEST_DESCRIPTION:
                raise UserError(f"{path}: model_config does not describe a network: write it with Keras's model.save()")
            return json.loads(file.attrs["model_config"])
    except (OSError, KeyError, ValueError, EOFError, RecursionError, zipfile.BadZipFile, zlib.error):
        return None
    except (TypeError, AttributeError, RuntimeError, lzma.LZMAError) as error:  # encrypted, packed in another way, ...
        raise UserError(f"{path}: cannot be read ({error}): write it with Keras's model.save()") from None


_MOST_OBJECTS = 100_000
"""Groups and arrays in an .h5 file; a layer has about ten."""


def _check_declared(path: Path) -> None:
    """Refuse a file whose arrays take more than a network needs once they are unpacked, or lie in other files."""
    try:
        declared = _declared_in_zip(path) if path.suffix == ".keras" else _declared_in_h5(path, path)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # of zipfile and h5py, for broken files
        raise UserError(f"{path}: cannot be read ({error}): write it with Keras's model.save()") from None
    if declared > LARGEST_MODEL:
        raise UserError(
            f"{path}: has {shown_size(declared)} unpacked; at most {shown_size(LARGEST_MODEL)} are possible"
        )


def _declared_in_zip(path: Path) -> int:
    with path.open("rb") as file, archives.opened(file) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise UserError(f"{path}: is packed in a way that Keras does not use: write it with Keras's model.save()")
        total = sum(member.file_size for member in members)
        if total > LARGEST_MODEL or _WEIGHTS not in archive.namelist():
            return total
        return _declared_in_h5(path, io.BytesIO(archives.contents(archive, _WEIGHTS, LARGEST_MODEL)))


_WEIGHTS = "model.weights.h5"


def _declared_in_h5(path: Path, content: Path | io.BytesIO) -> int:
    """Bytes of all arrays in a file, each counted once."""
    h5py = importlib.import_module("h5py")
    total, seen = 0, set[int]()
    with h5py.File(content, "r") as file:
        left = [file]
        while left and len(seen) <= _MOST_OBJECTS:
            group = left.pop()
            for name in group:
                link = group.get(name, getlink=True)
                if isinstance(link, h5py.ExternalLink):
                    raise UserError(f"{path}: names another file, {link.filename}: write it with Keras's model.save()")
                item = None if isinstance(link, h5py.SoftLink) else group[name]
                address = h5py.h5o.get_info(item.id).addr if item is not None else None
                if address is None or address in seen:
                    continue
                seen.add(address)
                if isinstance(item, h5py.Group):
                    left.append(item)
                elif isinstance(item, h5py.Dataset):
                    if item.external or item.is_virtual:
                        raise UserError(f"{path}: names another file: write it with Keras's model.save()")
                    total += int(item.size or 0) * item.dtype.itemsize
    if len(seen) > _MOST_OBJECTS:
        raise UserError(f"{path}: holds more than {_MOST_OBJECTS:,} arrays: write it with Keras's model.save()")
    return total


def _layer_count(tree: Any) -> int:
    """Layers in a description, with those of models inside of it."""
    left, count = [tree], 0
    while left:
        item = left.pop()
        if isinstance(item, dict):
            left += item.values()
            layers = item.get("layers")
            count += len(layers) if isinstance(layers, list) else 0
        elif isinstance(item, list):
            left += item
    return count


def _named_classes(tree: Any) -> Iterator[tuple[str, str]]:
    """Every (class or function, module) in a description."""
    left = [tree]
    while left:
        item = left.pop()
        if isinstance(item, dict):
            left += item.values()
            if "class_name" in item:
                kind, config = str(item["class_name"]), item.get("config")
                name = config if kind == "function" and isinstance(config, str) else kind
                yield name, str(item.get("module") or "")
        elif isinstance(item, list):
            left += item


def _unreadable(error: Exception) -> str:
    """Explain why Keras refuses a file, and what to do."""
    reason = " ".join(str(error).split())
    if "safe_mode" in reason or "unsafe" in reason or "Lambda" in reason:
        return "holds Python code (a Lambda layer), which the board cannot run: write it with other layers"
    foreign = re.search(r"Could not locate (?:class|function) '([^']+)'|Unknown layer: '([^']+)'", reason)
    if foreign:
        return (
            f"needs {foreign[1] or foreign[2]}, which is not Keras's own: use Keras's layers in a Sequential or "
            "functional model"
        )
    if "No model config" in reason:
        return "holds weights without their model: save both with Keras's model.save()"
    # The cause comes last, after the configuration of the whole model.
    cause = reason.rpartition("Exception encountered: ")[2]
    return f"Keras cannot read it ({cause[:300] or type(error).__name__})"


def fingerprint(config: Config) -> bytes:
    """Hash of the file an imported model comes from; for a function, of its module but not of what that reads."""
    section = config.model
    file = section.path or Path((section.function or "").rpartition(":")[0])
    try:
        return files.digest(file, LARGEST_MODEL) if file.is_file() else hashlib.sha256(b"").digest()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None


def _call(reference: str, place: str) -> Any:
    """Call "module:function"; the module is given by its name or its file."""
    user_module.require_consent(place)
    name, _, function = reference.rpartition(":")
    file = Path(name)
    folder, module = (file.parent, file.stem) if file.suffix == ".py" else (None, name)
    try:
        with user_module.importing(folder):
            return getattr(user_module.load(folder, module), function)()
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise UserError(f"{place}: {type(error).__name__}: {error}") from error


def sample_shape(model: Any) -> tuple[int, ...]:
    """Shape of one sample; raises ``UserError`` unless the model has one input of a fixed size."""
    inputs = getattr(model, "inputs", None)
    if not inputs:
        raise UserError(
            f"model {model.name!r} is not built, or a subclass of keras.Model: a Sequential or functional model "
            "with keras.Input is needed"
        )
    if len(inputs) != 1 or len(model.outputs) != 1:
        raise UserError(
            f"model {model.name!r} has {len(inputs)} inputs and {len(model.outputs)} outputs; one of each is possible: "
            "make a keras.Model of one input and the logits"
        )
    shape = tuple(inputs[0].shape[1:])
    if None in shape:
        raise UserError(
            f"model {model.name!r} takes samples of shape {shown(shape)}, but a board needs fixed sizes: build it with "
            "them in keras.Input, and copy the weights with set_weights(old.get_weights())"
        )
    if not 1 <= len(shape) <= 3:
        raise UserError(f"model {model.name!r} takes samples of shape {shown(shape)}; 1 to 3 axes are possible")
    return shape


def begins_scaled(model: Any) -> bool:
    """Whether the model itself scales its input: it begins with Rescaling or Normalization."""
    kinds = (_kind(step.layer) for step in _flatten(model)[0])
    return next((kind for kind in kinds if kind not in _UNCHANGED | {"Reshape"}), "") in ("Rescaling", "Normalization")


def predict(model: Any, x: Array) -> Array:
    """The outputs of a model for samples of its own shape: (samples, outputs)."""
    outputs = sum(math.prod(step.shape) for step in _flatten(model)[0])
    count = max(1, min(256, MOST_AT_ONCE // max(1, outputs)))
    parts = [np.asarray(model(x[k : k + count], training=False)) for k in range(0, len(x), count)]
    return np.concatenate(parts).reshape(len(x), -1)


def from_keras(model: Any, scale: float = 1.0) -> tuple[Shape, tuple[FloatLayer, ...]]:
    """The model as layers of the initial model, for inputs that are its own divided by ``scale``.

    Returns the shape of the input, and the layers, the last of them the logits.  Batch normalisation
    and scaling of the input are folded into layers with weights; what does nothing when a network is used is
    dropped.  Raises ``UserError`` that names every layer the board has no counterpart of.
    """
    shape = sample_shape(model)
    steps, output = _flatten(model)
    _check_supported(model, steps)
    _check_outputs(model.name, steps)
    _check_finite(model)
    try:
        return _Import(model.name, steps, output, shape, scale).run()
    except TooLarge as error:
        raise UserError(f"model {model.name!r}: {error}") from None


def _check_outputs(name: str, steps: Sequence[_Step]) -> None:
    for step in steps:
        if math.prod(step.shape) > MOST_OUTPUTS:
            raise UserError(
                f"model {name!r}: {getattr(step.layer, 'name', '')} has {math.prod(step.shape):,} outputs; at most "
                f"{MOST_OUTPUTS:,} are possible: use fewer units or filters, or a smaller input"
            )


def _check_finite(model: Any) -> None:
    for variable in model.weights:
        if not np.isfinite(np.asarray(variable)).all():
            raise UserError(
                f"model {model.name!r}: {variable.path} holds values that are not finite: its training has diverged; "
                "train it again with a smaller learning rate"
            )


@dataclass(frozen=True)
class _Step:
    """One call of a layer; ``inputs``, ``output``: numbers of tensors, 0 the input of the network."""

    layer: Any
    inputs: tuple[int, ...]
    output: int
    shape: tuple[int, ...]


def _flatten(model: Any) -> tuple[list[_Step], int]:
    """All calls, inputs before their use and nested models unfolded, and the output."""
    steps: list[_Step] = []

    def walk(part: Any, inputs: Sequence[int]) -> list[int]:
        # A Sequential keeps its graph in a functional model of its own.
        graph = getattr(part, "_functional", None) or part
        known = {id(t): number for t, number in zip(graph.inputs, inputs, strict=True)}
        for depth in sorted(graph._nodes_by_depth, reverse=True):
            for node in graph._nodes_by_depth[depth]:
                if node.is_input:
                    continue
                sources = [known[id(t)] for t in node.input_tensors]
                if getattr(node.operation, "_nodes_by_depth", None) or getattr(node.operation, "_functional", None):
                    outputs = walk(node.operation, sources)
                else:
                    outputs = [len(steps) + 1]
                    shape = tuple(node.outputs[0].shape[1:])
                    steps.append(_Step(node.operation, tuple(sources), outputs[0], shape))
                known |= {id(t): number for t, number in zip(node.outputs, outputs, strict=False)}
        return [known[id(t)] for t in graph.outputs]

    return steps, walk(model, [0])[0]


def _kind(layer: Any) -> str:
    """The name of a class of Keras's; of others with their module, so that they are not taken for one."""
    module = type(layer).__module__
    name = type(layer).__name__
    return name if module.split(".")[0] in ("keras", "tf_keras") else f"{module}.{name}"


_UNCHANGED = {
    *("InputLayer", "Identity", "Dropout", "SpatialDropout1D", "SpatialDropout2D", "AlphaDropout", "GaussianDropout"),
    *("GaussianNoise", "ActivityRegularization", "RandomFlip", "RandomRotation", "RandomTranslation", "RandomZoom"),
    *("RandomContrast", "RandomBrightness"),
}
"""Layers that do something in training only."""

_HINTS = {
    "LSTM": "use Conv1D over a window of time",
    "GRU": "use Conv1D over a window of time",
    "SimpleRNN": "use Conv1D over a window of time",
    "Bidirectional": "use Conv1D over a window of time",
    "LayerNormalization": "use BatchNormalization, which is folded into the layer before it",
    "GroupNormalization": "use BatchNormalization, which is folded into the layer before it",
    "UnitNormalization": "use BatchNormalization, which is folded into the layer before it",
    "MultiHeadAttention": "use convolutions",
    "Attention": "use convolutions",
    "Embedding": "give the network numbers instead of words",
    "TimeDistributed": "use the layer itself: Dense and Conv1D go over the steps of time anyway",
    "Concatenate": "use Add",
    "Average": "use Add",
    "Subtract": "use Add",
    "Maximum": "use Add",
    "Mean": "use GlobalAveragePooling1D or GlobalAveragePooling2D",
    "Max": "use GlobalMaxPooling1D or GlobalMaxPooling2D",
    "Multiply": "leave it out (squeeze and excitation), or use Add",
    "LeakyReLU": "use ReLU",
    "PReLU": "use ReLU",
    "ELU": "use ReLU",
    "Conv2DTranspose": "the board classifies: use Conv2D",
    "UpSampling2D": "the board classifies: leave it out",
    "Lambda": "write it with other layers",
    "Resizing": "resize the data instead",
    "Cropping1D": "cut the data instead",
    "Cropping2D": "cut the data instead",
    "CenterCrop": "cut the data instead",
    "RandomCrop": "cut the data instead",
    "SpectralNormalization": "it is for training: build the model without it and copy the weights",
    "Permute": "turn the data instead",
}
"""Advice on what to use in place of a layer."""


def _check_supported(model: Any, steps: Sequence[_Step]) -> None:
    """Names every layer the board cannot compute, all at once."""
    problems = [problem for step in steps if (problem := _problem(step))]
    used = Counter(id(step.layer) for step in steps)
    shared = {step.layer.name: step.layer for step in steps if used[id(step.layer)] > 1}
    problems += [
        f"{name} ({_kind(layer)}): is used more than once: use layers of its own in each place"
        for name, layer in shared.items()
        if getattr(layer, "weights", ())
    ]
    if problems:
        known = ", ".join(sorted(set(_HANDLERS) - _OPERATIONS | {"Dropout"}))
        text = "\n  ".join(dict.fromkeys(problems))
        raise UserError(f"model {model.name!r} has layers the board cannot compute:\n  {text}\npossible are {known}")


def _problem(step: _Step) -> str | None:
    """Why a layer cannot be taken over, if so."""
    layer = step.layer
    kind = _kind(layer)
    name = f"{getattr(layer, 'name', kind)} ({kind})"
    if kind in _UNCHANGED:
        return None
    if kind not in _HANDLERS:
        return f"{name}: {_HINTS.get(kind, 'leave it out or use other layers')}"
    if getattr(layer, "data_format", "channels_last") == "channels_first":
        return f'{name}: data_format "channels_first"; use "channels_last"'
    if any(n != 1 for n in np.atleast_1d(getattr(layer, "dilation_rate", 1))):
        return f"{name}: dilation_rate {layer.dilation_rate}; use 1, and a larger kernel or stride"
    if getattr(layer, "groups", 1) != 1:
        return f"{name}: groups = {layer.groups}; use 1, or DepthwiseConv2D"
    if kind == "BatchNormalization" and layer.axis not in (-1, len(step.shape)):
        return f"{name}: axis {layer.axis}; use -1, the channels"
    if kind == "ReLU" and (layer.negative_slope or layer.threshold or layer.max_value not in (None, 6.0)):
        return f"{name}: use ReLU() or ReLU(max_value=6)"
    if hasattr(layer, "activation") and _activation(layer) is None:
        used = getattr(layer.activation, "__name__", type(layer.activation).__name__)
        return f"{name}: activation {used}; use relu or relu6, and softmax or none at the output"
    return None


def _activation(layer: Any) -> str | None:
    """Name of a layer's activation, None if it is not a possible one."""
    name = getattr(layer.activation, "__name__", "")
    return name if name in ("linear", "relu", "relu6", "softmax") else None


# ---------------------------------------------------------------- import


@dataclass(frozen=True)
class _Value:
    """A Keras tensor in terms of the initial model.

    ``shape``: as Keras sees it, without the batch.  The tensor's values times ``scale`` plus ``offset``
    (both broadcast to ``shape``) surrounded by ``margin`` zeros (top, bottom, left, right) are Keras's.
    ``owner``: the layer that asked for scale and offset.  ``shared``: others read it as well.
    """

    tensor: int
    shape: tuple[int, ...]
    scale: Floats = field(default_factory=lambda: np.ones(1))
    offset: Floats = field(default_factory=lambda: np.zeros(1))
    owner: Any = None
    margin: tuple[int, int, int, int] = (0, 0, 0, 0)
    shared: bool = False
    softmax: bool = False

    @property
    def plain(self) -> bool:
        """Whether the tensor's values are Keras's as they are."""
        return bool((self.scale == 1.0).all() and (self.offset == 0.0).all()) and not any(self.margin)


class _Import:
    """Builds the layers, one Keras layer after the other."""

    def __init__(self, name: str, steps: Sequence[_Step], output: int, shape: tuple[int, ...], scale: float) -> None:
        self.name = name
        self.steps = steps
        self.output = output
        self.layers: list[FloatLayer] = []
        # Without convolutions nothing depends on where a value lies: its order is that of the sample.
        self.windows = any(_has_positions(step) for step in steps)
        self.input_shape = _channel_first(shape) if self.windows else (1, 1, int(np.prod(shape)))
        self.values = {0: _Value(0, shape, scale=np.array([scale]))}
        self.readers = Counter(n for step in steps for n in step.inputs)
        self.readers[output] += 1

    def run(self) -> tuple[Shape, tuple[FloatLayer, ...]]:
        for step in self.steps:
            inputs = [self._read(n) for n in step.inputs]
            kind = _kind(step.layer)
            if inputs[0].softmax and kind not in _UNCHANGED:
                self._fail(step.layer, "comes after softmax: softmax is possible at the output only")
            self.values[step.output] = inputs[0] if kind in _UNCHANGED else _HANDLERS[kind](self, step, inputs)
        result = self.values[self.output]
        self._end_dense()
        last = self.layers[-1] if self.layers else None
        logits = last is not None and last.op is Op.DENSE and last.activation is Activation.NONE
        if not logits or result.tensor != len(self.layers) or not result.plain:
            ending = last.name if last is not None else "its input"
            raise UserError(
                f"model {self.name!r} ends with {ending}: it has to end with a Dense layer that has one unit for each "
                "class, with softmax or no activation (or the same as a convolution of size 1 and a global average)"
            )
        return self.input_shape, tuple(self.layers)

    def _end_dense(self) -> None:
        """A convolution that covers its whole input is a dense layer, and is one where the network ends.

        So is one of size 1 of which the mean over all positions is taken, if the mean is taken first.
        """
        if len(self.layers) > 1 and self.layers[-1].op is Op.AVG_POOL:
            pool, point = self.layers[-1], self.layers[-2]
            only = [t for layer in self.layers for t in layer.inputs].count(len(self.layers) - 1) == 1
            shape = self.shape_of(point.inputs[0])
            one = point.op is Op.CONV and point.window == Window(1, 1) and point.activation is Activation.NONE
            if one and only and not point.multiplier and pool.window == Window(*shape[1:]):
                first = replace(pool, inputs=point.inputs, shape=(shape[0], 1, 1))
                second = replace(point, inputs=(len(self.layers) - 1,), shape=(point.shape[0], 1, 1))
                self.layers[-2:] = [first, second]
        last = self.layers[-1] if self.layers else None
        if last is None or last.op is not Op.CONV or last.multiplier:
            return
        if last.window == Window(*self.shape_of(last.inputs[0])[1:]):
            self.layers[-1] = replace(last, op=Op.DENSE, window=None)

    def _read(self, number: int) -> _Value:
        value = self.values[number]
        return replace(value, shared=value.shared or self.readers[number] > 1)

    def _fail(self, layer: Any, message: str) -> NoReturn:
        raise UserError(f"model {self.name!r}: {layer.name} ({_kind(layer)}): {message}")

    def shape_of(self, tensor: int) -> Shape:
        """(channels, height, width) of a tensor."""
        return _shape(self.input_shape, self.layers, tensor)

    def add(self, layer: FloatLayer, shape: tuple[int, ...]) -> _Value:
        """Appends a layer; ``shape``: of its output, as Keras sees it."""
        self.layers.append(layer)
        return _Value(len(self.layers), shape)

    # -------------------------------------------------- scale, offset and margins

    def exact(self, step: _Step, value: _Value) -> _Value:
        """A value that is its tensor as it is; what is pending becomes a layer."""
        if value.plain:
            return value
        if any(value.margin):
            self._fail(step.layer, "comes after zero padding, which has to be followed by a convolution")
        owner = value.owner or step.layer
        shape = self.shape_of(value.tensor)
        if value.scale.size == value.offset.size == 1:
            scale, offset = (np.broadcast_to(v.reshape(1), shape[:1]) for v in (value.scale, value.offset))
        elif _channel_first(value.shape) == shape:
            scale, offset = self.channels(step, value)
        else:
            self._fail(owner, "has to be followed by a convolution or a dense layer")
        layer = architecture.depthwise(value.tensor, shape, 1, Window(1, 1), shape[1:], Activation.NONE, owner.name)
        weight = scale.reshape(1, -1).copy()
        return self.add(replace(layer, weight=weight, bias=offset.copy(), saliency=weight), value.shape)

    def channels(self, step: _Step, value: _Value) -> tuple[Floats, Floats]:
        """Scale and offset of each channel."""
        both = []
        for array in (value.scale, value.offset):
            full = np.broadcast_to(array, value.shape).reshape(-1, value.shape[-1])
            if (full != full[0]).any():
                self._fail(value.owner or step.layer, "has to treat all positions of a channel alike (axis=-1)")
            both.append(full[0])
        return both[0], both[1]

    def affine(self, layer: Any, value: _Value, scale: Floats, offset: Floats) -> _Value:
        """Keras's values times ``scale`` plus ``offset``: folded into the layer before, or kept for the one after."""
        target = self.layers[value.tensor - 1] if value.tensor else None
        foldable = target is not None and target.weighted and target.activation is Activation.NONE
        if target is not None and foldable and value.plain and not value.shared and value.shape[-1] == target.shape[0]:
            a, b = (np.broadcast_to(v, value.shape[-1:]) for v in (scale, offset))
            self.layers[value.tensor - 1] = replace(target, weight=target.weight * a, bias=target.bias * a + b)
            return value
        if any(value.margin):
            self._fail(layer, "comes after zero padding, which has to be followed by a convolution")
        return replace(value, scale=value.scale * scale, offset=value.offset * scale + offset, owner=layer)

    # -------------------------------------------------- layers with weights

    def dense(self, step: _Step, inputs: Sequence[_Value]) -> _Value:
        layer, (value,) = step.layer, inputs
        kernel, bias = _weights(layer, "kernel")
        if len(value.shape) > 1:
            return self.activated(step, self._dense_everywhere(step, value, kernel, bias))
        scale, offset = (np.broadcast_to(v, value.shape) for v in (value.scale, value.offset))
        bias = bias + offset @ kernel
        kernel = kernel * scale[:, np.newaxis]
        shape = self.shape_of(value.tensor)
        made = architecture.dense(value.tensor, shape, kernel.shape[1], Activation.NONE, layer.name)
        weight = _from_kernel(made, shape, kernel)
        return self.activated(step, self.add(replace(made, weight=weight, bias=bias, saliency=weight), step.shape))

    def _dense_everywhere(self, step: _Step, value: _Value, kernel: Floats, bias: Floats) -> _Value:
        """Keras's dense layer at each position: a convolution of size 1."""
        if any(value.margin):
            self._fail(step.layer, "comes after zero padding, which has to be followed by a convolution")
        scale, offset = self.channels(step, value)
        return self._point(value, kernel * scale[:, np.newaxis], bias + offset @ kernel, step.layer.name)

    def convolution(self, step: _Step, inputs: Sequence[_Value]) -> _Value:
        layer = step.layer
        kernel, bias = _weights(layer, "kernel")
        depthwise = _kind(layer).startswith("Depthwise")
        return self.activated(step, self._convolution(step, inputs[0], kernel, bias, depthwise, layer.name))

    def separable(self, step: _Step, inputs: Sequence[_Value]) -> _Value:
        layer = step.layer
        kernel = np.asarray(layer.depthwise_kernel, dtype=np.float64)
        none = np.zeros(kernel.shape[-1] * kernel.shape[-2])
        value = self._convolution(step, inputs[0], kernel, none, True, f"{layer.name}/depthwise")
        kernel, bias = _weights(layer, "pointwise_kernel")
        made = self._point(value, kernel, bias, layer.name)
        return self.activated(step, made)

    def _point(self, value: _Value, kernel: Floats, bias: Floats, name: str) -> _Value:
        shape = self.shape_of(value.tensor)
        weight = kernel.reshape(-1, len(bias))
        layer = architecture.convolution(
            value.tensor, shape, weight.shape[1], Window(1, 1), shape[1:], Activation.NONE, name
        )
        return self.add(replace(layer, weight=weight, bias=bias, saliency=weight), (*value.shape[:-1], len(bias)))

    def _convolution(
        self, step: _Step, value: _Value, kernel: Floats, bias: Floats, depthwise: bool, name: str
    ) -> _Value:
        window, out = self.window(step, value, _pair(step.layer.kernel_size), _pair(step.layer.strides))
        scale, offset = self.channels(step, value)
        if (offset != 0.0).any() and self._reaches_out(value, window, out):
            value = self.exact(step, value)
            scale, offset = self.channels(step, value)
        kernel = kernel.reshape(window.kernel_h, window.kernel_w, *kernel.shape[-2:])
        moved = (kernel * offset[:, np.newaxis]).sum(axis=(0, 1))
        bias = bias + (moved.reshape(-1) if depthwise else moved.sum(axis=0))
        kernel = kernel * scale[:, np.newaxis]
        shape = self.shape_of(value.tensor)
        if depthwise:
            layer = architecture.depthwise(value.tensor, shape, kernel.shape[3], window, out, Activation.NONE, name)
        else:
            layer = architecture.convolution(value.tensor, shape, kernel.shape[3], window, out, Activation.NONE, name)
        weight = _from_kernel(layer, shape, kernel)
        size = out if len(value.shape) == 3 else out[1:]
        return self.add(replace(layer, weight=weight, bias=bias, saliency=weight), (*size, len(bias)))

    def window(
        self, step: _Step, value: _Value, kernel: tuple[int, int], stride: tuple[int, int]
    ) -> tuple[Window, tuple[int, int]]:
        """The window over the tensor without its margin, and the size of the output."""
        top, bottom, left, right = value.margin
        _, height, width = self.shape_of(value.tensor)
        padding = step.layer.padding
        if padding == "causal":
            left, padding = left + kernel[1] - 1, "valid"
        size = (height + top + bottom, width + left + right)
        try:
            window, out = architecture.slide(size, kernel, stride, padding)
        except ValueError as error:
            self._fail(step.layer, str(error))
        return replace(window, top=window.top + top, left=window.left + left), out

    def _reaches_out(self, value: _Value, window: Window, out: tuple[int, int]) -> bool:
        """Whether the window covers positions outside of the tensor."""
        _, height, width = self.shape_of(value.tensor)
        return max(window.top, window.left, *window.behind((height, width), out)) > 0

    # -------------------------------------------------- other layers

    def pooling(self, step: _Step, inputs: Sequence[_Value]) -> _Value:
        layer, value = step.layer, inputs[0]
        kind = _kind(layer)
        op = Op.MAX_POOL if "Max" in kind else Op.AVG_POOL
        if op is Op.MAX_POOL and (value.scale <= 0.0).any():
            value = self.exact(step, value)
        if any(value.margin) and not (op is Op.MAX_POOL and self._never_negative(value)):
            self._fail(layer, 'comes after zero padding: use padding="same" in its place')
        shape = self.shape_of(value.tensor)
        if kind.startswith("Global"):
            window, out = Window(*shape[1:]), (1, 1)
        else:
            window, out = self.window(step, value, _pair(layer.pool_size), _pair(layer.strides))
            if max(value.margin[0], value.margin[2]) and (
                window.top >= window.kernel_h or window.left >= window.kernel_w
            ):
                self._fail(layer, "has windows that lie in the zero padding: pad less")
        made = self.add(architecture.pooling(op, value.tensor, shape, window, out, layer.name), step.shape)
        if value.scale.size > 1 or value.offset.size > 1:
            scale, offset = self.channels(step, value)
            return replace(made, scale=scale, offset=offset, owner=value.owner)
        return replace(made, scale=value.scale, offset=value.offset, owner=value.owner)

    def _never_negative(self, value: _Value) -> bool:
        """Whether zeros around the tensor never win over its values."""
        if not bool((value.scale > 0.0).all() and (value.offset == 0.0).all()):
            return False
        tensor = value.tensor
        while tensor and self.layers[tensor - 1].op is Op.MAX_POOL:
            tensor = self.layers[tensor - 1].inputs[0]
        return tensor > 0 and self.layers[tensor - 1].activation is not Activation.NONE

    def padding(self, step: _Step, inputs: Sequence[_Value]) -> _Value:
        (value,) = inputs
        if (value.offset != 0.0).any():
            value = self.exact(step, value)
        pads = np.atleast_2d(step.layer.padding).tolist()
        columns = pads[-1]
        rows = pads[0] if len(pads) == 2 else (0, 0)
        top, bottom, left, right = np.add(value.margin, (*rows, *columns)).tolist()
        return replace(value, margin=(top, bottom, left, right), shape=step.shape)

    def reshape(self, step: _Step, inputs: Sequence[_Value]) -> _Value:
        """Flatten and Reshape: the values stay where they are."""
        (value,) = inputs
        if any(value.margin):
            self._fail(step.layer, "comes after zero padding, which has to be followed by a convolution")
        if len(step.shape) == 1:
            whole = [np.broadcast_to(v, value.shape).reshape(-1) for v in (value.scale, value.offset)]
            if all((v == v[0]).all() for v in whole):
                whole = [v[:1] for v in whole]
            return replace(value, shape=step.shape, scale=whole[0], offset=whole[1])
        scalar = value.scale.size == value.offset.size == 1
        if value.tensor == 0 and not self.layers and scalar:
            self.input_shape = _channel_first(step.shape) if self.windows else self.input_shape
            return replace(value, shape=step.shape)
        if [n for n in step.shape if n > 1] != [n for n in value.shape if n > 1] or step.shape[-1] != value.shape[-1]:
            self._fail(step.layer, "only axes of length 1 may come or go: leave it out")
        return self._turned(step, value)

    def _turned(self, step: _Step, value: _Value) -> _Value:
        """Axes of length 1 come or go where height and width are kept apart on the board."""
        if _channel_first(step.shape) != self.shape_of(value.tensor):
            self._fail(step.layer, "between layers it may not turn rows into columns: reshape the input instead")
        scale, offset = self.channels(step, value)
        return replace(value, shape=step.shape, scale=scale, offset=offset)

    def normalisation(self, step: _Step, inputs: Sequence[_Value]) -> _Value:
        layer, (value,) = step.layer, inputs
        mean, variance = (np.asarray(v, dtype=np.float64) for v in (layer.moving_mean, layer.moving_variance))
        scale = 1.0 / np.sqrt(variance + layer.epsilon)
        scale = scale * (np.asarray(layer.gamma, dtype=np.float64) if layer.scale else 1.0)
        offset = (np.asarray(layer.beta, dtype=np.float64) if layer.center else 0.0) - mean * scale
        return self.affine(layer, value, scale, offset)

    def scaling(self, step: _Step, inputs: Sequence[_Value]) -> _Value:
        """Rescaling, and Normalization by constants."""
        layer, (value,) = step.layer, inputs
        if _kind(layer) == "Rescaling":
            scale, offset = (np.asarray(v, dtype=np.float64) for v in (layer.scale, layer.offset))
            return self.affine(layer, value, np.atleast_1d(scale), np.atleast_1d(offset))
        if layer.mean is None:
            self._fail(layer, "has no mean and variance: call its adapt() first")
        mean, variance = (np.asarray(v, dtype=np.float64) for v in (layer.mean, layer.variance))
        mean, variance = (v[0] if v.ndim > len(value.shape) else v for v in (mean, variance))
        deviation = np.maximum(np.sqrt(variance), 1e-7)
        if layer.invert:
            return self.affine(layer, value, np.atleast_1d(deviation), np.atleast_1d(mean))
        return self.affine(layer, value, np.atleast_1d(1.0 / deviation), np.atleast_1d(-mean / deviation))

    def addition(self, step: _Step, inputs: Sequence[_Value]) -> _Value:
        values = [self.exact(step, value) for value in inputs]
        if len(values) < 2 or any(value.shape != step.shape for value in values):
            self._fail(
                step.layer, "adds tensors of different shapes, or a constant: Add needs inputs of the same shape"
            )
        tensors = tuple(value.tensor for value in values)
        shape = self.shape_of(tensors[0])
        if any(self.shape_of(t) != shape for t in tensors):
            self._fail(step.layer, "adds the input itself: put a Dense layer between them")
        return self.add(architecture.plain(Op.ADD, tensors, shape, Activation.NONE, step.layer.name), step.shape)

    def activation(self, step: _Step, inputs: Sequence[_Value]) -> _Value:
        return self.activated(step, inputs[0])

    def activated(self, step: _Step, value: _Value) -> _Value:
        """A value after the activation of a Keras layer: part of the layer before it where that can be."""
        layer = step.layer
        kind = _kind(layer)
        name = {"ReLU": "relu", "Relu": "relu", "Relu6": "relu6", "Softmax": "softmax"}.get(kind) or _activation(layer)
        if kind == "ReLU" and layer.max_value is not None:
            name = "relu6"
        if name == "softmax":
            return replace(self.exact(step, value), softmax=True)
        if name == "linear":
            return value
        activation = Activation.RELU6 if name == "relu6" else Activation.RELU
        value = self.exact(step, value)
        before = self.layers[value.tensor - 1] if value.tensor else None
        if before is not None and before.activation in (activation, Activation.RELU6):
            return value
        if before is not None and before.activation is Activation.NONE and not value.shared:
            self.layers[value.tensor - 1] = replace(before, activation=activation)
            return value
        shape = self.shape_of(value.tensor)
        return self.add(architecture.plain(Op.ADD, (value.tensor,), shape, activation, layer.name), step.shape)


_Handler = Callable[[_Import, _Step, Sequence[_Value]], _Value]

_HANDLERS: dict[str, _Handler] = {
    "Dense": _Import.dense,
    "Conv1D": _Import.convolution,
    "Conv2D": _Import.convolution,
    "DepthwiseConv1D": _Import.convolution,
    "DepthwiseConv2D": _Import.convolution,
    "SeparableConv1D": _Import.separable,
    "SeparableConv2D": _Import.separable,
    "MaxPooling1D": _Import.pooling,
    "MaxPooling2D": _Import.pooling,
    "AveragePooling1D": _Import.pooling,
    "AveragePooling2D": _Import.pooling,
    "GlobalAveragePooling1D": _Import.pooling,
    "GlobalAveragePooling2D": _Import.pooling,
    "GlobalMaxPooling1D": _Import.pooling,
    "GlobalMaxPooling2D": _Import.pooling,
    "ZeroPadding1D": _Import.padding,
    "ZeroPadding2D": _Import.padding,
    "Flatten": _Import.reshape,
    "Reshape": _Import.reshape,
    "BatchNormalization": _Import.normalisation,
    "Rescaling": _Import.scaling,
    "Normalization": _Import.scaling,
    "Add": _Import.addition,
    "ReLU": _Import.activation,
    "Relu": _Import.activation,
    "Relu6": _Import.activation,
    "Activation": _Import.activation,
    "Softmax": _Import.activation,
}

_OPERATIONS = {"Relu", "Relu6"}
"""Functions of keras.ops, not layers."""


def _weights(layer: Any, name: str) -> tuple[Floats, Floats]:
    """A layer's kernel and bias, zeros where it has none."""
    kernel = np.asarray(getattr(layer, name), dtype=np.float64)
    if layer.use_bias:
        return kernel, np.asarray(layer.bias, dtype=np.float64)
    depthwise = type(layer).__name__.startswith("Depthwise")
    return kernel, np.zeros(kernel.shape[-1] * (kernel.shape[-2] if depthwise else 1))


def _pair(value: Any) -> tuple[int, int]:
    """A size or stride over (height, width); data over time have height 1."""
    sizes = np.atleast_1d(value)
    return (int(sizes[0]), int(sizes[1])) if len(sizes) == 2 else (1, int(sizes[0]))


def _has_positions(step: _Step) -> bool:
    """Whether it matters to a layer where a value lies."""
    kind = _kind(step.layer)
    return kind not in _UNCHANGED and (kind.endswith(("1D", "2D")) or (kind == "Dense" and len(step.shape) > 1))


def _channel_first(shape: tuple[int, ...]) -> Shape:
    """Keras's (height, width, channels), (time, channels) or (n,) as (channels, height, width)."""
    if len(shape) == 3:
        return shape[2], shape[0], shape[1]
    return (shape[1], 1, shape[0]) if len(shape) == 2 else (shape[0], 1, 1)
