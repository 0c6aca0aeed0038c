# SPDX-License-Identifier: Apache-2.0
"""The training step once more, one number at a time, in plain Python integers.

Written from docs/numerics.md and docs/algorithm.md without NumPy arithmetic and
without the reference, to find mistakes of vectorisation.  Slow on purpose.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass, field

from generator.artefacts import Growth, Layer, LearningRate, Method, Model, SingleHead

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


@dataclass
class Entry:
    """An entry of a panel; acc for batches."""

    input: int
    index: int
    chosen: bool
    weight: list[int]
    acc: list[int]


@dataclass
class Net:
    """One layer: panels of entries (a dense layer is one panel of every output, block 1)."""

    layer: Layer
    panels: list[list[Entry]]
    first: list[int]
    block: int
    bias: list[int]
    bacc: list[int]


@dataclass
class Sample:
    """A training sample."""

    id: int
    label: int
    x: list[int]


@dataclass
class Scalar:
    """The learner.  Tasks are resident."""

    model: Model
    prng: int = 0
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
    class_task: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    scores: list[int] = field(default_factory=list)
    slots: list[tuple[Sample, list[int]]] = field(default_factory=list)
    captured_d: list[list[tuple[list[int], list[int]]]] = field(default_factory=list)
    captured_m: list[list[tuple[list[int], list[int]]]] = field(default_factory=list)
    nets: list[Net] = field(default_factory=list)
    counting: bool = True

    def __post_init__(self) -> None:
        self.prng = self.model.learning.seed
        self.class_task = [255] * self.model.n_classes
        self.nets = [self.net(layer) for layer in self.model.layers]

    def net(self, layer: Layer) -> Net:
        """Unpack a layer."""
        panels: list[list[Entry]] = []
        if layer.sparse:
            for p in layer.panels:
                entries = []
                for i in range(layer.n_in):
                    for k in range(int(p.start[i]), int(p.start[i + 1])):
                        w = [int(v) for v in p.weight[k]]
                        entries.append(Entry(i, int(p.index[k]), k < int(p.split[i]), w, [0] * layer.block))
                panels.append(entries)
            first, block = [p.first for p in layer.panels], layer.block
        else:
            assert layer.weight is not None
            grid = [(i, o) for i in range(layer.n_in) for o in range(layer.n_pad)]
            panels = [[Entry(i, o, True, [int(layer.weight[i, o])], [0]) for i, o in grid]]
            first, block = [0], 1
        return Net(layer, panels, first, block, [int(b) for b in layer.bias], [0] * layer.n_pad)

    def next(self) -> int:
        """Random number."""
        self.prng = (self.prng * 1664525 + 1013904223) % 2**32
        return self.prng

    def below(self, n: int) -> int:
        """Random number below n."""
        return (self.next() * n) >> 32

    def guard(self, v: list[int], limit: int) -> list[int]:
        """Norm guard."""
        while limit and sum(abs(a) for a in v) > limit:
            v = [shift(a, 1) for a in v]
            if self.counting:
                self.guard_shifts += 1
        return v

    def forward(self, x: list[int]) -> tuple[list[list[int]], list[int]]:
        """Inputs of all layers, and the logits."""
        inputs = [x]
        for number, net in enumerate(self.nets):
            c = net.layer
            acc = list(net.bias)
            for p, panel in enumerate(net.panels):
                for e in panel:
                    for j in range(net.block):
                        o = (net.first[p] + e.index) * net.block + j
                        acc[o] += e.weight[j] * inputs[-1][e.input]
            out = []
            for a in acc:
                v = shift(a, c.fw + c.fx - c.fa)
                if v > 32767 or (v < -32768 and not c.relu):
                    self.saturated_activations += 1
                out.append(max(sat16(v), 0) if c.relu else sat16(v))
            if number == len(self.nets) - 1:
                return inputs, out[: self.model.n_classes]
            following = self.nets[number + 1].layer
            inputs.append(self.guard(out, following.l1_in)[: following.n_in])
        raise AssertionError

    def cross_entropy(self, z: list[int], classes: list[int], y: int) -> tuple[list[int], int]:
        """Error of the outputs, and loss."""
        last = self.model.layers[-1]
        m = max(z[c] for c in classes)
        t = {c: ((m - z[c]) * 23637 + 2 ** (last.fa + 5)) >> (last.fa + 6) for c in classes}
        ex = {c: 0 if t[c] >> 8 > 15 else EXP2[t[c] & 255] >> (t[c] >> 8) for c in classes}
        total = sum(ex.values())
        e = [0] * last.n_pad
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
        e = [sat16(shift(clamp(a - b, -32767, 32767) * mq, last.fa + 1)) for a, b in zip(z, stored, strict=True)]
        return e + [0] * (last.n_pad - len(e))

    def below_error(self, number: int, x: list[int], e: list[int]) -> list[int]:
        """Error of the layer before."""
        net = self.nets[number]
        total = [0] * len(x)
        for p, panel in enumerate(net.panels):
            for entry in panel:
                for j in range(net.block):
                    o = (net.first[p] + entry.index) * net.block + j
                    total[entry.input] += entry.weight[j] * e[o]
        out = []
        for i in range(len(x)):
            v = shift(total[i], net.layer.fw) if x[i] > 0 else 0
            if v != sat16(v) and self.counting:
                self.saturated_errors += 1
            out.append(sat16(v))
        return out + [0] * (self.nets[number - 1].layer.n_pad - len(x))

    def capture(self, into: list[list[tuple[list[int], list[int]]]], inputs: list[list[int]], e: list[int]) -> None:
        """Keep the factors of all layers."""
        if len(into) == self.model.learning.capture:
            return
        self.counting = False
        factors: list[tuple[list[int], list[int]]] = []
        for number in range(len(self.nets) - 1, -1, -1):
            if number > 0:
                e = self.guard(e, self.nets[number].layer.l1_err)
            factors.insert(0, (inputs[number], e))
            if number > 0:
                e = self.below_error(number, inputs[number], e)
        self.counting = True
        into.append(factors)

    def backward(self, inputs: list[list[int]], e: list[int], rate: LearningRate) -> None:
        """Learn from one pass."""
        model = self.model
        for number in range(len(self.nets) - 1, -1, -1):
            net, x = self.nets[number], inputs[number]
            c = net.layer
            if number > 0:
                e = self.guard(e, c.l1_err)
            share = self.model.learning.lr_q8[self.epoch] if self.model.learning.lr_q8 else 256
            g = [sat16(shift(v * (rate.multiplier * share >> 8), rate.shift)) for v in e]
            below = self.below_error(number, x, e) if number > 0 else []
            su = model.fg + c.fx - c.fw
            for p, panel in enumerate(net.panels):
                for entry in panel:
                    if not entry.chosen or x[entry.input] == 0:
                        continue
                    for j in range(net.block):
                        product = g[(net.first[p] + entry.index) * net.block + j] * x[entry.input]
                        assert abs(product) <= 2**30
                        if model.learning.batch > 1:
                            entry.acc[j] += shift(product, model.sacc)
                        else:
                            self.change(entry, j, self.rounded(product, su), c.wlog)
            for o in range(c.n_pad):
                if model.learning.batch > 1:
                    net.bacc[o] += g[o]
                else:
                    self.change_bias(net, o, g[o])
            e = below

    def rounded(self, v: int, s: int) -> int:
        """Stochastic or nearest."""
        if self.model.learning.stochastic:
            total = v + (self.next() >> (32 - s))
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
        net.bias[o] = clamp(net.bias[o] - shift(g, self.model.fg - c.fw - c.fx), -limit, limit)

    def apply_batch(self) -> None:
        """End of a batch."""
        for net in self.nets:
            s = self.model.fg + net.layer.fx - net.layer.fw - self.model.sacc
            for panel in net.panels:
                for entry in panel:
                    for j in range(net.block):
                        if entry.chosen and entry.acc[j] != 0:
                            self.change(entry, j, self.rounded(entry.acc[j], s), net.layer.wlog)
                            entry.acc[j] = 0
            for o in range(net.layer.n_pad):
                self.change_bias(net, o, net.bacc[o])
                net.bacc[o] = 0

    def begin(self, classes: list[int], n: int) -> None:
        """Task begin."""
        for c in classes:
            self.class_task[c] = self.task
        self.ids, self.scores = list(range(n)), [0] * n
        self.n_start = n
        self.epoch = self.pos = 0
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
        n_in, blocks = net.layer.n_in, net.layer.panels[p].blocks
        cnt = [0] * n_in
        used = [[False] * blocks for _ in range(n_in)]
        for e in net.panels[p]:
            used[e.input][e.index] = True
        for _ in range(r):
            i = self.below(n_in)
            while blocks - sum(used[i]) - cnt[i] == 0:
                i = (i + 1) % n_in
            cnt[i] += 1
        for i in range(n_in - 1, -1, -1):
            for _ in range(cnt[i]):
                o = self.below(blocks)
                while used[i][o]:
                    o = (o + 1) % blocks
                used[i][o] = True
                self.insert(net, p, i, o)
        self.sort(net, p)

    def insert(self, net: Net, p: int, i: int, o: int) -> None:
        """New entry."""
        net.panels[p].append(Entry(i, o, True, [0] * net.block, [0] * net.block))

    def sort(self, net: Net, p: int) -> None:
        """Storage order."""
        net.panels[p].sort(key=lambda e: (e.input, not e.chosen, e.index))

    def sums(self, number: int, i: int, o: int) -> tuple[int, int]:
        """gD and gM of a weight."""
        d = sum(shift(f[number][0][i] * f[number][1][o], 8) for f in self.captured_d)
        m = sum(shift(f[number][0][i] * f[number][1][o], 8) for f in self.captured_m)
        return d, m

    def cgi(self, number: int, p: int, i: int, index: int) -> int:
        """Gradient score of a block."""
        net, learning = self.nets[number], self.model.learning
        total = 0
        for j in range(net.block):
            d, m = self.sums(number, i, (net.first[p] + index) * net.block + j)
            total += (learning.alpha_q8 * min(abs(d), 2**20) + learning.beta_q8 * min(abs(m), 2**20)) >> 8
        return min(65535, total >> int(math.log2(net.block)))

    def cwi(self, number: int, p: int, e: Entry) -> int:
        """Weight score of an entry."""
        net, learning = self.nets[number], self.model.learning
        c = net.layer
        s = c.fx + 6 - c.fw + int(math.log2(learning.capture))
        total = 0
        for j in range(net.block):
            gd, gm = self.sums(number, e.input, (net.first[p] + e.index) * net.block + j)
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
                        used = {(e.input, e.index) for e in net.panels[p]}
                        free = [
                            (-self.cgi(number, p, i, o), i, o)
                            for i in range(net.layer.n_in)
                            for o in range(constants.blocks)
                            if (i, o) not in used
                        ]
                        for _, i, o in sorted(free)[: constants.swap]:
                            self.insert(net, p, i, o)
                        self.sort(net, p)
                entries = net.panels[p]
                ranked = sorted((-self.cgi(number, p, e.input, e.index), k) for k, e in enumerate(entries))
                take = constants.grad if learning.dgm else len(entries)
                best = {k for _, k in ranked[:take]}
                for k, e in enumerate(entries):
                    e.chosen = k in best
                self.sort(net, p)
        self.grown = False
        self.captured_d, self.captured_m = [], []

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
        inputs, zcur = self.forward(sample.x)
        head = own if learning.single_head is SingleHead.LOSS else every
        e, loss = self.cross_entropy(zcur, head, sample.label)
        wrong = zcur.index(max(zcur)) != sample.label
        if learning.ddr:
            by_loss = learning.ddr_score.value == "loss"
            self.scores[self.pos] = min(255, loss >> 3 if by_loss else self.scores[self.pos] + wrong)
        window = any(q - learning.capture <= self.pos < q for q in self.updates())
        if window:
            head = every if learning.single_head is SingleHead.OFF else own
            self.capture(self.captured_d, inputs, self.cross_entropy(zcur, head, sample.label)[0])
        self.backward(inputs, e, model.current)
        data = list(zcur)
        if learning.method is not Method.FINETUNE and self.slots:
            if learning.method is Method.DERPP and learning.alpha > 0:
                other, stored = self.slots[self.below(len(self.slots))]
                inputs, z = self.forward(other.x)
                self.backward(inputs, self.squared_error(z, stored), model.distil)
                data += z
            if learning.beta > 0:
                other, _ = self.slots[self.below(len(self.slots))]
                inputs, z = self.forward(other.x)
                e, _ = self.cross_entropy(z, every, other.label)
                if window:
                    self.capture(self.captured_m, inputs, e)
                self.backward(inputs, e, model.replay)
                data += z
        if learning.method is not Method.FINETUNE:
            self.seen += 1
            if len(self.slots) < learning.capacity:
                self.slots.append((sample, zcur))
            else:
                r = self.below(self.seen)
                if r < learning.capacity:
                    self.slots[r] = (sample, zcur)
        packed = struct.pack(f"<{len(data)}hIH", *data, self.prng, sample.id)
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
