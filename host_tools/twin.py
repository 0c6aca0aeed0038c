# SPDX-License-Identifier: Apache-2.0
"""What fixed point costs: the same experiment on the native board and in float32, seed by seed."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sparcl_mcu.generator import files

from . import metrics

if TYPE_CHECKING:
    from sparcl_mcu.generator.pipeline import Project

    from .stream import StreamResult

RESULT = "twin.json"


@dataclass(frozen=True)
class Pair:
    """Class-IL accuracy in percent of one seed, in fixed point and in float32."""

    seed: int
    fixed: float
    float32: float

    @property
    def cost(self) -> float:
        """Points that fixed point loses; negative where it gains."""
        return self.float32 - self.fixed


def compare(
    projects: Sequence[Project], learn: Callable[[Project], StreamResult], say: Callable[[str], None]
) -> list[Pair]:
    """Learn each project with ``learn`` (fixed point) and with the floating-point twin.

    The projects are one experiment with several seeds.  All fixed-point runs come first, because
    the twin keeps TensorFlow and its compiled steps from one seed to the next.
    """
    from sparcl_mcu.generator import float_twin

    fixed = []
    for project in projects:
        accuracy = metrics.average_accuracy(learn(project).matrix())
        say(f"seed {project.config.experiment.seed}: fixed point {accuracy:.1f} %")
        fixed.append(accuracy)
    pairs = []
    for project, accuracy in zip(projects, fixed, strict=True):
        result = float_twin.run(project.config, project.dataset, project.float_model, project.model)
        pairs.append(Pair(project.config.experiment.seed, accuracy, result.accuracy))
        say(f"seed {pairs[-1].seed}: float32 {result.accuracy:.1f} %")
    return pairs


def summary(pairs: Sequence[Pair]) -> tuple[str, str, str]:
    """Mean and standard deviation over the seeds: fixed point, float32, cost."""
    return (
        _mean([pair.fixed for pair in pairs]),
        _mean([pair.float32 for pair in pairs]),
        _mean([pair.cost for pair in pairs]),
    )


def _mean(values: Sequence[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.2f} ± {deviation:.2f}"


def save(pairs: Sequence[Pair], folder: Path) -> Path:
    """Write the pairs as JSON beside the experiment's artefacts; its path."""
    path = folder / RESULT
    files.write(path, json.dumps([asdict(pair) for pair in pairs], indent=1) + "\n")
    return path
