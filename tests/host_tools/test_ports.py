# SPDX-License-Identifier: Apache-2.0
"""Ports that cannot be used, and what is at them when it is no board: the message says what to do."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from serial.tools import list_ports, list_ports_common

from sparcl_mcu.generator import pipeline
from sparcl_mcu.generator.pipeline import Project
from sparcl_mcu.host_tools import cli, link, ports, protocol
from sparcl_mcu.host_tools.link import Link, LinkError, StrangerError
from sparcl_mcu.spec.errors import UserError
from tests.host_tools.fake_board import FakeBoard
from tests.line import Connection, Port

NOBODY = 65534

_OPEN = """
import sys, serial
port = serial.Serial(sys.argv[1], exclusive=sys.argv[2] == "alone" or None)
print("open", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def terminal() -> Iterator[str]:
    """A pseudo-terminal at which nobody answers."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    yield os.ttyname(slave)
    os.close(master)
    os.close(slave)


@contextmanager
def other_program(port: str, how: str) -> Iterator[int]:
    """Another process that has a port open; its id."""
    words = [sys.executable, "-c", _OPEN, port, how]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
            yield process.pid
        finally:
            process.kill()


def test_a_busy_port_names_who_has_it(terminal: str) -> None:
    with (
        other_program(terminal, "alone") as process,
        pytest.raises(UserError, match=rf"another program uses {terminal}: python[0-9.]* \(process {process}\); close"),
    ):
        Link(terminal)
    Link(terminal).close()


def test_who_else_has_a_silent_port_open_is_named(terminal: str) -> None:
    """He takes away a part of what comes."""
    with other_program(terminal, "too") as process, Link(terminal) as line:
        with pytest.raises(LinkError, match="no answer") as caught:
            line.request(1, timeout=0.01)
        assert re.search(rf"It is also open in python[0-9.]* \(process {process}\): close that", str(caught.value))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize(
    ("group", "remedy"), [("dialout", r"sudo usermod -aG dialout \$USER.*log out"), ("root", "sudo chmod")]
)
def test_a_port_that_one_may_not_open(terminal: str, group: str, remedy: str) -> None:
    import grp

    os.chown(terminal, 0, grp.getgrnam(group).gr_gid)
    os.chmod(terminal, 0o600)
    os.seteuid(NOBODY)
    try:
        with pytest.raises(UserError, match=rf"you may not open {terminal}: .*{remedy}"):
            Link(terminal)
    finally:
        os.seteuid(0)


def test_a_port_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(list_ports, "comports", list)
    with pytest.raises(UserError, match=r"there is no port /dev/ttyACM7: no serial port is plugged in; .*--port"):
        Link("/dev/ttyACM7")
    found = list_ports_common.ListPortInfo("/dev/ttyACM0")
    found.description = "J-Link\x1b[2J\n  - CDC"
    monkeypatch.setattr(list_ports, "comports", lambda: [found])
    with pytest.raises(UserError, match=r"there are /dev/ttyACM0 \(J-Link \[2J - CDC\)"):
        Link("/dev/ttyACM7")


def test_what_is_no_port(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    for path in (tmp_path / "notes.txt", tmp_path, Path("/dev/null")):
        with pytest.raises(UserError, match=f"{path} is not a serial port"):
            Link(str(path))


def test_a_port_that_comes_back_busy_is_no_mistake(terminal: str) -> None:
    """Other programs look at a port that was just plugged in."""
    with Link(terminal) as line:
        line.close()
        with other_program(terminal, "alone"), pytest.raises(LinkError, match="cannot open"):
            line.open()


# -- other devices ------------------------------------------------------------------------------------


@contextmanager
def device(say: bytes, pause: float) -> Iterator[str]:
    """Prints without end, whether somebody listens or not, and reads nothing; its port."""

    def talk(host: Connection) -> None:
        os.set_blocking(host.fd, False)
        while not port.closing.wait(pause):
            with suppress(BlockingIOError):
                os.write(host.fd, say)

    port = Port(talk, pty=True)
    port.start()
    try:
        yield port.url
    finally:
        port.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fiftieth of the waits."""
    monkeypatch.setattr(link, "PROD", 0.01)
    monkeypatch.setattr(link, "SHORTEST_WAIT", 0.04)
    monkeypatch.setattr(protocol, "_HELLO_SECONDS", 0.05)
    monkeypatch.setattr(protocol, "_BOOT_SECONDS", 0.1)


TEXTS = {
    "line by line": (b"temp=23.5 hum=40\r\n", 0.03, "temp=23.5 hum=40"),
    "without a pause": (b"temp=23.5 hum=40\r\n", 0.002, "temp=23.5 hum=40"),
    "in colours": (
        b"\x1b[0;32mI (312) boot: chip revision v3.0\x1b[0m\r\n",
        0.03,
        "I [(]312[)] boot: chip revision v3.0",
    ),
    "with zeros": (b"Hello, world\r\n\0", 0.03, "Hello, world"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_device_that_prints_text(quick: None, name: str) -> None:
    say, pause, sample = TEXTS[name]
    with device(say, pause) as port, Link(port) as line:
        with pytest.raises(StrangerError, match=rf"prints text .*`{sample}.*--port.*sparcl flash") as caught:
            protocol.wait_for_hello(line, patience=1000.0)
        assert str(caught.value).isprintable()
        assert line.retries < 20  # what it prints is no sign of life, nor is it waited for to the end


def test_it_is_named_within_ten_seconds() -> None:
    assert protocol._BOOT_SECONDS + 0.1 + link.TRIES * protocol._HELLO_SECONDS < 10


def test_the_command_says_what_to_type(
    quick: None, project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pipeline, "generate", lambda *_args, **_kwargs: project)
    with device(b"U-Boot 2026.01 (Jan 05 2026)\r\n", 0.01) as port, pytest.raises(SystemExit) as caught:
        cli.main(["stream", "tiny.toml", "--port", port])
    assert caught.value.code == 1
    said = capsys.readouterr().err
    assert "U-Boot 2026.01" in said
    assert "sparcl flash" in said


def test_a_loop_is_no_board(quick: None) -> None:
    with Link("loop://") as line, pytest.raises(StrangerError, match="sends back whatever is sent to it"):
        protocol.wait_for_hello(line, patience=0.5)


def test_other_bytes_than_text_are_shown(quick: None) -> None:
    """At another baud rate, for example."""
    message = r"not a valid reply \(80 81 82 .*baud rate 115200"
    with (
        device(bytes(range(128, 256)) + b"\0", 0.001) as port,
        Link(port) as line,
        pytest.raises(LinkError, match=message),
    ):
        protocol.wait_for_hello(line, patience=0.0)


def test_a_board_that_boots_with_text_is_waited_for(
    quick: None, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text of a boot loader, for longer than a hello is waited for, and then the firmware."""
    monkeypatch.setattr(protocol, "_BOOT_SECONDS", 60.0)

    class Booting(FakeBoard):
        def _talk(self, host: Connection) -> None:
            ready = time.monotonic() + 0.3
            while time.monotonic() < ready:
                host.write(b"ESP-ROM:esp32s3-20210327\r\n")
                time.sleep(0.01)
            super()._talk(host)

    with Booting(project.model) as board, Link(board.url) as line:
        assert protocol.wait_for_hello(line, patience=10.0).board == "native"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"ok\r\n", ""),
        (b"\x1b[1mabc> \x1b[0m\r\n", ""),
        (b"ready: type help\r\n", "ready: type help"),
        (bytes(range(256)), ""),
        (b"almost a text\x01\x02\x03", ""),
        (b"a" * 500, "a" * 80 + "..."),
    ],
)
def test_what_is_text(data: bytes, text: str) -> None:
    assert ports.text_in(data) == text
