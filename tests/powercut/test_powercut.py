# SPDX-License-Identifier: Apache-2.0
"""The power is cut at flash operations: whatever was saved comes back, and learning ends where it would have ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.powercut.harness import GEOMETRIES, Geometry, Result, replay, sweep
from tests.powercut.mutants import MUTANTS, Mutant, lost

WAYS = {"before", "torn", "unstable", "after", "second"}


def named(name: str) -> Geometry:
    """One of the geometries."""
    return next(g for g in GEOMETRIES if g.name == name)


def check(result: Result) -> None:
    """Nothing is lost, and the scenario had what it has to have: a ring that wraps, and records that are moved."""
    assert not result.lost
    assert result.tried.keys() == WAYS
    assert min(count for way, count in result.tried.items() if way != "unstable") > 0
    recorded = result.recorded
    assert recorded["relocated"] > 20
    if result.geometry.worn:
        assert 10 < recorded["retired"] < recorded["operations"]
    else:
        assert recorded["erased_min"] >= 2
        assert recorded["erased_max"] - recorded["erased_min"] <= 2


@pytest.mark.parametrize("name", ["u8-s1024", "u256-s4096-worn", "u1-s2048-e00"])
def test_some_cuts(name: str, tmp_path: Path) -> None:
    """At operations spread over the scenario."""
    check(sweep(named(name), tmp_path, step=23, torn=2, second=1))


@pytest.mark.slow
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: g.name)
def test_cuts_of_every_geometry(geometry: Geometry, tmp_path: Path) -> None:
    """At every ninth operation; `make powercut` cuts at each."""
    check(sweep(geometry, tmp_path, step=9))


def test_a_cut_is_replayed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """An ID runs one cut, and says what happens."""
    assert replay("u8-s1024-c300-torn-r3+c5-before", tmp_path) == 0
    told = capfd.readouterr().out
    assert "power fails at operation 300 of" in told
    assert "power fails at operation 5" in told
    assert told.count("comes back with state") == 2
    assert "ended" in told


@pytest.mark.parametrize(
    "name", ["u8-s4096", "u3-s1024-c1-before", "u8-s1024-c0-before", "u8-s1024-c1-torn", "u8-s1024-c1-after+c2"]
)
def test_wrong_ids(name: str, tmp_path: Path) -> None:
    """They are refused."""
    assert replay(name, tmp_path) == 2


def test_a_fault_is_found_and_its_id_replays_it(tmp_path: Path) -> None:
    """With a fault in the engine the sweep names a cut that shows it again."""
    mutant = next(m for m in MUTANTS if m.name == "snapshot numbers begin anew")
    found = lost(mutant, tmp_path)
    assert found
    assert replay(found[0].split(":")[0], tmp_path / "again", tmp_path / "firmware") == 1


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name.replace(" ", "-"))
def test_faults_are_found(mutant: Mutant, tmp_path: Path) -> None:
    """Each of them."""
    assert lost(mutant, tmp_path)
