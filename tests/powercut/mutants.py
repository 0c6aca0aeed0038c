# SPDX-License-Identifier: Apache-2.0
"""Faults put into the engine one at a time: the sweep of power cuts has to notice each.

python -m tests.powercut.mutants [NAME ...]
"""

from __future__ import annotations

import shutil
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from sparcl_mcu.spec.paths import ROOT
from tests.powercut.harness import FIRMWARE, GEOMETRIES, sweep

STEP = 5
"""Cut at every so many operations: enough for each of these."""


@dataclass(frozen=True)
class Mutant:
    """``changes``: (file, text, what replaces it).  ``geometry``: the flash that shows it.  ``step``: as in `sweep`."""

    name: str
    changes: tuple[tuple[str, str, str], ...]
    geometry: str
    step: int


def _load(path: Path) -> tuple[Mutant, ...]:
    return tuple(
        Mutant(
            item["name"],
            tuple((change["file"], change["old"], change["new"]) for change in item["change"]),
            item.get("geometry", "u8-s1024"),
            item.get("step", STEP),
        )
        for item in tomllib.loads(path.read_text())["mutant"]
    )


MUTANTS = _load(Path(__file__).with_name("mutants.toml"))


def lost(mutant: Mutant, folder: Path) -> list[str]:
    """What the sweep says of the engine with this fault; AssertionError when its text is not there once."""
    firmware = folder / "firmware"
    shutil.rmtree(firmware, ignore_errors=True)
    shutil.copytree(FIRMWARE, firmware)
    for file, old, new in mutant.changes:
        path = firmware / "engine" / file
        text = path.read_text()
        assert text.count(old) == 1, f"{mutant.name}: {old!r} is {text.count(old)} times in {file}"
        path.write_text(text.replace(old, new))
    geometry = {g.name: g for g in GEOMETRIES}[mutant.geometry]
    return sweep(geometry, folder, step=mutant.step, firmware=firmware).lost


def main() -> int:
    """Try all, or the named ones."""
    survivors = 0
    for number, mutant in enumerate(MUTANTS):
        if len(sys.argv) > 1 and not any(word in mutant.name for word in sys.argv[1:]):
            continue
        found = lost(mutant, ROOT / "build" / "powercut" / f"mutant{number}")
        survivors += not found
        print("killed   " if found else "SURVIVES ", f"{mutant.name}: {len(found)} lost", *found[:1], flush=True)
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main())
