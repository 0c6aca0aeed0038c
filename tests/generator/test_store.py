# SPDX-License-Identifier: Apache-2.0
"""Artefacts on disk: round trip, same bytes, refusal of damaged files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparcl_mcu.generator import quantise, store
from sparcl_mcu.spec.errors import UserError
from sparcl_mcu.spec.types import Dataset, FloatModel, Model

from . import helpers


@pytest.fixture(scope="module")
def artefacts() -> dict[type, Any]:
    c, d = helpers.config(model={"hidden": (9,)}), helpers.dataset()
    f = helpers.float_model(c, d)
    return {Dataset: d, FloatModel: f, Model: quantise.quantise(c, d, f)}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_round_trip_of_any_network(seed: int, frozen: bool, tmp_path: Path) -> None:
    c = helpers.config(sparsity={"weights": 0.5})
    d, f = helpers.random_float_model(c, seed, depth=4, frozen=frozen, shape=(2, 6, 6))
    f = replace(f, accuracy={"task0": 50.0}, imported_accuracy={"task0": 25.0, "task1": 12.5})
    for artefact in (f, quantise.quantise(c, d, f)):
        store.save(tmp_path / "a", artefact)
        back = store.load(tmp_path / "a", type(artefact))
        assert store.digest(back) == store.digest(artefact)
        assert repr(back) == repr(artefact)


@pytest.mark.parametrize("cls", [Dataset, FloatModel, Model])
def test_round_trip(cls: type, artefacts: dict[type, Any], tmp_path: Path) -> None:
    store.save(tmp_path / "a", artefacts[cls])
    back = store.load(tmp_path / "a", cls)
    assert type(back) is cls
    assert store.digest(back) == store.digest(artefacts[cls])


def test_same_artefact_same_bytes(artefacts: dict[type, Any], tmp_path: Path) -> None:
    for name in ("a", "b"):
        store.save(tmp_path / name, artefacts[Model])
    for ending in (".json", ".npz"):
        assert (tmp_path / f"a{ending}").read_bytes() == (tmp_path / f"b{ending}").read_bytes()


def test_absent_and_wrong_kind(artefacts: dict[type, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.json"):
        store.load(tmp_path / "a", Model)
    store.save(tmp_path / "a", artefacts[Dataset])
    with pytest.raises(UserError, match="holds a Dataset, not a Model"):
        store.load(tmp_path / "a", Model)


def spoil(document: dict[str, Any], *path: Any, value: Any) -> None:
    at = document["value"]
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("fg",), "19", "Model.fg is '19'"),
        (("fg",), True, "Model.fg is True"),
        (("fg",), 3, "hash does not fit"),
        (("layers",), 3, "Model.layers is not a list"),
        (("layers", 0, "bias"), None, "Model.layers\\[0\\].bias is not an array"),
        (("layers", 0, "bias"), {"array": 99}, "is not an array"),
        (("layers", 0, "bias", "array"), 1, "which is not what it has to be"),
        (("learning", "method"), "magic", "magic"),
        (("learning",), {}, "Model.learning has to have"),
        (("model_hash",), "zz", "non-hexadecimal"),
    ],
)
def test_malformed_contents(
    path: tuple[Any, ...], value: Any, message: str, artefacts: dict[type, Any], tmp_path: Path
) -> None:
    store.save(tmp_path / "a", artefacts[Model])
    file = tmp_path / "a.json"
    document = json.loads(file.read_text())
    spoil(document, *path, value=value)
    file.write_text(json.dumps(document))
    with pytest.raises(UserError, match=message):
        store.load(tmp_path / "a", Model)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', "\x00\xff"])
def test_malformed_json(text: str, artefacts: dict[type, Any], tmp_path: Path) -> None:
    store.save(tmp_path / "a", artefacts[Model])
    (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="generate it again"):
        store.load(tmp_path / "a", Model)


def test_arrays_of_another_run(artefacts: dict[type, Any], tmp_path: Path) -> None:
    store.save(tmp_path / "a", artefacts[Model])
    np.savez(tmp_path / "a.npz", a0=np.zeros(3))
    with pytest.raises(UserError, match="does not belong"):
        store.load(tmp_path / "a", Model)


def test_the_type_of_numbers_is_found_with_any_numpy() -> None:
    """numpy 2.5, which Python 3.11 has not, made NDArray a type of its own."""
    assert store._element((tuple[Any, ...], np.dtype[np.int16])) is np.int16
    assert store._element((np.int16,)) is np.int16
