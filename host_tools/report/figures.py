# SPDX-License-Identifier: Apache-2.0
"""Positions of what the pages draw: curves, labels, pictures of samples.  The templates turn them into SVG."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparcl_mcu.spec.types import Dataset

Values = Sequence[float | None]

COLOURS = 8
"""Colours that the style sheet has (c0, c1, ...); a ninth curve has the first one again, dashed."""


@dataclass(frozen=True)
class Curve:
    """One curve: ``points``: (x, y, value); ``label_y``: where its name stands, None: it has none."""

    name: str
    style: str
    points: tuple[tuple[float, float, float], ...]
    label_y: float | None = None


@dataclass(frozen=True)
class Band:
    """A stretch of the horizontal axis with its name; ``shade``: whether it is shaded."""

    x: float
    width: float
    name: str
    shade: bool


@dataclass(frozen=True)
class Plot:
    """A line plot; all positions in units of its view box."""

    title: str
    unit: str
    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    ticks: tuple[tuple[float, str], ...]
    bands: tuple[Band, ...]
    curves: tuple[Curve, ...]


@dataclass(frozen=True)
class Series:
    """A series to plot: a value for each place on the horizontal axis, None where there is none."""

    name: str
    values: Values
    style: str


_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 460.0, 230.0, 36.0, 16.0, 196.0
_LABELS = 92.0
"""Room for the names of curves at their ends."""
_LINE = 13.0
"""From one name to the next."""
_CHARACTER = 6.4
"""Width of a character, at most."""


def style(index: int, more: str = "") -> str:
    """Classes of the curve, bar or dot number ``index``."""
    return f"c{index % COLOURS}{' dashed' if index >= COLOURS else ''}{more and ' ' + more}"


def plot(
    title: str, series: Sequence[Series], groups: Sequence[tuple[str, int]], high: float, unit: str, *, labels: bool
) -> Plot:
    """A line plot from 0 to ``high``; ``groups``: (name, places) along the horizontal axis, from the left.

    ``labels``: write the name of each curve at its end.
    """
    right = _WIDTH - (_LABELS if labels else 8.0)
    count = sum(places for _, places in groups)
    step = (right - _LEFT) / max(count, 1)
    top = nice(high)

    def y(value: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * value / top

    found = [
        tuple((_LEFT + step * (k + 0.5), y(v), v) for k, v in enumerate(item.values) if v is not None)
        for item in series
    ]
    ends = [points[-1][1] if points else _BOTTOM for points in found]
    places = spread(ends, _LINE, _TOP, _BOTTOM) if labels else [None] * len(ends)
    return Plot(
        title=title,
        unit=unit,
        width=_WIDTH,
        height=_HEIGHT,
        left=_LEFT,
        right=right,
        top=_TOP,
        bottom=_BOTTOM,
        ticks=tuple((y(top * k / 4), f"{top * k / 4:g}") for k in range(5)),
        bands=_bands(groups, step),
        curves=tuple(
            Curve(item.name, item.style, points, place)
            for item, points, place in zip(series, found, places, strict=True)
            if points
        ),
    )


def _bands(groups: Sequence[tuple[str, int]], step: float) -> tuple[Band, ...]:
    """Names that would run into each other are left out, always at the same distance."""
    widest = max((len(name) for name, _ in groups), default=0) * _CHARACTER
    narrowest = min((places for _, places in groups), default=1) * step
    every = max(1, math.ceil(widest / max(narrowest, 1e-9)))
    result, x = [], _LEFT
    for number, (name, places) in enumerate(groups):
        result.append(Band(x, places * step, name if number % every == 0 else "", number % 2 == 1))
        x += places * step
    return tuple(result)


def nice(high: float) -> float:
    """The least of 1, 2, 4, 6, 8 and 10 times a power of ten that is not below ``high``: a quarter reads well."""
    if high <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(high))
    return next(power * factor for factor in (1, 2, 4, 6, 8, 10) if power * factor >= high * (1 - 1e-9))


def spread(wanted: Sequence[float], distance: float, low: float, high: float) -> list[float]:
    """Positions near ``wanted``, in their order, ``distance`` apart as far as [low, high] has room for it."""
    order = sorted(range(len(wanted)), key=lambda k: wanted[k])
    distance = min(distance, (high - low) / max(len(wanted) - 1, 1))
    placed: list[float] = []
    for number, k in enumerate(order):
        least = placed[-1] + distance if placed else low
        most = high - distance * (len(order) - 1 - number)
        placed.append(min(max(wanted[k], least), most))
    result = [0.0] * len(wanted)
    for k, position in zip(order, placed, strict=True):
        result[k] = position
    return result


# -- samples ------------------------------------------------------------------------------------------

LEAST_SIDE = 4
"""Pixels of the smallest side of a picture; less is a table of numbers."""

TRACE_WIDTH, TRACE_HEIGHT = 72.0, 48.0


def kind(dataset: Dataset) -> str:
    """How to draw a sample: ``picture``, ``series`` (time, channels), or ``numbers``."""
    shape = dataset.shape
    if len(shape) == 3 and shape[2] in (1, 3) and min(shape[:2]) >= LEAST_SIDE:
        return "picture"
    if len(shape) != 2 or shape[0] < LEAST_SIDE:
        return "numbers"
    # Bytes that were not rescaled were the pixels of a picture.
    bytes_as_they_are = not dataset.signed and dataset.fraction == 8
    return "picture" if bytes_as_they_are and shape[1] >= LEAST_SIDE else "series"


def picture(dataset: Dataset, sample: NDArray[np.integer]) -> str:
    """A picture as a PNG in a data: URI, one pixel for each value; ``sample``: (n_in,)."""
    from PIL import Image

    values = sample.astype(np.int16) + (128 if dataset.signed else 0)
    pixels = values.astype(np.uint8).reshape(dataset.shape)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def traces(dataset: Dataset, sample: NDArray[np.integer]) -> list[str]:
    """The channels of a window of time series as points of polylines, on one scale."""
    values = sample.reshape(dataset.shape).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    x = np.linspace(1.0, TRACE_WIDTH - 1.0, len(values))
    y = TRACE_HEIGHT - 1.0 - (TRACE_HEIGHT - 2.0) * (values - low) / max(high - low, 1.0)
    return [" ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, channel, strict=True)) for channel in y.T]
