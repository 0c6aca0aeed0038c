# SPDX-License-Identifier: Apache-2.0
"""The figures of the live view against values computed by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from sparcl_mcu.host_tools.live import figures
from sparcl_mcu.host_tools.live.figures import Forecast, Meter, Work
from sparcl_mcu.host_tools.protocol import TrainingReply
from sparcl_mcu.host_tools.stream import Epoch, Outline, Score, StreamResult
from sparcl_mcu.spec.wire import Phase

OUTLINE = Outline(
    train=(100, 80, 60), test=(10, 10, 10), base_test=0, epochs=2, ddr=True, streamed=False, ticks_per_instruction=0.1
)


def result(*rows: Sequence[int], first_task: int = 0, base: Sequence[int | None] = ()) -> StreamResult:
    """Three tasks; ``rows``: correct answers of 10, as far as they were measured."""
    scores = [[Score(c, c, 10) for c in row] + [None] * (3 - len(row)) for row in (*rows, *[()] * (3 - len(rows)))]
    made = StreamResult("e", "b", 0, "", "", ["a", "b", "c"], first_task, scores)
    made.base = [None if c is None else Score(c, c, 10) for c in base]
    return made


def reply(done: int, epoch: int, pos: int, n: int, phase: Phase = Phase.TRAINING) -> TrainingReply:
    return TrainingReply(done, epoch, pos, n, phase, 0, 0.0, None, ())


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


# -- accuracy, loss, removal -------------------------------------------------------------------------------


def test_change_of_accuracy_is_since_the_task_was_first_measured() -> None:
    found = figures.accuracies(result([9], [7, 8], [8, 8, 10]))
    assert [(task.name, task.now, task.change) for task in found] == [
        ("a", 80.0, -10.0),
        ("b", 80.0, 0.0),
        ("c", 100.0, 0.0),
    ]


def test_tasks_that_were_not_tested_have_no_accuracy() -> None:
    assert [task.name for task in figures.accuracies(result([9], [7]))] == ["a"]
    assert figures.accuracies(result()) == []


def test_base_accuracy_is_the_latest() -> None:
    assert figures.base_accuracy(result(base=[9, 6, None])) == 60.0
    assert figures.base_accuracy(result(base=[None, None, None])) is None
    assert figures.base_accuracy(result()) is None


@pytest.mark.parametrize(
    ("measured", "task"),
    [
        (result(), 0),
        (result([9]), 1),
        (result([9], [9]), 1),  # only the first of two tests
        (result([9], [9, 9]), 2),
        (result([9], [9, 9], [9, 9, 9]), 2),  # all learned
        (result([9], first_task=1), 1),
        (result(first_task=1), 1),  # the host's task has not been tested on the board yet
        (result([9], base=[None] * 3), 0),  # the base classes are tested last
        (result([9], base=[9, None, None]), 1),
    ],
)
def test_present_task(measured: StreamResult, task: int) -> None:
    assert figures.present(measured) == task


def test_removed_counts_the_epochs_of_the_task() -> None:
    measured = result()
    measured.epochs = [Epoch(0, 0, removed=[1, 2]), Epoch(0, 1, removed=[3]), Epoch(1, 0, removed=[4])]
    assert [figures.removed(measured, task) for task in range(3)] == [3, 1, 0]


def test_mean_loss() -> None:
    assert figures.mean_loss(Epoch(0, 0, steps=4, loss=2.0)) == 0.5
    assert figures.mean_loss(Epoch(0, 0)) == 0.0


def test_curve_begins_at_zero_and_ends_at_the_largest() -> None:
    assert figures.curve([0.0, 0.5, 1.0]) == "▁▅█"
    assert figures.curve([100.0, 1.0]) == "█▁"
    assert figures.curve([0.0, 0.0]) == "▁▁"
    assert figures.curve([]) == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (61, "1:01"), (3599.6, "1:00:00"), (3 * 3600 + 62, "3:01:02")]
)
def test_duration(seconds: float, text: str) -> None:
    assert figures.duration(seconds) == text


# -- instructions ------------------------------------------------------------------------------------------


def test_instructions_of_an_epoch_and_on_the_mean() -> None:
    meter = Meter(OUTLINE, {"training": 1000, "training_steps": 100})  # an earlier session's
    after = {"training": 1600, "training_steps": 120}
    assert meter.since_last(after) == pytest.approx(600 / 0.1 / 20)
    assert meter.since_last(after) is None, "nothing since"
    assert meter.mean(after) == pytest.approx(1600 / 0.1 / 120), "as in report.json"


def test_no_instructions_where_the_counter_cannot_tell() -> None:
    meter = Meter(replace(OUTLINE, ticks_per_instruction=0.0), {"training": 0, "training_steps": 0})
    assert not meter.counts
    assert meter.since_last({"training": 600, "training_steps": 20}) is None
    assert meter.mean({"training": 600, "training_steps": 20}) is None


# -- remaining time ----------------------------------------------------------------------------------------


def test_forecast_of_a_session() -> None:
    clock, measured = Clock(), result()
    forecast = Forecast(OUTLINE, measured, clock)
    assert forecast.activity_seconds() is None
    assert forecast.session_seconds() is None
    clock.now += 1
    forecast.sent("a", 50, 100)
    assert forecast.activity_seconds() == pytest.approx(1.0)
    assert forecast.session_seconds() is None, "how fast it learns is not known"
    clock.now += 1
    forecast.sent("a", 100, 100)
    clock.now += 5
    forecast.trained(0, reply(50, 0, 50, 100))
    assert forecast.rate(Work.TRAINING) == pytest.approx(10.0)
    assert forecast.rate(Work.SENDING) == pytest.approx(50.0)
    assert forecast.activity_seconds() == pytest.approx(5.0), "the other half of the epoch"
    # 150 samples of this task and twice those of the others to train, those of the others to send, six tests;
    # none has been seen: as slow as training
    rest = (150 + 2 * 140) / 10 + 140 / 50 + 60 / 10
    assert forecast.session_seconds() == pytest.approx(rest)
    clock.now += 2
    assert forecast.session_seconds() == pytest.approx(rest - 2), "time passes between requests"
    assert forecast.activity_seconds() == pytest.approx(3.0)


def test_forecast_knows_what_ddr_removed_and_what_was_tested() -> None:
    clock, measured = Clock(), result()
    forecast = Forecast(OUTLINE, measured, clock)
    clock.now += 10
    forecast.trained(0, reply(100, 1, 0, 70))  # the epoch is over; 30 were removed
    assert forecast.activity_seconds() == 0.0
    assert forecast.session_seconds() == pytest.approx((70 + 2 * 140 + 140 + 60) / 10)
    clock.now += 7
    forecast.trained(1, reply(70, 1, 0, 70, Phase.TRAINED))
    assert forecast.session_seconds() == pytest.approx((2 * 140 + 140 + 60) / 10)
    clock.now += 1
    forecast.tested("a", 10, 10)
    measured.scores[0][0] = Score(9, 9, 10)
    assert forecast.session_seconds() == pytest.approx((2 * 140 + 140) / 10 + 50 / 10)


def test_forecast_of_streamed_tasks_sends_nothing_ahead() -> None:
    clock = Clock()
    forecast = Forecast(replace(OUTLINE, streamed=True, base_test=4), result(base=[None] * 3), clock)
    clock.now += 10
    forecast.trained(0, reply(100, 1, 0, 100))
    assert forecast.session_seconds() == pytest.approx((100 + 2 * 140 + 60 + 3 * 4) / 10)


def test_forecast_after_all_is_done() -> None:
    clock, measured = Clock(), result()
    forecast = Forecast(OUTLINE, measured, clock)
    clock.now += 1
    forecast.trained(1, reply(60, 1, 0, 60, Phase.TRAINED))
    measured.scores = result([9], [9, 9], [9, 9, 9]).scores
    forecast.trained(1, reply(60, 1, 0, 60, Phase.TRAINED))
    assert forecast.session_seconds() == 0.0
