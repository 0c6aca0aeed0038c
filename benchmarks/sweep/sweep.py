# SPDX-License-Identifier: Apache-2.0
"""A sweep from its file to its tables; what is done stays done, however it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from sparcl_mcu.generator import files, lock
from sparcl_mcu.host_tools import view
from sparcl_mcu.spec.errors import BoardError, SparclError, UserError
from sparcl_mcu.spec.paths import build_folder

from . import cluster, results
from .plan import Job, Kind, Sweep
from .results import Kept, Result, Row

CSV = "runs.csv"
TABLE = "table.md"


@dataclass
class Outcome:
    """A sweep's results in the order of its jobs, and what went wrong with the others."""

    sweep: Sweep
    folder: Path
    done: dict[str, Result] = field(default_factory=dict)
    failed: dict[str, SparclError] = field(default_factory=dict)

    def todo(self) -> list[Job]:
        """Jobs that are not done yet; identical methods run once."""
        jobs: dict[str, Job] = {}
        for job in self.sweep.jobs:
            if job.key not in self.done:
                jobs.setdefault(job.key, job)
        return list(jobs.values())

    def results(self) -> list[Result]:
        """One result for each finished job, under the name of its method; sorted by method, seed and kind."""
        found = [
            self.done[job.key].model_copy(update={"method": job.method, "seed": job.seed})
            for job in self.sweep.jobs
            if job.key in self.done
        ]
        place = {name: number for number, name in enumerate(self.sweep.methods)}
        return sorted(found, key=lambda r: (place[r.method], r.kind, r.seed))

    def rows(self) -> list[Row]:
        """The summary by method."""
        return results.rows(self.sweep, self.results())

    def save(self) -> tuple[Path, Path]:
        """Write the tidy table and the summary; their paths."""
        self.folder.mkdir(parents=True, exist_ok=True)
        runs, table = self.folder / CSV, self.folder / TABLE
        results.write_csv(runs, self.results())
        files.write(table, f"{self.sweep.title}\n\n{results.markdown(self.rows())}")
        return runs, table


def folder(sweep: Sweep) -> Path:
    """Where the sweep's results are kept."""
    return build_folder() / "sweeps" / sweep.name


def so_far(sweep: Sweep) -> Outcome:
    """Results kept from earlier runs of the sweep."""
    outcome = Outcome(sweep, folder(sweep))
    kept = _kept(outcome)
    for job in outcome.todo():
        if (result := kept.get(job)) is not None:
            outcome.done[job.key] = result
    return outcome


def _kept(outcome: Outcome) -> Kept:
    return Kept(outcome.folder / "runs")


def run(sweep: Sweep, scheduler: str | None, processes: int | None, *, plain: bool) -> Outcome:
    """Run the jobs that are not done yet.

    Results are kept as they come: after Ctrl-C the next run continues where it was.  A job that
    fails does not stop the others.  Raises ``UserError`` while another process does the same sweep.
    """
    place = folder(sweep)
    place.mkdir(parents=True, exist_ok=True)
    with lock.alone(place):  # two at a time would do every run twice
        outcome = so_far(sweep)
        todo = outcome.todo()
        total = len(outcome.done) + len(todo)
        if outcome.done:
            view.say(f"{len(outcome.done)} of {total} runs are done already")
        if todo:
            with _Progress(total, len(outcome.done), plain=plain) as progress:
                _work(todo, outcome, progress, scheduler, processes)
    return outcome


def _work(
    todo: Sequence[Job], outcome: Outcome, progress: _Progress, scheduler: str | None, processes: int | None
) -> None:
    kept = _kept(outcome)

    def done(job: Job, result: Result) -> None:
        kept.put(result)
        outcome.done[job.key] = result
        progress.line(f"{job.name}: {_shown(result)}")

    def failed(job: Job, error: SparclError) -> None:
        outcome.failed[job.key] = error
        progress.line(f"{job.name}: failed: {error}")

    cluster.run(todo, scheduler, processes, done, failed)


def _shown(result: Result) -> str:
    if result.kind is Kind.COSTS:
        costs = result.costs
        return (
            f"{costs.step:,.0f} instructions a step" if costs and costs.step is not None else str(costs and costs.why)
        )
    return f"{result.class_il:.1f} % class-IL in {result.seconds:.0f} s"


class _Progress:
    """A bar with the time that is left, and a line for each run; in a log the lines alone."""

    def __init__(self, total: int, done: int, *, plain: bool) -> None:
        self._total, self._done = total, done
        self._bar = Progress(
            TextColumn("sweep"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left:"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=view.console,
            transient=True,
            speed_estimate_period=600.0,
            disable=not view.moves(plain=plain),
        )
        self._task = self._bar.add_task("", total=total, completed=done)

    def line(self, text: str) -> None:
        """A run has ended."""
        self._done += 1
        self._bar.update(self._task, completed=self._done)
        view.say(f"[{self._done}/{self._total}] {text}")

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


LEGEND = """\
Class-IL accuracy in percent: mean ± standard deviation over seeds; then forgetting and task-IL of the fixed-point runs.
kMAC: multiply-accumulates of a training step's forward passes, k instr.: instructions of a training step, both in
thousands, as executed on {board}, replay included, mask updates and the end of a task left out.
RAM KiB: planned for it, stack included; erases/task: sector erases of the native board; samples: training samples of
all epochs."""


def show(outcome: Outcome) -> None:
    """Print the summary and what its columns are."""
    shown = Table(title=outcome.sweep.title, title_justify="left")
    for number, heading in enumerate(results.HEADINGS):
        shown.add_column(heading, justify="right" if number else "left", no_wrap=True)
    for row in outcome.rows():
        shown.add_row(*row.cells())
    view.wide(whole_cells=True).print(shown)
    view.say(LEGEND.format(board=outcome.sweep.board))


def failure(outcome: Outcome) -> SparclError:
    """The error to end with; a UserError if only mistakes of the user went wrong."""
    names = {job.key: job.name for job in outcome.sweep.jobs}
    lines = [f"{names[key]}: {error}" for key, error in outcome.failed.items()]
    mistakes = all(isinstance(error, UserError) for error in outcome.failed.values())
    text = "\n".join([f"{len(lines)} of the runs failed; the same command tries them again", *lines])
    return UserError(text) if mistakes else BoardError(text)
