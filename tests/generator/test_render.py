# SPDX-License-Identifier: Apache-2.0
"""The C that is rendered: the same every time, compiled without a warning, as large as the memory plan says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from sparcl_mcu.generator.plan import plan
from sparcl_mcu.generator.render import FILES, render
from sparcl_mcu.spec.boards import load_board
from sparcl_mcu.spec.types import Activation, Growth, Model, Op, SingleHead
from tests.compiled import compile_c
from tests.firmware.native import NOT_OPTIMISED, flags
from tests.reference.models import Spec, conv_model, random_conv_model, random_model

NATIVE = load_board("native")

PARAMETERS = ("weights and biases", "masks", "gradients", "gradient factors")
PASSES = ("activations and errors", "work space")
"""Regions that the rendered file defines, and no other."""

RESIDUAL = (
    Spec(Op.CONV, channels=8, kernel=(3, 3), same=True, activation=Activation.RELU),
    Spec(Op.CONV, kernel=(3, 3), same=True, multiplier=1, activation=Activation.RELU6, sparse=True, block=4),
    Spec(Op.CONV, channels=8, kernel=(1, 1), sparse=True, block=2),
    Spec(Op.ADD, inputs=(1, 3), activation=Activation.RELU),
    Spec(Op.MAX_POOL, kernel=(2, 2), stride=(2, 2)),
    Spec(Op.AVG_POOL, kernel=(4, 4)),
    Spec(Op.DENSE, channels=8, activation=Activation.RELU, sparse=True, block=2),
    Spec(Op.DENSE, channels=4),
)

MODELS = {
    "dense": lambda: random_model(1, sizes=(12, 9, 4), block=4),
    "dense, batch": lambda: random_model(1, batch=3, lr_q8=(256, 100)),
    "one layer": lambda: random_model(1, sizes=(12, 4), sparse=[False], tdm=False, dgm=False),
    "residual": lambda: conv_model(1, (3, 8, 8), RESIDUAL),
    "residual, batch": lambda: conv_model(1, (3, 8, 8), RESIDUAL, batch=2, growth=Growth.GRADIENT),
    "frozen": lambda: conv_model(1, (3, 8, 8), RESIDUAL, prefix=4, single_head=SingleHead.SCORE),
    "frozen, samples stored": lambda: conv_model(1, (3, 8, 8), RESIDUAL, prefix=5, latent_stored=False),
    "one axis": lambda: random_conv_model(12),
}


def compiled(model: Model, folder: Path, optimise: Sequence[str] = NOT_OPTIMISED) -> dict[str, int]:
    """Size of every object in scl_model.c, by name."""
    for name, text in render(model, NATIVE).items():
        (folder / name).write_text(text)
    strict = [f for f in flags(folder, optimise) if not f.startswith("-fsanitize")]
    for source in ("scl_model", "scl_initial"):
        compile_c([*strict, "-c", folder / f"{source}.c", "-o", folder / f"{source}.o"])
    with (folder / "scl_model.o").open("rb") as file:
        symbols = ELFFile(file).get_section_by_name(".symtab")
        assert isinstance(symbols, SymbolTableSection)
        return {s.name: s["st_size"] for s in symbols.iter_symbols() if s["st_info"]["type"] == "STT_OBJECT"}


def variables(sizes: dict[str, int]) -> dict[str, int]:
    """Those in RAM: tables of panels and the like are constant, and so is what functions keep to themselves."""
    constant = ("_panels", "_conv", "_rates", "_pool", "_activation", "_at", "rates", "epoch_share")
    visible = ("scl_masked", "scl_regions", "scl_transient_regions", "scl_learner")
    return {
        name: size
        for name, size in sizes.items()
        if not name.endswith(constant) and name not in visible and "." not in name
    }


@pytest.mark.parametrize("name", MODELS)
def test_always_the_same(name: str) -> None:
    """Rendering twice gives the same bytes, without a trailing space or an empty line at the end."""
    sources = render(MODELS[name](), NATIVE)
    assert sources == render(MODELS[name](), NATIVE)
    assert tuple(sources) == FILES
    for text in sources.values():
        assert not re.search(r"[ \t]\n", text)
        assert "\n\n\n" not in text
        assert text.endswith("\n")
        assert not text.endswith("\n\n")


@pytest.mark.parametrize("name", MODELS)
def test_as_large_as_planned(name: str, tmp_path: Path) -> None:
    """Without a warning; the objects of the compiled file are the plan's, to the byte."""
    model = MODELS[name]()
    sizes = variables(compiled(model, tmp_path))
    rows = {row.name: row.size for row in plan(model, NATIVE).ram}
    in_passes = {"arena", "scl_scratch", "scl_logits", "scl_logit_error"}
    assert sum(size for o, size in sizes.items() if o in in_passes) == sum(rows.get(row, 0) for row in PASSES)
    assert sum(size for o, size in sizes.items() if o not in in_passes) == sum(rows.get(row, 0) for row in PARAMETERS)


@pytest.mark.parametrize("seed", range(4))
def test_optimised(seed: int, tmp_path: Path) -> None:
    """What the optimiser sees when it inlines everything draws no warning either."""
    compiled(random_conv_model(20 + seed, prefix=False), tmp_path, ["-O2"])


def test_frozen_layers_are_constant(tmp_path: Path) -> None:
    """Nothing of them is copied or learns."""
    sources = render(MODELS["frozen"](), NATIVE)
    assert "const int16_t prefix1_weight[" in sources["scl_initial.h"]
    assert "prefix1_weight_initial" not in sources["scl_initial.h"]
    assert not any(name.startswith("prefix") for name in variables(compiled(MODELS["frozen"](), tmp_path)))


def test_first_contribution_writes(tmp_path: Path) -> None:
    """A tensor with two readers: the later layer writes its error, the earlier one adds; masks go first."""
    text = render(MODELS["residual"](), NATIVE)["scl_model.c"]
    backward = text[text.index("/* ---- backward ---- */") : text.index("void scl_net_backward")]
    lines = [line.strip() for line in backward.splitlines() if "layer1_error" in line]
    # Tensor 0 is turned around by a pad layer, so that all numbers are one higher than in the specs.
    assert [line.split("(")[0].split()[-1] for line in lines] == [
        "scl_copy_error",
        "scl_contribute_sums",
        "scl_mask_error",
        "scl_conv_backward",
    ]
    assert lines[0].endswith(", 1);")
    assert lines[1].endswith(", 0);")
