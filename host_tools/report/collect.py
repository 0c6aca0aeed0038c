# SPDX-License-Identifier: Apache-2.0
"""Makes the report of a session from what it left in the project's folder, and writes it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sparcl_mcu.generator import files
from sparcl_mcu.reference import Device
from sparcl_mcu.spec.errors import UserError
from sparcl_mcu.spec.types import Activation, Dataset, Layer, Model, Op, Task, needs_error
from sparcl_mcu.spec.wire import Command

from .. import histories, metrics
from ..image import ImageSizes, measure
from ..protocol import PHASE_TICKS, pack_labelled
from ..stream import RESULT as STREAM_RESULT
from ..stream import Score, StreamResult, data_hash, make_plan
from ..validate import RESULT as VALIDATION_RESULT
from ..validate import ValidationResult
from . import learned, page, profile
from .schema import (
    Accuracy,
    EpochReport,
    Instructions,
    LayerFormat,
    Limits,
    MaskOverlap,
    Report,
    Saturation,
    Store,
    TaskSamples,
    Ticks,
    Wear,
)

if TYPE_CHECKING:
    from sparcl_mcu.generator.pipeline import Project

JSON = "report.json"
HTML = "report.html"


def build(project: Project) -> Report:
    """Make the report of the project's last session.

    Raises UserError when there is none, it was not finished, or was with another model or other data.
    """
    result = _session(project)
    validation = _validation(project.folder)
    matrix, task_matrix = result.matrix(), result.matrix("task_il")
    statistics = result.statistics
    sizes = _sizes(project)
    masks, samples = _learned(project) if validation.bit_exact else (None, None)
    return Report(
        experiment=result.experiment,
        board=project.board.name,
        board_title=project.board.title,
        method=str(project.model.learning.method),
        sparsity=project.config.sparsity.weights,
        non_zeros=_non_zeros(project),
        seed=result.seed,
        tool_version=result.tool_version,
        model_hash=result.model_hash,
        settings=project.config.model_dump(mode="json"),
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
        journal_bytes={row.name: row.size for row in project.plan.store},
        limits=Limits(
            ram=project.plan.ram_limit,
            flash=project.plan.flash_limit,
            journal=project.plan.store_limit,
            shared=project.plan.shared,
        ),
        stack_used=statistics["stack_used"],
        store=Store(**{key: statistics[key] for key in Store.model_fields}),
        wear=_wear(project, result),
        saturation=Saturation(
            activations=statistics["saturated_activations"],
            errors=statistics["saturated_errors"],
            guard_shifts=statistics["guard_shifts"],
            weights_at_clamp=statistics["weights_at_clamp"],
        ),
        saturation_of=_saturation_of(project.model, statistics["passes"]),
        layers=_layers(project.model),
        ticks=_ticks(project, statistics),
        instructions=_instructions(project, statistics),
        profile=profile.load(project.folder, result.model_hash),
        masks=masks,
        ddr=project.model.learning.ddr,
        samples=samples,
        passes_per_sample=statistics["passes"] / max(statistics["training_steps"], 1),
        wall_seconds=result.wall_seconds,
        samples_per_second=_rate(result),
        sessions=result.sessions,
        retries=result.retries,
        resets=result.resets,
        epochs=_epochs(result),
    )


def write(report: Report, project: Project) -> tuple[Path, Path]:
    """Write report.json and report.html into the project's folder; their paths."""
    json_path, html_path = project.folder / JSON, project.folder / HTML
    files.write(json_path, report.model_dump_json(indent=1) + "\n")
    files.write(html_path, page.html(report, project.dataset))
    return json_path, html_path


def _session(project: Project) -> StreamResult:
    """The measurements of the last session, which has to be one of this project, and finished."""
    result = StreamResult.load(project.folder / STREAM_RESULT)
    name, board = project.config.experiment.name, project.board.name
    other = None
    if result.model_hash != project.model.model_hash.hex():
        other = "a different model"
    elif result.data_hash != data_hash(project.dataset):
        other = "different data"
    if other is not None:
        raise UserError(
            f"the last session used {other}: repeat its --seed and --set options, "
            "or run `sparcl flash` and `sparcl stream --fresh` again"
        )
    if not result.complete:
        raise UserError(
            f"the session was not finished: continue with `sparcl stream {name}.toml --board {board} --resume` "
            "and the options it had"
        )
    return result


def _validation(folder: Path) -> ValidationResult:
    """The comparison with the reference; an empty one when it has not been made."""
    path = folder / VALIDATION_RESULT
    return ValidationResult.load(path) if path.exists() else ValidationResult(complete=False)


def _scenario(dataset: Dataset) -> Literal["class", "domain"]:
    """The scenario in the sense of van de Ven et al., "Three types of incremental learning", 2022."""
    parts = [set(task.classes) for task in dataset.tasks] + ([set(dataset.base.classes)] if dataset.base else [])
    return "domain" if len(parts) > 1 and all(part == parts[0] for part in parts) else "class"


def _percent(score: Score) -> float:
    return metrics.percent(score.class_il, score.total)


def _non_zeros(project: Project) -> int:
    return sum(_weights(layer)[1] for layer in (*project.model.prefix, *project.model.layers))


def _weights(layer: Layer) -> tuple[int, int]:
    """Places for weights in a layer, and weights that exist."""
    places = layer.n_in * layer.n_out if layer.weighted else 0
    return places, sum(panel.nnz for panel in layer.panels) * layer.block if layer.sparse else places


def _layers(model: Model) -> list[LayerFormat]:
    numbered = [(f"p{k}", layer) for k, layer in enumerate(model.prefix)]
    numbered += [(f"l{k}", layer) for k, layer in enumerate(model.layers)]
    return [_layer(f"{number} {layer.name}".strip(), layer) for number, layer in numbered]


def _layer(name: str, layer: Layer) -> LayerFormat:
    places, non_zeros = _weights(layer)
    return LayerFormat(
        name=name,
        kind=str(layer.op),
        shape=(layer.out.channels, layer.out.height, layer.out.width),
        sparse=layer.sparse,
        weights=places,
        non_zeros=non_zeros,
        weight_fraction=layer.fw if layer.weighted else None,
        weight_limit=2.0 ** (layer.wlog - layer.fw) if layer.weighted else None,
        output_fraction=layer.fa,
        output_limit=2.0 ** (layer.out.bits - layer.fa),
    )


def _saturation_of(model: Model, passes: int) -> Saturation:
    """Values that ``passes`` training passes compute (docs/spec/numerics.md, "Forward" and "Backward")."""
    counted = [layer for layer in model.layers if layer.op in (Op.DENSE, Op.CONV, Op.ADD)]
    with_error = needs_error(model.layers)
    errors = [model.tensor(t).values for layer in model.layers if layer.weighted and with_error[t := layer.inputs[0]]]
    guards = sum((layer.guard > 0) + (layer.l1_err > 0) for layer in model.layers)
    return Saturation(
        activations=passes * sum(r.out.values for r in counted if r.activation is not Activation.RELU6),
        errors=passes * sum(errors),
        guard_shifts=passes * guards,
        weights_at_clamp=sum(_weights(layer)[1] for layer in model.layers),
    )


def _learned(project: Project) -> tuple[MaskOverlap | None, list[TaskSamples] | None]:
    """Figures of masks and samples, from the reference that agreed with the board."""
    path = project.folder / histories.RESULT
    if not path.exists():
        return None, None  # validated by an older version
    kept, dataset = histories.load(path), project.dataset
    plan = make_plan(dataset, project.model, first_on_host=project.config.tasks.first == "host")
    epochs = project.model.learning.epochs
    by_task = {number - plan.offset: history for number, history in kept.items()}
    names = {index: dataset.tasks[index].name for index in by_task}
    samples = [learned.task_samples(dataset, index, history, epochs) for index, history in by_task.items()]
    return learned.mask_overlap(project.model, list(names.values()), list(by_task.values())), samples


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
    """Sizes as linked, or as planned where this model has not been built last (a board that was flashed elsewhere)."""
    if project.image.exists() and project.model.model_hash.hex().encode() in project.image.read_bytes():
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
