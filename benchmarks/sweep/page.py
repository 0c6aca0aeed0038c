# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/evidence/results.md, from what was kept of the sweeps of examples/sweeps: `make results`.

python -m sparcl_mcu.benchmarks.sweep.page split_mnist ...
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from sparcl_mcu.host_tools import failures
from sparcl_mcu.spec.errors import UserError
from sparcl_mcu.spec.paths import ROOT

from . import plan, results, sweep

SWEEPS = ROOT / "examples" / "sweeps"
PAGE = ROOT / "docs" / "evidence" / "results.md"
RUNS = PAGE.parent / "results"


def update(name: str, sweeps: Path = SWEEPS, page: Path = PAGE, runs: Path = RUNS) -> None:
    """Put a sweep's table into the page, between its marks, and its runs beside it.

    As the sweep file says, whatever options it was last run with.  Raises ``UserError`` where a
    run of it has not been done, or the page has no place for it.
    """
    file = sweeps / f"{name}.toml"
    outcome = sweep.so_far(plan.load(file))
    if missing := len(outcome.todo()):
        raise UserError(f"{missing} runs of {file} have not been done with this code: `sparcl sweep {file}` does them")
    text, table = page.read_text(encoding="utf-8"), results.markdown(outcome.rows())
    marked = re.compile(rf"(<!-- sweep {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not marked.search(text):
        raise UserError(f"{page} has no line <!-- sweep {name} --> with <!-- end --> below it")
    page.write_text(marked.sub(lambda m: m[1] + table + m[2], text), encoding="utf-8")
    runs.mkdir(exist_ok=True)
    results.write_csv(runs / f"{name}.csv", outcome.results())


def _main(names: list[str]) -> int:
    for name in names:
        update(name)
        print(f"{PAGE}: {name}")
    return 0


if __name__ == "__main__":
    sys.exit(failures.call(lambda: _main(sys.argv[1:])))
