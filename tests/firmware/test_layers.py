# SPDX-License-Identifier: Apache-2.0
"""Kernels of convolutional networks, against docs/spec/numerics.md in Python's integers (layers.c: the other side)."""

from __future__ import annotations

import itertools
import struct
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from sparcl_mcu.spec import wire
from tests.compiled import compile_c
from tests.firmware.native import flags, small_ints

HERE = Path(__file__).parent
ACTIVE = 64
"""Most errors of a channel."""
CAPTURE, SACC = 4, 5
"""Of the configuration that the kernels are compiled with."""
U8, I8, I16 = range(3)
DTYPE = {U8: "u1", I8: "i1", I16: "<i2"}
Ints = NDArray[np.int64]
Harness = Callable[[str, bytes], bytes]
Position = tuple[int, int, int]
"""Channel, row, column."""

CONFIG = f"""
#define SCL_INPUT_SIGNED 0
#define SCL_LATENT_SIGNED 0
#define SCL_LATENT_STORED 0
#define SCL_POSITION_BYTES 2
#define SCL_CAPTURE {CAPTURE}
#define SCL_SACC {SACC}
"""


@dataclass(frozen=True)
class Build:
    """A program and what it was compiled for."""

    stochastic: bool
    by_gradient: bool
    run: Harness


@pytest.fixture(
    scope="module",
    params=[(True, False, False), (False, True, False), (True, False, True)],
    ids=["stochastic", "nearest", "pairs"],
)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Both ways of rounding and of keeping gradient sums, and the kernels of cores with DSP instructions."""
    stochastic, by_gradient, pairs = request.param
    folder = tmp_path_factory.mktemp("layers")
    config = f"#define SCL_STOCHASTIC {int(stochastic)}\n#define SCL_GROWTH_GRADIENT {int(by_gradient)}\n"
    (folder / "scl_config.h").write_text(CONFIG + config)
    (folder / "scl_wire.h").write_text(wire.header())
    compile_c([*flags(folder), f"-DSCL_PAIRS={int(pairs)}", HERE / "layers.c", "-o", folder / "layers"])

    def run(operation: str, data: bytes) -> bytes:
        done = subprocess.run([folder / "layers", operation], input=data, capture_output=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr.decode(errors="replace")[-3000:]
        return done.stdout

    return Build(stochastic, by_gradient, run)


# -- primitives and tensors -------------------------------------------------------------------


def shift(v: int, s: int) -> int:
    """docs/spec/numerics.md."""
    return (v + (1 << (s - 1))) >> s if s > 0 else v << -s


def clamp(v: int, log: int) -> int:
    """To log + 1 bits."""
    return max(-(1 << log), min((1 << log) - 1, v))


def sat16(v: int) -> int:
    """To 16 bits."""
    return clamp(v, 15)


@dataclass(frozen=True)
class Shape:
    """A tensor in memory."""

    channels: int
    height: int
    width: int
    top: int = 0
    left: int = 0
    bottom: int = 0
    right: int = 0

    @property
    def row(self) -> int:
        """Values from row to row."""
        return self.left + self.width + self.right

    @property
    def plane(self) -> int:
        """Values from channel to channel."""
        return (self.top + self.height + self.bottom) * self.row

    @property
    def size(self) -> int:
        """Values with margins."""
        return self.channels * self.plane

    def at(self, position: Position) -> int:
        """Where a value lies."""
        c, y, x = position
        return c * self.plane + (y + self.top) * self.row + x + self.left

    @property
    def origin(self) -> int:
        """Where the first lies."""
        return self.at((0, 0, 0))

    def positions(self) -> Iterator[Position]:
        """All, in order."""
        return itertools.product(range(self.channels), range(self.height), range(self.width))

    def inside(self, y: int, x: int) -> bool:
        """Whether a position is no margin."""
        return 0 <= y < self.height and 0 <= x < self.width

    def lay(self, values: Ints, margin: int = 0) -> list[int]:
        """(channels, height, width) in memory."""
        memory = [margin] * self.size
        for p in self.positions():
            memory[self.at(p)] = int(values[p])
        return memory

    def gather(self, values: Iterable[int], margin: int = 0) -> list[int]:
        """In the order of the positions, in memory."""
        return self.lay(np.array(list(values)).reshape(self.channels, self.height, self.width), margin)

    def fields(self) -> tuple[int, ...]:
        """``shape_t`` of layers.c."""
        return (self.channels, self.height, self.width, self.row, self.plane, self.origin, self.size)


def margins(rng: np.random.Generator, channels: int, height: int, width: int) -> Shape:
    """With random margins."""
    return Shape(channels, height, width, *rng.integers(0, 3, size=4).tolist())


@dataclass(frozen=True)
class Activation:
    """``scl_activation_t``."""

    low: int
    high: int
    shift: int
    count_low: int
    count_high: int

    def __call__(self, total: int) -> tuple[int, int]:
        """Value, and whether it counts as saturated."""
        v = shift(total, self.shift)
        counted = self.count_low if v < self.low else self.count_high if v > self.high else 0
        return max(self.low, min(self.high, v)), counted

    def fields(self) -> tuple[int, ...]:
        """As layers.c reads it."""
        return (self.low, self.high, self.shift, self.count_low, self.count_high)


def activation(rng: np.random.Generator, by: int = 0) -> Activation:
    """None, ReLU or ReLU6."""
    most = (1 << int(rng.integers(6, 16))) - 1
    low, count_low, count_high = [(-most - 1, 1, 1), (0, 0, 1), (0, 0, 0)][int(rng.integers(3))]
    return Activation(low, most, by, count_low, count_high)


def pack(dtype: str, values: Ints | list[int]) -> bytes:
    """As they lie in memory."""
    return np.asarray(values).astype(dtype).tobytes()


def compare(out: bytes, parts: list[tuple[str, str, list[int]]], number: int) -> bytes:
    """Check the head of ``out`` against named parts; what is left of it."""
    for name, dtype, values in parts:
        want = pack(dtype, values)
        got = np.frombuffer(out[: len(want)], dtype)
        assert out[: len(want)] == want, (number, name, got.tolist(), values)
        out = out[len(want) :]
    return out


# -- convolution ------------------------------------------------------------------------------


@dataclass
class Line:
    """The entries of one block of output channels in one panel: (place, weights), those that learn first."""

    learning: list[tuple[int, list[int]]]
    rest: list[tuple[int, list[int]]]

    @property
    def entries(self) -> list[tuple[int, list[int]]]:
        """In storage order."""
        return self.learning + self.rest


@dataclass(frozen=True)
class Windows:
    """A max_pool behind a convolution, and for each of its outputs the position of the greatest value."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    top: int
    left: int
    out: Shape
    arg: Ints

    def position(self, c: int, y: int, x: int) -> Position:
        """The greatest value of a window."""
        row, column = divmod(int(self.arg[c, y, x]), self.kernel[1])
        return c, y * self.stride[0] + row - self.top, x * self.stride[1] + column - self.left

    def fields(self) -> tuple[int, ...]:
        """As layers.c reads it."""
        return (*self.kernel, *self.stride, self.top, self.left, self.out.height, self.out.width)


def windows(rng: np.random.Generator, over: Shape) -> Windows:
    """That do not overlap, some of them partly outside."""
    kernel = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    stride = kernel[0] + int(rng.integers(2)), kernel[1] + int(rng.integers(2))
    top, left = (int(rng.integers(k)) for k in kernel)
    height, width = (over.height + top - 1) // stride[0] + 1, (over.width + left - 1) // stride[1] + 1
    out = Shape(over.channels, height, width)
    result = Windows(kernel, stride, top, left, out, np.zeros((over.channels, height, width), dtype=np.int64))
    for place in out.positions():
        inside = []
        for arg in range(kernel[0] * kernel[1]):
            result.arg[place] = arg
            if over.inside(*result.position(*place)[1:]):
                inside.append(arg)
        result.arg[place] = rng.choice(inside)
    return result


@dataclass
class ConvCase:
    """One convolution, one sample, one error."""

    kind: int
    source: Shape
    out: Shape
    kernel: tuple[int, int]
    stride: tuple[int, int]
    top: int
    left: int
    multiplier: int
    block: int
    masked: bool
    activation: Activation
    rate: tuple[int, int]
    ke: int
    elog: int
    glog: int
    su: int
    wlog: int
    bias_shift: int
    kc: int
    slot: int
    prng: int
    x: Ints
    e: Ints
    bias: list[int]
    panels: list[list[Line]]
    """[panel][line]"""
    first: list[int]
    places: list[int]
    pool: Windows | None
    """Where the errors come from, if not from a tensor."""
    blog: int = 24

    @property
    def kernel_positions(self) -> list[Position]:
        """(channel, row, column) of each kernel position; the channel of a depthwise one is 0."""
        channels = 1 if self.multiplier else self.source.channels
        return list(itertools.product(range(channels), range(self.kernel[0]), range(self.kernel[1])))

    def position(self, i: int, o: int, y: int, x: int) -> Position:
        """i @ p for output channel o."""
        c, ky, kx = self.kernel_positions[i]
        if self.multiplier:
            c = o // self.multiplier
        return c, y * self.stride[0] + ky - self.top, x * self.stride[1] + kx - self.left

    def value(self, at: Position) -> int:
        """The input there, 0 in its margin."""
        return int(self.x[at]) if self.source.inside(at[1], at[2]) else 0

    def active(self, o: int) -> list[tuple[int, int, int]]:
        """Row, column and error of the errors other than 0."""
        if o >= self.out.channels:
            return []
        return [(y, x, int(self.e[o, y, x])) for _, y, x in Shape(1, *self.e.shape[1:]).positions() if self.e[o, y, x]]

    def step(self, e: int) -> int:
        """g"""
        return clamp(shift(e * self.rate[0], self.rate[1]), self.glog)

    def gradient(self, i: int, o: int, scaled: Callable[[int], int]) -> int:
        """Sum of a scaled error times input."""
        return sum(scaled(e) * self.value(self.position(i, o, y, x)) for y, x, e in self.active(o))

    def pack(self) -> bytes:
        """The record for layers.c."""
        s, o = self.source, self.out
        at = [c * s.plane + ky * s.row + kx for c, ky, kx in self.kernel_positions]
        origin = (s.top - self.top) * s.row + s.left - self.left
        sizes: tuple[int, ...] = (len(at), o.channels, self.block, self.multiplier, *self.kernel)
        sizes += (o.height, o.width, *self.stride)
        sizes += (s.row, s.plane, origin, o.row, o.plane, o.origin)
        sizes += (len(self.panels) if self.masked else 0, s.size, o.size)
        sizes += self.pool.fields() if self.pool else (0,) * 8
        formats = (self.ke, self.elog, self.glog, self.su, self.wlog, self.blog, self.bias_shift, self.kc, self.slot)
        numbers = (self.kind, *sizes, *self.activation.fields(), *self.rate, *formats)
        parts = [struct.pack(f"<{len(numbers)}iI", *numbers, self.prng), pack("<u2", at)]
        parts += [pack(DTYPE[self.kind], s.lay(self.x)), pack("<i4", self.bias)]
        if self.pool:
            errors = [int(self.e[self.pool.position(*place)]) for place in self.pool.out.positions()]
            parts += [pack("<i2", errors), pack("u1", self.pool.arg)]
        else:
            parts.append(pack("<i2", o.lay(self.e, margin=77)))
        for first, places, lines in zip(self.first, self.places, self.panels, strict=True):
            counts = [len(line.entries) for line in lines]
            start = np.concatenate([[0], np.cumsum(counts)])
            index = [place for line in lines for place, _ in line.entries]
            weight = [w for line in lines for _, block in line.entries for w in block]
            if self.masked:
                parts += [struct.pack("<3I", first, places, len(index)), pack("<u2", start)]
                parts += [pack("<u2", [s + len(line.learning) for s, line in zip(start, lines, strict=False)])]
                parts.append(pack("u1", index))
            parts.append(pack("<i2", weight))
        return b"".join(parts)

    def walk(self, learning: bool = False) -> Iterator[tuple[int, int, int, list[int], int]]:
        """Panel, kernel position, output channel, weights of the entry and which of them, in storage order."""
        for p, lines in enumerate(self.panels):
            for number, line in enumerate(lines):
                for place, weights in line.learning if learning else line.entries:
                    for j in range(self.block):
                        yield p, self.first[p] + place, number * self.block + j, weights, j

    # -- what the kernels have to compute --

    def forward(self) -> tuple[list[int], int]:
        """Output in memory, saturated."""
        out, saturated = [0] * self.out.size, 0
        weights = [(i, o, block[j]) for _, i, o, block, j in self.walk()]
        for o, y, x in self.out.positions():
            total = self.bias[o]
            total += sum(w * self.value(self.position(i, o, y, x)) for i, at, w in weights if at == o)
            assert abs(total) < 2**31
            out[self.out.at((o, y, x))], counted = self.activation(total)
            saturated += counted
        return out, saturated

    def propagated(self) -> list[int]:
        """Error sums, laid out as the input; what falls on margins counts for nothing."""
        sums = [0] * self.source.size
        for _, i, o, block, j in self.walk():
            for y, x, e in self.active(o):
                c, row, column = self.position(i, o, y, x)
                sums[self.source.at((c, row, column))] += block[j] * clamp(shift(e, self.ke), self.elog)
        assert max(map(abs, sums)) < 2**31
        return sums

    def captured(self, by_gradient: bool) -> list[int]:
        """The gradient sums of all panels, D then M of each."""
        result: list[int] = []
        for p, lines in enumerate(self.panels):
            sums = []
            for number, line in enumerate(lines):
                places = range(self.places[p]) if by_gradient else [place for place, _ in line.entries]
                for place, j in itertools.product(places, range(self.block)):
                    i, o = self.first[p] + place, number * self.block + j
                    total = self.gradient(i, o, lambda e: shift(e, self.kc))
                    assert abs(total) < 2**31
                    sums.append(shift(total, 8 - self.kc))
            none = [0] * len(sums)
            result += none + sums if self.slot >= CAPTURE else sums + none
        return result

    def draw(self) -> int:
        """The next random number."""
        self.prng = (self.prng * 1664525 + 1013904223) % 2**32
        return self.prng

    def change(self, weights: list[int], j: int, by: int, su: int, stochastic: bool) -> None:
        """One weight's step."""
        d = (by + (self.draw() >> (32 - su))) >> su if stochastic else shift(by, su)
        weights[j] = clamp(weights[j] - d, self.wlog)

    def move_bias(self, o: int, g: int) -> None:
        """One bias's step."""
        limit = (1 << self.blog) - 1
        self.bias[o] = max(-limit, min(limit, self.bias[o] - shift(g, self.bias_shift)))

    def update(self, stochastic: bool) -> None:
        """Batch 1."""
        for _, i, o, weights, j in self.walk(learning=True):
            if self.active(o):
                self.change(weights, j, self.gradient(i, o, self.step), self.su, stochastic)
        for o in range(len(self.bias)):
            self.move_bias(o, self.total_step(o))

    def total_step(self, o: int) -> int:
        """Sum of the steps of a channel."""
        return sum(self.step(e) for _, _, e in self.active(o))

    def accumulated(self) -> list[int]:
        """Gradients of all panels."""
        return [shift(self.gradient(i, o, self.step), SACC) for _, i, o, _, _ in self.walk(learning=True)]

    def apply(self, gradients: list[int], stochastic: bool) -> None:
        """End of a batch."""
        for (_, _, _, weights, j), gradient in zip(self.walk(learning=True), gradients, strict=True):
            if gradient:
                self.change(weights, j, gradient, self.su - SACC, stochastic)
        for o in range(len(self.bias)):
            self.move_bias(o, self.total_step(o))

    def weights(self) -> list[int]:
        """In storage order."""
        return [block[j] for _, _, _, block, j in self.walk()]


def greatest(limit: int) -> int:
    """Largest log with 2^log <= limit."""
    return limit.bit_length() - 1


def lines_of(rng: np.random.Generator, case: tuple[int, int, int, int], wlog: int, masked: bool) -> list[Line]:
    """Random entries: (lines, places, block, n_out) of one panel."""
    count, places, block, n_out = case
    result = []
    for number in range(count):
        present = np.flatnonzero(rng.random(places) < (rng.choice([0.0, 0.3, 0.9]) if masked else 2.0))
        learns = rng.random(len(present)) < (0.6 if masked else 2.0)
        weights = small_ints(rng, -(1 << wlog), (1 << wlog) - 1, (len(present), block))
        weights[:, n_out - number * block :] = 0  # padded outputs
        entries = [(int(i), w.tolist()) for i, w in zip(present, weights, strict=True)]
        first = [entry for entry, chosen in zip(entries, learns, strict=True) if chosen]
        result.append(Line(first, [entry for entry, chosen in zip(entries, learns, strict=True) if not chosen]))
    return result


def conv_case(rng: np.random.Generator, number: int) -> ConvCase:
    """Random geometry and numbers at the limits of their formats."""
    kind = number % 3
    masked = bool(rng.integers(3))
    block = int(rng.choice([1, 2, 4])) if masked else 1
    flat = bool(rng.integers(4) == 0)  # one-dimensional
    kernel = (1 if flat else int(rng.integers(1, 4)), int(rng.integers(1, 5)))
    stride = (1 if flat else int(rng.integers(1, 3)), int(rng.integers(1, 4)))
    height, width = 1 if flat else int(rng.integers(1, 5)), int(rng.integers(1, 11))
    depthwise = bool(rng.integers(3) == 0)
    channels, multiplier = int(rng.integers(1, 5)), int(rng.integers(1, 4)) if depthwise else 0
    n_out = channels * multiplier if depthwise else int(rng.integers(1, 8))
    if masked and number % 10 == 1:  # more than one panel
        kernel, channels, multiplier, n_out = (kernel[0], 4), 40 + 70 // kernel[0], 0, int(rng.integers(1, 4))
        height, width = min(height, 2), min(width, 3)
    n_in = kernel[0] * kernel[1] * (1 if multiplier else channels)
    top, left = (int(rng.integers(0, k)) for k in kernel)
    span_h, span_w = ((n - 1) * s + k for n, s, k in zip((height, width), stride, kernel, strict=True))
    in_h, in_w = max(1, span_h - top - int(rng.integers(0, kernel[0]))), max(1, span_w - left)
    bottom, right = max(0, span_h - top - in_h), max(0, span_w - left - in_w)
    extra = rng.integers(0, 2, size=4).tolist()
    source = Shape(channels, in_h, in_w, top + extra[0], left + extra[1], bottom + extra[2], right + extra[3])
    out = margins(rng, n_out, height, width)

    bits = {U8: 8, I8: 7, I16: int(rng.integers(8, 16))}[kind]
    low, high = (0 if kind == U8 else -(1 << bits), (1 << bits) - 1)
    wlog = min(15, greatest((2**31 - 2**25) // (n_in << bits)))
    elog = min(15, greatest((2**31 - 2**16) // (n_out * kernel[0] * kernel[1] << wlog)))
    su = int(rng.integers(SACC + 2, 30))
    glog = min(15, greatest((2**31 - 1 - (1 << su)) // (ACTIVE << bits)))
    kc = max(0, 15 - greatest((2**31 - 1) // (ACTIVE << bits)))
    lines = -(-n_out // block)
    first = list(range(0, n_in, 256)) if masked else [0]
    places = [min(256, n_in - f) if masked else n_in for f in first]
    e = small_ints(rng, -32768, 32767, (n_out, height, width)) * (rng.random((n_out, height, width)) < rng.random())
    e *= (rng.random(n_out) < 0.7)[:, None, None]
    pool = windows(rng, out) if rng.integers(3) == 0 else None
    if pool:
        kept = np.zeros_like(e)
        for place in pool.out.positions():
            kept[pool.position(*place)] = e[pool.position(*place)]
        e = kept
    bias = np.zeros(lines * block, dtype=np.int64)
    bias[:n_out] = small_ints(rng, 1 - 2**24, 2**24 - 1, n_out)
    return ConvCase(
        kind, source, out, kernel, stride, top, left, multiplier, block, masked,
        activation(rng, int(rng.integers(0, 18))), (int(rng.integers(1, 32768)), int(rng.integers(4, 20))),
        int(rng.integers(0, 6)), elog, glog, su, wlog, int(rng.integers(0, 6)), kc, int(rng.integers(2 * CAPTURE)),
        int(rng.integers(2**32)), small_ints(rng, low, high, (channels, in_h, in_w)), e, bias.tolist(),
        [lines_of(rng, (lines, n, block, n_out), wlog, masked) for n in places], first, places, pool,
    )  # fmt: skip


def inner(shape: Shape, memory: list[int]) -> list[int]:
    """The values without margins."""
    return [memory[shape.at(p)] for p in shape.positions()]


def check_conv(case: ConvCase, built: Build, out: bytes, number: int) -> bytes:
    """Take what layers.c wrote of one case; error sums are compared where they count."""

    def take_sums(out: bytes, name: str, want: list[int], rectified: bool = False) -> bytes:
        got = np.frombuffer(out[: 4 * case.source.size], "<i4").tolist()
        counts = case.x.reshape(-1) != 0 if rectified else np.ones(case.x.size, dtype=np.bool_)
        difference = np.array(inner(case.source, got)) != np.array(inner(case.source, want))
        assert not (difference & counts).any(), (number, name, case)
        return out[4 * case.source.size :]

    values, saturated = case.forward()
    out = compare(out, [("saturated", "<u4", [saturated]), ("out", "<i2", values)], number)
    none, sums = [0] * case.source.size, case.propagated()
    out = take_sums(out, "error", sums)
    if case.masked:
        out = compare(out, [("captured", "<i4", case.captured(built.by_gradient))], number)
    out = take_sums(out, "fused error", sums if case.slot % 2 else none, rectified=case.kind == U8)
    case.update(built.stochastic)
    parts = [("weight", "<i2", case.weights()), ("bias", "<i4", case.bias), ("prng", "<u4", [case.prng])]
    out = compare(out, parts, number)
    out = take_sums(out, "batch error", none if case.slot % 2 else case.propagated(), rectified=case.kind == U8)
    gradients = case.accumulated()
    steps = [case.total_step(o) for o in range(len(case.bias))]
    out = compare(out, [("gradient", "<i4", gradients), ("bias gradient", "<i4", steps)], number)
    case.apply(gradients, built.stochastic)
    parts = [("applied", "<i2", case.weights()), ("bias", "<i4", case.bias), ("prng", "<u4", [case.prng])]
    return compare(out, parts, number)


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_convolution(built: Build, seed: int) -> None:
    """Strides, margins, depthwise, blocks, panels, no masks: forward, error, update, batch and capture."""
    rng = np.random.default_rng(seed)
    tried = [conv_case(rng, number) for number in range(75)]
    assert any(len(case.panels) > 1 for case in tried)
    kinds = {(case.block, case.multiplier > 0, case.masked) for case in tried}
    assert kinds >= {(4, True, True), (2, False, True), (1, True, False)}
    assert {case.pool is None for case in tried} == {False, True}
    out = built.run("conv", b"".join(case.pack() for case in tried))
    for number, case in enumerate(tried):
        out = check_conv(case, built, out, number)
    assert not out


# -- pooling ----------------------------------------------------------------------------------


@dataclass
class PoolCase:
    """One pooling layer, forward and backward."""

    kind: int
    source: Shape
    out: Shape
    kernel: tuple[int, int]
    stride: tuple[int, int]
    top: int
    left: int
    activation: Activation
    x: Ints
    e: Ints
    e_max: Ints
    e_avg: Ints

    def pack(self) -> bytes:
        """The record for layers.c."""
        s, o = self.source, self.out
        window = (*self.kernel, *self.stride, self.top, self.left)
        head: tuple[int, ...] = (self.kind, s.channels, s.height, s.width, o.height, o.width, *window)
        head += (s.row, s.plane, s.origin, o.row, o.plane, o.origin, s.size, o.size, *self.activation.fields())
        parts = [struct.pack(f"<{len(head)}i", *head), pack(DTYPE[self.kind], s.lay(self.x))]
        return b"".join(parts + [pack("<i2", v) for v in (o.lay(self.e), s.lay(self.e_max), s.lay(self.e_avg))])

    def window(self, y: int, x: int) -> list[tuple[int, int]]:
        """Positions of the input under the window, row by row."""
        rows = range(y * self.stride[0] - self.top, y * self.stride[0] - self.top + self.kernel[0])
        columns = range(x * self.stride[1] - self.left, x * self.stride[1] - self.left + self.kernel[1])
        return [at for at in itertools.product(rows, columns) if self.source.inside(*at)]

    def expected(self) -> list[tuple[str, str, list[int]]]:
        """In the order of layers.c."""
        greatest, means = [0] * self.out.size, [0] * self.out.size
        saturated = [0, 0]
        for c, y, x in self.out.positions():
            window = self.window(y, x)
            values = [int(self.x[c, *at]) for at in window]
            n, e = len(values), int(self.e[c, y, x])
            at = self.out.at((c, y, x))
            greatest[at], counted = self.activation(max(values))
            saturated[0] += counted
            means[at], counted = self.activation((2 * sum(values) + n) // (2 * n))
            saturated[1] += counted
            first = (c, *window[values.index(max(values))])
            self.e_max[first] = sat16(int(self.e_max[first]) + e)
            for place in window:
                self.e_avg[c, *place] = sat16(int(self.e_avg[c, *place]) + (2 * e + n) // (2 * n))
        return [
            ("saturated", "<u4", saturated[:1]),
            ("max", "<i2", greatest),
            ("max error", "<i2", self.source.lay(self.e_max)),
            ("saturated", "<u4", saturated[1:]),
            ("average", "<i2", means),
            ("average error", "<i2", self.source.lay(self.e_avg)),
        ]


def pool_case(rng: np.random.Generator, kind: int) -> PoolCase:
    """Windows that overlap, leave gaps or reach outside."""
    kernel = (int(rng.integers(1, 4)), int(rng.integers(1, 4)))
    stride = (int(rng.integers(1, 4)), int(rng.integers(1, 4)))
    top, left = (int(rng.integers(0, k)) for k in kernel)
    size = [int(rng.integers(max(1, k - m), 7)) for k, m in zip(kernel, (top, left), strict=True)]
    # The last window begins inside of the input.
    outs = [(n + m - 1) // s + 1 for n, m, s in zip(size, (top, left), stride, strict=True)]
    channels = int(rng.integers(1, 4))
    low, high = {U8: (0, 255), I8: (-128, 127), I16: (-32768, 32767)}[kind]
    source, out = margins(rng, channels, *size), margins(rng, channels, *outs)
    x = small_ints(rng, low, high, (channels, *size))
    e, e_max, e_avg = (small_ints(rng, -32768, 32767, (channels, *n)) for n in (outs, size, size))
    return PoolCase(kind, source, out, kernel, stride, top, left, activation(rng), x, e, e_max, e_avg)


def test_pooling(built: Build) -> None:
    """Greatest and mean, and the way back."""
    rng = np.random.default_rng(2)
    tried = [pool_case(rng, number % 3) for number in range(150)]
    out = built.run("pool", b"".join(case.pack() for case in tried))
    for number, case in enumerate(tried):
        out = compare(out, case.expected(), number)
    assert not out


# -- whole tensors ----------------------------------------------------------------------------


def test_whole_tensors(built: Build) -> None:
    """Margins, sums, errors of sums, alive bits and latents."""
    rng = np.random.default_rng(3)
    records, wanted = b"", []
    for _ in range(100):
        sizes = (int(rng.integers(1, 4)), int(rng.integers(1, 4)), int(rng.integers(1, 6)))
        source, to = margins(rng, *sizes), margins(rng, *sizes)
        shifts, first, rectified = rng.integers(0, 5, size=2).tolist(), int(rng.integers(2)), int(rng.integers(2))
        high, fw, act = int(rng.choice([3000, 32767])), int(rng.integers(0, 14)), activation(rng)
        sample = small_ints(rng, 0, 255, (sizes[1], sizes[2], sizes[0]))
        x, y, e = (small_ints(rng, -32768, 32767, sizes) for _ in range(3))
        y[rng.random(sizes) < 0.3] = high
        sums = small_ints(rng, -(2**31), 2**31 - 1, sizes)
        head = (*source.fields(), *to.fields(), *shifts, high, first, rectified, fw, *act.fields())
        records += struct.pack(f"<{len(head)}i", *head) + pack("u1", sample) + pack("<i2", source.lay(x))
        records += pack("<i2", to.lay(y)) + pack("<i2", to.lay(e, margin=5)) + pack("<i4", to.lay(sums))
        added = [act(shift(int(x[p]), shifts[0]) + shift(int(y[p]), shifts[1])) for p in to.positions()]
        latent = [max(0, min(255, shift(int(x[p]), shifts[0]))) for p in to.positions()]
        shifted = {p: 0 if rectified and not y[p] else shift(int(sums[p]), fw) for p in to.positions()}
        saturated = sum(v != sat16(v) for v in shifted.values())
        once = {p: sat16(v) if first else sat16(int(e[p]) + sat16(v)) for p, v in shifted.items()}
        twice = {p: int(x[p]) if first else sat16(once[p] + int(x[p])) for p in to.positions()}
        alive = {p: v if y[p] > 0 and (high == 32767 or y[p] < high) else 0 for p, v in twice.items()}
        wanted.append([
            ("pixels", "u1", to.lay(sample.transpose(2, 0, 1))),
            ("pad", "<i2", to.lay(x)),
            ("saturated", "<u4", [sum(counted for _, counted in added)]),
            ("sum", "<i2", to.gather([v for v, _ in added])),
            ("latent", "u1", latent),
            ("saturated", "<u4", [saturated]),
            ("contribution", "<i2", to.gather(once.values(), margin=5)),
            ("copied", "<i2", to.gather(twice.values(), margin=5)),
            ("alive", "<i2", to.gather(alive.values())),
        ])  # fmt: skip
    out = built.run("tensors", records)
    for number, parts in enumerate(wanted):
        out = compare(out, parts, number)
    assert not out
