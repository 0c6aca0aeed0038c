# SPDX-License-Identifier: Apache-2.0
"""Artefacts on disk and their digests.

An artefact is two files: ``name.json``, which can be read and compared by eye,
and ``name.npz`` with its arrays.  Nothing is pickled, nothing carries a time
stamp, and what is read back is checked against the types in artefacts.py.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import types
import typing
import zipfile
from collections.abc import Collection
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, Union

import numpy as np
from numpy.typing import NDArray

from sparcl_mcu.generator import archives, files
from sparcl_mcu.generator.sizes import LARGEST_ARRAYS
from sparcl_mcu.spec.errors import UserError
from sparcl_mcu.spec.types import Model

T = TypeVar("T")

FORMAT = 1
"""Version of the layout of the two files."""


def digest(value: object, leave_out: Collection[str] = ()) -> bytes:
    """SHA-256 over everything in an artefact: names of fields, types, shapes and values.

    ``leave_out``: fields of the outermost dataclass that do not count.  The same on
    every machine: integers are written out, floats in hexadecimal, arrays little-endian.
    """
    state = hashlib.sha256()
    _feed(state.update, value, leave_out)
    return state.digest()


def model_hash(model: Model) -> bytes:
    """Hash that board and host compare: 8 bytes over all of a model but the hash itself."""
    return digest(model, ("model_hash",))[:8]


def _feed(update: typing.Callable[[bytes], None], value: object, leave_out: Collection[str] = ()) -> None:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        update(f"{type(value).__name__}{{".encode())
        for field in dataclasses.fields(value):
            if field.name not in leave_out:
                update(f"{field.name}=".encode())
                _feed(update, getattr(value, field.name))
        update(b"}")
    elif isinstance(value, np.ndarray):
        plain = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("<"))
        update(f"array:{plain.dtype.kind}{plain.dtype.itemsize}:{plain.shape}:".encode())
        update(plain.tobytes())
    elif isinstance(value, tuple):
        update(f"({len(value)}:".encode())
        for item in value:
            _feed(update, item)
    elif isinstance(value, dict):
        _feed(update, tuple(sorted(value.items())))
    else:
        update(_scalar(value))


def _scalar(value: object) -> bytes:
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, bool | np.bool_):
        return f"b:{int(value)};".encode()
    if isinstance(value, int | np.integer):
        return f"i:{int(value)};".encode()
    if isinstance(value, float):
        return f"f:{float(value).hex()};".encode()
    if isinstance(value, str):
        return f"s:{len(value.encode())}:{value};".encode()
    if isinstance(value, bytes):
        return f"x:{value.hex()};".encode()
    if value is None:
        return b"none;"
    raise TypeError(f"no digest for {type(value).__name__}")


# ---------------------------------------------------------------- saving


def save(path: Path, artefact: object) -> None:
    """Write ``path`` with the endings ``.json`` and ``.npz``; the same artefact gives the same bytes."""
    arrays: list[NDArray[Any]] = []
    tree = _encode(artefact, arrays)
    packed = _pack(arrays)
    document = {
        "artefact": type(artefact).__name__,
        "format": FORMAT,
        "arrays_sha256": hashlib.sha256(packed).hexdigest(),
        "value": tree,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path.with_suffix(".npz"), packed)
    files.write(path.with_suffix(".json"), json.dumps(document, indent=1) + "\n")


def _encode(value: object, arrays: list[NDArray[Any]]) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _encode(getattr(value, f.name), arrays) for f in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        arrays.append(value)
        return {"array": len(arrays) - 1, "dtype": str(value.dtype), "shape": list(value.shape)}
    if isinstance(value, tuple):
        return [_encode(item, arrays) for item in value]
    if isinstance(value, dict):
        return {key: _encode(item, arrays) for key, item in value.items()}
    if isinstance(value, bytes):
        return value.hex()
    return value.value if isinstance(value, Enum) else value


def _pack(arrays: list[NDArray[Any]]) -> bytes:
    """An ``.npz`` without time stamps (``numpy.savez`` writes the current time)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, array in enumerate(arrays):
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
            info = zipfile.ZipInfo(f"a{number}.npy")
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, member.getvalue())
    return buffer.getvalue()


# ---------------------------------------------------------------- loading


class _Malformed(Exception):
    """What is wrong with a file, and where; ``load`` turns it into a ``UserError``."""


def load(path: Path, cls: type[T]) -> T:
    """Read an artefact of class ``cls``; ``UserError`` if it is missing, damaged or of another kind."""
    try:
        document = files.read_json(path.with_suffix(".json"))
        packed = path.with_suffix(".npz")
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise _Malformed(f"not an artefact of format {FORMAT}")
        if document.get("artefact") != cls.__name__:
            raise _Malformed(f"holds a {document.get('artefact')}, not a {cls.__name__}")
        if document.get("arrays_sha256") != files.digest(packed, 2 * LARGEST_ARRAYS).hex():
            raise _Malformed("the .npz does not belong to the .json")
        found = archives.load(packed, 2 * LARGEST_ARRAYS)
        arrays = [found[f"a{number}"] for number in range(len(found))]
        artefact = _decode(document.get("value"), cls, arrays, cls.__name__)
        if isinstance(artefact, Model) and artefact.model_hash != model_hash(artefact):
            raise _Malformed("the model's hash does not fit its contents")
    except (OSError, ValueError, KeyError, RecursionError, _Malformed) as error:
        raise UserError(f"{path.with_suffix('.json')}: {error}; delete it and generate it again") from None
    return typing.cast(T, artefact)


def _decode(value: Any, kind: Any, arrays: list[NDArray[Any]], where: str) -> Any:
    """``value`` as the type ``kind``, or ``_Malformed``."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _decode(value, next(a for a in arguments if a is not type(None)), arrays, where)
    if origin is tuple:
        return _decode_tuple(value, arguments, arrays, where)
    if origin is np.ndarray or origin is NDArray:
        return _decode_array(value, arguments, arrays, where)
    if origin is dict and isinstance(value, dict):
        return {str(k): _decode(v, arguments[1], arrays, f"{where}[{k}]") for k, v in value.items()}
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _decode_dataclass(value, kind, arrays, where)
    return _decode_scalar(value, kind, where)


def _decode_tuple(value: Any, arguments: tuple[Any, ...], arrays: list[NDArray[Any]], where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _Malformed(f"{where} is not a list")
    return tuple(_decode(item, arguments[0], arrays, f"{where}[{k}]") for k, item in enumerate(value))


def _decode_array(value: Any, arguments: tuple[Any, ...], arrays: list[NDArray[Any]], where: str) -> NDArray[Any]:
    number = value.get("array") if isinstance(value, dict) else None
    if not isinstance(number, int) or not 0 <= number < len(arrays):
        raise _Malformed(f"{where} is not an array")
    array = arrays[number]
    if not np.issubdtype(array.dtype, _element(arguments)) or list(array.shape) != value.get("shape"):
        raise _Malformed(f"{where} is {array.dtype} {list(array.shape)}, which is not what it has to be")
    return array


def _element(arguments: tuple[Any, ...]) -> Any:
    """The type of an array's numbers: until numpy 2.4 `NDArray[T]` is `ndarray[shape, dtype[T]]`, then an own type."""
    last = arguments[-1]
    return (typing.get_args(last) or (last,))[0]


def _decode_dataclass(value: Any, kind: Any, arrays: list[NDArray[Any]], where: str) -> Any:
    names = {field.name for field in dataclasses.fields(kind)}
    if not isinstance(value, dict) or set(value) != names:
        raise _Malformed(f"{where} has to have {', '.join(sorted(names))}")
    hints = typing.get_type_hints(kind)
    return kind(**{name: _decode(value[name], hints[name], arrays, f"{where}.{name}") for name in value})


def _decode_scalar(value: Any, kind: Any, where: str) -> Any:
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(value)
    if kind is bytes and isinstance(value, str):
        return bytes.fromhex(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise _Malformed(f"{where} is {value!r}, which is not of type {kind.__name__}")
    return value
