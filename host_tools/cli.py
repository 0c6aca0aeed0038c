# SPDX-License-Identifier: Apache-2.0
"""The command `sparcl`: finds the commands and runs one.

A command is a file in commands/ with a function of its name; the docstring is its help. Other packages add theirs as
entry points of the group "sparcl.commands" (pyproject.toml). These files import what a command needs only when it
runs, so that --help is quick.
"""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import entry_points
from operator import itemgetter
from typing import Annotated, Any

import typer

from sparcl_mcu.spec.errors import UserError

from . import commands, failures, output

GROUP = "sparcl.commands"

_HELP = """
Continual learning with sparse networks on a microcontroller.

An experiment file says what to learn and how; --board names the board.

\b
  sparcl new my_project                   a project that runs at once
  sparcl run my_project.toml              everything, on this computer
  sparcl run my_project.toml -b microbit  the same on an emulated micro:bit
  sparcl boards                           which boards there are
  sparcl doctor                           what is missing on this computer

The stages one by one; each first brings the generated project up to date:

  generate -> build -> flash -> stream -> validate -> report

Options of the experiment file can be changed for one command:

\b
  sparcl run EXP.toml --set sparsity.weights=0.95 --seed 7

\b
Exit status: 0 success
             1 the board failed, or disagrees with the reference
             2 a mistake in a file or an option, or a full disk
"""


def found() -> Iterator[tuple[str, Callable[..., None]]]:
    """Names and functions of all commands.  Raises UserError for one of another package that cannot be one."""
    own = [module.name for module in pkgutil.iter_modules(commands.__path__)]
    for name in own:
        yield name, getattr(import_module(f"{commands.__name__}.{name}"), name)
    for point in entry_points(group=GROUP):
        if point.name in own:
            raise UserError(
                f"{point.value} adds the command {point.name}, which is there already: uninstall its package"
            )
        try:
            yield point.name, point.load()
        except (ImportError, AttributeError) as error:
            raise UserError(
                f"{point.value} adds a command, but does not work ({error}): uninstall its package"
            ) from error


def application() -> typer.Typer:
    """All commands, in the order of their names."""
    app = typer.Typer(
        help=_HELP,
        no_args_is_help=True,
        rich_markup_mode=None,
        context_settings={"max_content_width": 110},
        pretty_exceptions_enable=False,
        callback=_options_of_all,
    )
    for name, command in sorted(found(), key=itemgetter(0)):
        app.command(name)(command)
    return app


def _print_version(asked: bool) -> None:
    if asked:
        from sparcl_mcu.generator import __version__

        print(f"sparcl-mcu {__version__}")
        raise typer.Exit


def _options_of_all(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `sparcl`; exits with the status the documentation promises."""
    with output.guarded():
        status = failures.call(lambda: _dispatch(arguments))
    sys.exit(status)


def _dispatch(arguments: list[str] | None) -> int:
    command = typer.main.get_command(application())
    status: Any = command.main(arguments, prog_name="sparcl", standalone_mode=False)
    return status if isinstance(status, int) else 0


if __name__ == "__main__":
    main()
