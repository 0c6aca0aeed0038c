# SPDX-License-Identifier: Apache-2.0
"""What a computer without POSIX can do: everything for a real board.  Checked here as far as Linux can show it."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TypeGuard

import board_build  # from platforms/common
import pytest
from serial.urlhandler import protocol_socket

from sparcl_mcu.generator import pipeline
from sparcl_mcu.host_tools import protocol
from sparcl_mcu.host_tools.link import Link
from sparcl_mcu.spec.paths import ROOT
from tests.boards.test_paths import EXPERIMENT
from tests.firmware.native import Process, build
from tests.host_tools.fake_board import FakeBoard

POSIX_MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
POSIX_NAMES = {
    *("fork", "geteuid", "getuid", "killpg", "mkfifo", "setsid", "sched_getaffinity", "uname"),
    *("SIGHUP", "SIGKILL", "SIGUSR1", "SIGUSR2", "AF_UNIX"),
}
LINUX_ONLY = {
    "host_tools/emulator.py": "emulated boards and the native one",
    "benchmarks/sweep/work.py": "sweeps run on the native board",
    "tools/setup.py": "asks for it only where there is apt",
    "tools/distribution.py": "Debian",
}
"""Files that may use what only POSIX has, and why; a user of another system is told before they are reached."""


@cache
def sources() -> list[tuple[str, ast.Module]]:
    """What users run."""
    found = []
    for folder in ("spec", "reference", "generator", "host_tools", "benchmarks", "platforms", "tools"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            found.append((path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))))
    return found


def imports(module: ast.Module) -> set[str]:
    """Names of modules that are imported with it; functions may import what their callers have asked for."""
    found: set[str] = set()
    nodes: list[ast.AST] = [module]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            found.add(node.module.partition(".")[0])
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            nodes += ast.iter_child_nodes(node)
    return found


def test_posix_is_used_only_where_it_has_to_be() -> None:
    found = {}
    for name, module in sources():
        names = {node.attr for node in ast.walk(module) if isinstance(node, ast.Attribute)} & POSIX_NAMES
        if (names | imports(module) & POSIX_MODULES) and name not in LINUX_ONLY:
            found[name] = names | imports(module) & POSIX_MODULES
    assert not found, "import it where it is used, behind a clear message for those who do not have it"


def is_text(node: ast.Call) -> bool:
    """Whether it opens, reads or writes text, as far as the source shows."""
    method = isinstance(node.func, ast.Attribute)
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name in ("read_text", "write_text"):
        return len(node.args) == (name == "write_text")
    place = {"open": 0 if method else 1, "fdopen": 1, "NamedTemporaryFile": 0, "TemporaryFile": 0}.get(name)
    if place is None:
        return False
    default = "r" if name == "open" and not method else "b"
    modes = [value.value for mode in node.args[place : place + 1] for value in ast.walk(mode) if is_string(value)]
    return not any("b" in mode for mode in modes or [default])


def is_string(node: ast.AST) -> TypeGuard[ast.Constant]:
    """Whether it is a constant string."""
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def without_encoding(module: ast.Module) -> Iterator[int]:
    """Lines that open a text file without saying its encoding, which is the system's then."""
    for node in ast.walk(module):
        if (
            isinstance(node, ast.Call)
            and is_text(node)
            and "encoding" not in {keyword.arg for keyword in node.keywords}
        ):
            yield node.lineno


def test_every_text_file_has_an_encoding() -> None:
    found = {name: lines for name, module in sources() if (lines := list(without_encoding(module)))}
    assert not found


def test_files_without_encoding_are_noticed() -> None:
    text = 'p.read_text()\np.write_text("x")\nopen("f")\np.open("w")\nopen("f", "rb")\np.open("wb")\nport.open()\n'
    assert list(without_encoding(ast.parse(text))) == [1, 2, 3, 4]


WINDOWS = """
import json, os, signal, sys
# What other packages need to be imported here is not the subject.
import filelock, jinja2, numpy, PIL.Image, pydantic, rich.live, serial, serial.tools.list_ports
import serial.urlhandler.protocol_socket, sklearn.datasets, subprocess, tempfile, typer

missing, lines = json.loads(sys.argv[1])
for name in missing["modules"]:
    sys.modules[name] = None
for name in missing["names"]:
    for module in (os, signal):
        if hasattr(module, name):
            delattr(module, name)

def refuse(*_arguments, **_options):
    raise OSError(1314, "A required privilege is not held by the client")

os.symlink = refuse
sys.platform = "win32"

from sparcl_mcu.host_tools import cli
for line in lines:
    try:
        cli.main(line)
    except SystemExit as end:
        print(f"{line[0]}: {end.code}", file=sys.stderr)
"""
"""As much of Windows as this system can show: no module, function or signal of POSIX, and no links."""


def on_windows(*lines: list[str]) -> subprocess.CompletedProcess[str]:
    """Run commands without POSIX, all in one process; each ends with its name and exit status on stderr."""
    missing = {"modules": sorted(POSIX_MODULES - {"posix"}), "names": sorted(POSIX_NAMES)}
    command = [sys.executable, "-c", WINDOWS, json.dumps([missing, lines])]
    return subprocess.run(command, capture_output=True, text=True, check=False, encoding="utf-8", env=os.environ)


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A small one."""
    monkeypatch.setenv("SPARCL_BUILD", str(tmp_path / "build"))
    path = tmp_path / "tiny.toml"
    path.write_text(EXPERIMENT, encoding="utf-8")
    return str(path)


def test_what_works_without_posix_and_what_says_that_it_needs_linux(tmp_path: Path, experiment: str) -> None:
    done = on_windows(
        ["boards"],
        ["generate", experiment, "--board", "microbit"],
        ["flash", experiment, "--board", "microbit"],
        ["stream", experiment, "--board", "microbit"],
        ["build", experiment, "--board", "native"],
        ["bench", "--quick"],
        ["sweep", experiment],
    )
    assert "Traceback" not in done.stderr
    assert re.findall(r"^(\w+): (\d+)$", done.stderr, re.MULTILINE) == [
        *(("boards", "0"), ("generate", "0")),
        *((name, "2") for name in ("flash", "stream", "build", "bench", "sweep")),
    ]
    assert done.stderr.count("Linux") == 5
    # No links: a file names the folder, and the build finds it.
    current = tmp_path / "build" / "current" / "microbit"
    assert current.is_file()
    found = board_build.generated_folder("microbit", sys.executable, environment={}, project=tmp_path)
    assert found == tmp_path / "build" / "tiny" / "microbit" / "generated"


@pytest.mark.board
def test_a_board_learns_and_is_validated_without_posix(tmp_path: Path, experiment: str) -> None:
    """The firmware runs in another process, as on another computer."""
    project = pipeline.generate(Path(experiment), "native")
    (tmp_path / "board").mkdir()
    board = Process(build(project.model, tmp_path / "board"))
    try:
        options = [experiment, "--board", "native", "--plain"]
        done = on_windows(
            ["stream", *options, "--port", board.start()], ["validate", *options], ["report", *options[:3]]
        )
    finally:
        board.kill()
    assert re.findall(r"^(\w+): (\d+)$", done.stderr, re.MULTILINE) == [
        ("stream", "0"),
        ("validate", "0"),
        ("report", "0"),
    ], done.stderr
    assert "bit-exact with the NumPy reference" in done.stdout


def test_a_port_that_cannot_be_waited_for_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, experiment: str
) -> None:
    """A serial port of Windows has no descriptor."""

    def refuse(_: object) -> int:
        raise io.UnsupportedOperation("fileno")

    project = pipeline.generate(Path(experiment), "native")
    monkeypatch.setattr(protocol_socket.Serial, "fileno", refuse)
    with FakeBoard(project.model) as board, Link(board.url) as link:
        assert protocol.hello(link).model_hash == project.model.model_hash
