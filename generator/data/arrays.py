# SPDX-License-Identifier: Apache-2.0
"""The user's own arrays: an ``.npz``, or what a function returns."""

from __future__ import annotations

import traceback
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from sparcl_mcu.generator import archives, files, user_module
from sparcl_mcu.generator.config import Config, DataSection
from sparcl_mcu.generator.data import series
from sparcl_mcu.generator.data.raw import LARGEST, Labels, Raw, Samples, check_classes, hold_out, natural
from sparcl_mcu.generator.data.tasks import chosen, held_out
from sparcl_mcu.generator.sizes import LARGEST_ARRAYS, shown
from sparcl_mcu.spec.errors import UserError

Arrays = Mapping[str, NDArray[Any]]

LONGEST_NAME = 4096
"""Bytes of the name of a class or group in an array, where each takes as much as the longest."""

_NEEDED = ("x_train", "y_train")
_KEYS = (*_NEEDED, "x_test", "y_test", "group_train", "group_test")


def npz(config: Config) -> Raw:
    """The arrays of ``data.path``; what they have to look like is in the errors below."""
    path = cast(Path, config.data.path)
    try:
        with files.opened(path, LARGEST_ARRAYS) as file:
            found = _stored(config, path, file)
    except FileNotFoundError:
        raise UserError(f"{path}: no such data file (data.path)") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    return _raw(config, path.stem, str(path), found)


def _stored(config: Config, path: Path, file: BinaryIO) -> dict[str, NDArray[Any]]:
    """Read the arrays that are needed; others may be anything."""
    if file.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX:
        raise UserError(f"{path}: is a single array; save it with numpy.savez(path, x_train=..., ...)")
    try:
        with archives.opened(file) as archive:
            members = {name.removesuffix(".npy"): name for name in archive.namelist()}
            wanted = {key: members[key] for key in _wanted(config) if key in members}
            _check_declared(path, archive, wanted)
            found = {key: _array_of(path, archive, key, member) for key, member in wanted.items()}
    except (ValueError, EOFError, zipfile.BadZipFile, NotImplementedError):
        raise UserError(f"{path}: not an .npz; numpy.savez(path, x_train=..., ...) makes one") from None
    _check_keys(str(path), config, found, list(members))
    return found


def _check_declared(path: Path, archive: zipfile.ZipFile, wanted: Mapping[str, str]) -> None:
    """Check the declared sizes of the arrays before any of them is loaded."""
    total = 0
    for key, member in wanted.items():
        try:
            total += archives.declared(archive, member)
        except Exception as error:
            raise _unusable(path, key, error) from None
    if total > LARGEST_ARRAYS:
        raise UserError(
            f"{path}: {', '.join(wanted)} have {shown(total)} unpacked; at most {shown(LARGEST_ARRAYS)} are possible: "
            "keep fewer samples, or smaller numbers (uint8, float16)"
        )


def _array_of(path: Path, archive: zipfile.ZipFile, key: str, member: str) -> NDArray[Any]:
    """Read one array of an archive."""
    try:
        return archives.array(archive, member)
    except Exception as error:
        raise _unusable(path, key, error) from None


def _unusable(path: Path, key: str, error: Exception) -> UserError:
    """Why an array cannot be read; zlib, zipfile and NumPy raise many errors for a corrupt file."""
    if "allow_pickle" in str(error):
        return UserError(
            f"{path}: {key} holds Python objects; save plain numbers or strings ({key}.astype(str) makes strings)"
        )
    if "magic string" in str(error):
        return UserError(f"{path}: {key} is not an array; numpy.savez(path, x_train=..., ...) makes them")
    return UserError(f"{path}: {key} cannot be read ({_line(error)}); is the file whole?")


def _line(error: BaseException) -> str:
    """Another library's error on one line, with its kind."""
    text = " ".join(str(error).split())
    text = text if len(text) <= 200 else text[:200] + " ..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def function(config: Config) -> Raw:
    """Call ``data.function``, which returns (x_train, y_train[, x_test, y_test]), or a mapping as in an ``.npz``."""
    text = cast(str, config.data.function)
    module, _, name = text.partition(":")
    source = f'data.function = "{text}"'
    user_module.require_consent(source)
    with user_module.importing(config.data.path):
        try:
            loader = getattr(user_module.load(config.data.path, module), name, None)
            result = loader() if callable(loader) else None
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            if isinstance(error, ModuleNotFoundError) and error.name == module:
                raise UserError(f"{source}: there is no module {module} in {config.data.path} or installed") from None
            raise UserError(f"{source} failed: {_line(error)}{_place(config.data, error)}") from None
    if not callable(loader):
        raise UserError(f"{source}: module {module} has no function {name}")
    found = _named(source, result)
    _check_keys(source, config, found, list(found))
    return _raw(config, module.rpartition(".")[2], source, {k: v for k, v in found.items() if k in _wanted(config)})


def module_file(data: DataSection) -> Path | None:
    """The module of ``data.function`` where it lies beside the experiment file."""
    module = (data.function or "").partition(":")[0]
    path = (data.path or Path()) / f"{module.replace('.', '/')}.py"
    return path if path.is_file() else None


def _place(data: DataSection, error: BaseException) -> str:
    """The line of the user's module in which it happened."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == module_file(data)]
    return f" ({module_file(data)}:{lines[-1]})" if lines else ""


def _named(source: str, result: object) -> dict[str, NDArray[Any]]:
    """The result of the user's function as arrays with names."""
    if isinstance(result, tuple) and len(result) == 2 and all(isinstance(p, tuple) and len(p) == 2 for p in result):
        result = (*result[0], *result[1])  # as Keras's data sets come
    if isinstance(result, tuple | list) and len(result) in (2, 4):
        result = dict(zip(_KEYS, result, strict=False))
    if not isinstance(result, Mapping):
        raise UserError(
            f"{source} returned {type(result).__name__}; it has to return (x_train, y_train), "
            f"(x_train, y_train, x_test, y_test) or a mapping with {', '.join(_KEYS)}"
        )
    return {str(key): _array(source, str(key), value) for key, value in result.items() if value is not None}


def _array(source: str, key: str, value: object) -> NDArray[Any]:
    """Convert a value to an array; a pandas column of strings becomes strings."""
    try:
        array = np.asarray(value)
    except Exception as error:  # __array__ of any class
        raise UserError(f"{source}: {key} is not an array of equal rows ({_line(error)})") from None
    if array.dtype == np.object_ and array.size and all(isinstance(entry, str) for entry in array.flat):
        return array.astype(np.str_)
    return array


def _wanted(config: Config) -> tuple[str, ...]:
    return _KEYS if config.tasks.by == "group" else _KEYS[:4]


def _check_keys(source: str, config: Config, found: Arrays, names: list[str]) -> None:
    """Check that all needed keys are there."""
    needed = list(_NEEDED)
    if "x_test" in found or "y_test" in found:
        needed += ["x_test", "y_test"]
    if config.tasks.by == "group":
        needed += [key.replace("y_", "group_") for key in needed if key.startswith("y_")]
    missing = [key for key in needed if key not in found]
    if missing:
        why = ' (tasks.by = "group")' if missing[0].startswith("group") else ""
        raise UserError(f"{source}: lacks {', '.join(missing)}{why}; it has {', '.join(names) or 'nothing'}")


def _raw(config: Config, name: str, source: str, arrays: Arrays) -> Raw:
    """Check the arrays and turn them into samples."""
    parts = ("train", "test") if "x_test" in arrays else ("train",)
    for part in parts:
        _check_part(source, part, arrays)
    if len(parts) == 2 and arrays["x_train"].shape[1:] != arrays["x_test"].shape[1:]:
        raise UserError(
            f"{source}: samples of x_train have shape {arrays['x_train'].shape[1:]}, "
            f"of x_test {arrays['x_test'].shape[1:]}"
        )
    texts = {key: _texts(arrays[key]) for key in arrays if not key.startswith("x_")}
    classes = natural(np.unique(texts["y_train"]).tolist())
    check_classes(f"{source}: y_train", classes, config)
    unknown = natural(set(texts["y_test"].tolist()) - set(classes)) if len(parts) == 2 else ()
    if unknown:
        raise UserError(f"{source}: y_test contains class {unknown[0]}, which never occurs in y_train")
    grouped = "group_train" in arrays
    groups = natural(name for part in parts for name in texts[f"group_{part}"].tolist()) if grouped else ()
    samples = []
    for part in parts:
        x, y = arrays[f"x_{part}"], _numbers(classes, texts[f"y_{part}"])
        group = _numbers(groups, texts[f"group_{part}"]) if grouped else np.zeros(len(y), np.int64)
        samples.append(Samples(x.reshape(len(x), *(x.shape[1:] or (1,))), y, group))
    raw = Raw(name, source, classes, samples[0], samples[-1], groups)
    if series.wanted(config.data):
        # The experiment file counts windows; these are recordings.
        return _windows(config.data, raw if len(parts) == 2 else hold_out(chosen(config, raw), config.data.test_share))
    return raw if len(parts) == 2 else held_out(config, raw)


def _texts(values: NDArray[Any]) -> NDArray[np.str_]:
    """(samples,) labels or groups as they are named in the experiment file."""
    flat = values.reshape(-1)
    return np.char.decode(flat, "utf-8", "replace") if flat.dtype.kind == "S" else flat.astype(np.str_)


def _numbers(names: Sequence[str], texts: NDArray[np.str_]) -> Labels:
    """Numbers of the names."""
    number = {name: k for k, name in enumerate(names)}
    unique, inverse = np.unique(texts, return_inverse=True)
    return np.array([number[name] for name in unique.tolist()], dtype=np.int64)[inverse]


def _check_part(source: str, part: str, arrays: Arrays) -> None:
    """Check the arrays of the training or the test set."""
    x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
    if x.ndim < 1 or x.dtype.kind not in "buif":
        raise UserError(f"{source}: x_{part} has to be an array of numbers, not {x.dtype} of shape {x.shape}")
    for key, what in ((f"y_{part}", "label"), (f"group_{part}", "group")):
        values = arrays.get(key, y)
        if values.dtype.kind not in "iuUS" or values.ndim not in (1, 2) or values.shape[1:] not in ((), (1,)):
            raise UserError(
                f"{source}: {key} has to hold one {what} (integer or string) a sample, "
                f"not {values.dtype} of shape {values.shape}"
            )
        if values.dtype.kind in "US" and values.dtype.itemsize > LONGEST_NAME:
            raise UserError(f"{source}: {key} has names of {shown(values.dtype.itemsize)}: give them shorter ones")
        if values.dtype.kind in "US" and not np.char.str_len(values).all():
            row = int(np.flatnonzero(np.char.str_len(values.reshape(-1)) == 0)[0])
            raise UserError(f"{source}: {key}[{row}] is empty")
        if len(x) != len(values):
            raise UserError(f"{source}: x_{part} has {len(x)} samples, {key} has {len(values)}")
    if len(x) == 0:
        raise UserError(f"{source}: x_{part} is empty")
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        row = int(np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(axis=1))[0])
        raise UserError(f"{source}: x_{part} has NaN or infinite values, the first in x_{part}[{row}]")
    if x.dtype.kind == "f" and x.size and max(x.max(), -x.min()) > LARGEST:
        raise UserError(f"{source}: x_{part} has magnitudes up to {max(x.max(), -x.min()):.4g}, which is too large")


def _windows(data: DataSection, raw: Raw) -> Raw:
    """Each sample is a time series: (time, channels), or (time,) of a single channel."""
    if len(raw.shape) > 2 or raw.shape[0] < 2:
        raise UserError(
            f"{raw.source}: data.window and data.features need samples of shape (time, channels), not {raw.shape}"
        )
    if data.window is not None and data.window > raw.shape[0]:
        raise UserError(f"{raw.source}: samples have {raw.shape[0]} time steps, less than data.window = {data.window}")

    def windows(samples: Samples) -> Samples:
        x = samples.x.reshape(len(samples.x), raw.shape[0], -1)
        series.check_size(data, [x.shape[1]] * len(x), x.shape[2], raw.source)
        if data.window is None:
            return Samples(series.see(data, x), samples.y, samples.group)
        cut = [series.cut(data, signal) for signal in x]
        count = len(cut[0])
        return Samples(
            series.see(data, np.concatenate(cut)), np.repeat(samples.y, count), np.repeat(samples.group, count)
        )

    return Raw(raw.name, raw.source, raw.class_names, windows(raw.train), windows(raw.test), raw.group_names)
