# SPDX-License-Identifier: Apache-2.0
"""A program that is kept is used only where compiling would make the same."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import compiled
from tests.compiled import WEEK, compile_c, forget_unused

Change = Callable[[Path], None]
CHANGES: dict[str, tuple[str, Change]] = {
    "source": ("9 2 3\n", lambda folder: replace(folder / "main.c", "1, ", "9, ")),
    "header that is included": ("1 9 3\n", lambda folder: replace(folder / "include" / "two.h", "2", "9")),
    "header beside the source": ("1 2 9\n", lambda folder: replace(folder / "three.h", "3", "9")),
}


def replace(path: Path, old: str, new: str) -> None:
    """Write it with another text."""
    path.write_text(path.read_text().replace(old, new))


def project(folder: Path) -> Path:
    """A program that prints a number of its own and one of each header."""
    (folder / "include").mkdir(parents=True)
    (folder / "include" / "two.h").write_text("#define TWO 2\n")
    (folder / "three.h").write_text("#ifndef THREE\n#define THREE 3\n#endif\n")
    (folder / "main.c").write_text(
        '#include <stdio.h>\n#include <two.h>\n#include "three.h"\n'
        'int main(void) { printf("%d %d %d\\n", 1, TWO, THREE); return 0; }\n'
    )
    return folder


def says(folder: Path, *flags: str) -> str:
    """What the compiled program prints."""
    compile_c([*flags, f"-I{folder / 'include'}", folder / "main.c", "-o", folder / "program"])
    return subprocess.run([folder / "program"], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of this test for what is kept."""
    monkeypatch.setattr(compiled, "KEPT", tmp_path / "kept")
    return tmp_path / "kept"


def test_compiled_once_wherever_it_lies(kept: Path, tmp_path: Path) -> None:
    """The same text in another folder is the same program, though all of it may be changed afterwards."""
    assert says(project(tmp_path / "first")) == "1 2 3\n"
    (tmp_path / "first" / "program").write_text("spoilt")
    assert says(project(tmp_path / "second")) == "1 2 3\n"
    assert len(list(kept.iterdir())) == 1


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_compiles_again(name: str, kept: Path, tmp_path: Path) -> None:
    """Of whatever the compiler reads."""
    said, change = CHANGES[name]
    folder = project(tmp_path / "project")
    assert says(folder) == "1 2 3\n"
    change(folder)
    assert says(folder) == said


def test_other_flags_compile_again(kept: Path, tmp_path: Path) -> None:
    """Also when nothing else differs."""
    folder = project(tmp_path / "project")
    assert says(folder) == "1 2 3\n"
    assert says(folder, "-DTHREE=8") == "1 2 8\n"


def test_an_error_is_shown_each_time(kept: Path, tmp_path: Path) -> None:
    """Nothing is kept of a failure."""
    folder = project(tmp_path / "project")
    replace(folder / "main.c", "THREE)", "FOUR)")
    for _ in range(2):
        with pytest.raises(AssertionError, match=r"FOUR.* undeclared"):
            says(folder)
    assert not list(kept.iterdir())


def test_what_was_not_used_for_a_week_is_removed(kept: Path, tmp_path: Path) -> None:
    """And nothing else."""
    folder = project(tmp_path / "project")
    says(folder)
    (old,) = kept.iterdir()
    says(folder, "-DTHREE=8")
    os.utime(old, (0.0, old.stat().st_mtime - 2 * WEEK))
    forget_unused()
    assert len(list(kept.iterdir())) == 1
    assert not old.exists()
