# SPDX-License-Identifier: Apache-2.0
"""One training step (docs/spec/algorithm.md, "One training step"); the numbers in comments are its steps."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from sparcl_mcu.reference import loss, mask, network, task
from sparcl_mcu.reference.replay import Sample, Slot
from sparcl_mcu.reference.state import State
from sparcl_mcu.spec.fixed import Ints
from sparcl_mcu.spec.prng import MASK
from sparcl_mcu.spec.types import DdrScore, LearningRate, Method, SingleHead
from sparcl_mcu.spec.wire import Phase


@dataclass(frozen=True, slots=True)
class Step:
    """Report of one step: ``loss`` with 8 fractional bits, ``rolling`` after the step."""

    wrong: bool
    loss: int
    rolling: int


def step(state: State, fetch: Callable[[int], Sample]) -> Step:
    """Learn from the sample at ``table[pos]``, which ``fetch`` returns by its id."""
    learning = state.model.learning
    task.shuffle(state)  # 1
    sample = fetch(state.table.ids[state.pos])
    trace = forward(state, sample)  # 2
    e, cost = _cross_entropy(state, trace, sample, SingleHead.LOSS)
    wrong = trace.prediction != sample.label
    state.histories[state.task].note(sample.id, wrong, cost)
    if learning.ddr:  # 3
        _score(state, wrong, -int(e[sample.label]))
    if mask.in_window(state):  # 4
        own, _ = _cross_entropy(state, trace, sample, SingleHead.LOSS, SingleHead.SCORE)
        mask.capture(state, state.captured.current, trace, own)
    backward(state, trace, e, state.model.current)  # 5
    logits = [trace.z]
    if learning.method is not Method.FINETUNE:
        if state.replay.filled:  # 6
            logits += _replay(state)
        if learning.offers(state.epoch):
            kept = trace.z if learning.method is Method.DERPP else None
            state.replay.offer(Slot(sample, kept), state.choices)  # 7
    roll(state, logits, sample.id)  # 8
    state.pos += 1  # 9
    state.step = (state.step + 1) & MASK
    due = mask.is_due(state)
    if learning.batch > 1 and (state.pos % learning.batch == 0 or state.pos == state.n or due):  # 10
        state.network.apply(state.rounding)
    if due:  # 11
        mask.update(state)
    if state.pos == state.n:  # 12
        task.end_epoch(state)
        if learning.recomputes_logits and state.phase is Phase.TRAINED:
            _refresh(state)  # 13
    return Step(wrong, cost, state.rolling)


def _refresh(state: State) -> None:
    """Step 13: recompute the logits of the whole buffer."""
    for k, slot in enumerate(state.replay.slots):
        z = forward(state, slot.sample).z
        state.replay.slots[k] = Slot(slot.sample, z)
        state.rolling = zlib.crc32(z.astype("<i2").tobytes(), state.rolling)


def forward(state: State, sample: Sample) -> network.Trace:
    """A forward pass in training."""
    state.passes += 1
    return state.network.forward(sample.input(), state.counters)


def _replay(state: State) -> list[Ints]:
    """Step 6: learn from the replay buffer; return the logits of each pass."""
    learning, replay = state.model.learning, state.replay
    if learning.shared_draws:
        return [_shared(state, capture=k == 0 and mask.in_window(state)) for k in range(learning.shared_draws)]
    passes = []
    if learning.method is Method.DERPP and learning.alpha > 0:
        slot = replay.pick(state.choices)
        trace = forward(state, slot.sample)
        e = _squared_error(state, trace, slot)
        backward(state, trace, e, state.model.distil)
        passes.append(trace.z)
    if learning.beta > 0:
        slot = replay.pick(state.choices)
        trace = forward(state, slot.sample)
        e, _ = _cross_entropy(state, trace, slot.sample)
        if mask.in_window(state):
            mask.capture(state, state.captured.replay, trace, e)
        backward(state, trace, e, state.model.replay)
        passes.append(trace.z)
    return passes


def _shared(state: State, *, capture: bool) -> Ints:
    """One draw from the buffer, for distillation and cross-entropy at once; its logits."""
    slot = state.replay.pick(state.choices)
    trace = forward(state, slot.sample)
    replay, _ = _cross_entropy(state, trace, slot.sample)
    e = loss.shared(_squared_error(state, trace, slot), replay, state.model.learning.distil_share)
    if capture:
        mask.capture(state, state.captured.replay, trace, e)
    backward(state, trace, e, state.model.replay)
    return trace.z


def _squared_error(state: State, trace: network.Trace, slot: Slot) -> Ints:
    assert slot.logits is not None, "DER++ keeps logits"
    last = state.model.layers[-1]
    return loss.squared_error(trace.z, slot.logits, last.fa, last.out.values)


def _cross_entropy(state: State, trace: network.Trace, sample: Sample, *heads: SingleHead) -> tuple[Ints, int]:
    """Error and loss; over the task's own classes if SINGLE_HEAD is one of ``heads``, else over all."""
    last = state.model.layers[-1]
    return loss.cross_entropy(trace.z, state.classes(*heads), sample.label, last.fa, last.out.values)


def backward(state: State, trace: network.Trace, e: Ints, rate: LearningRate) -> None:
    """Learn from the error of one pass at the learning rate of one term, in this epoch's share."""
    batch, shares = state.model.learning.batch, state.model.learning.lr_q8
    if shares:
        rate = LearningRate((rate.multiplier * shares[state.epoch]) >> 8, rate.shift)
    state.network.backward(trace, e, rate, state.rounding, state.counters, batch=batch > 1)


def _score(state: State, wrong: bool, error: int) -> None:
    scores, pos = state.table.scores, state.pos
    if state.model.learning.ddr_score is DdrScore.LOSS:
        scores[pos] = task.logarithmic(error)
    else:
        scores[pos] = min(255, scores[pos] + wrong)


def roll(state: State, logits: list[Ints], sample_id: int) -> None:
    """Step 8: take logits, both generators and the sample into the rolling digest."""
    data = b"".join(z.astype("<i2").tobytes() for z in logits)
    data += struct.pack("<IIH", state.choices.state, state.rounding.state, sample_id)
    state.rolling = zlib.crc32(data, state.rolling)
