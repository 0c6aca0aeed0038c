# SPDX-License-Identifier: Apache-2.0
"""The protocol side: replies, refusals that change nothing, digest, dump, copies, decoding."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest

from sparcl_mcu.reference import Device, Reply, arrays, first_difference
from sparcl_mcu.spec import wire
from sparcl_mcu.spec.types import Method, regions
from sparcl_mcu.spec.wire import Command, Status
from tests.reference.models import random_model, random_samples, samples, task_begin

N = 12

NONCE = bytes(range(8))


def good(device: Device, command: int, request: bytes = b"") -> bytes:
    """The payload of a reply that must be good."""
    reply = device.apply(command, request)
    assert reply is not None
    assert reply.status == Status.OK, Status(reply.status).name
    return reply.payload


def status(device: Device, command: int, request: bytes = b"") -> int:
    """The status of a refused request, which must not change the state."""
    before = device.dump()
    reply = device.apply(command, request)
    assert reply is not None
    assert reply.payload == b""
    assert device.dump() == before
    return reply.status


def fill(device: Device, classes: tuple[int, ...] = (0, 1)) -> None:
    """Begin a resident task of N samples and send them in two parts."""
    x, y = random_samples(device.model, classes, N)
    good(device, Command.TASK_BEGIN, task_begin(classes, N))
    assert good(device, Command.SAMPLES, samples(0, x[:5], y[:5])) == b"\x05\x00"
    assert good(device, Command.SAMPLES, samples(5, x[5:], y[5:])) == b"\x0c\x00"


def train(device: Device, steps: int, flags: int = 0) -> bytes:
    """Train."""
    return good(device, Command.TRAIN, struct.pack("<HB", steps, flags))


def trained(device: Device) -> Device:
    """Train the task to its end."""
    fill(device)
    while device.phase == 2:
        train(device, 5)
    return device


def test_training_reply() -> None:
    """Stops at the end of the epoch and carries digests."""
    device = Device(random_model(1))
    fill(device)
    reply = train(device, 100, 1)
    head = struct.unpack_from("<HHHHBBHI", reply)
    assert head[:3] == (N, 1, 0)
    assert head[3] == device.n < N
    assert head[5] == 1
    state, *rolling = struct.unpack_from(f"<{1 + N}I", reply, 16)
    assert state == device.digest()
    assert rolling[-1] == device.rolling
    assert len(reply) == 16 + 4 + 4 * N
    assert good(device, Command.DIGEST) == struct.pack("<III", state, device.rolling, N)


def test_cutting_requests_differently_changes_nothing() -> None:
    """Step by step is the same as at once; a save in between is invisible."""
    one, two = Device(random_model(1)), Device(random_model(1))
    fill(one)
    fill(two)
    train(one, 9)
    for _ in range(9):
        train(two, 1)
        good(two, Command.SAVE)
    assert one.dump() == two.dump()


def test_streamed_equals_resident() -> None:
    """The same samples in the table's order give the same weights."""
    model = random_model(2)
    resident, streamed = Device(model), Device(model)
    fill(resident)
    train(resident, 100)
    x, y = random_samples(model, (0, 1), N)
    good(streamed, Command.TASK_BEGIN, task_begin((0, 1), N, 1))
    assert streamed.phase == 2
    guess = streamed.copy()
    size = struct.pack("<HIH", 1, 0, 2 * N)
    before = good(guess, Command.DUMP, size)
    train(streamed, 0)
    assert streamed.shuffled
    order = np.frombuffer(good(streamed, Command.DUMP, size), dtype="<u2").tolist()
    rows = [struct.pack("<HB", k, y[k]) + x[k].tobytes() for k in order]
    assert status(streamed, Command.STEP, b"\x02" + rows[1] + rows[0] + b"\0") == Status.WRONG_ORDER
    assert status(guess, Command.STEP, b"\x01" + rows[0] + b"\0") == Status.BAD_STATE  # not shuffled yet
    assert good(guess, Command.DUMP, size) == before
    train(guess, 0)
    assert status(streamed, Command.TRAIN, b"\x01\0\0") == Status.BAD_STATE
    for device in (streamed, guess):
        good(device, Command.STEP, bytes([7]) + b"".join(rows[:7]) + b"\0")
        good(device, Command.STEP, bytes([5]) + b"".join(rows[7:]) + b"\0")
        ours, theirs = arrays(model, device.dump()), arrays(model, resident.dump())
        different = {name for name in ours if not np.array_equal(ours[name], theirs[name])}
        assert different == {"scalars.mode", "scalars.received"}


def test_task_end_and_next_task() -> None:
    """State after the end; the snapshot number does not count in a comparison."""
    device = trained(Device(random_model(1)))
    reply = device.apply(Command.TASK_END, b"")
    assert reply is not None
    assert (device.task, device.phase, device.n, device.epoch, device.received) == (1, 0, 0, 0, 0)
    digest = struct.pack("<I", device.digest())
    assert reply.matches(0, b"\x09\0\0\0" + digest)
    assert not reply.matches(0, b"\x09\0\0\0" + bytes(4))
    assert not reply.matches(4, b"")
    assert not Reply(0, b"ab").matches(0, b"abc")
    fill(device, (2, 3))
    assert device.state.grown


def test_refusals() -> None:
    """Every error the reference models."""
    device = Device(random_model(1))
    x, y = random_samples(device.model, (0, 1), N)
    begin, send, run = Command.TASK_BEGIN, Command.SAMPLES, Command.TRAIN
    assert status(device, 0x77) == Status.UNKNOWN_COMMAND
    assert status(device, begin, b"") == Status.BAD_LENGTH
    assert status(device, begin, task_begin((0, 1), 5) + b"x") == Status.BAD_LENGTH
    assert status(device, begin, task_begin((0, 9), 5)) == Status.BAD_LABEL
    assert status(device, begin, task_begin((0, 1), 65)) == Status.TOO_MANY
    assert status(device, begin, task_begin((0, 1), 5, 2)) == Status.RANGE
    assert status(device, run, b"\1\0\0") == Status.BAD_STATE
    assert status(device, Command.TASK_END) == Status.BAD_STATE
    good(device, begin, task_begin((0, 1), N))
    assert status(device, begin, task_begin((0, 1), 5)) == Status.BAD_STATE
    assert status(device, send, samples(1, x, y)) == Status.WRONG_ORDER
    assert status(device, send, samples(0, x, y)[:-1]) == Status.BAD_LENGTH
    assert status(device, send, samples(0, x, y + 2)) == Status.BAD_LABEL
    assert status(device, send, samples(0, np.vstack([x, x]), np.append(y, y))) == Status.TOO_MANY
    assert status(device, run, b"\1\0\0") == Status.BAD_STATE
    good(device, send, samples(0, x, y))
    assert status(device, run, b"\1\0") == Status.BAD_LENGTH
    assert status(device, Command.STEP, b"\0\0") == Status.BAD_STATE
    assert status(device, Command.PREDICT, b"x") == Status.BAD_LENGTH
    assert status(device, Command.EVALUATE, b"\1\x04" + x[0].tobytes()) == Status.BAD_LABEL
    assert status(device, Command.DUMP, struct.pack("<HIH", 9, 0, 1)) == Status.RANGE
    assert status(device, Command.DUMP, struct.pack("<HIH", 0, 50, 10)) == Status.RANGE
    assert status(device, Command.REPLAY, bytes(8) + x[0].tobytes()) == Status.BAD_STATE
    assert status(device, Command.RESET, b"\1") == Status.BAD_LENGTH
    assert status(device, Command.RESET, b"\2" + NONCE) == Status.RANGE
    device.nonce = NONCE
    assert status(device, Command.RESET, b"\1" + NONCE[::-1]) == Status.WRONG_NONCE
    assert status(device, begin, task_begin((0, 1), 5) + device.model.model_hash[:7]) == Status.BAD_LENGTH
    assert status(device, begin, task_begin((0, 1), 5) + bytes(8)) == Status.OTHER_MODEL
    assert status(device, Command.SAVE, b"\0") == Status.BAD_LENGTH
    small = Device(device.model, steps_per_request=3, max_payload=8)
    fill(small)
    assert status(small, run, b"\4\0\0") == Status.RANGE
    assert status(small, Command.DUMP, struct.pack("<HIH", 0, 0, 9)) == Status.RANGE


def test_unanswered() -> None:
    """What only a board knows."""
    device = Device(random_model(1))
    assert device.apply(Command.HELLO, b"") is None
    assert device.apply(Command.STATISTICS, b"") is None
    assert device.apply(Command.RESET, b"\0" + NONCE) is None


def test_factory_reset_and_copy() -> None:
    """A copy is independent; a reset gives the first state."""
    device = Device(random_model(1))
    first = device.dump()
    fill(device)
    train(device, 4)
    copy, at = device.copy(), device.dump()
    train(device, 100)
    assert copy.dump() == at
    train(copy, 8)
    assert copy.dump() == device.dump()
    steps, passes = device.training_steps, device.passes
    good(device, Command.RESET, b"\1" + NONCE)
    assert device.dump() == first
    assert (device.training_steps, device.passes) == (steps, passes)


@pytest.mark.parametrize("method", [Method.ER, Method.DERPP])
def test_replay_upload(method: Method) -> None:
    """Uploaded samples become slots of known classes; a full buffer refuses."""
    model = random_model(1, method=method, capacity=3)
    device = Device(model)
    x, _ = random_samples(model, (0, 1), 4)
    requests = [struct.pack("<IHBB", 40 + k, 7 + k, 1, k % 2) + x[k].tobytes() for k in range(4)]
    for k in range(3):
        assert good(device, Command.REPLAY, requests[k]) == struct.pack("<H", k + 1)
    assert status(device, Command.REPLAY, requests[3]) == Status.TOO_MANY
    got = arrays(model, device.dump())
    assert got["scalars.seen"][0] == 42
    assert got["scalars.task"][0] == 2
    assert got["scalars.class_task"].tolist() == [1, 1, 255, 255]
    assert got["replay.id"].tolist() == [7, 8, 9]
    assert got["replay.sample_crc"][0] == zlib.crc32(struct.pack("<HBB", 7, 1, 0) + x[0].tobytes())
    logits = good(device, Command.PREDICT, x[0].tobytes())[1:]
    crc = zlib.crc32(struct.pack("<HBB", 7, 1, 0) + logits) if method is Method.DERPP else 0
    assert got["replay.logits_crc"][0] == crc


@pytest.mark.parametrize("signed", [False, True])
def test_evaluate_and_predict(signed: bool) -> None:
    """The count of correct answers, and the same logits."""
    device = trained(Device(random_model(1, signed=signed)))
    x, y = random_samples(device.model, (0, 1), N)
    before = device.dump()
    payload = good(device, Command.EVALUATE, bytes([N]) + samples(0, x, y)[3:])
    assert device.dump() == before
    rows = [payload[1 + 9 * k : 10 + 9 * k] for k in range(N)]
    assert payload[0] == sum(row[0] == label for row, label in zip(rows, y.tolist(), strict=True))
    for row, sample in zip(rows, x, strict=True):
        assert good(device, Command.PREDICT, sample.tobytes()) == row
        assert row[0] == int(np.argmax(np.frombuffer(row[1:], dtype="<i2")))


def test_digest_covers_the_dump() -> None:
    """The state digest is the checksum of the regions, with replay reduced to its checksums."""
    device = trained(Device(random_model(1)))
    dump = device.dump()
    assert list(dump) == [region.number for region in regions(device.model)]
    assert len(dump[0]) == wire.SCALARS.size + device.model.n_classes
    slots = b"".join(dump[3][k + 4 : k + 12] for k in range(0, len(dump[3]), 12))
    layers = b"".join(dump[number] for number in dump if number >= 16)
    assert device.digest() == zlib.crc32(dump[0] + layers + dump[1] + dump[2] + slots)


def test_dump_in_pieces() -> None:
    """Offsets and sizes."""
    device = Device(random_model(1))
    for number, data in device.dump().items():
        pieces = [
            good(device, Command.DUMP, struct.pack("<HIH", number, at, min(7, len(data) - at)))
            for at in range(0, len(data), 7)
        ]
        assert b"".join(pieces) == data


def test_first_difference() -> None:
    """Names the weight by panel, entry, input and output."""
    device = Device(random_model(1))
    fill(device)
    ours = device.dump()
    assert first_difference(device.model, ours, ours) is None
    weight = next(r for r in regions(device.model) if r.name == "layer0.panel0.weight")
    data = bytearray(ours[weight.number])
    entry, lane = 5, 1
    data[2 * (2 * entry + lane)] ^= 1
    found = first_difference(device.model, {**ours, weight.number: bytes(data)}, ours)
    assert found is not None
    panel = device.state.layers[0].panels[0]  # type: ignore[attr-defined]
    source, output = panel.lines[entry], 2 * panel.index[entry] + lane
    assert (found.region, found.index) == (weight.name, 2 * entry + lane)
    assert found.where == f"layer 0, panel 0, entry {entry}: input {source}, output {output}"
    assert abs(found.device - found.reference) == 1
    shorter = first_difference(device.model, {**ours, 1: ours[1][:-2]}, ours)
    assert shorter is not None
    assert (shorter.region, shorter.index, shorter.device) == ("table.id", -1, N - 1)
    scalars = bytearray(ours[0])
    scalars[8] = 200
    found = first_difference(device.model, {0: bytes(scalars)}, ours)
    assert str(found) == "scalars.step[0] (value 0): device 200, reference 0"
    dense = next(r for r in regions(device.model) if r.name == "layer2.weight")
    data = bytearray(ours[dense.number])
    data[2 * 9] ^= 1
    found = first_difference(device.model, {dense.number: bytes(data)}, ours)
    assert found is not None
    assert found.where == "layer 2, input 2, output 1"
