# SPDX-License-Identifier: Apache-2.0
"""The training step once more, one number at a time, in plain Python integers.

Written from docs/spec/numerics.md and docs/spec/algorithm.md without NumPy arithmetic and
without the reference, to find mistakes of vectorisation.  Slow on purpose.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from sparcl_mcu.spec.types import (
    Activation,
    Growth,
    Layer,
    LearningRate,
    Method,
    Model,
    Op,
    SingleHead,
    Tensor,
)

EXP2 = [round(32768 * 2 ** (-f / 256)) for f in range(256)]
LOG2 = [round(256 * math.log2(1 + f / 256)) for f in range(256)]


def shift(v: int, s: int) -> int:
    """Round half up; negative: to the left."""
    if s > 0:
        return (v + (1 << (s - 1))) >> s
    return v << -s


def clamp(v: int, low: int, high: int) -> int:
    """Limit v."""
    return low if v < low else high if v > high else v


def sat16(v: int) -> int:
    """Limit to 16 bits."""
    return clamp(v, -32768, 32767)


def int32(v: int) -> int:
    """What the board keeps in 32 bits."""
    assert -(2**31) <= v < 2**31, "a 32-bit sum overflows"
    return v


@dataclass
class Entry:
    """An entry of a panel; acc for batches; gradient: GD and GM of each weight (convolutions)."""

    line: int
    index: int
    chosen: bool
    weight: list[int]
    acc: list[int]
    gradient: list[list[int]]

    @classmethod
    def new(cls, line: int, index: int, chosen: bool, weight: list[int]) -> Entry:
        """Nothing accumulated."""
        return cls(line, index, chosen, weight, [0] * len(weight), [[0, 0] for _ in weight])


@dataclass
class Net:
    """One layer: panels of entries (one panel of every weight, block 1, where there are no masks)."""

    layer: Layer
    panels: list[list[Entry]]
    first: list[int]
    block: int
    bias: list[int]
    bacc: list[int]
    everywhere: dict[tuple[int, int], list[int]]
    """GD and GM by (i, o) of weights that exist or not (convolutions, growth by gradient)."""

    @classmethod
    def of(cls, layer: Layer) -> Net:
        """Unpack a layer."""
        panels: list[list[Entry]] = []
        first, block = [0], 1
        if layer.sparse:
            first, block = [p.first for p in layer.panels], layer.block
            for p in layer.panels:
                panels.append([])
                for line in range(len(p.split)):
                    for k in range(int(p.start[line]), int(p.start[line + 1])):
                        w = [int(v) for v in p.weight[k]]
                        panels[-1].append(Entry.new(line, int(p.index[k]), k < int(p.split[line]), w))
        elif layer.weight is not None:
            lines, places = layer.weight.shape
            grid = [(line, q) for line in range(lines) for q in range(places)]
            panels = [[Entry.new(line, q, True, [int(layer.weight[line, q])]) for line, q in grid]]
        return cls(layer, panels, first, block, [int(b) for b in layer.bias], [0] * layer.n_pad, {})

    def io(self, p: int, line: int, index: int, j: int) -> tuple[int, int]:
        """Input (kernel position) and output (channel) of a weight."""
        place = self.first[p] + index
        if self.layer.op is Op.DENSE and not self.layer.by_output:
            return line, place * self.block + j
        return place, line * self.block + j

    def weights(self) -> Iterator[tuple[Entry, int, int, int]]:
        """Entry, j, i, o of every weight, in storage order."""
        for p, panel in enumerate(self.panels):
            for e in panel:
                for j in range(self.block):
                    yield (e, j, *self.io(p, e.line, e.index, j))


@dataclass
class Pass:
    """A forward pass: all tensors, what they are like, and where ReLU6 clipped."""

    nets: list[Net]
    tensors: list[list[int]]
    shapes: list[Tensor]
    six: list[list[bool]]

    def under(self, net: Net, i: int, o: int, y: int, x: int) -> int | None:
        """Number of the input i @ (y, x) of a convolution in its tensor; None outside."""
        w, shape = net.layer.window, self.shapes[net.layer.inputs[0]]
        assert w is not None
        channel, rest = divmod(i, w.kernel_h * w.kernel_w)
        if net.layer.multiplier:
            channel = o // net.layer.multiplier
        row = y * w.stride_h + rest // w.kernel_w - w.top
        column = x * w.stride_w + rest % w.kernel_w - w.left
        if 0 <= row < shape.height and 0 <= column < shape.width:
            return (channel * shape.height + row) * shape.width + column
        return None

    def window(self, net: Net, c: int, y: int, x: int) -> list[int]:
        """Numbers of the inputs under a pooling window."""
        assert net.layer.window is not None
        n = net.layer.window.kernel_h * net.layer.window.kernel_w
        shape = self.shapes[net.layer.inputs[0]]
        plane = c * shape.height * shape.width
        found = [self.under(net, i, 0, y, x) for i in range(n)]
        return [plane + at for at in found if at is not None]


@dataclass
class Sample:
    """A training sample."""

    id: int
    label: int
    x: list[int]


def channel_first(x: list[int], shape: Tensor) -> list[int]:
    """From (row, column, channel)."""
    n, c = shape.height * shape.width, shape.channels
    return [x[at * c + k] for k in range(c) for at in range(n)]


def after(s: int) -> int:
    """Next state of a generator."""
    return (s * 1664525 + 1013904223) % 2**32


@dataclass
class Scalar:
    """The learner.  Tasks are resident."""

    model: Model
    choices: int = 0
    rounding: int = 0
    step: int = 0
    seen: int = 0
    rolling: int = 0
    task: int = 0
    epoch: int = 0
    pos: int = 0
    shuffled: bool = False
    trained: bool = False
    n_start: int = 0
    grown: bool = False
    saturated_activations: int = 0
    saturated_errors: int = 0
    guard_shifts: int = 0
    captured_d: int = 0
    captured_m: int = 0
    class_task: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    scores: list[int] = field(default_factory=list)
    slots: list[tuple[Sample, list[int]]] = field(default_factory=list)
    tasks: list[int] = field(default_factory=list)
    """Of the slots."""
    factors: list[tuple[int, int, list[int], list[int]]] = field(default_factory=list)
    """Captured of dense layers: layer, 0 for D and 1 for M, input, error."""
    nets: list[Net] = field(default_factory=list)
    frozen: list[Net] = field(default_factory=list)
    counting: bool = True

    def __post_init__(self) -> None:
        self.choices = self.model.learning.seed
        self.rounding = 2**32 - 1 - self.choices
        self.class_task = [255] * self.model.n_classes
        self.nets = [Net.of(layer) for layer in self.model.layers]
        self.frozen = [Net.of(layer) for layer in self.model.prefix]
        self.latents: dict[tuple[int, ...], list[int]] = {}

    def below(self, n: int) -> int:
        """Random number below n, for choices."""
        self.choices = after(self.choices)
        return (self.choices * n) >> 32

    def guard(self, v: list[int], limit: int) -> list[int]:
        """Norm guard."""
        while limit and sum(abs(a) for a in v) > limit:
            v = [shift(a, 1) for a in v]
            if self.counting:
                self.guard_shifts += 1
        return v

    def latent(self, x: list[int]) -> list[int]:
        """The input of the layers that learn."""
        fine = self.model.latent
        if fine is None:
            return x
        if tuple(x) not in self.latents:
            self.counting = False
            out = self.run(self.frozen, x, self.model.sample, True).tensors[-1]
            self.counting = True
            low, high = (-128, 127) if self.model.latent_signed else (0, 255)
            fa = self.model.prefix[-1].out.fraction
            self.latents[tuple(x)] = [clamp(shift(v, fa - fine.fraction), low, high) for v in out]
        return self.latents[tuple(x)]

    def forward(self, x: list[int]) -> tuple[Pass, list[int]]:
        """The pass, and the logits."""
        done = self.run(self.nets, self.latent(x), self.model.input, self.model.latent is None)
        return done, done.tensors[-1][: self.model.n_classes]

    def run(self, nets: list[Net], x: list[int], shape: Tensor, turned: bool) -> Pass:
        """All layers of a network; turned: x lies (row, column, channel)."""
        done = Pass(nets, [x], [shape], [])
        for net in nets:
            c = net.layer
            inputs = [done.tensors[t] for t in c.inputs]
            if c.op is Op.DENSE:
                values = self.dense_sums(net, inputs[0])
            elif c.op is Op.CONV:
                values = self.conv_sums(done, net, inputs[0])
            elif c.op is Op.ADD:
                parts = [done.shapes[t].fraction - c.out.fraction for t in c.inputs]
                values = [sum(shift(v, s) for v, s in zip(vs, parts, strict=True)) for vs in zip(*inputs, strict=True)]
            elif c.op is Op.PAD:
                values = channel_first(x, shape) if c.inputs == (0,) and turned else inputs[0]
            else:
                values = []
                for k, y, u in self.outputs(c):
                    under = [inputs[0][at] for at in done.window(net, k, y, u)]
                    n = len(under)
                    values.append(max(under) if c.op is Op.MAX_POOL else math.floor((2 * sum(under) + n) / (2 * n)))
            out = [self.activate(c, v) for v in values]
            done.six.append([c.activation is Activation.RELU6 and a == 6 * 2**c.out.fraction for a in out])
            done.tensors.append(self.guard(out, c.guard))
            done.shapes.append(c.out)
        return done

    @staticmethod
    def outputs(c: Layer) -> list[tuple[int, int, int]]:
        """Channel, row, column of every output, in order."""
        t = c.out
        return [(k, y, x) for k in range(t.channels) for y in range(t.height) for x in range(t.width)]

    def activate(self, c: Layer, v: int) -> int:
        """The activation, and its counter."""
        top = 2**c.out.bits
        if c.activation is Activation.RELU6:
            assert 6 * 2**c.out.fraction < top
            return clamp(v, 0, 6 * 2**c.out.fraction)
        relu = c.activation is Activation.RELU
        if self.counting and (v > top - 1 or (v < -top and not relu)):
            self.saturated_activations += 1
        return clamp(v, 0 if relu else -top, top - 1)

    def dense_sums(self, net: Net, x: list[int]) -> list[int]:
        """Outputs of a dense layer before the activation."""
        c = net.layer
        acc, most = list(net.bias), [abs(b) for b in net.bias]
        for e, j, i, o in net.weights():
            acc[o] += e.weight[j] * x[i]
            most[o] += abs(e.weight[j] * x[i])
        s = c.fw + c.fx - c.out.fraction
        for m in most:
            int32(m + (2 ** (s - 1) if s > 0 else 0))
        assert not any(acc[c.n_out :])
        return [shift(a, s) for a in acc[: c.n_out]]

    def conv_sums(self, done: Pass, net: Net, x: list[int]) -> list[int]:
        """Outputs of a convolution before the activation."""
        c = net.layer
        acc = {(o, y, u): [net.bias[o], abs(net.bias[o])] for o, y, u in self.outputs(c)}
        for e, j, i, o in net.weights():
            for y in range(c.out.height if o < c.n_out else 0):
                for u in range(c.out.width):
                    at = done.under(net, i, o, y, u)
                    product = e.weight[j] * x[at] if at is not None else 0
                    acc[o, y, u][0] += product
                    acc[o, y, u][1] += abs(product)
        s = c.fw + c.fx - c.out.fraction
        for _, m in acc.values():
            int32(m + (2 ** (s - 1) if s > 0 else 0))
        return [shift(acc[at][0], s) for at in self.outputs(c)]

    def cross_entropy(self, z: list[int], classes: list[int], y: int) -> tuple[list[int], int]:
        """Error of the outputs, and loss."""
        last = self.model.layers[-1]
        m = max(z[c] for c in classes)
        t = {c: ((m - z[c]) * 23637 + 2 ** (last.fa + 5)) >> (last.fa + 6) for c in classes}
        ex = {c: 0 if t[c] >> 8 > 15 else EXP2[t[c] & 255] >> (t[c] >> 8) for c in classes}
        total = sum(ex.values())
        e = [0] * last.n_out
        for c in classes:
            e[c] = ((ex[c] << 14) + total // 2) // total - (16384 if c == y else 0)
        k = 0
        while 2 ** (k + 1) <= total:
            k += 1
        l2 = min(65535, ((k - 15) << 8) + LOG2[(total >> (k - 8)) & 255] + t[y])
        return e, (l2 * 45426) >> 16

    def squared_error(self, z: list[int], stored: list[int]) -> list[int]:
        """Error of the outputs."""
        last = self.model.layers[-1]
        mq = round(2 / len(z) * 2**15)
        return [sat16(shift(clamp(a - b, -32767, 32767) * mq, last.fa + 1)) for a, b in zip(z, stored, strict=True)]

    def has_error(self, t: int) -> bool:
        """Whether a layer with weights lies before tensor t."""
        if t == 0:
            return False
        layer = self.nets[t - 1].layer
        return layer.op in (Op.DENSE, Op.CONV) or any(self.has_error(s) for s in layer.inputs)

    def visit(self, done: Pass, e: list[int], use: Callable[[int, Pass, list[int]], None]) -> None:
        """All layers from the last to the first; use(number, pass, error) for those with weights."""
        errors: list[list[int] | None] = [None] * len(self.nets) + [e]
        for number in range(len(self.nets) - 1, -1, -1):
            net, c = self.nets[number], self.nets[number].layer
            if not self.has_error(number + 1):
                continue
            out = errors[number + 1]
            assert out is not None
            out = [0 if six else v for v, six in zip(out, done.six[number], strict=True)]
            if c.op is Op.DENSE:
                out += [0] * (c.n_pad - len(out))
                if self.has_error(c.inputs[0]):
                    out = self.guard(out, c.l1_err)
                    self.contribute(done, errors, c.inputs[0], self.dense_shares(net, done, out))
                use(number, done, out)
            elif c.op is Op.CONV:
                if self.has_error(c.inputs[0]):
                    self.contribute(done, errors, c.inputs[0], self.conv_shares(net, done, out))
                use(number, done, out)
            elif c.op in (Op.ADD, Op.PAD):
                for t in c.inputs:
                    if self.has_error(t):
                        self.contribute(done, errors, t, out)
            elif self.has_error(c.inputs[0]):
                self.pool_back(done, net, errors, out)

    def contribute(self, done: Pass, errors: list[list[int] | None], t: int, shares: list[int]) -> None:
        """One contribution to every value of tensor t."""
        if done.shapes[t].rectified:
            shares = [0 if v == 0 else c for v, c in zip(done.tensors[t], shares, strict=True)]
        before = errors[t]
        if before is None:
            errors[t] = list(shares)
        else:
            errors[t] = [sat16(a + c) for a, c in zip(before, shares, strict=True)]

    def pool_back(self, done: Pass, net: Net, errors: list[list[int] | None], e: list[int]) -> None:
        """Contributions of a pooling layer, one value at a time."""
        c, t = net.layer, net.layer.inputs[0]
        x = done.tensors[t]
        into = errors[t] or [0] * len(x)
        errors[t] = into
        for value, (k, y, u) in zip(e, self.outputs(c), strict=True):
            under = done.window(net, k, y, u)
            if c.op is Op.MAX_POOL:
                under = [min(under, key=lambda at: (-x[at], at))]
                share = value
            else:
                n = len(under)
                share = math.floor((2 * value + n) / (2 * n))
            for at in under:
                if not (done.shapes[t].rectified and x[at] == 0):
                    into[at] = sat16(into[at] + share)

    def dense_shares(self, net: Net, done: Pass, e: list[int]) -> list[int]:
        """What a dense layer contributes to its input."""
        x = done.tensors[net.layer.inputs[0]]
        total, most = [0] * len(x), [0] * len(x)
        for entry, j, i, o in net.weights():
            total[i] += entry.weight[j] * e[o]
            most[i] += abs(entry.weight[j] * e[o])
        for m in most:
            int32(m + 2**net.layer.fw // 2)
        return self.saturated(net, done, [shift(v, net.layer.fw) for v in total])

    def conv_shares(self, net: Net, done: Pass, e: list[int]) -> list[int]:
        """What a convolution contributes to its input."""
        c = net.layer
        x = done.tensors[c.inputs[0]]
        total, most = [0] * len(x), [0] * len(x)
        small = [clamp(shift(v, c.ke), -(2**c.elog), 2**c.elog - 1) for v in e]
        for entry, j, i, o in net.weights():
            for p, (k, y, u) in enumerate(self.outputs(c)):
                at = done.under(net, i, o, y, u) if k == o else None
                if at is not None:
                    total[at] += entry.weight[j] * small[p]
                    most[at] += abs(entry.weight[j] * small[p])
        for m in most:
            int32(m + 2**c.fw // 2)
        return self.saturated(net, done, [shift(v, c.fw - c.ke) for v in total])

    def saturated(self, net: Net, done: Pass, shares: list[int]) -> list[int]:
        """Limited to 16 bits, and counted."""
        t = net.layer.inputs[0]
        for v, x in zip(shares, done.tensors[t], strict=True):
            if self.counting and v != sat16(v) and not (done.shapes[t].rectified and x == 0):
                self.saturated_errors += 1
        return [sat16(v) for v in shares]

    def capture(self, which: int, done: Pass, e: list[int]) -> None:
        """Keep the gradients of all layers; which: 0 for D, 1 for M."""
        if (self.captured_m if which else self.captured_d) == self.model.learning.capture:
            return
        self.captured_d += 1 - which
        self.captured_m += which
        self.counting = False
        self.visit(done, e, lambda number, done, error: self.keep(which, number, done, error))
        self.counting = True

    def keep(self, which: int, number: int, done: Pass, e: list[int]) -> None:
        """Capture one layer."""
        net = self.nets[number]
        c = net.layer
        if not c.sparse:
            return
        if c.op is Op.DENSE:
            self.factors.append((number, which, done.tensors[c.inputs[0]], e))
            return
        small = [shift(v, c.kc) for v in e]
        if self.model.learning.growth is Growth.GRADIENT:
            for i in range(c.n_in):
                for o in range(c.n_out):
                    both = net.everywhere.setdefault((i, o), [0, 0])
                    both[which] = int32(both[which] + shift(self.under_sum(done, net, i, o, small), 8 - c.kc))
        else:
            for entry, j, i, o in net.weights():
                if o < c.n_out:
                    both = entry.gradient[j]
                    both[which] = int32(both[which] + shift(self.under_sum(done, net, i, o, small), 8 - c.kc))

    def under_sum(self, done: Pass, net: Net, i: int, o: int, g: list[int]) -> int:
        """sum over p of g[o, p] * x[i @ p]."""
        x, c = done.tensors[net.layer.inputs[0]], net.layer
        total = most = 0
        plane = c.out.height * c.out.width
        for p in range(plane):
            at = done.under(net, i, o, p // c.out.width, p % c.out.width)
            if at is not None:
                total += g[o * plane + p] * x[at]
                most += abs(g[o * plane + p] * x[at])
        int32(most)
        return total

    def backward(self, done: Pass, e: list[int], rate: LearningRate) -> None:
        """Learn from one pass."""
        self.visit(done, e, lambda number, done, error: self.learn(number, done, error, rate))

    def learn(self, number: int, done: Pass, e: list[int], rate: LearningRate) -> None:
        """Learn in one layer."""
        net = self.nets[number]
        c = net.layer
        share = self.model.learning.lr_q8[self.epoch] if self.model.learning.lr_q8 else 256
        gm = rate.multiplier * share >> 8
        if c.op is Op.DENSE:
            self.learn_dense(net, done.tensors[c.inputs[0]], [sat16(shift(v * gm, rate.shift)) for v in e])
        else:
            g = [clamp(shift(v * gm, rate.shift + c.kg), -(2**c.glog), 2**c.glog - 1) for v in e]
            self.learn_conv(net, done, e, g)

    def learn_dense(self, net: Net, x: list[int], g: list[int]) -> None:
        """Steps 4 and 5."""
        model, c = self.model, net.layer
        su = model.fg + c.fx - c.fw
        for entry, j, i, o in net.weights():
            if not entry.chosen or x[i] == 0:
                continue
            if c.by_output and not any(g[entry.line * net.block : (entry.line + 1) * net.block]):
                continue
            assert abs(g[o] * x[i]) <= 2**30
            if model.learning.batch > 1:
                entry.acc[j] = int32(entry.acc[j] + shift(g[o] * x[i], model.sacc))
            else:
                self.change(entry, j, self.rounded(g[o] * x[i], su), c.wlog)
        for o in range(c.n_pad):
            self.learn_bias(net, o, g[o])

    def learn_conv(self, net: Net, done: Pass, e: list[int], g: list[int]) -> None:
        """Steps 3 and 4."""
        model, c = self.model, net.layer
        plane = c.out.height * c.out.width
        su = model.fg - c.kg + c.fx - c.fw
        nonzero = [sum(v != 0 for v in e[o * plane : (o + 1) * plane]) for o in range(c.n_out)]
        assert max(nonzero) <= c.active
        for entry, j, i, o in net.weights():
            if not entry.chosen or o >= c.n_out or nonzero[o] == 0:
                continue
            s = self.under_sum(done, net, i, o, g)
            if model.learning.batch > 1:
                entry.acc[j] = int32(entry.acc[j] + shift(s, model.sacc))
            else:
                self.change(entry, j, self.rounded(s, su), c.wlog)
        for o in range(c.n_out):
            self.learn_bias(net, o, sum(g[o * plane : (o + 1) * plane]))

    def learn_bias(self, net: Net, o: int, g: int) -> None:
        """Step of a bias, now or at the end of the batch."""
        if self.model.learning.batch > 1:
            net.bacc[o] += g
        else:
            self.change_bias(net, o, g)

    def rounded(self, v: int, s: int) -> int:
        """Stochastic or nearest."""
        if self.model.learning.stochastic:
            self.rounding = after(self.rounding)
            total = v + (self.rounding >> (32 - s))
            assert -(2**31) <= total < 2**31
            return total >> s
        return shift(v, s)

    def change(self, entry: Entry, j: int, d: int, wlog: int) -> None:
        """Update a weight."""
        entry.weight[j] = clamp(entry.weight[j] - d, -(2**wlog), 2**wlog - 1)

    def change_bias(self, net: Net, o: int, g: int) -> None:
        """Update a bias."""
        c = net.layer
        limit = 2**c.blog - 1
        d = int32(shift(g, self.model.fg - c.kg - c.fw - c.fx))
        net.bias[o] = clamp(int32(net.bias[o] - d), -limit, limit)

    def apply_batch(self) -> None:
        """End of a batch."""
        for net in self.nets:
            c = net.layer
            s = self.model.fg - c.kg + c.fx - c.fw - self.model.sacc
            for entry, j, _, _ in net.weights():
                if entry.chosen and entry.acc[j] != 0:
                    self.change(entry, j, self.rounded(entry.acc[j], s), c.wlog)
                    entry.acc[j] = 0
            for o in range(c.n_pad):
                self.change_bias(net, o, net.bacc[o])
                net.bacc[o] = 0

    def begin(self, classes: list[int], n: int) -> None:
        """Task begin."""
        for c in classes:
            self.class_task[c] = self.task
        self.ids, self.scores = list(range(n)), [0] * n
        self.n_start = n
        self.epoch = self.pos = 0
        self.forget()
        self.shuffled = self.trained = False
        if self.model.learning.tdm and self.task > 0 and not self.grown:
            for net in self.nets:
                for p in range(len(net.layer.panels)):
                    if net.layer.panels[p].grow_inter > 0:
                        self.grow_random(net, p, net.layer.panels[p].grow_inter)
                        self.grown = True

    def end(self) -> None:
        """Task end."""
        self.task += 1
        self.ids, self.scores = [], []

    def grow_random(self, net: Net, p: int, r: int) -> None:
        """Random growth."""
        lines, places = net.layer.lines, net.layer.panels[p].places
        cnt = [0] * lines
        used = [[False] * places for _ in range(lines)]
        for e in net.panels[p]:
            used[e.line][e.index] = True
        for _ in range(r):
            line = self.below(lines)
            while places - sum(used[line]) - cnt[line] == 0:
                line = (line + 1) % lines
            cnt[line] += 1
        for line in range(lines - 1, -1, -1):
            for _ in range(cnt[line]):
                q = self.below(places)
                while used[line][q]:
                    q = (q + 1) % places
                used[line][q] = True
                self.insert(net, p, line, q)
        self.sort(net, p)

    def insert(self, net: Net, p: int, line: int, q: int) -> None:
        """New entry."""
        net.panels[p].append(Entry.new(line, q, True, [0] * net.block))

    def sort(self, net: Net, p: int) -> None:
        """Storage order."""
        net.panels[p].sort(key=lambda e: (e.line, not e.chosen, e.index))

    def sums(self, number: int, p: int, line: int, index: int, j: int) -> tuple[int, int]:
        """gD and gM of a weight."""
        net = self.nets[number]
        i, o = net.io(p, line, index, j)
        if net.layer.op is Op.CONV:
            if self.model.learning.growth is Growth.GRADIENT:
                both = net.everywhere.get((i, o), [0, 0])
            else:
                both = next(e.gradient[j] for e in net.panels[p] if (e.line, e.index) == (line, index))
            return both[0], both[1]
        both = [0, 0]
        for layer, which, x, e in self.factors:
            if layer == number:
                both[which] += shift(x[i] * e[o], 8)
        return both[0], both[1]

    def cgi(self, number: int, p: int, line: int, index: int) -> int:
        """Gradient score of a block."""
        net, learning = self.nets[number], self.model.learning
        total = 0
        for j in range(net.block):
            d, m = self.sums(number, p, line, index, j)
            total += (learning.alpha_q8 * min(abs(d), 2**20) + learning.beta_q8 * min(abs(m), 2**20)) >> 8
        return min(65535, total >> int(math.log2(net.block)))

    def cwi(self, number: int, p: int, e: Entry) -> int:
        """Weight score of an entry."""
        net, learning = self.nets[number], self.model.learning
        c = net.layer
        s = c.fx + 6 - c.fw + int(math.log2(learning.capture))
        total = 0
        for j in range(net.block):
            gd, gm = self.sums(number, p, e.line, e.index, j)
            d, m = (min(65535, abs(v) >> s if s >= 0 else abs(v) << -s) for v in (gd, gm))
            total += abs(e.weight[j]) + ((learning.alpha_q8 * d + learning.beta_q8 * m) >> 8)
        return min(65535, total >> int(math.log2(net.block)))

    def mask_update(self) -> None:
        """All sparse layers and panels."""
        learning = self.model.learning
        for number, net in enumerate(self.nets):
            for p, constants in enumerate(net.layer.panels):
                if learning.tdm:
                    entries = net.panels[p]
                    order = sorted((self.cwi(number, p, e), k) for k, e in enumerate(entries))
                    gone = {k for _, k in order[: constants.swap + len(entries) - constants.nnz]}
                    net.panels[p] = [e for k, e in enumerate(entries) if k not in gone]
                    if learning.growth is Growth.RANDOM:
                        self.grow_random(net, p, constants.swap)
                    else:
                        used = {(e.line, e.index) for e in net.panels[p]}
                        free = [
                            (-self.cgi(number, p, line, q), line, q)
                            for line in range(net.layer.lines)
                            for q in range(constants.places)
                            if (line, q) not in used
                        ]
                        for _, line, q in sorted(free)[: constants.swap]:
                            self.insert(net, p, line, q)
                        self.sort(net, p)
                entries = net.panels[p]
                ranked = sorted((-self.cgi(number, p, e.line, e.index), k) for k, e in enumerate(entries))
                take = constants.grad if learning.dgm else len(entries)
                best = {k for _, k in ranked[:take]}
                for k, e in enumerate(entries):
                    e.chosen = k in best
                self.sort(net, p)
        self.grown = False
        self.forget()

    def forget(self) -> None:
        """No gradients captured."""
        self.captured_d = self.captured_m = 0
        self.factors = []
        for net in self.nets:
            net.everywhere = {}
            for e, j, _, _ in net.weights():
                e.gradient[j] = [0, 0]

    def updates(self) -> list[int]:
        """Positions of this epoch after which the masks change."""
        learning = self.model.learning
        if not (learning.tdm or learning.dgm) or not any(layer.sparse for layer in self.model.layers):
            return []
        if (self.epoch + 1) % learning.update_every_epochs:
            return []
        n = len(self.ids)
        due = [math.floor(j * n / learning.updates_per_epoch) for j in range(1, learning.updates_per_epoch + 1)]
        return [q for q in due if not (q == n and self.epoch + 1 == learning.epochs)]

    def train(self, samples: list[Sample]) -> None:
        """One training step."""
        learning, model = self.model.learning, self.model
        if self.pos == 0 and not self.shuffled:
            for i in range(len(self.ids) - 1, 0, -1):
                j = self.below(i + 1)
                self.ids[i], self.ids[j] = self.ids[j], self.ids[i]
                self.scores[i], self.scores[j] = self.scores[j], self.scores[i]
            self.shuffled = True
        sample = samples[self.ids[self.pos]]
        every = list(range(model.n_classes))
        own = [c for c in every if self.class_task[c] == self.task]
        done, zcur = self.forward(sample.x)
        head = own if learning.single_head is SingleHead.LOSS else every
        e, _ = self.cross_entropy(zcur, head, sample.label)
        wrong = zcur.index(max(zcur)) != sample.label
        if learning.ddr:
            if learning.ddr_score.value == "misclassification":
                self.scores[self.pos] = min(255, self.scores[self.pos] + wrong)
            else:
                v = -e[sample.label]
                k = math.floor(math.log2(max(v, 1)))
                self.scores[self.pos] = v if v < 16 else 16 * (k - 4) + 16 * v // 2**k
        window = any(q - learning.capture <= self.pos < q for q in self.updates())
        if window:
            head = every if learning.single_head is SingleHead.OFF else own
            self.capture(0, done, self.cross_entropy(zcur, head, sample.label)[0])
        self.backward(done, e, model.current)
        data = list(zcur)
        if learning.method is not Method.FINETUNE and self.slots and learning.shared_draws:
            share = math.floor(32768 * learning.alpha / (learning.alpha + learning.beta) + 0.5)
            for k in range(learning.shared_draws):
                other, stored = self.slots[self.below(len(self.slots))]
                done, z = self.forward(other.x)
                squared, (entropy, _) = self.squared_error(z, stored), self.cross_entropy(z, every, other.label)
                e = [shift(a * share + b * (32768 - share), 15) for a, b in zip(squared, entropy, strict=True)]
                if window and k == 0:
                    self.capture(1, done, e)
                self.backward(done, e, model.replay)
                data += z
        elif learning.method is not Method.FINETUNE and self.slots:
            if learning.method is Method.DERPP and learning.alpha > 0:
                other, stored = self.slots[self.below(len(self.slots))]
                done, z = self.forward(other.x)
                self.backward(done, self.squared_error(z, stored), model.distil)
                data += z
            if learning.beta > 0:
                other, _ = self.slots[self.below(len(self.slots))]
                done, z = self.forward(other.x)
                e, _ = self.cross_entropy(z, every, other.label)
                if window:
                    self.capture(1, done, e)
                self.backward(done, e, model.replay)
                data += z
        last = self.epoch == learning.epochs - 1
        if learning.method is not Method.FINETUNE and (last or not learning.refresh):
            self.seen += 1
            if len(self.slots) < learning.capacity:
                self.slots.append((sample, zcur))
                self.tasks.append(self.task)
            else:
                r = self.below(self.seen)
                if r < learning.capacity:
                    self.slots[r] = (sample, zcur)
                    self.tasks[r] = self.task
        packed = struct.pack(f"<{len(data)}hIIH", *data, self.choices, self.rounding, sample.id)
        self.rolling = zlib.crc32(packed, self.rolling)
        due = self.updates()
        self.pos += 1
        self.step += 1
        end = self.pos % learning.batch == 0 or self.pos == len(self.ids) or self.pos in due
        if learning.batch > 1 and end:
            self.apply_batch()
        if self.pos in due:
            self.mask_update()
        if self.pos == len(self.ids):
            self.end_epoch()
            if learning.refresh and learning.method is Method.DERPP and last:
                for k, (kept, _) in enumerate(self.slots):
                    z = self.forward(kept.x)[1]
                    self.slots[k] = (kept, z)
                    self.rolling = zlib.crc32(struct.pack(f"<{len(z)}h", *z), self.rolling)

    def end_epoch(self) -> None:
        """DDR and the next epoch."""
        learning = self.model.learning
        if learning.ddr and self.epoch < learning.ddr_until:
            target = learning.rho_permille * self.n_start * (self.epoch + 1) // (1000 * learning.ddr_until)
            r = min(target - (self.n_start - len(self.ids)), len(self.ids) - 1)
            gone = {k for _, k in sorted((s, k) for k, s in enumerate(self.scores))[: max(r, 0)]}
            self.ids = [v for k, v in enumerate(self.ids) if k not in gone]
            self.scores = [v for k, v in enumerate(self.scores) if k not in gone]
            if learning.ddr_score.value == "misclassification":
                self.scores = [0] * len(self.ids)
        self.epoch += 1
        self.pos = 0
        self.shuffled = False
        self.trained = self.epoch == learning.epochs
