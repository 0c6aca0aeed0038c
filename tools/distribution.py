#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`make distribution`: the demo and the boards' tests on Debian 13, from a fresh clone of what is committed.

    python tools/distribution.py [--suite trixie]

Makes a root folder of that release with debootstrap, from the mirror that this machine's apt uses, takes over the
machine's settings of apt, pip and certificates, and removes it all at the end.  Mounts and processes live in
namespaces of their own, so none is left behind, however it ends.

Exit status: 0 everything passed, 1 something failed, 75 no root can be made here (it says why).
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CANNOT = 75  # EX_TEMPFAIL: not this tree's fault
FREE_BYTES = 8_000_000_000
LOG_LINES = 15

BASE = "ca-certificates,git,make,python3,python3-venv"  # what a user has; setup installs the rest
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
CLONE = "/work/sparcl-mcu"
CLEAN = "/work/clean"  # an environment without the checkout
EMPTY = "/work/empty"
SHORT = "examples/split_digits.toml"
DIGEST = re.compile(r"state digest ([0-9a-f]{8})")

APT_SETTINGS = ("apt.conf", "apt.conf.d", "auth.conf", "auth.conf.d", "keyrings", "trusted.gpg.d")
CERTIFICATES = ("/etc/ssl/certs", "/usr/local/share/ca-certificates", "/usr/share/ca-certificates")
ENVIRONMENT = re.compile(
    r"PIP_\w+|(?:https?|ftp|all|no)_proxy|SSL_CERT_(?:FILE|DIR)|(?:REQUESTS_CA|CURL_CA)_BUNDLE|GIT_SSL_\w+|SPARCL_OFFLINE",
    re.IGNORECASE,
)


class CannotError(Exception):
    """No root can be made on this machine; the message says why."""


class FailedError(Exception):
    """Something does not work in the root."""


def say(text: str) -> None:
    """A line of progress."""
    print(f"distribution: {text}", flush=True)


def quietly(command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run with the output kept; `env` is added to this process's."""
    return subprocess.run(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C.UTF-8", **(env or {})},
    )


# --- what this machine has ------------------------------------------------------------


def why_not(folder: Path) -> str | None:
    """Why no root can be made in `folder`, or None."""
    if sys.platform != "linux":
        return "it needs Linux"
    if os.geteuid() != 0:
        return "it needs root rights (chroot and mount)"
    if shutil.which("apt-get") is None:
        return "it takes the mirror from apt, which is not here"
    if quietly(["unshare", "--mount", "--pid", "--fork", "true"]).returncode != 0:
        return "this machine does not allow mounts (a container without CAP_SYS_ADMIN?)"
    if shutil.disk_usage(folder).free < FREE_BYTES:
        return f"{folder} has less than {FREE_BYTES // 10**9} GB free (TMPDIR names another folder)"
    if not (ROOT / ".git").exists():
        return "this is not a git checkout, so there is nothing to clone"
    return None


def need_debootstrap() -> None:
    """Install debootstrap where that is allowed."""
    if shutil.which("debootstrap", path=PATH):
        return
    if os.environ.get("SPARCL_NO_APT"):
        raise CannotError("debootstrap is not installed, and SPARCL_NO_APT forbids to install it")
    say("installing debootstrap with apt")
    install = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y", "install", "--no-install-recommends"]
    if quietly([*install, "debootstrap"]).returncode != 0:
        quietly(["apt-get", "-q", "update"])
        done = quietly([*install, "debootstrap"])
        if done.returncode != 0:
            raise CannotError("debootstrap cannot be installed:\n" + tail(done.stdout))


def mirror() -> str:
    """The address of the Debian archive that this machine's apt uses."""
    query = ["apt-get", "indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)"]
    found = debian_archive(quietly(query).stdout)
    if found is None:
        quietly(["apt-get", "-q", "update"])  # a machine without package lists does not know the origins
        found = debian_archive(quietly(query).stdout)
    if found is None:
        raise CannotError("apt on this machine has no mirror of Debian")
    return found


def debian_archive(targets: str) -> str | None:
    """The first archive of `apt-get indextargets` that is Debian's own, not that of its security updates."""
    for line in targets.splitlines():
        origin, label, address = [*line.split("|"), "", ""][:3]
        if (origin, label) == ("Debian", "Debian"):
            return address
    return None


def environment() -> dict[str, str]:
    """What the commands in the root see: this machine's ways to the network, and nothing else of it."""
    taken = {name: value for name, value in os.environ.items() if ENVIRONMENT.fullmatch(name)}
    for scheme in ("http", "https"):
        said = quietly(["apt-config", "shell", "PROXY", f"Acquire::{scheme}::Proxy"]).stdout
        proxy = dict(word.split("=", 1) for word in shlex.split(said) if "=" in word).get("PROXY")
        if proxy and proxy != "DIRECT":
            taken.setdefault(f"{scheme}_proxy", proxy)
    home = os.environ.get("HOME", "/root")
    return {"HOME": home, "PATH": PATH, "LANG": "C.UTF-8", **taken}


def pip_files() -> list[Path]:
    """The settings of pip outside of this Python's own folder."""
    said = quietly([sys.executable, "-m", "pip", "config", "debug"]).stdout
    files = [Path(path) for path in re.findall(r"^\s+(/.*), exists: True$", said, re.MULTILINE)]
    return [path for path in files if not path.is_relative_to(sys.prefix)]


def pip_cache() -> Path | None:
    """Where pip keeps what it has fetched; None if there is nothing yet."""
    said = quietly([sys.executable, "-m", "pip", "cache", "dir"]).stdout.strip().splitlines()
    return Path(said[-1]) if said and Path(said[-1]).is_dir() else None


def pip_places() -> list[Path]:
    """Folders and files of this machine that pip reads."""
    return local_places(quietly([sys.executable, "-m", "pip", "config", "list"]).stdout)


def local_places(settings: str) -> list[Path]:
    """Folders and files of this machine that settings of pip name, as paths or as file: addresses.

    Of a folder with an index it is the one above: the pages there link to files beside it.
    """
    found: dict[Path, None] = {}
    for word in re.findall(r"(?:file://)?/[^\s'\"\\]+", settings):
        path = Path(word.removeprefix("file://"))
        if word.startswith("file://") and path.is_dir() and path.parent != Path("/"):
            path = path.parent
        if path.exists() and path != Path("/"):
            found[path] = None
    return list(found)


# --- the root -------------------------------------------------------------------------


def tail(text: str) -> str:
    """The last lines."""
    return "\n".join(text.rstrip().splitlines()[-LOG_LINES:])


def copy(path: Path, root: Path) -> None:
    """Copy to the same place in the root; links are followed."""
    there = root / path.relative_to("/")
    there.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, there, dirs_exist_ok=True, ignore_dangling_symlinks=True)
    elif path.exists():
        shutil.copy2(path, there)


def bind(path: Path, root: Path, *, writable: bool = False) -> None:
    """Mount a folder or file at the same place in the root."""
    there = root / path.relative_to("/")
    if path.is_dir():
        there.mkdir(parents=True, exist_ok=True)
    else:
        there.parent.mkdir(parents=True, exist_ok=True)
        there.touch()
    commands: list[list[str | Path]] = [["mount", "--rbind", path, there]]
    if not writable:
        commands.append(["mount", "-o", "remount,bind,ro", there])
    for command in commands:
        done = quietly(command)
        if done.returncode != 0:
            raise CannotError(f"`{shlex.join(map(str, command))}` failed: {done.stdout.strip()}")


def bootstrap(suite: str, root: Path) -> None:
    """The base system, with this machine's settings."""
    started = time.monotonic()
    say(f"making a root of {suite}")
    unsafe = root / "etc" / "dpkg" / "dpkg.cfg.d" / "unsafe-io"
    unsafe.parent.mkdir(parents=True)
    unsafe.write_text(
        "force-unsafe-io\n", encoding="utf-8"
    )  # the root lives for minutes: dpkg need not wait for the disk
    options = ["--variant=minbase", f"--include={BASE}"]
    done = quietly(["debootstrap", *options, suite, root, mirror()], environment())
    if done.returncode != 0:
        raise CannotError(f"debootstrap cannot make a root of {suite}:\n" + tail(done.stdout))
    for name in APT_SETTINGS:
        copy(Path("/etc/apt") / name, root)
    for path in [Path("/etc/resolv.conf"), Path("/etc/hosts"), *pip_files()]:
        copy(path, root)
    (root / environment()["HOME"].lstrip("/")).mkdir(parents=True, exist_ok=True)
    say(f"base system of {suite} after {time.monotonic() - started:.0f} s")


def mount(root: Path) -> None:
    """What the root shares with the machine; only in this process's namespace."""
    quietly(["mount", "-t", "proc", "proc", root / "proc"])
    bind(Path("/dev"), root, writable=True)
    named = [Path(value) for value in environment().values() if value.startswith("/") and ":" not in value]
    shared = [Path(path) for path in CERTIFICATES] + [path for path in named if path.is_file()]
    for path in outermost([*shared, *pip_places()]):
        bind(path, root)
    cache = pip_cache()
    if cache is not None:
        bind(cache, root, writable=True)


def outermost(paths: Iterable[Path]) -> list[Path]:
    """The folders that exist, without those inside another."""
    there = sorted({path for path in paths if path.exists()})
    return [path for path in there if not any(other in path.parents for other in there)]


# --- what runs in it ------------------------------------------------------------------


class Inside:
    """Runs commands in the root; remembers what failed."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.failed: list[str] = []

    def run(self, command: str, folder: str = CLONE) -> str:
        """Run with a shell, print the output and return it."""
        say(command)
        started = time.monotonic()
        script = f"cd {folder} && {command}"
        process = subprocess.Popen(
            ["chroot", self._root, "/bin/sh", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment(),
        )
        assert isinstance(process.stdout, io.BufferedReader)
        output = b""
        while chunk := process.stdout.read1():  # not by lines: pytest's dots are to be seen as they come
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
            output += chunk
        status = process.wait()
        say(f"{command}: exit status {status} after {time.monotonic() - started:.0f} s")
        if status != 0:
            self.failed.append(command)
        return output.decode(errors="replace")

    def demo(self, options: str = "") -> str | None:
        """The digest a demo ends with; None, and noted, unless it was validated."""
        command = f"make demo {options}".strip()
        said = self.run(command)
        found: list[str] = DIGEST.findall(said)
        if found and "bit-exact with the NumPy reference" in said:
            return found[-1]
        self.failed.append(f"{command}: no validated digest")
        return None

    def wheel(self) -> None:
        """The package in an environment and a folder of its own, as the README says."""
        self.run("make wheel")
        self.run(f"python3 -m venv {CLEAN} && {CLEAN}/bin/pip install --quiet {CLONE}/dist/*.whl", "/")
        self.run(f"mkdir {EMPTY} && cd {EMPTY} && {CLEAN}/bin/sparcl new my_project", "/")
        for board in ("native", "microbit"):
            self.run(f"{CLEAN}/bin/sparcl run my_project.toml --board {board}", f"{EMPTY}/my_project")


def boards() -> list[str]:
    """The boards that run without hardware."""
    facts = {
        path.parent.name: tomllib.loads(path.read_text(encoding="utf-8"))
        for path in ROOT.glob("firmware/boards/*/board.toml")
    }
    return sorted(name for name, board in facts.items() if board.get("emulator", {}).get("kind", "none") != "none")


def prove(root: Path) -> list[str]:
    """What failed in the root."""
    inside = Inside(root)
    inside.run("make setup")
    if inside.failed:
        return inside.failed
    inside.run(
        "qemu-system-arm --version | head -n 1; arm-none-eabi-gcc --version | head -n 1; gcc --version | head -n 1"
    )
    inside.demo()
    digests = {board: inside.demo(f"BOARD={board} EXAMPLE={SHORT}") for board in boards()}
    if len(set(digests.values())) > 1:
        inside.failed.append(f"the boards differ: {digests}")
    inside.wheel()
    inside.run(".venv/bin/python -m pytest -q -n 2 -m 'not slow' tests/boards")
    return inside.failed


def in_namespaces(suite: str, root: Path) -> int:
    """What the process of `apart` does; its exit status."""
    bootstrap(suite, root)
    mount(root)
    clone = root / CLONE.lstrip("/")
    clone.parent.mkdir(parents=True)
    done = quietly(["git", "-c", "safe.directory=*", "clone", "--quiet", "--no-hardlinks", ROOT, clone])
    if done.returncode != 0:
        raise FailedError(f"the checkout cannot be cloned:\n{tail(done.stdout)}")
    failed = prove(root)
    if failed:
        raise FailedError("\n".join([f"these failed on {suite}:", *(f"  {what}" for what in failed)]))
    say(f"everything works on {suite}")
    return 0


def apart(suite: str, root: Path) -> int:
    """Run `in_namespaces` in a process whose mounts and children end with it; its exit status."""
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
    # The first process of the namespace inherits the emulators that are started; bash collects them when they end.
    command += ["bash", "-c", '"$@"; exit $?', "init", sys.executable, __file__]
    process = subprocess.Popen([*command, "--suite", suite, "--inside", str(root)])
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.kill()
        process.wait()
        return 1


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="The demo and the boards' tests on another release of Debian.")
    parser.add_argument("--suite", default="trixie", help="the release: trixie is Debian 13")
    parser.add_argument("--inside", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    try:
        if options.inside:
            return in_namespaces(options.suite, options.inside)
        reason = why_not(Path(tempfile.gettempdir()))
        if reason is not None:
            raise CannotError(reason)
        need_debootstrap()
        if quietly(["git", "-C", ROOT, "status", "--porcelain"]).stdout.strip():
            say("what is not committed is not tried")
        with tempfile.TemporaryDirectory(prefix="sparcl-root-", ignore_cleanup_errors=True) as folder:
            root = Path(folder, "root")
            root.mkdir()
            return apart(options.suite, root)
    except CannotError as error:
        say(f"SKIPPED, no root of {options.suite} can be made here: {error}")
        return CANNOT
    except FailedError as error:
        say(f"error: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
