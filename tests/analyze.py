# SPDX-License-Identifier: Apache-2.0
"""`make analyze`: cppcheck and GCC's analyzer over the firmware and the code generated for three models.

Both have to find nothing.  What is right all the same is marked in the source, with the reason.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sparcl_mcu.generator.render import render
from sparcl_mcu.spec.paths import ROOT
from tests.firmware.native import board_build
from tests.fuzz.programs import SUBJECTS

MODELS = ("sparse", "conv", "latent")
PORT = ROOT / "firmware" / "port"
CPPCHECK = (
    *("cppcheck", "-q", "--std=c11", "--inline-suppr", "--error-exitcode=1"),
    "--enable=warning,performance,portability",
    "--suppress=missingIncludeSystem",
)
ANALYZER = ("gcc", "-std=c11", "-O1", "-fanalyzer", "-Wall", "-Wextra", "-Werror", "-c", "-o", "/dev/null")


def commands(folder: Path) -> list[list[str]]:
    """All runs; engine and application are analyzed with the constants of each model."""
    result = []
    for name in MODELS:
        generated = folder / name
        generated.mkdir()
        for file, text in render(SUBJECTS[name].model(), SUBJECTS[name].board()).items():
            (generated / file).write_text(text)
        include = [f"-I{path}" for path in board_build.include_folders(generated)]
        sources = [*board_build.firmware_sources(), *sorted(generated.glob("*.c"))]
        if name == MODELS[0]:
            sources += [PORT / "spi_nor.c"]
        for part in (sources[::2], sources[1::2]):
            result.append([*CPPCHECK, *include, *map(str, part)])
        for source in sources:
            result.append([*ANALYZER, *include, str(source)])
    return result


def run(command: list[str]) -> str:
    """What the tool found, and how it was called."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else f"{' '.join(command)}\n{done.stdout}{done.stderr}"


def main() -> int:
    """1 when something was found."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        runs = commands(Path(folder))
        found = [text for text in pool.map(run, runs) if text]
    print("\n".join(found), end="")
    print(f"analyze: {len(runs)} runs of cppcheck and gcc -fanalyzer, {len(found)} with findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
