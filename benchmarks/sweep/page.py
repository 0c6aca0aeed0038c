# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/results.md, from the sweeps of examples/sweeps as they were last run: `make results`.

python -m benchmarks.sweep.page split_mnist ...
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from generator.boards import ROOT
from generator.errors import UserError
from generator.pipeline import build_folder
from host_tools import cli

from .sweep import CSV, TABLE

PAGE = ROOT / "docs" / "results.md"
RUNS = PAGE.parent / "results"


def update(name: str, page: Path = PAGE, runs: Path = RUNS) -> None:
    """Put a sweep's table into the page, between its marks, and its runs beside it.

    Raises ``UserError`` where the sweep has not been run, or the page has no place for it.
    """
    done = build_folder() / "sweeps" / name
    if not (done / TABLE).is_file():
        raise UserError(f"{done / TABLE} does not exist: run `sparcl sweep examples/sweeps/{name}.toml` first")
    text, table = page.read_text(encoding="utf-8"), (done / TABLE).read_text(encoding="utf-8")
    marked = re.compile(rf"(<!-- sweep {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not marked.search(text):
        raise UserError(f"{page} has no line <!-- sweep {name} --> with <!-- end --> below it")
    page.write_text(marked.sub(lambda m: m[1] + table + m[2], text), encoding="utf-8")
    runs.mkdir(exist_ok=True)
    shutil.copy(done / CSV, runs / f"{name}.csv")


def _main(names: list[str]) -> int:
    for name in names:
        update(name)
        print(f"{PAGE}: {name}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.call(lambda: _main(sys.argv[1:])))
