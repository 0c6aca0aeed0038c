# SPDX-License-Identifier: Apache-2.0
"""Mutants: small faults put into a source file, one at a time, and how a sample of them is drawn."""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Edit:
    """``text[start:end]`` becomes ``new``; offsets in characters.  ``operator``: the kind of fault."""

    start: int
    end: int
    new: str
    operator: str


@dataclass(frozen=True)
class Mutant:
    """One fault in one file.

    ``id`` follows from the line's text, not from its number, so that it stays the
    same while other lines change.
    """

    id: str
    file: str
    line: int
    operator: str
    before: str
    after: str
    text: str
    """The whole file with the fault."""

    def diff(self, original: str) -> str:
        """As a unified diff."""
        return "".join(
            difflib.unified_diff(
                original.splitlines(keepends=True), self.text.splitlines(keepends=True), self.file, self.id
            )
        )


def _digest(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def _lines(text: str, start: int, end: int) -> tuple[int, int]:
    """Where the lines begin and end that hold this part."""
    last = text.find("\n", end)
    return text.rfind("\n", 0, start) + 1, last if last >= 0 else len(text)


def from_edits(file: str, text: str, edits: Iterable[Edit]) -> list[Mutant]:
    """The mutants of one file, each text once."""
    result: dict[str, Mutant] = {}
    same: Counter[tuple[str, str, str]] = Counter()
    for edit in sorted(edits, key=lambda e: (e.start, e.end, e.new)):
        first, last = _lines(text, edit.start, edit.end)
        before = text[first:last].strip()
        after = (text[first : edit.start] + edit.new + text[edit.end : last]).strip()
        mutated = text[: edit.start] + edit.new + text[edit.end :]
        key = (edit.operator, before, after)
        same[key] += 1
        name = file.rsplit("/", 1)[-1].split(".")[0].removeprefix("scl_")
        number = _digest(file, *key, same[key])[:8]
        line = text.count("\n", 0, edit.start) + 1
        mutant = Mutant(f"{name}-{number}", file, line, edit.operator, before, after, mutated)
        if mutated != text:
            result.setdefault(mutated, mutant)
    return list(result.values())


def sample(mutants: Iterable[Mutant], count: int, seed: int) -> list[Mutant]:
    """``count`` of them in random order, drawn uniformly; one that is drawn stays so while others come and go."""
    return sorted(mutants, key=lambda m: _digest(seed, m.id))[:count]
