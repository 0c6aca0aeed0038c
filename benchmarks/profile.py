# SPDX-License-Identifier: Apache-2.0
"""Where one experiment spends its instructions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from rich.table import Table

from sparcl_mcu.host_tools import firmware
from sparcl_mcu.host_tools.report.profile import Profile

from . import session
from .count import by_layer

if TYPE_CHECKING:
    from sparcl_mcu.generator.pipeline import Project

_LEAST_SHARE = 0.001


def measure(project: Project, say: Callable[[str], None]) -> Profile:
    """The first epoch of the first task, by function and by layer."""
    firmware.build(project)
    say(f"built {project.image}")
    with session.started(project) as board:
        session.begin(board)
        work = session.train(board, len(project.dataset.tasks[0].y_train))
        functions = board.program.by_function(work.counts)
    return reduced(project.model.model_hash.hex(), functions, work.steps)


def reduced(model_hash: str, functions: Mapping[str, int], steps: int) -> Profile:
    """The figures of a step from the instructions that ``steps`` steps took in each function."""
    total = sum(functions.values())
    large = {name: count / steps for name, count in functions.items() if count >= _LEAST_SHARE * total}
    return Profile(
        model_hash=model_hash,
        steps=steps,
        instructions=total / steps,
        layers={
            layer: {name: count / steps for name, count in parts.items()}
            for layer, parts in by_layer(functions).items()
        },
        functions=dict(sorted(large.items(), key=lambda item: -item[1])),
    )


def table(profile: Profile) -> Table:
    """Instructions by function, the largest first."""
    result = Table(box=None, pad_edge=False)
    for name in ("instructions a step", "share", "function"):
        result.add_column(name, justify="left" if name == "function" else "right")
    for name, count in profile.functions.items():
        result.add_row(f"{count:,.1f}", f"{count / profile.instructions:.1%}", name)
    return result
