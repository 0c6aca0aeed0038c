# SPDX-License-Identifier: Apache-2.0
"""The exceptions a user may see; their messages say what to change."""


class SparclError(Exception):
    """Base of all errors with a message for the user."""

    exit_code = 1


class UserError(SparclError):
    """A mistake in a file, an option or a choice of board (exit status 2)."""

    exit_code = 2


class ValidationFailed(SparclError):
    """The board and the reference disagree (exit status 1)."""

    exit_code = 1


class BoardError(SparclError):
    """The board, its emulator or the line to it failed (exit status 1)."""

    exit_code = 1


def one_line(text: object, most: int = 200) -> str:
    """Text from a file or a board, made safe to show in a message: no line breaks, no control characters."""
    line = "".join(c if c.isprintable() else " " for c in str(text)[: 4 * most])
    line = " ".join(line.split())
    return line if len(line) <= most else f"{line[:most]}..."
