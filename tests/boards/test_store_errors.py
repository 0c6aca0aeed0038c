# SPDX-License-Identifier: Apache-2.0
"""The flash fails in the middle of a session: the host says what to do, and doing it ends as if nothing had been."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparcl_mcu.host_tools.link import STORE_ERRORS, DeviceError
from sparcl_mcu.host_tools.stream import Epoch, Observer, stream
from sparcl_mcu.host_tools.validate import ValidationResult
from tests.boards.test_end_to_end import Sparcl, expected, sparcl
from tests.firmware.native import flip

__all__ = ["expected", "sparcl"]  # fixtures

pytestmark = pytest.mark.board

TASK = "2/3"


class Damager(Observer):
    """Flips a bit in a sample of the task that is being learned, after its first epoch; DDR has not removed it."""

    def __init__(self, flash: Path, samples: list[bytes]) -> None:
        self._flash = flash
        self._samples = samples

    def epoch_done(self, task: str, epochs: int, record: Epoch) -> None:
        """Damage what is not removed."""
        if (task, record.epoch) == (TASK, 0):
            data = self._flash.read_bytes()
            kept = [x for k, x in enumerate(self._samples) if k not in record.removed and data.count(x) == 1]
            flip(self._flash, data.index(kept[0]) + 5)


def test_a_damaged_sample_is_sent_again(sparcl: Sparcl, monkeypatch: pytest.MonkeyPatch, expected: str) -> None:
    """The board is back at its last save; `--resume` sends the task again; the end is the same, and validated."""
    project = sparcl.boot("native", monkeypatch)
    emulator = sparcl.emulator("native")
    task = next(t for t in project.dataset.tasks if t.name == TASK)
    samples = [row.tobytes() for row in task.x_train]
    assert emulator.url is not None
    with pytest.raises(DeviceError, match="sparcl stream --resume") as refused:
        stream(project, emulator.url, observer=Damager(emulator.flash_path, samples))
    assert refused.value.status in STORE_ERRORS
    sparcl("validate", "native", "--no-bisect", status=1)
    done = sparcl("stream", "native", "--resume")
    assert expected in done.stdout
    sparcl("validate", "native")
    result = ValidationResult.load(project.folder / "validation.json")
    assert result.bit_exact
    assert result.resumed == 1
    sparcl("report", "native")
    wear = sparcl.report("native")["wear"]
    assert wear["tasks"] == 3
    assert wear["cycles_per_task"] > 0
    assert wear["lifetime_tasks"] == int(wear["endurance"] / wear["cycles_per_task"])


def test_a_worn_out_journal_is_told(sparcl: Sparcl, monkeypatch: pytest.MonkeyPatch) -> None:
    """No sector can be erased any more: exit 1, what to do, and no traceback; the board still answers."""
    project = sparcl.boot("native", monkeypatch)
    emulator = sparcl.emulator("native")
    store = project.board.store
    worn = store.endurance.to_bytes(4, "little") * (store.size // store.sector)
    emulator.flash_path.with_name(emulator.flash_path.name + ".wear").write_bytes(worn)
    done = sparcl("stream", "native", status=1)
    assert "store full" in done.stderr
    assert "sectors are worn out" in done.stderr
    assert "Traceback" not in done.stderr
    assert emulator.is_running()
    done = sparcl("stream", "native", "--fresh", status=1)
    assert "store full" in done.stderr
