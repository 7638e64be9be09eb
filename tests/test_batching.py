"""training/batches.py: order, position, length batches."""

from __future__ import annotations

import numpy as np
import torch

from minilm_retriever.data.distinct import deduplicate
from minilm_retriever.encoder.encode_texts import length_batches
from minilm_retriever.training.batches import BatchSampler, shuffle


def test_the_order_of_an_epoch_is_sentence_transformers():
    for epoch in (0, 1, 5):
        generator = torch.Generator().manual_seed(42 + epoch)
        assert (
            shuffle([100], 42, epoch)[0].tolist()
            == torch.randperm(100, generator=generator).tolist()
        )


def test_the_order_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    shuffle([100, 20], 1, 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_row_once_an_epoch_and_a_ragged_last_batch():
    sampler = BatchSampler((50,), 16, 1, 42)
    assert (sampler.batches_per_epoch, sampler.steps_per_epoch) == (4, 4)
    for epoch in range(3):
        batches = [batch for step in sampler.steps(4 * epoch, 4 * epoch + 4) for _, batch in step]
        assert [len(batch) for batch in batches] == [16, 16, 16, 2]
        assert sorted(np.concatenate(batches)) == list(range(50))


def test_starting_anywhere_gives_what_would_have_come():
    sampler = BatchSampler((50, 33), 8, 3, 7)
    whole = list(sampler.steps(0, 20))
    for start in range(20):
        for a, b in zip(sampler.steps(start, 20), whole[start:], strict=True):
            assert [(s, rows.tolist()) for s, rows in a] == [(s, rows.tolist()) for s, rows in b]


def test_accumulation_ends_with_the_epoch():
    sampler = BatchSampler((50,), 16, 3, 42)  # 4 batches: a group of 3 and one of 1
    assert sampler.steps_per_epoch == 2
    assert [len(step) for step in sampler.steps(0, 4)] == [3, 1, 3, 1]


def test_several_sets_take_turns_until_the_first_is_exhausted():
    sampler = BatchSampler((40, 100), 16, 1, 42)
    assert sampler.batches_per_epoch == 6
    steps = [step[0] for step in sampler.steps(0, 6)]
    assert [source for source, _ in steps] == [0, 1, 0, 1, 0, 1]
    assert sorted(np.concatenate([rows for source, rows in steps if source == 0])) == list(
        range(40)
    )


def test_deduplicate_keeps_first_appearances():
    distinct, inverse = deduplicate(["b", "a", "b", "", "a"])
    assert distinct == ["b", "a", ""]
    assert inverse.tolist() == [0, 1, 0, 2, 1]


def test_length_batches_hold_every_row_once_within_the_budget():
    lengths = np.random.default_rng(0).integers(2, 257, 1000)
    batches = length_batches(lengths, 4096)
    assert sorted(np.concatenate(batches)) == list(range(1000))
    assert all(len(rows) * lengths[rows].max() <= 4096 for rows in batches)
    assert all(
        lengths[a].min() >= lengths[b].max() for a, b in zip(batches, batches[1:], strict=False)
    )
    assert max(map(len, length_batches(lengths, 4096, 3))) == 3
    assert [rows.tolist() for rows in length_batches(np.array([500, 9]), 100)] == [[0], [1]]
    assert length_batches(np.zeros(0, np.int64), 100) == []


def drawn_apart(texts, batch_size, epoch=0):
    """An epoch's batches, each checked: no text in two rows."""
    sampler = BatchSampler((len(texts),), batch_size, 1, 42, (texts,))
    batches = [batch for step in sampler.steps(0, sampler.steps_per_epoch) for _, batch in step]
    assert len(batches) == -(-len(texts) // batch_size)
    for batch in batches:
        held = [text for row in texts[batch] for text in set(row.tolist())]
        assert len(held) == len(set(held))
        assert 1 <= len(batch) <= batch_size
    rows = np.concatenate(batches)
    assert len(rows) == len(set(rows.tolist()))
    return rows, len(texts) - len(rows)


def test_apart_takes_every_row_once_and_no_text_twice():
    rng = np.random.default_rng(0)
    for queries, documents in [
        (40, 40),
        (320, 17),
        (17, 320),
        (320, 16),
        (24, 24),
    ]:  # how many are distinct
        texts = np.stack(
            [rng.permutation(320) % queries, 1000 + rng.permutation(320) % documents], axis=1
        )
        assert len(drawn_apart(texts, 16)[0]) == 320


def test_apart_without_repeats_is_the_plain_order():
    texts = np.arange(100).reshape(50, 2)
    assert drawn_apart(texts, 16)[0].tolist() == shuffle([50], 42, 0)[0].tolist()


def test_apart_leaves_out_exactly_what_no_batch_can_take_and_says_how_many():
    documents = np.where(
        np.arange(1000) < 400, 0, np.arange(1000)
    )  # one document in 400 rows, 100 batches
    texts = np.stack([2000 + np.arange(1000), documents], axis=1)
    rows, left_out = drawn_apart(texts, 10)
    assert left_out == 300 == 1000 - len(rows)
    assert drawn_apart(np.zeros((20, 2), np.int64), 10)[1] == 18


def test_apart_is_a_function_of_seed_and_epoch():
    texts = np.random.default_rng(1).integers(0, 60, (300, 3))
    sampler = BatchSampler((300,), 8, 3, 7, (texts,))
    whole = list(sampler.steps(0, 40))
    for start in (1, 12, 13, 30):
        for a, b in zip(sampler.steps(start, 40), whole[start:], strict=True):
            assert [(s, rows.tolist()) for s, rows in a] == [(s, rows.tolist()) for s, rows in b]
    first, second = (
        [b.tolist() for step in sampler.steps(13 * e, 13 * e + 13) for _, b in step] for e in (0, 1)
    )
    assert first != second
