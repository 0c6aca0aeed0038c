# SPDX-License-Identifier: Apache-2.0
"""Which weights of the initial model exist.

A block is ``block`` consecutive outputs of one input (of a convolution: output channels of one
kernel position); its weights are present or absent together.  A layer with ``n_out`` outputs
has ``ceil(n_out / block)`` blocks an input, the last one possibly with pads, which never hold
weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparcl_mcu.generator import network
from sparcl_mcu.generator.config import Config
from sparcl_mcu.spec.types import PANEL_PLACES, FloatLayer, Op

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


def blocks_of(n_out: int, block: int) -> int:
    """Blocks of a layer of ``n_out`` outputs."""
    return -(-n_out // block)


def lines_first(layer: FloatLayer, scores: NDArray[Any]) -> NDArray[Any]:
    """(n_in, blocks) <-> (lines, places) of a layer."""
    return scores.T if layer.by_output else scores


def entries_kept(sparsity: float, lines: int, places: int) -> int:
    """Entries of a layer that exist: ``(1 - sparsity) lines places``, rounded; at least one a panel."""
    wanted = math.floor((1.0 - sparsity) * lines * places + 0.5 + 1e-9)
    return max(wanted, _panels_of(places))


def _panels_of(places: int) -> int:
    return -(-places // PANEL_PLACES)


def sparse_layers(config: Config, layers: Sequence[FloatLayer]) -> tuple[bool, ...]:
    """Which layers are stored sparse: where weights are absent, or gradients masked."""
    weighted = [k for k, layer in enumerate(layers) if layer.weighted]
    if not weighted or not (config.sparsity.weights > 0.0 or config.dgm.enabled):
        return (False,) * len(layers)
    first, last = weighted[0], weighted[-1]
    dense_input = config.sparsity.dense_input
    if dense_input is None:
        dense_input = layers[first].op is Op.CONV
    dense = {first} if dense_input else set()
    dense |= {last} if config.sparsity.dense_output else set()
    if config.sparsity.dense_depthwise:
        dense |= {k for k in weighted if layers[k].multiplier}
    return tuple(layer.weighted and k not in dense for k, layer in enumerate(layers))


def input_norms(layer: FloatLayer, x: Floats) -> Floats:
    """L2 norms of the inputs of a layer's weights, over the samples and all positions of a convolution.

    ``x``: (samples, channels, height, width), the layer's input.  Result: (n_in, 1), or (n_in, n_out)
    if the convolution is depthwise.
    """
    if layer.op is Op.DENSE:
        return np.asarray(np.sqrt(np.square(x.reshape(len(x), -1)).sum(axis=0)))[:, np.newaxis]
    squares = [np.square(network.columns(layer, sample[np.newaxis])).sum(axis=(0, 1)) for sample in x]
    norms = np.asarray(np.sqrt(np.sum(squares, axis=0)))
    if layer.multiplier:
        return np.repeat(norms.T, layer.multiplier, axis=1)
    return norms.reshape(-1, 1)


def saliency(weight: Floats, norms: Floats | None) -> Floats:
    """(n_in, n_out): ``|w|``, times the norm of what it multiplies (``input_norms``), if given.

    The product spends no weight on inputs that are always 0 (the recipe; Wanda, Sun et al., ICLR 2024).
    """
    magnitude = np.abs(weight)
    return magnitude if norms is None else magnitude * norms


def block_scores(scores: Floats, block: int) -> Floats:
    """(n_in, n_out) -> (n_in, blocks): mean over the outputs a block really has."""
    n_in, n_out = scores.shape
    blocks = blocks_of(n_out, block)
    padded = np.zeros((n_in, blocks * block))
    padded[:, :n_out] = scores
    members = np.full(blocks, block)
    members[-1] = n_out - (blocks - 1) * block
    return np.asarray(padded.reshape(n_in, blocks, block).sum(axis=2) / members)


def expand(blocks_mask: Mask, block: int, n_out: int) -> Mask:
    """(n_in, blocks) -> (n_in, n_out)."""
    return np.repeat(blocks_mask, block, axis=1)[:, :n_out]


def top_entries(scores: Floats, count: int) -> Mask:
    """The ``count`` highest of a matrix; ties: the lower line, then the lower place."""
    order = np.argsort(-scores.ravel(), kind="stable")
    mask = np.zeros(scores.size, dtype=np.bool_)
    mask[order[:count]] = True
    return mask.reshape(scores.shape)


def masks(config: Config, layers: Sequence[FloatLayer], saliencies: Sequence[Floats]) -> tuple[Mask, ...]:
    """Masks of all layers, from the input to the output; all True for dense ones.

    ``saliencies``: (n_in, n_out) each, empty for layers without weights.  Sparse layers keep
    ``entries_kept`` entries each, or that many together if the scope is global.
    """
    sparse = sparse_layers(config, layers)
    block = config.sparsity.block
    scores = [
        lines_first(layer, block_scores(s, block)) if on else None
        for layer, s, on in zip(layers, saliencies, sparse, strict=True)
    ]
    counts = [0 if s is None else entries_kept(config.sparsity.weights, *s.shape) for s in scores]
    if config.sparsity.scope == "global":
        counts = _global_counts(scores, sum(counts))
    result = []
    for layer, s, count, values in zip(layers, scores, counts, saliencies, strict=True):
        if s is None:
            result.append(np.ones(values.shape, dtype=np.bool_))
        else:
            chosen = lines_first(layer, _fill_panels(top_entries(s, count), s))
            result.append(expand(chosen, block, values.shape[1]))
    return tuple(result)


def _global_counts(scores: Sequence[Floats | None], total: int) -> list[int]:
    """How the ``total`` highest scores of all layers are spread over them (at least one a panel each)."""
    least = [0 if s is None else _panels_of(s.shape[1]) for s in scores]
    flat = np.concatenate([s.ravel() for s in scores if s is not None] or [np.zeros(0)])
    owner = np.concatenate([np.full(0 if s is None else s.size, k) for k, s in enumerate(scores)])
    chosen = owner[np.argsort(-flat, kind="stable")[:total]].astype(np.int64)
    counts = [max(int(n), m) for n, m in zip(np.bincount(chosen, minlength=len(scores)), least, strict=True)]
    for _ in range(sum(counts) - total):
        counts[int(np.argmax(counts))] -= 1
    return counts


def _fill_panels(mask: Mask, scores: Floats) -> Mask:
    """Give a panel without entries its best one, at the cost of the worst entry of the fullest panel."""
    mask = mask.copy()
    panels = [slice(k, k + PANEL_PLACES) for k in range(0, mask.shape[1], PANEL_PLACES)]
    for panel in panels:
        if mask[:, panel].any():
            continue
        fullest = max(panels, key=lambda p: int(mask[:, p].sum()))
        kept = np.where(mask[:, fullest], scores[:, fullest], np.inf)
        mask[:, fullest].flat[int(np.argmin(kept))] = False
        mask[:, panel].flat[int(np.argmax(scores[:, panel]))] = True
    return mask
