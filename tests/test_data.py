"""Every format reads the same rows, and says of every bad one where it stands and how to mend
it."""

from __future__ import annotations

import csv
import errno
import gzip
import io
import json
import os
import sys
import tracemalloc
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minilm_retriever.data import lines, readers
from minilm_retriever.data.columns import Column, pair_columns, text_column
from minilm_retriever.data.pairs import read_pairs, read_scored_pairs
from minilm_retriever.data.reading import Reading
from minilm_retriever.data.rows import BadRow, NoValue
from minilm_retriever.data.texts import read_texts
from minilm_retriever.errors import UserError

FORMATS = ["csv", "tsv", "jsonl", "parquet"]


def save(path: Path, records: list[dict[str, object]]) -> Path:
    """Write records in the format that the name tells."""
    kind = readers.format_by_name(path.name)
    if kind == "parquet":
        arrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.Table.from_pylist(records), path)
        return path
    out = io.StringIO(newline="")
    if kind == "txt":
        out.writelines(f"{record['text']}\n" for record in records)
    elif kind == "jsonl":
        out.writelines(json.dumps(record) + "\n" for record in records)
    else:
        writer = csv.DictWriter(out, list(records[0]), delimiter="," if kind == "csv" else "\t")
        writer.writeheader()
        writer.writerows(records)
    raw = out.getvalue().encode()
    path.write_bytes(gzip.compress(raw) if path.name.endswith(".gz") else raw)
    return path


def put(tmp_path: Path, raw: bytes | str, name: str = "data.csv") -> Path:
    (tmp_path / name).write_bytes(raw.encode() if isinstance(raw, str) else raw)
    return tmp_path / name


def texts(*paths: object, **options: object) -> list[str]:
    return [record.text for record in read_texts(paths, **options)]  # type: ignore[arg-type]


def of_text(names: str) -> list[Column]:
    """Columns of these names that hold text."""
    return [Column(name, "text", "a text", ("a text",), False) for name in names.split()]


def mistake(read: object) -> str:
    with pytest.raises(UserError) as error:
        list(read())  # type: ignore[operator]
    assert "\n" not in str(error.value)
    return str(error.value)


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
        assert texts(put(tmp_path, gzip.compress(b"a\nx\n"))) == ["x"]
        assert texts(put(tmp_path, b"a\nx\n", "a.csv.gz")) == ["x"]
        assert texts(
            put(tmp_path, gzip.compress(b"a\nx") + gzip.compress(b"y\nz"), "a.csv.gz")
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
                tmp_path, gzip.compress(b"id,text\n" + b"1,some words\n" * count), "a.csv.gz"
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
        stdin(gzip.compress(b'{"text": "x"}\n'))
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
        path.write_bytes(gzip.compress(raw) if packed else raw)
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


class TestBadFiles:
    """What is wrong with a whole file stops the reading, also where bad rows are set aside."""

    def test_missing_folder_unknown(self, tmp_path):
        assert mistake(lambda: read_texts(tmp_path / "no.csv")) == (
            f"{tmp_path}/no.csv: cannot be read: No such file or directory"
        )
        assert "is a folder" in mistake(lambda: readers.read_rows(tmp_path))
        assert "holds no file" in mistake(lambda: read_pairs(tmp_path))
        assert "name ending in .csv" in mistake(
            lambda: readers.read_rows(put(tmp_path, "x", "a.xlsx"))
        )
        assert "name ending in .csv" in mistake(
            lambda: readers.read_rows(put(tmp_path, "x", "a.parquet.gz"))
        )
        assert "'xml' is not known" in mistake(lambda: read_texts(tmp_path / "a", format="xml"))
        assert "null" in mistake(lambda: readers.read_rows("a\0b.csv"))

    def test_what_the_system_refuses(self, tmp_path, monkeypatch):
        path = put(tmp_path, "a\n1\n")

        def refused(*_: object) -> None:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))

        class Broken(io.BytesIO):
            def readline(self, size: int | None = -1) -> bytes:
                return super().readline(size) or refused()  # type: ignore[return-value]

        reader = lines.Lines("a.csv", Broken(b"a\n1\n"))
        assert mistake(lambda: reader) == "a.csv: cannot be read after line 2: Permission denied"
        monkeypatch.setattr(Path, "open", refused)
        assert (
            mistake(lambda: readers.read_rows(path)) == f"{path}: cannot be read: Permission denied"
        )

    @pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "txt"])
    @pytest.mark.parametrize("raw", [b"", b"\xef\xbb\xbf", gzip.compress(b"")])
    def test_empty(self, tmp_path, kind, raw):
        path = put(tmp_path, raw, f"a.{kind}")
        assert mistake(lambda: readers.read_rows(path)) == f"{path}: the file is empty"

    def test_nothing_but_a_header_or_blank_lines(self, tmp_path):
        assert "no rows below the header" in mistake(
            lambda: readers.read_rows(put(tmp_path, "a,b\n\n"))
        )
        assert "no rows" in mistake(lambda: readers.read_rows(put(tmp_path, "\n\n", "a.jsonl")))

    def test_utf_16(self, tmp_path):
        path = put(tmp_path, "a,b\n1,2\n".encode("utf-16"))
        assert [row.values for row in readers.read_rows(path)] == [{"a": "1", "b": "2"}]
        odd = put(tmp_path, "a,b\n1,2\n".encode("utf-16-le") + b"x")
        assert "cannot be read" in mistake(lambda: readers.read_rows(odd))
        odd = put(tmp_path, b"a,b\n1,2\n3," + "4\n".encode("utf-16-le"))
        assert ":3: a NUL character" in mistake(lambda: readers.read_rows(odd))

    @pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "txt"])
    def test_damaged_gzip(self, tmp_path, kind):
        whole = bytearray(gzip.compress(b"".join(b'"%d"\n' % (n * 7919) for n in range(1000))))
        path = put(tmp_path, whole[:-9], f"a.{kind}.gz")
        skip = {"on_bad": lambda _: None}
        assert "after line 1000: the gzip archive is cut short or damaged" in mistake(
            lambda: readers.read_rows(path, **skip)
        )
        assert "gzip archive is cut short or damaged" in mistake(
            lambda: readers.read_rows(put(tmp_path, whole + b"junk", path.name), **skip)
        )
        whole[-5] ^= 1  # the checksum
        assert "gzip archive is cut short or damaged" in mistake(
            lambda: readers.read_rows(put(tmp_path, whole, path.name), **skip)
        )
        whole[200] ^= 255
        assert "gzip archive" in mistake(
            lambda: readers.read_rows(put(tmp_path, whole, path.name), **skip)
        )
        assert "gzip archive" in mistake(
            lambda: readers.read_rows(put(tmp_path, b"\x1f\x8bjunk", path.name), **skip)
        )

    def test_columns(self, tmp_path):
        path = put(tmp_path, "\na,b,a\n1,2,3\n")
        assert (
            mistake(lambda: readers.read_rows(path)) == f"{path}:2: the column 'a' is there twice"
        )
        path = put(tmp_path, "a,b\n1,2\n")
        assert (
            mistake(lambda: readers.read_rows(path, need=["c"]))
            == f"{path}:1: no column 'c'; there are: a, b"
        )
        assert (
            mistake(lambda: read_texts(path, id="c", on_bad=print))
            == f"{path}:1: no column 'c'; there are: a, b"
        )

    def test_a_quote_that_is_never_closed_is_named_where_it_opens(self, tmp_path):
        path = put(tmp_path, 'a,b\n1,"x\ny",\n2,"z"\n3,"x ""y"", \n' + "4,z\n" * 5)
        message = (
            "{}:{}: the quote that opens a field in this line is never closed; or are quotes text "
            "here? (--quotes literal)"
        )
        path = put(tmp_path, 'a,b\n1,2\n3,"x ""y"", \n4,z\n')
        assert mistake(lambda: readers.read_rows(path, on_bad=print)) == message.format(path, 3)
        path = put(tmp_path, 'a,b\n"3\n 5"" pipe","x ""y"", \n4,z\n')
        assert mistake(lambda: readers.read_rows(path)) == message.format(path, 3)
        path = put(tmp_path, 'a\tb\n5" pipe\t"\n', "a.tsv")
        read = readers.read_rows(path, Reading(quotes="csv"))
        assert mistake(lambda: read) == message.format(path, 2)
        assert [row.values for row in readers.read_rows(path)] == [{"a": '5" pipe', "b": '"'}]

    def test_a_quote_closed_rows_later_leaves_doubt_and_stops(self, tmp_path):
        path = put(tmp_path, 'a,b\n1,"x\n2,y\n3,"z"\n4,w\n')
        assert mistake(lambda: readers.read_rows(path, on_bad=print)).startswith(
            f"{path}:2: the field that opens here has text after the closing quote of a field "
            "(line 4)"
        )

    def test_rows_that_would_fill_the_memory(self, tmp_path, monkeypatch):
        monkeypatch.setattr(lines, "MAX_ROW_BYTES", 1 << 20)
        assert (
            len(texts(put(tmp_path, "a\n" + (f"{'x' * 1000}\n" * 2000)))) == 2000
        )  # a file may be of any size
        bomb = gzip.compress(b"a,b\n1,2\n" + b"x" * 3_000_000)
        path = put(tmp_path, bomb, "a.csv.gz")
        assert mistake(lambda: readers.read_rows(path, on_bad=print)).startswith(
            f"{path}:3: a row of more than 1 MiB"
        )
        path = put(tmp_path, b'a,b\n1,2\n3,"' + b'\n","' * 300_000)
        assert mistake(lambda: readers.read_rows(path, on_bad=print)).startswith(
            f"{path}:3: a row of more than 1 MiB"
        )

    def test_no_parquet(self, tmp_path, monkeypatch):
        good = save(tmp_path / "good.parquet", [{"a": "x" * 50, "b": "y"}] * 50).read_bytes()
        for raw in (b"", b"a,b\n1,2\n", b"PAR1" * 10, good[:-10], good[:4] + bytes(60) + good[64:]):
            path = put(tmp_path, raw, "a.parquet")
            assert mistake(lambda p=path: readers.read_rows(p)).startswith(
                f"{path}: not a Parquet file that can be read"
            )
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        assert mistake(lambda: readers.read_rows(tmp_path / "good.parquet")).endswith(
            "pip install 'minilm_retriever[parquet]'"
        )


#: One bad row each: format, the row, and a part of the message.
BAD_ROWS = {
    "too few fields": ("csv", b"x", "1 field, but the header has 2"),
    "too many fields": ("csv", b"x,y,z", "3 fields, but the header has 2: is there a comma"),
    "too few fields, tabs": ("tsv", b"x", "1 field, but the header has 2"),
    "too many fields, tabs": ("tsv", b"x\ty\tz", "3 fields, but the header has 2: is there a tab"),
    "text after a quote": ("csv", b'"x" y,z', "text after the closing quote of a field"),
    "carriage return": ("csv", b"x\ry,z", "a carriage return"),
    "carriage return, tabs": ("tsv", b"x\ry\tz", "a carriage return"),
    "carriage return, JSON": ("jsonl", b'{"text": "x"}\r{"text": "y"}', "a carriage return"),
    "carriage return, lines": ("txt", b"x\ry", "a carriage return"),
    "Latin-1": ("csv", b"caf\xe9\xc3\xa9,x", "not UTF-8 (byte 0xe9, number 4 of the line)"),
    "Latin-1, tabs": ("tsv", b"caf\xe9\xc3\xa9\tx", "not UTF-8 (byte 0xe9, number 4 of the line)"),
    "Latin-1, JSON": (
        "jsonl",
        b'{"text": "caf\xe9\xc3\xa9"}',
        "not UTF-8 (byte 0xe9, number 14 of the line)",
    ),
    "Latin-1, lines": ("txt", b"caf\xe9\xc3\xa9", "not UTF-8 (byte 0xe9, number 4 of the line)"),
    "surrogate bytes": ("txt", b"\xed\xa0\x80", "not UTF-8"),
    "NUL": ("csv", b"x\0,y", "a NUL character"),
    "NUL, tabs": ("tsv", b"x\0\ty", "a NUL character"),
    "NUL, JSON": ("jsonl", b'{"text": "x\0"}', "a NUL character"),
    "NUL, lines": ("txt", b"x\0", "a NUL character"),
    "no JSON": ("jsonl", b"x", "not JSON: Expecting value, character 1"),
    "cut JSON": (
        "jsonl",
        b'{"text": "x',
        "not JSON: Unterminated string starting at, character 10",
    ),
    "JSON list": ("jsonl", b"[1, 2]", "list instead of an object"),
    "JSON text": ("jsonl", b'"x"', "str instead of an object"),
    "key twice": ("jsonl", b'{"text": "x", "text": "y"}', "the key 'text' stands twice"),
    "NaN": ("jsonl", b'{"text": "x", "score": NaN}', "NaN is not JSON"),
    "-Infinity": ("jsonl", b'{"text": "x", "score": -Infinity}', "-Infinity is not JSON"),
    "nesting": ("jsonl", b'{"text": ' + b"[" * 200_000, "nested too deeply"),
    "long number": ("jsonl", b'{"text": ' + b"1" * 5000 + b"}", "4300"),
    "number": ("jsonl", b'{"text": 1.5}', "column 'text' holds a number instead of text"),
    "null": ("jsonl", b'{"text": null}', "column 'text' holds nothing (null) instead of text"),
    "truth": ("jsonl", b'{"text": true}', "column 'text' holds true or false instead of text"),
    "list": ("jsonl", b'{"text": ["x"]}', "column 'text' holds a list instead of text"),
    "object": ("jsonl", b'{"text": {"en": "x"}}', "column 'text' holds an object instead of text"),
    "no column": ("jsonl", b'{"body": "x"}', "no column 'text'; there are: body"),
    "no columns": ("jsonl", b"{}", "no column 'text'; there are: none"),
    "half a character": (
        "jsonl",
        b'{"text": "x\\ud800"}',
        "column 'text' holds half a character (\\ud800",
    ),
}
GOOD = {
    "csv": b"text,b\n%s,1\n",
    "tsv": b"text\tb\n%s\t1\n",
    "jsonl": b'{"text": "%s", "b": "1"}\n',
    "txt": b"%s\n",
}


class TestBadRows:
    @pytest.mark.parametrize("place", ["first", "middle", "last"])
    @pytest.mark.parametrize("defect", BAD_ROWS)
    def test_is_told_with_its_line_or_set_aside(self, tmp_path, defect, place):
        kind, row, reason = BAD_ROWS[defect]
        head, good = (
            GOOD[kind].splitlines(keepends=True) if kind in ("csv", "tsv") else (b"", GOOD[kind])
        )
        before = {"first": 0, "middle": 2, "last": 4}[place]
        written = [good % (b"good %d" % n) for n in range(4)]
        path = put(
            tmp_path,
            b"".join([head, *written[:before], row, b"\n" * (place != "last"), *written[before:]]),
            f"a.{kind}",
        )
        where = f"{path}:{before + 1 + len(head[:1])}"

        message = mistake(lambda: read_texts(path, text="text"))
        assert message.startswith(f"{where}: ")
        assert reason in message

        bad: list[BadRow] = []
        kept = list(read_texts(path, text="text", on_bad=bad.append))
        assert [record.text for record in kept] == [f"good {n}" for n in range(4)]
        # The default ids count the bad row too, so that they tell the row whatever is skipped.
        assert [int(record.id) for record in kept] == [n for n in range(5) if n != before]
        assert [(one.where, one.raw.encode(errors="surrogateescape")) for one in bad] == [
            (where, row)
        ]
        assert reason in bad[0].reason

    def test_a_bad_row_of_several_lines_is_set_aside_as_a_whole(self, tmp_path):
        path = put(tmp_path, b'text\n"one\n\xff\n\0"\ntwo\n')
        bad: list[BadRow] = []
        assert [record.text for record in read_texts(path, on_bad=bad.append)] == ["two"]
        assert bad[0].where == f"{path}:3"
        assert bad[0].raw.encode(errors="surrogateescape") == b'"one\n\xff\n\0"'
        assert bad[0].reason.startswith("not UTF-8")

    def test_all_rows_bad_is_for_the_caller_to_judge(self, tmp_path):
        bad: list[BadRow] = []
        assert list(read_texts(put(tmp_path, "a,b\n1\n"), on_bad=bad.append)) == []
        assert len(bad) == 1

    @pytest.mark.parametrize("row", [0, 1, 2])
    def test_parquet_says_the_number_of_the_row(self, tmp_path, row):
        records: list[dict[str, object]] = [{"text": "good", "b": "1"} for _ in range(3)]
        records[row]["text"] = None
        path = save(tmp_path / "a.parquet", records)
        assert mistake(lambda: read_texts(path)).startswith(
            f"{path}:{row + 1}: column 'text' holds nothing (null)"
        )
        bad: list[BadRow] = []
        assert len(list(read_texts(path, on_bad=bad.append))) == 2
        assert bad[0].raw == "{'text': None, 'b': '1'}"

    def test_parquet_with_bytes_that_are_no_text(self, tmp_path):
        arrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        column = arrow.array([b"good", b"\xff", b"good"]).view(arrow.string())
        parquet.write_table(arrow.table({"text": column}), tmp_path / "a.parquet")
        assert mistake(lambda: read_texts(tmp_path / "a.parquet")).startswith(
            f"{tmp_path}/a.parquet:2: cannot be read"
        )
        assert texts(tmp_path / "a.parquet", on_bad=lambda _: None) == ["good", "good"]

    @pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
    def test_other_types_are_named(self, tmp_path, name):
        path = save(tmp_path / name, [{"text": [0.5]}])
        assert ":1: column 'text' holds a " in mistake(lambda: read_texts(path))
        assert "list" in mistake(lambda: read_texts(path))


class TestTexts:
    @pytest.mark.parametrize(
        ("columns", "chosen"),
        [
            ("only", "only"),
            ("id", "id"),
            ("title text", "text"),
            ("Title TEXT summary", "TEXT"),
            ("title body", "body"),
            ("title skills", "skills"),
            ("id description", "description"),
            ("doc_id _id x", "x"),
            ("query body", None),
            ("sentence_1 sentence_0", None),
            ("description skills", None),
            ("question answer", None),
        ],
    )
    def test_text_column_where_none_is_named(self, columns, chosen):
        if chosen:
            assert text_column(of_text(columns), "a.csv:2")[0] == chosen
        else:
            assert "name it with --text" in mistake(lambda: text_column(of_text(columns), "a.csv"))

    def test_queries_come_from_a_column_of_queries(self):
        assert text_column(of_text("qid query text"), "a.csv:2", queries=True)[0] == "query"

    def test_the_id_column_is_not_the_text(self):
        assert text_column(of_text("text other"), "a.csv:2", id="text")[0] == "other"

    def test_ids_are_row_numbers_over_all_inputs_or_a_column(self, tmp_path):
        a = put(tmp_path, "key,text\nk1,x\nk2,\n", "a.csv")
        b = put(tmp_path, '{"key": 7, "text": "z"}\n', "b.jsonl")
        assert list(read_texts([a, b])) == [
            ("0", "x", f"{a}:2"),
            ("1", "", f"{a}:3"),
            ("2", "z", f"{b}:1"),
        ]
        assert [record.id for record in read_texts([a, b], id="key")] == ["k1", "k2", "7"]

    @pytest.mark.parametrize("value", ["null", "true", "1.5", "[1]", '""', '"\\udc00"'])
    def test_what_is_no_id(self, tmp_path, value):
        path = put(tmp_path, f'{{"id": {value}, "text": "x"}}\n', "a.jsonl")
        assert mistake(lambda: read_texts(path, id="id")).startswith(f"{path}:1: column 'id'")

    def test_a_template_joins_columns(self, tmp_path):
        path = put(tmp_path, "job title,body\nnurse,cares {deeply}\n")
        assert texts(path, template="{job title}: {{{body}}}") == ["nurse: {cares {deeply}}"]
        assert "no column 'x'; there are: job title, body" in mistake(
            lambda: read_texts(path, template="{x}")
        )
        for wrong in ("plain", "{}", "{body!r}", "{body:>9}", "{body", "}", ""):
            assert f"template {wrong!r}" in mistake(lambda w=wrong: read_texts(path, template=w))
        assert "exclude each other" in mistake(
            lambda: read_texts(path, template="{body}", text="body")
        )

    def test_folders_are_read_in_sorted_order(self, tmp_path):
        for name in (
            "b.txt",
            "a.csv",
            "inner/c.jsonl.gz",
            ".hidden.csv",
            ".cache/d.csv",
            "notes.md",
        ):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            if readers.format_by_name(name):
                save(tmp_path / name, [{"text": name}])
            else:
                (tmp_path / name).write_text("no data")
        assert texts(tmp_path) == ["a.csv", "b.txt", "inner/c.jsonl.gz"]
        assert texts(tmp_path / "b.txt", tmp_path / "inner") == ["b.txt", "inner/c.jsonl.gz"]
        assert texts(str(tmp_path / "notes.md"), format="txt") == ["no data"]
        (tmp_path / "empty").mkdir()
        assert "holds no file that can be read" in mistake(lambda: read_texts(tmp_path / "empty"))
        assert "no input" in mistake(lambda: read_texts([]))


class TestPairs:
    @pytest.mark.parametrize("kind", FORMATS)
    def test_columns_of_text_and_where_each_row_stands(self, tmp_path, kind):
        path = save(
            tmp_path / f"a.{kind}", [{"q": "one", "d": "two\nlines"}, {"q": "three", "d": "four"}]
        )
        pairs = read_pairs(path)
        assert pairs.columns == ("q", "d")
        assert pairs.texts == [["one", "three"], ["two\nlines", "four"]]
        assert len(pairs) == 2
        assert pairs.where(1) == f"{path}:{ {'jsonl': 2, 'parquet': 2}.get(kind, 4) }"

    @pytest.mark.parametrize(
        ("columns", "chosen"),
        [
            ("x sentence_1 sentence_0", "sentence_0 sentence_1"),
            ("id positive anchor", "anchor positive"),
            ("query skills title", "query skills"),
            ("description skills title", "description skills"),
            ("skills description", "skills description"),
            ("Answer Question", "Question Answer"),
            ("passage qid pid query", "query passage"),
            ("Sentence_A Sentence_B", "Sentence_A Sentence_B"),
            ("text2 text1", "text1 text2"),
            ("question1 question2 qid1 qid2", "question1 question2"),
            ("query text title", "query text"),
            ("query pos neg", "query pos neg"),
            (
                "query positive_passages negative_passages",
                "query positive_passages negative_passages",
            ),
            ("anchor positive hard_negative", "anchor positive hard_negative"),
            ("search_query passage_text distractor_1", "search_query passage_text distractor_1"),
            ("column_1 column_2 column_3", "column_1 column_2 column_3"),
            ("question context answer", None),
            ("a b c", None),
            ("query", None),
            (
                "anchor positive negative_2 negative_1 negative_score",
                "anchor positive negative_2 negative_1",
            ),
            (
                "sentence_0 sentence_1 sentence_2 sentence_10 label",
                "sentence_0 sentence_1 sentence_2 sentence_10",
            ),
            ("query answer negative", "query answer negative"),
            ("negative answer negative_2", None),
        ],
    )
    def test_columns_where_none_are_named(self, columns, chosen):
        if chosen is None:
            message = mistake(lambda: pair_columns(of_text(columns), "a.csv:2").names)
            assert message.startswith("a.csv:2: ") and "--columns QUERY DOCUMENT" in message
            assert all(f"{name} 'a text'" in message for name in columns.split())
        else:
            assert pair_columns(of_text(columns), "a.csv:1").names == tuple(chosen.split())

    def test_named_columns_are_taken_in_their_order(self, tmp_path):
        path = put(tmp_path, "a,b,c\n1,2,3\n")
        pairs = read_pairs(path, ["c", "a", "b"])
        assert (pairs.columns, pairs.texts) == (("c", "a", "b"), [["3"], ["1"], ["2"]])

    def test_what_cannot_be_trained_on(self, tmp_path):
        path = put(tmp_path, "a,b\none,two\nthree, \t\n")
        assert mistake(lambda: read_pairs(path)).startswith(f"{path}:3: column 'b' is empty")
        assert (
            mistake(lambda: read_pairs(path, ["a", "x"]))
            == f"{path}:1: no column 'x'; there are: a, b"
        )
        for columns in (["a"], ["a", "a"]):
            assert "two different names" in mistake(lambda c=columns: read_pairs(path, c))
        assert "pairs need two columns of text: text 'x'" in mistake(
            lambda: read_pairs(put(tmp_path, "x\ny\n", "a.txt"))
        )
        path = put(tmp_path, '{"a": "x", "b": "y"}\n{"a": "x"}\n', "a.jsonl")
        assert mistake(lambda: read_pairs(path)) == f"{path}:2: no column 'b'; there are: a"

    @pytest.mark.parametrize(
        ("labels", "suggested"),
        [
            ("neutral entailment contradiction", "entailment"),
            ("- neutral contradiction entailment", "entailment"),
            ("maybe no yes", "yes"),
            ("0 1", "1"),
            ("False True", "True"),
            ("0 1 2", "X"),
            ("neutral contradiction", "X"),
            ("correct good bad", "X"),
        ],
    )
    def test_of_labels_the_one_that_says_yes_is_suggested(self, tmp_path, labels, suggested):
        words = "nurse cook engine river soil music night bread".split()
        for order in permutations(labels.split()):
            rows = [
                {"premise": f"a {words[n % 8]} of {n}", "hypothesis": f"{n} is a {words[n % 5]}",
                 "gold_label": order[n % len(order)]}
                for n in range(40)
            ]  # fmt: skip
            path = save(tmp_path / "a.jsonl", rows)
            said = mistake(lambda path=path: read_pairs(path))
            assert f"take some with --positives-where gold_label={suggested};" in said

    def test_a_column_name_with_line_breaks_stays_in_one_line(self, tmp_path):
        path = put(tmp_path, '"one\ncolumn"\nx\n')
        message = mistake(lambda: read_pairs(path, header=True))
        assert "pairs need two columns of text: one column 'x'" in message

    def test_a_file_that_reads_like_a_table_but_is_ragged_late(self, tmp_path):
        path = put(tmp_path, "a,b\n" + "one word,two words\n" * 500 + "1,2,3\n")
        assert mistake(lambda: read_pairs(path)).startswith(
            f"{path}:502: 3 fields, but the header has 2"
        )


class TestScoredPairs:
    @pytest.mark.parametrize("kind", FORMATS)
    def test_texts_and_scores(self, tmp_path, kind):
        records = [
            {"sentence1": "a", "sentence2": "b", "score": 4.75},
            {"sentence1": "c", "sentence2": "d", "score": 0.0},
        ]
        assert read_scored_pairs(save(tmp_path / f"a.{kind}", records)) == (
            ["a", "c"],
            ["b", "d"],
            [4.75, 0.0],
        )

    @pytest.mark.parametrize(
        "score", ["true", "null", '"x"', '""', '"nan"', '"1_0"', "1e999", "[1]", '"inf"']
    )
    def test_what_is_no_score(self, tmp_path, score):
        path = put(tmp_path, f'{{"sentence1": "a", "sentence2": "b", "score": {score}}}', "a.jsonl")
        message = mistake(lambda: read_scored_pairs(path))
        assert message.startswith(f"{path}:1: column 'score' holds ")
        assert message.endswith("instead of a number")

    def test_missing_columns_are_named(self, tmp_path):
        path = put(tmp_path, "sentence1,sentence2,label\na,b,1\n")
        assert read_scored_pairs(path) == (["a"], ["b"], [1.0])
        path = put(tmp_path, "sentence1,sentence2,words\na,b,c d\n")
        message = mistake(lambda: read_scored_pairs(path))
        assert message == (
            f"{path}:2: no column of scores; sentence1 'a', sentence2 'b', words 'c d'"
        )
