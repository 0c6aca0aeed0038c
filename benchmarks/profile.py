# SPDX-License-Identifier: Apache-2.0
"""Where one experiment spends its instructions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.table import Table

from host_tools import firmware

from . import session

if TYPE_CHECKING:
    from generator.pipeline import Project

_LEAST_SHARE = 0.001


def table(project: Project, say: Callable[[str], None]) -> Table:
    """The first epoch of the first task, by function."""
    firmware.build(project)
    say(f"built {project.image}")
    with session.started(project) as board:
        session.begin(board)
        work = session.train(board, len(project.dataset.tasks[0].y_train))
        functions = board.program.by_function(work.counts)
    total = sum(functions.values())
    say(
        f"{project.config.experiment.name} on {project.board.name}: "
        f"{total / work.steps:,.1f} instructions a training step, mean of {work.steps}"
    )
    result = Table(box=None, pad_edge=False)
    for name in ("instructions a step", "share", "function"):
        result.add_column(name, justify="left" if name == "function" else "right")
    for name, count in sorted(functions.items(), key=lambda item: -item[1]):
        if count >= _LEAST_SHARE * total:
            result.add_row(f"{count / work.steps:,.1f}", f"{count / total:.1%}", name)
    return result
