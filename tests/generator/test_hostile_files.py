# SPDX-License-Identifier: Apache-2.0
"""Files nobody should have made end with a clear message, in seconds and within 1 GiB (docs/evidence/security.md)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sparcl_mcu.generator import archives, config, data, files, sizes
from sparcl_mcu.generator.config import Config
from sparcl_mcu.generator.data import images, table
from sparcl_mcu.spec.errors import UserError
from tests.generator import hostile

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes, sockets and limits of POSIX")


SAYS = {
    "npz is a pipe": "is a named pipe, not a file",
    "experiment is endless": "is a device, not a file",
    "csv is 6 GiB": "has 6 GiB; at most",
    "recording is a pipe": "session.rec is a named pipe or a device: delete it",
    "100,000 lists deep": "nested too deeply",
    "20,000 digits": "holds a number that is too large",
    "UTF-16": "line 1 is not UTF-8 text: save it as UTF-8",
    "hidden": "4,299,685,815 weights; at most 16,777,216",
    "array of 3 GiB": "have 3 GiB unpacked; at most 1 GiB",
    "array of 6 GB that is not there": "declares float64 of shape (800000000,), but holds 128 bytes",
    "13000 x 13000": "is 13000 x 13000 (height x width), at most 67,108,864 pixels",
    "h5 in another file": "names another file",
    "keras of 3 GiB": "is packed in a way that Keras does not use",
    "one line": "a line has more than 4 MiB",
}
"""What some of them say."""


def test_each_ends_with_a_clear_message(tmp_path: Path) -> None:
    """One test for all cases: the process that they run in takes longer to start than any of them."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.generator.hostile", str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"SPARCL_ALLOW_CODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcomes = {outcome["name"]: outcome for outcome in map(json.loads, done.stdout.splitlines())}
    assert list(outcomes) == list(hostile.CASES)
    assert [outcome for outcome in outcomes.values() if not _is_clear(outcome)] == []
    assert [name for name, said in SAYS.items() if said not in outcomes[name]["said"]] == []


def _is_clear(outcome: dict[str, Any]) -> bool:
    said = outcome["said"]
    tells = said.startswith("sparcl: ") and len(said) < 10_000
    tells = tells and all(line.isprintable() for line in said.splitlines())
    return outcome["status"] == 2 and tells and not any(word in said for word in ("Traceback", "bug", "memory"))


# ---------------------------------------------------------------- what is still possible


def test_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "exp.toml"
    path.write_bytes(b"\xef\xbb\xbf[experiment]\nseed = 3\n")
    assert config.load(path).experiment.seed == 3


def test_folder_whose_name_is_not_utf8(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    path = folder / "exp.toml"
    path.write_text("[experiment]\nseed = 3\n")
    assert config.load(path).experiment.seed == 3
    with pytest.raises(UserError, match=r"\\udcff.*is not UTF-8: rename"):
        config.load(path, ['data.set="npz"', 'data.path="own.npz"'])


def test_old_mac_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_bytes(b"a,label\r1,x\r2,y\r")
    assert table.read(path, Config().data, None).x.tolist() == [[1.0], [2.0]]


def test_a_large_picture_is_made_small(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for k in range(2):
            Image.fromarray(np.full((600, 500), 90, np.uint8)).save(tmp_path / name / f"{k}.png")
    settings = Config.model_validate({"data": {"set": "images", "path": tmp_path, "size": 4}})
    assert data.load(settings).tasks[0].x_train[0].tolist() == [90] * 16


# ---------------------------------------------------------------- limits that take long to reach


@pytest.mark.parametrize(
    ("where", "limit", "most", "what"),
    [
        (table, "MOST_ROWS", 5, lambda: table.read(Path("own.csv"), Config().data, None)),
        (images, "MOST_ENTRIES", 3, lambda: images.files(Path())),
        (images, "LARGEST_FOLDER", 3, lambda: images.files(Path())),
    ],
)
def test_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: object, limit: str, most: int, what: Callable[[], object]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.csv").write_text("a,label\n" + "1,x\n" * 5)
    for k in range(3):
        (tmp_path / f"{k}.png").write_bytes(b"12")
    monkeypatch.setattr(where, limit, most)
    with pytest.raises(UserError, match=r"more than|at most"):
        what()


def test_file_that_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size the system tells is not believed: files of /proc have none."""
    with pytest.raises(files.Refused, match="has more than 10 bytes"):
        files.read(Path("/proc/self/maps"), 10)
    path = tmp_path / "own.txt"
    path.write_text("x" * 11)
    with pytest.raises(files.Refused, match="has 11 bytes; at most 10 bytes are possible"):
        files.check(path, 10)


def test_a_member_is_not_believed(tmp_path: Path) -> None:
    """``ZipFile.read`` unpacks up to 2 GiB before it looks at the size that was declared."""
    hostile.bomb(tmp_path / "it.zip", "a", hostile.packed(b"", 64 * hostile.MIB), 100)
    with (tmp_path / "it.zip").open("rb") as file, archives.opened(file) as archive:
        with pytest.raises(Exception, match="CRC"):
            archives.contents(archive, "a", 1000)
        with pytest.raises(ValueError, match="a has 100 bytes; at most 10"):
            archives.contents(archive, "a", 10)


@pytest.mark.parametrize(
    ("size", "text"), [(5, "5 bytes"), (1536, "1.5 KiB"), (1 << 30, "1 GiB"), (5 << 40, "5,120 GiB")]
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert sizes.shown(size) == text
