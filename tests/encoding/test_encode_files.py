"""Bulk encoding: from files of texts to a folder of vectors."""

from __future__ import annotations

import io
import random
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from minilm_retriever.errors import UserError
from minilm_retriever.vectors import shards
from minilm_retriever.vectors.quantization import Ranges, calibrate, quantize
from minilm_retriever.vectors.vector_folder import open_vectors
from tests.encoding.files import contents, killed_after, whole, write_lines, write_rows
from tests.test_shards import FORMATS
from tests.texts import varied_texts


def test_order_ids_and_texts_are_exact_on_shuffled_repeated_empty_and_very_long_texts(run, tiny):
    texts = [text for text in varied_texts(120) if "\x00" not in text] * 2
    random.Random(0).shuffle(texts)
    run(write_rows("in.jsonl.gz", texts), text="body", id="doc_id", shard_size=50)
    vectors = open_vectors(Path("v"))
    assert list(vectors) == [(f"a{i}", text) for i, text in enumerate(texts)]
    assert vectors.rows([101]) == [("a101", texts[101])] and len(vectors) == len(texts)
    assert np.abs(whole(vectors) - tiny.encode(texts)).max() <= 1e-6
    assert [len(shard) for shard in vectors.shards] == [50, 50, 50, 50, len(texts) - 200]
    assert vectors.info["distinct"] < len(texts)


def test_ids_are_row_numbers_over_all_inputs_and_a_template_joins_columns(run, tiny):
    Path("a.csv").write_text("title,body\ncook,in a kitchen\nnurse,on a ward\n", "utf-8")
    Path("b.csv").write_text("title,body\nbaker,of bread\n", "utf-8")
    run("a.csv", "b.csv", template="{title}: {body}")
    assert list(open_vectors(Path("v"))) == [
        ("0", "cook: in a kitchen"),
        ("1", "nurse: on a ward"),
        ("2", "baker: of bread"),
    ]


def test_standard_input(run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\n\ntwo\n"), "utf-8"))
    run("-", shard_size=2)
    assert list(open_vectors(Path("v"))) == [("0", "one"), ("1", ""), ("2", "two")]


def test_one_npy_holds_what_the_shards_would(run):
    source = write_lines("in.txt", [f"text {n}" for n in range(11)])
    run(source, shard_size=4)
    run(source, shard_size=4, out="one.npy")
    np.testing.assert_array_equal(np.load("one.npy"), whole(open_vectors(Path("v"))))
    assert list(open_vectors(Path("one.npy"))) == list(open_vectors(Path("v")))
    assert not Path("one.npy.run").exists()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "binary"])
def test_every_format_and_dtype_holds_the_same_vectors(run, tiny, format, dtype):
    texts = [f"text {n}" for n in range(9)]
    run(write_lines("in.txt", texts), shard_size=5, shard_format=format, dtype=dtype)
    vectors = open_vectors(Path("v"))
    floats = np.concatenate([tiny.encode(texts[:5]), tiny.encode(texts[5:])])
    expected = quantize(floats, dtype, calibrate(floats[:5]) if dtype == "int8" else None)
    np.testing.assert_array_equal(whole(vectors), expected)
    assert list(vectors) == [(str(n), text) for n, text in enumerate(texts)]
    if dtype != "binary":
        np.testing.assert_allclose(vectors.floats(vectors.shards[0]), floats[:5], atol=2e-3)


def test_other_tools_open_the_shards(run):
    import safetensors.numpy

    parquet = pytest.importorskip("pyarrow.parquet")
    source = write_lines("in.txt", ["one", "two", "three"])
    for format in FORMATS:
        run(source, out=format, shard_format=format)
    plain = np.load("npy/vectors-00000.npy", allow_pickle=False)
    np.testing.assert_array_equal(
        safetensors.numpy.load_file("safetensors/vectors-00000.safetensors")["vectors"], plain
    )
    table = parquet.read_table("parquet/vectors-00000.parquet")
    assert table.column_names == ["id", "text", "vector"] and table["text"].to_pylist() == [
        "one",
        "two",
        "three",
    ]
    np.testing.assert_array_equal(np.array(table["vector"].to_pylist(), np.float32), plain)


def test_dimensions_keep_a_unit_prefix(run, tiny):
    run(write_lines("in.txt", ["one", "two"]), dimensions=8)
    prefix = tiny.encode(["one", "two"])[:, :8]
    expected = prefix / np.linalg.norm(prefix, axis=1, keepdims=True)
    np.testing.assert_allclose(whole(open_vectors(Path("v"))), expected, atol=1e-6)
    with pytest.raises(UserError, match="--dimensions must be at most the model's 32, not 33"):
        run("in.txt", out="w", dimensions=33)
    with pytest.raises(UserError, match="binary needs a multiple of 8 dimensions, not 12"):
        run("in.txt", out="w", dimensions=12, dtype="binary")


def test_int8_ranges_come_from_the_first_shard_or_from_texts_that_are_named(run, tiny):
    texts = [f"text {n}" for n in range(20)]
    source = write_lines("in.txt", texts)
    summary = run(source, dtype="int8", shard_size=4)
    assert "of the values outside int8's ranges" in summary
    vectors = open_vectors(Path("v"))
    np.testing.assert_array_equal(vectors.ranges.low, tiny.encode(texts[:4]).min(axis=0))
    summary = run(source, out="w", dtype="int8", shard_size=20, calibrate=source)
    assert "outside" not in summary
    ranges = open_vectors(Path("w")).ranges
    assert isinstance(ranges, Ranges) and (ranges.low <= vectors.ranges.low).all()


def test_int8_never_goes_on_without_the_ranges_that_it_began_with(run, monkeypatch):
    source = write_lines("in.txt", [f"text {n}" for n in range(9)])
    killed_after(monkeypatch, 1, lambda: run(source, dtype="int8", shard_size=3))
    Path("v.run/unfinished/ranges.json").unlink()
    with pytest.raises(UserError, match="shard 1 needs the int8 ranges"):
        run(source, dtype="int8", shard_size=3)


def test_texts_can_be_left_out(run):
    run(write_lines("in.txt", ["one", "two"]), texts=False)
    assert list(open_vectors(Path("v"))) == [("0", ""), ("1", "")]
    assert b"one" not in b"".join(contents("v").values())


def test_a_prompt_goes_before_each_text_and_stands_in_the_manifest(run, tiny):
    run(write_lines("in.txt", ["one", "two"]), prompt="query: ")
    vectors = open_vectors(Path("v"))
    np.testing.assert_array_equal(whole(vectors), tiny.encode(["query: one", "query: two"]))
    assert vectors.info["text_policy"]["prompt"] == "query: " and list(vectors)[0] == ("0", "one")


def test_a_shard_of_very_long_texts_ends_early(run, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_CHARACTERS", 100)
    run(write_lines("in.txt", ["x" * 60] * 4 + ["short"]))
    assert open_vectors(Path("v")).info["shards"] == [2, 2, 1]


def test_memory_holds_a_shard_and_not_the_input(run, light):
    def peak(rows: int) -> int:
        source = write_lines(f"{rows}.txt", [f"{n} " + "word " * 2000 for n in range(rows)])
        tracemalloc.start()
        run(source, out=f"{rows}", shard_size=20)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(20)  # imports and caches
    assert peak(300) < 1.1 * peak(110)


def test_a_vector_that_is_not_finite_is_never_written(run, tiny, monkeypatch):
    forward = tiny.model.encoder.forward
    monkeypatch.setattr(
        tiny.model.encoder,
        "forward",
        lambda *a, **k: forward(*a, **k).index_fill(0, torch.tensor(1), np.nan),
    )
    with pytest.raises(UserError, match="the vector of row '[01]' is not finite"):
        run(write_lines("in.txt", ["one", "two"]))
    assert not Path("v").exists()


def test_a_cache_saves_texts_of_other_shards_and_runs(run, tiny, monkeypatch):
    source = write_lines("in.txt", ["one", "two", "three", "one", "four", "two"])
    run(source)
    assert "2 from the cache" in run(source, out="w", cache="c", shard_size=3)
    monkeypatch.setattr(tiny.model.encoder, "forward", None)  # not called any more
    assert "6 from the cache" in run(source, out="x", cache="c", shard_size=3, dimensions=16)
    plain, cached = open_vectors(Path("v")), open_vectors(Path("w"))
    assert np.abs(whole(plain) - whole(cached)).max() <= 1e-6
    assert cached.info["cache"] and not plain.info["cache"]
