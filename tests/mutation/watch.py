# SPDX-License-Identifier: Apache-2.0
"""pytest plugins: which lines a test executes and how long it takes; which test failed."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Collection, Generator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest


class Killer:
    """Notes the test that failed, as soon as it has."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.unlink(missing_ok=True)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest."""
        if report.failed:
            self.path.write_text(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Called by pytest."""
        if report.failed:
            self.path.write_text(report.nodeid)


class Survey:
    """Notes for each test its CPU time and the lines of ``sources`` (Python files) that it executes."""

    def __init__(self, path: Path, sources: Collection[str], few: Collection[str] = ()) -> None:
        self.path = path
        self.few = frozenset(few)
        self.sources = frozenset(sources)
        self.seconds: dict[str, float] = {}
        self.lines: dict[str, dict[str, list[int]]] = {}
        self._seen: defaultdict[str, set[int]] = defaultdict(set)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Called by pytest; of the tests in ``few`` the first and the last set of parameters are run."""
        names = [item.nodeid.split("[")[0] for item in items]
        ends = {names.index(name) for name in names} | {len(names) - 1 - names[::-1].index(name) for name in names}
        items[:] = [item for k, item in enumerate(items) if k in ends or names[k] not in self.few]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Called by pytest."""
        self._seen.clear()
        begun = _cpu_time()
        if self.sources:
            threading.settrace(self._call)
            sys.settrace(self._call)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            threading.settrace(None)  # type: ignore[arg-type]
            self.seconds[item.nodeid] = _cpu_time() - begun
            self.lines[item.nodeid] = {name: sorted(lines) for name, lines in self._seen.items()}

    def pytest_sessionfinish(self) -> None:
        """Called by pytest."""
        self.path.write_text(json.dumps({"seconds": self.seconds, "lines": self.lines}))

    def _call(self, frame: FrameType, _event: str, _arg: object) -> Any:
        name = frame.f_code.co_filename
        if name not in self.sources:
            return None
        seen = self._seen[name]
        seen.add(frame.f_lineno)

        def line(frame: FrameType, _event: str, _arg: object) -> Any:
            seen.add(frame.f_lineno)
            return line

        return line


def _cpu_time() -> float:
    times = time.process_time()
    try:
        import resource

        children = resource.getrusage(resource.RUSAGE_CHILDREN)
    except ImportError:
        return times
    return times + children.ru_utime + children.ru_stime
