# SPDX-License-Identifier: Apache-2.0
"""report.json against its schema, report.html, the table at the end."""

from __future__ import annotations

import io
import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from sparcl_mcu.generator.pipeline import Project
from sparcl_mcu.host_tools import metrics, report, stream, validate, view
from sparcl_mcu.host_tools.report import page as report_page
from sparcl_mcu.host_tools.report.__main__ import SCHEMA
from sparcl_mcu.host_tools.report.profile import Profile
from sparcl_mcu.spec.errors import UserError
from sparcl_mcu.spec.paths import ROOT
from tests.host_tools.conftest import MakeProject
from tests.host_tools.fake_board import FakeBoard

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
    path, _ = report.write(made, project)
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
    domains = replace(project, dataset=replace(project.dataset, tasks=tasks))
    result = stream.StreamResult.load(project.folder / stream.RESULT)
    replace(result, data_hash=stream.data_hash(domains.dataset)).save(project.folder / stream.RESULT)
    board = report.build(domains)
    assert board.scenario == "domain"
    assert "% domain-IL (tasks share classes)" in dict(board.key_figures())["accuracy on the board"]
    page = report_page.html(board, project.dataset)
    assert "Accuracy (domain-incremental, percent)" in page
    assert not re.search("class-incremental|class-IL|task-IL", page)


def test_schema_file_is_that_of_the_code() -> None:
    stored = json.loads(SCHEMA.read_text())
    assert stored == report.Report.model_json_schema(), "write it again: python -m sparcl_mcu.host_tools.report"


def test_schema_documentation_names_every_key() -> None:
    text = (ROOT / "docs" / "reference" / "report-schema.md").read_text()
    named = set(re.findall(r"`([a-z_]+)`", text))
    assert set(report.Report.model_fields) <= named


def test_html_needs_nothing_else(made: report.Report, project: Project) -> None:
    page = report_page.html(made, project.dataset)
    sources = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'>]*)""", page)
    assert sources
    assert all(source.startswith(("#", "data:image/png;base64,")) for source in sources)
    assert not re.search(r"https?:|url\(|@import|<script|\son[a-z]+=", page)
    assert made.state_digest in page
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert checker.targets <= checker.ids


class Checker(HTMLParser):
    """Every element that is opened is closed, and what is linked to is there."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.targets: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids |= {values["id"]} if "id" in values else set()
        self.targets |= {values["href"].removeprefix("#")} if "href" in values else set()
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


EVIL = """<img src=x onerror='a()'>" onload="b()" </svg></style>"""


def named(made: report.Report, name: str) -> report.Report:
    """With one name wherever names of users can be: tasks, classes, settings."""
    assert made.masks is not None
    assert made.samples is not None
    samples = [
        task.model_copy(update={key: [note.model_copy(update={"label": name}) for note in getattr(task, key)]})
        for task in made.samples
        for key in ("easiest", "hardest")
    ]
    return made.model_copy(
        update={
            "tasks": [name] * 3,
            "masks": made.masks.model_copy(update={"moments": ["start", *[name] * 3]}),
            "samples": samples,
            "initial_accuracy": dict.fromkeys([name], next(iter(made.initial_accuracy.values()))),
            "settings": made.settings | {"data": made.settings["data"] | {"path": name, name: 1}},
        }
    )


class Elements(HTMLParser):
    """Elements and the names of their attributes, in their order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, ...]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, *(name for name, _ in attrs)))


@pytest.mark.parametrize("shape", [None, (64,), (16, 4)], ids=["picture", "numbers", "series"])
def test_html_escapes_names(shape: tuple[int, ...] | None, made: report.Report, project: Project) -> None:
    """However samples are shown; the page has the elements it has with other names."""
    data = project.dataset if shape is None else replace(project.dataset, shape=shape, fraction=5)
    page = report_page.html(named(made, EVIL), data)
    assert page.count("&lt;img src=x") > 20
    assert Elements(page).found == Elements(report_page.html(named(made, "x" * len(EVIL)), data)).found


def test_accuracy_of_a_validation_split_is_not_called_that_of_the_test(made: report.Report, project: Project) -> None:
    assert "validation samples" not in report_page.html(made, project.dataset)
    held_out = made.model_copy(update={"settings": made.settings | {"data": {"evaluate": "validation"}}})
    page = report_page.html(held_out, project.dataset)
    assert "Accuracy is measured on validation samples in this run" in page
    assert f"{made.class_il:.1f} % of the validation samples correctly" in page


def test_table_at_the_end(made: report.Report) -> None:
    out = io.StringIO()
    Console(file=out, width=100).print(view.summary_table(made))
    text = out.getvalue()
    assert f"yes ({made.steps} steps)" in text
    for name in ("accuracy on the board", "forgetting", "RAM", "flash"):
        assert name in text


def test_instructions_per_sample(made: report.Report, project: Project) -> None:
    # the fake board counts 1000 ticks of `forward` per training step
    timer = replace(project.board.timer, ticks_per_instruction=0.5)
    board = replace(project.board, timer=timer)
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


def test_session_with_another_model_is_not_gone_on_with(project: Project, board: FakeBoard) -> None:
    result = stream.stream(project, board.url)
    result.complete = False
    result.model_hash = "0" * 16
    result.save(project.folder / stream.RESULT)
    with pytest.raises(UserError, match=r"different model: repeat its --seed and --set options"):
        report.build(project)


def test_session_with_other_data(project: Project, made: report.Report) -> None:
    """Fewer samples, or the same ones in another order: pictures and labels would be those of others."""
    first, *others = project.dataset.tasks
    fewer = replace(first, x_train=first.x_train[:4], y_train=first.y_train[:4])
    turned = replace(first, x_train=first.x_train[::-1], y_train=first.y_train[::-1])
    for task in (fewer, turned):
        with pytest.raises(UserError, match="different data: repeat its --seed and --set options"):
            report.build(replace(project, dataset=replace(project.dataset, tasks=(task, *others))))
    assert report.build(project) == made


def test_sizes_are_not_those_of_an_image_of_another_model(project: Project, made: report.Report) -> None:
    image = Path(sys.executable).resolve().read_bytes()
    project.image.parent.mkdir(parents=True)
    project.image.write_bytes(image)
    assert report.build(project).flash_bytes == made.flash_bytes
    project.image.write_bytes(image + project.model.model_hash.hex().encode())
    assert report.build(project).flash_bytes != made.flash_bytes


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"scores": 1}', "null"])
def test_damaged_measurements(project: Project, text: str) -> None:
    (project.folder / stream.RESULT).write_text(text)
    with pytest.raises(UserError, match=r"stream\.json"):
        report.build(project)


def test_what_saturation_is_of(made: report.Report, project: Project) -> None:
    """Two dense layers: outputs and logits, errors of the hidden ones, weights that exist; passes as the board says."""
    hidden, last = project.model.layers
    passes = round(made.passes_per_sample * made.steps)
    assert passes > made.steps
    assert made.saturation_of.activations == passes * (hidden.out.values + last.out.values)
    assert made.saturation_of.errors == passes * hidden.out.values
    assert made.saturation_of.guard_shifts == passes * 2
    assert made.saturation_of.weights_at_clamp == made.non_zeros


def test_formats_of_layers(made: report.Report, project: Project) -> None:
    hidden, last = project.model.layers
    assert [layer.kind for layer in made.layers] == ["dense", "dense"]
    assert made.layers[0].weight_limit == 2.0**hidden.wlog / 2.0**hidden.fw
    assert made.layers[0].output_limit == 2.0**hidden.out.bits / 2.0**hidden.fa
    assert sum(layer.non_zeros for layer in made.layers) == made.non_zeros
    assert made.layers[0].weights == hidden.n_in * hidden.n_out
    assert made.layers[1].shape == (last.out.channels, 1, 1)


def test_settings_are_those_of_the_experiment(made: report.Report, project: Project) -> None:
    assert made.settings.keys() == type(project.config).model_fields.keys()
    assert made.settings["sparsity"]["weights"] == made.sparsity == 0.7
    assert made.settings["tasks"]["split"] == [[0, 1], [2, 3], [4, 5]]


def test_profile_is_shown_when_it_is_of_this_model(made: report.Report, project: Project) -> None:
    assert made.profile is None
    layers = {"l0": {"forward": 40.0, "backward": 50.0, "error": 5.0}, "l1": {"forward": 3.0}}
    found = Profile(
        model_hash=made.model_hash, steps=7, instructions=200.0, layers=layers, functions={"l0_forward": 40}
    )
    found.save(project.folder)
    again = report.build(project)
    assert again.profile == found
    rest = report_page.layer_costs(again)[-1]
    assert (rest.name, rest.total) == ("rest", 200 - 98)
    assert [cost.total for cost in report_page.layer_costs(again)] == [95, 3, 102]
    page = report_page.html(again, project.dataset)
    assert "200 for one training step" in page
    assert "l0_forward" in page
    found.model_copy(update={"model_hash": "0" * 16}).save(project.folder)
    assert report.build(project).profile is None


def test_sections_say_what_fills_them(project: Project, board: FakeBoard) -> None:
    stream.stream(project, board.url)
    page = report_page.html(report.build(project), project.dataset)
    assert (
        page.count("sparcl validate tiny.toml --board native</code>, with the options of this run, fills this section")
        == 2
    )
    assert "This board has no counter of instructions" in page
    assert "data:image" not in page
    validate.validate(project)[0].save(project.folder / validate.RESULT)
    made = report.build(project)
    page = report_page.html(made, project.dataset)
    assert "fills this section" not in page
    assert made.samples is not None
    assert page.count("data:image") == sum(len(t.easiest) + len(t.hardest) for t in made.samples)


def test_what_validation_cannot_fill_is_not_promised(made: report.Report, project: Project) -> None:
    differs = made.model_copy(update={"bit_exact": False, "mismatches": 1, "masks": None, "samples": None})
    text = report_page.html(differs, project.dataset)
    assert text.count("what the reference learned is not what the board learned") == 2
    assert "fills this section" not in text


def test_a_mask_that_hardly_changed_did_change(made: report.Report, project: Project) -> None:
    def text(shared: list[float]) -> str:
        assert made.masks is not None
        total = made.masks.total.model_copy(update={"matrix": [shared, *made.masks.total.matrix[1:]]})
        masks = made.masks.model_copy(update={"total": total})
        return report_page.html(made.model_copy(update={"masks": masks}), project.dataset)

    assert "the mask never changed" in text([100.0] * 4)
    for shared in ([100.0, 100.0, 100.0, 99.98], [100.0, 70.0, 90.0, 100.0]):
        assert "the mask never changed" not in text(shared)


def test_profile_of_a_network_whose_layers_have_no_functions(made: report.Report) -> None:
    """The compiler may have put them all into others."""
    found = Profile(model_hash=made.model_hash, steps=7, instructions=200.0, layers={}, functions={"train": 200})
    (rest,) = report_page.layer_costs(made.model_copy(update={"profile": found}))
    assert (rest.total, rest.parts[0].share) == (200, 100)


def test_without_ddr_there_are_hard_samples_only(make_project: MakeProject) -> None:
    project = make_project(ddr={"enabled": False})
    with FakeBoard(project.model) as board:
        stream.stream(project, board.url)
    validate.validate(project)[0].save(project.folder / validate.RESULT)
    made = report.build(project)
    assert made.samples is not None
    assert [len(t.easiest) for t in made.samples] == [0, 0, 0]
    page = report_page.html(made, project.dataset)
    assert "DDR is off in this run" in page
    assert "Easiest: removed first" not in page
    assert page.count("Hardest: most mistakes") == 3


def test_one_sentence(made: report.Report) -> None:
    text = report_page.sentence(made)
    assert text.startswith(f"The board learned 3 tasks one after another and now answers {made.class_il:.1f} %")
    assert f"every one of its {made.steps:,} training steps equals" in text
    wear = made.wear.model_copy(update={"tasks": 2})
    shipped = report_page.sentence(made.model_copy(update={"wear": wear}))
    assert shipped.startswith("The board, shipped with the first task, then learned 2 tasks one after another")
    assert "DIFFERS" in report_page.sentence(made.model_copy(update={"bit_exact": False, "mismatches": 1}))
    assert "not been compared" in report_page.sentence(made.model_copy(update={"bit_exact": False}))


MATRIX: list[list[float | None]] = [[90.0, None, None], [95.0, 80.0, None], [70.0, 85.0, 60.0]]


def test_curves_and_forgetting(made: report.Report) -> None:
    made = made.model_copy(update={"accuracy_matrix": MATRIX, "base_accuracy": [50.0, None, 40.0]})
    assert report_page.mean_accuracy(made) == [90.0, 87.5, pytest.approx(71.667, abs=1e-3)]
    curves = {curve.name: [value for _, _, value in curve.points] for curve in report_page.accuracy_plot(made).curves}
    assert {name: values for name, values in curves.items() if name != "mean"} == {
        "0/1": [90, 95, 70],
        "2/3": [80, 85],
        "4/5": [60],
        "base classes": [50, 40],
    }
    lost = report_page.forgotten(made)
    assert [(f.task, f.best, f.end, f.lost) for f in lost] == [
        ("0/1", 95.0, 70.0, 25.0),
        ("2/3", 80.0, 85.0, -5.0),
    ]
    assert sum(f.lost for f in lost) / 2 == metrics.forgetting(MATRIX)


def test_a_stack_that_hides_the_rest_is_set_aside(made: report.Report) -> None:
    ram = {"weights and biases": 30, "stack": 5000, "masks": 10}
    memory = report_page.ram(made.model_copy(update={"ram_bytes": ram, "ram_total": 5040}))
    assert (memory.total, memory.aside, memory.used) == (5040, 5000, 40)
    assert [(part.name, part.share) for part in memory.parts] == [("weights and biases", 75), ("masks", 25)]
    small = report_page.ram(made.model_copy(update={"ram_bytes": ram | {"stack": 40}, "ram_total": 80}))
    assert [part.name for part in small.parts] == ["stack", "weights and biases", "masks"]
    assert small.aside == 0


def test_ram_is_the_same_in_the_table_as_on_the_page(made: report.Report, project: Project) -> None:
    """The native board's stack is that of a process."""
    kib = f"{report_page.ram(made).used / 1024:.1f} KiB"
    assert dict(made.key_figures())["RAM"] == f"{kib}, without the stack the system sets aside"
    assert f"<b>{kib}</b><span>RAM, stack not counted" in report_page.html(made, project.dataset)
    small = made.model_copy(update={"ram_bytes": {"weights and biases": 1536, "stack": 512}, "ram_total": 2048})
    assert dict(small.key_figures())["RAM"] == "2.0 KiB"


def test_what_is_gained_is_not_called_forgotten(made: report.Report, project: Project) -> None:
    def tile(**changes: object) -> list[str]:
        text = report_page.html(made.model_copy(update=changes), project.dataset)
        return re.findall(r"<b>([\d.-]+)</b><span>points of earlier tasks (\w+)", text)

    assert tile(forgetting=4.25) == [("4.2", "forgotten")]
    assert tile(forgetting=-4.25) == [("4.2", "gained")]
    one: dict[str, object] = {"accuracy_matrix": [[50.0]], "task_accuracy_matrix": [[50.0]]}
    assert tile(tasks=made.tasks[:1], forgetting=0.0, samples=[], epochs=[], **one) == []


def test_dense_networks_are_not_sent_to_validate_for_masks(make_project: MakeProject) -> None:
    project = make_project(sparsity={"weights": 0.0})
    with FakeBoard(project.model) as board:
        stream.stream(project, board.url)
    page = report_page.html(report.build(project), project.dataset)
    assert "This network has no sparse layer that learns" in page
    assert page.count("fills this section") == 1


def test_steps_that_were_repeated(made: report.Report, project: Project) -> None:
    again = made.model_copy(update={"steps_compared": made.steps + 30})
    assert f"{made.steps + 30} of {made.steps}" not in report_page.html(again, project.dataset)
    assert f"repeated after an interruption; without them {made.steps}" in report_page.html(again, project.dataset)
    assert f"<td>{made.steps} of {made.steps}</td>" in report_page.html(made, project.dataset)


def test_every_region_of_the_plan_is_explained(made: report.Report) -> None:
    assert {*made.ram_bytes, *made.flash_bytes, *made.journal_bytes} <= report_page.REGIONS.keys()
