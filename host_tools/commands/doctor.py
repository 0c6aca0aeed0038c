# SPDX-License-Identifier: Apache-2.0
"""`sparcl doctor`: check this computer."""

from __future__ import annotations

from typing import Annotated

import typer

from sparcl_mcu.spec.errors import BoardError


def doctor(
    board: Annotated[
        str | None,
        typer.Option("--board", "-b", help="Board that has to work [native]."),
    ] = None,
) -> None:
    """Check what a run needs; say what to type.

    Looks at compilers, QEMU, PlatformIO, serial ports and disk. Exit status 1 when something needed is missing.

    Example: sparcl doctor --board microbit
    """
    from sparcl_mcu.host_tools import doctor as doctors
    from sparcl_mcu.host_tools import view
    from sparcl_mcu.spec.boards import boards as all_boards
    from sparcl_mcu.spec.boards import load_board

    wanted = load_board(board).name if board is not None else None
    missing = []
    for check in doctors.examine(all_boards(), wanted=wanted):
        view.show_check(check)
        missing += [check.what] if check.state is doctors.State.MISSING else []
    if missing:
        raise BoardError(f"missing: {', '.join(missing)}")
