# SPDX-License-Identifier: Apache-2.0
"""How a board's firmware is built, derived from its board.toml.

Used by the PlatformIO builders next to it and by tests/boards; no SCons in
here, only the standard library.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from plain_paths import before, is_plain
from stack_bound import bound

ROOT = Path(os.path.abspath(__file__)).parents[2]
"""The project; in PlatformIO under the name that SCons knows it by (plain_paths.py), so links are kept."""
sys.path.append(str(ROOT))  # PlatformIO may run in a Python without the package
from spec.boards import Board  # noqa: E402

PARTS = ("engine", "app")
"""Folders of firmware/ that every board is built from: the library, and the application that serves the line."""
WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror")

# Compiler support for float and double (Arm RTABI 4.1.2, and GCC's own names),
# and everything that means a heap.
FLOAT_HELPERS = re.compile(
    r"__aeabi_(?:[fd]\w+|u?[il]2[fd]|c[fd]r?cmp\w+|h2[fd]\w*)"
    r"|__\w*[sdt]f[23]|__fix\w*[sdt]f[sd]i|__float\w*[sd]i[sdt]f"
)
HEAP = re.compile(r"_?(?:malloc|calloc|realloc|free)(?:_r)?|_*sbrk(?:_r)?")


def memory_ld(board: Board) -> str:
    """memory.ld, which firmware/port/cortexm/cortexm.ld includes."""
    memory = board.memory
    ram = f"ORIGIN = {memory.ram_origin:#010x}, LENGTH = {memory.ram_bytes}"
    code = f"ORIGIN = {memory.flash_origin:#010x}, LENGTH = {memory.flash_bytes}"
    lines = [f"/* From firmware/boards/{board.name}/board.toml; do not edit. */"]
    if memory.shared:
        lines += ["MEMORY", "{", f"  RAM (rwx) : {ram}", "}", 'REGION_ALIAS("CODE", RAM);']
    else:
        lines += ["MEMORY", "{", f"  CODE (rx) : {code}", f"  RAM (rwx) : {ram}", "}"]
    lines.append(f'REGION_ALIAS("HOT", {"RAM" if board.memory.code_in_ram else "CODE"});')
    lines.append(f"scl_stack_size = {memory.stack_bytes};")
    return "\n".join(lines) + "\n"


def extra_cflags(environment: Mapping[str, str] = os.environ) -> list[str]:
    """SCL_EXTRA_CFLAGS, for debug builds and sanitizers."""
    return shlex.split(environment.get("SCL_EXTRA_CFLAGS", ""))


def compile_flags(board: Board) -> list[str]:
    """Flags of every C file, without include folders."""
    host = board.on_host
    return [
        "-std=c11",
        *(["-D_POSIX_C_SOURCE=200809L"] if host else []),
        "-ffunction-sections",
        "-fdata-sections",
        "-fno-common",
        *WARNINGS,
        "-g",
        *([] if host else ["-fcallgraph-info=su"]),  # for stack_bound.py
        board.build.optimise,
        *board.build.cflags,
        *extra_cflags(),
    ]


def link_flags(board: Board, memory_folder: str, root: Path = ROOT) -> list[str]:
    """Flags of the link; memory_folder holds memory.ld."""
    flags = [flag for flag in extra_cflags() if flag.startswith("-fsanitize")]
    if board.on_host:
        return flags
    cpu = [flag for flag in board.build.cflags if flag.startswith("-m")]
    script = root / ldscript(board)
    return [
        *cpu,
        "-nostartfiles",
        "--specs=nano.specs",  # memcpy and memset; anything with a heap does not link
        "-Wl,--gc-sections",
        f"-L{memory_folder}",
        f"-T{script}",
        *flags,
    ]


def ldscript(board: Board) -> str:
    """The linker script, relative to the project."""
    return f"firmware/{board.build.ldscript}"


def board_sources(board: Board) -> list[str]:
    """port.c and the extra sources, relative to firmware/."""
    return [f"boards/{board.name}/port.c", *board.build.sources]


def firmware_sources(firmware: Path = ROOT / "firmware") -> list[Path]:
    """The C files that are the same on every board."""
    return [path for part in PARTS for path in sorted((firmware / part).glob("*.c"))]


def include_folders(generated: Path, root: Path = ROOT) -> list[Path]:
    """Where headers are found."""
    firmware = root / "firmware"
    return [generated, *(firmware / name for name in ("include", "engine", "app", "port"))]


def tool(board: Board, name: str) -> str:
    """gcc, nm, size, objcopy of the board's toolchain."""
    return name if board.on_host else f"arm-none-eabi-{name}"


def forbidden_symbols(names: Iterable[str]) -> list[str]:
    """Symbols of the image that mean float arithmetic or a heap."""
    return sorted({n for n in names if FLOAT_HELPERS.fullmatch(n) or HEAP.fullmatch(n)})


def check_image(board: Board, elf: str) -> str | None:
    """None when the linked image keeps the rules, else what is wrong."""
    if board.on_host:  # the host's C library brings both
        return None
    listing = subprocess.run([tool(board, "nm"), elf], check=True, capture_output=True, text=True).stdout
    found = forbidden_symbols(line.split()[-1] for line in listing.splitlines() if line)
    if not found:
        return None
    return (
        f"{elf} contains {', '.join(found)}: the engine uses neither float nor a heap on a "
        "target. Find the caller with arm-none-eabi-objdump -dr, or in the linker map."
    )


def stack_report(board: Board, objects: Path) -> tuple[str, bool]:
    """How much of its stack a firmware can need, and whether that is too much; objects: where the .ci files are."""
    planned = board.memory.stack_bytes
    try:
        most = bound(path.read_text(encoding="utf-8", errors="replace") for path in sorted(objects.rglob("*.ci")))
    except ValueError as error:
        return f"{board.name}: no bound of the stack is known: {error}", False
    report = f"{board.name}: stack at most {most.bytes} of {planned} bytes"
    if most.bytes <= planned:
        return report, False
    return (
        f"{report}, along {' > '.join(most.path)}. Raise stack_bytes in firmware/boards/{board.name}/board.toml, "
        "or learn fewer classes",
        True,
    )


def section_sizes(board: Board, elf: str) -> dict[str, int]:
    """Bytes of each section with an address."""
    listing = subprocess.run([tool(board, "size"), "-A", "-d", elf], check=True, capture_output=True, text=True).stdout
    rows = (line.split() for line in listing.splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 3 and row[0].startswith(".") and row[1].isdigit()}


def size_report(board: Board, elf: str) -> str:
    """What the image takes of the board's memory."""
    size = section_sizes(board, elf)
    memory = board.memory
    if board.on_host:
        data = size.get(".data", 0) + size.get(".bss", 0)
        return f"{board.name}: code {size.get('.text', 0)}, static data {data} bytes"
    data_init = size.get(".data", 0)
    hot = size.get(".hot", 0)
    code = size.get(".text", 0) + size.get(".ARM.exidx", 0) + hot + data_init
    stack = size.get(".stack", 0)
    ram = data_init + size.get(".bss", 0) + size.get(".noinit", 0) + stack
    if board.memory.code_in_ram:
        ram += hot
    if memory.shared:
        total = code + ram - data_init
        return (
            f"{board.name}: code {code - data_init} + data {ram} (stack {stack}) = {total} of "
            f"{memory.ram_bytes} bytes ({100 * total / memory.ram_bytes:.1f} %)"
        )
    return (
        f"{board.name}: flash {code} of {memory.flash_bytes} bytes "
        f"({100 * code / memory.flash_bytes:.1f} %), RAM {ram} of {memory.ram_bytes} bytes "
        f"({100 * ram / memory.ram_bytes:.1f} %, stack {stack})"
    )


def without_links(folder: Path) -> Path:
    """The folder itself, so that a link that moves is noticed; left alone where the link is there to hide its name."""
    found = folder.resolve()
    return found if is_plain(found) else Path(os.path.abspath(folder))


def named_folder(link: Path) -> Path:
    """Where a link points, or the file that is there in its place where the system allows no links."""
    return link.parent / link.read_text(encoding="utf-8") if link.is_file() else link


def generated_folder(
    board: str,
    python: str,
    root: Path = ROOT,
    environment: Mapping[str, str] = os.environ,
    project: Path = ROOT,
) -> Path:
    """The folder with the rendered C files; runs the generator when there is none.

    SCL_GENERATED names it; otherwise build/current/<board> in the folder of the
    project, a link (or a file that names the folder) that the generator makes.
    """
    named = environment.get("SCL_GENERATED")
    if named:
        folder = Path(named)
        header = folder / "scl_board.h"
        if not header.is_file():
            raise ValueError(f"SCL_GENERATED={named}: no scl_board.h in there")
        if f'SCL_BOARD_NAME "{board}"' not in header.read_text(encoding="utf-8"):
            raise ValueError(f"SCL_GENERATED={named} is for another board than {board}")
        return without_links(folder)
    folder = named_folder(project / "build" / "current" / board)
    if not (folder / "scl_board.h").is_file():
        command = [
            environment.get("SCL_PYTHON", python),
            *(
                "-m",
                "sparcl_mcu.host_tools.cli",
                "generate",
                str(root / "examples" / "split_digits.toml"),
                "--board",
                board,
            ),
        ]
        print(f"No generated sources for {board} yet, running: {shlex.join(command)}", flush=True)
        original, variables = before(environment)
        status = subprocess.run(command, cwd=original or project, env=variables, check=False).returncode
        folder = named_folder(project / "build" / "current" / board)
        if status != 0 or not (folder / "scl_board.h").is_file():
            raise ValueError(
                f"{shlex.join(command)} ended with {status} and left no {folder}/scl_board.h. "
                "Run it yourself, or set SCL_GENERATED (or SCL_PYTHON: the Python that has "
                "the project's requirements)."
            )
    return without_links(folder)
