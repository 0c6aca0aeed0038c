# SPDX-License-Identifier: Apache-2.0
"""Serial lines for tests: ports that hosts open, and a proxy between host and board that does what bad lines do."""

from __future__ import annotations

import os
import random
import select
import socket
import threading
import time
import tty
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Self

from sparcl_mcu.host_tools.frame import Splitter

SECONDS = 60.0
"""Until a test that would hang fails; never waited for otherwise."""

Fault = Callable[[bytes], list[bytes]]
"""What becomes of a frame (without the zero byte that ends it): the frames that go on in its place."""


@dataclass(frozen=True)
class Connection:
    """One open end of a line."""

    fd: int
    read: Callable[[], bytes]
    write: Callable[[bytes], object]


def tcp(connection: socket.socket) -> Connection:
    """A connected socket as an end of a line."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Connection(connection.fileno(), partial(connection.recv, 1 << 16), connection.sendall)


class Port:
    """A TCP port or a pseudo-terminal for one host at a time; ``talk`` serves each until it leaves."""

    def __init__(self, talk: Callable[[Connection], None], *, pty: bool = False) -> None:
        self.closing = threading.Event()
        self._talk = talk
        self._pty = pty
        if pty:
            self._master, self._slave = os.openpty()
            tty.setraw(self._slave)
            self.url = os.ttyname(self._slave)
        else:
            self._server = socket.create_server(("127.0.0.1", 0))
            self.url = f"socket://127.0.0.1:{self._server.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def start(self) -> None:
        """Begin serving."""
        self._thread.start()

    def close(self) -> None:
        """End serving."""
        self.closing.set()
        self._thread.join(5)
        if self._pty:
            os.close(self._master)
            os.close(self._slave)
        else:
            self._server.close()

    def _serve(self) -> None:
        if self._pty:
            self._attend(Connection(self._master, partial(os.read, self._master, 4096), self._write_all))
            return
        while not self.closing.is_set():
            if select.select([self._server], [], [], 0.05)[0]:
                connection, _ = self._server.accept()
                with connection:
                    self._attend(tcp(connection))

    def _attend(self, connection: Connection) -> None:
        try:
            self._talk(connection)
        except OSError:
            return  # the host has left

    def _write_all(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._master, data) :]


class Noise:
    """Errors of single bytes, ``rate`` of them: lost, doubled, swapped with one that follows, flipped, held back.

    ``done`` counts the errors of each kind.
    """

    KINDS = ("lost", "doubled", "swapped", "flipped", "late")

    def __init__(self, seed: int, rate: float) -> None:
        self.rng = random.Random(seed)
        self.rate = rate
        self.bytes = 0
        self.done: Counter[str] = Counter()

    def __call__(self, data: bytes) -> list[bytes]:
        """What arrives, in pieces: before each but the first the line stands still for a moment."""
        self.bytes += len(data)
        line, pieces = bytearray(data), [bytearray()]
        at = 0
        while at < len(line):
            kind = self.rng.choice(self.KINDS) if self.rng.random() < self.rate else ""
            if kind == "swapped" and at + 1 < len(line):
                other = min(len(line) - 1, at + self.rng.randrange(1, 9))
                line[at], line[other] = line[other], line[at]
            byte = line[at] ^ (1 << self.rng.randrange(8)) if kind == "flipped" else line[at]
            if kind == "late":
                pieces.append(bytearray())
            if kind != "lost":
                pieces[-1] += bytes([byte] * (2 if kind == "doubled" else 1))
            if kind:
                self.done[kind] += 1
            at += 1
        return [bytes(piece) for piece in pieces]


class BadFrames:
    """Loses, damages, doubles and cuts off frames, ``share`` of them."""

    KINDS = ("loss", "damage", "twice", "cut")

    def __init__(self, seed: int, share: float) -> None:
        self.rng = random.Random(seed)
        self.share = share
        self.done: Counter[str] = Counter()

    def __call__(self, chunk: bytes) -> list[bytes]:
        if self.rng.random() >= self.share:
            return [chunk]
        kind = self.rng.choice(self.KINDS)
        self.done[kind] += 1
        middle = self.rng.randrange(len(chunk))
        return {"loss": [], "damage": damage(chunk, middle), "twice": [chunk, chunk], "cut": [chunk[:middle]]}[kind]


def damage(chunk: bytes, at: int | None = None) -> list[bytes]:
    """One byte is another one."""
    at = len(chunk) // 2 if at is None else at
    return [chunk[:at] + bytes([chunk[at] ^ 0x40 or 1]) + chunk[at + 1 :]]


def whole(chunk: bytes) -> list[bytes]:
    """Nothing happens to it."""
    return [chunk]


class Proxy:
    """Stands between a host and the board at ``url``.

    ``hear`` and ``say`` are what becomes of the host's frames and of the
    board's; ``noise`` is what becomes of bytes then, both ways.
    """

    LATE = 0.002
    """Seconds for which the line stands still between bytes of a frame."""

    def __init__(self, url: str, *, pty: bool = False, noise: Callable[[bytes], list[bytes]] | None = None) -> None:
        self.hear: Fault = whole
        self.say: Fault = whole
        self.noise = noise
        self.hold = 1
        """Frames of the board are kept back until there are so many: the host gets none before."""
        self.cut_after: int | None = None
        """The line breaks when so many more frames of the host have passed; nobody can open it before `mend`."""
        self.frames = 0
        """Frames of the host so far."""
        self.most = 0
        """Greatest number of requests that waited for a reply."""
        self._board = url
        self._port = Port(self._talk, pty=pty)
        self.url = self._port.url
        self._port.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._port.close()

    def lead_to(self, url: str) -> None:
        """From the next connection on, another board."""
        self._board = url

    def mend(self) -> None:
        """Make a line that broke whole again."""
        self.cut_after = None

    def _talk(self, host: Connection) -> None:
        if self.cut_after == 0:
            return
        port = int(self._board.rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port), SECONDS) as connection:
            self._carry(host, tcp(connection))

    def _carry(self, host: Connection, board: Connection) -> None:
        splitters = {host.fd: Splitter(), board.fd: Splitter()}
        held: list[bytes] = []
        waiting = 0
        while not self._port.closing.is_set():
            for fd in select.select([host.fd, board.fd], [], [], 0.05)[0]:
                data = host.read() if fd == host.fd else board.read()
                if not data:
                    return
                chunks = splitters[fd].feed(data)
                if fd == board.fd:
                    held += chunks
                    continue
                if not chunks and 0 in data:
                    board.write(b"\0")  # a zero byte alone: the host ends what it left unfinished
                for chunk in chunks:
                    waiting += 1
                    self.frames += 1
                    self.most = max(self.most, waiting)
                    self._pass(self.hear(chunk), board)
                    if self.cut_after is not None:
                        self.cut_after -= 1
                        if self.cut_after <= 0:
                            self.cut_after = 0
                            return
            if len(held) >= self.hold:
                for chunk in held:
                    waiting -= 1
                    self._pass(self.say(chunk), host)
                held.clear()

    def _pass(self, chunks: list[bytes], to: Connection) -> None:
        data = b"".join(chunk + b"\0" for chunk in chunks)
        first, *late = self.noise(data) if self.noise is not None else [data]
        to.write(first)
        for piece in late:
            time.sleep(self.LATE)
            to.write(piece)
