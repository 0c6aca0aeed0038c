# SPDX-License-Identifier: Apache-2.0
"""Fixed point beside floating point: `sparcl twin`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparcl_mcu.host_tools.cli import main
from sparcl_mcu.host_tools.twin import Pair, save, summary

SMALL = """
[data]
set = "digits"

[tasks]
split = [[0, 1], [2, 3]]

[model]
layers = [{ type = "conv2d", filters = 4, kernel = 3 }, { type = "max_pool", size = 2 }]

[sparsity]
weights = 0.5

[method]
epochs = 2
buffer = 40
"""


def test_the_cost_is_what_fixed_point_loses(tmp_path: Path) -> None:
    """Mean and deviation of each, and of the differences seed by seed."""
    pairs = [Pair(0, 80.0, 83.0), Pair(1, 90.0, 91.0)]
    assert summary(pairs) == ("85.00 ± 7.07", "87.00 ± 5.66", "2.00 ± 1.41")
    assert json.loads(save(pairs, tmp_path).read_text())[1] == {"seed": 1, "fixed": 90.0, "float32": 91.0}


@pytest.mark.slow
def test_the_command_teaches_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A small network learns two tasks in fixed point and in float32, with two seeds."""
    monkeypatch.setenv("SPARCL_BUILD", str(tmp_path / "build"))
    experiment = tmp_path / "small.toml"
    experiment.write_text(SMALL)
    with pytest.raises(SystemExit) as ended:
        main(["twin", str(experiment), "--seeds", "2"])
    assert not ended.value.code
    rows = json.loads((tmp_path / "build" / "small" / "twin.json").read_text())
    assert [row["seed"] for row in rows] == [0, 1]
    assert all(row["fixed"] > 60.0 and row["float32"] > 60.0 for row in rows)
    assert "cost of fixed point" in capsys.readouterr().out
