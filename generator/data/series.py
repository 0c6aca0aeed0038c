# SPDX-License-Identifier: Apache-2.0
"""Time series: windows, and what the network sees of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparcl_mcu.generator.config import WATCH_RATE, DataSection
from sparcl_mcu.generator.data.raw import Samples
from sparcl_mcu.generator.sizes import LARGEST_ARRAYS, shown
from sparcl_mcu.spec.errors import UserError

Floats = NDArray[np.float64]

FEATURES = ("mean", "std", "min", "max", "mean_abs_diff", "bands")
"""All features but raw, in the order the watch computes them."""

WATCH_WINDOW = 100
"""Time steps of a window of the watch set: 2 s."""


@dataclass(frozen=True)
class Recording:
    """``signal``: (time, channels); ``label`` and ``group`` hold for all of it."""

    signal: Floats
    label: int
    group: int = 0


def wanted(data: DataSection) -> bool:
    """Whether the samples are time series."""
    return data.set == "watch" or data.window is not None or data.features is not None


def cut(data: DataSection, signal: NDArray[Any]) -> NDArray[Any]:
    """(time, channels) -> (windows, window, channels), a window every ``hop`` steps."""
    width = _width(data)
    if len(signal) < width:
        return np.zeros((0, width, signal.shape[1]), dtype=signal.dtype)
    view = np.lib.stride_tricks.sliding_window_view(signal, width, axis=0)
    return view[:: data.hop or width // 2].transpose(0, 2, 1)


def check_size(data: DataSection, lengths: Sequence[int], channels: int, source: str) -> None:
    """Raises ``UserError`` if the windows of signals of these lengths, in float64, do not fit into memory."""
    width = _width(data) if data.window is not None or data.set == "watch" else max(lengths, default=0)
    hop = data.hop or max(1, width // 2)
    count = sum(max(0, (length - width) // hop + 1) for length in lengths)
    size = 8 * count * width * channels
    if size > LARGEST_ARRAYS:
        raise UserError(
            f"{source}: {count:,} windows of {width} time steps have {shown(size)}; at most {shown(LARGEST_ARRAYS)} "
            "are possible: set a larger data.hop or a smaller data.window"
        )


def gather(data: DataSection, recordings: Sequence[Recording], source: str) -> Samples:
    """The windows of all recordings."""
    return _gather(data, recordings, source, lambda signal: cut(data, signal))


def gather_apart(data: DataSection, recordings: Sequence[Recording], source: str) -> tuple[Samples, Samples]:
    """Training and test windows: the last ``test_share`` of each recording is for testing, at least one window.

    No window is in both parts.  A recording shorter than two windows is for training.
    """
    train = _gather(data, recordings, source, lambda signal: cut(data, signal[: _border(data, len(signal))]))
    test = _gather(data, recordings, source, lambda signal: cut(data, signal[_border(data, len(signal)) :]))
    return train, test


def see(data: DataSection, windows: NDArray[Any]) -> NDArray[Any]:
    """(windows, time, channels) -> the same if the network sees raw values, else (windows, channels * features).

    Features of a channel lie side by side: mean, deviation, least, greatest, mean absolute difference, and
    the logarithm of the power in each spectral band (lower edge excluded).
    """
    names = data.features or (FEATURES if data.set == "watch" else ("raw",))
    if names == ("raw",):
        return windows
    # Time last and in one piece: the order of the sums, and so their last bits, do not depend on the source.
    values = np.ascontiguousarray(windows.astype(np.float64).transpose(0, 2, 1))
    functions: dict[str, Callable[[Floats], Sequence[Floats]]] = {
        "mean": lambda v: [v.mean(axis=2)],
        "std": lambda v: [v.std(axis=2)],
        "min": lambda v: [v.min(axis=2)],
        "max": lambda v: [v.max(axis=2)],
        "mean_abs_diff": lambda v: [np.abs(np.diff(v, axis=2)).mean(axis=2)],
        "bands": lambda v: _bands(v, WATCH_RATE if data.set == "watch" else data.rate or 1.0, data.bands),
    }
    columns = [column for name in names for column in functions[name](values)]
    return np.stack(columns, axis=2).reshape(len(windows), -1)


def _width(data: DataSection) -> int:
    return data.window or WATCH_WINDOW


def _border(data: DataSection, length: int) -> int:
    """Where the test part of a recording begins."""
    width = _width(data)
    if length < 2 * width:
        return length
    held = max(width, math.floor(length * data.test_share + 1e-9))
    return max(width, length - held)


def _gather(
    data: DataSection, recordings: Sequence[Recording], source: str, windows: Callable[[Floats], Floats]
) -> Samples:
    channels = max((recording.signal.shape[1] for recording in recordings), default=0)
    check_size(data, [len(recording.signal) for recording in recordings], channels, source)
    parts = [windows(recording.signal) for recording in recordings]
    if not sum(len(part) for part in parts):
        longest = max((len(recording.signal) for recording in recordings), default=0)
        raise UserError(
            f"{source}: no window of {_width(data)} time steps (data.window) fits, for training and for testing; "
            f"the longest stretch of one recording, class and group has {longest}"
        )
    counts = [len(part) for part in parts]
    return Samples(
        np.concatenate(parts),
        np.repeat([recording.label for recording in recordings], counts).astype(np.int64),
        np.repeat([recording.group for recording in recordings], counts).astype(np.int64),
    )


def _bands(values: Floats, rate: float, inner: Sequence[float]) -> list[Floats]:
    """(windows, channels, time) -> for each band (windows, channels): log10 of its power, from 1e-3 on."""
    width = values.shape[2]
    power = np.abs(np.fft.rfft(values - values.mean(axis=2, keepdims=True), axis=2)) ** 2 / width
    frequency = np.fft.rfftfreq(width, 1.0 / rate)
    edges = (0.0, *inner, rate / 2)
    return [
        np.log10(1e-3 + power[:, :, (frequency > low) & (frequency <= high)].sum(axis=2))
        for low, high in itertools.pairwise(edges)
    ]
