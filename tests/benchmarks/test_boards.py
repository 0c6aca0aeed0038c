# SPDX-License-Identifier: Apache-2.0
"""Counting on real emulators."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sparcl_mcu.benchmarks import measure, session
from sparcl_mcu.benchmarks.cases import EXPERIMENTS, Case, Mode
from sparcl_mcu.benchmarks.result import CaseResult
from sparcl_mcu.benchmarks.session import Session
from sparcl_mcu.generator.pipeline import Project
from sparcl_mcu.host_tools import firmware, protocol
from sparcl_mcu.host_tools.emulator import Emulator, EmulatorError, unavailable

pytestmark = [
    pytest.mark.board,
    pytest.mark.skipif(unavailable("ast1030_evb") is not None, reason="needs QEMU with ast1030-evb"),
    pytest.mark.skipif(shutil.which("arm-none-eabi-gcc") is None, reason="needs arm-none-eabi-gcc"),
]

SMALL = ("model.hidden=[32]", "data.train_per_class=20", "initial.train=none", "tdm.enabled=false", "ddr.enabled=false")
CASE = Case(
    "digits-test",
    Mode.PASS,
    "ast1030_evb",
    EXPERIMENTS / "digits.toml",
    (*SMALL, "method.name=finetune", "method.epochs=1", "dgm.enabled=true"),
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """Built, in the folder that `SPARCL_BUILD` names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARCL_BUILD", str(tmp_path_factory.mktemp("build")))
        made = measure._generate(CASE, 0)  # what `measure.run` builds too
        firmware.build(made)
        yield made


@pytest.fixture
def board(project: Project) -> Iterator[Session]:
    with session.started(project) as started:
        yield started


def test_counts_are_exact_and_agree_with_the_meter(board: Session) -> None:
    session.begin(board)
    before = board.statistics()
    work = session.train(board, 30)
    after = board.statistics()
    functions = board.program.by_function(work.counts)
    assert work.steps == 30
    calls = {
        name: int(work.counts[board.program.slot(function.start) or 0])
        for function in board.program.functions
        if (name := function.name) in ("scl_net_forward", "scl_net_backward", "scl_train_step")
    }
    assert calls == dict.fromkeys(calls, 30), "each runs once a step"
    assert len(calls) == 3
    assert "main" not in functions, "waiting for a request is not work"
    metered = (after.training - before.training) / board.project.board.timer.ticks_per_instruction
    assert metered == pytest.approx(sum(functions.values()), rel=0.02)


def test_products_are_those_of_the_active_inputs(board: Session) -> None:
    x = board.project.dataset.tasks[0].x_test[:3]
    state = protocol.hello(board.link)
    layer = board.project.model.layers[0]
    lengths = np.diff(layer.panels[0].start)
    for number, row in enumerate(x):
        one = x[number : number + 1]
        _, counts = board.counter.of(lambda one=one: list(protocol.predictions(board.link, state, one)))  # type: ignore[misc]
        code = measure._code(board.program, counts, measure._FORWARD.match)
        products = sum(n * measure.macs(i) for i, n in code)
        first = int(lengths[row != 0].sum())
        output = board.project.model.layers[1]
        assert first <= products <= first + output.n_in * output.n_pad
        assert products - first <= 32 * output.n_pad


def test_same_prediction_same_counts(board: Session) -> None:
    once, again = (session.predict(board, 2) for _ in range(2))
    assert measure._network(board.program.by_function(once.counts)) > 1000
    assert measure._network(board.program.by_function(once.counts)) == measure._network(
        board.program.by_function(again.counts)
    )


def test_a_case_is_measured_once(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = measure.run(CASE, tmp_path, 0)
    assert first.instructions is not None
    assert first.instructions.cross_entropy_step is not None
    assert 0 < first.instructions.cross_entropy_step < first.instructions.step
    assert first.instructions.steps == 40
    assert abs(first.instructions.meter_difference) < 0.02
    assert first.cycles is not None
    assert first.instructions.step < first.cycles.step < 4 * first.instructions.step
    assert first.stack_used is not None
    assert 100 < first.stack_used < 16384

    def no_build(*_: object, **__: object) -> None:
        raise AssertionError("built again")

    monkeypatch.setattr(firmware, "build", no_build)
    assert measure.run(CASE, tmp_path, 0) == first


def test_what_does_not_fit_is_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARCL_BUILD", str(tmp_path / "build"))
    large = Case("large", Mode.PASS, "microbit", CASE.experiment, ("model.hidden=[512]", "initial.train=none"))
    found: CaseResult = measure.run(large, tmp_path, 0)
    assert not found.fits
    assert found.why is not None
    assert "RAM" in found.why


def test_the_native_board_does_not_count(tmp_path: Path) -> None:
    image = tmp_path / "firmware"
    image.write_text("#!/bin/sh\n")
    with pytest.raises(EmulatorError, match="not counted"):
        Emulator(tmp_path / "state", "native").start(image, counts=tmp_path / "counts.bin")
