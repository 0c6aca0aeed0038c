# SPDX-License-Identifier: Apache-2.0
"""Parts of validation that whole sessions with a right board do not need."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparcl_mcu.generator.pipeline import Project
from sparcl_mcu.host_tools import protocol, stream, validate
from sparcl_mcu.host_tools.frame import REPLY, REQUEST, Frame
from sparcl_mcu.host_tools.recording import END, RECEIVED, SENT, Header, Recorder
from sparcl_mcu.host_tools.validate import Mismatch, ValidationResult
from sparcl_mcu.reference import Device, Difference
from sparcl_mcu.spec.errors import UserError
from sparcl_mcu.spec.wire import Command
from tests.host_tools.fake_board import FakeBoard


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    first = Mismatch(5, 1, "loss", "3", "4")
    result = ValidationResult(complete=True, steps_compared=7, transactions=9, mismatches=2, first=first)
    result.interval, result.divergence, result.differing = (3, 5), replace(first, step=4), ["layer1.weight"]
    path = tmp_path / validate.RESULT
    for written in (result, ValidationResult(complete=True, transactions=1)):
        written.save(path)
        assert ValidationResult.load(path) == written
        assert json.loads(path.read_text())["bit_exact"] is written.bit_exact


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"bit_exact": 1, "first": 3}', '{"bit_exact": true, "more": 1}'])
def test_a_damaged_result_is_a_user_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / validate.RESULT
    with pytest.raises(UserError, match="does not exist"):
        ValidationResult.load(path)
    path.write_text(text)
    with pytest.raises(UserError, match="damaged"):
        ValidationResult.load(path)


@pytest.mark.parametrize("change", [{"complete": False}, {"transactions": 0}, {"mismatches": 1}])
def test_bit_exact_is_a_whole_session_without_a_difference(change: dict[str, Any]) -> None:
    good = ValidationResult(complete=True, transactions=1)
    assert good.bit_exact
    assert not replace(good, **change).bit_exact


@pytest.mark.parametrize("streamed", [False, True])
def test_a_training_request_in_steps(project: Project, streamed: bool) -> None:
    """One by one they lead where the request leads, and so does any number of them from its beginning."""
    task, n_in = project.dataset.tasks[0], project.model.n_in
    device = Device(project.model)
    begin = struct.pack("<BHB", streamed, len(task.y_train), 2) + bytes(task.classes)
    assert device.apply(Command.TASK_BEGIN, begin) is not None
    if streamed:
        device.apply(Command.TRAIN, struct.pack("<HB", 0, 0))
        ids = np.array(device.state.table.ids[:3])
        command, request = Command.STEP, protocol.pack_steps(ids, task.y_train[ids], task.x_train[ids], 1)
    else:
        for i in range(0, len(task.y_train), 8):
            part = protocol.pack_labelled(task.y_train[i : i + 8], task.x_train[i : i + 8])
            device.apply(Command.SAMPLES, struct.pack("<H", i) + part)
        command, request = Command.TRAIN, struct.pack("<HB", 3, 1)
    after, single = device.copy(), device.copy()
    after.apply(command, request)
    assert after.step == 3
    parts = list(validate._parts(device, command, request, n_in))
    assert len(parts) == 3
    for number, step in enumerate(parts, 1):
        single.apply(command, step)
        several = device.copy()
        several.apply(command, validate._part(command, request, 0, number, n_in))
        assert several.digest() == single.digest()
        assert single.step == number
    assert single.digest() == after.digest()


def test_a_board_that_stands_where_it_never_was(project: Project, board: FakeBoard) -> None:
    """A difference of states: the requests before it are worth a bisection."""
    header = Header("tiny", "native", project.model.model_hash, 3, "0")
    with Recorder(project.folder / stream.RECORDING, header) as recorder:
        for number, step in enumerate((0, 7)):
            board.device.state.step = step
            recorder.entry(SENT, Frame(REQUEST, number, Command.HELLO, 0, b"").body())
            recorder.entry(RECEIVED, Frame(REPLY, number, Command.HELLO, 0, board.hello()).body())
        recorder.entry(END, {})
    result, suspects = validate.validate(project)
    assert result.first is not None
    assert result.first.what == "the place in the session"
    assert result.mismatches == 1
    assert suspects is not None


@pytest.mark.parametrize("command", [Command.HELLO, Command.STATISTICS])
@pytest.mark.parametrize(("status", "what"), [(4, "{}"), (0, "the reply to {}")])
def test_replies_that_the_reference_does_not_give(command: int, status: int, what: str, project: Project) -> None:
    """One that is refused, which it never is, and one of another form."""
    header = Header("tiny", "native", project.model.model_hash, 3, "0")
    with Recorder(project.folder / stream.RECORDING, header) as recorder:
        recorder.entry(SENT, Frame(REQUEST, 0, command, 0, b"").body())
        recorder.entry(RECEIVED, Frame(REPLY, 0, command, status, b"").body())
        recorder.entry(END, {})
    result, _ = validate.validate(project)
    assert result.first is not None
    assert result.first.what == what.format(Command(command).name.lower())
    assert result.mismatches == 1


def test_a_place_has_its_number() -> None:
    """Also the first; where sizes differ there is none."""
    assert validate._place(Difference("table.id", 0, "sample 0", 1, 2)) == "table.id[0] (sample 0)"
    assert validate._place(Difference("table.id", -1, "its size", 1, 2)) == "table.id: its size"
