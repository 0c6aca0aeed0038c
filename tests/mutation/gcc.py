# SPDX-License-Identifier: Apache-2.0
"""Stands before gcc while mutants are tried: keeps objects, since all but one source are always the same.

    gcc.py GCC CACHE ARGUMENT...

An object is known by its source, all headers in the folders given and the other
options.  The source that ``SPARCL_MUTATED`` names is never kept.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

PASS_ON = ("--coverage", "-E", "-fsyntax-only", "-include", "-MM", "-fanalyzer")


def key(source: Path, options: list[str]) -> str:
    """What the object depends on."""
    digest = hashlib.sha256("\0".join(o for o in options if not o.startswith(("-I", "-Wl,", "-l"))).encode())
    for folder in (source.parent, *(Path(o[2:]) for o in options if o.startswith("-I"))):
        for header in sorted(folder.glob("*.h")):
            digest.update(header.name.encode() + header.read_bytes())
    digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()


def mutated(source: Path) -> bool:
    """Whether it is the mutant's source, or includes it: tests compile the engine in one piece."""
    mutant = Path(os.environ.get("SPARCL_MUTATED", "/")).resolve()
    return source.resolve() == mutant or f'#include "{mutant.name}"' in source.read_text()


def compiled(gcc: str, cache: Path, source: Path, options: list[str], scratch: str) -> str:
    """The object of one source; SystemExit when gcc refuses it."""
    kept = cache / f"{key(source, options)}.o"
    if kept.exists() and not mutated(source):
        return str(kept)
    fresh = str(Path(scratch) / f"{source.stem}.o")
    if subprocess.call([gcc, *(o for o in options if not o.startswith("-Wl,")), "-c", str(source), "-o", fresh]):
        sys.exit(1)
    if mutated(source):
        return fresh
    half = cache / f"{kept.name}.{os.getpid()}"
    half.write_bytes(Path(fresh).read_bytes())
    half.replace(kept)
    return str(kept)


def main() -> int:
    """As gcc."""
    gcc, cache, *arguments = sys.argv[1:]
    sources = [a for a in arguments if a.endswith(".c")]
    if not sources or "-o" not in arguments or any(a in PASS_ON for a in arguments):
        os.execv(gcc, [gcc, *arguments])
    at = arguments.index("-o")
    image = arguments[at + 1]
    rest = arguments[:at] + arguments[at + 2 :]
    objects = [a for a in rest if a.endswith((".o", ".a"))]
    options = [a for a in rest if a not in sources and a not in objects and a != "-c"]
    with tempfile.TemporaryDirectory() as scratch:
        made = {s: compiled(gcc, Path(cache), Path(s), options, scratch) for s in sources}
        if "-c" in rest:
            Path(image).write_bytes(Path(made[sources[0]]).read_bytes())
            return 0
        return subprocess.call([gcc, *(made.get(a, a) for a in rest), "-o", image])


if __name__ == "__main__":
    sys.exit(main())
