# SPDX-License-Identifier: Apache-2.0
"""What the inner loops of a kernel cost per multiply-accumulate, from the executions of each instruction."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .count import Instruction

Executions = Sequence[tuple[Instruction, int]]

_TARGET = re.compile(r"(?:^|,\s*)([0-9a-f]+)(?: <|$)")
_BRANCH = re.compile(r"(?:b(?:eq|ne|cs|cc|mi|pl|vs|vc|hi|ls|ge|lt|gt|le|hs|lo)?|cbn?z|letp|le|wls|wlstp\.\d+|bf)$")
_DUAL = re.compile(r"sm(?:la|ls|ua|us)l?d")
_SINGLE = re.compile(r"(?:muls?|mla|mls|smul[bt][bt]|smla[bt][bt]|smulw[bt]|smlaw[bt]|smull|smlal|umull|umlal)")
_VECTOR = re.compile(r"v(?:f?r?q?d?mla|mul|q?r?dmul|mla|mlsl?d?av)\w*\.[siu](8|16|32)")


def branch_target(instruction: Instruction) -> int | None:
    """Where a direct branch inside a function goes; None for anything else."""
    if not _BRANCH.match(instruction.mnemonic):
        return None
    match = _TARGET.search(instruction.operands)
    return int(match[1], 16) if match else None


def is_conditional(instruction: Instruction) -> bool:
    """Whether a branch may fall through."""
    return instruction.mnemonic != "b"


def macs(instruction: Instruction) -> int:
    """Multiply-accumulates that one execution does: two of the dual 16-bit ones, a vector's lanes with Helium."""
    if _DUAL.match(instruction.mnemonic):
        return 2
    vector = _VECTOR.match(instruction.mnemonic)
    if vector is not None:
        return 128 // int(vector[1])
    return 1 if _SINGLE.match(instruction.mnemonic) else 0


def inner_loops(executions: Executions) -> tuple[int, int]:
    """(instructions, multiply-accumulates) executed in the innermost loops that multiply.

    ``executions``: the code of one function by address.  A loop is what lies
    between the target of a backward branch and the branch.
    """
    loops = set()
    for instruction, count in executions:
        target = branch_target(instruction)
        if count and target is not None and executions[0][0].address <= target <= instruction.address:
            loops.add((target, instruction.address))
    instructions = products = 0
    for first, last in loops:
        if any((a, b) != (first, last) and first <= a and b <= last for a, b in loops):
            continue
        body = [(i, n) for i, n in executions if first <= i.address <= last]
        done = sum(n * macs(i) for i, n in body)
        if done:
            instructions += sum(n for _, n in body)
            products += done
    return instructions, products
