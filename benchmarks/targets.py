# SPDX-License-Identifier: Apache-2.0
"""The table of targets: goal, figure and verdict of each row, from the cases of one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .cases import BIG_DENSE, MAIN, SMALL, sparse
from .host import HostTimes
from .result import CaseResult, Fit, Instructions, Row

_KIB = 1024
LINEAR = 0.99
"""R squared from which the growth of costs counts as linear."""


@dataclass(frozen=True)
class Found:
    """The results the rows are made from."""

    cases: Mapping[str, CaseResult]
    host: HostTimes | None = None

    def instructions(self, network: str, mode: str, board: str = MAIN) -> Instructions | None:
        """Instructions of one case; None where it was not measured or does not fit."""
        case = self.cases.get(f"{board}/{network}/{mode}")
        return None if case is None else case.instructions

    def step(self, network: str) -> float | None:
        """Instructions of a cross-entropy step."""
        found = self.instructions(network, "pass")
        return None if found is None else found.cross_entropy_step


def rows(found: Found) -> list[Row]:
    """Every row, in the order of the table; a row without its cases says 'not measured'."""
    return [_row(*line) for line in _lines(found)]


Line = tuple[str, str, float | None, Callable[[float], bool], Callable[[float], str]]


def _row(
    target: str, goal: str, value: float | None, met: Callable[[float], bool], show: Callable[[float], str]
) -> Row:
    if value is None:
        return Row(target=target, goal=goal, figure="not measured", verdict="not measured")
    verdict: Literal["met", "missed"] = "met" if met(value) else "missed"
    return Row(target=target, goal=goal, figure=show(value), verdict=verdict)


def _at_most(limit: float) -> Callable[[float], bool]:
    return lambda value: value <= limit


def _at_least(limit: float) -> Callable[[float], bool]:
    return lambda value: value >= limit


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _part(value: float) -> str:
    return f"1/{value:.1f}"


def _lines(found: Found) -> Iterator[Line]:
    for uniform in (False, True):
        yield from _main_lines(found, uniform)
    for block, limit in ((1, 5.0), (4, 3.0)):
        loop = found.instructions(sparse(0.90, block), "pass")
        value = None if loop is None else loop.inner_loop
        title = f"forward inner loop, instructions per MAC, block {block}"
        yield title, f"{limit:g}", value, _at_most(limit), "{:.2f}".format
    yield from _learning_lines(found)
    yield from _memory_lines(found)
    fit = growth(list(found.cases.values()))
    linear = None if fit is None else fit.fixed if fit.r_squared >= LINEAR else float("inf")
    yield (
        "growth against active non-zeros: linear, fixed part",
        "under 12,000",
        linear,
        lambda value: value < 12_000,
        lambda value: _count(value) if np.isfinite(value) else "not linear",
    )
    run, reference = (None, None) if found.host is None else (found.host.run, found.host.reference)
    seconds = "{:.0f} s".format
    yield "sparcl run on split_digits, native, TensorFlow imported, CPU time", "20 s", run, _at_most(20), seconds
    yield "reference: 20 000 training samples of 256-256-10, CPU time", "60 s", reference, _at_most(60), seconds


def _main_lines(found: Found, uniform: bool) -> Iterator[Line]:
    mask = "all layers sparse by |w|" if uniform else "recipe"
    goals = {1: (34_000, 16, 4.5, 25, 34), 4: (26_000, 21, 5.5, 30, 43)}
    for block, (instructions, of_dense, of_skip, of_dense_95, of_dense_784) in goals.items():
        title = f"block {block}, {mask}"
        step = found.step(sparse(0.90, block, uniform))
        yield f"cross-entropy step at 0.90, {title}", _count(instructions), step, _at_most(instructions), _count
        for dense, limit in (("dense", of_dense), ("dense-skip", of_skip)):
            ratio = _ratio(found.step(dense), step)
            yield f"of {dense} at 0.90, {title}", f"1/{limit:g}", ratio, _at_least(limit), _part
        ratio = _ratio(found.step("dense"), found.step(sparse(0.95, block, uniform)))
        yield f"of dense at 0.95, {title}", f"1/{of_dense_95}", ratio, _at_least(of_dense_95), _part
        ratio = _ratio(_big_dense(found), found.step(f"784-{sparse(0.95, block, uniform)}"))
        wide = f"784-256-10 of dense (extrapolated) at 0.95, {title}"
        yield wide, f"1/{of_dense_784}", ratio, _at_least(of_dense_784), _part
        ratio = _ratio(found.step("watch-dense"), found.step(f"watch-{sparse(0.90, block, uniform)}"))
        yield f"data without zeros (watch) at 0.90, of dense, {title}", "1/7", ratio, _at_least(7), _part


def _big_dense(found: Found) -> float | None:
    """The dense 784-256-10, on the line through two narrower ones: every weight costs the same."""
    (w1, s1), (w2, s2) = ((width, found.step(f"784-dense-{width}")) for width in BIG_DENSE)
    return None if s1 is None or s2 is None else s2 + (s2 - s1) / (w2 - w1) * (256 - w2)


def _learning_lines(found: Found) -> Iterator[Line]:
    network = sparse(0.90, 1)
    whole = found.instructions(network, "step")
    steps = _ratio(None if whole is None else whole.step, found.step(network))
    yield "a whole DER++ step, in cross-entropy steps", "3.3", steps, _at_most(3.3), "{:.2f}".format
    plain, removing = (found.instructions(f"{kind}-{network}", "task") for kind in ("whole-task", "whole-task-ddr"))
    saved = None
    if plain is not None and removing is not None and plain.task and removing.task:
        saved = 1 - removing.task / plain.task
    yield (
        "DDR at rho 0.3 within 2 of 5 epochs: fewer instructions over a task",
        "20 %",
        saved,
        _at_least(0.2),
        "{:.1%}".format,
    )
    share = None if plain is None else plain.mask_share
    yield "mask updates: share of a task", "under 5 %", share, lambda value: value < 0.05, "{:.1%}".format


def _memory_lines(found: Found) -> Iterator[Line]:
    def kib(value: float) -> str:
        return f"{value / _KIB:.1f} KiB" if np.isfinite(value) else "does not fit"

    for board, goal in ((MAIN, 48), ("emcraft_sf2", 48)):
        used = _used(found.cases.get(f"{board}/{sparse(0.90, 1)}/step"))
        yield f"RAM for 256-256-10 at 0.90, stack measured, {board}", f"{goal} KiB", used, _at_most(goal * _KIB), kib
    used = _used(found.cases.get(f"{SMALL}/digits-sparse/step"))
    yield f"64-64-10 on {SMALL}: RAM, stack measured", "16 KiB", used, _at_most(16 * _KIB), kib


def _used(case: CaseResult | None) -> float | None:
    if case is None:
        return None
    return case.ram_used if case.fits else float("inf")


def _ratio(large: float | None, small: float | None) -> float | None:
    return large / small if large and small else None


def growth(cases: Sequence[CaseResult]) -> Fit | None:
    """Cross-entropy steps of the scaling networks against the non-zeros that a pass meets; None below 3 points."""
    points = [
        (found.macs, found.cross_entropy_step)
        for case in cases
        if case.network.startswith("scaling-") and (found := case.instructions) is not None
    ]
    known = np.array([(x, y) for x, y in points if x is not None and y is not None])
    if len(known) < 3:
        return None
    x, y = known.T
    slope, fixed = np.polyfit(x, y, 1)
    residual = y - (slope * x + fixed)
    r_squared = 1 - float(residual @ residual) / float(((y - y.mean()) ** 2).sum())
    return Fit(fixed=float(fixed), slope=float(slope), r_squared=r_squared, points=len(known))
