# SPDX-License-Identifier: Apache-2.0
"""The tool that puts faults into sources: which it makes, and that it tells those that tests notice from the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sparcl_mcu.spec.paths import ROOT
from tests.mutation import c_operators, python_operators
from tests.mutation.harness import Plan, main
from tests.mutation.mutants import Edit, from_edits, sample

C = """\
/* if (comments) stay; */
#define LIMIT 4u
static int checked(const box_t *b, uint32_t n) {
  uint32_t sum = 0;
  if (b == NULL || n > LIMIT) {
    return SCL_ERR_RANGE;
  }
  b->ours = memcmp(b->hash, hash, 8) == 0;
  add(b, -1);
  return !b->ours;
}
"""
PYTHON = """\
'''Texts stay.'''
def checked(b, n: int = 3) -> int:
    '''Also this.'''
    if b is None or (n > 4 and not b.open):
        raise ValueError("no")
    load(b.path, allow_pickle=False, size=n)
    return b.data[1:] + n
"""


def made(text: str, edits: Callable[[str], Iterator[Edit]]) -> set[tuple[str, str]]:
    """Operators and the lines that they make."""
    return {(m.operator, m.after) for m in from_edits("f", text, edits(text))}


@pytest.mark.parametrize(
    "mutant",
    [
        ("operator", "if (b != NULL || n > LIMIT) {"),
        ("operator", "if (b == NULL && n > LIMIT) {"),
        ("operator", "if (b == NULL || n >= LIMIT) {"),
        ("clause", "if (b == NULL ) {"),
        ("clause", "if (n > LIMIT) {"),
        ("condition", "if (0) {"),
        ("condition", "if (1) {"),
        ("jump", ";"),
        ("status", "return SCL_OK;"),
        ("constant", "uint32_t sum = 1;"),
        ("constant", "b->ours = memcmp(b->hash, hash, 7) == 0;"),
        ("flag", "b->ours = 1;"),
        ("call", ";"),
        ("constant", "add(b, -2);"),
        ("not", "return b->ours;"),
    ],
)
def test_faults_in_c(mutant: tuple[str, str]) -> None:
    """One of each kind."""
    assert mutant in made(C, c_operators.edits)


@pytest.mark.parametrize(
    "mutant",
    [
        ("operator", "if b is not None or (n > 4 and not b.open):"),
        ("operator", "if b is None or (n >= 4 and not b.open):"),
        ("operator", "if b is None or (n > 4 or not b.open):"),
        ("clause", "if b is None or (True and not b.open):"),
        ("clause", "if b is None or (False):"),
        ("not", "if b is None or (n > 4 and  b.open):"),
        ("condition", "if False:"),
        ("constant", "if b is None or (n > 5 and not b.open):"),
        ("constant", "def checked(b, n: int = 2) -> int:"),
        ("constant", "load(b.path, allow_pickle=True, size=n)"),
        ("keyword", "load(b.path, allow_pickle=False, )"),
        ("jump", "pass"),
        ("call", "pass"),
        ("jump", "return None"),
        ("slice", "return b.data[:] + n"),
        ("operator", "return b.data[1:] - n"),
    ],
)
def test_faults_in_python(mutant: tuple[str, str]) -> None:
    """One of each kind."""
    assert mutant in made(PYTHON, python_operators.edits)


def test_texts_and_types_stay() -> None:
    """Comments, preprocessor lines, docstrings, messages and annotations have no faults."""
    for text, edits in ((C, c_operators.edits), (PYTHON, python_operators.edits)):
        for mutant in from_edits("f", text, edits(text)):
            assert "comments" not in mutant.before
            assert "LIMIT 4u" not in mutant.before
            assert ("no" in mutant.text) == ("no" in text)
            assert mutant.text.count("'''") == text.count("'''")


def test_a_mutant_keeps_its_id_while_other_lines_change() -> None:
    """So does what is drawn."""
    moved = C.replace("  uint32_t sum = 0;\n", "  uint32_t sum = 0;\n  uint32_t more = 0;\n\n")
    before, after = (from_edits("f", text, c_operators.edits(text)) for text in (C, moved))
    assert {m.id for m in before} < {m.id for m in after}
    drawn = sample(before, 10, 1)
    assert len(drawn) == 10
    assert {m.id for m in sample(after, 14, 1)} > {m.id for m in drawn if m.id in {a.id for a in sample(after, 14, 1)}}
    assert [m.id for m in drawn] == [m.id for m in sample(reversed(before), 10, 1)]


def test_all_subjects_are_there() -> None:
    """subjects.toml fits the sources; a part of the mutants is a program."""
    plan = Plan.load(ROOT, ROOT / "build" / "mutation")
    mutants = [*plan.all_mutants(), *plan.named_mutants()]
    assert len({m.id for m in mutants}) == len(mutants)
    assert all((ROOT / test.split("::")[0]).exists() for s in plan.subjects for test in s.tests + s.thorough)
    for mutant in mutants[::50]:
        if mutant.file.endswith(".py"):
            compile(mutant.text, mutant.file, "exec")


HALF_C = """\
int half(int n) {
  if (n < 0) {
    return 0;
  }
  return n / 2;
}
"""
HALF_PY = """\
def half(n):
    if n < 0:
        return 0
    return n // 2

def unused(n):
    return n - 1

def wait():
    while True:
        return
"""
TESTS = """\
import ctypes
import subprocess
from pathlib import Path
from halves import half as python_half

def test_python():
    assert [python_half.half(n) for n in (-3, 0, 9)] == [0, 0, 4]

def test_wait():
    python_half.wait()

def compiled_half(source, library):
    halves = Path(__file__).parents[1] / "halves"
    subprocess.run(["gcc", "-shared", "-fPIC", f"-I{halves}", source or halves / "half.c", "-o", library], check=True)
    return ctypes.CDLL(str(library)).half

def test_c(tmp_path):
    half = compiled_half(None, tmp_path / "half.so")
    assert [half(n) for n in (-3, 0)] == [0, 0]

def test_c_in_one_piece(tmp_path):
    (tmp_path / "whole.c").write_text('#include "half.c"\\n')
    half = compiled_half(tmp_path / "whole.c", tmp_path / "half.so")
    assert half(9) == 4
"""
VARIANTS = """\
def commands(folder):
    return [["gcc", "-O2", "-w", "-c"]]
"""
SUBJECTS = """\
[[subject]]
files = ["halves/half.c"]
tests = ["tests/test_half.py"]
[[subject]]
files = ["halves/half.py"]
tests = ["tests/test_half.py"]
"""
NAMED = {
    "c-wrong": ("halves/half.c", "n / 2", "n / 3", "killed"),
    "c-equal": ("halves/half.c", "n < 0", "n <= -1", "same code"),
    "c-alive": ("halves/half.c", "n < 0", "n < -1", "lives"),
    "c-broken": ("halves/half.c", "return 0", "return 0 0", "no program"),
    "py-wrong": ("halves/half.py", "n // 2", "n // 3", "killed"),
    "py-equal": ("halves/half.py", "n < 0", "n <= 0", "lives"),
    "py-hangs": ("halves/half.py", "        return\n", "        pass\n", "killed"),
    "py-unused": ("halves/half.py", "n - 1", "n + 1", "lives"),
}


def checkout(root: Path) -> None:
    """A small project, as the tool finds this one."""
    contents = {"halves/half.c": HALF_C, "halves/half.py": HALF_PY, "tests/test_half.py": TESTS}
    contents |= {"tests/mutation/variants.py": VARIANTS, "tests/mutation/subjects.toml": SUBJECTS}
    for name, (file, old, new, _) in NAMED.items():
        entry = {"name": name, "file": file, "old": old, "new": new}
        contents["tests/mutation/subjects.toml"] += "[[named]]\n"
        contents["tests/mutation/subjects.toml"] += "".join(f"{k} = {json.dumps(v)}\n" for k, v in entry.items())
    contents |= {".gitignore": "build/\n"}
    contents |= {"pyproject.toml": '[tool.pytest.ini_options]\npythonpath = ["."]\nmarkers = ["slow"]\n'}
    for name, text in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    subprocess.run(["git", "init", "-q", root], check=True)


def harness(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The tool on that project."""
    options = ["--root", str(root), "--jobs", "1", "--patience", "1", "--each", "0"]
    command = [sys.executable, "-m", "tests.mutation.harness", *options, *arguments]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def outcomes(root: Path) -> list[tuple[str, str]]:
    """What became of each mutant that was tried."""
    lines = (root / "build" / "mutation" / "results.jsonl").read_text().splitlines()
    return [(entry["id"], entry["status"]) for entry in map(json.loads, lines)]


def test_mutants_are_killed_or_live(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Faults that a test notices, that change nothing, that hang, that no test executes; all is known afterwards."""
    checkout(tmp_path)
    done = harness(tmp_path)
    tried = outcomes(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr  # some live without a reason
    assert sorted(tried) == sorted((f"named-{name}", status) for name, (*_, status) in NAMED.items())
    assert "no test executes it" in done.stdout
    assert (tmp_path / "halves/half.c").read_text() == HALF_C
    assert main(["--root", str(tmp_path), "--table", "--each", "0"]) == 1
    assert "3 killed, 3 live, 3 of them without a reason" in capsys.readouterr().out


def test_one_mutant_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a diff; exit status 2 when there is none of that name."""
    checkout(tmp_path)
    assert main(["--root", str(tmp_path), "named-c-wrong"]) == 0
    shown = capsys.readouterr().out
    assert "-  return n / 2;\n+  return n / 3;" in shown
    assert "not tried" in shown
    assert main(["--root", str(tmp_path), "named-unknown"]) == 2
