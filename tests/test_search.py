"""Exact search against the plain definition: every product in float64, rounded to float32, sorted;
ties by row."""

import resource
import sys

import numpy as np
import pytest
import torch

from minilm_retriever.errors import UserError
from minilm_retriever.search.exact import top_k
from minilm_retriever.search.index import find
from minilm_retriever.search.index_folder import open_index
from minilm_retriever.vectors.vector_folder import save_vectors


def plain_top_k(
    queries: np.ndarray, documents: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    products = [
        [(q.astype(np.float64) * d.astype(np.float64)).sum() for d in documents] for q in queries
    ]
    scores = np.array(products, np.float32)
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, axis=1), rows


def unit_rows(rng: np.random.Generator, rows: int, width: int) -> np.ndarray:
    x = rng.standard_normal((rows, width), dtype=np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("queries", "documents", "width", "k"),
    [
        (1, 500, 16, 10),
        (2, 500, 16, 1),
        (5, 300, 8, 100),
        (3, 40, 8, 40),
        (40, 130, 4, 7),
        (4, 1, 8, 1),
    ],
)
@pytest.mark.parametrize("block", [None, 32, 64])
def test_equals_the_definition(queries, documents, width, k, block):
    rng = np.random.default_rng(queries + documents)
    q, d = unit_rows(rng, queries, width), unit_rows(rng, documents, width)
    scores, rows = top_k(q, d, k, block=block)
    expected_scores, expected_rows = plain_top_k(q, d, k)
    assert (scores.dtype, rows.dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(scores, expected_scores, rtol=0, atol=1e-7)


@pytest.mark.parametrize("copies", [2, 9, 400])
def test_equal_documents_have_equal_scores_and_stand_in_order(copies):
    rng = np.random.default_rng(1)
    documents = unit_rows(rng, 1000, 24)
    twins = rng.choice(1000, copies, replace=False)
    documents[twins] = documents[twins[0]]
    queries = documents[twins[:1]] + 0.1 * unit_rows(rng, 3, 24)
    for block in (None, 96):
        scores, rows = top_k(queries, documents, 12, block=block)
        first = min(copies, 12)
        assert (scores[:, :first] == scores[:, :1]).all()
        assert (rows[:, :first] == np.sort(twins)[:first]).all()


def test_neither_blocks_nor_shards_nor_other_queries_change_anything():
    rng = np.random.default_rng(2)
    documents, queries = unit_rows(rng, 2000, 32), unit_rows(rng, 7, 32)
    scores, rows = top_k(queries, documents, 20)
    shards = np.split(documents, [0, 3, 3, 700, 1999])  # some of them empty, some smaller than k
    for same in (
        top_k(queries, documents, 20, block=128),
        top_k(queries, shards, 20),
        top_k(queries, shards, 20, block=256),
        top_k(torch.from_numpy(queries), torch.from_numpy(documents), 20),
        [
            np.concatenate(parts)
            for parts in zip(*(top_k(q[None], documents, 20) for q in queries), strict=True)
        ],
    ):
        np.testing.assert_array_equal(same[0], scores)
        np.testing.assert_array_equal(same[1], rows)


def test_best_documents_are_found_wherever_they_stand():
    rng = np.random.default_rng(3)
    documents, queries = unit_rows(rng, 5000, 16), unit_rows(rng, 3, 16)
    for where in (np.arange(5), np.arange(4995, 5000), np.array([0, 999, 1000, 1023, 4999])):
        planted = documents.copy()
        planted[where] = queries[0] * np.linspace(2, 3, 5, dtype=np.float32)[:, None]
        _, rows = top_k(queries, planted, 5, block=1024)
        assert rows[0].tolist() == where[::-1].tolist()


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8])
def test_other_dtypes_are_multiplied_as_they_are(dtype):
    rng = np.random.default_rng(4)
    queries, documents = unit_rows(rng, 4, 16), (unit_rows(rng, 300, 16) * 100).astype(dtype)
    scores, rows = top_k(queries, documents, 10, block=64)
    expected_scores, expected_rows = plain_top_k(queries, documents, 10)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-6)


def test_rows_that_do_not_lie_one_after_the_other():
    rng = np.random.default_rng(7)
    wide, queries = unit_rows(rng, 300, 32), unit_rows(rng, 20, 16)
    for documents in (wide[:, :16], wide[::2, 16:], np.asfortranarray(wide[:, :16])):
        for count in (1, 20):
            _, rows = top_k(queries[:count], documents, 5)
            np.testing.assert_array_equal(rows, plain_top_k(queries[:count], documents, 5)[1])


def test_scores_may_be_large_small_negative_or_zero():
    documents = np.array([[-3e8], [-1], [-1e-30], [0], [0]], np.float32)
    scores, rows = top_k(np.ones((1, 1), np.float32), documents, 4)
    assert rows.tolist() == [[3, 4, 2, 1]]
    assert scores.tolist() == [[0, 0, np.float32(-1e-30), -1]]
    _, rows = top_k(np.array([[-1.0]], np.float32), documents, 5)
    assert rows.tolist() == [[0, 1, 2, 3, 4]]
    assert top_k(np.zeros((1, 1), np.float32), documents, 2)[1].tolist() == [[0, 1]]


def test_fewer_documents_or_queries_than_asked_for():
    queries = np.ones((2, 3), np.float32)
    assert top_k(queries, np.ones((4, 3), np.float32), 10)[1].tolist() == [[0, 1, 2, 3]] * 2
    for nothing in (np.ones((0, 3), np.float32), [], [np.ones((0, 3), np.float32)]):
        scores, rows = top_k(queries, nothing, 10)
        assert scores.shape == rows.shape == (2, 0)
    assert top_k(queries[:0], np.ones((4, 3), np.float32), 2)[0].shape == (0, 2)


def test_a_memory_mapped_file_is_never_held_whole(tmp_path):
    path = tmp_path / "vectors.npy"
    rng = np.random.default_rng(5)
    documents = unit_rows(rng, 4000, 64)
    np.save(path, documents)
    mapped = np.load(path, mmap_mode="r")
    queries = unit_rows(rng, 3, 64)
    scores, rows = top_k(queries, mapped, 5)
    np.testing.assert_array_equal(rows, plain_top_k(queries, documents, 5)[1])
    assert scores.shape == (3, 5)


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="ru_maxrss counts kB on Linux alone"
)
def test_the_scores_are_never_held_whole():
    rng = np.random.default_rng(6)
    documents, queries = unit_rows(rng, 200_000, 8), unit_rows(rng, 400, 8)  # 320 MB of scores
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    top_k(queries, documents, 3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000


def test_a_corpus_of_equal_documents_is_searched_like_any_other():
    scores, rows = top_k(np.ones((2, 4), np.float32), np.ones((100_000, 4), np.float32), 3)
    assert rows.tolist() == [[0, 1, 2]] * 2 and (scores == 4).all()


@pytest.mark.parametrize(
    ("queries", "documents", "k", "message"),
    [
        (
            np.ones((1, 768), np.float32),
            np.ones((2, 384), np.float32),
            1,
            "768 dimensions and the documents 384",
        ),
        (np.ones(384, np.float32), np.ones((2, 384), np.float32), 1, r"shape \(384,\)"),
        (np.ones((1, 8), np.float32), np.ones((2, 8), np.uint8), 1, "uint8"),
        (np.ones((1, 8), np.float32), np.ones(8, np.float32), 1, r"shape \(8,\)"),
        (np.ones((1, 8), np.float32), np.ones((2, 8), np.float32), 0, "at least 1"),
        (np.full((1, 8), np.nan, np.float32), np.ones((2, 8), np.float32), 1, "query 0"),
        (np.ones((1, 8), np.float32), np.full((2, 8), np.nan, np.float32), 1, "rows 0 to 1"),
        (np.ones((1, 8), np.float32), np.full((90, 8), np.inf, np.float32), 1, "rows 0 to 89"),
    ],
)
def test_what_cannot_be_searched_is_one_line(queries, documents, k, message):
    with pytest.raises(UserError, match=message):
        top_k(queries, documents, k)


def test_one_damaged_document_among_many_is_noticed():
    documents = np.ones((3000, 8), np.float32)
    documents[2500, 3] = np.nan
    with pytest.raises(UserError, match="rows 2048 to 2999: not a finite number"):
        top_k(np.ones((1, 8), np.float32), documents, 2, block=1024)


def test_an_index_gives_ids_and_texts(tmp_path):
    texts = ["an apple", "a bee", "a cat"]
    save_vectors(tmp_path / "v", ["a", "b", "c"], texts, np.eye(3, dtype=np.float32), model="m")
    index = open_index(tmp_path / "v")
    queries = np.array([[0.1, 0.9, 0.5], [1, 0, 0]], np.float32)
    first, second = find(index, queries, 2)
    assert [(hit.id, hit.text) for hit in first] == [("b", "a bee"), ("c", "a cat")]
    assert first[0].score == pytest.approx(0.9) and second[0].id == "a"
    assert [len(hits) for hits in find(index, queries, 10)] == [3, 3]
    scores, rows = index.search(queries, 1)
    assert scores.shape == (2, 1) and rows.tolist() == [[1], [0]]
