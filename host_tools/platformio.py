# SPDX-License-Identifier: Apache-2.0
"""Runs PlatformIO, also where its package registry cannot be reached.

PlatformIO builds with SCons, which it takes from `tool-scons`, a package of its
own registry. Where the registry does not answer, this module writes a stand-in
for that package which hands over to the `scons` wheel of the running Python.
Platforms, compilers and emulators are not stood in for: the environments of
platformio.ini that need no download use the ones on PATH.

    python -m sparcl_mcu.host_tools.platformio         prepare the core directory, say what was done
"""

from __future__ import annotations

import json
import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sparcl_mcu.spec.paths import IN_CHECKOUT, ROOT

_SCONS_SCRIPT = '''\
"""Stand-in for PlatformIO's tool-scons: SCons from the packages of this Python."""
import sys

import SCons.Script

if __name__ == "__main__":
    sys.exit(SCons.Script.main())
'''

# Without these, PlatformIO asks its servers by itself: telemetry, and a check for
# a new version of itself, which offline makes one command a week last a minute.
_SETTINGS = {"enable_telemetry": False, "check_platformio_interval": 36500}

_ERROR_LINE = re.compile(
    r"""\berror:            # compilers, the assembler, the linker
      | \berror\ \#          # `#error` under other compilers
      | undefined\ reference
      | multiple\ definition
      | will\ not\ fit\ in\ region
      | \boverflowed\ by\b
      | ^Error:              # PlatformIO
      | \w+(?:Error|Exception)\b:
      | ^Could\ not\b
      | No\ such\ file\ or\ directory
    """,
    re.IGNORECASE | re.VERBOSE,
)
_MAX_ERROR_LINES = 20
_TAIL_LINES = 15


class PioError(Exception):
    """PlatformIO failed; the message carries the lines that say why.

    Attributes:
        returncode: PlatformIO's exit status, or None when it ran out of time.
        lines: the error lines found in its output (at most 20).
        output: everything it printed, standard output first.
    """

    def __init__(self, message: str, returncode: int | None, lines: list[str], output: str) -> None:
        super().__init__("\n  ".join([message, *lines]))
        self.returncode = returncode
        self.lines = lines
        self.output = output


class CoreTools(Enum):
    """Where PlatformIO's SCons comes from; the values are shown to the user."""

    PRESENT = "already in place"
    REGISTRY = "left to PlatformIO, its registry answers"
    STAND_IN = "the scons package of this Python stands in, PlatformIO's registry does not answer"


def core_dir(environ: Mapping[str, str] | None = None) -> Path:
    """PlatformIO's core directory: $PLATFORMIO_CORE_DIR, else `platformio` in the virtual environment.

    Outside a virtual environment it is that of the checkout, or a folder of the user's cache:
    a user's own ~/.platformio is never changed.
    """
    given = (os.environ if environ is None else environ).get("PLATFORMIO_CORE_DIR")
    if given:
        return Path(given).expanduser().absolute()
    if sys.prefix != sys.base_prefix and os.access(sys.prefix, os.W_OK):
        return Path(sys.prefix) / "platformio"
    if IN_CHECKOUT:
        return ROOT / ".venv" / "platformio"
    import platformdirs

    return platformdirs.user_cache_path("sparcl-mcu") / "platformio"


def prepare(core: Path) -> CoreTools:
    """Make `core` usable offline: settings, and a stand-in for tool-scons if it is needed.

    Safe to call from several processes at once. A tool-scons that already satisfies
    the installed PlatformIO is left alone. With SPARCL_OFFLINE set to anything the
    registry is not asked and counts as unreachable.
    """
    core.mkdir(parents=True, exist_ok=True)
    if _has_scons(core):
        outcome = CoreTools.PRESENT
    elif not os.environ.get("SPARCL_OFFLINE") and registry_answers():
        outcome = CoreTools.REGISTRY
    else:
        _write_stand_in(core)
        outcome = CoreTools.STAND_IN
    # Last, because _is_prepared() takes it as the sign that the rest is done.
    _write_app_state(core)
    return outcome


def registry_answers(timeout: float = 2.5) -> bool:
    """Whether PlatformIO's registry serves the description of tool-scons within `timeout` seconds.

    The request is the one PlatformIO itself starts an installation with. It runs in
    a thread because a name server that never answers is not bound by the timeout of
    a request.
    """
    from platformio import __registry_mirror_hosts__ as hosts

    answers: queue.Queue[bool] = queue.Queue()

    def ask(host: str) -> None:
        import requests

        url = f"https://api.{host}/v3/packages/platformio/tool/tool-scons"
        try:
            reply = requests.get(url, timeout=timeout)
            answers.put(reply.ok and reply.json().get("name") == "tool-scons")
        except (requests.RequestException, ValueError, AttributeError):
            answers.put(False)

    # The first host alone, as PlatformIO asks the others only when it fails.
    threading.Thread(target=ask, args=(hosts[0],), daemon=True).start()
    try:
        return answers.get(timeout=timeout)
    except queue.Empty:
        return False


def run_pio(
    args: Sequence[str],
    env: Mapping[str, str] | None = None,
    *,
    cwd: Path | None = None,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `pio <args>` with the running Python and return what it printed.

    Args:
        args: the arguments, for example ["run", "-e", "native"].
        env: variables added to (or replacing) those of this process.
        cwd: the directory to run in; by default the current one.
        timeout: seconds after which PlatformIO is killed; None waits.

    Returns:
        The finished process, with its output in `stdout` and `stderr`.

    Raises:
        PioError: PlatformIO exited with a status other than 0, or ran out of time.
    """
    environ = {**os.environ, **(env or {})}
    core = core_dir(environ)
    environ.update(
        # PlatformIO expands variables in a path, but not in the value of a variable.
        SCL_CORE_DIR=str(core),
        PLATFORMIO_CORE_DIR="${sysenv.SCL_CORE_DIR}",
        PLATFORMIO_NO_ANSI="true",
        PLATFORMIO_DISABLE_PROGRESSBAR="true",
        LC_ALL="C.UTF-8",  # compilers translate "error:", which _ERROR_LINE looks for
    )
    if not _is_prepared(core):
        prepare(core)
    command = [sys.executable, "-m", "platformio", *args]
    shown = " ".join(["pio", *args])
    # Files, not pipes: an emulator that an upload leaves running inherits them, and
    # reading a pipe to its end would wait for that emulator.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            status = subprocess.run(
                command,
                cwd=cwd,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                timeout=timeout,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            output = _text(out) + _text(err)
            message = f"`{shown}` did not finish within {timeout:g} s; its last lines:"
            raise PioError(message, None, _tail(output), output) from None
        done = subprocess.CompletedProcess(command, status, _text(out), _text(err))
    if status != 0:
        raise _failure(shown, done)
    return done


def write_environments(build: Path) -> None:
    """Write ``platformio.ini`` into ``build``: the environments, for a project anywhere that includes the file.

    `sparcl new` makes such projects. Only this file says where sparcl-mcu is on this computer.
    """
    build.mkdir(parents=True, exist_ok=True)
    text = (ROOT / "platformio.ini").read_text(encoding="utf-8")
    root, core = _option(build, "sparcl-mcu", ROOT), _option(build, "sparcl-core", core_dir())
    text = text.replace("${PROJECT_DIR}", root)
    text = re.sub(r"(?m)^core_dir = .*$", lambda _: f"core_dir = {core}", text)
    text = re.sub(r"(?m)^(src_dir|include_dir) = ", lambda found: f"{found[0]}{root}/", text)
    path = build / "platformio.ini"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def _option(build: Path, name: str, folder: Path) -> str:
    """A folder for ``platformio.ini``: a link in ``build`` where its name means something there."""
    if not re.search(r"[%$\n]|\s[#;]", str(folder)):
        return folder.as_posix()
    link = build / name
    link.unlink(missing_ok=True)
    link.symlink_to(folder)
    return f"${{PROJECT_DIR}}/{build.name}/{name}"


def _failure(shown: str, done: subprocess.CompletedProcess[str]) -> PioError:
    output = done.stdout + done.stderr
    lines = error_lines(output)
    if lines:
        message = f"`{shown}` failed with exit status {done.returncode}:"
    else:
        # Offline, PlatformIO gives up on a download silently.
        message = (
            f"`{shown}` failed with exit status {done.returncode} and named no error "
            "(if it wanted to download a package: is the network up?); its last lines:"
        )
        lines = _tail(output)
    return PioError(message, done.returncode, lines, output)


def error_lines(output: str) -> list[str]:
    """The lines of a build's output that say what went wrong: each once, at most 20, in order."""
    found = (line.rstrip() for line in output.splitlines() if _ERROR_LINE.search(line))
    return list(dict.fromkeys(found))[:_MAX_ERROR_LINES]


def _tail(output: str) -> list[str]:
    return [line.rstrip() for line in output.splitlines() if line.strip()][-_TAIL_LINES:]


def _text(file: Any) -> str:
    file.seek(0)
    return str(file.read().decode("utf-8", errors="replace"))


def _is_prepared(core: Path) -> bool:
    """A check without importing PlatformIO (0.2 s), for every call of run_pio."""
    state = _read_app_state(core)
    return (core / "packages" / "tool-scons" / ".piopm").is_file() and (
        state.get("last_version") == version("platformio")
    )


def _read_app_state(core: Path) -> dict[str, Any]:
    try:
        state = json.loads((core / "appstate.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def _write_app_state(core: Path) -> None:
    """Store _SETTINGS, and the version, without which PlatformIO updates its tools by itself."""
    state = _read_app_state(core)
    settings = {**state.get("settings", {}), **_SETTINGS}
    wanted = {**state, "settings": settings, "last_version": version("platformio")}
    if wanted == state:
        return
    with tempfile.NamedTemporaryFile("w", dir=core, delete=False, encoding="utf-8") as file:
        json.dump(wanted, file)
    os.replace(file.name, core / "appstate.json")


def _requirement() -> str:
    from platformio.dependencies import get_core_dependencies

    return str(get_core_dependencies()["tool-scons"])


def _has_scons(core: Path) -> bool:
    from platformio.package.manager.tool import ToolPackageManager
    from platformio.package.meta import PackageSpec

    spec = PackageSpec(owner="platformio", name="tool-scons", requirements=_requirement())
    return ToolPackageManager(str(core / "packages")).get_package(spec) is not None


def _write_stand_in(core: Path) -> None:
    """Put a package `tool-scons` into `core` that PlatformIO takes for its own.

    It accepts one only with a .piopm file whose owner is `platformio` and a version
    that satisfies its requirement; .piokeep keeps it through `pio system prune`.
    """
    number = _requirement().lstrip("~^>=< ")
    spec = {"owner": "platformio", "id": None, "name": "tool-scons"}
    spec |= {"requirements": None, "uri": None}
    files = {
        "package.json": json.dumps({"name": "tool-scons", "version": number, "description": "Stand-in by sparcl-mcu"}),
        ".piopm": json.dumps({"type": "tool", "name": "tool-scons", "version": number, "spec": spec}),
        ".piokeep": "",
        "scons.py": _SCONS_SCRIPT,
    }
    packages = core / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    # Written aside and renamed: another process sees all of it or nothing.
    with tempfile.TemporaryDirectory(dir=core) as aside:
        fresh = Path(aside, "fresh")
        fresh.mkdir()
        for name, text in files.items():
            (fresh / name).write_text(text, encoding="utf-8")
        try:
            if (packages / "tool-scons").exists():  # of another version of PlatformIO
                os.rename(packages / "tool-scons", Path(aside, "stale"))
            os.rename(fresh, packages / "tool-scons")
        except OSError:
            # Another process was faster; what it wrote is the same.
            if not _has_scons(core):
                raise


def main() -> int:
    """Prepare the core directory and say what was done; the exit status is 0 on success."""
    core = core_dir()
    outcome = prepare(core)
    print(f"PlatformIO's build tool: {outcome.value} ({core})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
