"""A file that cannot be read is named in one line, with its reason."""

from __future__ import annotations

import errno
import gzip
import io
import os
import sys
from pathlib import Path

import pytest

from minilm_retriever.data.pairs import read_pairs
from minilm_retriever.data.texts import read_texts
from minilm_retriever.formats import lines, readers
from minilm_retriever.formats.reading import Reading
from tests.data_files.written import mistake, put, save, texts


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
    @pytest.mark.parametrize("raw", [b"", b"\xef\xbb\xbf", gzip.compress(b"", mtime=0)])
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
        whole = bytearray(
            gzip.compress(b"".join(b'"%d"\n' % (n * 7919) for n in range(1000)), mtime=0)
        )
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
        bomb = gzip.compress(b"a,b\n1,2\n" + b"x" * 3_000_000, mtime=0)
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
