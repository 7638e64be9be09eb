"""batching.py: order, position, length batches."""

from __future__ import annotations

import numpy as np
import torch

from minilm_retriever.batching import Plan, deduplicate, length_batches, order


def test_the_order_of_an_epoch_is_sentence_transformers():
    for epoch in (0, 1, 5):
        generator = torch.Generator().manual_seed(42 + epoch)
        assert order([100], 42, epoch)[0].tolist() == torch.randperm(100, generator=generator).tolist()


def test_the_order_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    order([100, 20], 1, 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_row_once_an_epoch_and_a_ragged_last_batch():
    plan = Plan((50,), 16, 1, 42)
    assert (plan.batches_per_epoch, plan.steps_per_epoch) == (4, 4)
    for epoch in range(3):
        batches = [batch for step in plan.steps(4 * epoch, 4 * epoch + 4) for _, batch in step]
        assert [len(batch) for batch in batches] == [16, 16, 16, 2]
        assert sorted(np.concatenate(batches)) == list(range(50))


def test_starting_anywhere_gives_what_would_have_come():
    plan = Plan((50, 33), 8, 3, 7)
    whole = list(plan.steps(0, 20))
    for start in range(20):
        for a, b in zip(plan.steps(start, 20), whole[start:], strict=True):
            assert [(s, rows.tolist()) for s, rows in a] == [(s, rows.tolist()) for s, rows in b]


def test_accumulation_ends_with_the_epoch():
    plan = Plan((50,), 16, 3, 42)  # 4 batches: a group of 3 and one of 1
    assert plan.steps_per_epoch == 2
    assert [len(step) for step in plan.steps(0, 4)] == [3, 1, 3, 1]


def test_several_sets_take_turns_until_the_first_is_exhausted():
    plan = Plan((40, 100), 16, 1, 42)
    assert plan.batches_per_epoch == 6
    steps = [step[0] for step in plan.steps(0, 6)]
    assert [source for source, _ in steps] == [0, 1, 0, 1, 0, 1]
    assert sorted(np.concatenate([rows for source, rows in steps if source == 0])) == list(range(40))


def test_deduplicate_keeps_first_appearances():
    distinct, inverse = deduplicate(["b", "a", "b", "", "a"])
    assert distinct == ["b", "a", ""]
    assert inverse.tolist() == [0, 1, 0, 2, 1]


def test_length_batches_hold_every_row_once_within_the_budget():
    lengths = np.random.default_rng(0).integers(2, 257, 1000)
    batches = length_batches(lengths, 4096)
    assert sorted(np.concatenate(batches)) == list(range(1000))
    assert all(len(rows) * lengths[rows].max() <= 4096 for rows in batches)
    assert all(lengths[a].min() >= lengths[b].max() for a, b in zip(batches, batches[1:], strict=False))
    assert max(map(len, length_batches(lengths, 4096, 3))) == 3
    assert [rows.tolist() for rows in length_batches(np.array([500, 9]), 100)] == [[0], [1]]
    assert length_batches(np.zeros(0, np.int64), 100) == []
