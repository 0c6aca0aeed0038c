# SPDX-License-Identifier: Apache-2.0
"""An estimate of cycles, from the executions of each instruction and Arm's published timings.

Sources: Cortex-M0 Technical Reference Manual (DDI 0432C), table 3-1;
Cortex-M3 (DDI 0337I) and Cortex-M4 (DDI 0439B), "Instruction set summary".
Where a manual gives a range, the middle is taken: a pipeline refill P of 2
(1 to 3), a division of 7 cycles (2 to 12).  Memory answers without wait
states, which on-chip flash often does not; so this is an estimate, not a
measurement.  Arm publishes no such table for Cortex-M55.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable

from .count import Instruction
from .loops import Executions, branch_target, is_conditional

REFILL = 2
DIVISION = 7

_LOAD = re.compile(r"ldr(?:b|h|sb|sh|ex|t)?$")
_STORE = re.compile(r"str(?:b|h|ex|t)?$")
_MANY = re.compile(r"(?:ldm|stm)\w*$|push$|pop$")
_CONDITION = re.compile(r"(?:eq|ne|cs|cc|mi|pl|vs|vc|hi|ls|ge|lt|gt|le|hs|lo)$")
_WITH_CONDITION = re.compile(
    r"^(add|sub|mov|mvn|ldr[bh]?|ldrs[bh]|str[bh]?|mla|mul|bx|pop|ldmia|asr|lsl|lsr|rsb|orr|and)$"
)


def estimate(executions: Executions, core: str) -> int | None:
    """Cycles of the code (by address) on a core as board.toml names it; None where no timings are published."""
    cost = _CORES.get(core)
    if cost is None:
        return None
    taken = taken_branches(executions)
    total, previous = 0, ("", 0)
    for instruction, count in executions:
        name = _bare(instruction.mnemonic)
        # Code that lies before it but was executed another number of times did not run before it.
        before = previous[0] if previous[1] == count else ""
        total += count * cost(instruction, name, before) + taken.get(instruction.address, 0) * _refill(core)
        previous = (name, count)
    return total


def taken_branches(executions: Executions) -> dict[int, int]:
    """How often each direct branch was taken, by its address.

    A conditional branch falls through as often as the instruction after it is
    executed, less the times other branches go there.  Where these are not
    known either, the least number is taken.
    """
    count = {i.address: n for i, n in executions}
    arriving: dict[int, list[int]] = defaultdict(list)
    taken: dict[int, int] = {}
    open_branches: dict[int, int] = {}
    for instruction, n in executions:
        target = branch_target(instruction)
        if target is None:
            continue
        arriving[target].append(instruction.address)
        if is_conditional(instruction):
            open_branches[instruction.address] = instruction.address + instruction.size
        else:
            taken[instruction.address] = n
    progress = True
    while open_branches and progress:
        progress = False
        for address, after in list(open_branches.items()):
            others = [b for b in arriving[after] if b != address]
            if all(b in taken for b in others):
                falls = count.get(after, 0) - sum(taken[b] for b in others)
                taken[address] = min(max(count[address] - falls, 0), count[address])
                del open_branches[address]
                progress = True
    for address, after in open_branches.items():
        taken[address] = max(count[address] - count.get(after, 0), 0)
    return taken


def energy(cycles: float, clock_hz: float, supply_v: float, active_ma: float) -> float:
    """Microjoules of ``cycles`` at the documented clock, supply voltage and current of the running core."""
    return cycles / clock_hz * supply_v * active_ma * 1e3


def _bare(mnemonic: str) -> str:
    """The mnemonic without the condition an IT block gives it; branches keep theirs."""
    bare = _CONDITION.sub("", mnemonic)
    return bare if _WITH_CONDITION.match(bare) else mnemonic


def _registers(operands: str) -> int:
    """Registers in a list such as {r0, r4, lr}; objdump writes no ranges."""
    return operands[operands.find("{") :].count(",") + 1


def _writes_pc(instruction: Instruction, name: str) -> bool:
    if name in ("bx", "blx", "bl", "tbb", "tbh"):
        return True
    if name in ("pop", "ldm", "ldmia", "ldmdb"):
        return "pc" in instruction.operands[instruction.operands.find("{") :]
    return instruction.operands.startswith("pc,")


def _refill(core: str) -> int:
    """Cycles a taken branch costs besides the one of a branch not taken."""
    return 2 if core == "cortex-m0" else REFILL


def _cortex_m0(instruction: Instruction, name: str, previous: str) -> int:
    jump = _writes_pc(instruction, name)
    if _MANY.match(name):
        return 1 + _registers(instruction.operands) + (3 if jump else 0)
    if _LOAD.match(name) or _STORE.match(name):
        return 2
    if name == "bl" or name in ("mrs", "msr", "dmb", "dsb", "isb"):
        return 4
    return 3 if jump else 1


def _cortex_m3_m4(multiply: Callable[[str], int]) -> Callable[[Instruction, str, str], int]:
    def cost(instruction: Instruction, name: str, previous: str) -> int:
        jump = REFILL if _writes_pc(instruction, name) else 0
        if _MANY.match(name):
            return 1 + _registers(instruction.operands) + jump
        if name in ("ldrd", "strd"):
            return 3
        if _LOAD.match(name):
            # Neighbouring loads overlap their address and data phases.
            return (1 if _LOAD.match(previous) else 2) + jump
        if name in ("sdiv", "udiv"):
            return DIVISION
        if name in ("tbb", "tbh"):
            return 2 + jump
        return multiply(name) + jump

    return cost


def _multiply_m3(name: str) -> int:
    """Cycles of a multiplication on a Cortex-M3 (1 for everything else); long products take 3 to 5 and 4 to 7."""
    return {"mla": 2, "mls": 2, "smull": 4, "umull": 4, "smlal": 5, "umlal": 5}.get(name, 1)


def _multiply_m4(name: str) -> int:
    return 1


_CORES: dict[str, Callable[[Instruction, str, str], int]] = {
    "cortex-m0": _cortex_m0,
    "cortex-m3": _cortex_m3_m4(_multiply_m3),
    "cortex-m4": _cortex_m3_m4(_multiply_m4),
}
