# SPDX-License-Identifier: Apache-2.0
"""The memory of an emulated board, through QEMU's gdb server: the firmware knows nothing of it."""

from __future__ import annotations

import re
import socket
from types import TracebackType
from typing import Self

from sparcl_mcu.host_tools.emulator import Emulator, free_port


class Gdb:
    """Stops the board while it is open (GDB manual, "Remote Serial Protocol")."""

    def __init__(self, emulator: Emulator) -> None:
        port = free_port()
        emulator.monitor(f"gdbserver tcp:127.0.0.1:{port}")
        self._emulator = emulator
        self._line = socket.create_connection(("127.0.0.1", port), 10)
        self._data = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ask("D")
        self._line.close()
        self._emulator.monitor("gdbserver none")

    def read(self, address: int, size: int) -> bytes:
        """Bytes of memory."""
        return bytes.fromhex(self._ask(f"m{address:x},{size:x}"))

    def write(self, address: int, data: bytes) -> None:
        """Change memory, that of the program included."""
        assert self._ask(f"M{address:x},{len(data):x}:{data.hex()}") == "OK"

    def go_on_at(self, address: int) -> None:
        """Set the program counter; QEMU knows registers by number only after it was asked for their description."""
        self._ask("qXfer:features:read:target.xml:0,ffb")
        assert self._ask(f"Pf={address.to_bytes(4, 'little').hex()}") == "OK"

    def flip(self, address: int, bit: int) -> None:
        """Flip one bit, counted from an address."""
        byte = self.read(address + bit // 8, 1)[0]
        self.write(address + bit // 8, bytes([byte ^ 1 << bit % 8]))

    def _ask(self, packet: str) -> str:
        self._line.sendall(f"${packet}#{sum(packet.encode()) % 256:02x}".encode())
        while True:
            answer = self._packet()
            if not answer.startswith("T"):  # that the board has stopped
                return answer

    def _packet(self) -> str:
        while (found := re.search(rb"\$([^#]*)#..", self._data)) is None:
            part = self._line.recv(4096)
            assert part, "QEMU closed its gdb server"
            self._data += part
        self._data = self._data[found.end() :]
        self._line.sendall(b"+")
        return found[1].decode("latin-1")
