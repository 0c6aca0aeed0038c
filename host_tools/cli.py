# SPDX-License-Identifier: Apache-2.0
"""The command `sparcl`.  Imports what a command needs only when it runs, so that --help is quick."""

from __future__ import annotations

import errno
import shlex
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparcl_mcu.generator import files
from sparcl_mcu.generator.errors import BoardError, SparclError, UserError, ValidationFailed
from sparcl_mcu.generator.places import build_folder
from sparcl_mcu.generator.sizes import shown

from . import output

if TYPE_CHECKING:
    from sparcl_mcu.generator.pipeline import Project

    from .emulator import Emulator
    from .stream import StreamResult
    from .validate import Suspects, ValidationResult

_HELP = """
Continual learning with sparse networks on a microcontroller.

An experiment file says what to learn and how; --board names the board.

\b
  sparcl new my_project                   a project that runs at once
  sparcl run my_project.toml              everything, on this computer
  sparcl run my_project.toml -b microbit  the same on an emulated micro:bit
  sparcl boards                           which boards there are
  sparcl doctor                           what is missing on this computer

The stages one by one; each first brings the generated project up to date:

  generate -> build -> flash -> stream -> validate -> report

Options of the experiment file can be changed for one command:

\b
  sparcl run EXP.toml --set sparsity.weights=0.95 --seed 7

\b
Exit status: 0 success
             1 the board failed, or disagrees with the reference
             2 a mistake in a file or an option, or a full disk
"""

app = typer.Typer(
    help=_HELP,
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"max_content_width": 110},
    pretty_exceptions_enable=False,
)

Experiment = Annotated[Path, typer.Argument(metavar="EXP.toml", help="Experiment file.")]
BoardName = Annotated[str, typer.Option("--board", "-b", help="Board; `sparcl boards` lists them.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change an option of the file; may be repeated."),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed in place of the file's.")]
Port = Annotated[
    str | None,
    typer.Option("--port", "-p", help="Serial port or URL of the board; default: its emulator."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a board that has learnt something.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Make the board forget what it has learnt first.")]


def _without_controls(plain: bool) -> bool:
    if plain:
        from . import view

        view.without_controls()
    return plain


Plain = Annotated[
    bool,
    typer.Option("--plain", help="Lines of text instead of the live view, for logs.", callback=_without_controls),
]


@dataclass(frozen=True)
class _Options:
    """What every command that works on an experiment takes."""

    experiment: Path
    board: str
    overrides: tuple[str, ...]
    seed: int | None

    @property
    def arguments(self) -> str:
        """These options as typed, to name a next command."""
        words = [str(self.experiment), "--board", self.board]
        for item in self.overrides:
            words += ["--set", item]
        words += ["--seed", str(self.seed)] if self.seed is not None else []
        return shlex.join(words)

    def project(self, *, force: bool = False) -> Project:
        """Bring the generated project up to date."""
        from sparcl_mcu.generator.pipeline import generate

        from . import platformio, view

        project = generate(
            self.experiment,
            self.board,
            self.overrides,
            self.seed,
            progress=view.say,
            force=force,
            claim=_claim,
        )
        _log.folder = project.folder
        platformio.write_environments(build_folder())
        return project


class _Log:
    """Where an unexpected error is written."""

    folder: Path | None = None


_log = _Log()
_claims = ExitStack()
"""What the present command keeps others out of."""


def _claim(folder: Path) -> None:
    """Nobody else works in this folder until the command is done."""
    from sparcl_mcu.generator import lock

    _claims.enter_context(lock.alone(folder))


def _print_version(asked: bool) -> None:
    if asked:
        from sparcl_mcu.generator import __version__

        print(f"sparcl-mcu {__version__}")
        raise typer.Exit


@app.callback()
def options_of_all(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command()
def new(
    folder: Annotated[Path, typer.Argument(metavar="NAME", help="Folder to make; its name names the experiment.")],
    data: Annotated[
        str | None, typer.Option("--data", help="npz (windows of a sensor), csv (a table), images, or digits.")
    ] = None,
    network: Annotated[str | None, typer.Option("--network", help="dense or conv.")] = None,
    board: Annotated[str | None, typer.Option("--board", "-b", help="Board; `sparcl boards` lists them.")] = None,
) -> None:
    """Make a project that runs at once.

    It has an experiment file, stand-in samples, platformio.ini and a README. On a terminal it asks
    for what was not given; elsewhere the defaults are npz, dense and native.

    \b
      sparcl new my_project
      sparcl new vibration --data csv --board microbit
      sparcl new parts --data images --network conv
    """
    from . import new as projects
    from . import view

    chosen = projects.choose(
        folder,
        data or _ask("Sensor windows, a table, pictures, or digits?", projects.DATA),
        network or _ask("Network", projects.NETWORKS[:1] if data == "csv" else projects.NETWORKS),
        board or _ask("Board", ("native",)),
    )
    for path in projects.create(folder, chosen):
        view.say(str(path))
    view.say(f"\nNext:\n  cd {shlex.quote(str(folder))}\n  sparcl run {chosen.name}.toml --board {chosen.board}")


def _ask(question: str, choices: tuple[str, ...]) -> str:
    """The answer of whoever sits at the terminal; without one the first of the choices."""
    if not sys.stdin.isatty() or not sys.stdout.isatty():
        return choices[0]
    shown = f"{question} [{'/'.join(choices)}]" if len(choices) > 1 else question
    return str(typer.prompt(shown, default=choices[0], show_default=len(choices) == 1))


@app.command()
def doctor(
    board: Annotated[
        str | None,
        typer.Option("--board", "-b", help="Board that has to work [native]."),
    ] = None,
) -> None:
    """Check what a run needs; say what to type.

    Looks at compilers, QEMU, PlatformIO, serial ports and disk. Exit status 1 when something needed is missing.

    Example: sparcl doctor --board microbit
    """
    from sparcl_mcu.generator.boards import boards as all_boards
    from sparcl_mcu.generator.boards import load_board

    from . import doctor as doctors
    from . import view

    wanted = load_board(board).name if board is not None else None
    missing = []
    for check in doctors.examine(all_boards(), wanted=wanted):
        view.show_check(check)
        missing += [check.what] if check.state is doctors.State.MISSING else []
    if missing:
        raise BoardError(f"missing: {', '.join(missing)}")


@app.command()
def boards() -> None:
    """List every board, its limits, and how it was verified."""
    from sparcl_mcu.generator.boards import boards as all_boards

    from . import view

    view.console.print(view.boards_table(all_boards()))


@app.command()
def generate(
    experiment: Experiment,
    board: BoardName = "native",
    overrides: Overrides = None,
    seed: Seed = None,
    force: Annotated[bool, typer.Option("--force", help="Run every stage, also those up to date.")] = False,
) -> None:
    """Train, prune, quantise and render the firmware; plan its memory.

    Prints the RAM and flash budget; a network that does not fit its board ends here.

    Example: sparcl generate examples/split_digits.toml --board microbit
    """
    _show_plan(_options(experiment, board, overrides, seed).project(force=force))


@app.command()
def build(experiment: Experiment, board: BoardName = "native", overrides: Overrides = None, seed: Seed = None) -> None:
    """Generate, then build the firmware with PlatformIO.

    Example: sparcl build examples/split_digits.toml --board microbit
    """
    project = _options(experiment, board, overrides, seed).project()
    _show_plan(project)
    _build(project)


@app.command()
def flash(
    experiment: Experiment,
    board: BoardName = "native",
    port: Port = None,
    overrides: Overrides = None,
    seed: Seed = None,
) -> None:
    """Build and write the firmware.

    An emulated board is started and keeps running; `sparcl stop` stops it.

    Example: sparcl flash examples/split_digits.toml --board microbit --port /media/$USER/MICROBIT
    """
    _flash(_options(experiment, board, overrides, seed).project(), port)


@app.command()
def stream(
    experiment: Experiment,
    board: BoardName = "native",
    port: Port = None,
    resume: Resume = False,
    fresh: Fresh = False,
    plain: Plain = False,
    overrides: Overrides = None,
    seed: Seed = None,
) -> None:
    """Stream the tasks over the serial line; the board learns.

    Example: sparcl stream examples/split_digits.toml --resume
    """
    options = _options(experiment, board, overrides, seed)
    project = options.project()
    _stream(project, _url(project, port, options), resume=resume, fresh=fresh, plain=plain, options=options)


@app.command()
def validate(
    experiment: Experiment,
    board: BoardName = "native",
    port: Port = None,
    bisect: Annotated[
        bool,
        typer.Option(help="After a difference, repeat the session on the board to find the exact step and weight."),
    ] = True,
    plain: Plain = False,
    overrides: Overrides = None,
    seed: Seed = None,
) -> None:
    """Replay the session on the NumPy reference, compare every byte.

    When a state differs and a board can be reached (a running emulator, or --port), the session is repeated
    on it, so that the first wrong step, tensor and element are named. The board forgets what it has learnt.

    Example: sparcl validate examples/split_digits.toml --port /dev/ttyACM0
    """
    options = _options(experiment, board, overrides, seed)
    project = options.project()
    result = _validate(project, _reachable(project, port) if bisect else None, plain=plain)
    _require_exact(result, options)


@app.command()
def report(
    what: Annotated[
        list[str] | None,
        typer.Argument(metavar="EXP.toml | RUN RUN...", help="Experiment file; with --compare the runs."),
    ] = None,
    board: BoardName = "native",
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Set runs side by side: folders with a report.json, or EXPERIMENT/BOARD."),
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="With --compare: the page to write [build/compare.html].")
    ] = None,
    overrides: Overrides = None,
    seed: Seed = None,
) -> None:
    """Write report.json and report.html, or compare runs.

    They tell of the last session; --compare writes a page that sets runs side by side.

    Example: sparcl report examples/split_digits.toml

    \b
      sparcl report --compare split_digits/native split_digits/microbit
      sparcl report --compare old/report.json build/split_digits/native -o a.html
    """
    names = what or []
    if compare:
        if overrides or seed is not None:
            raise UserError("--set and --seed go with an experiment file; --compare takes the runs as they were")
        _compare(names, output)
    elif output is not None:
        raise UserError("--output is for --compare; report.html lies beside the run")
    elif len(names) != 1:
        raise UserError(
            "name one experiment file: `sparcl report EXP.toml --board B`; "
            "or runs to set side by side: `sparcl report --compare A B`"
        )
    else:
        _report(_options(Path(names[0]), board, overrides, seed).project())


@app.command()
def run(
    experiment: Experiment,
    board: BoardName = "native",
    port: Port = None,
    fresh: Fresh = False,
    plain: Plain = False,
    overrides: Overrides = None,
    seed: Seed = None,
) -> None:
    """Everything: generate, build, flash, stream, validate, report.

    An emulated board starts from an erased flash and is stopped at the end. A real board is used only with
    --port, and made to forget what it has learnt only with --fresh.

    Example: sparcl run examples/split_digits.toml --board microbit
    """
    options = _options(experiment, board, overrides, seed)
    from . import view

    view.heading("Generate")
    project = options.project()
    _show_plan(project)
    with _emulated(project, port) as emulator:
        view.heading("Build and flash")
        _flash(project, port)
        url = _url(project, port, options)
        view.heading("Stream")
        _stream(project, url, resume=False, fresh=fresh, plain=plain, options=options)
        view.heading("Validate")
        result = _validate(project, url if emulator is not None else None, plain=plain)
    view.heading("Report")
    _report(project)
    _require_exact(result, options)


@app.command()
def stop(
    experiment: Annotated[
        Path | None, typer.Argument(metavar="[EXP.toml]", help="Only this experiment's boards; default: all.")
    ] = None,
    board: Annotated[str | None, typer.Option("--board", "-b", help="Only this board; default: all.")] = None,
) -> None:
    """Stop the emulated boards that run.

    `sparcl flash` and `pio run -t upload` start them. What they have learned stays in their flash;
    `sparcl stream --resume` continues. A real board is not touched.

    Example: sparcl stop examples/split_digits.toml --board microbit
    """
    from sparcl_mcu.generator.boards import load_board
    from sparcl_mcu.generator.config import load

    from . import view
    from .emulator import running

    name = load(experiment).experiment.name if experiment is not None else None
    wanted = load_board(board).name if board is not None else None
    found = [emulator for emulator in running(build_folder(), name) if wanted in (None, emulator.board)]
    for emulator in found:
        emulator.stop()
        view.say(f"stopped {emulator.board} ({emulator.state_dir})")
    if not found:
        view.say("no emulated board runs")


@app.command()
def twin(
    experiment: Experiment,
    seeds: Annotated[int, typer.Option("--seeds", min=1, max=100, help="Seeds, from the experiment's on.")] = 5,
    overrides: Overrides = None,
    seed: Seed = None,
) -> None:
    """Learn in fixed point and in float32: what fixed point costs.

    The native board and TensorFlow learn with the same algorithm, from the same initial models, and draw the same
    random numbers for what they choose; what still differs of a single seed is mostly chance, the means count.

    Example: sparcl twin examples/cnn_mnist.toml --seeds 5
    """
    from sparcl_mcu.generator.config import load

    from . import twin as twins
    from . import view

    first = load(experiment, tuple(overrides or ()), seed).experiment.seed
    projects = [_options(experiment, "native", overrides, s).project() for s in range(first, first + seeds)]
    pairs = twins.compare(projects, _learn_quietly, view.say)
    view.console.print(view.twin_table(pairs, twins.summary(pairs)))
    view.say(f"\n{twins.save(pairs, projects[0].folder.parent)}")


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(metavar="SWEEP.toml", help="Sweep file; examples/sweeps has some.")],
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="Seeds in place of the file's number.")] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="TEXT", help="Methods with this in their name; may be repeated."),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option("--scheduler", metavar="tls://HOST:PORT", help="Dask scheduler; default: this computer."),
    ] = None,
    trust_network: Annotated[
        bool,
        typer.Option("--trust-network", help="Use a scheduler elsewhere without encryption: see docs/security.md."),
    ] = False,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, help="Runs at a time; default: one a core.")
    ] = None,
    plain: Plain = False,
    overrides: Overrides = None,
) -> None:
    """Compare methods over seeds, in fixed point and in float32.

    Whatever is done is kept until a setting or the code it depends on changes: after Ctrl-C the same command goes on,
    and more seeds or methods only do what is new. The table has means over the seeds and, counted on an emulated board,
    instructions, multiply-accumulates and memory. docs/results.md is made by this command.

    \b
      sparcl sweep examples/sweeps/split_mnist.toml          everything
      sparcl sweep SWEEP.toml --only SparCL --seeds 3
      sparcl sweep SWEEP.toml --set method.buffer=500
      sparcl sweep SWEEP.toml --set data.evaluate=validation to choose settings
      sparcl sweep SWEEP.toml --scheduler tls://HOST:8786    on a Dask cluster

    Writes build/sweeps/NAME/runs.csv (one row a run) and table.md.
    """
    _require_emulators()
    from sparcl_mcu.benchmarks.sweep import cluster, plan
    from sparcl_mcu.benchmarks.sweep import sweep as sweeps

    from . import view

    if scheduler is not None and jobs is not None:
        raise UserError("--jobs is for this computer: a cluster does as many at a time as it has workers")
    if scheduler is not None:
        cluster.require_trust(scheduler, network=trust_network)
    wanted = plan.load(file, tuple(overrides or ()), seeds, tuple(only or ()))
    try:
        outcome = sweeps.run(wanted, scheduler, jobs, plain=plain)
    except KeyboardInterrupt:
        view.warn("interrupted; what is done is kept. The same command goes on")
        raise
    sweeps.show(outcome)
    view.say("\n".join(str(path) for path in outcome.save()))
    if outcome.failed:
        raise sweeps.failure(outcome)


@app.command()
def bench(
    experiment: Annotated[
        Path | None,
        typer.Argument(metavar="[EXP.toml]", help="Count this experiment's first epoch, by function and layer."),
    ] = None,
    board: Annotated[
        list[str] | None,
        typer.Option("--board", "-b", help="Emulated board; may be repeated. Default: all of them."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Only what CI checks: some minutes.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Fail when a figure is more than 2 % above benchmarks/baseline.json.")
    ] = False,
    update: Annotated[
        bool, typer.Option("--update-baseline", help="Make these figures the ones to compare with.")
    ] = False,
    overrides: Overrides = None,
    seed: Seed = None,
) -> None:
    """Count instructions on the emulated boards.

    By phase, layer and function, for dense and sparse networks. Counts are exact and repeatable, however busy this
    computer is: a growth of 2 % is a change of the code. Accuracies beside them are whole runs on the native board.
    Whatever was measured is kept until a source or a setting changes; an interrupted bench continues where it was.

    \b
      sparcl bench --quick                 the important ones
      sparcl bench --quick --check         have they grown?
      sparcl bench --board ast1030_evb     everything on one board
      sparcl bench EXP.toml -b microbit    where one experiment spends them

    Writes build/bench/bench.json (docs/bench-schema.md) and build/bench/plot.svg; of an experiment profile.json
    into its own folder, for the report.
    """
    _require_emulators()
    from sparcl_mcu.benchmarks import baseline, profile
    from sparcl_mcu.benchmarks import bench as benches
    from sparcl_mcu.benchmarks import view as bench_view

    from . import view

    if experiment is not None:
        for name in board or [benches.emulated()[0]]:
            project = _options(experiment, name, overrides, seed).project()
            found = profile.measure(project, view.say)
            view.say(
                f"{project.config.experiment.name} on {name}: {found.instructions:,.1f} instructions a training step, "
                f"mean of {found.steps}"
            )
            view.console.print(profile.table(found))
            view.say(f"\n{found.save(project.folder)}: `sparcl report` shows it")
        return
    if overrides:
        raise UserError("--set needs an experiment: the cases of the bench have settings of their own")
    done = benches.run(tuple(board or ()), quick=quick, seed=seed or 0, say=view.say)
    path = benches.save(done)
    bench_view.show(done)
    plot = bench_view.plot(done, path.parent)
    view.say(f"{path}" + (f"\n{plot}" if plot else ""))
    if update:
        baseline.update(done)
        view.say(f"{baseline.PATH} updated")
    if check:
        view.say(baseline.require(done))


# -- stages -------------------------------------------------------------------------------------------


def _options(experiment: Path, board: str, overrides: list[str] | None, seed: int | None) -> _Options:
    return _Options(experiment, board, tuple(overrides or ()), seed)


def _show_plan(project: Project) -> None:
    from sparcl_mcu.generator.plan import table

    from . import view

    view.console.print(table(project.plan))


def _build(project: Project) -> None:
    from . import firmware, view

    view.say(f"built {firmware.build(project)}")


def _flash(project: Project, port: str | None) -> None:
    from . import view

    url = _upload(project, port)
    what = "emulated board runs at" if port is None else "firmware written to"
    view.say(f"{what} {url}")


def _upload(project: Project, port: str | None) -> str:
    """Build and write the firmware; where to, or where the emulator runs."""
    from . import firmware

    url = port
    if url is None:
        emulator = _emulator(project)
        if emulator is None:
            _require_emulators()
            raise UserError(
                f"the board {project.board.name} has no emulator: name the port of a real one with --port "
                "(`pio device list` shows them)"
            )
        from .emulator import free_url

        url = emulator.url or free_url()
    firmware.build(project, ["-t", "upload", "--upload-port", url])
    return url


def _stream(project: Project, url: str, *, resume: bool, fresh: bool, plain: bool, options: _Options) -> None:
    from . import stream as streaming
    from . import view

    if resume and fresh:
        raise UserError("--resume and --fresh exclude each other: go on, or start anew?")
    observer = view.observer(plain=plain)
    try:
        result = streaming.stream(
            project,
            url,
            resume=resume,
            fresh=fresh,
            observer=observer,
            baud=project.board.link.baud,
            flash=f"sparcl flash {options.arguments}",
        )
    except KeyboardInterrupt:
        view.warn(f"interrupted; what was recorded is kept. Go on with: sparcl stream {options.arguments} --resume")
        raise
    view.say(
        f"the board has learnt all tasks: {result.steps} steps in {result.wall_seconds:.1f} s, "
        f"state digest {result.state_digest:08x}"
    )


def _learn_quietly(project: Project) -> StreamResult:
    """Render, build and teach the project on its emulated board, with no live progress."""
    from sparcl_mcu.generator.pipeline import write_sources

    from . import stream as streaming

    write_sources(project)
    with _emulated(project, None):
        return streaming.stream(project, _upload(project, None))


def _validate(project: Project, url: str | None, *, plain: bool) -> ValidationResult:
    """Compare, bisect when something differs and a board is there, and keep the result."""
    from . import view
    from .stream import RESULT as STREAM_RESULT
    from .stream import StreamResult
    from .validate import RESULT, validate

    steps = StreamResult.load(project.folder / STREAM_RESULT).steps
    with view.comparing(steps, plain=plain) as progress:
        bar = progress.add_task("", total=steps or None)
        result, suspects = validate(project, lambda done: progress.update(bar, completed=done))
    if suspects is not None and url is not None:
        _bisect(project, url, suspects, result)
    result.save(project.folder / RESULT)
    if result.bit_exact:
        view.say(
            f"bit-exact with the NumPy reference: {result.steps_compared} steps, "
            f"{result.predictions_compared} predictions, {result.digests_compared} state digests"
        )
    return result


def _bisect(project: Project, url: str, suspects: Suspects, result: ValidationResult) -> None:
    from . import view
    from .validate import bisect

    view.warn(f"{result.first}\nrepeating the session on the board to find the first wrong step")
    try:
        result.divergence, result.differing = bisect(project, url, suspects, baud=project.board.link.baud)
    except SparclError as error:
        view.warn(f"that did not find it: {error}")


def _require_exact(result: ValidationResult, options: _Options) -> None:
    from .validate import explain

    if not result.bit_exact:
        raise ValidationFailed(explain(result, options.arguments))


def _report(project: Project) -> None:
    from . import report as reports
    from . import view

    made = reports.build(project)
    json_path, html_path = reports.write(made, project)
    view.console.print(view.summary_table(made))
    view.say(f"\n{json_path}\n{html_path}")


def _compare(names: list[str], output: Path | None) -> None:
    if len(names) < 2:
        raise UserError(
            "name at least two runs, each a folder with a report.json or EXPERIMENT/BOARD: "
            "`sparcl report --compare split_digits/native split_digits/microbit`"
        )
    from . import view
    from .report import compare as comparing

    runs = comparing.load(names, build_folder())
    path = output or build_folder() / comparing.HTML
    try:
        path.write_text(comparing.html(runs), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): name another file with --output") from error
    for run in runs:
        view.say(f"{run.letter}: {run.report.experiment} on {run.report.board} ({run.source})")
    view.say("")
    settings = comparing.differing(runs)
    if settings:
        view.console.print(comparing.table(runs, settings, "Settings that differ"))
        view.say("")
    view.console.print(comparing.table(runs, comparing.figures_side_by_side(runs), "Key figures (against A)"))
    view.say(f"\n{path}")


# -- where the board is -------------------------------------------------------------------------------


def _emulator(project: Project) -> Emulator | None:
    """The project's emulated board; None for a board without emulator, and where nothing is emulated."""
    from .emulator import AVAILABLE, Emulator

    if project.board.emulator is None or project.board.emulator.kind == "none" or not AVAILABLE:
        return None

    name = project.board.name
    return Emulator(project.folder / "emulator" / name, name)


def _require_emulators() -> None:
    """Raise UserError on a system that has none."""
    from .emulator import AVAILABLE, NEEDS_LINUX

    if not AVAILABLE:
        raise UserError(NEEDS_LINUX)


@contextmanager
def _emulated(project: Project, port: str | None) -> Iterator[Emulator | None]:
    """The emulator a run may use, stopped and with nothing in its flash, stopped again at the end; None with a port."""
    emulator = _emulator(project) if port is None else None
    if emulator is not None:
        emulator.stop()
        emulator.flash_path.unlink(missing_ok=True)
    try:
        yield emulator
    finally:
        if emulator is not None:
            emulator.stop()


def _url(project: Project, port: str | None, options: _Options) -> str:
    """Where to reach the board; UserError when its emulator was never started."""
    url = _reachable(project, port)
    if url is not None:
        return url
    emulator = _emulator(project)
    if emulator is not None and emulator.image_path.is_file():
        # Stopped or killed since: the same image and the same flash, as when power comes back.
        return emulator.restart()
    _require_emulators()
    raise UserError(
        f"no board to talk to: start the emulated one with `sparcl flash {options.arguments}`, "
        "or name a real one's port with --port"
    )


def _reachable(project: Project, port: str | None) -> str | None:
    """The port given, else that of a running emulator."""
    if port is not None:
        return port
    emulator = _emulator(project)
    return emulator.url if emulator is not None and emulator.is_running() else None


# -- errors -------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `sparcl`; exits with the status the documentation promises."""
    with output.guarded():
        status = call(lambda: _dispatch(arguments))
    sys.exit(status)


def _dispatch(arguments: list[str] | None) -> int:
    command = typer.main.get_command(app)
    status: Any = command.main(arguments, prog_name="sparcl", standalone_mode=False)
    return status if isinstance(status, int) else 0


def call(command: Callable[[], int]) -> int:
    """Run a command; its exit status, with every error said on stderr in the user's terms."""
    try:
        return _settled(command)
    except output.OutputLost as error:
        output.discard()
        if error.reader_gone:
            return output.PIPE_STATUS
        _say(str(error))
        return UserError.exit_code


def _settled(command: Callable[[], int]) -> int:
    """The same, but what becomes of the output: all of it has arrived when this returns."""
    status = _status(command)
    output.settle()
    return status


def _status(command: Callable[[], int]) -> int:
    try:
        with _claims:
            return command()
    except output.OutputLost:
        raise
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except SparclError as error:
        _show_plan_of(error)
        _say(str(error))
        return error.exit_code
    except MemoryError as error:  # nothing can be imported any more
        _say(f"not enough memory ({error!s}): make the network, the data or the batch smaller".replace(" ()", ""))
        return UserError.exit_code
    except Exception as error:
        return _usage_error(error) or _unexpected(error)


def _show_plan_of(error: SparclError) -> None:
    """Show where the memory would go when a model does not fit its board."""
    from sparcl_mcu.generator.plan import DoesNotFit, table

    from . import view

    if isinstance(error, DoesNotFit):
        view.console.print(table(error.plan))


def _usage_error(error: Exception) -> int:
    """Show a mistake on the command line; its exit status, 0 when the error is another one.

    Told by what it can do, because newer versions of Typer raise classes of their own copy of Click.
    """
    show, status = getattr(error, "show", None), getattr(error, "exit_code", None)
    if not callable(show) or not isinstance(status, int):
        return 0
    show()
    return status


_NOT_OURS = files.FULL | {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EBUSY, errno.EMFILE, errno.ENFILE),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO, errno.EINVAL),
}
"""Errors of a file that are not a bug of ours."""


def _unexpected(error: Exception) -> int:
    from .emulator import EmulatorError

    if isinstance(error, EmulatorError):
        _say(str(error))
        return BoardError.exit_code
    if isinstance(error, OSError) and error.errno in _NOT_OURS and error.filename is not None:
        place = str(error.filename)
        inside = place.startswith(str(build_folder()))
        hint = "; SPARCL_BUILD=FOLDER puts what is built into another folder" if inside else ""
        _say(f"{place}: {error.strerror}{hint}")
        return UserError.exit_code
    if isinstance(error, OSError) and error.errno in files.FULL:
        _say(f"{error.strerror}: {_room()}; SPARCL_BUILD=FOLDER puts what is built into another folder")
        return UserError.exit_code
    text = "".join(traceback.format_exception(error))
    where = _logged(text, (_log.folder or build_folder()) / "error.log")
    where = where or _logged(text, Path(tempfile.gettempdir()) / "sparcl-error.log")
    what = f"report it with {where}" if where else f"report it with this:\n{text}"
    _say(f"unexpected {type(error).__name__}: {error}\nThis is a bug of sparcl-mcu; {what}")
    return 1


def _room() -> str:
    """What is free where we write."""
    places = {"the build folder": build_folder(), "the folder for temporary files": Path(tempfile.gettempdir())}
    free = {name: shutil.disk_usage(path).free for name, path in places.items() if path.is_dir()}
    return ", ".join(f"{name} ({places[name]}) has {shown(size)} free" for name, size in free.items())


def _logged(text: str, path: Path) -> Path | None:
    """The file that now holds the text; None if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="replace")
    except OSError:
        return None
    return path


_LONGEST = 8000
"""Characters of a message."""


def _say(text: str) -> None:
    if len(text) > _LONGEST:  # what is wrong in a file may be all of it
        text = f"{text[: _LONGEST - 500]}\n...\n{text[-500:]}"
    # Names in it may come from a stranger's file: no control characters.
    text = "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
    print(f"sparcl: {text}", file=sys.stderr)


if __name__ == "__main__":
    main()
