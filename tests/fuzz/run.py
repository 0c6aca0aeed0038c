# SPDX-License-Identifier: Apache-2.0
"""`make fuzz`: libFuzzer on the frame parser, the command handlers and the journal's mount.

The last line gives executions and crashes; exit status 1 when there was one.  What fails is kept in build/fuzz/found,
what covers more than the inputs in tests/fuzz/corpus in build/fuzz/corpus: `--keep` puts the least set of both that
covers as much into tests/fuzz/corpus.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from sparcl_mcu.spec.paths import ROOT
from tests.fuzz.programs import CORPUS, PROGRAMS, SUBJECTS, TARGETS, Program, build

FOLDER = ROOT / "build" / "fuzz"
FOUND = FOLDER / "found"
LONGEST = 400
"""Bytes of an input."""
TIMEOUT = 10
"""Seconds after which an input counts as an endless loop; none takes more than a few hundredths."""


@dataclass(frozen=True)
class Result:
    """What libFuzzer said of one program: edges and features covered, failures that it kept."""

    program: Program
    executions: int
    edges: int
    features: int
    failed: tuple[Path, ...]

    def line(self) -> str:
        """For the report."""
        failed = "".join(f"\n    {path.relative_to(ROOT)}" for path in self.failed)
        return (
            f"{self.program.name:<18} {self.executions:>9} executions, {self.edges:>5} edges, "
            f"{self.features:>6} features, {len(self.failed)} crashes{failed}"
        )


def fuzz(program: Program, image: Path, seconds: float) -> Result:
    """Run one program until the time is over; it continues after a crash."""
    corpus, found = FOLDER / "corpus" / program.name, FOUND / program.name
    corpus.mkdir(parents=True, exist_ok=True)
    found.mkdir(parents=True, exist_ok=True)
    limits = [f"-max_len={LONGEST}", f"-timeout={TIMEOUT}", f"-max_total_time={max(1, round(seconds))}"]
    endless = ["-fork=1", "-ignore_crashes=1", "-ignore_timeouts=1", "-ignore_ooms=1"]
    command = [image, *endless, *limits, f"-artifact_prefix={found}/", corpus, program.corpus]
    started = time.time()
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, cwd=FOLDER)
    (FOLDER / f"{program.name}.log").write_text(done.stderr)
    counted = re.findall(r"^#(\d+): cov: (\d+) ft: (\d+)", done.stderr, re.MULTILINE)
    if not counted:
        raise RuntimeError(f"{program.name} did not run:\n{done.stderr[-3000:]}")
    executions, edges, features = map(int, counted[-1])
    failed = sorted(path for path in found.iterdir() if path.stat().st_mtime >= started)  # named by their contents
    return Result(program, executions, edges, features, tuple(failed))


def build_all(jobs: int) -> dict[str, Path]:
    """All programs by name."""
    with ThreadPoolExecutor(jobs) as pool:
        parts = pool.map(lambda subject: build(subject, FOLDER / "programs" / subject, fuzzer=True), SUBJECTS)
        return {name: image for part in parts for name, image in part.items()}


def minimise(images: dict[str, Path]) -> None:
    """Replace tests/fuzz/corpus by the least set that covers as many edges; what failed once (found-*) stays."""
    for target in TARGETS:
        programs = [p for p in PROGRAMS if p.target == target]
        with tempfile.TemporaryDirectory() as temporary:
            kept = Path(temporary)
            for program in programs:
                merge(images[program.name], kept, [program.corpus, FOLDER / "corpus" / program.name])
            for path in CORPUS.joinpath(target).iterdir():
                if not path.name.startswith("found-"):
                    path.unlink()
            for path in sorted(kept.iterdir()):
                content = path.read_bytes()
                (CORPUS / target / hashlib.sha256(content).hexdigest()[:12]).write_bytes(content)


def merge(image: Path, kept: Path, inputs: Iterable[Path]) -> None:
    """Add what covers edges that ``kept`` does not."""
    command = [image, "-merge=1", "-use_counters=0", f"-max_len={LONGEST}", kept, *inputs]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, cwd=FOLDER)
    if done.returncode != 0:
        raise RuntimeError(f"merge failed:\n{done.stderr[-3000:]}")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="for all programs together, on all cores")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="programs whose name begins so")
    parser.add_argument("--keep", action="store_true", help="minimise into tests/fuzz/corpus")
    options = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    images = build_all(options.jobs)
    programs = [p for p in PROGRAMS if p.name.startswith(options.only)]
    each = options.seconds * options.jobs / len(programs)
    results = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for result in pool.map(lambda p: fuzz(p, images[p.name], each), programs):
            print(result.line(), flush=True)
            results.append(result)
    if options.keep:
        minimise(images)
    crashes = sum(len(r.failed) for r in results)
    print(f"fuzz: {sum(r.executions for r in results)} executions, {crashes} crashes")
    return 1 if crashes else 0


if __name__ == "__main__":
    sys.exit(main())
