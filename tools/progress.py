# SPDX-License-Identifier: Apache-2.0
"""What pip or apt-get is at, from the lines it prints: which package, and how much is left.

Standard library only: tools/setup.py uses it before there is an environment.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Protocol


class Progress(Protocol):
    """Is given each line of a command; `str` of it says what the command is doing, or is empty."""

    def take(self, line: str) -> None: ...


def megabytes(size: float) -> str:
    """Bytes as pip prints them: 12.3 MB."""
    return f"{size / 1e6:.1f} MB"


def _normal(name: str) -> str:
    """A package's name, which can be spelt in several ways (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


class PipProgress:
    """Progress of `pip install`, in the words of pip 22 to 25.

    Where an index offers metadata by itself, pip first looks all packages up and then
    fetches them, so that their number is known; else it fetches each to look it up.
    """

    _FOUND = re.compile(r"^(?:Collecting|Processing) (?:.*/)?([\w.-]+)")
    _FETCH = re.compile(r"^(\s*)(?:Downloading|Using cached) (\S+) \((.+)\)$")
    _BYTES = re.compile(r"^\s*Progress (\d+) of (\d+)$")
    _INSTALL = re.compile(r"^Installing collected packages: (.+)$")

    def __init__(self, site_packages: Callable[[], Path | None]) -> None:
        """`site_packages`: where pip installs to, None as long as there is none."""
        self._site_packages = site_packages
        self._found = 0
        self._fetched = 0
        self._all: list[str] = []
        self._text = ""
        self._left = ""

    def take(self, line: str) -> None:
        """Understand one line."""
        line = line.rstrip()
        if match := self._FOUND.match(line):
            self._found += 1
            name = match[1].split("-")[0] if line.endswith(".whl") or ".whl " in line else match[1]
            self._say(f"looking up {name}, package {self._found}")
        elif (match := self._FETCH.match(line)) and not match[2].endswith(".metadata"):
            self._fetched += 1
            name = " ".join(PurePosixPath(match[2]).name.split("-")[:2])
            place = f"package {self._found}" if match[1] else f"{self._fetched} of {self._found} packages"
            self._say(f"fetching {name} ({match[3]}), {place}")
        elif match := self._BYTES.match(line):
            done, size = int(match[1]), int(match[2])
            self._left = f", {megabytes(size - done)} left" if done < size else ""
        elif match := self._INSTALL.match(line):
            self._all = [_normal(name) for name in match[1].split(", ")]
            self._say("")

    def _say(self, text: str) -> None:
        self._text, self._left = text, ""

    def __str__(self) -> str:
        if not self._all:
            return self._text + self._left
        folder = self._site_packages()
        there = {_normal(path.name.split("-")[0]) for path in folder.glob("*.dist-info")} if folder else set()
        left = [name for name in self._all if name not in there]
        at = f", now {left[0]}" if left else ""
        return f"installing {len(self._all)} packages, {len(left)} left{at}"


class AptProgress:
    """Progress of `apt-get install`, which speaks English when LC_ALL is C."""

    _COUNT = re.compile(r"^\d+ upgraded, (\d+) newly installed")
    _STEPS = (
        ("fetching", re.compile(r"^Get:\d+ \S+ \S+ \S+ (\S+) \S+ \S+ \[.+\]$")),
        ("unpacking", re.compile(r"^Unpacking (\S+) ")),
        ("setting up", re.compile(r"^Setting up (\S+) ")),
    )

    def __init__(self) -> None:
        self._count = 0
        self._done = dict.fromkeys((verb for verb, _ in self._STEPS), 0)
        self._text = ""

    def take(self, line: str) -> None:
        """Understand one line."""
        line = line.rstrip()
        if match := self._COUNT.match(line):
            self._count = int(match[1])
        for verb, pattern in self._STEPS:
            if match := pattern.match(line):
                self._done[verb] += 1
                self._text = f"{verb} {match[1].split(':')[0]}, {self._done[verb]} of {self._count} packages"

    def __str__(self) -> str:
        return self._text
