# SPDX-License-Identifier: Apache-2.0
"""Errors and loss of the output layer (docs/spec/numerics.md, "Loss")."""

from __future__ import annotations

import numpy as np

from sparcl_mcu.spec.fixed import EXP2, INT16_MAX, LOG2, Ints, sat16, shift

LOG2_E = 23637
"""log2(e), 14 fractional bits."""
LN_2 = 45426
"""ln(2), 16 fractional bits."""
ONE = 16384
"""1.0 as an error (14 fractional bits)."""


def probabilities(z: Ints, fraction: int) -> tuple[Ints, Ints, int]:
    """Soft-max of the logits ``z`` (classes,) with ``fraction`` fractional bits.

    Returns p (14 fractional bits), t (Q8 of (m - z) log2 e) and the sum S.
    """
    t = ((z.max() - z) * LOG2_E + (1 << (fraction + 5))) >> (fraction + 6)
    whole = t >> 8
    power = np.where(whole > 15, 0, EXP2.take(t & 255) >> np.minimum(whole, 15))
    total = int(power.sum())
    return ((power << 14) + total // 2) // total, t, total


def cross_entropy(z: Ints, classes: Ints, label: int, fraction: int, size: int) -> tuple[Ints, int]:
    """Soft-max over ``classes`` (positions, ascending) against ``label``.

    Returns the error of the outputs, (size,) int64 with 14 fractional bits, and
    the cross-entropy with 8 fractional bits.
    """
    p, t, total = probabilities(z.take(classes), fraction)
    error = np.zeros(size, dtype=np.int64)
    error[classes] = p
    error[label] -= ONE
    k = total.bit_length() - 1
    own = int(t[int(np.searchsorted(classes, label))])
    log = min(65535, ((k - 15) << 8) + int(LOG2[(total >> (k - 8)) & 255]) + own)
    return error, (log * LN_2) >> 16


def squared_error(z: Ints, stored: Ints, fraction: int, size: int) -> Ints:
    """Error of the mean squared difference to stored logits, both (classes,); result (size,)."""
    classes = z.size
    scale = round(2 / classes * 2**15)
    difference = np.minimum(np.maximum(z - stored, -INT16_MAX), INT16_MAX)
    error = np.zeros(size, dtype=np.int64)
    error[:classes] = sat16(shift(difference * scale, fraction + 1))
    return error


def shared(distil: Ints, replay: Ints, share: int) -> Ints:
    """Error of both terms of DER++ at once: the errors of each, (size,), weighted by ``share`` / 2**15 and the rest."""
    return shift(distil * share + replay * ((1 << 15) - share), 15)
