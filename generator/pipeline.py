# SPDX-License-Identifier: Apache-2.0
"""The stages from an experiment file to rendered firmware, in order.

    config -> data -> train (and prune) -> quantise -> plan -> render

Each stage is a function of the artefacts before it.  Its result lies in the
build folder, numbered; a stage is skipped when the fingerprint of its inputs is
the one its result was made from.  What does not depend on the board is made
once for all boards of an experiment.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from sparcl_mcu.generator import (
    architecture,
    config,
    data,
    files,
    formats,
    keras_model,
    layout,
    lock,
    network,
    plan,
    proof,
    prune,
    quantise,
    rates,
    render,
    shared_key,
    store,
    train,
)
from sparcl_mcu.generator.config import Config, resolve
from sparcl_mcu.generator.plan import Plan
from sparcl_mcu.spec import boards, types
from sparcl_mcu.spec.boards import Board
from sparcl_mcu.spec.errors import UserError
from sparcl_mcu.spec.paths import build_folder
from sparcl_mcu.spec.types import Dataset, FloatModel, Model

T = TypeVar("T")
Progress = Callable[[str], None]
Claim = Callable[[Path], object]


@dataclass(frozen=True)
class Project:
    """One experiment on one board, ready to be built."""

    folder: Path
    config: Config
    dataset: Dataset
    float_model: FloatModel
    model: Model
    board: Board
    plan: Plan

    @property
    def generated(self) -> Path:
        """The rendered C sources."""
        return self.folder / "generated"

    @property
    def image(self) -> Path:
        """The built firmware, once there is one."""
        return self.folder / "pio" / self.board.name / ("firmware" if self.board.core == "host" else "firmware.elf")


def generate(
    experiment: Path,
    board: str,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    progress: Progress | None = None,
    force: bool = False,
    claim: Claim | None = None,
) -> Project:
    """Read an experiment file and make its project.

    ``claim`` is given the project's folder before anything is written there, to keep others out of it.
    Raises ``UserError`` for a bad experiment file, an unknown board, or a model
    that does not fit the board; nothing is rendered then.
    """
    facts = boards.load_board(board)
    return make(config.load(experiment, overrides, seed), facts, progress, force, claim)


def make(
    settings: Config,
    facts: Board,
    progress: Progress | None = None,
    force: bool = False,
    claim: Claim | None = None,
) -> Project:
    """Runs all stages whose inputs have changed (``force``: all of them); the rest as `generate`.

    What the boards of an experiment share is made by one process at a time; another one waits.
    Raises ``UserError`` for data or a model that cannot be used, or does not fit the board.
    """
    say = progress or (lambda _text: None)
    shared_key.load(settings.link.key)  # before the work of minutes
    shared = build_folder() / settings.experiment.name
    folder = shared / facts.name
    try:
        shared.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{shared} cannot be made ({error.strerror}): is $SPARCL_BUILD a folder?") from None
    _require_no_way_out(shared, build_folder() / "current")
    if settings.link.key is not None:
        shared_key.keep_private(folder)
    if claim is not None:
        folder.mkdir(exist_ok=True)
        claim(folder)
    with lock.in_turn(shared, say):
        return _make(settings, facts, shared, say, force)


def _make(settings: Config, facts: Board, shared: Path, say: Progress, force: bool) -> Project:
    folder = shared / facts.name
    cache = _Cache(shared, force)
    files.write(shared / "01-config.json", settings.model_dump_json(indent=2) + "\n")
    dataset = cache.stage(
        "02-data",
        Dataset,
        _fingerprint(settings.data, settings.tasks, settings.initial, settings.experiment, data.fingerprint(settings)),
        lambda: data.load(settings),
        lambda: say(f"loading {settings.data.set}"),
    )
    float_model = cache.stage(
        "03-initial",
        FloatModel,
        _fingerprint(
            *(settings.model, settings.initial, settings.sparsity, settings.dgm, settings.experiment),
            *(store.digest(dataset), keras_model.fingerprint(settings)),
            *(train, architecture, keras_model, network, prune),
        ),
        lambda: train.train(settings, dataset),
        lambda: say(_training(settings)),
    )
    model = cache.stage(
        "04-quantised",
        Model,
        _fingerprint(
            *(settings, store.digest(dataset), store.digest(float_model)),
            *(quantise, formats, layout, rates, proof, network, prune, types),
        ),
        lambda: quantise.quantise(settings, dataset, float_model),
        lambda: say("quantising"),
    )
    files.write(shared / "04-overflow-proof.txt", proof.proof_text(proof.overflow_proof(model)))
    memory = plan.plan(model, facts, keyed=settings.link.key is not None)
    folder.mkdir(parents=True, exist_ok=True)
    files.write(folder / "05-plan.json", _plan_json(memory, model))
    plan.check(memory)
    project = Project(folder, settings, dataset, float_model, model, facts, memory)
    write_sources(project)
    return project


def _require_no_way_out(*folders: Path) -> None:
    """Raise ``UserError`` where a symbolic link would have us write outside the build folder."""
    inside = build_folder().resolve()
    for path in (path for folder in folders for path in (folder, *folder.rglob("*"))):
        try:
            kind = stat.S_IFMT(path.lstat().st_mode)
        except FileNotFoundError:
            continue
        if kind in (stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK):
            raise UserError(f"{path} is a named pipe or a device: delete it, nothing is read from it")
        if kind == stat.S_IFLNK and not resolve(path).is_relative_to(inside):
            raise UserError(f"{path} is a link out of {inside}: delete it, nothing is written through it")


class _Cache:
    """Artefacts on disk with the fingerprint of what they were made from."""

    def __init__(self, folder: Path, force: bool) -> None:
        self._folder = folder
        self._force = force

    def stage(self, name: str, kind: type[T], inputs: str, make: Callable[[], T], announce: Callable[[], None]) -> T:
        path = self._folder / name
        mark = self._folder / f"{name}.inputs"
        if not self._force and mark.exists() and mark.read_bytes() == inputs.encode():
            # A lost or damaged artefact is rebuilt.
            with suppress(UserError):
                return store.load(path, kind)
        announce()
        mark.unlink(missing_ok=True)
        result = make()
        store.save(path, result)
        files.write(mark, inputs)
        return result


def _training(settings: Config) -> str:
    begin = "importing" if settings.model.imported else "initialising"
    what = {"none": begin, "first_task": "training on the first task", "base": "training on the base classes"}
    return f"{what[settings.initial_train]} and pruning the initial model"


def _fingerprint(*parts: object) -> str:
    """Hash of settings, digests of artefacts, and the source of the modules that make the result."""
    state = hashlib.sha256()
    for part in parts:
        if isinstance(part, bytes):
            state.update(part)
        elif isinstance(part, BaseModel):
            state.update(part.model_dump_json().encode())
        else:
            source = getattr(part, "__file__", None)
            assert isinstance(source, str)
            state.update(Path(source).read_bytes())
        state.update(b"|")
    return state.hexdigest()


def _plan_json(memory: Plan, model: Model) -> str:
    document = asdict(memory) | {"regions": [asdict(region) for region in types.regions(model)]}
    return json.dumps(document, indent=2) + "\n"


def write_sources(project: Project) -> None:
    """Render the sources; files that do not change are left alone, so that builds stay incremental."""
    target = project.generated
    target.mkdir(parents=True, exist_ok=True)
    sources = render.render(project.model, project.board, shared_key.load(project.config.link.key))
    for stray in target.iterdir():
        if stray.name not in sources:
            shutil.rmtree(stray) if stray.is_dir() and not stray.is_symlink() else stray.unlink()
    for name, text in sources.items():
        path = target / name
        secret = name == render.KEY_FILE
        if not path.exists() or path.read_bytes() != text.encode() or (secret and path.stat().st_mode & 0o077):
            path.unlink(missing_ok=True)  # with it the permissions it came with
            path.touch(mode=0o600 if secret else 0o666)
            files.write(path, text)  # with the same line ends everywhere
    _point_current(project)


def _point_current(project: Project) -> None:
    """``build/current/<board>``: what a plain ``pio run -e <board>`` builds.

    A link, or a file that names the folder where the system allows no links.
    """
    link = build_folder() / "current" / project.board.name
    link.parent.mkdir(parents=True, exist_ok=True)
    fresh = link.with_name(f".{link.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    target = os.path.relpath(project.generated, link.parent)
    try:
        fresh.symlink_to(target)
    except OSError:
        fresh.write_text(target, encoding="utf-8")
    fresh.replace(link)
