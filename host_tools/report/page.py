# SPDX-License-Identifier: Apache-2.0
"""report.html: the report as one page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sparcl_mcu.spec.types import Dataset

from .. import markup
from . import figures
from .figures import Plot, Series
from .schema import Report, SampleNote

TEMPLATES = Path(__file__).parent / "templates"

MANY_TASKS = 12
"""More tasks than this have curves without names of their own."""

REGIONS = {
    "weights and biases": "what the network knows",
    "masks": "which weights exist",
    "gradients": "sums over a batch",
    "activations and errors": "what is computed for one sample",
    "work space": "sums of a pass, mask updates",
    "gradient factors": "samples by which masks are updated",
    "latent": "output of the frozen layers",
    "task table": "the samples of the present task: where, how difficult",
    "replay index": "where the remembered samples lie in flash",
    "sample buffer": "one sample read from flash",
    "serial buffers": "messages to and from the computer",
    "engine": "everything else",
    "code in RAM": "the fast part of the program",
    "stack": "set aside for function calls",
    "engine code": "the program",
    "shared key": "the key of the serial line",
    "initial model": "the model as shipped",
    "frozen layers": "layers that never learn",
    "task samples": "training samples of the present task",
    "replay buffer": "samples remembered from earlier tasks, with the answers to them",
    "records of a request": "what one message can add",
    "snapshots": "the learned state, so that it survives a power cut",
    "room to move records": "kept free",
}
"""Contents of the regions of the memory plan, in plain words."""


@dataclass(frozen=True)
class Forgotten:
    """One task: accuracy in percent at its best before the last task, and at the end."""

    task: str
    best: float
    end: float

    @property
    def lost(self) -> float:
        """Points of accuracy lost; negative where the task gained."""
        return self.best - self.end


@dataclass(frozen=True)
class Part:
    """One part of a bar: ``share`` of the whole in percent; ``style``: classes of its colour."""

    name: str
    size: float
    share: float
    style: str
    note: str = ""


@dataclass(frozen=True)
class Memory:
    """One memory: ``parts`` without the stack if ``aside`` says how much is set aside for that by the system."""

    name: str
    total: int
    limit: int
    parts: Sequence[Part]
    aside: int = 0

    @property
    def used(self) -> int:
        """Bytes without what is set aside."""
        return self.total - self.aside


@dataclass(frozen=True)
class LayerCost:
    """Instructions a step of one layer; ``parts``: by pass, on the scale of the most expensive layer."""

    name: str
    total: float
    parts: Sequence[Part]


def html(report: Report, dataset: Dataset) -> str:
    """The page; ``dataset``: where the pictures of samples come from."""
    page = markup.fill(
        TEMPLATES / "report.html",
        r=report,
        sentence=sentence(report),
        validated=validated(report),
        sparse=any(layer.sparse and layer.name.startswith("l") for layer in report.layers),
        accuracy=accuracy_plot(report),
        named=len(report.tasks) <= MANY_TASKS,
        forgotten=forgotten(report),
        loss=epoch_plot(report, "Training loss", [epoch.loss for epoch in report.epochs], "nats"),
        training=epoch_plot(report, "Training accuracy", [e.training_accuracy for e in report.epochs], "%", 100.0),
        memories=memories(report),
        phases=phases(report),
        layer_costs=layer_costs(report),
        formats={layer.name.partition(" ")[0]: layer for layer in report.layers},
        shown=Shown(dataset),
    )
    return page + "\n"


class Shown:
    """How samples are shown: ``kind`` is picture, series or numbers."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self.kind = figures.kind(dataset)
        self.width, self.height = figures.TRACE_WIDTH, figures.TRACE_HEIGHT

    def picture(self, task: int, note: SampleNote) -> str:
        """Source of the picture of a training sample."""
        return figures.picture(self._dataset, self._dataset.tasks[task].x_train[note.id])

    def traces(self, task: int, note: SampleNote) -> list[tuple[str, str]]:
        """Style and points of each channel of a training sample."""
        lines = figures.traces(self._dataset, self._dataset.tasks[task].x_train[note.id])
        return [(figures.style(k), points) for k, points in enumerate(lines)]


def validated(report: Report) -> bool:
    """Whether accuracy is that of a validation split, and nothing was measured on the test samples."""
    return bool(report.settings["data"]["evaluate"] == "validation")


def sentence(report: Report) -> str:
    """The run in one sentence, for a person who does not know the tool."""
    count, own = len(report.tasks), report.wear.tasks
    tasks = "one task" if own == 1 else f"{own} tasks one after another"
    shipped = ", shipped with the first task, then" if own < count else ""
    kind = "validation" if validated(report) else "test"
    text = f"The board{shipped} learned {tasks} and now answers {report.class_il:.1f} % of the {kind} samples correctly"
    if count > 1:
        change = "gained" if report.forgetting < 0 else "forgot"
        text += f"; of earlier tasks it {change} {abs(report.forgetting):.1f} points on average"
    if report.bit_exact:
        return f"{text}; every one of its {report.steps:,} training steps equals the reference computation bit for bit."
    if report.mismatches:
        return f"{text}; but its arithmetic DIFFERS from the reference computation."
    return f"{text}; it has not been compared with the reference computation yet."


def mean_accuracy(report: Report) -> list[float | None]:
    """Mean over the tasks seen so far, after each task."""
    rows = [[value for value in row if value is not None] for row in report.accuracy_matrix]
    return [float(np.mean(row)) if row else None for row in rows]


def accuracy_plot(report: Report) -> Plot:
    """Test accuracy after each task: of every task from the time it is learned, of the base, and the mean."""
    many = len(report.tasks) > MANY_TASKS
    matrix = report.accuracy_matrix
    series = [
        Series(name, [row[task] for row in matrix], "c7 faint" if many else figures.style(task))
        for task, name in enumerate(report.tasks)
    ]
    if any(value is not None for value in report.base_accuracy):
        series.append(Series("base classes", report.base_accuracy, "c7 dashed"))
    series.append(Series("mean", mean_accuracy(report), "mean"))
    names = [(name, 1) for name in report.tasks]
    return figures.plot("Test accuracy after each task", series, names, 100.0, "%", labels=not many)


def forgotten(report: Report) -> list[Forgotten]:
    """Forgetting of each task but the last."""
    last = len(report.tasks) - 1
    result = []
    for task in range(last):
        column = [value for row in report.accuracy_matrix[task:] if (value := row[task]) is not None]
        if len(column) > 1:
            result.append(Forgotten(report.tasks[task], max(column[:-1]), column[-1]))
    return result


def epoch_plot(report: Report, title: str, values: Sequence[float], unit: str, high: float | None = None) -> Plot:
    """One value for each epoch, a curve for each task."""
    tasks = list(dict.fromkeys(epoch.task for epoch in report.epochs))  # the first may have been learned on the host
    series = [
        Series(
            report.tasks[task],
            [value if epoch.task == task else None for epoch, value in zip(report.epochs, values, strict=True)],
            figures.style(task),
        )
        for task in tasks
    ]
    groups = [(report.tasks[task], sum(epoch.task == task for epoch in report.epochs)) for task in tasks]
    return figures.plot(title, series, groups, high or max(values, default=1.0), unit, labels=False)


def memories(report: Report) -> list[Memory]:
    """RAM, flash and journal."""
    limits = report.limits
    return [
        ram(report),
        Memory("Flash", report.flash_total, limits.flash, _regions(report.flash_bytes)),
        Memory("Journal", sum(report.journal_bytes.values()), limits.journal, _regions(report.journal_bytes)),
    ]


def ram(report: Report) -> Memory:
    """RAM, the parts without a stack that is set aside."""
    aside = report.stack_aside
    sizes = {name: size for name, size in report.ram_bytes.items() if name != "stack" or not aside}
    return Memory("RAM", report.ram_total, report.limits.ram, _regions(sizes), aside)


def _regions(sizes: Mapping[str, int]) -> list[Part]:
    ordered = {name: size for name, size in sorted(sizes.items(), key=lambda item: -item[1]) if size}
    return parts(ordered, sum(ordered.values()), REGIONS)


def parts(sizes: Mapping[str, float], whole: float, notes: Mapping[str, str] | None = None) -> list[Part]:
    """Parts of a bar that is ``whole`` long."""
    return [
        Part(name, size, 100.0 * size / whole if whole else 0.0, figures.style(number), (notes or {}).get(name, ""))
        for number, (name, size) in enumerate(sizes.items())
    ]


PHASES = {
    "forward": "from inputs to answers",
    "backward": "errors back through the layers, weights changed",
    "replay_read": "samples read from flash, remembered ones too",
    "mask_update": "which weights exist is decided again",
    "journal_write": "the state saved to flash",
}


def phases(report: Report) -> list[Part]:
    """Instructions of a training sample by phase; what is left of a whole step is "the rest"."""
    if report.instructions is None:
        return []
    sizes = {name.replace("_", " "): float(getattr(report.instructions, name)) for name in PHASES}
    sizes["the rest"] = max(report.instructions.training - sum(sizes.values()), 0.0)
    notes = {name.replace("_", " "): text for name, text in PHASES.items()}
    return parts(sizes, report.instructions.training, notes | {"the rest": "loss, random numbers, bookkeeping"})


PASSES = ("forward", "backward", "error")


def layer_costs(report: Report) -> list[LayerCost]:
    """Instructions of a training step by layer, as `sparcl bench` counted them; the longest bar is 100 % long."""
    if report.profile is None:
        return []
    layers = report.profile.layers
    rows = [(name, {p: passes.get(p, 0.0) for p in PASSES}) for name, passes in layers.items()]
    rest = report.profile.instructions - sum(sum(row.values()) for _, row in rows)
    longest = max([rest, *(sum(row.values()) for _, row in rows)])
    costs = [LayerCost(name, sum(row.values()), parts(row, longest)) for name, row in rows]
    return [*costs, LayerCost("rest", rest, [Part("rest", rest, 100.0 * rest / longest if longest else 0.0, "c7")])]
