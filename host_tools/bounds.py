# SPDX-License-Identifier: Apache-2.0
"""What a board may send, and how long it may keep a host busy (docs/evidence/security.md, "A hostile board").

The bounds follow from what the host asks, so that a slow board or a bad line never meets them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable

from sparcl_mcu.spec.errors import BoardError

SPARE_REPLIES = 1000
"""Replies that may come unasked: those to an earlier session, and what a line repeats."""
SPARE_BYTES = 1 << 18
"""Bytes that may come unasked; at most two of the longest frames are under way as the reply to one."""
AS_MANY = 2
"""A board sends one reply to each frame it gets, and a line may double what it carries."""

TRIES_IN_ALL = 6
"""Time-outs of a command until its answer, as long as something comes; a board that is silent has three."""

MOST_RETURNS = 3
"""Times in a row that a board may start again without having saved anything new, before it is given up."""
RETURNS_A_TASK = 10
"""Times that a board may start again in a session, for each of its tasks."""
MOST_LAPS = 32
"""Times in a row that work may be taken up again with smaller requests: there are 16 halvings of the longest one."""
STANDSTILL = 3600.0
"""Seconds without a sample sent, learned or tested; the answer to one request takes a quarter of that at most."""


class Traffic:
    """The replies and bytes that a board may still send."""

    def __init__(self) -> None:
        self._replies, self._bytes = SPARE_REPLIES, SPARE_BYTES

    def asked(self, longest: int) -> None:
        """A frame was sent; its reply has ``longest`` bytes at most."""
        self._replies = min(SPARE_REPLIES, self._replies + AS_MANY)
        self._bytes = min(SPARE_BYTES, self._bytes + AS_MANY * longest)

    def came(self, replies: int, size: int) -> str | None:
        """Count whole replies and bytes that came; returns what is wrong if there are too many."""
        self._replies -= replies
        self._bytes -= size
        if self._replies < 0:
            return f"more than {SPARE_REPLIES} replies to nothing it was asked"
        if self._bytes < 0:
            return f"{SPARE_BYTES} bytes more than the replies to what it was asked can have"
        return None


class Advance:
    """Whether a session makes progress.  Each method raises BoardError when the board keeps it from that."""

    def __init__(self, tasks: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._reached: dict[Hashable, int] = {}
        self._since = clock()
        self._laps = 0
        self._saved = self._in_a_row = 0
        self._returns, self._most_returns = 0, RETURNS_A_TASK * max(1, tasks)

    def begins(self, step: int) -> None:
        """The session begins with a board at this step."""
        self._saved, self._in_a_row = step, 1

    def reached(self, what: Hashable, place: int) -> None:
        """A count of samples sent, learned or tested; progress where it is higher than before."""
        if place > self._reached.get(what, -1):
            self._reached[what] = place
            self._since = self._clock()
            self._laps = 0
        self.check()

    def check(self) -> None:
        """Check for progress; called wherever the session asks the board where it stands."""
        seconds = self._clock() - self._since
        if seconds > STANDSTILL:
            raise BoardError(
                f"the board answers, but nothing has been learned, sent or tested for {seconds / 60:.0f} minutes: "
                "power it off and on, then `sparcl stream --resume`"
            )

    def lap(self) -> None:
        """Work is taken up again because requests did not get through."""
        self._laps += 1
        if self._laps > MOST_LAPS:
            raise BoardError(
                f"the line let the board's short replies through, but no work for {MOST_LAPS} times in a row: "
                "check the cable, its ground and the baud rate, then `sparcl stream --resume`"
            )
        self.check()

    def returned(self, step: int, cause: str) -> None:
        """The board has started again, with what it had saved at this step."""
        self._returns += 1
        self._in_a_row = 1 if step > self._saved else self._in_a_row + 1
        self._saved = max(self._saved, step)
        if self._in_a_row > MOST_RETURNS:
            what = f"{MOST_RETURNS} times in a row without having saved anything new"
        elif self._returns > self._most_returns:
            what = f"{self._returns} times in this session"
        else:
            self.check()
            return
        raise BoardError(
            f"the board has started again {what}, now at step {step} ({cause}): check its power supply and what "
            "heats or disturbs it; `sparcl stream --resume` tries again, another board may be needed"
        )
