# SPDX-License-Identifier: Apache-2.0
"""Modules of the engine one by one, against Python's integers and libraries (harness.c is the other side)."""

from __future__ import annotations

import itertools
import random
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np
import pytest
from cobs import cobs
from numpy.typing import NDArray

from sparcl_mcu.host_tools.frame import REPLY, REQUEST, Frame
from sparcl_mcu.reference import loss as reference_loss
from sparcl_mcu.spec.paths import ROOT
from sparcl_mcu.spec.prng import Prng
from sparcl_mcu.spec.types import Model
from tests.compiled import compile_c
from tests.firmware.native import board_facts, flags, generate, small_ints
from tests.reference.models import random_model

HERE = Path(__file__).parent
FIRMWARE = ROOT / "firmware"
MORE, COMPLETE, DAMAGED, QUESTION, TOO_LONG = range(5)
INT32 = (-(2**31), 2**31 - 1)
ERROR_SHIFT = 3
"""What harness.c shifts the errors of a dense layer by."""

Harness = Callable[[str, bytes], bytes]


def build(model: Model, folder: Path, extra: Sequence[str] = ()) -> Harness:
    """The harness with the configuration of a model."""
    generated = generate(model, board_facts(), folder)
    image = folder / "harness"
    sources = [
        HERE / "harness.c",
        *(FIRMWARE / f"{name}.c" for name in ("engine/scl_crc", "app/scl_frame", "engine/scl_loss")),
    ]
    compile_c([*flags(generated), *extra, *sources, "-o", image])

    def run(operation: str, data: bytes) -> bytes:
        done = subprocess.run([image, operation], input=data, capture_output=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr.decode(errors="replace")[-3000:]
        return done.stdout

    return run


@pytest.fixture(scope="module", params=["stochastic", "pairs", "nearest"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Harness]:
    """Unsigned inputs with 10 classes, the same with the kernels of cores with DSP, signed inputs with 3."""
    stochastic = request.param != "nearest"
    sizes = (12, 10, 10) if stochastic else (12, 10, 3)
    model = random_model(1, sizes=sizes, signed=not stochastic, stochastic=stochastic, batch=2, sparse=[True, True])
    extra = ["-DSCL_PAIRS=1"] if request.param == "pairs" else []
    return model, build(model, tmp_path_factory.mktemp(request.param), extra)


@pytest.fixture(scope="module")
def harness(built: tuple[Model, Harness]) -> Harness:
    """Its program."""
    return built[1]


# -- arithmetic -------------------------------------------------------------------------------


def shift(v: int, s: int) -> int:
    """docs/spec/numerics.md; a left shift keeps 32 bits."""
    if s > 0:
        return (v + (1 << (s - 1))) >> s
    return ((v << -s) + 2**31) % 2**32 - 2**31


def test_fixed_point_at_the_corners(harness: Harness) -> None:
    """Shifts, saturation, clamp and magnitude of every power of two and its neighbours."""
    values = {sign * (1 << k) + d for k in range(32) for d in (-2, -1, 0, 1, 2) for sign in (1, -1)}
    values = {v for v in values if INT32[0] <= v <= INT32[1]}
    values |= set(random.Random(1).sample(range(*INT32), 200))
    cases = list(itertools.product(sorted(values), range(-8, 32)))
    out = harness("fixed", b"".join(struct.pack("<ii", *case) for case in cases))
    for (v, s), (asr, shifted, sat, clamped, magnitude) in zip(cases, struct.iter_unpack("<iiiiI", out), strict=True):
        assert asr == (v >> s if s >= 0 else 0), (v, s)
        assert shifted == shift(v, s), (v, s)
        assert sat == max(-32768, min(32767, v))
        wlog = 1 + (s & 15) % 15
        assert clamped == max(-(1 << wlog), min((1 << wlog) - 1, v)), (v, wlog)
        assert magnitude == abs(v)


def test_random_numbers(harness: Harness) -> None:
    """The generator and its use, as the reference has them."""
    rng = random.Random(2)
    states = [0, 1, 2**32 - 1, *(rng.randrange(2**32) for _ in range(500))]
    limits = [1, 2, 3, 255, 65535, *(rng.randrange(1, 2**20) for _ in range(498))]
    out = harness("prng", b"".join(struct.pack("<II", s, n) for s, n in zip(states, limits, strict=True)))
    for state, limit, (after, below) in zip(states, limits, struct.iter_unpack("<II", out), strict=True):
        assert after == (state * 1664525 + 1013904223) % 2**32
        assert below == after * limit >> 32
        prng = Prng(state)
        assert int(prng.below(limit)) == below
        assert int(prng.state) == after


def test_checksum_is_zlibs(harness: Harness) -> None:
    """Also continued from a former value, and wherever the bytes lie."""
    rng = random.Random(3)
    sizes = [*range(40), 64, 260, 1000]
    cases = [(rng.choice([0, rng.randrange(2**32)]), rng.randbytes(n), offset) for n in sizes for offset in range(4)]
    out = harness("crc", b"".join(struct.pack("<III", start, len(data), at) + data for start, data, at in cases))
    assert list(struct.unpack(f"<{len(cases)}I", out)) == [zlib.crc32(data, start) for start, data, _ in cases]


def test_numbers_as_bytes(harness: Harness) -> None:
    """Little-endian both ways."""
    data = [bytes(range(1, 9)), b"\xff" * 8, bytes(8), b"\x80\x7f" * 4]
    out = harness("bytes", b"".join(data))
    assert [out[k : k + 14] for k in range(0, len(out), 14)] == [d[:6] + d for d in data]


# -- loss -------------------------------------------------------------------------------------


def test_loss_and_its_errors(built: tuple[Model, Harness]) -> None:
    """Random and extreme logits, over all classes and over those of one task."""
    model, harness = built
    classes, pad, fraction = model.n_classes, model.layers[-1].n_pad, model.layers[-1].fa
    rng = np.random.default_rng(4)
    records, expected = b"", []
    for number in range(600):
        spread = int(rng.choice([3, 400, 4000, 32767]))
        z, stored = (small_ints(rng, -spread - 1, spread, classes) for _ in range(2))
        if number % 20 == 0:
            z[:] = z[0]  # ties
        tasks = rng.choice([0, 1, 255], size=classes)
        task = -1 if number % 2 else int(rng.integers(2))
        own = np.flatnonzero(tasks == task) if task >= 0 else np.arange(classes)
        if not len(own):
            tasks[0], own = task, np.array([0])
        label = int(rng.choice(own))
        records += z.astype("<i2").tobytes() + stored.astype("<i2").tobytes()
        records += tasks.astype("u1").tobytes() + struct.pack("<Bb", label, task)
        error, value = reference_loss.cross_entropy(z, own, label, fraction, pad)
        distil = reference_loss.squared_error(z, stored, fraction, pad)
        expected.append((value, *error.tolist(), *distil.tolist(), int(np.argmax(z))))
    out = harness("loss", records)
    assert list(struct.iter_unpack(f"<i{2 * pad}hi", out)) == expected


# -- frames -----------------------------------------------------------------------------------


def events(out: bytes) -> Iterator[tuple[int, bytes]]:
    """What the decoder reported."""
    at = 0
    while at < len(out):
        event, size = struct.unpack_from("<ii", out, at)
        yield event, out[at + 8 : at + 8 + size]
        at += 8 + size


def payloads(rng: random.Random) -> list[bytes]:
    """Random payloads; zeros and runs of 253 to 255 bytes are the corners of COBS."""
    result = [b"", b"\0", b"\0" * 300, bytes(range(256))]
    result += [b"\x11" * n + tail for n in (249, 250, 253, 254, 255, 508, 1000) for tail in (b"", b"\0", b"\x22")]
    for _ in range(200):
        parts = rng.choices([b"\0", b"\xff", b"\x01", b"\x11" * 254, rng.randbytes(9)], k=rng.randrange(1, 5))
        result.append(b"".join(parts)[:1024])
    return result


def encode(payload: bytes, kind: int = REQUEST) -> Frame:
    """A frame."""
    return Frame(kind, len(payload) & 0xFF, 0x0B, 0, payload)


def test_frames_are_decoded(harness: Harness) -> None:
    """What the `cobs` package encodes comes out, one after the other and after noise and zeros."""
    sent = [encode(payload) for payload in payloads(random.Random(5))]
    line = b"\0\0" + b"\0".join(frame.encode() for frame in sent)
    assert list(events(harness("frames", line))) == [(COMPLETE, frame.body()) for frame in sent]
    longest = Frame(REQUEST, 1, 2, 0, b"\x33" * 1024)
    assert list(events(harness("frames", longest.encode()))) == [(COMPLETE, longest.body())]
    both = Frame(REQUEST, 1, 2, 0, b"\x33" * 1025).encode() + longest.encode()
    assert [event for event, _ in events(harness("frames", both))] == [TOO_LONG, COMPLETE]


def test_frames_are_encoded(harness: Harness) -> None:
    """The `cobs` package decodes what the board sends."""
    frames = [encode(payload, REPLY).body() for payload in payloads(random.Random(6))]
    out = harness("send", b"".join(struct.pack("<I", len(body)) + body for body in frames))
    *chunks, rest = out.split(b"\0")
    assert rest == b""
    assert [cobs.decode(chunk) for chunk in chunks] == [body + struct.pack("<I", zlib.crc32(body)) for body in frames]


def damaged(rng: random.Random, wire: bytes) -> bytes:
    """One frame with one fault."""
    data = bytearray(wire[:-1])
    fault = rng.randrange(4)
    at = rng.randrange(len(data))
    if fault == 0:
        data[at] ^= 1 << rng.randrange(8)
    elif fault == 1:
        del data[at]
    elif fault == 2:
        data.insert(at, rng.randrange(1, 256))
    else:
        data = data[: at + 1]
    return bytes(data) + b"\0"


def test_damaged_frames_are_seen(harness: Harness) -> None:
    """One fault in a frame is found, and the frame after it arrives whole."""
    rng = random.Random(7)
    good = encode(b"after")
    for _ in range(10):
        line, bad = b"", 0
        for payload in payloads(rng)[:60]:
            wire = encode(payload).encode()
            broken = damaged(rng, wire)
            if broken in (wire, b"\0") or broken[:2] in (b"?\r", b"?\n"):
                continue
            line += broken + b"\0" + good.encode()
            bad += 1
        got = list(events(harness("frames", line)))
        assert [body for event, body in got if event == COMPLETE] == [good.body()] * bad
        assert sum(event == DAMAGED for event, _ in got) >= bad
        assert all(event in (COMPLETE, DAMAGED) for event, _ in got)


def test_question_mark(harness: Harness) -> None:
    """Only at the start of a frame and before the end of a line."""
    good = encode(b"x" * 57)  # 65 bytes of one run would begin with 66; 62 bytes with '?'
    run = Frame(REQUEST, 1, 11, 1, b"\x11" * 54)
    assert run.encode()[:1] == b"?"
    line = b"?\r" + b"?\n" + good.encode() + b"\0?\r" + run.encode() + b"x?\r\0" + b"?x\r\0"
    kinds = [event for event, _ in events(harness("frames", line))]
    assert kinds == [QUESTION, QUESTION, COMPLETE, QUESTION, COMPLETE, DAMAGED, DAMAGED]


# -- kernels ----------------------------------------------------------------------------------

U8, I8, I16 = range(3)
RANGE = {U8: (0, 255), I8: (-128, 127), I16: (-32768, 32767)}
DTYPE = {U8: "u1", I8: "i1", I16: "<i2"}
Ints = NDArray[np.int64]


class Storage(IntEnum):
    """How the weights of a layer lie; what the harness calls `sparse`."""

    DENSE = 0
    BY_INPUT = 1
    BY_OUTPUT = 2


@dataclass
class Case:
    """One layer, or one panel of a sparse one, and a sample."""

    kind: int
    rectified: bool
    n_in: int
    n_out: int
    block: int
    shift: int
    wlog: int
    prng: int
    x: Ints
    weight: Ints
    """(stored blocks, block): in storage order."""
    e: Ints
    acc: Ints
    start: Ints
    split: Ints
    index: Ints
    storage: Storage

    @property
    def sparse(self) -> bool:
        """Whether weights lie in lists."""
        return self.storage is not Storage.DENSE

    def pack(self) -> bytes:
        """The record for the harness."""
        head = (self.n_in, self.n_out, self.block, len(self.index), self.shift, self.wlog, self.prng, self.storage)
        parts = [struct.pack("<10I", self.kind, self.rectified, *head), self.x.astype(DTYPE[self.kind]).tobytes()]
        parts += [self.weight.astype("<i2").tobytes(), self.e.astype("<i2").tobytes(), self.acc.astype("<i4").tobytes()]
        if self.sparse:
            parts += [self.start.astype("<u2").tobytes(), self.split.astype("<u2").tobytes()]
            parts.append(self.index.astype("u1").tobytes())
        return b"".join(parts)

    def entries(self, learning: bool = False) -> Iterator[tuple[int, int, int]]:
        """Input, output and place of every stored weight (``learning``: of the gradient mask) in storage order."""
        for line in range(len(self.split)):
            end = self.split[line] if learning else self.start[line + 1]
            for k in range(int(self.start[line]), int(end)):
                place = int(self.index[k])
                i, b = (place, line) if self.storage is Storage.BY_OUTPUT else (line, place)
                for j in range(self.block):
                    yield i, b * self.block + j, k * self.block + j

    def visited(self, i: int, o: int) -> bool:
        """Whether an update visits a weight of the gradient mask."""
        line = slice(o - o % self.block, o - o % self.block + self.block)
        return bool(self.x[i]) and (self.storage is not Storage.BY_OUTPUT or bool(self.e[line].any()))


def weights_at_full_scale(rng: np.random.Generator, wlog: int, count: int) -> Ints:
    """-2^wlog and 2^wlog - 1 mostly."""
    return small_ints(rng, -(1 << wlog), (1 << wlog) - 1, count)


def cases(rng: np.random.Generator, kinds: Sequence[int]) -> Iterator[Case]:
    """Corners: all at full scale with the same sign, then random ones."""
    for number in range(60):
        kind = int(rng.choice(kinds))
        low, high = RANGE[kind]
        rectified = low == 0 or bool(rng.integers(2))
        low = 0 if rectified else low
        storage = Storage(int(rng.integers(3)))
        sparse = storage is not Storage.DENSE
        block = int(rng.choice([1, 2, 4])) if sparse else 1
        blocks, n_in = int(rng.integers(1, 9)), int(rng.integers(1, 12))
        grid = (blocks, n_in) if storage is Storage.BY_OUTPUT else (n_in, blocks)
        present = rng.random(grid) < (0.5 if sparse else 2.0)
        first = rng.random(grid) < (0.6 if sparse else 2.0)
        rows = [np.flatnonzero(line) for line in present & first]
        rest = [np.flatnonzero(line) for line in present & ~first]
        index = np.concatenate([np.concatenate(pair) for pair in zip(rows, rest, strict=True)])
        start = np.concatenate([[0], np.cumsum([len(a) + len(b) for a, b in zip(rows, rest, strict=True)])])
        split = start[:-1] + [len(a) for a in rows]
        # sum|x| * 2^wlog has to fit beside the bias (docs/spec/numerics.md): here 2^24
        wlog = 15
        while n_in * max(-low, high) << wlog > 2**31 - 1 - 2**24:
            wlog -= 1
        extreme = number < 12
        x = np.full(n_in, [low, high][number % 2] or high) if extreme else small_ints(rng, low, high, n_in)
        count = len(index) * block
        sign = [-(1 << wlog), (1 << wlog) - 1][number // 2 % 2]
        weight = np.full(count, sign) if extreme else weights_at_full_scale(rng, wlog, count)
        n_out = blocks * block
        # the sum of |e| is at most (2^31 - 1) / 2^wlog
        most = min(32767, ((2**31 - 1) >> wlog) // n_out)
        e = np.full(n_out, [-most, most][number // 4 % 2]) if extreme else small_ints(rng, -most, most, n_out)
        acc = small_ints(rng, -(2**24) + 1, 2**24 - 1, n_out)
        random_state = int(rng.integers(2**32))
        su = int(rng.integers(6, 31))
        sizes = (kind, rectified, n_in, n_out, block)
        yield Case(*sizes, su, wlog, random_state, x, weight, e, acc, start, split, index, storage)


def stepped(case: Case, weight: int, change: int, by: int, draw: Callable[[], int] | None) -> int:
    """docs/spec/numerics.md, "Backward", step 4."""
    d = (change + (draw() >> (32 - by))) >> by if draw is not None else shift(change, by)
    return max(-(1 << case.wlog), min((1 << case.wlog) - 1, weight - d))


def expected(case: Case, sacc: int, stochastic: bool) -> bytes:
    """What the kernels have to compute, in Python's unbounded integers."""
    x, e = case.x.tolist(), case.e.tolist()
    weight = case.weight.tolist()
    acc, sums = case.acc.tolist(), [0] * case.n_in
    saturated = 0
    for i, o, k in case.entries():
        acc[o] += weight[k] * x[i]
        sums[i] += weight[k] * e[o] if x[i] > 0 or not case.rectified else 0
    if case.storage is not Storage.BY_INPUT:
        shifted = [shift(v, ERROR_SHIFT) for v in sums]
        sums = [max(-32768, min(32767, v)) for v in shifted]
        saturated = sum(v != kept for v, kept in zip(shifted, sums, strict=True))
    state = case.prng

    def draw() -> int:
        nonlocal state
        state = (state * 1664525 + 1013904223) % 2**32
        return state

    rounding = draw if stochastic else None
    for i, o, k in case.entries(learning=True):
        if case.visited(i, o):
            weight[k] = stepped(case, weight[k], e[o] * x[i], case.shift, rounding)
    gradient = [0] * len(weight)
    places = [k for _, _, k in case.entries(learning=True)]
    for number, (i, o, _) in enumerate(case.entries(learning=True)):
        gradient[number] += shift(e[o] * x[i], sacc)
    assert all(INT32[0] <= v <= INT32[1] for v in (*acc, *sums, *gradient)), "the test's own numbers overflow"
    count = len(weight)
    out = b"" if case.storage is Storage.BY_INPUT else struct.pack("<i", saturated)
    out += struct.pack(f"<{len(acc)}i{len(sums)}i{count}h{count}iI", *acc, *sums, *weight, *gradient, state)
    for k, change in zip(places, gradient, strict=False):
        if change:
            weight[k] = stepped(case, weight[k], change, case.shift - sacc, rounding)
    return out + struct.pack(f"<{count}hI", *weight, state)


def test_kernels_at_full_scale(built: tuple[Model, Harness]) -> None:
    """Forward, error, update, accumulate and apply, dense and sparse, for every kind of input."""
    model, harness = built
    rng = np.random.default_rng(8)
    tried = list(cases(rng, (U8, I8, I16)))
    assert {(c.kind, c.storage) for c in tried} == set(itertools.product((U8, I8, I16), Storage))
    out = harness("kernel", b"".join(case.pack() for case in tried))
    for number, case in enumerate(tried):
        want = expected(case, model.sacc, model.learning.stochastic)
        assert out[: len(want)] == want, (number, case)
        out = out[len(want) :]
    assert not out


def test_norm_guard(harness: Harness) -> None:
    """Halves until the sum of magnitudes fits."""
    rng = np.random.default_rng(9)
    records, expect = b"", b""
    for _ in range(200):
        v = small_ints(rng, -32768, 32767, int(rng.integers(1, 64))).tolist()
        limit = int(rng.choice([0, 1, 100, 40000, 65536, 2**31 - 1]))
        if limit < len(v):
            limit = len(v)  # 1 rounds to 1 for ever (shift rounds half up)
        records += struct.pack(f"<II{len(v)}h", len(v), limit, *v)
        rounds = 0
        while sum(map(abs, v)) > limit:
            v = [shift(a, 1) for a in v]
            rounds += 1
        expect += struct.pack(f"<i{len(v)}h", rounds, *v)
    assert harness("guard", records) == expect
