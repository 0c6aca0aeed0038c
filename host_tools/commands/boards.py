# SPDX-License-Identifier: Apache-2.0
"""`sparcl boards`: list the boards."""

from __future__ import annotations

from typing import Annotated

import typer


def boards(
    as_json: Annotated[bool, typer.Option("--json", help="All facts of board.toml as JSON, for programs.")] = False,
) -> None:
    """List every board, its limits, and how it was verified.

    \b
      sparcl boards
      sparcl boards --json | jq '.[].name'
    """
    from sparcl_mcu.host_tools import view
    from sparcl_mcu.spec.boards import boards as all_boards

    if as_json:
        import json
        from dataclasses import asdict

        view.say(json.dumps([asdict(board) for board in all_boards()], indent=2))
    else:
        view.console.print(view.boards_table(all_boards()))
