# SPDX-License-Identifier: Apache-2.0
"""Runs a command: whatever goes wrong becomes a message and an exit status (docs/reference/commands.md)."""

from __future__ import annotations

import errno
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import typer

from sparcl_mcu.generator import files
from sparcl_mcu.generator.sizes import shown
from sparcl_mcu.spec.errors import BoardError, SparclError, UserError
from sparcl_mcu.spec.paths import build_folder

from . import output


class Log:
    """Where unexpected errors are logged."""

    folder: Path | None = None


log = Log()
_claims = ExitStack()
"""Folders the present command has locked."""


def claim(folder: Path) -> None:
    """Lock this folder until the command is done."""
    from sparcl_mcu.generator import lock

    _claims.enter_context(lock.alone(folder))


def call(command: Callable[[], int]) -> int:
    """Run a command; its exit status, with every error said on stderr in the user's terms."""
    try:
        return _settled(command)
    except output.OutputLost as error:
        output.discard()
        if error.reader_gone:
            return output.PIPE_STATUS
        _say(str(error))
        return UserError.exit_code


def _settled(command: Callable[[], int]) -> int:
    """Run a command and flush its output, all of which has arrived when this returns."""
    status = _status(command)
    output.settle()
    return status


def _status(command: Callable[[], int]) -> int:
    try:
        with _claims:
            return command()
    except output.OutputLost:
        raise
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except SparclError as error:
        _show_plan_of(error)
        _say(str(error))
        return error.exit_code
    except MemoryError as error:  # nothing can be imported any more
        _say(f"not enough memory ({error!s}): make the network, the data or the batch smaller".replace(" ()", ""))
        return UserError.exit_code
    except Exception as error:
        return _usage_error(error) or _unexpected(error)


def _show_plan_of(error: SparclError) -> None:
    """Show where the memory would go when a model does not fit its board."""
    from sparcl_mcu.generator.plan import DoesNotFit, table

    from . import view

    if isinstance(error, DoesNotFit):
        view.console.print(table(error.plan))


def _usage_error(error: Exception) -> int:
    """Show a mistake on the command line; its exit status, 0 when the error is another one.

    Detected by its attributes, because newer versions of Typer raise classes of their own copy of Click.
    """
    show, status = getattr(error, "show", None), getattr(error, "exit_code", None)
    if not callable(show) or not isinstance(status, int):
        return 0
    show()
    return status


_NOT_OURS = files.FULL | {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EBUSY, errno.EMFILE, errno.ENFILE),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO, errno.EINVAL),
}
"""Errors of a file that are not our bug."""


def _unexpected(error: Exception) -> int:
    from .emulator import EmulatorError

    if isinstance(error, EmulatorError):
        _say(str(error))
        return BoardError.exit_code
    if isinstance(error, OSError) and error.errno in _NOT_OURS and error.filename is not None:
        place = str(error.filename)
        inside = place.startswith(str(build_folder()))
        hint = "; SPARCL_BUILD=FOLDER puts what is built into another folder" if inside else ""
        _say(f"{place}: {error.strerror}{hint}")
        return UserError.exit_code
    if isinstance(error, OSError) and error.errno in files.FULL:
        _say(f"{error.strerror}: {_room()}; SPARCL_BUILD=FOLDER puts what is built into another folder")
        return UserError.exit_code
    text = "".join(traceback.format_exception(error))
    where = _logged(text, (log.folder or build_folder()) / "error.log")
    where = where or _logged(text, Path(tempfile.gettempdir()) / "sparcl-error.log")
    what = f"report it with {where}" if where else f"report it with this:\n{text}"
    _say(f"unexpected {type(error).__name__}: {error}\nThis is a bug of sparcl-mcu; {what}")
    return 1


def _room() -> str:
    """The free space where files are written."""
    places = {"the build folder": build_folder(), "the folder for temporary files": Path(tempfile.gettempdir())}
    free = {name: shutil.disk_usage(path).free for name, path in places.items() if path.is_dir()}
    return ", ".join(f"{name} ({places[name]}) has {shown(size)} free" for name, size in free.items())


def _logged(text: str, path: Path) -> Path | None:
    """The file that now holds the text; None if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="replace")
    except OSError:
        return None
    return path


_LONGEST = 8000
"""Most characters of a message."""


def _say(text: str) -> None:
    if len(text) > _LONGEST:  # what is wrong in a file may be all of it
        text = f"{text[: _LONGEST - 500]}\n...\n{text[-500:]}"
    # Names in it may come from a stranger's file: no control characters.
    text = "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
    print(f"sparcl: {text}", file=sys.stderr)
