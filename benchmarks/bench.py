# SPDX-License-Identifier: Apache-2.0
"""Runs the cases and writes what they show: bench.json and plot.svg."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path

from sparcl_mcu import generator
from sparcl_mcu.generator import files, lock
from sparcl_mcu.spec import boards
from sparcl_mcu.spec.errors import BoardError, SparclError, UserError
from sparcl_mcu.spec.paths import build_folder

from . import host, measure, session, targets
from .cases import MAIN, Case, Mode, cases, sparse
from .result import Bench, CaseResult

JSON = "bench.json"
Say = Callable[[str], None]


def emulated() -> tuple[str, ...]:
    """The boards whose emulator counts instructions, the board of the targets first."""
    names = [b.name for b in boards.boards() if b.emulator is not None and b.emulator.kind == "qemu"]
    return tuple(sorted(names, key=lambda name: name != MAIN))


def run(chosen: Sequence[str], *, quick: bool, seed: int, say: Say) -> Bench:
    """Measure on ``chosen`` boards (none: all emulated ones), as many cases at a time as there are processors.

    Raises UserError for a board that cannot be counted, and the first error of
    a case; what was measured until then is kept and not measured again.
    """
    known = emulated()
    for name in chosen:
        if name not in known:
            raise UserError(f"no emulator counts the instructions of {name!r}; it does for {', '.join(known)}")
    folder = build_folder() / "bench"
    wanted = cases(tuple(chosen) or known, quick)
    session.prepare(sorted({case.board for case in wanted}))
    folder.mkdir(parents=True, exist_ok=True)
    with lock.alone(folder), session.projects_in(folder / "projects"):
        results = _all(wanted, folder / "cases", seed, say)
        times = _host_times(wanted, seed, say) if not quick and MAIN in (chosen or known) else None
    done = _with_accuracies(results)
    found = targets.Found({case.name: case for case in done}, times)
    return Bench(
        tool_version=generator.__version__,
        compiler=_version("arm-none-eabi-gcc"),
        emulator=_version("qemu-system-arm"),
        seed=seed,
        quick=quick,
        cases=done,
        targets=targets.rows(found),
        growth=targets.growth(done),
    )


def save(bench: Bench) -> Path:
    """Write build/bench/bench.json; its path."""
    path = build_folder() / "bench" / JSON
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, bench.model_dump_json(indent=1) + "\n")
    return path


def _all(wanted: Sequence[Case], kept: Path, seed: int, say: Say) -> list[CaseResult]:
    """The results in the order of the cases."""
    results: dict[str, CaseResult] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        running: dict[Future[CaseResult], Case] = {pool.submit(measure.run, c, kept, seed): c for c in wanted}
        try:
            for number, future in enumerate(as_completed(running), 1):
                case = running[future]
                try:
                    results[case.name] = future.result()
                except SparclError as error:
                    kind = UserError if isinstance(error, UserError) else BoardError
                    raise kind(f"{case.name}: {error}") from error
                say(f"[{number}/{len(wanted)}] {summary(results[case.name])}")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [results[case.name] for case in wanted]


def summary(case: CaseResult) -> str:
    """A line for the log."""
    if not case.fits:
        return f"{case.name}: {case.why}"
    if case.instructions is None:
        return f"{case.name}: {case.class_il:.1f} % class-IL"
    return f"{case.name}: {case.instructions.step:,.0f} instructions a step"


def _host_times(wanted: Sequence[Case], seed: int, say: Say) -> host.HostTimes | None:
    case = next((c for c in wanted if c.network == sparse(0.90, 1) and c.mode is Mode.STEP), None)
    if case is None:
        return None
    say("timing the host's side")
    return host.measure(case, seed)


def _with_accuracies(results: Sequence[CaseResult]) -> list[CaseResult]:
    """The accuracy of a network beside each of its other cases; that of `dense` is that of `dense-skip`."""
    accuracy = {case.network: case.class_il for case in results if case.mode == Mode.ACCURACY}
    for network in [name for name in accuracy if name.endswith("dense-skip")]:
        accuracy.setdefault(network.removesuffix("-skip"), accuracy[network])
    return [case.model_copy(update={"class_il": accuracy.get(case.network)}) for case in results]


def _version(program: str) -> str:
    """The first line a program prints of itself."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(
            f"{program} does not run ({error}): the bench needs the cross compiler and the emulator"
        ) from error
    return done.stdout.splitlines()[0]
