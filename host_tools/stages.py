# SPDX-License-Identifier: Apache-2.0
"""The stages of a run as the commands call them: each says on the console what it has done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sparcl_mcu.spec.errors import SparclError, UserError, ValidationFailed

if TYPE_CHECKING:
    from sparcl_mcu.generator.pipeline import Project

    from .emulator import Emulator
    from .options import Options
    from .stream import StreamResult
    from .validate import Suspects, ValidationResult


def show_plan(project: Project) -> None:
    from sparcl_mcu.generator.plan import table

    from . import view

    view.console.print(table(project.plan))


def build(project: Project) -> None:
    from . import firmware, view

    view.say(f"built {firmware.build(project)}")


def flash(project: Project, port: str | None) -> None:
    from . import view

    url = upload(project, port)
    what = "emulated board runs at" if port is None else "firmware written to"
    view.say(f"{what} {url}")


def upload(project: Project, port: str | None) -> str:
    """Build and write the firmware; where to, or where the emulator runs."""
    from . import firmware

    url = port
    if url is None:
        emulator = emulator_of(project)
        if emulator is None:
            require_emulators()
            raise UserError(
                f"the board {project.board.name} has no emulator; connect a real one and pass its serial port with "
                "--port (`pio device list` shows them)"
            )
        from .emulator import free_url

        url = emulator.url or free_url()
    firmware.build(project, ["-t", "upload", "--upload-port", url])
    return url


def stream(project: Project, url: str, *, resume: bool, fresh: bool, plain: bool, options: Options) -> None:
    from . import stream as streaming
    from . import view

    if resume and fresh:
        raise UserError("--resume and --fresh cannot be used together")
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
        view.warn(f"Interrupted. The recording is saved; continue with `sparcl stream {options.arguments} --resume`.")
        raise
    view.say(
        f"the board has learned all tasks: {result.steps} steps in {result.wall_seconds:.1f} s, "
        f"state digest {result.state_digest:08x}"
    )


def learn_quietly(project: Project) -> StreamResult:
    """Render, build and teach the project on its emulated board, with no live progress."""
    from sparcl_mcu.generator.pipeline import write_sources

    from . import stream as streaming

    write_sources(project)
    with emulated(project, None):
        return streaming.stream(project, upload(project, None))


def validate(project: Project, url: str | None, *, plain: bool) -> ValidationResult:
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
        view.warn(f"could not locate the first wrong step: {error}")


def require_exact(result: ValidationResult, options: Options) -> None:
    from .validate import explain

    if not result.bit_exact:
        raise ValidationFailed(explain(result, options.arguments))


def report(project: Project) -> None:
    from . import report as reports
    from . import view

    made = reports.build(project)
    json_path, html_path = reports.write(made, project)
    view.console.print(view.summary_table(made))
    view.say(f"\n{json_path}\n{html_path}")


# -- where the board is -------------------------------------------------------------------------------


def emulator_of(project: Project) -> Emulator | None:
    """The project's emulated board; None for a board without emulator, and where nothing is emulated."""
    from .emulator import AVAILABLE, Emulator

    if project.board.emulator is None or project.board.emulator.kind == "none" or not AVAILABLE:
        return None

    name = project.board.name
    return Emulator(project.folder / "emulator" / name, name)


def require_emulators() -> None:
    """Raise UserError on a system that has none."""
    from .emulator import AVAILABLE, NEEDS_LINUX

    if not AVAILABLE:
        raise UserError(NEEDS_LINUX)


@contextmanager
def emulated(project: Project, port: str | None) -> Iterator[Emulator | None]:
    """The emulator a run may use, stopped and with nothing in its flash, stopped again at the end; None with a port."""
    emulator = emulator_of(project) if port is None else None
    if emulator is not None:
        emulator.stop()
        emulator.flash_path.unlink(missing_ok=True)
    try:
        yield emulator
    finally:
        if emulator is not None:
            emulator.stop()


def url(project: Project, port: str | None, options: Options) -> str:
    """Where to reach the board; UserError when its emulator was never started."""
    url = reachable(project, port)
    if url is not None:
        return url
    emulator = emulator_of(project)
    if emulator is not None and emulator.image_path.is_file():
        # Stopped or killed in the meantime: restart with the same image and flash, as after a power failure.
        return emulator.restart()
    require_emulators()
    raise UserError(
        f"no board to talk to: start the emulated one with `sparcl flash {options.arguments}`, "
        "or name a real one's port with --port"
    )


def reachable(project: Project, port: str | None) -> str | None:
    """The port given, else that of a running emulator."""
    if port is not None:
        return port
    emulator = emulator_of(project)
    return emulator.url if emulator is not None and emulator.is_running() else None
