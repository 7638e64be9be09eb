"""Every format reads the same rows."""

from __future__ import annotations

import csv
import gzip
import io
import sys
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minilm_retriever.data.pairs import read_pairs
from minilm_retriever.data.texts import read_texts
from minilm_retriever.errors import UserError
from minilm_retriever.formats import readers
from minilm_retriever.formats.rows import BadRow, NoValue
from tests.data_files.written import mistake, put, save, texts


class TestRows:
    @pytest.mark.parametrize(
        "name",
        [
            "a.csv",
            "a.tsv",
            "a.jsonl",
            "a.ndjson",
            "a.parquet",
            "A.CSV.GZ",
            "a.tsv.gz",
            "a.jsonl.gz",
        ],
    )
    def test_every_format_reads_the_same(self, tmp_path, name):
        records = [
            {"a": "one", "b": 'quote " comma , tab \t'},
            {"a": "zwei\nZeilen", "b": "ä 🎉 \u2028 \x85 \x0b"},
        ]
        path = save(tmp_path / name, records)
        assert [row.values for row in readers.read_rows(path)] == records

    def test_a_row_knows_the_line_where_it_starts(self, tmp_path):
        path = put(tmp_path, 'a,b\r\n\r\n1,"x\r\ny"\r\n\r\n2,z\n')
        rows = list(readers.read_rows(path))
        assert [row.where for row in rows] == [f"{path}:3", f"{path}:6"]
        assert [row.values["b"] for row in rows] == ["x\r\ny", "z"]
        assert rows[0].raw == '1,"x\r\ny"\r\n'
        path = put(tmp_path, '\n{"a": 1}\n \n{"a": 2}', "a.jsonl")
        assert [row.line for row in readers.read_rows(path)] == [2, 4]

    def test_text_lines_are_texts_also_blank_ones(self, tmp_path):
        path = put(tmp_path, b"\xef\xbb\xbfone\r\n\n  two \nlast", "a.txt")
        assert [(row.values["text"], row.line) for row in readers.read_rows(path)] == [
            ("one", 1),
            ("", 2),
            ("  two ", 3),
            ("last", 4),
        ]

    def test_blank_lines_are_no_rows_elsewhere_but_quoted_nothing_is(self, tmp_path):
        assert texts(put(tmp_path, 'a\n\n""\nx\n\n')) == ["", "x"]

    def test_byte_order_mark_and_spaces_around_column_names_are_dropped(self, tmp_path):
        path = put(tmp_path, b"\xef\xbb\xbfa, b\n1, 2\n")
        assert next(readers.read_rows(path)).values == {"a": "1", "b": " 2"}
        path = put(tmp_path, b'\xef\xbb\xbf{"a": "1"}', "a.jsonl")
        assert next(readers.read_rows(path)).values == {"a": "1"}

    def test_gzip_goes_by_its_bytes_and_not_by_the_name(self, tmp_path):
        assert texts(put(tmp_path, gzip.compress(b"a\nx\n", mtime=0))) == ["x"]
        assert texts(put(tmp_path, b"a\nx\n", "a.csv.gz")) == ["x"]
        assert texts(
            put(
                tmp_path,
                gzip.compress(b"a\nx", mtime=0) + gzip.compress(b"y\nz", mtime=0),
                "a.csv.gz",
            )
        ) == ["xy", "z"]

    def test_fields_of_ten_megabytes(self, tmp_path):
        big = "word " * 2_000_000
        for name in ("a.csv", "a.jsonl", "a.txt"):
            (record,) = read_texts(save(tmp_path / name, [{"text": big}]))
            assert record.text == big

    def test_the_csv_module_of_the_process_keeps_its_limit(self, tmp_path):
        path = save(tmp_path / "a.csv", [{"text": "x" * 200_000}] * 2)
        limit = csv.field_size_limit()
        rows = readers.read_rows(path)
        next(rows)
        assert csv.field_size_limit() == limit  # also in the middle of a file
        with pytest.raises(csv.Error):
            list(csv.reader(path.open(encoding="utf-8")))
        assert len(list(rows)) == 1 and csv.field_size_limit() == limit

    def test_memory_does_not_grow_with_the_file(self, tmp_path):
        def peak(count: int) -> int:
            path = put(
                tmp_path,
                gzip.compress(b"id,text\n" + b"1,some words\n" * count, mtime=0),
                "a.csv.gz",
            )
            tracemalloc.start()
            assert sum(1 for _ in read_texts(path)) == count
            size = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            return size

        peak(10)
        assert peak(30_000) < peak(10_000) + 20_000

    def test_standard_input_holds_text_lines_unless_it_is_said(self, tmp_path, monkeypatch):
        def stdin(raw: bytes) -> None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8"))

        stdin(b"a,b\n")
        assert texts("-") == ["a,b"]
        stdin(gzip.compress(b'{"text": "x"}\n', mtime=0))
        assert texts("-", format="jsonl") == ["x"]
        stdin(b"a\n\xff\n")
        assert mistake(lambda: read_texts("-")).startswith("<stdin>:2: not UTF-8")
        assert "name the file" in mistake(lambda: read_texts("-", format="parquet"))

    def test_parquet_does_not_unpack_what_is_no_text(self, tmp_path):
        path = save(tmp_path / "a.parquet", [{"vector": [0.5], "text": "x", "n": 3, "gone": None}])
        (row,) = readers.read_rows(path)
        assert row.values == {
            "vector": NoValue("list<element: double>"),
            "text": "x",
            "n": 3,
            "gone": NoValue("null"),
        }
        assert list(row.values) == ["vector", "text", "n", "gone"]

    @settings(max_examples=60, deadline=None)
    @given(
        table=st.lists(
            st.lists(
                st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8),
                min_size=2,
                max_size=2,
            ),
            min_size=1,
            max_size=5,
        ),
        kind=st.sampled_from(["csv", "tsv", "jsonl"]),
    )
    def test_what_was_written_is_read_back(self, tmp_path_factory, table, kind):
        path = tmp_path_factory.mktemp("table") / f"a.{kind}"
        records = [dict(zip(("a", "b"), row, strict=True)) for row in table]
        assert [row.values for row in readers.read_rows(save(path, records))] == records

    @settings(max_examples=150, deadline=None)
    @given(
        raw=st.binary(max_size=60)
        | st.lists(
            st.sampled_from(
                [
                    b"a",
                    b'"',
                    b",",
                    b"\n",
                    b"\r",
                    b"\t",
                    b"{",
                    b"}",
                    b":",
                    b"[",
                    b"\0",
                    b"\xff",
                    b"1",
                    b"\\ud800",
                ]
            ),
            max_size=30,
        ).map(b"".join),
        kind=st.sampled_from(readers.FORMATS),
        packed=st.booleans(),
    )
    def test_any_bytes_are_rows_or_a_users_mistake(self, tmp_path_factory, raw, kind, packed):
        path = tmp_path_factory.mktemp("bytes") / f"a.{kind}"
        path.write_bytes(gzip.compress(raw, mtime=0) if packed else raw)
        bad: list[BadRow] = []
        readers = [
            read_texts,
            lambda p: read_pairs(p).texts,
            lambda p: read_texts(p, on_bad=bad.append),
        ]
        for read in readers:
            try:
                list(read(path))
            except UserError as error:
                assert str(path) in str(error)
