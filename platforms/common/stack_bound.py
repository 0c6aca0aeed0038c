# SPDX-License-Identifier: Apache-2.0
"""The deepest stack a board's firmware can need, from the frames and calls that gcc writes with -fcallgraph-info=su.

Only the standard library, as board_build.py.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from pathlib import Path

ENTRY = "scl_app_main"
START = 32
"""Bytes that start-up needs before it, and what aligns the stack."""
LIBRARY = 48
"""Bytes of a function of the compiler's or C library (memcpy, memcmp, division): they call nothing."""
EXCEPTION = 32 + 72 + 4
"""Bytes that a Cortex-M puts on the stack for an interrupt: eight registers, those of the FPU, alignment."""
INDIRECT = "__indirect_call"
PORT = r"port_\w+"
"""What the engine calls of the program around it (firmware/include/sparcl.h), which may be in any file."""
POINTERS = {
    "scl_protocol.c": ((r"\w+", r"do_\w+"),),
    "scl_state.c": ((r"\w+", r"add_crc|add_size|add_tag|write_part|read_part"),),
    "scl_mask.c": (("find_cut", r"count_\w+"), ("insert", r"choose_\w+"), (r"\w+", r"count_\w+|choose_\w+")),
}
"""What the functions of a file call through pointers of their own, by caller: the first that fits, as one may be part
of another."""

_NODE = re.compile(r'^node: \{ title: "([^"]+)" label: "([^"\\]*)(?:\\n[^"]*?\\n(\d+) bytes \((\S+)\))?')
_EDGE = re.compile(r'^edge: \{ sourcename: "([^"]+)" targetname: "([^"]+)"')


@dataclass
class Graph:
    """Frames in bytes by function, and who calls whom."""

    frames: dict[str, int] = field(default_factory=dict)
    calls: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def add(self, text: str) -> None:
        """One .ci file."""
        lines = text.splitlines()
        source = Path(lines[0].split('"')[1]).name
        for line in lines:
            if node := _NODE.match(line):
                title, _, size, kind = node.groups()
                if size is not None:
                    if kind != "static":
                        raise ValueError(f"{title}: the frame's size is known only when it runs")
                    self.frames[title] = int(size)
            elif edge := _EDGE.match(line):
                caller, callee = edge.groups()
                self.calls[caller].add(f"{source}:{INDIRECT}" if callee == INDIRECT else callee)

    def targets(self, caller: str) -> Iterable[str]:
        """The functions that one calls."""
        for callee in self.calls[caller]:
            if not callee.endswith(INDIRECT):
                yield callee
                continue
            yield from self._pointed(callee.split(":")[0], plain(caller))

    def _pointed(self, source: str, caller: str) -> list[str]:
        own = next((names for name, names in POINTERS.get(source, ()) if re.fullmatch(name, caller)), None)
        if own is not None:
            found = [f for f in self.frames if f"/{source}:" in f and re.fullmatch(own, plain(f))]
        else:
            found = [f for f in self.frames if re.fullmatch(PORT, plain(f))]
        if not found:
            raise ValueError(
                f"{source}: {caller} calls through a pointer, but none of the functions named in "
                "platforms/common/stack_bound.py is there"
            )
        return found

    def depth(self, function: str, above: tuple[str, ...] = ()) -> tuple[int, tuple[str, ...]]:
        """Bytes from here on down, and the path that needs them."""
        if function in above:
            raise ValueError(f"recursion: {' > '.join(map(plain, (*above, function)))}")
        if function not in self.frames:
            return LIBRARY, (function,)
        ways = [self.depth(f, (*above, function)) for f in self.targets(function)]
        deepest, path = max(ways, default=(0, ()))
        # Division is a call that is missing from the graph.
        return self.frames[function] + max(deepest, LIBRARY), (function, *path)

    def reachable(self, function: str) -> Set[str]:
        """All that can be called."""
        found, left = set(), [function]
        while left:
            f = left.pop()
            if f not in found:
                found.add(f)
                left += self.targets(f)
        return found


def plain(function: str) -> str:
    """The name in the source."""
    return function.rsplit(":", 1)[-1].split(".")[0]


@dataclass(frozen=True)
class Bound:
    """In bytes, and the path to the deepest frame."""

    bytes: int
    path: tuple[str, ...]


def bound(texts: Iterable[str]) -> Bound:
    """Stack bound of one firmware: its application, and the costliest interrupt on top.  ``texts``: all .ci files.

    Raises:
        ValueError: recursion, a frame of unknown size, or a call through a pointer that POINTERS does not know.
    """
    graph = Graph()
    for text in texts:
        graph.add(text)
    if ENTRY not in graph.frames:
        raise ValueError(f"gcc wrote nothing about {ENTRY} (-fcallgraph-info=su)")
    deepest, path = graph.depth(ENTRY)
    handlers = [f for f in graph.frames if re.search("interrupt|systick", plain(f))]
    interrupt = max((EXCEPTION + graph.depth(f)[0] for f in handlers), default=0)
    return Bound(START + deepest + interrupt, tuple(map(plain, path)))
