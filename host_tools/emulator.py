# SPDX-License-Identifier: Apache-2.0
"""Emulated boards: the "hardware" behind the upload target.

An emulated board lives in a state folder: the image it was given (flash.elf),
its flash device (flash.img), state.json and logs.  It runs in the background,
as a board that is plugged in would, with its serial line on a TCP port.

    python -m sparcl_mcu.host_tools.emulator --board microbit upload build/.../firmware.elf
    python -m sparcl_mcu.host_tools.emulator --board microbit status|reset|kill|start|stop|check

`kill` is a power cut, `start` puts the power back: same image, same flash.
An emulated board that waits for its serial line keeps one host core busy.
Only the standard library is used.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from sparcl_mcu.spec.boards import load_board
from sparcl_mcu.spec.errors import UserError
from sparcl_mcu.spec.paths import ROOT, build_folder

_PLUGINS = ROOT / "platforms" / "sparcl_cortexm" / "plugin"
_PLUGIN_API = _PLUGINS / "qemu_plugin.h"
_LEAST_PLUGIN_API = re.compile(r"this QEMU supports only a minimum version of (\d+)")
_MOST_PLUGIN_API = 7
_BYTES_PER_COUNT = 2
_MOST_SOCKET_PATH = 100  # sun_path holds 108 bytes on Linux, 104 on macOS
_START_SECONDS = 15.0
_STOP_SECONDS = 5.0

AVAILABLE = sys.platform != "win32"
"""Whether this system has what emulated boards and the native one need: POSIX processes, signals, sockets."""
NEEDS_LINUX = "emulated boards and the board native need Linux; here, name the port of a real board with --port"


class EmulatorError(Exception):
    """The board cannot be run; the message says what to change."""


@dataclass(frozen=True)
class _State:
    """Content of state.json."""

    board: str
    url: str
    port: int
    pid: int
    command: list[str]
    sha256: str
    image: str
    flash: str
    qmp: str | None
    persistent: bool


def free_port() -> int:
    """A TCP port of 127.0.0.1 that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def free_url() -> str:
    """A free port as `socket://127.0.0.1:PORT`."""
    return f"socket://127.0.0.1:{free_port()}"


def default_state_dir(board: str) -> Path:
    """build/emulator/<board>; SCL_EMULATOR_DIR replaces build/emulator."""
    return Path(os.environ.get("SCL_EMULATOR_DIR") or build_folder() / "emulator") / board


@functools.cache
def _machines(program: str) -> tuple[str, str]:
    """QEMU's version ("QEMU emulator version 7.2.9 ..."), and its list of machines; asked once."""

    def ask(*options: str) -> str:
        done = subprocess.run([program, *options], capture_output=True, text=True, check=False, timeout=20)
        return done.stdout

    return ask("--version").partition("\n")[0], ask("-M", "help")


def unavailable(board: str, root: Path = ROOT) -> str | None:
    """Why this computer cannot run the emulated board, and what to do about it; None when it can."""
    facts = load_board(board, root).emulator
    if facts is None or facts.kind != "qemu":
        return None
    program = shutil.which(facts.program)
    if program is None:
        return (
            f"{facts.program} is not on PATH. Debian and Ubuntu: "
            "apt-get install --no-install-recommends qemu-system-arm; "
            "Fedora: dnf install qemu-system-arm; macOS: brew install qemu."
        )
    machine = facts.machine.partition(",")[0]
    version, known = _machines(program)
    if re.search(rf"^{re.escape(machine)}\s", known, re.MULTILINE):
        return None
    first = f", QEMU {facts.qemu} is the first that has" if facts.qemu else ""
    return (
        f"{program} ({version}) has no machine {machine}{first}. "
        "Install a newer QEMU (Debian 12 has 7.2, Ubuntu 24.04 has 8.2), or use another board: `sparcl boards`."
    )


class Emulator:
    """One emulated board; all its state is in its folder.

    Any number of objects, in any process, may look at the same folder: the
    board belongs to the folder, not to the object, and keeps running when the
    object is gone.
    """

    def __init__(self, state_dir: Path, board: str, root: Path = ROOT) -> None:
        if not AVAILABLE:
            raise EmulatorError(NEEDS_LINUX)
        self.state_dir = Path(state_dir).resolve()
        self.board = board
        self._root = root
        self._facts = load_board(board, root)
        self._process: subprocess.Popen[bytes] | None = None
        self._plugin_api: str | None = None  # the version of QEMU's interface, where the plugins' own choice is too low
        emulation = self._facts.emulator
        if emulation is None or emulation.kind == "none":
            raise EmulatorError(f"board {board!r} has no emulator; connect a real one and use its port")
        self._emulation = emulation

    # -- what is recorded ---------------------------------------------------

    @property
    def image_path(self) -> Path:
        """The recorded firmware image."""
        return self.state_dir / "flash.elf"

    @property
    def flash_path(self) -> Path:
        """The flash device's content (microbit: of the partition)."""
        return self.state_dir / "flash.img"

    @property
    def log_path(self) -> Path:
        """Log of the emulator process."""
        return self.state_dir / "emulator.log"

    def state(self) -> Mapping[str, Any] | None:
        """The content of state.json, or None when nothing was started here."""
        state = self._read_state()
        return None if state is None else asdict(state)

    @property
    def url(self) -> str | None:
        """`socket://127.0.0.1:PORT` of the recorded board."""
        state = self._read_state()
        return None if state is None else state.url

    @property
    def pid(self) -> int | None:
        """The running process, or None."""
        state = self._read_state()
        return state.pid if state is not None and _is_ours(state) else None

    def is_running(self) -> bool:
        """Whether the recorded process lives (a reused process id does not count)."""
        if self._process is not None:
            self._process.poll()  # collects it when it has ended
        return self.pid is not None

    # -- what can be done with it ---------------------------------------------

    @property
    def default_url(self) -> str:
        """URL of the serial line when nobody names one: the board's own port."""
        return f"socket://127.0.0.1:{self._emulation.port}"

    @property
    def code_ranges(self) -> tuple[tuple[int, int], ...]:
        """(first address, bytes) of the memories that code can lie in: code flash, and RAM if it is another."""
        memory = self._facts.memory
        code = (memory.flash_origin, memory.flash_bytes)
        ram = (memory.ram_origin, memory.ram_bytes)
        return (code,) if memory.shared else (code, ram)

    def start(self, image: Path, url: str | None = None, erase: bool = False, counts: Path | None = None) -> str:
        """Records `image` and boots it; returns the URL of its serial line.

        Stops what ran in this folder.  The flash device keeps its content
        (what was learned survives a new image) unless `erase` is set.  Without
        `url` the recorded one is taken, else any free port.

        `counts` (QEMU only): a file to be made, in which the board counts its
        executions, a uint64 for every two bytes of `code_ranges`.  Until the
        next start; raises EmulatorError where it is not possible.
        """
        self.stop()
        self.state_dir.mkdir(parents=True, exist_ok=True)
        self.state_dir.chmod(0o700)  # an image may hold a key, and its flash what was learned
        if not Path(image).is_file():
            raise EmulatorError(f"no image {image}: build it first (pio run -e {self.board})")
        if Path(image).resolve() != self.image_path:
            shutil.copy(image, self.image_path)
        if erase:
            self.flash_path.unlink(missing_ok=True)
        return self._boot(url or self.url or free_url(), counts)

    def restart(self) -> str:
        """Powers the board up again: recorded image, same port, same flash."""
        state = self._read_state()
        if state is None or not self.image_path.is_file():
            raise EmulatorError(f"nothing was uploaded to {self.state_dir} yet")
        self.stop()
        return self._boot(state.url)

    def reset(self) -> None:
        """Press the reset button; serial clients stay connected."""
        state = self._running_state()
        if state.qmp is None:
            os.kill(state.pid, signal.SIGUSR1)
        else:
            with _Qmp(state.qmp) as qmp:
                qmp.execute("system_reset")

    def monitor(self, command: str) -> str:
        """Run a command of QEMU's monitor and return what it prints; EmulatorError on a board that is a process."""
        state = self._running_state()
        if state.qmp is None:
            raise EmulatorError(f"{state.board} has no monitor: it is a process")
        with _Qmp(state.qmp) as qmp:
            return str(qmp.execute("human-monitor-command", **{"command-line": command}))

    def kill(self, settle: bool = True) -> None:
        """Cut the power: the process is killed without notice to the firmware.

        QEMU writes a flash image some milliseconds after the guest did.  With
        `settle`, the guest is first frozen between two instructions and the
        writes it had issued are completed, so that what the firmware believes
        to be in flash is there, as on a real part.
        """
        state = self._read_state()
        if state is None or not _is_ours(state):
            return
        if settle and state.qmp is not None:
            with contextlib.suppress(OSError, EmulatorError), _Qmp(state.qmp) as qmp:
                qmp.execute("stop")  # drains and flushes every block device
        _signal(state, signal.SIGKILL)
        self._await_end(state)

    def stop(self) -> None:
        """Ends the board's process in an orderly way; no error when none runs."""
        state = self._read_state()
        if state is None or not _is_ours(state):
            return
        if state.qmp is not None:
            with contextlib.suppress(OSError, EmulatorError), _Qmp(state.qmp) as qmp:
                qmp.execute("stop")
        _signal(state, signal.SIGTERM)
        if not self._ended(state, _STOP_SECONDS):
            _signal(state, signal.SIGKILL)
        self._await_end(state)

    # -- inside -----------------------------------------------------------------

    def _read_state(self) -> _State | None:
        try:
            return _State(**json.loads((self.state_dir / "state.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError):
            return None

    def _write_state(self, state: _State) -> None:
        text = json.dumps(asdict(state), indent=2) + "\n"
        temporary = self.state_dir / "state.json.new"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self.state_dir / "state.json")

    def _running_state(self) -> _State:
        state = self._read_state()
        if state is None or not _is_ours(state):
            raise EmulatorError(f"board {self.board} is not running; see {self.log_path}")
        return state

    def _boot(self, url: str, counts: Path | None = None) -> str:
        port = _port_of(url)
        host = urlsplit(url).hostname or "127.0.0.1"
        if host not in ("localhost", "127.0.0.1"):
            raise EmulatorError(f"{url}: an emulated board is on localhost only")
        if self._emulation.kind == "process":
            if counts is not None:
                raise EmulatorError(f"{self.board} is a process of this computer: its instructions are not counted")
            self._launch(url, port, self._process_command(port), qmp=None, persistent=True)
            return url

        reason = unavailable(self.board, self._root)
        if reason is not None:
            raise EmulatorError(reason)
        qmp = self._qmp_path()
        plugin = self._flash_plugin()
        counting = [] if counts is None else ["-plugin", self._count_plugin(counts)]
        command = self._qemu_command(port, qmp, plugin) + counting
        uses_window = self._emulation.flash == "window"
        persistent = plugin is not None or not uses_window
        try:
            self._launch(url, port, command, qmp, persistent)
        except EmulatorError as error:
            least = _LEAST_PLUGIN_API.search(str(error))
            if least and self._plugin_api is None and int(least[1]) <= _MOST_PLUGIN_API:
                self._plugin_api = least[1]
                return self._boot(url, counts)
            if plugin is None or counting or "plugin" not in str(error):
                raise
            _warn(f"QEMU refused the flash plugin, its flash will not survive a stop: {error}")
            self._launch(url, port, self._qemu_command(port, qmp, None), qmp, persistent=False)
        return url

    def _process_command(self, port: int) -> list[str]:
        self.image_path.chmod(0o755)
        return [str(self.image_path), "--tcp", str(port), "--flash", str(self.flash_path)]

    def _qemu_command(self, port: int, qmp: str, plugin: Path | None) -> list[str]:
        facts = self._emulation
        command = [
            *(shutil.which(facts.program) or facts.program, "-M", facts.machine),
            *("-display", "none", "-monitor", "none"),
            *("-kernel", str(self.image_path)),
            *("-serial", f"tcp:127.0.0.1:{port},server=on,wait=off,nodelay=on"),
            *("-qmp", f"unix:{_quoted(qmp)},server=on,wait=off"),
            # one virtual nanosecond per instruction: repeatable tick counts
            *("-icount", "shift=0,sleep=off"),
        ]
        if facts.flash == "mtd":
            _create_erased(self.flash_path, facts.device_bytes)
            command += ["-drive", f"if=mtd,format=raw,file={_quoted(self.flash_path)}"]
        elif plugin is not None:
            store = self._facts.store
            _create_erased(self.flash_path, store.size)
            command += [
                "-plugin",
                f"{_quoted(plugin)},block={facts.ram_block},image={_quoted(self.flash_path)},"
                f"offset={store.offset},size={store.size}",
            ]
        return command

    def _flash_plugin(self) -> Path | None:
        """The flash plugin; None where the board needs none, or it cannot be built."""
        if self._emulation.flash != "window":
            return None
        try:
            return self._built("flash_window")
        except EmulatorError as error:
            _warn(f"flash will not survive a stop: {error}")
            return None

    def _count_plugin(self, counts: Path) -> str:
        """The option of QEMU that counts executions into a new file ``counts``."""
        size = sum(size for _, size in self.code_ranges) // _BYTES_PER_COUNT * 8
        with counts.open("wb") as file:
            file.truncate(size)  # most of it is never written, and takes no space
        ranges = "".join(f",range={base:#x}:{size:#x}" for base, size in self.code_ranges)
        return f"{_quoted(self._built('count'))},image={_quoted(counts.resolve())}{ranges}"

    def _built(self, name: str) -> Path:
        """A plugin for QEMU, compiled when its source is new."""
        source = _PLUGINS / f"{name}.c"
        digest = hashlib.sha256(source.read_bytes() + _PLUGIN_API.read_bytes()).hexdigest()[:12]
        library = self.state_dir / f"{name}-{digest}.so"
        if library.is_file():
            return library
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None:
            raise EmulatorError(f"no gcc on PATH to build QEMU's plugin {name}")
        temporary = library.with_suffix(".new")
        command = [compiler, "-std=c11", "-D_DEFAULT_SOURCE", "-O2", "-shared", "-fPIC"]
        command += ["-o", str(temporary), str(source)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise EmulatorError(f"QEMU's plugin {name} does not build:\n{result.stderr}")
        temporary.replace(library)
        return library

    def _qmp_path(self) -> str:
        for folder in (None, tempfile.gettempdir(), "/tmp"):
            place = self.state_dir if folder is None else Path(tempfile.mkdtemp(prefix="scl-emulator-", dir=folder))
            path = place / "qmp.sock"
            if len(os.fsencode(path)) <= _MOST_SOCKET_PATH:
                path.unlink(missing_ok=True)
                return str(path)
            if folder is not None:
                place.rmdir()
        raise EmulatorError("no folder for temporary files has a name short enough for a socket: set TMPDIR to one")

    def _launch(self, url: str, port: int, command: Sequence[str], qmp: str | None, persistent: bool) -> None:
        told = {} if self._plugin_api is None else {"SCL_PLUGIN_API": self._plugin_api}
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **told},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # outlives the terminal and Ctrl-C
                cwd=self.state_dir,
            )
        state = _State(
            board=self.board,
            url=url,
            port=port,
            pid=self._process.pid,
            command=list(command),
            sha256=hashlib.sha256(self.image_path.read_bytes()).hexdigest(),
            image=str(self.image_path),
            flash=str(self.flash_path),
            qmp=qmp,
            persistent=persistent,
        )
        self._write_state(state)
        self._wait_until_ready(state)

    def _wait_until_ready(self, state: _State) -> None:
        """Wait until the board is ready; both signs come after the serial port began to listen."""
        for _ in _polls(_START_SECONDS):
            assert self._process is not None
            status = self._process.poll()
            if status is not None:
                raise EmulatorError(
                    f"{Path(state.command[0]).name} ended with {status} when it was started on "
                    f"port {state.port}: {self._log_tail()}{self._hint()}"
                )
            if state.qmp is None:
                if "listening on" in self._log_tail():
                    return
            else:
                with contextlib.suppress(OSError), _Qmp(state.qmp) as qmp:
                    qmp.execute("query-status")
                    return
        self.kill(settle=False)
        raise EmulatorError(f"{self.board} did not come up in {_START_SECONDS:.0f} s")

    def _log_tail(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace").strip()[-2000:]

    def _hint(self) -> str:
        """Advice if the log says that QEMU refused a plugin."""
        if "plugin" not in self._log_tail():
            return ""
        version, _ = _machines(self._emulation.program)
        return (
            f"\n{version} does not take the plugins of {_PLUGINS}, which are for QEMU 4.2 to 11.1 built with plugins, "
            "as Debian and Ubuntu build it: install their package qemu-system-arm"
        )

    def _ended(self, state: _State, seconds: float) -> bool:
        for _ in _polls(seconds):
            if self._process is not None and self._process.pid == state.pid:
                self._process.poll()
            if not _is_ours(state):
                return True
        return False

    def _await_end(self, state: _State) -> None:
        if not self._ended(state, _STOP_SECONDS):
            raise EmulatorError(f"process {state.pid} does not end")
        if state.qmp is not None:
            Path(state.qmp).unlink(missing_ok=True)
            if Path(state.qmp).parent != self.state_dir:
                with contextlib.suppress(OSError):
                    Path(state.qmp).parent.rmdir()


def running(build: Path, experiment: str | None = None) -> list[Emulator]:
    """The emulated boards that run below the folder ``build``, or those of one experiment in it.

    ``sparcl flash`` keeps them in EXPERIMENT/BOARD/emulator/BOARD, a plain upload by PlatformIO in emulator/BOARD.
    """
    patterns = [f"{experiment or '*'}/*/emulator/*/state.json", *(["emulator/*/state.json"] if not experiment else [])]
    folders = sorted(path.parent for pattern in patterns for path in build.glob(pattern))
    found = [Emulator(folder, folder.name) for folder in folders]
    return [emulator for emulator in found if emulator.is_running()]


class _Qmp:
    """QEMU's control socket for one or a few commands."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(10)
        try:
            self._socket.connect(path)
            self._file = self._socket.makefile("rwb")
            self._file.readline()
            self.execute("qmp_capabilities")
        except BaseException:
            self._socket.close()
            raise

    def execute(self, command: str, **arguments: object) -> object:
        request: dict[str, object] = {"execute": command}
        if arguments:
            request["arguments"] = arguments
        self._file.write(json.dumps(request).encode() + b"\n")
        self._file.flush()
        while True:
            line = self._file.readline()
            if not line:
                raise EmulatorError(f"QEMU ended during {command}")
            answer = cast("dict[str, Any]", json.loads(line))
            if "error" in answer:
                raise EmulatorError(f"QEMU: {command}: {answer['error'].get('desc')}")
            if "return" in answer:  # other lines are events
                return answer["return"]

    def __enter__(self) -> _Qmp:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        self._socket.close()


def _polls(seconds: float) -> Iterator[None]:
    """Yields about every 10 ms until the time is over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield
        time.sleep(0.01)


def _quoted(value: object) -> str:
    """A path in a QEMU option list, where a comma is doubled."""
    return str(value).replace(",", ",,")


def _port_of(url: str) -> int:
    parts = urlsplit(url)
    if parts.scheme != "socket" or parts.port is None:
        raise EmulatorError(f"{url}: an emulated board needs socket://127.0.0.1:PORT")
    return parts.port


def _create_erased(path: Path, size: int) -> None:
    """A flash device full of 0xFF; one of the right size is kept."""
    if path.is_file():
        have = path.stat().st_size
        if have != size:
            raise EmulatorError(f"{path} has {have} bytes, the device has {size}: upload with --erase")
        return
    temporary = path.with_suffix(".new")
    with temporary.open("wb") as file:
        block = b"\xff" * 65536
        for begin in range(0, size, len(block)):
            file.write(block[: size - begin])
    temporary.replace(path)


def _arguments_of(pid: int) -> list[str]:
    """The command line of a process; empty when it has ended (or is a zombie)."""
    if Path("/proc/self/cmdline").exists():
        try:
            raw = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return []
        return os.fsdecode(raw).split("\0")[:-1]
    result = subprocess.run(  # macOS, BSD
        ["ps", "-ww", "-p", str(pid), "-o", "stat=,command="],
        capture_output=True,
        text=True,
        check=False,
    )
    fields = result.stdout.split()
    return [] if not fields or fields[0].startswith("Z") else fields[1:]


def _is_ours(state: _State) -> bool:
    """Whether the process is ours: ids are reused, so our image must be in its arguments."""
    return state.image in _arguments_of(state.pid)


def _signal(state: _State, number: signal.Signals) -> None:
    if _is_ours(state):
        with contextlib.suppress(ProcessLookupError):
            os.kill(state.pid, number)


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)


# -- command line -------------------------------------------------------------


def _upload(emulator: Emulator, options: argparse.Namespace) -> str:
    url = emulator.start(options.image, options.port or emulator.default_url, erase=options.erase)
    return f"{emulator.board} runs (process {emulator.pid}), serial line on {url}"


def _start(emulator: Emulator, options: argparse.Namespace) -> str:
    return f"{emulator.board} runs, serial line on {emulator.restart()}"


def _stop(emulator: Emulator, options: argparse.Namespace) -> str:
    if not emulator.is_running():
        return f"{emulator.board}: nothing runs in {emulator.state_dir}; `sparcl stop` stops all that run"
    emulator.stop()
    return f"{emulator.board} is stopped"


def _reset(emulator: Emulator, options: argparse.Namespace) -> str:
    emulator.reset()
    return f"{emulator.board} was reset"


def _kill(emulator: Emulator, options: argparse.Namespace) -> str:
    emulator.kill()
    return f"{emulator.board} is powered off; `start` powers it on"


def _status(emulator: Emulator, options: argparse.Namespace) -> str:
    state = emulator.state()
    if state is None:
        return f"{emulator.board}: nothing uploaded to {emulator.state_dir}"
    running = f"runs, process {emulator.pid}" if emulator.is_running() else "is stopped"
    return f"{emulator.board} {running}; {state['url']}, image {state['sha256'][:16]}"


def _check(emulator: Emulator, options: argparse.Namespace) -> str:
    reason = unavailable(emulator.board)
    if reason is not None:
        raise EmulatorError(reason)
    return f"{emulator.board} can run here"


_COMMANDS: dict[str, tuple[Callable[[Emulator, argparse.Namespace], str], str]] = {
    "upload": (_upload, "record an image and boot it"),
    "start": (_start, "boot the recorded image"),
    "stop": (_stop, "end the board's process"),
    "reset": (_reset, "press the reset button"),
    "kill": (_kill, "cut the power"),
    "check": (_check, "say whether this computer can run the board"),
    "status": (_status, "say what is recorded and whether it runs"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    common = argparse.ArgumentParser(add_help=False)
    parser = argparse.ArgumentParser(prog="python -m sparcl_mcu.host_tools.emulator")
    for target, default in ((parser, None), (common, argparse.SUPPRESS)):
        target.add_argument("--board", default=default, help="a folder of firmware/boards")
        target.add_argument("--state-dir", type=Path, default=default, help="default: build/emulator/<board>")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (_, text) in _COMMANDS.items():
        command = commands.add_parser(name, help=text, parents=[common])
        if name == "upload":
            command.add_argument("image", type=Path)
            command.add_argument("--port", help="socket://127.0.0.1:N, default: board.toml's")
            command.add_argument("--erase", action="store_true", help="begin with erased flash")
    options = parser.parse_args(arguments)
    if options.board is None:
        parser.error("--board is needed")
    try:
        emulator = Emulator(options.state_dir or default_state_dir(options.board), options.board)
        print(_COMMANDS[options.command][0](emulator, options), flush=True)
    except (EmulatorError, UserError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
