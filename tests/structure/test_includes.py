# SPDX-License-Identifier: Apache-2.0
"""Who includes whom in C (ARCHITECTURE.md): include <- engine <- app <- port, boards; no circle between sources."""

from __future__ import annotations

import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from sparcl_mcu.spec.paths import ROOT

FIRMWARE = ROOT / "firmware"
MAY = {
    "include": (),
    "engine": ("include",),
    "app": ("include", "engine"),
    "port": ("include", "engine", "app"),
    "boards": ("include", "engine", "app", "port"),
}
"""Folders whose headers those of a folder may include, besides its own and what is generated."""


def includes(path: Path) -> list[str]:
    """Names of the headers in quotes."""
    return re.findall(r'^#include "(\w+\.h)"', path.read_text(encoding="utf-8"), re.MULTILINE)


def sources(folder: str) -> list[Path]:
    """C files and headers below a folder of firmware/."""
    return [path for path in sorted((FIRMWARE / folder).rglob("*")) if path.suffix in (".c", ".h")]


def test_includes_run_one_way() -> None:
    """No folder includes a header of one that builds on it."""
    home = {path.name: folder for folder in MAY for path in sources(folder) if path.suffix == ".h"}
    wrong = [
        f"{path.relative_to(FIRMWARE)} includes {name} of {home[name]}/"
        for folder, known in MAY.items()
        for path in sources(folder)
        for name in includes(path)
        if home.get(name, folder) not in (folder, *known)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_circle_between_sources() -> None:
    """A source and its header count as one."""
    units: dict[str, set[str]] = {}
    for folder in ("include", "engine", "app"):
        for path in sources(folder):
            units.setdefault(path.stem, set()).update(Path(name).stem for name in includes(path))
    graph = {unit: (names & units.keys()) - {unit} for unit, names in units.items()}
    assert len(graph) > 30
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" <- ".join(error.args[1])) from None
