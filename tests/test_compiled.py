# SPDX-License-Identifier: Apache-2.0
"""A program or object that is kept is used only where compiling would make the same."""

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


def objects(kept: Path) -> set[Path]:
    """What is kept of single sources."""
    return set(kept.glob("object-*/*.o"))


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of this test for what is kept."""
    monkeypatch.setattr(compiled, "KEPT", tmp_path / "kept")
    return tmp_path / "kept"


def test_compiled_once_wherever_it_lies(kept: Path, tmp_path: Path) -> None:
    """The same text in another folder is the same program, though all of it may be changed afterwards."""
    assert says(project(tmp_path / "first")) == "1 2 3\n"
    (tmp_path / "first" / "program").write_text("spoilt")
    entries = set(kept.iterdir())
    assert says(project(tmp_path / "second")) == "1 2 3\n"
    assert set(kept.iterdir()) == entries


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
    assert len(objects(kept)) == 2
    says(folder, "-O1")
    assert len(objects(kept)) == 3


def test_a_source_that_a_change_does_not_reach_is_not_compiled_again(kept: Path, tmp_path: Path) -> None:
    """Though it includes the header that has changed, and there is another program."""
    folder = project(tmp_path / "project")
    (folder / "other.c").write_text('#include "three.h"\nint other(void) { return 0; }\n')
    assert says(folder, str(folder / "other.c")) == "1 2 3\n"
    before = objects(kept)
    replace(folder / "three.h", "3", "9")
    assert says(folder, str(folder / "other.c"), "-Wl,--gc-sections", f"-L{folder}") == "1 2 9\n"
    assert {path.name for path in objects(kept) - before} == {"main.o"}


def test_lines_that_moved_compile_again(kept: Path, tmp_path: Path) -> None:
    """A sanitizer names them."""
    folder = project(tmp_path / "project")
    says(folder)
    (folder / "main.c").write_text("\n" + (folder / "main.c").read_text())
    says(folder)
    assert len(objects(kept)) == 2


def test_what_the_compiler_writes_beside_an_object_is_kept_too(kept: Path, tmp_path: Path) -> None:
    """The bound of the stack reads it; the same again for another program of the same object."""
    folder = project(tmp_path / "project")
    for more in ("", "-Wl,--gc-sections"):
        says(folder, "-fstack-usage", *more.split())
        (usage,) = folder.glob("*.su")
        assert "main" in usage.read_text()
        usage.unlink()
    assert len(objects(kept)) == 1


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
    old = set(kept.iterdir())
    says(folder, "-DTHREE=8")
    fresh = set(kept.iterdir()) - old
    for entry in old:
        os.utime(entry, (0.0, entry.stat().st_mtime - 2 * WEEK))
    forget_unused()
    assert set(kept.iterdir()) == fresh
