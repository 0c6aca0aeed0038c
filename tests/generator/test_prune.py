# SPDX-License-Identifier: Apache-2.0
"""Masks: exact counts, blocks, panels, ties."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparcl_mcu.generator import network, prune
from sparcl_mcu.generator.config import Config
from sparcl_mcu.spec.types import Op, Window

from . import helpers


def make(**sparsity: object) -> Config:
    return Config.model_validate({"sparsity": sparsity})


def masks_of(config: Config, saliencies: Sequence[np.ndarray], op: Op = Op.DENSE) -> tuple[np.ndarray, ...]:
    """Masks of layers of one kind."""
    layers = [helpers.layer(op, (k,), (s.shape[1], 1, 1), weight=s) for k, s in enumerate(saliencies)]
    return prune.masks(config, layers, saliencies)


@settings(max_examples=60)
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
    (mask,) = masks_of(config, [scores])
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
    """The first by line: the lower output of a layer with few outputs, else the lower input."""
    scores = np.array([[1.0, 5.0, 5.0], [5.0, 0.0, 9.0]])
    (mask,) = masks_of(make(weights=0.5, dense_output=False), [scores])
    assert mask.tolist() == [[False, True, False], [True, False, True]]
    (mask,) = masks_of(make(weights=0.9, dense_output=False), [np.hstack([scores, np.zeros((2, 14))])])
    assert [np.flatnonzero(row).tolist() for row in mask] == [[1, 2], [2]]


def test_the_output_layer_stays_dense() -> None:
    hidden, output = masks_of(make(weights=0.9), [np.random.default_rng(0).random((20, 30)), np.ones((30, 4))])
    assert (int(hidden.sum()), int(output.sum())) == (60, 120)


def test_global_scope_moves_weights_to_where_they_matter() -> None:
    random = np.random.default_rng(0)
    saliencies = [random.random((20, 30)) * 1.05, random.random((30, 30)), np.ones((30, 4))]
    masks = masks_of(make(weights=0.9, scope="global"), saliencies)
    assert int(masks[0].sum() + masks[1].sum()) == 60 + 90
    assert int(masks[0].sum()) > 75
    kept = min(float(s[m].min()) for s, m in zip(saliencies[:2], masks[:2], strict=True))
    dropped = max(float(s[~m].max()) for s, m in zip(saliencies[:2], masks[:2], strict=True))
    assert kept >= dropped


def test_every_panel_has_an_entry() -> None:
    scores = np.zeros((3, 600))
    scores[:, :200] = np.arange(600).reshape(3, 200) + 1.0
    (mask,) = masks_of(make(weights=0.99, dense_output=False), [scores])
    assert int(mask.sum()) == 18
    assert all(mask[:, k : k + 256].any() for k in (0, 256, 512))


@pytest.mark.parametrize("norms", [None, np.array([[1.0], [0.0]])])
def test_saliency(norms: np.ndarray | None) -> None:
    weight = np.array([[-2.0, 1.0], [3.0, -4.0]])
    expected = np.abs(weight) if norms is None else [[2.0, 1.0], [0.0, 0.0]]
    assert np.array_equal(prune.saliency(weight, norms), expected)


def test_panels_of_a_convolution_split_its_kernel_positions() -> None:
    scores = np.zeros((600, 3))
    scores[:200] = np.arange(600).reshape(200, 3) + 1.0
    (mask,) = masks_of(make(weights=0.99, dense_output=False, dense_input=False), [scores], Op.CONV)
    assert int(mask.sum()) == 18
    assert all(mask[k : k + 256].any() for k in (0, 256, 512))
    (mask,) = masks_of(make(weights=0.99, block=4, dense_output=False, dense_input=False), [scores], Op.CONV)
    assert int(mask.any(axis=1).sum()) == 6


def chain(*kinds: str) -> list[bool]:
    """Which of a network's layers are sparse by default; ``d``: dense, ``c``: convolution, ``w``: depthwise, ``m``."""
    weight = np.ones((9, 2))
    ops = {"d": Op.DENSE, "c": Op.CONV, "w": Op.CONV, "m": Op.MAX_POOL}
    layers = [
        helpers.layer(ops[kind], (k,), (2, 1, 1), weight=None if kind == "m" else weight, multiplier=int(kind == "w"))
        for k, kind in enumerate(kinds)
    ]
    return list(prune.sparse_layers(make(weights=0.9), layers))


def test_which_layers_are_sparse() -> None:
    assert chain(*"ddd") == [True, True, False]
    assert chain(*"cmcmdd") == [False, False, True, False, True, False]
    assert chain(*"mcwcmd") == [False, False, False, True, False, False]
    layers = [helpers.layer(op, (k,), (2, 1, 1), weight=np.ones((9, 2))) for k, op in enumerate((Op.CONV, Op.DENSE))]
    assert prune.sparse_layers(make(dense_input=False, dense_output=False), layers) == (True, True)
    assert prune.sparse_layers(make(dense_input=True), layers[1:]) == (False,)
    assert prune.sparse_layers(make(weights=0.0), layers) == (False, False)


def test_layers_without_weights_have_empty_masks() -> None:
    pool = helpers.layer(Op.MAX_POOL, (0,), (2, 1, 1), window=Window(2, 2))
    hidden = helpers.layer(Op.DENSE, (1,), (3, 1, 1), weight=np.ones((2, 3)))
    masks = prune.masks(make(weights=0.5, dense_output=False), [pool, hidden], [pool.saliency, hidden.saliency])
    assert (masks[0].shape, int(masks[1].sum())) == ((0, 0), 3)


@pytest.mark.parametrize("multiplier", [0, 2])
def test_input_norms_are_of_what_each_weight_multiplies(multiplier: int) -> None:
    random = np.random.default_rng(0)
    x = random.normal(0.0, 1.0, (4, 3, 6, 5))
    n_in, n_out = (6, 6) if multiplier else (18, 4)
    window = Window(2, 3, 2, 1, 1, 0)
    shape, weight = (n_out, 4, 3), np.zeros((n_in, n_out))
    layer = helpers.layer(Op.CONV, (0,), shape, weight=weight, window=window, multiplier=multiplier)
    norms = np.broadcast_to(prune.input_norms(layer, x), weight.shape)
    for i, o in np.ndindex(weight.shape):
        one = weight.copy()
        one[i, o] = 1.0
        made = helpers.layer(Op.CONV, (0,), shape, weight=one, window=window, multiplier=multiplier)
        products = network.output(made, [x])[:, o]
        assert norms[i, o] == pytest.approx(float(np.sqrt(np.square(products).sum())))
    dense = helpers.layer(Op.DENSE, (0,), (2, 1, 1), weight=np.ones((90, 2)))
    assert np.allclose(prune.input_norms(dense, x)[:, 0], np.linalg.norm(x.reshape(4, 90), axis=0))
