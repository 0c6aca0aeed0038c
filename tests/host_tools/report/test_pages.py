# SPDX-License-Identifier: Apache-2.0
"""report.html and compare.html of real runs in a headless browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparcl_mcu.benchmarks import profile
from sparcl_mcu.host_tools.commands.report import report
from sparcl_mcu.host_tools.commands.run import run
from sparcl_mcu.host_tools.report import Report, compare
from sparcl_mcu.spec.paths import ROOT
from tests import browser
from tests.boards.test_end_to_end import require

pytestmark = [pytest.mark.board, pytest.mark.slow]

EXPERIMENT = ROOT / "examples" / "split_digits.toml"
OTHER = ["experiment.name=sparser", "sparsity.weights=0.9", "ddr.enabled=false", "method.epochs=2"]
WIDTHS = (400, 1200)
COUNTS = {
    f"{layer}_{name}": 10_000 * k
    for layer in ("l0", "l1")
    for k, name in enumerate(("forward", "backward", "error_of_a_function_with_a_long_name", "error"), 1)
}
NONSENSE = re.compile(r"\b(?:nan|inf|None|Undefined|True|False)\b")


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The build folder after two runs on the native board."""
    browser.program()
    require("native")
    folder = tmp_path_factory.mktemp("build")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARCL_BUILD", str(folder))
        run(EXPERIMENT, plain=True)
        run(EXPERIMENT, plain=True, overrides=OTHER)
        # As if this board could be counted on, so that the layers are on the page too.
        folder_of = folder / "sparser" / "native"
        model = Report.model_validate_json((folder_of / "report.json").read_bytes()).model_hash
        profile.reduced(model, COUNTS, 10).save(folder_of)
        report([str(EXPERIMENT)], overrides=OTHER)
        runs = compare.load(["split_digits/native", "sparser/native"], folder)
        (folder / compare.HTML).write_text(compare.html(runs), encoding="utf-8")
        yield folder


@pytest.fixture(scope="module")
def made(build: Path) -> Report:
    return Report.model_validate_json((build / "split_digits" / "native" / "report.json").read_bytes())


def check(seen: browser.Seen, width: int) -> None:
    """A page that fits, shows all its pictures and makes no noise."""
    assert seen.width in range(width - 20, width + 1), "a scroll bar may be there"
    assert seen.scroll_width == seen.width, f"wider than the window: {seen.wide}"
    assert seen.wide == []
    assert seen.broken == 0
    assert seen.console == []


@pytest.mark.parametrize("width", WIDTHS)
def test_report(width: int, build: Path, made: Report, tmp_path: Path) -> None:
    seen = browser.look(build / "split_digits" / "native" / "report.html", width, tmp_path)
    check(seen, width)
    shown = {name: re.sub(r"\s+", " ", text) for name, text in seen.sections.items()}
    assert list(shown) == [
        *("key", "matrix", "accuracy", "training", "masks", "ddr", "memory"),
        *("instructions", "wear", "formats", "agreement", "run"),
    ]
    for name in shown.keys() - {"run"}:
        assert not NONSENSE.search(shown[name]), name
    assert f"{made.class_il:.1f} %" in shown["key"]
    assert 60 < made.class_il < 100
    values = [f"{value:.1f}" for row in made.accuracy_matrix for value in row if value is not None]
    assert len(values) == 15
    assert values == re.findall(r"\d+\.\d", shown["matrix"])[:15]
    assert f"Forgetting: {made.forgetting:.1f} points" in shown["accuracy"]
    assert len(re.findall(r"→", shown["accuracy"])) == 4
    assert shown["training"].count("nats") == 2
    assert made.masks is not None
    assert f"{made.masks.total.chance:.1f} %" in shown["masks"]
    assert shown["masks"].count("100.0") == 6
    assert 5 < made.masks.total.chance < made.masks.total.matrix[0][-1] < 100
    assert made.samples is not None
    assert seen.pictures == 5 * 16 == len(re.findall(r"\d of \d wrong", shown["ddr"].partition("wrong twice")[2]))
    assert f"removed {made.samples_removed} samples" in shown["ddr"]
    for size in (*made.ram_bytes.items(), *made.flash_bytes.items(), *made.journal_bytes.items()):
        if size[0] != "stack":
            assert f"{size[0]} {size[1]:,} " in shown["memory"]
    assert "no counter of instructions" in shown["instructions"]
    assert f"{made.store.erases} on {made.store.sectors:,} sectors" in shown["wear"]
    assert "outputs of layers" in shown["formats"]
    assert "✓ Every reply of the board equals the NumPy reference" in shown["agreement"]
    assert f"{made.steps:,} of {made.steps:,}" in shown["agreement"]
    assert made.state_digest in shown["agreement"]
    assert "sparsity.weights 0.8" in shown["run"]


@pytest.mark.parametrize("width", WIDTHS)
def test_compare(width: int, build: Path, made: Report, tmp_path: Path) -> None:
    seen = browser.look(build / compare.HTML, width, tmp_path)
    check(seen, width)
    shown = {name: re.sub(r"\s+", " ", text) for name, text in seen.sections.items()}
    assert list(shown) == ["settings", "figures", "accuracy", "matrices", "memory", "instructions", "wear"]
    assert "sparsity.weights 0.8 0.9" in shown["settings"]
    assert "ddr.enabled True False" in shown["settings"]
    assert "method.epochs 5 2" in shown["settings"]
    other = Report.model_validate_json((build / "sparser" / "native" / "report.json").read_bytes())
    assert f"accuracy at the end, % {made.class_il:.1f} {other.class_il:.1f}" in shown["figures"]
    assert f"weights {made.non_zeros:,} {other.non_zeros:,} −{made.non_zeros - other.non_zeros}" in shown["figures"]
    assert len(re.findall(r"\d+\.\d", shown["matrices"])) == 30
    assert "not counted" not in shown["instructions"]
    assert f"{other.store.erases} {other.store.sectors:,}" in shown["wear"]


@pytest.mark.parametrize("width", WIDTHS)
def test_layers(width: int, build: Path, tmp_path: Path) -> None:
    seen = browser.look(build / "sparser" / "native" / "report.html", width, tmp_path)
    check(seen, width)
    shown = re.sub(r"\s+", " ", seen.sections["instructions"])
    assert "By layer: 20,000 for one training step" in shown
    assert "l0 dense1 7,000 l1 output 7,000 everything else 6,000" in shown
    assert "DDR is off" in seen.sections["ddr"]
    assert seen.pictures == 5 * 8


def test_dark_scheme(build: Path, tmp_path: Path) -> None:
    page = build / "split_digits" / "native" / "report.html"
    light, dark = (sum(_rgb(browser.look(page, 1200, tmp_path, dark=d).background)) for d in (False, True))
    assert dark < 3 * 64 < 3 * 192 < light


def _rgb(colour: str) -> list[int]:
    return [int(value) for value in re.findall(r"\d+", colour)[:3]]


@pytest.mark.parametrize("name", ["split_digits/native/report.html", "compare.html"])
def test_nothing_is_fetched(name: str, build: Path) -> None:
    page = (build / name).read_text()
    assert not re.search(r"https?:|url\(|@import|<script|<link|<iframe", page)
    assert all(s.startswith(("#", "data:")) for s in re.findall(r"""(?:src|href)=["']([^"']*)""", page))
