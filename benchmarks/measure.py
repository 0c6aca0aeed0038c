# SPDX-License-Identifier: Apache-2.0
"""One case: generate, build, run on the emulated board, and reduce to figures.

What was measured is kept, by the hash of everything it depends on.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from elftools.elf.elffile import ELFFile
from pydantic import ValidationError

from sparcl_mcu.generator import files, store
from sparcl_mcu.generator.pipeline import Project, generate
from sparcl_mcu.generator.plan import DoesNotFit
from sparcl_mcu.generator.sizes import LARGEST_RESULT
from sparcl_mcu.host_tools import firmware, metrics
from sparcl_mcu.host_tools.image import measure as measure_image
from sparcl_mcu.host_tools.protocol import Statistics
from sparcl_mcu.spec.boards import Board
from sparcl_mcu.spec.paths import ROOT
from sparcl_mcu.spec.types import Op

from . import cycles, session, sources
from .cases import Case, Mode
from .count import Counts, Program, by_layer
from .loops import Executions, inner_loops, macs
from .result import CaseResult, Cycles, Instructions, Phases

if TYPE_CHECKING:
    from .session import Session, Work

_generating = threading.Lock()

PREDICTIONS = 50
_MEASURED = (
    "spec",
    "reference",
    "firmware",
    "templates",
    "generator",
    "platforms",
    "host_tools/emulator.py",
    "platformio.ini",
)
_MEASURING = ("count", "cycles", "loops", "measure", "result", "session")
_FORWARD = re.compile(r"l\d+_forward$|scl_net_forward$")
_NETWORK = re.compile(
    r"l\d+_forward$|scl_(?:net|conv|max|avg|sparse|dense|activate|pad|add|alive|guard|latent)|mem(?:cpy|set)$"
    r"|scl_loss_predict$|scl_train_predict$|predict$"
)
"""What a prediction runs; the others are the serial line's."""


def run(case: Case, folder: Path, seed: int) -> CaseResult:
    """The figures of ``case``: those kept in ``folder``, or measured now.

    ``SPARCL_BUILD`` says where the project is made.  Raises BoardError when the
    board fails, UserError for a broken experiment.
    """
    if case.mode is Mode.ACCURACY:
        project = _generate(case, seed)
        return _kept(folder / f"{_content(project)}.json", lambda: _accuracy(case, project))
    return _kept(folder / f"{_key(case, seed)}.json", lambda: _costs(case, seed))


def _kept(path: Path, make: Callable[[], CaseResult]) -> CaseResult:
    with suppress(OSError, ValidationError):  # a corrupt file is not a result
        return CaseResult.model_validate_json(files.read(path, LARGEST_RESULT))
    result = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".new")
    files.write(aside, result.model_dump_json(indent=1) + "\n")
    aside.replace(path)
    return result


def _generate(case: Case, seed: int) -> Project:
    name = re.sub(r"\W", "_", f"bench_{case.network}_{case.mode}")
    with _generating:  # boards share what does not depend on them, and TensorFlow's seed is global
        return generate(case.experiment, case.board, (*case.overrides, f"experiment.name={name}"), seed)


def _key(case: Case, seed: int) -> str:
    """Hash of everything that costs depend on."""
    state = hashlib.sha256(repr((case.network, case.mode, case.board, case.overrides, case.defines, seed)).encode())
    state.update(case.experiment.read_bytes())
    state.update(sources.digest((*_MEASURED, *(f"benchmarks/{name}.py" for name in _MEASURING))))
    return state.hexdigest()[:24]


def _content(project: Project) -> str:
    """Hash of what an accuracy depends on: model, samples and the rules of learning, which tests hold the code to."""
    state = hashlib.sha256(project.model.model_hash + store.digest(project.dataset))
    for name in ("numerics.md", "algorithm.md"):
        state.update((ROOT / "docs" / "spec" / name).read_bytes())
    return f"accuracy-{state.hexdigest()[:24]}"


def _empty(case: Case, why: str | None) -> CaseResult:
    return CaseResult(
        name=case.name,
        board=case.board,
        network=case.network,
        mode=str(case.mode),
        fits=why is None,
        why=why,
        non_zeros=None,
        class_il=None,
        instructions=None,
        cycles=None,
        ram=None,
        flash=None,
        stack_used=None,
    )


def _accuracy(case: Case, project: Project) -> CaseResult:
    """Learn all tasks on the native board."""
    firmware.build(project, defines=case.defines)
    result = session.learn(project)
    figures = {"non_zeros": non_zeros(project), "class_il": metrics.average_accuracy(result.matrix())}
    return _empty(case, None).model_copy(update=figures)


def _costs(case: Case, seed: int) -> CaseResult:
    try:
        project = _generate(case, seed)
    except DoesNotFit as error:
        return _empty(case, str(error).splitlines()[0])
    image = firmware.build(project, defines=case.defines)
    with session.started(project) as board:
        session.begin(board)
        epoch = len(project.dataset.tasks[0].y_train)
        if case.mode is Mode.STEP:
            session.train(board, epoch)  # the second epoch is the one that is counted
        steps = epoch * project.model.learning.epochs if case.mode is Mode.TASK else epoch
        before = board.statistics()
        work = session.train(board, steps)
        after = board.statistics()
        predictions = None if case.mode is Mode.TASK else session.predict(board, PREDICTIONS)
    found = _instructions(case, board, work, predictions, before, after)
    sizes = measure_image(image, project.plan)
    figures: dict[str, Any] = {
        "non_zeros": non_zeros(project),
        "instructions": found,
        "cycles": _cycles(project.board, board.program, work, predictions, found),
        "ram": sizes.ram,
        "flash": flash_sections(image),
        "stack_used": after.stack_used,
    }
    return _empty(case, None).model_copy(update=figures)


def _instructions(
    case: Case, board: Session, work: Work, predictions: Work | None, before: Statistics, after: Statistics
) -> Instructions:
    project, program = board.project, board.program
    phases = phases_of(project.board, before, after)
    functions = program.by_function(work.counts)
    counted = sum(functions.values()) / work.steps
    updates = _mask_updates(project, work.steps) if phases.mask_update else 0
    step = phases.training - phases.mask_update
    forward, products = _forward(program, work.counts), forward_products(program, work.counts)
    spent, inside = _first_layer_loops(program, work.counts)
    classify = {} if predictions is None else program.by_function(predictions.counts)
    return Instructions(
        steps=work.steps,
        cross_entropy_step=step - phases.replay_read - phases.journal_write if case.mode is Mode.PASS else None,
        step=step,
        prediction=None if predictions is None else _network(classify) / predictions.steps,
        mask_update=phases.mask_update * work.steps / updates if updates else None,
        task=phases.training * work.steps if case.mode is Mode.TASK else None,
        mask_share=phases.mask_update / phases.training if case.mode is Mode.TASK else None,
        phases=phases,
        meter_difference=phases.training / counted - 1,
        layers=_per_step(by_layer(functions), work.steps),
        prediction_layers={
            layer: parts["forward"] / (predictions.steps if predictions else 1)
            for layer, parts in by_layer(classify).items()
            if "forward" in parts
        },
        functions=_large(functions, work.steps),
        inputs=_active_inputs(project),
        macs=products / work.steps if products and case.mode is Mode.PASS else None,
        inner_loop=spent / inside if inside and case.mode is Mode.PASS else None,
        forward_per_mac=sum(n for _, n in forward) / products if products and case.mode is Mode.PASS else None,
    )


def phases_of(board: Board, before: Statistics, after: Statistics) -> Phases:
    """Instructions per training step between two readings of the board's meter."""
    steps = after.training_steps - before.training_steps
    names = Phases.model_fields
    ticks = {name: getattr(after, name) - getattr(before, name) for name in names}
    return Phases(**{name: ticks[name] / board.timer.ticks_per_instruction / steps for name in names})


def _forward(program: Program, counts: Counts) -> Executions:
    return [i for i in _code(program, counts, _FORWARD.match) if i[1]]


def forward_products(program: Program, counts: Counts) -> int:
    """Multiply-accumulates of all forward passes, as executed: what is skipped does not count."""
    return sum(n * macs(i) for i, n in _forward(program, counts))


def _mask_updates(project: Project, steps: int) -> int:
    """Mask updates in whole epochs (docs/spec/algorithm.md)."""
    learning = project.model.learning
    epochs = steps // len(project.dataset.tasks[0].y_train)
    return epochs * learning.updates_per_epoch // max(learning.update_every_epochs, 1)


def _code(program: Program, counts: Counts, wanted: Callable[[str], object]) -> Executions:
    """The instructions of the functions whose name is ``wanted``."""
    spans = [(f.start, f.end) for f in program.functions if wanted(f.name)]
    return [(i, n) for i, n in program.executions(counts) if any(a <= i.address < b for a, b in spans)]


def _first_layer_loops(program: Program, counts: Counts) -> tuple[int, int]:
    layers = by_layer(program.by_function(counts))
    name = next((f"{layer}_forward" for layer, parts in layers.items() if "forward" in parts), None)
    return (0, 0) if name is None else inner_loops(_code(program, counts, lambda found: found == name))


def _network(functions: Mapping[str, int]) -> int:
    return sum(count for name, count in functions.items() if _NETWORK.match(name))


def _per_step(layers: Mapping[str, Mapping[str, int]], steps: int) -> dict[str, dict[str, float]]:
    return {layer: {name: count / steps for name, count in parts.items()} for layer, parts in layers.items()}


def _large(functions: Mapping[str, int], steps: int) -> dict[str, float]:
    least = sum(functions.values()) / 1000
    large = sorted((item for item in functions.items() if item[1] > least), key=lambda item: -item[1])
    return {name: count / steps for name, count in large}


def _active_inputs(project: Project) -> float | None:
    if project.model.layers[0].op is not Op.DENSE or project.model.prefix:
        return None
    return float(np.mean(project.dataset.tasks[0].x_train != 0))


def _cycles(board: Board, program: Program, work: Work, predictions: Work | None, found: Instructions) -> Cycles | None:
    """The counted mix's cycles per instruction, times the instructions."""
    step = _scaled(board, program, work.counts, None, found.step)
    if step is None:
        return None
    prediction = None
    if predictions is not None and found.prediction is not None:
        prediction = _scaled(board, program, predictions.counts, _NETWORK.match, found.prediction)
    return Cycles(
        step=step,
        prediction=prediction,
        step_microjoule=_energy(board, step),
        prediction_microjoule=None if prediction is None else _energy(board, prediction),
    )


def _scaled(
    board: Board, program: Program, counts: Counts, wanted: Callable[[str], object] | None, instructions: float
) -> float | None:
    executions = program.executions(counts) if wanted is None else _code(program, counts, wanted)
    total = cycles.estimate(executions, board.core)
    return None if total is None else instructions * total / sum(n for _, n in executions)


def _energy(board: Board, amount: float) -> float | None:
    silicon = board.silicon
    if not (silicon.clock_hz and silicon.supply_v and silicon.active_ma):
        return None
    return cycles.energy(amount, silicon.clock_hz, silicon.supply_v, silicon.active_ma)


def non_zeros(project: Project) -> int:
    """Weights that exist."""
    return sum(
        sum(panel.nnz for panel in layer.panels) * layer.block if layer.sparse else layer.n_in * layer.n_out
        for layer in (*project.model.prefix, *project.model.layers)
        if layer.weighted
    )


def flash_sections(image: Path) -> dict[str, int]:
    """Bytes of the sections that an image takes of the code flash; the initial values of variables are .data."""
    with image.open("rb") as file:
        return {
            section.name: int(section["sh_size"])
            for section in ELFFile(file).iter_sections()
            if section["sh_flags"] & 2 and section["sh_type"] == "SHT_PROGBITS" and section["sh_size"]
        }
