# SPDX-License-Identifier: Apache-2.0
"""A board made of the NumPy reference behind a TCP port or a pseudo-terminal."""

from __future__ import annotations

import select
import struct
from collections.abc import Callable
from typing import Self

from sparcl_mcu.host_tools import frame
from sparcl_mcu.host_tools.frame import Frame, Splitter
from sparcl_mcu.host_tools.protocol import KEPT, PHASE_TICKS, VERSION
from sparcl_mcu.reference import Device
from sparcl_mcu.spec import wire
from sparcl_mcu.spec.types import Model
from sparcl_mcu.spec.wire import Command
from tests.line import Connection, Port


class FakeBoard:
    """Serves one host at a time until it is closed.

    ``alter``: a fault of the board itself, (command, payload) -> payload; those of the line are `Proxy`'s.
    """

    def __init__(self, model: Model, name: str = "native", *, pty: bool = False, max_payload: int = 1024) -> None:
        self.model = model
        self.name = name
        self.device = Device(model, steps_per_request=100, max_payload=max_payload)
        self.alter: Callable[[int, bytes], bytes] = lambda _command, payload: payload
        self.executed: list[Frame] = []
        self.model_hash = model.model_hash
        self.restored = False
        self.reset_reason, self.health, self.faults = 1, 0, 0
        self._snapshot = self.device.copy()
        self._snapshots = 0
        self.window = 8
        self.max_payload = max_payload
        self._kept: list[tuple[bytes, bytes]] = []
        """The last requests and their replies, the newest last."""
        self._sizes: list[int] = []
        self._in_turn: int | None = None
        self._start = 1
        self._used = 0
        self._restarted = False
        """It restarts after the present reply."""
        self._port = Port(self._talk, pty=pty)
        self.url = self._port.url
        self._port.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._port.close()

    def power_cycle(self) -> None:
        """The board loses power and comes back with its last snapshot."""
        self.device = self._snapshot.copy()
        self.restored = self._snapshots > 0
        self._start += 1
        self._used = 0
        self._kept = []
        self._in_turn = None
        self._restarted = False

    @property
    def nonce(self) -> bytes:
        """docs/spec/protocol.md, "Nonce"."""
        return struct.pack("<II", self._start, self._used)

    def _talk(self, host: Connection) -> None:
        splitter = Splitter()
        while not self._port.closing.is_set():
            if select.select([host.fd], [], [], 0.05)[0]:
                data = host.read()
                if not data:
                    return
                for chunk in splitter.feed(data):
                    host.write(self._answer(chunk))

    # -- the board --------------------------------------------------------------------------------

    def _answer(self, chunk: bytes) -> bytes:
        request = frame.decode(chunk)
        if request is None or request.kind not in (frame.REQUEST, frame.NEXT):
            return Frame(frame.REPLY, 0, 0, 1, b"").encode()
        known = dict(self._kept).get(request.body())
        if known is not None:
            return known
        if request.kind == frame.REQUEST:
            self._kept.clear()
        elif request.sequence != self._in_turn:
            return Frame(frame.REPLY, request.sequence, request.command, 11, b"").encode()
        self.executed.append(request)
        status, payload = self._execute(request.command, request.payload)
        payload = self.alter(request.command, payload)
        reply = Frame(frame.REPLY, request.sequence, request.command, status, payload).encode()
        self._in_turn = None if status else (request.sequence + 1) % 256
        self._keep(request.body(), reply, len(payload))
        if self._restarted:
            self.power_cycle()
        return reply

    def _keep(self, request: bytes, reply: bytes, size: int) -> None:
        """As many replies as the firmware keeps, and not one more."""
        self._kept.append((request, reply))
        self._sizes = [*self._sizes, size + KEPT][-len(self._kept) :]
        room = self.max_payload + KEPT
        while len(self._kept) > 1 and (len(self._kept) > self.window or sum(self._sizes) > room):
            del self._kept[0], self._sizes[0]

    def _execute(self, command: int, request: bytes) -> tuple[int, bytes]:
        if command == Command.HELLO:
            return 0, self.hello()
        if command == Command.STATISTICS:
            return 0, self.statistics()
        self.device.nonce = self.nonce
        result = self.device.apply(command, request)
        self._used += command == Command.RESET and (result is None or result.status == 0)
        self._restarted = result is None
        if result is None:
            return 0, b""
        payload = result.payload
        if result.status == 0 and command in (Command.TASK_END, Command.SAVE):
            self._snapshot = self.device.copy()
            self._snapshots += 1
            payload = struct.pack("<I", self._snapshots) + payload[4:]
        if command == Command.RESET and result.status == 0:
            self._snapshot = self.device.copy()
            self._snapshots = 0
        return result.status, payload

    def hello(self) -> bytes:
        """docs/spec/protocol.md, "Hello reply"."""
        d, m = self.device, self.model
        return wire.HELLO.pack(
            protocol=VERSION,
            version=bytes((0, 1, 0)),
            model_hash=self.model_hash,
            board=self.name.encode(),
            n_in=m.n_in,
            n_classes=m.n_classes,
            n_layers=len(m.layers),
            input=int(m.signed),
            max_payload=self.max_payload,
            steps_per_request=100,
            window=self.window,
            table_capacity=m.learning.table,
            replay_capacity=m.learning.capacity,
            sector=4096,
            store_size=1 << 20,
            program_unit=4,
            **{name: int(getattr(d, name)) for name in ("step", "task", "phase", "mode", "shuffled", "epoch", "pos")},
            **{name: getattr(d, name) for name in ("n", "n_start", "received", "filled")},
            snapshot=self._snapshots,
            restored=int(self.restored),
            reset_reason=self.reset_reason,
            nonce=self.nonce,
            keyed=0,
            health=self.health,
            faults=self.faults,
        )

    def statistics(self) -> bytes:
        """docs/spec/protocol.md, "Statistics reply", with made-up ticks."""
        d = self.device
        ticks = {name: 1000 * d.training_steps * k for k, name in enumerate(PHASE_TICKS, 1)}
        saturated = ("saturated_activations", "saturated_errors", "guard_shifts")
        return wire.STATISTICS.pack(
            **ticks,
            training_steps=d.training_steps,
            passes=d.passes,
            programs=10,
            erases=2,
            bytes_written=4096,
            sectors=256,
            sectors_free=200,
            live_records=d.filled,
            erase_min=0,
            erase_max=1,
            relocated=0,
            checkpoints=self._snapshots,
            retired_sectors=0,
            lost_records=0,
            **{name: getattr(d, name) for name in saturated},
            weights_at_clamp=0,
            stack_used=512,
        )


def commands(board: FakeBoard) -> list[int]:
    """The commands a board executed."""
    return [request.command for request in board.executed]
