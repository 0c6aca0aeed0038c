# SPDX-License-Identifier: Apache-2.0
"""Cases, targets, the comparison with the baseline, and what is written."""

from __future__ import annotations

import json
import re
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from sparcl_mcu.benchmarks import baseline, bench, cases, result, targets, view
from sparcl_mcu.benchmarks.cases import Mode
from sparcl_mcu.benchmarks.host import HostTimes
from sparcl_mcu.benchmarks.result import Bench, CaseResult, Instructions, Phases
from sparcl_mcu.host_tools import cli, failures
from sparcl_mcu.spec.errors import BoardError, UserError
from sparcl_mcu.spec.paths import ROOT


def instructions(step: float, **others: float) -> Instructions:
    phases = Phases(forward=step / 3, backward=step / 2, replay_read=9, mask_update=0, journal_write=0, training=step)
    values: dict[str, float | None] = dict.fromkeys(
        ("cross_entropy_step", "prediction", "mask_update", "task", "mask_share", "inputs", "macs", "inner_loop")
    )
    values |= {"forward_per_mac": None} | others
    return Instructions(
        steps=100,
        step=step,
        phases=phases,
        meter_difference=0.0,
        layers={"l1": {"forward": 5.0}},
        prediction_layers={},
        functions={},
        **values,
    )


def case(name: str, found: Instructions | None, stack_used: int = 500, class_il: float | None = None) -> CaseResult:
    board, network, mode = name.split("/")
    return CaseResult(
        name=name,
        board=board,
        network=network,
        mode=mode,
        fits=found is not None,
        why=None if found is not None else "needs 1 byte more",
        non_zeros=100,
        class_il=class_il,
        instructions=found,
        cycles=None,
        ram={"engine": 1000, "stack": 4096} if found else None,
        flash={".text": 30000} if found else None,
        stack_used=stack_used if found else None,
    )


def whole(done: list[CaseResult]) -> Bench:
    return Bench(
        tool_version="1",
        compiler="gcc 12",
        emulator="qemu 7",
        seed=0,
        quick=True,
        cases=done,
        targets=targets.rows(targets.Found({c.name: c for c in done})),
        growth=None,
    )


STEP = "ast1030_evb/sparse-0.90-b1/pass"


@pytest.fixture
def done() -> Bench:
    return whole(
        [
            case("ast1030_evb/dense/pass", instructions(800_000.0, cross_entropy_step=800_000.0)),
            case("ast1030_evb/dense-skip/pass", instructions(160_000.0, cross_entropy_step=160_000.0)),
            case(STEP, instructions(40_000.0, cross_entropy_step=40_000.0, inner_loop=4.0)),
            case("ast1030_evb/dense-skip/step", instructions(500_000.0), class_il=70.0),
            case("ast1030_evb/sparse-0.90-b1/step", instructions(130_000.0), class_il=74.0),
            case("emcraft_sf2/dense/pass", None),
        ]
    )


# -- targets --------------------------------------------------------------------------------------------


def verdicts(found: targets.Found) -> dict[str, tuple[str, str]]:
    return {row.target: (row.figure, row.verdict) for row in targets.rows(found)}


def test_targets_compare_with_both_dense_baselines(done: Bench) -> None:
    found = {row.target: (row.figure, row.verdict) for row in done.targets}
    assert found["cross-entropy step at 0.90, block 1, recipe"] == ("40,000", "missed")
    assert found["of dense at 0.90, block 1, recipe"] == ("1/20.0", "met")
    assert found["of dense-skip at 0.90, block 1, recipe"] == ("1/4.0", "missed")
    assert found["of dense at 0.90, block 4, recipe"] == ("not measured", "not measured")
    assert found["forward inner loop, instructions per MAC, block 1"] == ("4.00", "met")
    assert found["a whole DER++ step, in cross-entropy steps"] == ("3.25", "met")
    assert found["RAM for 256-256-10 at 0.90, stack measured, ast1030_evb"] == ("1.5 KiB", "met")


def test_targets_of_whole_tasks_and_of_the_host() -> None:
    done = [
        case("ast1030_evb/whole-task-sparse-0.90-b1/task", instructions(1.0, task=1e9, mask_share=0.06)),
        case("ast1030_evb/whole-task-ddr-sparse-0.90-b1/task", instructions(1.0, task=0.75e9)),
    ]
    found = verdicts(targets.Found({c.name: c for c in done}, HostTimes(run=12.0, reference=90.0)))
    assert found["DDR at rho 0.3 within 2 of 5 epochs: fewer instructions over a task"] == ("25.0%", "met")
    assert found["mask updates: share of a task"] == ("6.0%", "missed")
    assert found["sparcl run on split_digits, native, TensorFlow imported, CPU time"] == ("12 s", "met")
    assert found["reference: 20 000 training samples of 256-256-10, CPU time"] == ("90 s", "missed")


def test_dense_on_large_pictures_is_extrapolated() -> None:
    done = [
        case("ast1030_evb/784-dense-96/pass", instructions(1.0, cross_entropy_step=1_000_000.0)),
        case("ast1030_evb/784-dense-192/pass", instructions(1.0, cross_entropy_step=1_900_000.0)),
        case("ast1030_evb/784-sparse-0.95-b1/pass", instructions(1.0, cross_entropy_step=50_000.0)),
    ]
    found = verdicts(targets.Found({c.name: c for c in done}))
    title = "784-256-10 of dense (extrapolated) at 0.95, block 1, recipe"
    assert found[title] == ("1/50.0", "met")


def test_a_network_that_does_not_fit_misses_its_target() -> None:
    found = verdicts(targets.Found({"microbit/digits-sparse/step": case("microbit/digits-sparse/step", None)}))
    assert found["64-64-10 on microbit: RAM, stack measured"] == ("does not fit", "missed")


def scaling(points: list[tuple[float, float]]) -> list[CaseResult]:
    return [
        case(f"ast1030_evb/scaling-64-0.{k}/pass", instructions(y, cross_entropy_step=y, macs=x))
        for k, (x, y) in enumerate(points)
    ]


def test_growth_is_a_linear_fit() -> None:
    fit = targets.growth(scaling([(100, 9_000), (200, 10_000), (400, 12_000)]))
    assert fit is not None
    assert (round(fit.fixed), round(fit.slope), round(fit.r_squared, 6)) == (8_000, 10, 1.0)
    bent = scaling([(100, 1_000), (200, 4_000), (400, 16_000), (800, 64_000)])
    assert verdicts(targets.Found({c.name: c for c in bent}))[
        "growth against active non-zeros: linear, fixed part"
    ] == ("not linear", "missed")
    assert targets.growth(scaling([(1, 1), (2, 2)])) is None


# -- baseline -------------------------------------------------------------------------------------------


def test_a_figure_that_grows_by_more_than_2_percent_fails(done: Bench, tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    baseline.update(done, path)
    baseline.require(done, path)

    found = next(c for c in done.cases if c.name == STEP)
    assert found.instructions is not None
    for factor, fails in ((1.019, False), (1.021, True), (0.5, False)):
        grown = found.instructions.model_copy(update={"step": 40_000.0 * factor})
        cases_now = [c if c.name != STEP else c.model_copy(update={"instructions": grown}) for c in done.cases]
        now = done.model_copy(update={"cases": cases_now})
        if fails:
            with pytest.raises(BoardError, match=rf"1 figures grew.*\n  {STEP}/step: 40,000 -> 40,840 \(\+2.1%\)$"):
                baseline.require(now, path)
        else:
            baseline.require(now, path)


def test_ram_is_compared_with_the_stack_as_it_was_used(done: Bench) -> None:
    figures = baseline.figures(done.cases)
    assert figures[f"{STEP}/ram"] == 1500
    assert figures[f"{STEP}/flash"] == 30000
    assert not any(name.startswith("emcraft_sf2") for name in figures)


def test_a_case_without_baseline_is_said(done: Bench, tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    with pytest.raises(UserError, match="--update-baseline"):
        baseline.require(done, path)
    baseline.update(done.model_copy(update={"cases": done.cases[:1]}), path)
    with pytest.raises(UserError, match=r"not in baseline\.json"):
        baseline.require(done, path)


def test_updating_keeps_cases_that_were_not_measured(done: Bench, tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    baseline.update(done, path)
    other = case("ast1030_evb/dense/pass", instructions(1.0))
    baseline.update(done.model_copy(update={"cases": [other]}), path)
    figures = baseline.load(path)[1]
    assert figures["ast1030_evb/dense/pass/step"] == 1.0
    assert "ast1030_evb/dense/pass/cross_entropy_step" not in figures, "a figure that is no longer measured"
    assert figures[f"{STEP}/step"] == 40_000.0


DEBIAN_12 = "arm-none-eabi-gcc (15:12.2.rel1-1) 12.2.1 20221205"
DEBIAN_13 = "arm-none-eabi-gcc (15:14.2.rel1-1) 14.2.1 20241119"


def test_the_baseline_of_another_compiler_is_neither_compared_nor_mixed_with(
    done: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "baseline.json"
    baseline.update(done.model_copy(update={"compiler": DEBIAN_12}), path)
    figures = baseline.load(path)[1]
    for name in figures:
        figures[name] /= 2  # everything has grown
    monkeypatch.setattr(baseline, "load", lambda *_: (DEBIAN_12, figures))
    now = done.model_copy(update={"compiler": DEBIAN_13})
    said = baseline.require(now, path)
    assert DEBIAN_12 in said
    assert DEBIAN_13 in said
    assert "NOT compared" in said

    monkeypatch.setenv("SPARCL_BUILD", str(tmp_path))
    monkeypatch.setattr(bench, "run", lambda *_, **__: now)
    assert failures.call(lambda: cli._dispatch(["bench", "--quick", "--check"])) == 0
    assert "NOT compared" in " ".join(capsys.readouterr().out.split())

    rebuilt = done.model_copy(update={"compiler": DEBIAN_12.replace("15:12.2.rel1-1", "15:12.2.rel1-1+b1")})
    with pytest.raises(BoardError, match="figures grew"):
        baseline.require(rebuilt, path)
    monkeypatch.undo()
    baseline.update(now.model_copy(update={"cases": done.cases[:1]}), path)
    compiler, figures = baseline.load(path)
    assert compiler == DEBIAN_13
    assert {name.rpartition("/")[0] for name in figures} <= {done.cases[0].name}


def test_checked_in_baseline_has_every_quick_case() -> None:
    known = {name.rpartition("/")[0] for name in baseline.load()[1]}
    assert {c.name for c in cases.cases(bench.emulated(), quick=True)} <= known


def test_command_fails_when_a_figure_grew(
    done: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPARCL_BUILD", str(tmp_path))
    monkeypatch.setattr(bench, "run", lambda *_, **__: done)
    figures = baseline.figures(done.cases)
    known = (done.compiler, figures)
    monkeypatch.setattr(baseline, "load", lambda *_: known)
    assert failures.call(lambda: cli._dispatch(["bench", "--quick", "--check"])) == 0
    figures[f"{STEP}/step"] /= 1.1
    assert failures.call(lambda: cli._dispatch(["bench", "--quick", "--check"])) == 1
    said = capsys.readouterr().err
    assert f"{STEP}/step" in said
    assert (tmp_path / "bench" / "plot.svg").is_file()


def test_command_refuses_settings_without_an_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    assert failures.call(lambda: cli._dispatch(["bench", "--set", "method.epochs=1"])) == 2
    assert "--set needs an experiment" in capsys.readouterr().err


# -- cases ----------------------------------------------------------------------------------------------


def test_cases_have_unique_names_and_the_quick_ones_come_first() -> None:
    everything = cases.cases(bench.emulated(), quick=False)
    names = [c.name for c in everything]
    assert len(names) == len(set(names))
    quick = cases.cases(bench.emulated(), quick=True)
    assert everything[: len(quick)] == quick
    assert {c.board for c in quick} == set(bench.emulated())
    assert not any(c.mode is Mode.ACCURACY for c in quick), "a whole run takes too long"


def test_small_dense_networks_have_the_weights_of_the_sparse_ones() -> None:
    for sparsity in cases.SPARSITIES:
        width = cases.same_weights(256, 256, 10, sparsity)
        non_zeros = 256 * 256 * (1 - sparsity) + 2560
        assert abs(width * 266 - non_zeros) <= 133


def test_unknown_board_is_named() -> None:
    with pytest.raises(UserError, match="no emulator counts the instructions of 'native'"):
        bench.run(("native",), quick=True, seed=0, say=print)


# -- what is written ------------------------------------------------------------------------------------


def test_schema_file_is_that_of_the_code() -> None:
    stored = json.loads((ROOT / "benchmarks" / "bench_schema.json").read_text())
    assert stored == Bench.model_json_schema(), "write it again: python -m sparcl_mcu.benchmarks.result"


def test_schema_documentation_names_every_key() -> None:
    named = set(re.findall(r"`([a-z_]+)`", (ROOT / "docs" / "reference" / "bench-schema.md").read_text()))
    parts = (Bench, CaseResult, Instructions, Phases, result.Row, result.Fit)
    keys = {key for part in parts for key in part.model_fields}
    assert keys <= named, keys - named


def test_json_is_read_again(done: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARCL_BUILD", str(tmp_path))
    path = bench.save(done)
    assert path == tmp_path / "bench" / "bench.json"
    assert Bench.model_validate_json(path.read_text()) == done


def test_tables_show_ratios_and_verdicts(done: Bench) -> None:
    console = Console(width=240, record=True, file=StringIO())
    for table in view.tables(done):
        console.print(table)
    text = console.export_text()
    row = next(line.split() for line in text.splitlines() if line.startswith("sparse-0.90-b1 "))
    assert row[1:7] == ["74.0", "%", "40,000", "1/20.0", "1/4.0", "130,000"]
    assert "does not fit" in text
    assert re.search(r"cross-entropy step at 0.90, block 1, recipe +34,000 +40,000 +missed", text)


def test_plot_has_a_point_for_each_network_with_an_accuracy(done: Bench, tmp_path: Path) -> None:
    path = view.plot(done, tmp_path)
    assert path is not None
    circles = ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}circle")
    titles = [title.text for circle in circles for title in circle]
    assert sorted(t for t in titles if t) == sorted(["dense-skip", "sparse-0.90-b1"] * 2)
    assert view.plot(whole(done.cases[:3]), tmp_path) is None, "no accuracies, no plot"
