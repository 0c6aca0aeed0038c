# SPDX-License-Identifier: Apache-2.0
"""`sparcl stream`: stream the tasks; the board learns."""

from __future__ import annotations

from sparcl_mcu.host_tools import stages
from sparcl_mcu.host_tools.options import BoardName, Experiment, Fresh, Overrides, Plain, Port, Resume, Seed, chosen


def stream(
    experiment: Experiment,
    board: BoardName = "native",
    port: Port = None,
    resume: Resume = False,
    fresh: Fresh = False,
    plain: Plain = False,
    overrides: Overrides = None,
    seed: Seed = None,
) -> None:
    """Stream the tasks over the serial line; the board learns.

    Example: sparcl stream examples/split_digits.toml --resume
    """
    options = chosen(experiment, board, overrides, seed)
    project = options.project()
    stages.stream(project, stages.url(project, port, options), resume=resume, fresh=fresh, plain=plain, options=options)
