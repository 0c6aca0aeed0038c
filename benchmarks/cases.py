# SPDX-License-Identifier: Apache-2.0
"""The cases to measure: networks, sparsities and ways of learning, and on which boards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

EXPERIMENTS = Path(__file__).resolve().parent / "experiments"
EXAMPLES = EXPERIMENTS.parents[1] / "examples"

MAIN = "ast1030_evb"
"""The board of the targets."""
SMALL = "microbit"
"""The board that the large network does not fit."""

EVERY_INPUT = "SCL_BENCH_EVERY_INPUT=1"
"""Dense kernels built with this do not skip inputs that are 0, as published trainers do not."""

SPARSITIES = (0.75, 0.90, 0.95)
GRADIENT = {0.75: 0.80, 0.90: 0.92, 0.95: 0.96}
BLOCKS = (1, 2, 4)
UNIFORM = ((0.90, 1), (0.90, 4), (0.95, 1), (0.95, 4))
UNIFORM_MASKS = ("sparsity.dense_output=false", "initial.mask=magnitude")
DDR = ("ddr.enabled=true", "ddr.rho=0.3", "ddr.until=2")
"""Removal within the first two fifths of the epochs, the released code's share of them."""
BIG_DENSE = (96, 192)
"""Hidden units of the dense networks on 28x28 pictures: with 256, weights and initial model do not fit together."""
WIDTHS = (64, 128, 256, 512, 1024)
SCALING = (0.5, 0.75, 0.9, 0.95, 0.99)


class Mode(StrEnum):
    """How a case is measured.

    ``pass``: plain cross-entropy steps and predictions.  ``step``: whole DER++
    steps while samples are replayed, and mask updates.  ``task``: one task from
    its beginning to its end.  ``accuracy``: all tasks, on the native board.
    """

    PASS = "pass"
    STEP = "step"
    TASK = "task"
    ACCURACY = "accuracy"


@dataclass(frozen=True)
class Case:
    """One build and what is measured with it; ``name`` without board and mode is ``network``."""

    network: str
    mode: Mode
    board: str
    experiment: Path
    overrides: tuple[str, ...] = ()
    defines: tuple[str, ...] = ()
    quick: bool = False

    @property
    def name(self) -> str:
        """Unique in a run: board/network/mode."""
        return f"{self.board}/{self.network}/{self.mode}"


@dataclass(frozen=True)
class _Network:
    """A network by itself: the start of cases."""

    name: str
    experiment: Path
    overrides: tuple[str, ...]
    defines: tuple[str, ...] = ()
    samples: str | None = "data.train_per_class=100"

    def case(self, board: str, mode: Mode, quick: bool = False) -> Case:
        """The case of this network in ``mode``."""
        learning: dict[Mode, tuple[str, ...]] = {
            Mode.PASS: ("method.name=finetune", "tdm.enabled=false", "method.epochs=1"),
            Mode.STEP: ("method.name=der++", "method.epochs=2"),
            Mode.TASK: ("method.name=der++",),
            Mode.ACCURACY: ("method.name=der++",),
        }
        overrides = self.overrides + learning[mode]
        if mode is not Mode.ACCURACY:
            # Costs do not depend on how good the weights are, and fewer samples are sent sooner.
            overrides += ("initial.train=none",)
        if mode in (Mode.PASS, Mode.STEP) and self.samples is not None:
            overrides += (self.samples,)
        return Case(self.name, mode, board, self.experiment, overrides, self.defines, quick)


def sparse(sparsity: float, block: int, uniform: bool = False) -> str:
    """Name of a sparse network of the main set; ``uniform``: every layer is sparse, by the size of its weights alone.

    The recipe keeps the output layer dense, and its mask prefers inputs that are often
    active: more weights are met in a pass than their share says, and learning is better for it.
    """
    return f"sparse-{sparsity:.2f}-b{block}{'-uniform' if uniform else ''}"


def cases(boards: tuple[str, ...], quick: bool) -> list[Case]:
    """All cases to measure on ``boards``, each once, the quick ones first.

    Accuracies (on the native board) and what only the main board measures are
    there with any board that needs them.
    """
    found = {case.name: case for board in boards for case in _of_board(board)}
    chosen = [case for case in found.values() if case.quick or not quick]
    return sorted(chosen, key=lambda case: not case.quick)


def _of_board(board: str) -> Iterator[Case]:
    networks = _digits() if board == SMALL else _mnist()
    quick = _QUICK.get(board, ())
    for network in networks:
        for mode in (Mode.PASS, Mode.STEP):
            yield network.case(board, mode, f"{network.name}/{mode}" in quick)
        if not network.defines:  # `dense` learns the same as `dense-skip`
            yield network.case("native", Mode.ACCURACY)
        if board == MAIN and network.name == sparse(0.90, 1):
            for name, ddr in (("whole-task", ("ddr.enabled=false",)), ("whole-task-ddr", DDR)):
                task = replace(network, name=f"{name}-{network.name}", overrides=(*network.overrides, *ddr))
                yield task.case(board, Mode.TASK, quick=True)
    if board == MAIN:
        yield from _other_networks()


_QUICK = {
    MAIN: (
        "dense/pass",
        "dense-skip/pass",
        f"{sparse(0.90, 1)}/pass",
        f"{sparse(0.90, 4)}/pass",
        f"{sparse(0.90, 1, uniform=True)}/pass",
        f"{sparse(0.90, 4, uniform=True)}/pass",
        f"{sparse(0.90, 1)}/step",
    ),
    "emcraft_sf2": (f"{sparse(0.90, 1)}/step",),
    SMALL: ("digits-sparse/step",),
    "mps3_an547": (f"{sparse(0.90, 4)}/pass",),
}
"""One build and one run each: CI has four minutes."""


def _dense_overrides(hidden: int) -> tuple[str, ...]:
    return (f"model.hidden=[{hidden}]", "sparsity.weights=0.0", "tdm.enabled=false", "dgm.enabled=false")


def _sparse_overrides(sparsity: float, gradient: float, block: int) -> tuple[str, ...]:
    return (
        f"sparsity.weights={sparsity}",
        f"sparsity.block={block}",
        "tdm.enabled=true",
        "dgm.enabled=true",
        f"dgm.sparsity={gradient}",
    )


def same_weights(n_in: int, hidden: int, n_out: int, sparsity: float) -> int:
    """Width of the dense network with as many weights as the sparse one (dense output) has non-zeros."""
    return round((n_in * hidden * (1 - sparsity) + hidden * n_out) / (n_in + n_out))


def _mnist() -> Iterator[_Network]:
    mnist = EXPERIMENTS / "mnist.toml"
    yield _Network("dense", mnist, _dense_overrides(256), (EVERY_INPUT,))
    yield _Network("dense-skip", mnist, _dense_overrides(256))
    for sparsity in SPARSITIES:
        for block in BLOCKS:
            overrides = _sparse_overrides(sparsity, GRADIENT[sparsity], block)
            yield _Network(sparse(sparsity, block), mnist, overrides)
            if (sparsity, block) in UNIFORM:
                yield _Network(sparse(sparsity, block, uniform=True), mnist, (*overrides, *UNIFORM_MASKS))
    for sparsity in SPARSITIES:
        width = same_weights(256, 256, 10, sparsity)
        yield _Network(f"small-dense-{width}", mnist, _dense_overrides(width))


def _digits() -> Iterator[_Network]:
    digits = EXPERIMENTS / "digits.toml"
    yield _Network("digits-dense", digits, _dense_overrides(64), (EVERY_INPUT,), None)
    yield _Network("digits-dense-skip", digits, _dense_overrides(64), (), None)
    yield _Network("digits-sparse", digits, _sparse_overrides(0.80, 0.84, 1), (), None)


def _other_networks() -> Iterator[Case]:
    """Networks for the main board only: larger pictures, data without zeros, a convolution, and how costs grow."""
    mnist, watch = EXPERIMENTS / "mnist.toml", EXPERIMENTS / "watch.toml"
    big = "data.size=28"
    networks = [
        *(
            _Network(f"784-dense-{width}", mnist, (*_dense_overrides(width), big), (EVERY_INPUT,))
            for width in BIG_DENSE
        ),
        *(
            _Network(f"784-{sparse(0.95, b, u)}", mnist, (*_sparse_overrides(0.95, 0.96, b), big, *mask))
            for b in (1, 4)
            for u, mask in ((False, ()), (True, UNIFORM_MASKS))
        ),
        _Network("watch-dense", watch, _dense_overrides(128), (EVERY_INPUT,), None),
        _Network("watch-dense-skip", watch, _dense_overrides(128), (), None),
        *(
            _Network(f"watch-{sparse(0.90, b, u)}", watch, (*_sparse_overrides(0.90, 0.92, b), *mask), (), None)
            for b in (1, 4)
            for u, mask in ((False, ()), (True, UNIFORM_MASKS))
        ),
    ]
    for network in networks:
        yield network.case(MAIN, Mode.PASS)
    cnn = _Network("cnn", EXAMPLES / "cnn_mnist.toml", ("ddr.enabled=false",))
    for mode in (Mode.PASS, Mode.STEP):
        yield cnn.case(MAIN, mode)
    for width in WIDTHS:
        for sparsity in SCALING:
            overrides = (
                f"model.hidden=[{width}]",
                *_sparse_overrides(sparsity, round(sparsity + 0.2 * (1 - sparsity), 4), 1),
            )
            yield _Network(scaling(width, sparsity), mnist, overrides).case(MAIN, Mode.PASS)


def scaling(width: int, sparsity: float) -> str:
    """Name of a network of the scaling set."""
    return f"scaling-{width}-{sparsity:.2f}"
