# SPDX-License-Identifier: Apache-2.0
"""True sizes of a built image, in the regions of the memory plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from sparcl_mcu.generator.plan import CODE_IN_RAM, Plan
from sparcl_mcu.spec.errors import BoardError

_ALLOC, _WRITE = 0x2, 0x1


@dataclass(frozen=True)
class ImageSizes:
    """Bytes by region; ``ram`` includes the stack that is set aside."""

    ram: dict[str, int]
    flash: dict[str, int]


def measure(path: Path, plan: Plan) -> ImageSizes:
    """Sizes of the ELF image at ``path``.

    Regions that the plan knows exactly keep its figure; "engine" and "engine
    code" are what the linker put there besides.
    """
    try:
        with path.open("rb") as file:
            elf = ELFFile(file)
            constant, variable = _sections(elf)
            hot = elf.get_section_by_name(".hot")
            initial = _symbols(elf, lambda name: name.endswith("_initial"))
            frozen = _symbols(elf, lambda name: name.startswith("prefix"))
    except (OSError, ELFError) as error:
        raise BoardError(f"{path} cannot be read as a firmware image: {error}") from error
    ram = {row.name: row.size for row in plan.ram}
    ram["engine"] = variable - sum(size for name, size in ram.items() if name not in ("engine", "stack", CODE_IN_RAM))
    if CODE_IN_RAM in ram:
        ram[CODE_IN_RAM] = hot["sh_size"] if hot else 0
    flash = {"engine code": constant - initial - frozen, "initial model": initial, "frozen layers": frozen}
    return ImageSizes(ram, {name: size for name, size in flash.items() if size})


def _sections(elf: ELFFile) -> tuple[int, int]:
    """Bytes of (code and constants, variables) in memory, the stack's section left out."""
    constant = variable = 0
    for section in elf.iter_sections():
        flags, size = section["sh_flags"], section["sh_size"]
        if not flags & _ALLOC or section.name == ".stack":
            continue
        if flags & _WRITE:
            variable += size
            constant += size if section.name == ".data" else 0  # initial values of variables lie in flash too
        else:
            constant += size
    return constant, variable


def _symbols(elf: ELFFile, wanted: Callable[[str], bool]) -> int:
    """Bytes of the objects whose name is ``wanted``."""
    table = elf.get_section_by_name(".symtab")
    if not isinstance(table, SymbolTableSection):
        return 0
    return sum(
        symbol["st_size"]
        for symbol in table.iter_symbols()
        if symbol["st_info"]["type"] == "STT_OBJECT" and wanted(symbol.name)
    )
