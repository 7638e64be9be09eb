"""Rows out of files and Python objects, one at a time, each knowing where it stands.

The format goes by the name (`.csv .tsv .jsonl .ndjson .json .txt .parquet`, all but the last also
with `.gz`) and by what is in the file, or by `Reading`; gzip goes by its first bytes. Lines end in
\\n or \\r\\n. The encoding, the separator and the header are found out: encodings.py, delimited.py.

CSV, TSV  The first row names the columns. Quoted fields may hold line breaks and doubled quotes
          ("" is one quote). Blank lines are skipped.
JSON      One object a line or over several, or one array of objects. Blank lines are skipped.
txt       Every line is a row with the column `text`; a blank line is an empty text.
Parquet   Columns of text, numbers and truth values; lists of texts in columns of documents and
          negatives; others are there, but hold no value to use.

What is wrong with one row is a BadRow, and reading continues. What leaves open where the rows begin
(a quote never closed, a damaged archive) always stops. A row lies in memory, a file never does."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from minilm_retriever.errors import UserError
from minilm_retriever.formats.delimited import separated_rows
from minilm_retriever.formats.json_rows import JSON_START, is_object_line, json_rows
from minilm_retriever.formats.lines import LONE_CR, STDIN, Lines, open_lines
from minilm_retriever.formats.names import check_header
from minilm_retriever.formats.objects import is_object, object_name, object_rows
from minilm_retriever.formats.parquet import parquet_rows
from minilm_retriever.formats.reading import FORMATS, Reading
from minilm_retriever.formats.rows import BadRow, OnBad, Row
from minilm_retriever.types import StrPath

Rows = Iterator[Row | BadRow]
_SUFFIXES = {f".{format}": format for format in FORMATS} | {".ndjson": "jsonl"}


class RowSource:
    """The rows of one file, of standard input ("-": text lines, if no format is given), or of an
    object.

    need: columns that a header has to have; in JSON every row has its own. Raises UserError that
    says `path:line` and how to correct it."""

    def __init__(self, source: object, reading: Reading | None = None) -> None:
        self.source, self.reading = source, reading or Reading()
        self.notes: list[str] = []  # what was found out about it, once rows were read
        self.has_header = False
        if is_object(source):
            self.name = object_name(source)
        else:
            self.name = "<stdin>" if source == STDIN else os.fspath(source)  # type: ignore[call-overload]

    def rows(self, need: Sequence[str] = ()) -> Rows:
        """Each row, or what is wrong with it."""
        count = 0
        for row in self._rows(need):
            count += 1
            yield row
        if not count:
            below = " below the header" if self.has_header else ""
            raise UserError(f"{self.name}: there are no rows{below}")

    def _rows(self, need: Sequence[str]) -> Rows:
        if is_object(self.source):
            return object_rows(self.source, need)
        path: StrPath = self.source  # type: ignore[assignment]
        format = file_format(path, self.reading.format)
        if format == "parquet":
            return parquet_rows(self.name, need)
        return self._parsed(path, format, need)

    def _parsed(self, path: StrPath, format: str, need: Sequence[str]) -> Rows:
        with open_lines(path, self.name, self.reading.encoding) as lines:
            self.notes = lines.notes
            is_json = bool(JSON_START.match(lines.head))
            if format == "txt":
                is_json = is_json and is_object_line(lines.head)
            if is_json and format in ("csv", "tsv", "txt") and self.reading.format is None:
                self.notes.append(f"JSON, whatever its name says (else --format {format})")
                format = "json"
            if format in ("json", "jsonl"):
                yield from json_rows(lines, format)
            elif format == "txt":
                yield from _text_rows(lines, need)
            else:
                usual, self.has_header = "\t" if format == "tsv" else ",", True
                yield from separated_rows(lines, need, usual, self.reading)
            if not (lines.number or lines.head):
                raise UserError(f"{self.name}: the file is empty")


def read_rows(
    path: object,
    reading: Reading | None = None,
    *,
    need: Sequence[str] = (),
    on_bad: OnBad | None = None,
) -> Iterator[Row]:
    """The rows that can be used. The first other one is raised, unless `on_bad` takes them."""
    for row in RowSource(path, reading).rows(need):
        if isinstance(row, Row):
            yield row
        elif on_bad is None:
            raise row
        else:
            on_bad(row)


def file_format(path: StrPath, format: str | None = None) -> str:
    """`format`, or what the name or the first bytes say; UserError where nothing does, or there is
    no such file."""
    name = os.fspath(path)
    if name == STDIN:
        if format == "parquet":
            raise UserError("Parquet cannot be read from standard input: name the file")
        return format or "txt"
    try:
        mode = Path(name).stat().st_mode
        start = b""
        if stat.S_ISREG(mode) and format is None:
            with Path(name).open("rb") as file:
                start = file.read(4)
    except OSError as fault:
        raise UserError(f"{name}: cannot be read: {fault.strerror}") from fault
    except ValueError as fault:
        raise UserError(f"{name!r}: not the name of a file: {fault}") from fault
    if stat.S_ISDIR(mode):
        raise UserError(f"{name}: is a folder; name a file in it")
    if start == b"PAR1":
        return "parquet"
    format = format or format_by_name(name)
    if format is None and stat.S_ISREG(mode):
        with open_lines(path, name) as lines:
            format = "json" if JSON_START.match(lines.head) else None
    if format is None:
        endings = ", ".join(_SUFFIXES)
        raise UserError(f"{name}: what is in it? Give its --format, or a name ending in {endings}")
    return format


def format_by_name(name: str) -> str | None:
    lower = name.lower()
    if not lower.endswith(".parquet.gz"):
        lower = lower.removesuffix(".gz")
    return _SUFFIXES.get(Path(lower).suffix)


def _text_rows(lines: Lines, need: Sequence[str]) -> Rows:
    check_header(["text"], need, lines.name)
    for line in lines:
        text = line.removesuffix("\n").removesuffix("\r") if line.endswith("\n") else line
        yield lines.finish_row({"text": text}, LONE_CR if "\r" in text else "")
        lines.begin_row()
