"""What holds for any input: batches, token ids, readers, published folders. The same examples in
every run."""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minilm_retriever.data import pairs, texts
from minilm_retriever.data.distinct import deduplicate
from minilm_retriever.encoder.encode_texts import length_batches
from minilm_retriever.errors import UserError
from minilm_retriever.formats import rows
from minilm_retriever.storage import atomic_folders, manifest
from minilm_retriever.training.batches import BatchSampler

fixed = settings(derandomize=True, deadline=None, max_examples=60, database=None)
few = settings(fixed, max_examples=30)
text = st.text(st.characters(codec="utf-8"), max_size=40)


@pytest.fixture(scope="module")
def place():
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        yield Path(name)


class TestBatching:
    @fixed
    @given(
        st.lists(st.integers(0, 300), max_size=80),
        st.integers(1, 2000),
        st.none() | st.integers(1, 9),
    )
    def test_length_batches_take_every_row_once_and_keep_to_their_budget(
        self, lengths, tokens, texts
    ):
        batches = length_batches(np.array(lengths, np.int64), tokens, texts)
        assert sorted(int(row) for batch in batches for row in batch) == list(range(len(lengths)))
        for batch in batches:
            longest = max(lengths[row] for row in batch)
            assert len(batch) == 1 or (
                len(batch) * longest <= tokens and len(batch) <= (texts or len(batch))
            )

    @fixed
    @given(
        st.lists(st.integers(1, 40), min_size=1, max_size=3),
        st.integers(1, 9),
        st.integers(1, 4),
        st.integers(0, 99),
    )
    def test_an_epoch_takes_no_row_twice_and_resuming_anywhere_changes_nothing(
        self, sizes, size, accumulation, seed
    ):
        sampler = BatchSampler(tuple(sizes), size, accumulation, seed)
        total = 2 * sampler.steps_per_epoch
        whole = list(sampler.steps(0, total))
        first = [
            (source, int(row))
            for step in whole[: total // 2]
            for source, batch in step
            for row in batch
        ]
        assert len(set(first)) == len(first) and (len(sizes) > 1 or len(first) == sizes[0])
        middle = seed % total
        again = list(sampler.steps(middle, total))
        for mine, theirs in zip(again, whole[middle:], strict=True):
            assert [(s, batch.tolist()) for s, batch in mine] == [
                (s, batch.tolist()) for s, batch in theirs
            ]

    @fixed
    @given(st.lists(text, max_size=30))
    def test_distinct_texts_come_back_in_their_places(self, texts):
        distinct, inverse = deduplicate(texts)
        assert len(set(distinct)) == len(distinct) and [distinct[i] for i in inverse] == texts


class TestTokenisation:
    @fixed
    @given(st.lists(st.text(max_size=60), min_size=1, max_size=6))
    def test_any_string_has_ids_within_limit_and_vocabulary_or_is_refused_by_its_place(
        self, tiny, texts
    ):
        tokenizer = tiny.model.tokenizer
        broken = [i for i, t in enumerate(texts) if any(0xD800 <= ord(c) < 0xE000 for c in t)]
        if broken:
            with pytest.raises(UserError, match=rf"^text {broken[0]} holds a lone surrogate"):
                tokenizer.tokenize(texts)
            return
        tokens = tokenizer.tokenize(texts)
        assert (
            len(tokens) == len(texts)
            and (tokens.lengths >= 2).all()
            and (tokens.lengths <= 64).all()
        )
        assert ((tokens.ids >= 0) & (tokens.ids < tokenizer.vocab_size)).all()
        alone = [tokenizer.tokenize([t]).ids.tolist() for t in texts]
        ids, mask = tokens.batch(range(len(texts)))
        assert [row[m.bool()].tolist() for row, m in zip(ids, mask, strict=True)] == alone

    @few
    @given(text, st.integers(1, 400))
    def test_a_cut_text_has_the_ids_of_the_whole(self, tiny, piece, times):
        tokenizer = tiny.model.tokenizer
        whole = f"{piece} nurse " * times
        expected = tokenizer.untruncated.encode(whole.strip(), add_special_tokens=False).ids[:62]
        assert tokenizer.tokenize([whole]).ids.tolist()[1:-1] == expected

    @few
    @given(st.lists(text, min_size=1, max_size=5))
    def test_vectors_are_finite_and_of_unit_length(self, tiny, texts):
        lengths = np.linalg.norm(tiny.encode(texts), axis=1)
        assert np.isfinite(lengths).all() and np.abs(lengths - 1).max() <= 1e-5


class TestReaders:
    @fixed
    @given(
        st.lists(st.tuples(text, text), min_size=1, max_size=6),
        st.sampled_from(["csv", "tsv"]),
        st.data(),
    )
    def test_a_damaged_table_is_read_or_refused_by_its_name(self, place, table, kind, drawn):
        path = place / f"a.{kind}"
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter="," if kind == "csv" else "\t").writerows(
                [("a", "b"), *table]
            )
        raw = bytearray(path.read_bytes())
        raw[drawn.draw(st.integers(0, len(raw) - 1))] = drawn.draw(st.integers(0, 255))
        path.write_bytes(raw)
        bad: list[rows.BadRow] = []
        for read in (
            lambda: list(texts.read_texts(path, on_bad=bad.append)),
            lambda: pairs.read_pairs(path),
        ):
            try:
                read()
            except UserError as fault:
                assert str(fault).startswith(str(path)) and "\n" not in str(fault)
        assert all(row.where.startswith(f"{path}:") for row in bad)


name = st.text(
    st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=12
).filter(lambda n: n not in (".", "..", "manifest.json", "README.md") and len(n.encode()) < 100)


class TestPublishing:
    @few
    @given(
        st.dictionaries(name, st.binary(max_size=200), max_size=5),
        st.dictionaries(name, st.integers(), max_size=3),
    )
    def test_any_files_are_published_whole_and_any_change_is_noticed(self, place, held, extra):
        out = place / "out"
        extra = {
            key: value for key, value in extra.items() if key not in ("format", "files", "self")
        }
        with atomic_folders.staged_folder(out, overwrite=out.exists(), extra=extra) as making:
            for file, content in held.items():
                (making / file).write_bytes(content)
        assert sorted(manifest.verify_folder(out)) == sorted(held)
        read = manifest.read_manifest(out)
        assert {key: read[key] for key in extra} == extra
        assert {
            path.name: path.read_bytes() for path in out.iterdir() if path.name != manifest.NAME
        } == held
        for file, content in held.items():
            (out / file).write_bytes(content + b"x")
            with pytest.raises(UserError, match="bytes"):
                manifest.verify_folder(out)
            (out / file).write_bytes(content)
