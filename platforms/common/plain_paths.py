# SPDX-License-Identifier: Apache-2.0
"""Lets SCons see plain names only, whatever the folders of a build are called.

SCons takes `$` in a path for a variable, and joins what it starts to a line for a
shell.  So where a folder of the build has a name that means something to either,
the build runs in a folder of links with plain names: one for each entry of the
project, and one for each other folder.  All nodes that SCons knows lie in there,
under names that stay the same from build to build.

Only the standard library.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = "sparcl-root"
"""The link to the folder that holds firmware/ and platforms/."""
_PLAIN = re.compile(r"[A-Za-z0-9_./+-]*", re.ASCII)
_PLAIN_ON_WINDOWS = re.compile(r"[\w ./\\:+~()-]*")
"""Links need a privilege there; PlatformIO quotes what has blanks."""
_MADE_BY_BUILD = ("build", ".pio", "sparcl-platformio_build_dir")
"""Folders that may not be there yet."""
_FOLDERS = ("SCL_GENERATED", "TMPDIR")
"""Environment variables that name one folder."""
_BEFORE = "SCL_BEFORE"


class NotPlainError(ValueError):
    """A folder cannot be given a plain name; the message says what to change."""


def is_plain(path: str | os.PathLike[str]) -> bool:
    """Whether neither a shell nor SCons sees more in the path than a path."""
    pattern = _PLAIN_ON_WINDOWS if sys.platform == "win32" else _PLAIN
    return pattern.fullmatch(os.fspath(path)) is not None


def require_plain(*paths: str | os.PathLike[str]) -> None:
    """Raise ``NotPlainError`` for a path that must not reach SCons."""
    for path in paths:
        if not is_plain(path):
            raise NotPlainError(
                f"{os.fspath(path)!r} would reach a shell: give that folder a name of letters and digits only"
            )


@contextmanager
def plain_project(
    project: Path, root: Path, folders: Mapping[str, str], environment: Mapping[str, str] = os.environ
) -> Iterator[tuple[Path, dict[str, str]]]:
    """The project under a plain name, and the environment variables that have to change; ``project`` if all is plain.

    ``root`` holds firmware/ and platforms/, and is ``ROOT`` in there.  ``folders`` are the other folders that SCons
    sees, by the environment variable that replaces them.

    Raises:
        NotPlainError: no folder for temporary files has a plain name, or the system refuses links.
    """
    platformio = importlib.util.find_spec("platformio")
    assert platformio is not None
    assert platformio.origin is not None
    given = {name: os.path.abspath(environment[name]) for name in _FOLDERS if environment.get(name)}
    named = {**given, **folders, "PYTHONPATH": str(Path(platformio.origin).parent.parent)}
    if all(map(is_plain, [project, root, *named.values()])):
        yield project, {}
        return
    with tempfile.TemporaryDirectory(prefix="sparcl-build-", dir=_temporary_folder()) as folder:
        place = Path(folder)
        links = {name: f"sparcl-{name.lower()}" for name in named}
        entries = {name for name in os.listdir(project) if not name.startswith("sparcl-")}
        _link(place, {name: str(project / name) for name in {*entries, *_MADE_BY_BUILD[:2]}})
        _link(place, {ROOT: str(root), **{link: named[name] for name, link in links.items()}})
        changed = {name: str(place / link) for name, link in links.items()}
        changed["PYTHONPATH"] += os.pathsep + environment.get("PYTHONPATH", "")
        before = {name: environment.get(name) for name in changed}
        yield place, {**changed, _BEFORE: json.dumps([str(project), before])}


def _link(place: Path, targets: Mapping[str, str]) -> None:
    for name, target in targets.items():
        if not is_plain(name):
            continue
        if name in _MADE_BY_BUILD:
            with suppress(OSError):  # where it cannot be made, the build writes elsewhere
                os.makedirs(target, exist_ok=True)
        try:
            (place / name).symlink_to(target)
        except OSError as error:
            raise NotPlainError(
                f"a folder of this build ({target}, or one above or beside it) has a name that only a link can hide "
                f"from the shell, and the system refuses links ({error.strerror}): give the project, its build folder "
                "and the Python environment names of letters and digits only"
            ) from None


def _temporary_folder() -> str:
    """One with a plain name, whatever $TMPDIR is."""
    for folder in (tempfile.gettempdir(), "/tmp", "/var/tmp", os.path.expanduser("~")):
        if is_plain(folder) and os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise NotPlainError(
        "no folder for temporary files has a plain name: set TMPDIR to one with letters and digits only"
    )


def before(environment: Mapping[str, str] = os.environ) -> tuple[str | None, dict[str, str]]:
    """What ``plain_project`` replaced, project (if any) and environment: for programs that may outlive the links."""
    if _BEFORE not in environment:
        return None, dict(environment)
    folder, old = json.loads(environment[_BEFORE])
    kept = {name: value for name, value in environment.items() if name != _BEFORE and name not in old}
    return folder, kept | {name: value for name, value in old.items() if value is not None}
