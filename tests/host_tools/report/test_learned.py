# SPDX-License-Identifier: Apache-2.0
"""What validation keeps of masks and samples, against what the board itself said."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparcl_mcu.generator.pipeline import Project
from sparcl_mcu.host_tools import histories, report, stream, validate
from sparcl_mcu.host_tools.report import learned
from sparcl_mcu.host_tools.report import page as report_page
from sparcl_mcu.host_tools.stream import StreamResult
from sparcl_mcu.reference.history import History
from sparcl_mcu.spec.errors import BoardError, UserError
from sparcl_mcu.spec.types import Activation, Layer, Op, Panel, Tensor
from tests.host_tools.conftest import MakeProject
from tests.host_tools.fake_board import FakeBoard


def learn(project: Project, board: FakeBoard) -> tuple[StreamResult, dict[int, History]]:
    """Stream, validate; what was measured, and what was kept."""
    result = stream.stream(project, board.url)
    validate.validate(project)[0].save(project.folder / validate.RESULT)
    return result, histories.load(project.folder / histories.RESULT)


def test_samples_are_those_of_the_replies(project: Project, board: FakeBoard) -> None:
    """The board tells mistakes, losses and removed samples by epoch."""
    result, kept = learn(project, board)
    assert list(kept) == [0, 1, 2]
    assert sum(history.mistakes.sum() for history in kept.values()) > 0
    for task, history in kept.items():
        epochs = [epoch for epoch in result.epochs if epoch.task == task]
        assert history.mistakes.sum() == sum(epoch.wrong for epoch in epochs)
        assert history.losses.sum() / 256 == pytest.approx(sum(epoch.loss for epoch in epochs))
        removed = {sample: epoch.epoch + 1 for epoch in epochs for sample in epoch.removed}
        assert {int(k): int(history.left[k]) for k in np.flatnonzero(history.left)} == removed
        assert len(removed) > 1


def test_masks_are_those_of_the_board(project: Project, board: FakeBoard) -> None:
    """The board's own regions at the end; and masks move from task to task."""
    _, kept = learn(project, board)
    sparse = [(k, layer) for k, layer in project.model.weighted if layer.sparse]
    assert sparse
    with np.load(project.folder / stream.FINAL) as dumped:
        for number, layer in sparse:
            used = []
            for p, panel in enumerate(layer.panels):
                flags = np.zeros((panel.split.size, panel.places), dtype=np.bool_)
                start, index = (dumped[f"layer{number}.panel{p}.{part}"] for part in ("start", "index"))
                for line, (begin, end) in enumerate(pairwise(start.tolist())):
                    flags[line, index[begin:end]] = True
                used.append(flags.reshape(-1))
            assert np.array_equal(np.packbits(np.concatenate(used)), kept[2].masks[number])
            shipped = learned.initial_mask(layer)
            different = {bytes(shipped), *(bytes(history.masks[number]) for history in kept.values())}
            assert len(different) == 4


def test_a_board_that_goes_back_takes_its_histories_back(project: Project) -> None:
    """Steps that were undone by a power cut count once: all is as if there had been none."""
    with FakeBoard(project.model) as board:
        _, undisturbed = learn(project, board)
    with FakeBoard(project.model) as board:

        def cut(_command: int, data: bytes) -> bytes:
            if (board.device.task, board.device.epoch) == (1, 1):
                board.power_cycle()  # back to the end of the first task
            return data

        board.alter = cut
        with pytest.raises(BoardError, match="--resume"):
            stream.stream(project, board.url)
        board.alter = lambda _command, data: data
        assert stream.stream(project, board.url, resume=True).complete
    found, _ = validate.validate(project)
    assert found.bit_exact
    assert found.resumed == 1
    for task, history in histories.load(project.folder / histories.RESULT).items():
        for name in ("mistakes", "losses", "left"):
            assert np.array_equal(getattr(history, name), getattr(undisturbed[task], name))


def test_a_copy_goes_its_own_way(project: Project, board: FakeBoard) -> None:
    learn(project, board)
    state = board.device.state
    state.histories[state.task] = History.of(3)
    other = state.copy()
    other.histories[state.task].note(1, True, 7)
    other.histories[state.task].left[2] = 1
    assert not state.histories[state.task].mistakes.any()
    assert not state.histories[state.task].left.any()
    assert not state.histories[state.task].losses.any()


def test_nothing_is_kept_of_a_board_that_learned_something_else(project: Project, board: FakeBoard) -> None:
    learn(project, board)
    board.alter = lambda command, data: data[:-1] + bytes([data[-1] ^ 1]) if command == 4 else data
    stream.stream(project, board.url, fresh=True)
    validate.validate(project)[0].save(project.folder / validate.RESULT)
    assert not (project.folder / histories.RESULT).exists()
    made = report.build(project)
    assert made.mismatches
    assert (made.masks, made.samples) == (None, None)


def test_what_was_kept_of_an_older_session_is_not_shown(project: Project, board: FakeBoard) -> None:
    learn(project, board)
    assert report.build(project).samples
    stream.stream(project, board.url, fresh=True)
    assert (project.folder / histories.RESULT).exists()
    assert report.build(project).samples is None


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"\x93NUMPY"])
def test_damaged(project: Project, board: FakeBoard, content: bytes) -> None:
    learn(project, board)
    (project.folder / histories.RESULT).write_bytes(content)
    with pytest.raises(UserError, match=r"validation\.npz.*sparcl validate"):
        report.build(project)


def test_any_flipped_bit_is_found_or_harmless(tmp_path: Path) -> None:
    path, rng = tmp_path / histories.RESULT, np.random.default_rng(0)
    history = History(*(np.arange(40, dtype=kind) for kind in (np.uint16, np.int64, np.uint16)))
    histories.save({0: history}, path)
    whole, refused = path.read_bytes(), 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            histories.load(path)
        except UserError:
            refused += 1
    assert refused > len(whole) / 4


# -- figures ------------------------------------------------------------------------------------------


def panel(lines: list[list[int]], places: int) -> Panel:
    """A panel whose lines have entries at the given places."""
    index = np.array([place for line in lines for place in line], dtype=np.int64)
    start = np.cumsum([0, *(len(line) for line in lines)], dtype=np.int64)
    return Panel(0, places, start, start[:-1], index, np.zeros((len(index), 2), np.int16), len(index), 0, 0, 0)


def sparse(*panels: Panel) -> Layer:
    tensor = Tensor(4, 1, 1, 8, 15, rectified=True)
    return Layer(Op.DENSE, (0,), tensor, Activation.RELU, block=2, sparse=True, panels=panels)


FIRST = sparse(panel([[0, 1], [2]], 4), panel([[0]], 2))
SECOND = sparse(panel([[1, 3], [2]], 4), panel([[1]], 2))


def test_overlap_by_hand() -> None:
    """Of 4 + 4 entries 2 are the same, 6 are different places; chance: 3 x 3 of 8, and 1 x 1 of 2."""
    masks = [learned.initial_mask(layer) for layer in (FIRST, SECOND)]
    both, either, chance = learned.compare(FIRST, *masks)
    assert (both, either) == (2 * 2, 6 * 2)
    assert chance == pytest.approx(2 * (9 / 8 + 1 / 2))
    shared, by_chance = learned.overlap([(both, either, chance)])
    assert shared == pytest.approx(100 * 2 / 6)
    assert by_chance == pytest.approx(100 * 1.625 / (8 - 1.625))


def test_chance_is_what_random_masks_share() -> None:
    rng = np.random.default_rng(0)
    layer = sparse(panel([[0]] * 200, 50))
    first, second = (rng.permutation(10_000) < 2_000 for _ in range(2))
    shared, chance = learned.overlap([learned.compare(layer, np.packbits(first), np.packbits(second))])
    assert chance == pytest.approx(100 * 0.2 / 1.8)
    assert shared == pytest.approx(chance, abs=1.0)


def test_overlap_of_a_model(project: Project) -> None:
    model = replace(project.model, layers=(replace(FIRST, name="dense1"),))
    moved = replace(History.of(1), masks={0: learned.initial_mask(SECOND)})
    found = learned.mask_overlap(model, ["a"], [moved])
    assert found is not None
    assert found.moments == ["start", "a"]
    assert found.total.matrix == [[100, pytest.approx(100 / 3)], [pytest.approx(100 / 3), 100]]
    assert found.total.density == pytest.approx(100 * 4 / 10)
    assert found.total.chance == pytest.approx(100 * 1.625 / (8 - 1.625)), "the diagonal is not chance"
    assert [layer.name for layer in found.layers] == ["l0 dense1"]
    assert learned.mask_overlap(replace(project.model, layers=()), [], []) is None


def test_easy_and_hard() -> None:
    history = History(
        mistakes=np.array([0, 3, 0, 1, 3, 0, 2], np.uint16),
        losses=np.array([9, 50, 5, 7, 60, 8, 1], np.int64),
        left=np.array([2, 0, 1, 1, 0, 1, 0], np.uint16),
    )
    assert learned.easiest(history, 9) == [2, 5, 3, 0], "removed first, then least mistakes, then least loss"
    assert learned.hardest(history, 2) == [4, 1], "most mistakes, then most loss"
    assert learned.hardest(history, 9) == [4, 1, 6]


def test_samples_in_the_report(project: Project, board: FakeBoard) -> None:
    _, kept = learn(project, board)
    made = report.build(project).samples
    assert made is not None
    assert [t.task for t in made] == [0, 1, 2]
    for t in made:
        task, history = project.dataset.tasks[t.task], kept[t.task]
        assert t.samples == len(task.y_train) == len(history.mistakes)
        assert (t.removed, t.never_wrong) == ((history.left > 0).sum(), (history.mistakes == 0).sum())
        assert (len(t.easiest), len(t.hardest)) == (min(t.removed, learned.SHOWN), learned.SHOWN)
        for note in (*t.easiest, *t.hardest):
            assert note.label == project.dataset.class_names[task.y_train[note.id]]
            assert note.mistakes == history.mistakes[note.id] <= note.epochs
        assert [note.epochs for note in t.easiest] == sorted(history.left[history.left > 0])[: learned.SHOWN]
        assert {note.epochs for note in t.hardest} == {2}


SHIPPED: dict[str, dict[str, dict[str, Any]]] = {
    "first task": {"tasks": {"first": "host"}, "initial": {"train": "first_task"}},
    "first task, no buffer": {
        "tasks": {"first": "host"},
        "initial": {"train": "first_task"},
        "method": {"name": "finetune", "buffer": 0},
    },
    "base": {"initial": {"train": "base", "base_classes": (6, 7)}},
}


@pytest.mark.parametrize("what", SHIPPED)
def test_tasks_of_a_board_that_was_shipped_with_something(what: str, make_project: MakeProject) -> None:
    """The board may count its tasks otherwise; names and samples are those of the right ones."""
    project = make_project(**SHIPPED[what])
    with FakeBoard(project.model) as board:
        learn(project, board)
    made = report.build(project)
    assert made.samples is not None
    assert made.masks is not None
    names = ["0/1", "2/3", "4/5"][0 if what == "base" else 1 :]
    assert made.masks.moments == ["start", *names]
    assert [made.tasks[t.task] for t in made.samples] == names
    for t, name in zip(made.samples, names, strict=True):
        assert {note.label for note in (*t.easiest, *t.hardest)} == set(name.split("/"))
    assert report_page.html(made, project.dataset).count('<summary class="task">') == len(names)


class _Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_histories_of_strangers_run_no_code(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    arrays = {f"task0.{name}": np.zeros(2, np.uint16) for name in ("losses", "left")}
    np.savez(tmp_path / "validation.npz", **arrays, **{"task0.mistakes": np.array([_Trap(sprung)], dtype=object)})
    with pytest.raises(UserError, match="run `sparcl validate` again"):
        histories.load(tmp_path / "validation.npz")
    assert not sprung.exists()
