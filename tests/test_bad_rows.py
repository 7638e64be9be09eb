"""A bad row is named where it stands, or set aside."""

from __future__ import annotations

import pytest

from minilm_retriever.data.texts import read_texts
from minilm_retriever.formats.rows import BadRow
from tests.data_files.written import mistake, put, save, texts

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
