# SPDX-License-Identifier: Apache-2.0
"""Windows larger than a byte can count, and the largest that the generator admits (generator/limits.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparcl_mcu.generator import limits
from sparcl_mcu.spec.types import Activation, Op
from tests.firmware.native import Teacher, build, running
from tests.reference.models import Spec, conv_model

CONV = Spec(Op.CONV, channels=4, kernel=(1, 3), same=True, activation=Activation.RELU, sparse=True)
OUTPUT = Spec(Op.DENSE, channels=4)


@pytest.mark.parametrize(
    ("shape", "specs", "prefix"),
    [
        # A long time series, averaged: first with margins of 259 steps, then all of it.
        (
            (1, 1, 520),
            [Spec(Op.AVG_POOL, kernel=(1, 519), same=True), CONV, Spec(Op.AVG_POOL, kernel=(1, 520)), OUTPUT],
            0,
        ),
        # As many positions as a byte tells apart, and windows that overlap.
        ((2, 18, 20), [CONV, Spec(Op.MAX_POOL, kernel=(16, 16), stride=(2, 2)), OUTPUT], 0),
        # Where nothing before it learns, more.
        ((1, 1, 900), [CONV, Spec(Op.MAX_POOL, kernel=(1, 290), stride=(1, 300)), CONV, OUTPUT], 2),
        ((1, 1, 700), [Spec(Op.MAX_POOL, kernel=(1, 300), stride=(1, 260), same=True), CONV, OUTPUT], 0),
        ((1, 1, 6), [Spec(Op.CONV, kernel=(1, 3), multiplier=255, sparse=True), OUTPUT], 0),
    ],
    ids=["average", "maximum", "frozen maximum", "maximum of the sample", "depthwise"],
)
def test_on_the_board(shape: tuple[int, int, int], specs: list[Spec], prefix: int, tmp_path: Path) -> None:
    """As the reference, in both directions."""
    model = conv_model(1, shape, specs, prefix=prefix, scale=4.0, table=8, capacity=2)
    limits.check(model)
    with running(model, build(model, tmp_path)) as twin:
        teacher = Teacher(twin, 1)
        for number, classes in enumerate([(0, 1), (2, 3)]):
            teacher.begin(classes, 6, streamed=False, seed=number)
            teacher.finish()
            twin.check_dump()
        teacher.evaluate(2)
