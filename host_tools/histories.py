# SPDX-License-Identifier: Apache-2.0
"""validation.npz: what a validated session showed of masks and samples, as the reference kept it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparcl_mcu.generator import archives, files
from sparcl_mcu.generator.sizes import LARGEST_ARRAYS
from sparcl_mcu.reference.history import History
from sparcl_mcu.spec.errors import UserError

RESULT = "validation.npz"

Histories = Mapping[int, History]
"""Histories by number of the task on the board."""

_BY_SAMPLE = ("mistakes", "losses", "left")


def save(histories: Histories, path: Path) -> None:
    """Write as compressed arrays; a task that has not ended has no masks."""
    arrays: dict[str, NDArray[np.generic]] = {}
    for task, history in histories.items():
        arrays |= {f"task{task}.{name}": getattr(history, name) for name in _BY_SAMPLE}
        arrays |= {f"task{task}.layer{number}": bits for number, bits in history.masks.items()}
    with files.writing(path), path.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def load(path: Path) -> dict[int, History]:
    """Read what `save` wrote; UserError when it is not there or damaged."""
    histories: dict[int, dict[str, NDArray[np.generic]]] = {}
    try:
        for key, array in archives.load(path, LARGEST_ARRAYS).items():
            task, _, name = key.partition(".")
            histories.setdefault(int(task.removeprefix("task")), {})[name] = array
        return {task: _history(parts) for task, parts in sorted(histories.items())}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error}): run `sparcl validate` again") from error


def _history(parts: Mapping[str, NDArray[np.generic]]) -> History:
    return History(
        mistakes=parts["mistakes"].astype(np.uint16),
        losses=parts["losses"].astype(np.int64),
        left=parts["left"].astype(np.uint16),
        masks={
            int(name.removeprefix("layer")): bits.astype(np.uint8)
            for name, bits in parts.items()
            if name.startswith("layer")
        },
    )
