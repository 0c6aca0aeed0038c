# SPDX-License-Identifier: Apache-2.0
"""The figures that must not grow: benchmarks/baseline.json, which are those of one compiler."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sparcl_mcu.generator import files
from sparcl_mcu.spec.errors import BoardError, UserError

from .result import Bench, CaseResult

PATH = Path(__file__).resolve().parent / "baseline.json"
MOST_GROWTH = 0.02
_PACKAGE = re.compile(r"\([^)]*\)\s*")
_INSTRUCTIONS = ("cross_entropy_step", "step", "prediction", "mask_update", "task")


@dataclass(frozen=True)
class Growth:
    """A figure that is larger than in the baseline."""

    name: str
    before: float
    now: float

    def __str__(self) -> str:
        return f"{self.name}: {self.before:,.0f} -> {self.now:,.0f} ({self.now / self.before - 1:+.1%})"


def figures(cases: Sequence[CaseResult]) -> dict[str, float]:
    """All figures of ``cases`` that are compared: instructions, and bytes of RAM and flash; by case and name."""
    result: dict[str, float] = {}
    for case in cases:
        found = case.instructions
        if found is None:
            continue
        for name in _INSTRUCTIONS:
            value = getattr(found, name)
            if value is not None:
                result[f"{case.name}/{name}"] = round(value, 1)
        if case.ram_used is not None and case.flash is not None:
            result[f"{case.name}/ram"] = case.ram_used
            result[f"{case.name}/flash"] = sum(case.flash.values())
    return result


def compare(baseline: dict[str, float], now: dict[str, float]) -> list[Growth]:
    """Figures that grew by more than ``MOST_GROWTH``, the worst first.

    Raises UserError when a figure has no baseline: a new case is compared with nothing.
    """
    unknown = sorted(set(now) - set(baseline))
    if unknown:
        raise UserError(
            f"{len(unknown)} figures are not in {PATH.name}, the first is {unknown[0]}: "
            "`sparcl bench --update-baseline` with the same options adds them"
        )
    grown = [Growth(name, baseline[name], value) for name, value in now.items() if _grew(baseline[name], value)]
    return sorted(grown, key=lambda item: -item.now / max(item.before, 1e-9))


def require(bench: Bench, path: Path = PATH) -> str:
    """Compare with the baseline, if it was made with the same compiler; a sentence that says how it went.

    Compilers differ by more than ``MOST_GROWTH``, so a comparison across them would say nothing about a change.
    Raises BoardError (exit status 1) with everything that grew.
    """
    compiler, known = load(path)
    if not _same(compiler, bench.compiler):
        return (
            f"NOT compared: {path.name} is for {compiler}, this is {bench.compiler}. "
            f"To compare with this compiler, run `sparcl bench --update-baseline` before the change."
        )
    grown = compare(known, figures(bench.cases))
    if grown:
        lines = [f"{len(grown)} figures grew by more than {MOST_GROWTH:.0%}:", *(f"  {item}" for item in grown)]
        raise BoardError("\n".join(lines))
    return f"no figure is more than {MOST_GROWTH * 100:.0f} % above the baseline"


def _same(one: str, other: str) -> bool:
    """Whether two lines of ``gcc --version`` name one compiler; what stands in brackets is the packager's."""
    return _PACKAGE.sub("", one) == _PACKAGE.sub("", other)


def _grew(before: float, now: float) -> bool:
    return now > before * (1 + MOST_GROWTH)


def load(path: Path = PATH) -> tuple[str, dict[str, float]]:
    """The compiler the baseline was made with, and its figures."""
    try:
        content = files.read_json(path)
        return str(content["compiler"]), {str(k): float(v) for k, v in content["figures"].items()}
    except FileNotFoundError:
        raise UserError(f"there is no {path}: `sparcl bench --update-baseline` makes it") from None
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{path} is corrupt ({error}); recreate it with `sparcl bench --update-baseline`") from error


def update(bench: Bench, path: Path = PATH) -> None:
    """Write the figures of ``bench``; those of cases it did not measure stay, unless another compiler made them."""
    compiler, kept = load(path) if path.exists() else ("", {})
    if not _same(compiler, bench.compiler):
        kept = {}
    measured = {case.name for case in bench.cases}
    kept = {name: value for name, value in kept.items() if name.rpartition("/")[0] not in measured}
    content = {"compiler": bench.compiler, "figures": dict(sorted((kept | figures(bench.cases)).items()))}
    files.write(path, json.dumps(content, indent=1) + "\n")
