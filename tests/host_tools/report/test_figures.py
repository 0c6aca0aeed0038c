# SPDX-License-Identifier: Apache-2.0
"""Where curves and names lie, and how samples are shown."""

from __future__ import annotations

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from sparcl_mcu.host_tools.report import figures
from sparcl_mcu.host_tools.report.figures import Series
from sparcl_mcu.spec.types import Dataset


@pytest.mark.parametrize(
    ("high", "top"), [(0, 1), (0.03, 0.04), (1, 1), (1.2, 2), (3, 4), (5, 6), (7, 8), (8.5, 10), (100, 100), (101, 200)]
)
def test_nice(high: float, top: float) -> None:
    assert figures.nice(high) == pytest.approx(top)


def test_names_keep_their_order_and_their_distance() -> None:
    assert figures.spread([50.0, 10.0], 13, 0, 100) == [50, 10]
    assert figures.spread([50.0, 52.0, 49.0], 10, 0, 100) == [59, 69, 49]
    assert figures.spread([98.0, 99.0], 10, 0, 100) == [90, 100], "what has no room below moves up"
    crowded = figures.spread([5.0] * 30, 13, 0, 100)
    assert (min(crowded), max(crowded)) == (0, pytest.approx(100))


def test_plot() -> None:
    series = [Series("a", [0.0, 50.0, None, 100.0], "c0"), Series("none", [None] * 4, "c1")]
    found = figures.plot("title", series, [("x", 3), ("y", 1)], 100.0, "%", labels=True)
    (curve,) = found.curves
    assert [value for _, _, value in curve.points] == [0, 50, 100]
    step = (found.right - found.left) / 4
    assert [x for x, _, _ in curve.points] == pytest.approx([found.left + step * k for k in (0.5, 1.5, 3.5)])
    assert [y for _, y, _ in curve.points] == pytest.approx([found.bottom, (found.top + found.bottom) / 2, found.top])
    assert curve.label_y == found.top
    assert [text for _, text in found.ticks] == ["0", "25", "50", "75", "100"]
    assert [(band.name, band.width, band.shade) for band in found.bands] == [
        ("x", pytest.approx(3 * step), False),
        ("y", pytest.approx(step), True),
    ]
    assert figures.plot("t", series, [("x", 4)], 1.0, "", labels=False).curves[0].label_y is None


def test_names_on_the_axis_do_not_run_into_each_other() -> None:
    few = figures.plot("t", [], [("0/1", 1)] * 5, 100.0, "%", labels=False)
    assert [band.name for band in few.bands] == ["0/1"] * 5
    many = figures.plot("t", [], [("task 10", 1)] * 40, 100.0, "%", labels=False)
    named = [band.x for band in many.bands if band.name]
    assert 5 <= len(named) <= 10
    assert min(np.diff(named)) > 7 * 5


def test_a_ninth_colour_is_the_first_one_dashed() -> None:
    assert [figures.style(k) for k in (0, 7, 8)] == ["c0", "c7", "c0 dashed"]


def dataset(*shape: int, signed: bool = False, fraction: int = 8) -> Dataset:
    return Dataset("set", ("a", "b"), shape, signed, fraction, ())


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (dataset(8, 8), "picture"),
        (dataset(16, 16, 3), "picture"),
        (dataset(16, 16, 1, signed=True, fraction=6), "picture"),
        (dataset(100, 6, signed=True, fraction=5), "series"),
        (dataset(100, 3), "series"),
        (dataset(48, signed=True, fraction=4), "numbers"),
        (dataset(2, 3, 4), "numbers"),
        (dataset(1), "numbers"),
    ],
)
def test_kind(data: Dataset, kind: str) -> None:
    assert figures.kind(data) == kind


def pixels(source: str) -> np.ndarray:
    head, _, body = source.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(body))))


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1), (5, 4, 3)])
def test_picture_has_the_samples_values(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    flat = values.reshape(-1)
    expected = values.reshape(5, 4) if shape[-1] == 1 else values
    assert np.array_equal(pixels(figures.picture(dataset(*shape), flat)), expected)
    signed = (flat.astype(np.int16) - 128).astype(np.int8)
    assert np.array_equal(pixels(figures.picture(replace(dataset(*shape), signed=True), signed)), expected)


def test_traces_have_one_scale() -> None:
    sample = np.array([[0, 100], [50, 50], [100, 0]], dtype=np.int8).reshape(-1)
    rising, falling = figures.traces(dataset(3, 2, signed=True), sample)
    assert rising == "1.0,47.0 36.0,24.0 71.0,1.0"
    assert falling == "1.0,1.0 36.0,24.0 71.0,47.0"
    assert "nan" not in figures.traces(dataset(3, 2), np.full(6, 7, np.uint8))[0]
