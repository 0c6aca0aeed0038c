# SPDX-License-Identifier: Apache-2.0
"""Expected result of the board's self-test: one sample through forward, backward and the PRNG."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparcl_mcu.reference import loss, train
from sparcl_mcu.reference import state as states
from sparcl_mcu.reference.state import NO_TASK
from sparcl_mcu.spec.types import Method, Model


def sample(model: Model) -> NDArray[np.integer]:
    """The golden sample, (n_in,) 8 bit: any values, the same for each model of its size."""
    low, high, dtype = (-128, 128, np.int8) if model.signed else (0, 256, np.uint8)
    return np.random.default_rng(0).integers(low, high, model.n_in).astype(dtype)


def digest(model: Model) -> int:
    """State digest after the initial model has learned the golden sample, as `scl_train_golden` does it.

    Label 0 of task 0, to which all classes belong; one pass for each term of the loss, or for both terms of
    the replay where draws are shared; distillation towards logits of 0; a number below 255 drawn from the PRNG
    stands for the sample's id.
    """
    state = states.State.initial(model)
    state.class_task[:] = 0
    golden = state.sample(0, 0, 0, sample(model))
    last, learning = model.layers[-1], model.learning
    terms = [(model.current, 0)]  # with the share of distillation in their error, 15 fractional bits
    if learning.method is Method.DERPP and model.distil.multiplier > 0:
        terms.append((model.distil, 1 << 15))
    if learning.method is not Method.FINETUNE and model.replay.multiplier > 0:
        terms.append((model.replay, learning.distil_share))
    passes = []
    for rate, share in terms:
        trace = train.forward(state, golden)
        distil = loss.squared_error(trace.z, np.zeros_like(trace.z), last.fa, last.out.values)
        replay, _ = loss.cross_entropy(trace.z, state.classes(), 0, last.fa, last.out.values)
        e = loss.shared(distil, replay, share)
        train.backward(state, trace, e, rate)
        passes.append(trace.z)
    if learning.batch > 1:
        state.network.apply(state.rounding)
    train.roll(state, passes, state.choices.below(NO_TASK))
    return states.digest(state)
