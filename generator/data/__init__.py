# SPDX-License-Identifier: Apache-2.0
"""Data sets as streams of tasks with 8-bit inputs.

Sources (sets.py, arrays.py, table.py, images.py) give all samples; series.py cuts
time series into windows; tasks.py makes integers and tasks.  Splits depend on nothing
but the configuration: two seeds see the same training and test samples.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from sparcl_mcu.generator import files
from sparcl_mcu.generator.config import Config
from sparcl_mcu.generator.data import arrays, images, sets, table, tasks
from sparcl_mcu.generator.data.raw import Raw, check_size, limit, validation
from sparcl_mcu.generator.sizes import LARGEST_ARRAYS, LARGEST_MODULE, LARGEST_PICTURE, LARGEST_TABLE
from sparcl_mcu.spec.errors import UserError
from sparcl_mcu.spec.types import Dataset

_READERS: dict[str, Callable[[Config], Raw]] = {
    "mnist5k": sets.mnist5k,
    "digits": sets.digits,
    "watch": sets.watch,
    "keras": sets.keras,
    "npz": arrays.npz,
    "function": arrays.function,
    "csv": table.load,
    "images": images.folder,
}

_LARGEST = {"csv": LARGEST_TABLE, "images": LARGEST_PICTURE, "function": LARGEST_MODULE}
"""Bytes of one file."""


def load(config: Config) -> Dataset:
    """The stream of tasks an experiment asks for.

    Labels are numbered in the order of learning: the base classes first, then the classes of each task;
    in tasks by group, which share their classes, in the natural order.  Classes in no task are left out.
    Raises ``UserError`` for data that is missing, broken or of the wrong kind.
    """
    raw = limit(_READERS[config.data.set](config), config.data)
    if config.data.evaluate == "validation" and not _validates_itself(config):
        raw = validation(tasks.chosen(config, raw))
    check_size(raw)
    plan = tasks.plan(config, raw)
    tasks.check_samples(config, raw, plan)
    integers, signed, fraction = tasks.to_integers(config, raw, plan.known.where(raw.train))
    return tasks.cut(integers, plan, signed, fraction)


def _validates_itself(config: Config) -> bool:
    """Whether the set holds out people instead of samples."""
    return config.data.set == "watch" and config.tasks.by == "class"


def fingerprint(config: Config) -> bytes:
    """Hash of the user's files and of the source of this package: what the stage depends on besides the settings.

    Of a function its module counts, not what it reads.
    """
    state = hashlib.sha256()
    path = config.data.path
    try:
        for path in [*sorted(Path(__file__).parent.glob("*.py")), *_user_files(config)]:
            # The name of a picture's folder is its class.
            name = os.fsencode(f"{path.parent.name}/{path.name}")
            state.update(name + b"\0" + files.digest(path, _LARGEST.get(config.data.set, LARGEST_ARRAYS)))
    except OSError as error:
        raise UserError(f"{error.filename or path}: cannot be read ({error.strerror})") from None
    return state.digest()


def _user_files(config: Config) -> list[Path]:
    """The files of the user's own data, as far as they exist; what is not a file the readers report."""
    data = config.data
    if data.set == "images" and data.path is not None:
        return images.files(data.path) if data.path.is_dir() else []
    named = [arrays.module_file(data)] if data.set == "function" else [data.path, data.test_path]
    return [path for path in named if path is not None and path.is_file()]
