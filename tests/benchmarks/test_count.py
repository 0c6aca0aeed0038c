# SPDX-License-Identifier: Apache-2.0
"""Disassembly, symbols and loops: how counts become figures.  The code is what gcc made of real kernels."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from sparcl_mcu.benchmarks import count, cycles, loops
from sparcl_mcu.benchmarks.count import Instruction, Program

LISTING = """
00003120 <l1_forward>:
    3120:	e92d 4ff0 	stmdb	sp!, {r4, r5, r6, r7, r8, r9, sl, fp, lr}
    3124:	4da9      	ldr	r5, [pc, #676]	@ (33cc <l1_forward+0x2ac>)
    3128:	f837 6f02 	ldrh.w	r6, [r7, #2]!
    312c:	fb16 330e 	smlabb	r3, r6, lr, r3
    3130:	42b7      	cmp	r7, r6
    3132:	d1f9      	bne.n	3128 <l1_forward+0x8>
    3134:	3a01      	subs	r2, #1
    3136:	d1f7      	bne.n	3128 <l1_forward+0x8>
    3138:	e8bd 8ff0 	ldmia.w	sp!, {r4, r5, r6, r7, r8, r9, sl, fp, pc}
    313c:	0000 1234 	.word	0x00001234
"""


def executions(counts: list[int]) -> list[tuple[Instruction, int]]:
    code = count.parse_disassembly(LISTING)
    return list(zip(code, counts, strict=True))


def test_disassembly() -> None:
    code = count.parse_disassembly(LISTING)
    assert [i.mnemonic for i in code] == ["stmdb", "ldr", "ldrh", "smlabb", "cmp", "bne", "subs", "bne", "ldmia"]
    assert code[0] == Instruction(0x3120, 4, "stmdb", "sp!, {r4, r5, r6, r7, r8, r9, sl, fp, lr}")
    assert code[1].size == 2
    assert loops.branch_target(code[5]) == 0x3128
    assert loops.branch_target(code[6]) is None


def test_inner_loops_take_the_innermost_that_multiplies() -> None:
    # 10 lines of 4: the loop over lines has 2 instructions of its own, which are not counted.
    found = loops.inner_loops(executions([1, 1, 40, 40, 40, 40, 10, 10, 1]))
    assert found == (160, 40)


def test_dual_products_count_twice() -> None:
    def of(mnemonic: str) -> int:
        return loops.macs(Instruction(0, 4, mnemonic, ""))

    assert [of(m) for m in ("smlad", "smladx", "smlald", "mla", "smlabb", "muls", "add", "smlatt")] == [
        2,
        2,
        2,
        1,
        1,
        1,
        0,
        1,
    ]
    assert of("vmladava.s16") == 8
    assert of("ldr") == 0


def test_taken_branches_come_from_what_follows() -> None:
    code = executions([1, 1, 40, 40, 40, 40, 10, 10, 1])
    assert cycles.taken_branches(code) == {0x3132: 30, 0x3136: 9}


def test_taken_branches_where_paths_meet() -> None:
    text = """
    100:	b108      	cbz	r0, 106 <f+0x6>
    102:	3001      	adds	r0, #1
    104:	e000      	b.n	108 <f+0x8>
    106:	3002      	adds	r0, #2
    108:	4770      	bx	lr
"""
    code = list(zip(count.parse_disassembly(text), [10, 7, 7, 3, 10], strict=True))
    assert cycles.taken_branches(code) == {0x100: 3, 0x104: 7}


def test_cycles_of_each_core() -> None:
    code = executions([1, 1, 40, 40, 40, 40, 10, 10, 1])
    taken = 39 * 2
    m4 = (1 + 9) + 2 + 40 * 2 + 40 + 40 + 40 + 10 + 10 + (1 + 9 + 2)
    assert cycles.estimate(code, "cortex-m4") == m4 + taken
    assert cycles.estimate(code, "cortex-m55") is None


def test_neighbouring_loads_overlap() -> None:
    text = """
    100:	6808      	ldr	r0, [r1, #0]
    102:	684a      	ldr	r2, [r1, #4]
"""
    code = count.parse_disassembly(text)
    assert cycles.estimate(list(zip(code, [8, 8], strict=True)), "cortex-m4") == 8 * 2 + 8
    # The second one is entered by a jump most of the time.
    assert cycles.estimate(list(zip(code, [1, 8], strict=True)), "cortex-m4") == 2 + 8 * 2


def test_m3_pays_for_multiply_accumulate_and_m0_for_loads() -> None:
    text = """
    100:	fb01 0002 	mla	r0, r1, r2, r0
    104:	6808      	ldr	r0, [r1, #0]
    106:	bd10      	pop	{r4, pc}
"""
    code = list(zip(count.parse_disassembly(text), [5, 5, 1], strict=True))
    assert cycles.estimate(code, "cortex-m3") == 5 * 2 + 5 * 2 + (3 + 2)
    assert cycles.estimate(code, "cortex-m4") == 5 + 5 * 2 + (3 + 2)
    assert cycles.estimate(code[1:], "cortex-m0") == 5 * 2 + (3 + 3)


def test_energy() -> None:
    # One second at 3 V and 4.4 mA.
    assert cycles.energy(16e6, clock_hz=16e6, supply_v=3.0, active_ma=4.4) == pytest.approx(13_200)


def test_layers_are_told_by_name() -> None:
    functions = {"l1_forward": 10, "l10_backward": 5, "l2_forward": 3, "l2_error": 1, "l1_forward_table": 7, "main": 2}
    assert count.by_layer(functions) == {
        "l1": {"forward": 10},
        "l2": {"forward": 3, "error": 1},
        "l10": {"backward": 5},
    }


@pytest.mark.board
@pytest.mark.skipif(shutil.which("arm-none-eabi-gcc") is None, reason="needs arm-none-eabi-gcc")
def test_counts_are_mapped_to_functions_and_clones_count_as_one(tmp_path: Path) -> None:
    source = """
    .syntax unified
    .thumb
    .macro function name, length
    .type \\name, %function
    .thumb_func
    .global \\name
    \\name: .rept \\length
    nop
    .endr
    .size \\name, . - \\name
    .endm
    function l1_forward, 3
    function l1_forward.part.0, 2
    function main, 4
    nop
    """
    (tmp_path / "a.s").write_text(source)
    image = tmp_path / "a.elf"
    command = ["arm-none-eabi-gcc", "-mcpu=cortex-m4", "-nostdlib", "-Wl,-Ttext=0x100,-e,main", "-o", str(image)]
    subprocess.run([*command, str(tmp_path / "a.s")], check=True)
    program = Program(image, ((0, 0x1000), (0x20000000, 0x100)))
    counts = np.zeros(0x1100 // 2, dtype=np.uint64)
    counts[0x100 // 2 : 0x100 // 2 + 10] = [1, 1, 1, 5, 5, 2, 2, 2, 2, 9]
    assert program.by_function(counts) == {"l1_forward": 13, "main": 8, count.NO_FUNCTION: 9}
    assert program.slot(0x20000004) == 0x1004 // 2
    assert program.slot(0x10000000) is None
    assert [n for _, n in program.executions(counts)] == [1, 1, 1, 5, 5, 2, 2, 2, 2, 9]
