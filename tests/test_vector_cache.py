"""Vectors of texts across shards and runs."""

from __future__ import annotations

import sqlite3

import numpy as np
import pytest

from minilm_retriever.encoding.vector_cache import VectorCache
from minilm_retriever.errors import UserError

TEXTS = [f"text {n}" for n in range(10)]
VECTORS = np.random.default_rng(0).standard_normal((10, 4)).astype(np.float32)


@pytest.fixture()
def cache(tmp_path):
    return VectorCache(tmp_path / "cache", "a model", 4)


def test_what_was_put_in_is_found_also_by_another_process(cache, tmp_path):
    cache.put(TEXTS[:7], VECTORS[:7])
    again = VectorCache(tmp_path / "cache", "a model", 4)
    vectors = again.get(["new", *TEXTS[::-1]])
    assert sorted(vectors) == [4, 5, 6, 7, 8, 9, 10]
    for row, vector in vectors.items():
        np.testing.assert_array_equal(vector, VECTORS[10 - row])


def test_another_model_finds_nothing(cache, tmp_path):
    cache.put(TEXTS, VECTORS)
    assert VectorCache(tmp_path / "cache", "another model", 4).get(TEXTS) == {}


def test_a_text_put_in_twice_has_its_last_vector(cache):
    cache.put(TEXTS[:1], VECTORS[:1])
    cache.put(TEXTS[:1], VECTORS[1:2])
    np.testing.assert_array_equal(cache.get(TEXTS[:1])[0], VECTORS[1])


def test_a_damaged_vector_is_not_found(cache):
    cache.put(TEXTS[:2], VECTORS[:2])
    with sqlite3.connect(cache.path) as connection:
        (key, kept), *_ = connection.execute("SELECT text, vector FROM vectors").fetchall()
        connection.execute(
            "UPDATE vectors SET vector = ? WHERE text = ?", (kept[:3] + b"\x00" + kept[4:], key)
        )
    connection.close()
    assert len(cache.get(TEXTS[:2])) == 1


def test_a_file_that_is_no_cache_is_one_line(cache):
    cache.path.write_bytes(b"not a database" * 100)
    with pytest.raises(
        UserError, match=r"\.sqlite: the cache cannot be used .*: delete it, or leave out --cache"
    ):
        cache.get(TEXTS)
