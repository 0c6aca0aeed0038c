# SPDX-License-Identifier: Apache-2.0
"""`sparcl boards`: list the boards."""

from __future__ import annotations


def boards() -> None:
    """List every board, its limits, and how it was verified."""
    from sparcl_mcu.host_tools import view
    from sparcl_mcu.spec.boards import boards as all_boards

    view.console.print(view.boards_table(all_boards()))
