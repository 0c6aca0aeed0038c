# SPDX-License-Identifier: Apache-2.0
"""Commands that compile one source of the engine for models that differ: do they see a difference at all?"""

from __future__ import annotations

from pathlib import Path

from tests.firmware.native import flags, generate
from tests.fuzz.programs import SUBJECTS

KEY = bytes(range(32))


def commands(folder: Path) -> list[list[str]]:
    """gcc with all options but source and object: with and without masks, replayed logits, mapped flash and a key."""
    result = []
    for name, key in (("derpp", KEY), ("conv", None), ("dense", None), ("latent", KEY)):
        subject = SUBJECTS[name]
        generated = generate(subject.model(), subject.board(), folder / name, key)
        given = flags(generated, ("-O2",))
        options = [f for f in given if not f.startswith(("-fsanitize", "-fno-sanitize", "-g", "-W"))]
        result.append(["gcc", *options, "-w", "-c"])
    return result
