"""Vectors of every dtype are searched as float64 brute force searches what they keep."""

from __future__ import annotations

import numpy as np
import pytest

from minilm_retriever.errors import UserError
from minilm_retriever.search.exact import nearest_bits, top_k
from minilm_retriever.search.index import find
from minilm_retriever.search.index_folder import make_index, open_index
from minilm_retriever.vectors.vector_folder import open_vectors, save_vectors
from tests.unit_vectors import MODEL, H, best, save, unit_rows


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("count", [1, 3, 40])
def test_every_dtype_is_searched_as_the_vectors_that_it_keeps(tmp_path, dtype, count):
    vectors = open_vectors(save(tmp_path / "v", unit_rows(0, 345), dtype=dtype))
    stored = np.concatenate([vectors.floats(shard) for shard in vectors.shards])
    queries = unit_rows(1, count)
    scores, rows = open_index(tmp_path / "v").search(queries, 7)
    expected, right = best(queries, stored, 7)
    np.testing.assert_array_equal(rows, right)
    np.testing.assert_allclose(scores, expected, atol=1e-6)


@pytest.mark.parametrize("width", [8, 48, 64, 96])
@pytest.mark.parametrize("count", [1, 5, 30])
@pytest.mark.parametrize("block", [None, 64])
def test_bits_choose_the_documents_that_differ_in_the_fewest(width, count, block):
    documents, queries = (
        np.packbits(unit_rows(seed, n, width) > 0, axis=1) for seed, n in ((0, 500), (1, count))
    )
    differing = np.unpackbits(documents[None] ^ queries[:, None], axis=2).sum(
        axis=2, dtype=np.int64
    )
    right = np.argsort(differing, axis=1, kind="stable")
    shards = [documents[:3], documents[3:200], documents[200:]]
    np.testing.assert_array_equal(nearest_bits(queries, shards, 20, block=block), right[:, :20])
    gone = np.unique(right[:, :4])
    left = np.array(
        [[row for row in found if row not in set(gone.tolist())] for found in right.tolist()]
    )
    np.testing.assert_array_equal(
        nearest_bits(queries, shards, 9, without=gone, block=block), left[:, :9]
    )


def test_binary_vectors_are_ranked_by_the_querys_own_numbers(tmp_path):
    x, queries = unit_rows(0, 90), unit_rows(1, 4)
    save(tmp_path / "bits", x, dtype="binary")
    scores, rows = open_index(tmp_path / "bits").search(
        queries, 10
    )  # all 90 are candidates: the order is exact
    expected, right = best(queries, np.where(x > 0, 1, -1) / np.sqrt(H), 10)
    np.testing.assert_array_equal(rows, right)
    np.testing.assert_allclose(scores, expected, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_binary_vectors_may_be_ranked_by_finer_ones(tmp_path, dtype):
    x, queries = unit_rows(0, 95), unit_rows(1, 4)
    save(tmp_path / "bits", x, dtype="binary")
    fine = open_vectors(save(tmp_path / "fine", x, dtype=dtype))
    scores, rows = open_index(tmp_path / "bits", finer=tmp_path / "fine").search(queries, 10)
    expected, right = best(
        queries, np.concatenate([fine.floats(shard) for shard in fine.shards]), 10
    )
    np.testing.assert_array_equal(rows, right)
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    with pytest.raises(UserError, match="only binary vectors"):
        open_index(tmp_path / "fine", finer=tmp_path / "bits")
    with pytest.raises(UserError, match="searched exactly: --effort is for hnsw and ivfpq"):
        open_index(tmp_path / "fine", effort=5)
    save(tmp_path / "fewer", x[:90])
    with pytest.raises(UserError, match="90 rows, not 95"):
        open_index(tmp_path / "bits", finer=tmp_path / "fewer")


def test_rows_left_out_are_never_found():
    x, queries = unit_rows(0, 300), unit_rows(1, 20)
    for without in ([0], [5, 6, 299], range(0, 300, 2), range(20, 300)):
        gone = np.array(without)
        for count, block in ((1, None), (20, 32)):
            scores, rows = top_k(queries[:count], x, 30, without=gone, block=block)
            k = min(30, 300 - len(gone))
            np.testing.assert_array_equal(rows, best(queries[:count], x, k, gone)[1])
            assert np.isfinite(scores).all() and scores.shape == (count, k)
    assert top_k(queries, x, 5, without=np.arange(300))[0].shape == (20, 0)


def test_a_folder_of_vectors_is_an_index_too(tmp_path):
    texts = ["an apple", "a bee", "a cat"]
    save_vectors(tmp_path / "v", ["a", "b", "c"], texts, np.eye(3, dtype=np.float32), model=MODEL)
    index = open_index(tmp_path / "v")
    hits = find(index, np.array([[0, 1, 0.5]], np.float32), 2)
    assert [(hit.id, hit.text, hit.score) for hit in hits[0]] == [
        ("b", "a bee", 1),
        ("c", "a cat", 0.5),
    ]


def test_queries_of_another_width_are_refused(tmp_path):
    save(tmp_path / "v", unit_rows(0, 5))
    for folder in (tmp_path / "v", make_index(tmp_path / "v", tmp_path / "i", kind="hnsw").folder):
        with pytest.raises(UserError, match="16 dimensions and the vectors in .* 32"):
            open_index(folder).search(unit_rows(0, 1, 16), 3)
