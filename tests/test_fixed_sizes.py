"""Packing into fixed sizes, against plain indexing; and which sizes are chosen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from minilm_retriever.kernels.fixed_layout import FixedLayout
from minilm_retriever.training.step_sizes import choose_sizes, cost, size_of


def random_lengths(generator):
    rows = int(generator.integers(1, 9))
    return generator.integers(0, 12, rows) * (generator.random(rows) < 0.8) + (rows == 1)


@pytest.mark.parametrize("seed", range(20))
def test_a_fixed_layout_packs_and_pads_and_so_do_its_gradients(seed):
    generator = np.random.default_rng(seed)
    lengths = random_lengths(generator)
    total, longest = int(lengths.sum()), int(lengths.max())
    slots, width = (
        total + int(generator.integers(0, 5)) + 1,
        longest + int(generator.integers(1, 4)),
    )
    layout = FixedLayout.make(torch.from_numpy(lengths), slots, width)
    padded = torch.randn(len(lengths), width, 3, dtype=torch.float64, requires_grad=True)
    real = torch.arange(width) < torch.from_numpy(lengths)[:, None]
    assert layout.tokens.equal(real)
    packed = layout.unpad(padded)
    assert packed[:total].equal(padded[real])
    assert layout.positions[:total].equal(torch.nonzero(real)[:, 1])
    assert layout.ends.tolist() == [0, *np.cumsum(lengths)]
    weight = torch.randn(total, 3, dtype=torch.float64)
    (packed[:total] * weight).sum().backward()
    assert padded.grad[real].equal(weight) and padded.grad[~real].eq(0).all()
    x = torch.randn(slots, 3, dtype=torch.float64, requires_grad=True)
    back = layout.pad_states(x)
    assert back[real].equal(x[:total]) and back[~real].eq(0).all()
    weight = torch.randn(back.shape, dtype=torch.float64)
    (back * weight).sum().backward()
    assert x.grad[:total].equal(weight[real]) and x.grad[total:].eq(0).all()


@pytest.mark.parametrize("seed", range(8))
def test_few_sizes_hold_every_step_and_waste_little(seed):
    generator = np.random.default_rng(seed)
    count, rows = 500, 32
    longest = generator.integers(8, 80, count)
    if seed % 2:  # a few very long texts
        longest[generator.random(count) < 0.02] = 256
    tokens = longest + generator.integers(200, 1200, count)
    sizes = choose_sizes(tokens, longest, rows)
    assert 1 <= len(sizes) <= 8
    chosen = np.array(
        [size_of(int(t), int(w), sizes) for t, w in zip(tokens, longest, strict=True)]
    )
    assert (chosen[:, 0] >= tokens).all() and (chosen[:, 1] >= longest).all()
    assert {tuple(map(int, size)) for size in chosen} <= set(sizes)
    exact = cost(tokens.astype(float), longest.astype(float), rows).sum()
    assert cost(*chosen.T.astype(float), rows).sum() < 1.3 * exact
    slots, width = size_of(5000, 300, sizes)  # of its own
    assert 5000 <= slots < 5400 and 300 <= width < 316
