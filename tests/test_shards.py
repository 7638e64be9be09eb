"""Which rows make a shard, and its files. What a whole run makes of them stands in
tests/encoding."""

from __future__ import annotations

import json

import numpy as np
import pytest

from minilm_retriever.errors import UserError
from minilm_retriever.vectors import shards
from minilm_retriever.vectors.shards import (
    Shard,
    make_shards,
    open_shard,
    read_ids_texts,
    write_shard,
)

FORMATS = ("npy", "safetensors", "parquet")
VECTORS = np.arange(12, dtype=np.float32).reshape(3, 4)
IDS, TEXTS = ["a", 'b"\n', "ü"], ["one", "two\nlines\u2028", "\x00 中 😀"]


def test_rows_are_grouped_in_order():
    records = [(str(n), f"text {n}") for n in range(7)]
    grouped = list(make_shards(records, 3))
    assert [(s.number, s.start, len(s.ids)) for s in grouped] == [(0, 0, 3), (1, 3, 3), (2, 6, 1)]
    assert [i for s in grouped for i in s.ids] == [str(n) for n in range(7)]
    assert list(make_shards([], 3)) == []
    with pytest.raises(UserError, match="at least 1 row, not 0"):
        list(make_shards(records, 0))


def test_a_digest_tells_where_one_text_ends_and_the_next_begins():
    digests = {
        Shard(0, 0, ids, texts).sha256()
        for ids, texts in (
            (["a", "b"], ["c", "d"]),
            (["a", "b"], ["cd", ""]),
            (["ab", ""], ["c", "d"]),
            (["a"], ["c"]),
        )
    }
    assert len(digests) == 4


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", [np.float32, np.float16, np.int8, np.uint8])
def test_what_is_written_is_read(tmp_path, format, kind):
    entries = write_shard(tmp_path, 7, IDS, TEXTS, VECTORS.astype(kind), format)
    assert sorted(entries) == sorted(
        p.name for p in tmp_path.iterdir() if not p.name.startswith(".")
    )
    names = shards.file_names(7, format)
    np.testing.assert_array_equal(
        open_shard(tmp_path / names[0], kind, (3, 4)), VECTORS.astype(kind)
    )
    assert read_ids_texts(tmp_path / names[-1], [2, 0, 1]) == [
        (IDS[n], TEXTS[n]) for n in (2, 0, 1)
    ]


@pytest.mark.parametrize("format", FORMATS)
def test_without_texts(tmp_path, format):
    write_shard(tmp_path, 0, IDS, None, VECTORS, format)
    assert read_ids_texts(tmp_path / shards.file_names(0, format)[-1], [1]) == [('b"\n', "")]


def test_a_line_is_a_row_whatever_is_in_the_text(tmp_path):
    write_shard(tmp_path, 0, IDS, TEXTS, VECTORS)
    lines = (tmp_path / "rows-00000.jsonl").read_text("ascii").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"id": i, "text": t} for i, t in zip(IDS, TEXTS, strict=True)
    ]


def test_npy_headers_have_one_length(tmp_path):
    for rows in (1, 10**12):
        assert len(shards.npy_header(np.float16, (rows, 384))) == 128


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_a_file_cut_short_is_one_line(tmp_path, format, keep):
    write_shard(tmp_path, 0, IDS, TEXTS, VECTORS, format)
    path = tmp_path / shards.file_names(0, format)[0]
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=f"{path}: holds no vectors that can be read"):
        open_shard(path, np.float32, (3, 4))


def test_another_type_or_shape_is_named(tmp_path):
    write_shard(tmp_path, 0, IDS, TEXTS, VECTORS)
    for kind, shape in ((np.float16, (3, 4)), (np.float32, (3, 5)), (np.float32, (2, 4))):
        with pytest.raises(UserError, match=r"holds float32 of shape \(3, 4\), not float"):
            open_shard(tmp_path / "vectors-00000.npy", kind, shape)


def test_rows_of_a_file_that_was_replaced_are_the_new_ones(tmp_path):
    write_shard(tmp_path, 0, ["a", "b"], ["one", "two"], VECTORS[:2])
    assert read_ids_texts(tmp_path / "rows-00000.jsonl", [1]) == [("b", "two")]
    write_shard(tmp_path, 0, ["long id", "d"], ["a longer text", "four"], VECTORS[:2])
    assert read_ids_texts(tmp_path / "rows-00000.jsonl", [1]) == [("d", "four")]
