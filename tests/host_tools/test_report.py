# SPDX-License-Identifier: Apache-2.0
"""report.json against its schema, report.html, the table at the end."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from generator.errors import UserError
from generator.pipeline import Project
from host_tools import report, stream, validate, view
from tests.host_tools.fake_board import FakeBoard

ROOT = Path(report.__file__).parent
CONTRACT = {
    *("experiment", "board", "method", "sparsity", "seed", "class_il", "task_il", "forgetting"),
    *("backward_transfer", "accuracy_matrix", "bit_exact", "steps_compared", "mismatches"),
    *("ram_bytes", "flash_bytes", "store", "ticks", "samples_removed", "wall_seconds"),
}
"""Keys that docs promise to other tools."""


@pytest.fixture
def made(project: Project, board: FakeBoard) -> report.Report:
    stream.stream(project, board.url)
    validate.validate(project)[0].save(project.folder / validate.RESULT)
    return report.build(project)


def test_json_has_the_promised_keys(made: report.Report, project: Project) -> None:
    path, _ = report.write(made, project.folder)
    data = json.loads(path.read_text())
    assert data.keys() >= CONTRACT
    assert report.Report.model_validate(data) == made
    assert {"programs", "erases", "bytes_written", "live_records"} <= data["store"].keys()
    assert data["bit_exact"] is True
    assert data["steps_compared"] == data["steps"]
    assert data["ticks"]["unit"]
    for key in ("class_il", "task_il"):
        assert 0 <= data[key] <= 100
    assert data["task_il"] >= data["class_il"]


def test_tasks_with_the_same_classes_are_domains(made: report.Report, project: Project) -> None:
    assert made.scenario == "class"
    assert "class-IL" in dict(made.key_figures())["accuracy on the board"]
    tasks = tuple(replace(task, classes=(0, 1)) for task in project.dataset.tasks)
    board = report.build(replace(project, dataset=replace(project.dataset, tasks=tasks)))
    assert board.scenario == "domain"
    assert "% domain-IL (tasks share classes)" in dict(board.key_figures())["accuracy on the board"]
    page = report.html(board)
    assert "Accuracy (domain-incremental, percent)" in page
    assert not re.search("class-incremental|class-IL|task-IL", page)


def test_schema_file_is_that_of_the_code() -> None:
    stored = json.loads((ROOT / "report_schema.json").read_text())
    assert stored == report.Report.model_json_schema(), "write it again: python -m host_tools.report"


def test_schema_documentation_names_every_key() -> None:
    text = (ROOT.parent / "docs" / "report-schema.md").read_text()
    named = set(re.findall(r"`([a-z_]+)`", text))
    assert set(report.Report.model_fields) <= named


def test_html_needs_nothing_else(made: report.Report) -> None:
    page = report.html(made)
    assert not re.search(r"""(src|href)\s*=|url\(|@import|<script""", page)
    assert page.count("<circle") == len(made.tasks)
    assert made.state_digest in page
    checker = _Checker()
    checker.feed(page)
    assert checker.open == []


class _Checker(HTMLParser):
    """Every element that is opened is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html_escapes_names(made: report.Report) -> None:
    hostile = made.model_copy(update={"experiment": "<script>alert(1)</script>"})
    assert "<script" not in report.html(hostile)


def test_table_at_the_end(made: report.Report) -> None:
    out = io.StringIO()
    Console(file=out, width=100).print(view.summary_table(made))
    text = out.getvalue()
    assert f"yes ({made.steps} steps)" in text
    for name in ("accuracy on the board", "forgetting", "RAM", "flash"):
        assert name in text


def test_instructions_per_sample(made: report.Report, project: Project) -> None:
    # the fake board counts 1000 ticks of `forward` per training step
    timer = project.board.timer.model_copy(update={"ticks_per_instruction": 0.5})
    board = project.board.model_copy(update={"timer": timer})
    from dataclasses import replace

    found = report.build(replace(project, board=board)).instructions
    assert found is not None
    assert found.forward == pytest.approx(2000)
    assert made.ticks.forward == 1000 * made.steps


def test_without_validation_nothing_is_claimed(project: Project, board: FakeBoard) -> None:
    stream.stream(project, board.url)
    made = report.build(project)
    assert not made.bit_exact
    assert made.steps_compared == 0
    assert ("bit-exact with the NumPy reference", "not shown") in made.key_figures()


def test_without_session(project: Project) -> None:
    with pytest.raises(UserError, match="sparcl stream"):
        report.build(project)


def test_unfinished_session(project: Project, board: FakeBoard) -> None:
    result = stream.stream(project, board.url)
    result.complete = False
    result.save(project.folder / stream.RESULT)
    with pytest.raises(UserError, match="--resume"):
        report.build(project)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"scores": 1}', "null"])
def test_damaged_measurements(project: Project, text: str) -> None:
    (project.folder / stream.RESULT).write_text(text)
    with pytest.raises(UserError, match=r"stream\.json"):
        report.build(project)
