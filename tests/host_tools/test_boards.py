# SPDX-License-Identifier: Apache-2.0
"""`sparcl boards`."""

from __future__ import annotations

import json

import pytest

from sparcl_mcu.host_tools import cli
from sparcl_mcu.spec.boards import load_board


def test_json_has_what_board_toml_has(capsys: pytest.CaptureFixture[str]) -> None:
    """For programs: one object a board, with the sections of the file."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["boards", "--json"])
    assert ended.value.code == 0
    found = {board["name"]: board for board in json.loads(capsys.readouterr().out)}
    microbit = load_board("microbit")
    assert found["microbit"]["memory"]["ram_bytes"] == microbit.memory.ram_bytes
    assert found["microbit"]["build"]["cflags"] == list(microbit.build.cflags)
    assert found["microbit"]["emulator"]["machine"] == "microbit"
    assert "native" in found
