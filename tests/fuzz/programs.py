# SPDX-License-Identifier: Apache-2.0
"""What is fuzzed: models, flash geometries, and how a target is built with libFuzzer or, without clang, with gcc."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sparcl_mcu.generator import plan
from sparcl_mcu.host_tools.link import ERRORS
from sparcl_mcu.spec.boards import Board
from sparcl_mcu.spec.types import Activation, DdrScore, Growth, Method, Model, Op
from tests.compiled import compile_c
from tests.firmware.native import NOT_OPTIMISED, POISON, board_build, board_facts, flags, generate
from tests.reference.models import Masks, Spec, conv_model, random_model

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
TARGETS = ("frame", "requests", "journal")
PAYLOAD = 200
"""Small, so that limits are near; the statistics' reply fits."""
MAPPED_BASE = 0x1000_0000
"""Where a program of this computer has nothing."""

_SMALL: dict[str, Any] = {"table": 12, "capacity": 4, "epochs": 2, "capture": 2}


@dataclass(frozen=True)
class Subject:
    """A model and the flash it learns in; ``spare``: sectors beyond those that the plan asks for."""

    model: Callable[[], Model]
    sector: int
    unit: int
    mapped: bool = False
    window: int = 4
    spare: int = 3

    def board(self) -> Board:
        """The native board with this flash and a short line."""
        store = {"sector": self.sector, "program_unit": self.unit}
        size = plan.plan(self.model(), board_facts(**store, size=1 << 16)).store_bytes + self.spare * self.sector
        mapped = {"kind": "mapped", "mapped_base": MAPPED_BASE} if self.mapped else {}
        board = board_facts(**store, size=size)
        link = replace(board.link, max_payload=PAYLOAD, steps_per_request=20, window=self.window)
        return replace(board, store=replace(board.store, **mapped), link=link)


def _dense() -> Model:
    return random_model(1, sizes=(9, 6, 4), sparse=[False, False], method=Method.ER, batch=2, tdm=False, **_SMALL)


def _sparse() -> Model:
    return random_model(
        2, sizes=(10, 14, 8, 4), sparse=[True, True, True], block=2, method=Method.ER, growth=Growth.GRADIENT, **_SMALL
    )


def _derpp() -> Model:
    return random_model(
        3, sizes=(8, 12, 5), block=4, method=Method.DERPP, rho_permille=500, ddr_score=DdrScore.LOSS, **_SMALL
    )


def _conv() -> Model:
    specs = (
        Spec(Op.CONV, channels=4, kernel=(3, 3), same=True, activation=Activation.RELU, sparse=True, block=2),
        Spec(Op.MAX_POOL, kernel=(2, 2), stride=(2, 2)),
        Spec(Op.DENSE, channels=4, sparse=True),
    )
    return conv_model(4, (2, 4, 4), specs, method=Method.DERPP, batch=2, masks=Masks(density=0.5), **_SMALL)


def _latent() -> Model:
    specs = (
        Spec(Op.CONV, channels=3, kernel=(2, 2), activation=Activation.RELU),
        Spec(Op.DENSE, channels=10, activation=Activation.RELU, sparse=True),
        Spec(Op.DENSE, channels=4),
    )
    return conv_model(5, (1, 5, 5), specs, prefix=1, method=Method.ER, growth=Growth.GRADIENT, **_SMALL)


SUBJECTS = {
    "dense": Subject(_dense, 512, 1, window=1),
    "sparse": Subject(_sparse, 512, 8),
    "derpp": Subject(_derpp, 256, 4),
    "conv": Subject(_conv, 1024, 256),
    "latent": Subject(_latent, 512, 4, mapped=True, window=8),
}


@dataclass(frozen=True)
class Program:
    """A target for one model; the frame parser needs but the limits of one."""

    target: str
    subject: str

    @property
    def name(self) -> str:
        """For files and reports."""
        return self.target if self.target == "frame" else f"{self.target}-{self.subject}"

    @property
    def corpus(self) -> Path:
        """The inputs that are kept; those for handlers and the journal are the same for all models."""
        return CORPUS / self.target


PROGRAMS = (
    Program("frame", "dense"),
    *(Program(target, subject) for target in ("requests", "journal") for subject in SUBJECTS),
)


def build(subject: str, folder: Path, *, fuzzer: bool, extra: tuple[str, ...] = ()) -> dict[str, Path]:
    """Compile the engine once and link it with each target for this subject; the programs by name.

    ``fuzzer``: clang with libFuzzer, else gcc and standalone.c.  ``extra``: further flags.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generated = generate(SUBJECTS[subject].model(), SUBJECTS[subject].board(), folder)
    engine = [*board_build.firmware_sources(), *sorted(generated.glob("*.c"))]
    compiler = "clang" if fuzzer else "gcc"
    given = flags(generated, ("-O1",) if fuzzer else NOT_OPTIMISED)
    if fuzzer:  # clang has warnings of its own; gcc's are errors in every other build
        given = [f for f in given if f != "-Werror"] + ["-w", "-fsanitize=fuzzer-no-link"]
    given += [POISON, f"-DFUZZ_LARGEST_STATUS={max(ERRORS)}u", *extra]

    def objects(sources: list[Path]) -> list[str]:
        result = []
        for source in sources:
            result.append(str(folder / f"{source.stem}.o"))
            compile_c([*given, "-c", source, "-o", result[-1]], compiler)
        return result

    edges = objects([HERE / "edge_begin.c", HERE / "edge_end.c"])
    inside = [edges[0], *objects(engine), edges[1]]
    board = objects([HERE / name for name in ("board.c", "line.c", "ops.c", "restored.c", "base.c")])
    main = ["-fsanitize=fuzzer"] if fuzzer else objects([HERE / "standalone.c"])
    parts = {
        "frame": [str(folder / name) for name in ("scl_frame.o", "scl_crc.o", "base.o")],
        "requests": [*inside, *board],
        "journal": [*inside, *board],
    }
    wrapped = ("scl_record_get_sample", "scl_record_get_replay", "scl_state_load", "scl_state_end")
    wrap = "-Wl," + ",".join(f"--wrap={name}" for name in wrapped)
    result = {}
    for program in PROGRAMS:
        if program.subject == subject:
            target = objects([HERE / f"target_{program.target}.c"])
            image = folder / program.name
            sanitizers = [f for f in given if str(f).startswith(("-fsanitize=a", "--coverage"))]
            link = [] if program.target == "frame" else [wrap]
            compile_c([*sanitizers, *link, *parts[program.target], *target, *main, "-o", image], compiler)
            result[program.name] = image
    return result
