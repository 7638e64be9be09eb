"""Batches on a CPU with several cores: one for each core, as on one."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minilm_retriever.encoder import encode_texts as module
from minilm_retriever.encoder.encode_texts import Batches
from minilm_retriever.encoder.parallel import on_cores
from tests.texts import varied_texts


def threads_of_new_thread() -> int:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()


@pytest.mark.parametrize("count", [2, 30, 200])
def test_the_vectors_are_those_of_one_core(base, count):
    texts = varied_texts(count)
    torch.set_num_threads(1)
    expected = base.encode(texts)
    torch.set_num_threads(3)
    given = base.encode(texts)
    np.testing.assert_allclose(given, expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(base.encode(texts), given)  # in every run
    assert (torch.get_num_threads(), threads_of_new_thread()) == (3, 3)


@given(
    lengths=st.lists(st.integers(0, 256), min_size=1, max_size=300),
    cores=st.integers(1, 9),
    texts=st.none() | st.integers(1, 40),
)
def test_each_core_has_a_batch_and_each_row_is_in_one(tiny, lengths, cores, texts):
    torch.set_num_threads(cores)
    batches = Batches(tiny.model.encoder, None, batch_size=texts)
    rows = batches.batches(np.array(lengths, np.int64))
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(lengths)))
    assert all(0 < len(batch) <= (texts or len(lengths)) for batch in rows)
    assert all(
        len(b) * max(lengths[i] for i in b) <= module.BATCH_TOKENS for b in rows if len(b) > 1
    )
    if max(lengths) <= module.LEAST_TOKENS:  # longer ones cannot be divided
        assert len(rows) >= min(cores, sum(lengths) // module.LEAST_TOKENS // 2, len(lengths))


def test_so_many_at_a_time_as_there_are_threads_which_they_share():
    torch.set_num_threads(4)
    seen, together = set(), threading.Barrier(2, timeout=20)

    def work(item):
        together.wait()
        seen.add((threading.current_thread().name, torch.get_num_threads()))
        return item * item

    assert list(on_cores(work, range(2), 2)) == [0, 1]
    assert len(seen) == 2 and {share for _, share in seen} == {2}
    assert torch.get_num_threads() == 4


def test_a_fault_arrives_and_leaves_the_threads_as_they_were():
    torch.set_num_threads(2)

    def work(item):
        if item == 5:
            raise KeyError("the fifth")
        return item

    results = on_cores(work, range(1000), 9)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(KeyError, match="the fifth"):
        next(results)
    assert (torch.get_num_threads(), threads_of_new_thread()) == (2, 2)


def test_what_does_not_fit_is_halved_on_each_core(tiny, monkeypatch):
    texts = varied_texts(300)
    expected = tiny.encode(texts)
    torch.set_num_threads(2)
    embed, sizes = Batches.embed, []

    def small(batches, tokens, rows):
        if len(rows) * int(tokens.lengths_of(rows).max()) > 200 and len(rows) > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        sizes.append(len(rows))
        return embed(batches, tokens, rows)

    monkeypatch.setattr(Batches, "embed", small)
    with pytest.warns(UserWarning, match="do not fit in memory"):
        given = tiny.encode(texts)
    np.testing.assert_allclose(given, expected, rtol=0, atol=1e-6)
    assert sum(sizes) == len(set(texts))
