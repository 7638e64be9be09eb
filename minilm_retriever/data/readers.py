"""Rows out of CSV, TSV, JSONL, text and Parquet files, one at a time, each knowing where it stands.

The format goes by the name (`.csv .tsv .jsonl .ndjson .txt .parquet`, all but the last also with
`.gz`) or by `format`; gzip goes by its first bytes. Text is UTF-8, lines end in \\n or \\r\\n.

CSV, TSV  The first row names the columns. Quoted fields may hold line breaks and doubled quotes
          ("" is one quote). Blank lines are skipped.
JSONL     One object a line. Blank lines are skipped.
txt       Every line is a row with the column `text`; a blank line is an empty text.
Parquet   Columns of text, numbers and truth values; others are there, but hold no value to use.

What is wrong with one row goes to `on_bad`, if there is one, and reading continues. What leaves
open where the rows begin (a quote never closed, a damaged archive) always stops. A row lies in
memory, a file never does."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from minilm_retriever.data.columns import check_header
from minilm_retriever.data.lines import MAX_ROW_BYTES, STDIN, Lines, open_lines
from minilm_retriever.data.parquet import parquet_rows
from minilm_retriever.data.rows import BadRow, OnBad, Row
from minilm_retriever.errors import UserError
from minilm_retriever.types import StrPath

Rows = Iterator[Row | BadRow]
FORMATS = ("csv", "tsv", "jsonl", "txt", "parquet")
_SUFFIXES = {f".{format}": format for format in FORMATS} | {".ndjson": "jsonl"}
_LONE_CR = r"a carriage return (\r) that ends no line: end lines with \n or \r\n"


def read_rows(
    path: StrPath,
    *,
    format: str | None = None,
    need: Sequence[str] = (),
    on_bad: OnBad | None = None,
) -> Iterator[Row]:
    """Yield the rows of one file, or of standard input for "-" (text lines, if no format is given).

    `need` names columns that a header has to have; in JSONL every row has its own. Raises UserError
    that says `path:line` and how to correct it."""
    format = file_format(path, format)
    name = "<stdin>" if os.fspath(path) == STDIN else os.fspath(path)
    is_parquet, count = format == "parquet", 0
    for row in parquet_rows(name, need) if is_parquet else _parse(path, name, format, need):
        count += 1
        if isinstance(row, Row):
            yield row
        elif on_bad is None:
            raise row
        else:
            on_bad(row)
    if not count:
        below = " below the header" if format in ("csv", "tsv") else ""
        raise UserError(f"{name}: there are no rows{below}")


def file_format(path: StrPath, format: str | None = None) -> str:
    """`format`, or what the name says; UserError where neither does, or there is no such file."""
    name = os.fspath(path)
    if format is not None and format not in FORMATS:
        raise UserError(f"format {format!r} is not known; known are {', '.join(FORMATS)}")
    if name == STDIN:
        if format == "parquet":
            raise UserError("Parquet cannot be read from standard input: name the file")
        return format or "txt"
    try:
        is_folder = stat.S_ISDIR(Path(name).stat().st_mode)
    except OSError as fault:
        raise UserError(f"{name}: cannot be read: {fault.strerror}") from fault
    except ValueError as fault:
        raise UserError(f"{name!r}: not the name of a file: {fault}") from fault
    if is_folder:
        raise UserError(f"{name}: is a folder; name a file in it")
    format = format or format_by_name(name)
    if format is None:
        endings = ", ".join(_SUFFIXES)
        raise UserError(f"{name}: what is in it? Give the format, or a name ending in {endings}")
    return format


def format_by_name(name: str) -> str | None:
    lower = name.lower()
    if not lower.endswith(".parquet.gz"):
        lower = lower.removesuffix(".gz")
    return _SUFFIXES.get(Path(lower).suffix)


def _parse(path: StrPath, name: str, format: str, need: Sequence[str]) -> Rows:
    with open_lines(path, name) as lines:
        yield from _PARSERS[format](lines, need)
        if not lines.number:
            raise UserError(f"{name}: the file is empty")


def _text_rows(lines: Lines, need: Sequence[str]) -> Rows:
    check_header(["text"], need, lines.name)
    for line in lines:
        text = line.removesuffix("\n").removesuffix("\r") if line.endswith("\n") else line
        yield lines.finish_row({"text": text}, _LONE_CR if "\r" in text else "")
        lines.begin_row()


# --- JSONL ----------------------------------------------------------------------------------------


def _json_rows(lines: Lines, need: Sequence[str]) -> Rows:
    for line in lines:
        if text := line.strip(" \t\r\n"):
            try:
                row = lines.finish_row(_parse_object(text))
            except ValueError as fault:
                row = lines.finish_row({}, str(fault))
            yield row
        lines.begin_row()


def _parse_object(text: str) -> dict[str, object]:
    try:
        values = _decode(text)
    except json.JSONDecodeError as fault:
        reason = _LONE_CR if "\r" in text else f"{fault.msg}, character {fault.pos + 1}"
        raise ValueError(f"not JSON: {reason}; every line must be one object") from None
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    if not isinstance(values, dict):
        kind = type(values).__name__
        raise ValueError(f'{kind} instead of an object like {{"text": "..."}}')
    return values


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return values


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


_decode = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant).decode


# --- CSV and TSV ----------------------------------------------------------------------------------


def _load_csv() -> Any:
    """A csv module of our own: the limit of a field's size belongs to the module, and raising it in
    the shared one would raise it for the whole process."""
    spec = importlib.util.find_spec("_csv")
    assert spec and spec.loader
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.field_size_limit(MAX_ROW_BYTES)
    return module


_csv = _load_csv()


def _separated_rows(lines: Lines, need: Sequence[str], delimiter: str) -> Rows:
    # strict: otherwise a quote that is never closed makes one field of the rest of the file.
    reader = _csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        lines.begin_row()
        fields: list[str] | None = []
        reason = ""
        try:
            fields = next(reader, None)
        except _csv.Error as fault:
            reason = _explain(str(fault), lines, delimiter)
        if fields is None:
            return
        if header and fields and len(fields) != len(header):
            reason = _ragged(len(fields), len(header), delimiter)
        if not (fields or reason or lines.defect):
            continue  # a blank line
        row = lines.finish_row(dict(zip(header, fields, strict=False)), reason)
        if header:
            yield row
        elif isinstance(row, BadRow):
            raise row
        else:
            header = [field.strip() for field in fields]
            check_header(header, need, row.where)


def _ragged(count: int, columns: int, delimiter: str) -> str:
    separator = "comma" if delimiter == "," else "tab"
    guess = f"is there a {separator} in a field that is not quoted?"
    if count < columns:
        guess = "is a field missing, or a line break not quoted?"
    return f"{count} field{'s' if count > 1 else ''}, but the header has {columns}: {guess}"


def _explain(message: str, lines: Lines, delimiter: str) -> str:
    """What the csv module's complaint means; UserError where it is open which rows come next."""
    if message.startswith("new-line character"):
        return _LONE_CR
    raw = "".join(lines.row)
    # The last quoted field of the row is the one that went wrong.
    quoted = re.compile(rf'(?:\A|(?<=[{delimiter}\r\n]))"[^"]*+(?:""[^"]*+)*+"?')
    begins = [field.start() for field in quoted.finditer(raw)] or [0]
    where = f"{lines.name}:{lines.start + raw.count(chr(10), 0, begins[-1])}"
    if message.startswith("unexpected end"):
        raise UserError(f"{where}: the quote that opens a field in this line is never closed")
    place = f"text after the closing quote of a field (line {lines.number})"
    reason = f'{place}: double a quote that belongs to the text ("")'
    if len(lines.row) > 1:
        raise UserError(f"{where}: the field that opens here has {reason}")
    return reason


_PARSERS: dict[str, Callable[[Lines, Sequence[str]], Rows]] = {
    "csv": partial(_separated_rows, delimiter=","),
    "tsv": partial(_separated_rows, delimiter="\t"),
    "jsonl": _json_rows,
    "txt": _text_rows,
}
