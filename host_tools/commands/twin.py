# SPDX-License-Identifier: Apache-2.0
"""`sparcl twin`: what fixed point costs."""

from __future__ import annotations

from typing import Annotated

import typer

from sparcl_mcu.host_tools import stages
from sparcl_mcu.host_tools.options import Experiment, Overrides, Seed, chosen


def twin(
    experiment: Experiment,
    seeds: Annotated[int, typer.Option("--seeds", min=1, max=100, help="Seeds, from the experiment's on.")] = 5,
    overrides: Overrides = None,
    seed: Seed = None,
) -> None:
    """Learn in fixed point and in float32: what fixed point costs.

    The native board and TensorFlow learn with the same algorithm, from the same initial models, and draw the same
    random numbers for what they choose; what still differs of a single seed is mostly chance, the means count.

    Example: sparcl twin examples/cnn_mnist.toml --seeds 5
    """
    from sparcl_mcu.generator.config import load
    from sparcl_mcu.host_tools import twin as twins
    from sparcl_mcu.host_tools import view

    first = load(experiment, tuple(overrides or ()), seed).experiment.seed
    projects = [chosen(experiment, "native", overrides, s).project() for s in range(first, first + seeds)]
    pairs = twins.compare(projects, stages.learn_quietly, view.say)
    view.console.print(view.twin_table(pairs, twins.summary(pairs)))
    view.say(f"\n{twins.save(pairs, projects[0].folder.parent)}")
