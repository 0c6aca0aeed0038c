# SPDX-License-Identifier: Apache-2.0
"""Which weights of the initial model exist.

A block is ``block`` consecutive outputs of one input; its weights are present or
absent together.  A layer with ``n_out`` outputs has ``ceil(n_out / block)`` blocks
an input, the last one possibly with pads, which never hold weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from generator.artefacts import PANEL_BLOCKS
from generator.config import Config

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


def blocks_of(n_out: int, block: int) -> int:
    """Blocks an input has in a layer of ``n_out`` outputs."""
    return -(-n_out // block)


def entries_kept(sparsity: float, n_in: int, blocks: int) -> int:
    """Entries of a layer that exist: ``(1 - sparsity) n_in blocks``, rounded; at least one a panel."""
    wanted = math.floor((1.0 - sparsity) * n_in * blocks + 0.5 + 1e-9)
    return max(wanted, -(-blocks // PANEL_BLOCKS))


def saliency(weight: Floats, norms: Floats | None) -> Floats:
    """(n_in, n_out): ``|w|``, times the L2 norm of its input over some samples, ``norms`` (n_in,), if given.

    The product spends no weight on inputs that are always 0 (the recipe; Wanda, Sun et al., ICLR 2024).
    """
    magnitude = np.abs(weight)
    return magnitude if norms is None else magnitude * norms[:, np.newaxis]


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
    """The ``count`` highest of a matrix; ties: the lower input, then the lower block."""
    order = np.argsort(-scores.ravel(), kind="stable")
    mask = np.zeros(scores.size, dtype=np.bool_)
    mask[order[:count]] = True
    return mask.reshape(scores.shape)


def masks(config: Config, saliencies: Sequence[Floats]) -> tuple[Mask, ...]:
    """Masks of all layers, from the input to the output; all True for dense ones.

    ``saliencies``: (n_in, n_out) each.  Sparse layers keep ``entries_kept`` entries
    each, or that many together if the scope is global.
    """
    sparse = sparse_layers(config, len(saliencies))
    block = config.sparsity.block
    scores = [block_scores(s, block) if on else None for s, on in zip(saliencies, sparse, strict=True)]
    counts = [0 if s is None else entries_kept(config.sparsity.weights, *s.shape) for s in scores]
    if config.sparsity.scope == "global":
        counts = _global_counts(scores, sum(counts))
    result = []
    for s, count, values in zip(scores, counts, saliencies, strict=True):
        if s is None:
            result.append(np.ones(values.shape, dtype=np.bool_))
        else:
            result.append(expand(_fill_panels(top_entries(s, count), s), block, values.shape[1]))
    return tuple(result)


def sparse_layers(config: Config, layers: int) -> tuple[bool, ...]:
    """Which layers are stored sparse: where weights are absent, or gradients masked."""
    on = config.sparsity.weights > 0.0 or config.dgm.enabled
    return tuple(on and not (config.sparsity.dense_output and k == layers - 1) for k in range(layers))


def _global_counts(scores: Sequence[Floats | None], total: int) -> list[int]:
    """How the ``total`` highest scores of all layers are spread over them (at least one a panel each)."""
    least = [0 if s is None else -(-s.shape[1] // PANEL_BLOCKS) for s in scores]
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
    panels = [slice(k, k + PANEL_BLOCKS) for k in range(0, mask.shape[1], PANEL_BLOCKS)]
    for panel in panels:
        if mask[:, panel].any():
            continue
        fullest = max(panels, key=lambda p: int(mask[:, p].sum()))
        kept = np.where(mask[:, fullest], scores[:, fullest], np.inf)
        mask[:, fullest].flat[int(np.argmin(kept))] = False
        mask[:, panel].flat[int(np.argmax(scores[:, panel]))] = True
    return mask
