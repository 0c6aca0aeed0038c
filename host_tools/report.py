# SPDX-License-Identifier: Apache-2.0
"""report.json and report.html: what a run showed (docs/report-schema.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from generator.artefacts import Dataset, Model, Task
from generator.errors import UserError

from . import markup, metrics
from .image import ImageSizes, measure
from .protocol import PHASE_TICKS, Command, pack_labelled
from .reference import Device
from .stream import RESULT as STREAM_RESULT
from .stream import Score, StreamResult
from .validate import RESULT as VALIDATION_RESULT
from .validate import ValidationResult

if TYPE_CHECKING:
    from generator.pipeline import Project

JSON = "report.json"
HTML = "report.html"

Percent = float


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Accuracy(_Part):
    """Test accuracy of the initial model, before the board learns, in percent."""

    imported: Percent | None = Field(description="Of the imported Keras model as it came; null if none was imported")
    keras: Percent | None = Field(description="Of the pruned initial model in floating point, over all classes")
    reference: Percent = Field(description="In the fixed-point NumPy reference, over all classes")
    board: Percent = Field(description="On the board, over all classes")
    board_task_il: Percent = Field(description="The same, over the task's own classes")

    def columns(self, imported: bool) -> list[Percent | None]:
        """Side by side for the page: floating point, reference, board."""
        return [*([self.imported] if imported else []), self.keras, self.reference, self.board]


class Ticks(_Part):
    """Ticks of the board's counter, by phase, over the whole run."""

    unit: str = Field(description="What one tick is")
    per_instruction: float | None = Field(description="Ticks per instruction, where the board defines it")
    forward: int
    backward: int
    replay_read: int
    mask_update: int
    journal_write: int
    digest: int
    training: int = Field(description="Whole training steps; the phases above are parts of it, digest is not")


class Instructions(_Part):
    """Instructions per training sample, by phase."""

    forward: float
    backward: float
    replay_read: float
    mask_update: float
    journal_write: float
    digest: float
    training: float = Field(description="Whole training steps")


class Store(_Part):
    """The journal in flash."""

    programs: int
    erases: int
    bytes_written: int
    live_records: int
    sectors: int
    sectors_free: int
    erase_min: int = Field(description="Erase count of the least erased sector")
    erase_max: int = Field(description="Erase count of the most erased sector")
    relocated: int
    checkpoints: int
    retired_sectors: int


class Wear(_Part):
    """What the run cost the journal's flash."""

    tasks: int = Field(description="Tasks the board learnt")
    cycles_per_task: float = Field(description="Erases of a sector by one task; wear is even, so any sector")
    spread: int = Field(description="Erases between the most and the least erased sector")
    endurance: int = Field(description="Erase cycles that a sector is counted on to last")
    lifetime_tasks: int | None = Field(description="Tasks until sectors have had that many; null if none was erased")


class Saturation(_Part):
    """Values that did not fit their format."""

    activations: int
    errors: int
    guard_shifts: int
    weights_at_clamp: int


class EpochReport(_Part):
    """One epoch on the board."""

    task: int
    epoch: int
    steps: int
    loss: float = Field(description="Mean cross-entropy of the current samples, in nats")
    training_accuracy: Percent
    removed: int = Field(description="Samples DDR removed at its end")
    seconds: float


class Report(_Part):
    """A whole run.  Accuracies are in percent, sizes in bytes."""

    format: Literal[1] = 1
    experiment: str
    board: str
    board_title: str
    method: str
    sparsity: float = Field(ge=0, le=1, description="Share of absent weights in sparse layers")
    non_zeros: int = Field(description="Weights that exist")
    seed: int
    tool_version: str
    model_hash: str = Field(pattern="^[0-9a-f]{16}$")
    tasks: list[str]
    scenario: Literal["class", "domain"] = Field(
        description="class: tasks bring classes; domain: all tasks have the same classes, and task-IL equals class-IL"
    )
    class_il: Percent = Field(ge=0, le=100, description="Mean accuracy over tasks at the end, over all classes")
    task_il: Percent = Field(ge=0, le=100, description="The same, each task over its own classes")
    forgetting: Percent = Field(description="Class-incremental; docs/report-schema.md defines it")
    backward_transfer: Percent
    task_forgetting: Percent = Field(description="Task-incremental")
    accuracy_matrix: list[list[Percent | None]] = Field(description="[i][j]: after task i, on task j; over all classes")
    task_accuracy_matrix: list[list[Percent | None]] = Field(description="The same over the task's own classes")
    initial_accuracy: dict[str, Accuracy]
    base_accuracy: list[Percent | None] = Field(description="On the base classes after each task; empty without a base")
    bit_exact: bool = Field(description="The whole run was compared with the reference and nothing differed")
    steps_compared: int
    predictions_compared: int
    digests_compared: int
    mismatches: int
    first_mismatch: str | None
    state_digest: str = Field(pattern="^[0-9a-f]{8}$")
    rolling_digest: str = Field(pattern="^[0-9a-f]{8}$")
    steps: int = Field(description="Training samples the board consumed, all epochs")
    samples_removed: int = Field(description="By DDR, over all tasks")
    ram_bytes: dict[str, int] = Field(description="By region")
    flash_bytes: dict[str, int] = Field(description="By region")
    ram_total: int
    flash_total: int
    stack_used: int
    store: Store
    wear: Wear
    saturation: Saturation
    ticks: Ticks
    instructions: Instructions | None = Field(description="None where the board's counter cannot tell")
    passes_per_sample: float = Field(description="Forward passes per training sample, replay included")
    wall_seconds: float = Field(description="Time of the session on the host's clock")
    samples_per_second: float
    sessions: int = Field(description="1 + resumptions")
    retries: int = Field(description="Requests sent again")
    resets: list[str] = Field(description="Faults after which the board went back to a snapshot; empty: none")
    epochs: list[EpochReport]

    @property
    def imported(self) -> bool:
        """Whether the initial model came from a file or function of the user's."""
        return any(accuracy.imported is not None for accuracy in self.initial_accuracy.values())

    def key_figures(self) -> list[tuple[str, str]]:
        """Names and values a reader wants first."""
        exact = f"yes ({self.steps_compared} steps)" if self.bit_exact else "NO" if self.mismatches else "not shown"
        accuracy = f"{self.class_il:.1f} % class-IL, {self.task_il:.1f} % task-IL"
        if self.scenario == "domain":
            accuracy = f"{self.class_il:.1f} % domain-IL (tasks share classes)"
        rows = [
            ("accuracy on the board", accuracy),
            ("forgetting", f"{self.forgetting:.1f} points, backward transfer {self.backward_transfer:+.1f}"),
            ("RAM", f"{self.ram_total / 1024:.1f} KiB"),
            ("flash", f"{self.flash_total / 1024:.1f} KiB"),
        ]
        if self.instructions is not None:
            rows.append(("instructions per sample", f"{self.instructions.training:,.0f}"))
        rows.append(("flash wear", self._wear()))
        rows.append(("samples", f"{self.steps} trained, {self.samples_removed} removed by DDR"))
        if self.resets:
            causes = (f"{self.resets.count(cause)} x {cause}" for cause in dict.fromkeys(self.resets))
            rows.append(("faults recovered from", ", ".join(causes)))
        rows.append(("bit-exact with the NumPy reference", exact))
        return rows

    def _wear(self) -> str:
        life = "no end" if self.wear.lifetime_tasks is None else f"{self.wear.lifetime_tasks:,} tasks"
        retired = f", {self.store.retired_sectors} times a sector failed" if self.store.retired_sectors else ""
        return (
            f"{self.store.erases} erases on {self.store.sectors} sectors, spread {self.wear.spread}{retired}; "
            f"{life} at {self.wear.endurance:,} cycles"
        )


def build(project: Project) -> Report:
    """Make the report of the project's last session.

    Raises UserError when there is none, or it was not finished.
    """
    result = StreamResult.load(project.folder / STREAM_RESULT)
    name, board = project.config.experiment.name, project.board.name
    if not result.complete:
        raise UserError(f"the session was not finished: `sparcl stream {name}.toml --board {board} --resume` goes on")
    if result.model_hash != project.model.model_hash.hex():
        raise UserError("the last session was with another model: run `sparcl flash` and `sparcl stream` again")
    validation = _validation(project.folder)
    matrix, task_matrix = result.matrix(), result.matrix("task_il")
    statistics = result.statistics
    sizes = _sizes(project)
    return Report(
        experiment=result.experiment,
        board=board,
        board_title=project.board.title,
        method=str(project.model.learning.method),
        sparsity=project.config.sparsity.weights,
        non_zeros=_non_zeros(project),
        seed=result.seed,
        tool_version=result.tool_version,
        model_hash=result.model_hash,
        tasks=result.task_names,
        scenario=_scenario(project.dataset),
        class_il=metrics.average_accuracy(matrix),
        task_il=metrics.average_accuracy(task_matrix),
        forgetting=metrics.forgetting(matrix),
        backward_transfer=metrics.backward_transfer(matrix),
        task_forgetting=metrics.forgetting(task_matrix),
        accuracy_matrix=matrix,
        task_accuracy_matrix=task_matrix,
        initial_accuracy=_initial(project, result),
        base_accuracy=[None if s is None else _percent(s) for s in result.base],
        bit_exact=validation.bit_exact,
        steps_compared=validation.steps_compared,
        predictions_compared=validation.predictions_compared,
        digests_compared=validation.digests_compared,
        mismatches=validation.mismatches,
        first_mismatch=str(validation.divergence or validation.first or "") or None,
        state_digest=f"{result.state_digest:08x}",
        rolling_digest=f"{result.rolling:08x}",
        steps=result.steps,
        samples_removed=result.samples_removed,
        ram_bytes=sizes.ram,
        flash_bytes=sizes.flash,
        ram_total=sum(sizes.ram.values()),
        flash_total=sum(sizes.flash.values()),
        stack_used=statistics["stack_used"],
        store=Store(**{key: statistics[key] for key in Store.model_fields}),
        wear=_wear(project, result),
        saturation=Saturation(
            activations=statistics["saturated_activations"],
            errors=statistics["saturated_errors"],
            guard_shifts=statistics["guard_shifts"],
            weights_at_clamp=statistics["weights_at_clamp"],
        ),
        ticks=_ticks(project, statistics),
        instructions=_instructions(project, statistics),
        passes_per_sample=statistics["passes"] / max(statistics["training_steps"], 1),
        wall_seconds=result.wall_seconds,
        samples_per_second=_rate(result),
        sessions=result.sessions,
        retries=result.retries,
        resets=result.resets,
        epochs=_epochs(result),
    )


def write(report: Report, folder: Path) -> tuple[Path, Path]:
    """Write report.json and report.html into ``folder``; their paths."""
    json_path, html_path = folder / JSON, folder / HTML
    json_path.write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    html_path.write_text(html(report), encoding="utf-8")
    return json_path, html_path


def html(report: Report) -> str:
    """The report as one page that needs nothing else."""
    means = [
        sum(v for v in row if v is not None) / max(1, sum(v is not None for v in row)) for row in report.accuracy_matrix
    ]
    steps = max(len(means) - 1, 1)
    points = [(40 + 400 * i / steps, 190 - 1.8 * value, value) for i, value in enumerate(means)]
    memory = [
        ("RAM", report.ram_total, list(report.ram_bytes.items())),
        ("flash", report.flash_total, list(report.flash_bytes.items())),
    ]
    page = Path(__file__).parent / "templates" / "report.html"
    return markup.fill(page, r=report, points=points, memory=memory) + "\n"


def _validation(folder: Path) -> ValidationResult:
    """The comparison with the reference; an empty one when it has not been made."""
    path = folder / VALIDATION_RESULT
    return ValidationResult.load(path) if path.exists() else ValidationResult(complete=False)


def _scenario(dataset: Dataset) -> Literal["class", "domain"]:
    """As in van de Ven et al., "Three types of incremental learning", 2022."""
    parts = [set(task.classes) for task in dataset.tasks] + ([set(dataset.base.classes)] if dataset.base else [])
    return "domain" if len(parts) > 1 and all(part == parts[0] for part in parts) else "class"


def _percent(score: Score) -> float:
    return metrics.percent(score.class_il, score.total)


def _non_zeros(project: Project) -> int:
    return sum(
        sum(panel.nnz for panel in layer.panels) * layer.block if layer.sparse else layer.n_in * layer.n_out
        for layer in (*project.model.prefix, *project.model.layers)
        if layer.weighted
    )


def _initial(project: Project, result: StreamResult) -> dict[str, Accuracy]:
    tasks = {task.name: task for task in (project.dataset.base, *project.dataset.tasks) if task is not None}
    return {
        name: Accuracy(
            imported=project.float_model.imported_accuracy.get(name),
            keras=project.float_model.accuracy.get(name),
            reference=_reference_accuracy(project.model, tasks[name]),
            board=_percent(score),
            board_task_il=metrics.percent(score.task_il, score.total),
        )
        for name, score in result.initial.items()
    }


def _reference_accuracy(model: Model, task: Task) -> float:
    """Test accuracy of the initial model in the reference, in percent."""
    device, correct = Device(model), 0
    for first in range(0, len(task.y_test), 255):
        part = slice(first, first + 255)
        reply = device.apply(Command.EVALUATE, pack_labelled(task.y_test[part], task.x_test[part]))
        assert reply is not None, "an evaluation is always answered"
        correct += reply.payload[0]
    return metrics.percent(correct, len(task.y_test))


def _sizes(project: Project) -> ImageSizes:
    """Sizes as linked, or as planned where nothing has been built (a board that was flashed elsewhere)."""
    if project.image.exists():
        return measure(project.image, project.plan)
    plan = project.plan
    return ImageSizes({row.name: row.size for row in plan.ram}, {row.name: row.size for row in plan.flash})


def _wear(project: Project, result: StreamResult) -> Wear:
    statistics, endurance = result.statistics, project.board.store.endurance
    tasks = len(result.task_names) - result.first_task
    cycles = statistics["erases"] / max(statistics["sectors"] * tasks, 1)
    return Wear(
        tasks=tasks,
        cycles_per_task=cycles,
        spread=statistics["erase_max"] - statistics["erase_min"],
        endurance=endurance,
        lifetime_tasks=int(endurance / cycles) if cycles else None,
    )


def _ticks(project: Project, statistics: dict[str, int]) -> Ticks:
    timer = project.board.timer
    phases = {phase: statistics[phase] for phase in PHASE_TICKS}
    return Ticks(unit=timer.unit, per_instruction=timer.ticks_per_instruction or None, **phases)


def _instructions(project: Project, statistics: dict[str, int]) -> Instructions | None:
    ratio, steps = project.board.timer.ticks_per_instruction, statistics["training_steps"]
    if not ratio or not steps:
        return None
    return Instructions(**{phase: statistics[phase] / ratio / steps for phase in PHASE_TICKS})


def _rate(result: StreamResult) -> float:
    seconds = sum(epoch.seconds for epoch in result.epochs)
    return sum(epoch.steps for epoch in result.epochs) / seconds if seconds else 0.0


def _epochs(result: StreamResult) -> list[EpochReport]:
    return [
        EpochReport(
            task=e.task,
            epoch=e.epoch,
            steps=e.steps,
            loss=e.loss / max(e.steps, 1),
            training_accuracy=metrics.percent(e.steps - e.wrong, e.steps),
            removed=len(e.removed),
            seconds=e.seconds,
        )
        for e in result.epochs
    ]


def write_schema() -> Path:
    """Write report_schema.json, the JSON schema of report.json, from the model above."""
    path = Path(__file__).parent / "report_schema.json"
    path.write_text(json.dumps(Report.model_json_schema(), indent=1) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    print(write_schema())
