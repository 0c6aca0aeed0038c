# SPDX-License-Identifier: Apache-2.0
"""Masks: exact counts, blocks, panels, ties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generator import prune
from generator.config import Config


def make(**sparsity: object) -> Config:
    return Config.model_validate({"sparsity": sparsity})


@settings(deadline=None, max_examples=60)
@given(
    n_in=st.integers(1, 30),
    n_out=st.integers(1, 40),
    block=st.sampled_from([1, 2, 4]),
    sparsity=st.floats(0.0, 0.99),
    seed=st.integers(0, 99),
)
def test_exact_count_and_whole_blocks(n_in: int, n_out: int, block: int, sparsity: float, seed: int) -> None:
    scores = np.random.default_rng(seed).random((n_in, n_out))
    config = make(weights=sparsity, block=block, dense_output=False)
    (mask,) = prune.masks(config, [scores])
    blocks = prune.blocks_of(n_out, block)
    padded = np.zeros((n_in, blocks * block), dtype=bool)
    padded[:, :n_out] = mask
    per_block = padded.reshape(n_in, blocks, block)
    assert mask.shape == (n_in, n_out)
    assert int(per_block.any(axis=2).sum()) == max(1, int((1 - sparsity) * n_in * blocks + 0.5 + 1e-9)) or sparsity == 0
    whole = np.full(blocks, block)
    whole[-1] = n_out - (blocks - 1) * block
    assert np.array_equal(per_block.sum(axis=2), per_block.any(axis=2) * whole)


def test_the_best_are_kept_and_ties_go_to_the_first() -> None:
    scores = np.array([[1.0, 5.0, 5.0], [5.0, 0.0, 9.0]])
    (mask,) = prune.masks(make(weights=0.5, dense_output=False), [scores])
    assert mask.tolist() == [[False, True, True], [False, False, True]]


def test_the_output_layer_stays_dense() -> None:
    hidden, output = prune.masks(make(weights=0.9), [np.random.default_rng(0).random((20, 30)), np.ones((30, 4))])
    assert (int(hidden.sum()), int(output.sum())) == (60, 120)


def test_global_scope_moves_weights_to_where_they_matter() -> None:
    random = np.random.default_rng(0)
    saliencies = [random.random((20, 30)) * 1.05, random.random((30, 30)), np.ones((30, 4))]
    masks = prune.masks(make(weights=0.9, scope="global"), saliencies)
    assert int(masks[0].sum() + masks[1].sum()) == 60 + 90
    assert int(masks[0].sum()) > 75
    kept = min(float(s[m].min()) for s, m in zip(saliencies[:2], masks[:2], strict=True))
    dropped = max(float(s[~m].max()) for s, m in zip(saliencies[:2], masks[:2], strict=True))
    assert kept >= dropped


def test_every_panel_has_an_entry() -> None:
    scores = np.zeros((3, 600))
    scores[:, :200] = np.arange(600).reshape(3, 200) + 1.0
    (mask,) = prune.masks(make(weights=0.99, dense_output=False), [scores])
    assert int(mask.sum()) == 18
    assert all(mask[:, k : k + 256].any() for k in (0, 256, 512))


@pytest.mark.parametrize("norms", [None, np.array([1.0, 0.0])])
def test_saliency(norms: np.ndarray | None) -> None:
    weight = np.array([[-2.0, 1.0], [3.0, -4.0]])
    expected = np.abs(weight) if norms is None else [[2.0, 1.0], [0.0, 0.0]]
    assert np.array_equal(prune.saliency(weight, norms), expected)
