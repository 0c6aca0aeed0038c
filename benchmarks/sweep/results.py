# SPDX-License-Identifier: Apache-2.0
"""Results of jobs: one file a job, so that nothing runs twice; a tidy table; a summary by method."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sparcl_mcu.generator import files
from sparcl_mcu.generator.sizes import LARGEST_RESULT
from sparcl_mcu.spec.errors import UserError

from .plan import Job, Kind, Sweep

Percent = float


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Wear(_Part):
    """Wear of the native board's flash by all tasks of a run, in sectors of ``sector_bytes``."""

    erases: int
    bytes_written: int
    tasks: int
    sector_bytes: int


class Costs(_Part):
    """Costs of a method on an emulated board: bytes, instructions, multiply-accumulates.

    ``why``: it does not fit; then there is nothing else.  ``step``: one training
    step, replay included, mask updates left out; ``macs``: of its forward passes.
    """

    board: str
    why: str | None = None
    non_zeros: int | None = None
    ram: int | None = None
    flash: int | None = None
    journal: int | None = None
    step: float | None = None
    mask_update: float | None = None
    macs: float | None = None


class Result(_Part):
    """One job.  ``costs`` only of jobs that count; the others have accuracies in percent.

    ``matrix[i][j]``: class-IL on task j after task i; ``steps``: training samples, all epochs.
    """

    method: str
    seed: int
    kind: Kind
    key: str
    class_il: Percent | None = None
    task_il: Percent | None = None
    forgetting: Percent | None = None
    backward_transfer: Percent | None = None
    matrix: list[list[Percent | None]] = Field(default_factory=list)
    steps: int | None = None
    removed: int | None = None
    state_digest: str | None = None
    wear: Wear | None = None
    costs: Costs | None = None
    seconds: float = 0.0


class Kept:
    """The results of a sweep in a folder, one file a job, named by the job's key."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, job: Job) -> Result | None:
        """The job's result under the job's name; None if it has to be done (a corrupt file is not a result)."""
        try:
            found = Result.model_validate_json(files.read(self._path(job.key), LARGEST_RESULT))
        except (OSError, ValidationError):
            return None
        return found.model_copy(update={"method": job.method, "seed": job.seed})

    def put(self, result: Result) -> None:
        """Keep a result; it is there as a whole or not at all.  Raises ``UserError`` where there is no room for it."""
        path = self._path(result.key)
        aside = path.with_suffix(".new")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            files.write(aside, result.model_dump_json(indent=1) + "\n")
            aside.replace(path)
        except OSError as error:
            raise UserError(
                f"{path} cannot be written ({error.strerror}); earlier runs are kept: run the command again to continue"
            ) from None

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"


# ---------------------------------------------------------------- tidy

COLUMNS: Mapping[str, Callable[[Result], Any]] = {
    "method": lambda r: r.method,
    "arithmetic": lambda r: r.kind.value,
    "seed": lambda r: r.seed,
    "class_il": lambda r: _number(r.class_il),
    "task_il": lambda r: _number(r.task_il),
    "forgetting": lambda r: _number(r.forgetting),
    "backward_transfer": lambda r: _number(r.backward_transfer),
    "steps": lambda r: r.steps,
    "samples_removed": lambda r: r.removed,
    "erases": lambda r: r.wear and r.wear.erases,
    "bytes_written": lambda r: r.wear and r.wear.bytes_written,
    "tasks_on_board": lambda r: r.wear and r.wear.tasks,
    "state_digest": lambda r: r.state_digest,
}
"""One row is one run; percentages, counts, bytes.  Nothing that differs from one time to the next."""

COSTS: Mapping[str, Callable[[Costs], Any]] = {
    "weights": lambda c: c.non_zeros,
    "forward_macs": lambda c: _number(c.macs),
    "instructions": lambda c: _number(c.step),
    "instructions_mask_update": lambda c: _number(c.mask_update),
    "ram_bytes": lambda c: c.ram,
    "flash_bytes": lambda c: c.flash,
    "journal_bytes": lambda c: c.journal,
}
"""Columns of costs on the sweep's board: the same for all runs of a method, empty where it was not counted."""


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"


def write_csv(path: Path, results: Iterable[Result]) -> None:
    """Write the runs as a tidy table, with the costs of their methods."""
    found = list(results)
    costs = {result.method: result.costs for result in found if result.costs is not None}
    nothing = Costs(board="")
    with files.writing(path), path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*COLUMNS, *COSTS])
        for result in found:
            if result.kind is not Kind.COSTS:
                cost = costs.get(result.method, nothing)
                writer.writerow([*(c(result) for c in COLUMNS.values()), *(c(cost) for c in COSTS.values())])


# ---------------------------------------------------------------- by method


@dataclass(frozen=True)
class Mean:
    """Mean and standard deviation over ``count`` seeds; of a single one there is no deviation."""

    mean: float
    deviation: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean | None:
        """Mean of the values; None if there are none."""
        if not values:
            return None
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0, len(values))

    def __format__(self, sign: str) -> str:
        """``sign``: as of a number."""
        mean = f"{round(self.mean, 1) + 0.0:{sign}.1f}"  # + 0.0: no -0.0
        return f"{mean} ± {self.deviation:.1f}" if self.count > 1 else mean


@dataclass(frozen=True)
class Row:
    """A method: what all its runs showed so far.

    ``difference``: points by which fixed point is better than floating point, over the seeds that both have.
    """

    method: str
    fixed: Mean | None
    float32: Mean | None
    difference: Mean | None
    task_il: Mean | None
    forgetting: Mean | None
    steps: float | None
    erases_per_task: float | None
    costs: Costs | None

    @property
    def seeds(self) -> str:
        """Runs that are done: of fixed point, and of floating point if those are not as many."""
        counts = [mean.count for mean in (self.fixed, self.float32) if mean is not None]
        return " / ".join(str(count) for count in dict.fromkeys(counts)) or "–"

    def cells(self) -> list[str]:
        """The row as text, in the order of ``HEADINGS``."""
        costs = self.costs or Costs(board="")
        return [
            self.method,
            self.seeds,
            _shown(self.fixed),
            _shown(self.float32),
            _shown(self.difference, "+"),
            _shown(self.forgetting),
            _shown(self.task_il),
            _shown(costs.non_zeros, ",d"),
            _shown(_scaled(costs.macs, 1e-3), ",.1f"),
            _shown(_scaled(costs.step, 1e-3), ",.0f") if not costs.why else "does not fit",
            _shown(_scaled(costs.ram, 1 / 1024), ".1f"),
            _shown(self.erases_per_task, ".0f"),
            _shown(self.steps, ",.0f"),
        ]


HEADINGS = (
    "method",
    "seeds",
    "fixed point",
    "float32",
    "fixed - float",
    "forgetting",
    "task-IL",
    "weights",
    "kMAC",
    "k instr.",
    "RAM KiB",
    "erases/task",
    "samples",
)


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _shown(value: object, form: str = "") -> str:
    return "–" if value is None else format(value, form)


def rows(sweep: Sweep, results: Iterable[Result]) -> list[Row]:
    """One row for each method, in the order of the sweep file."""
    by_method: dict[str, list[Result]] = {name: [] for name in sweep.methods}
    for result in results:
        by_method[result.method].append(result)
    return [_row(name, found) for name, found in by_method.items()]


def _row(name: str, found: Sequence[Result]) -> Row:
    fixed = [r for r in found if r.kind is Kind.FIXED]
    learned = fixed or [r for r in found if r.kind is Kind.FLOAT]
    worn = [r.wear for r in fixed if r.wear is not None]
    steps = [r.steps for r in fixed if r.steps is not None]
    return Row(
        method=name,
        fixed=_mean(fixed, "class_il"),
        float32=_mean([r for r in found if r.kind is Kind.FLOAT], "class_il"),
        difference=_difference(found),
        task_il=_mean(learned, "task_il"),
        forgetting=_mean(learned, "forgetting"),
        steps=statistics.fmean(steps) if steps else None,
        erases_per_task=statistics.fmean([w.erases / w.tasks for w in worn]) if worn else None,
        costs=next((r.costs for r in found if r.costs is not None), None),
    )


def _mean(found: Sequence[Result], name: str) -> Mean | None:
    return Mean.of([value for r in found if (value := getattr(r, name)) is not None])


def _difference(found: Sequence[Result]) -> Mean | None:
    by = {(r.kind, r.seed): r.class_il for r in found if r.class_il is not None}
    both = [seed for kind, seed in by if kind is Kind.FIXED and (Kind.FLOAT, seed) in by]
    return Mean.of([by[Kind.FIXED, seed] - by[Kind.FLOAT, seed] for seed in both])


def markdown(table: Sequence[Row]) -> str:
    """The summary as a table for a document."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    cells = ([cell.replace("|", "\\|") for cell in row.cells()] for row in table)
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in cells)]) + "\n"
