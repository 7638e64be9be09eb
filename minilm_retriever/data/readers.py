"""Rows out of CSV, TSV, JSONL, text and Parquet files, one at a time, each knowing where it stands.

The kind goes by the name (`.csv .tsv .jsonl .ndjson .txt .parquet`, all but the last also with
`.gz`) or by `format`; gzip is recognised by its first bytes. Text is UTF-8, a byte order mark is
dropped, lines end in \\n or \\r\\n.

CSV, TSV  The first row names the columns. Fields may be quoted, hold line breaks and doubled quotes
("" is one quote).
          Blank lines are skipped.
JSONL     One object a line. Blank lines are skipped. txt       Every line is a row with the column
`text`; a blank line is an empty text. Parquet   Columns of text, numbers and truth values are read;
others are there, but hold no value to use.

What is wrong with one row is given to `on_bad`, if there is one, and reading goes on. What leaves
doubt where the rows begin (a quote that is never closed, a damaged archive) always stops. A row
lies in memory, a file never does."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from minilm_retriever.data.lines import LONGEST, STDIN, Lines, StrPath, opened
from minilm_retriever.errors import UserError, require

FORMATS = ("csv", "tsv", "jsonl", "txt", "parquet")
_SUFFIXES = {f".{kind}": kind for kind in FORMATS} | {".ndjson": "jsonl"}


class Row(NamedTuple):
    """One row: its values by column, and the line where it starts (the row's number in a Parquet
    file), from 1."""

    values: dict[str, object]
    path: str
    line: int
    raw: str  # the text it was read from, as far as there is one

    @property
    def where(self) -> str:
        """`path:line`, for a message about this row."""
        return f"{self.path}:{self.line}"


class BadRow(NamedTuple):
    """A row that cannot be used. Bytes that are no UTF-8 stand in `raw` as Python's
    surrogateescape."""

    where: str
    reason: str
    raw: str


class NoValue(NamedTuple):
    """Stands for a value of a type that is neither text nor number."""

    type: str


OnBad = Callable[[BadRow], object]
_Reject = Callable[[int, str, str], None]


def read_rows(
    path: StrPath,
    *,
    format: str | None = None,
    need: Sequence[str] = (),
    on_bad: OnBad | None = None,
) -> Iterator[Row]:
    """Yield the rows of one file, or of standard input for "-" (text lines, if no format is given).

    `need` names columns that a header has to have; in JSONL every row has its own. Raises UserError
    that says `path:line` and how to mend it."""
    name = "<stdin>" if os.fspath(path) == STDIN else os.fspath(path)
    rows = bad = 0

    def reject(line: int, reason: str, raw: str) -> None:
        nonlocal bad
        bad += 1
        if on_bad is None:
            raise UserError(f"{name}:{line}: {reason}")
        on_bad(BadRow(f"{name}:{line}", reason, raw.rstrip("\r\n")))

    kind = kind_of(path, format)
    if kind == "parquet":
        for row in _read_parquet(path, need, reject):
            rows += 1
            yield row
    else:
        with opened(path, name) as stream:
            lines = Lines(name, stream)
            for row in _READERS[kind](lines, need, reject):
                rows += 1
                yield row
            if not lines.number:
                raise UserError(f"{name}: the file is empty")
    if not rows + bad:
        raise UserError(
            f"{name}: there are no rows" + (" below the header" if kind in ("csv", "tsv") else "")
        )


def kind_of(path: StrPath, format: str | None = None) -> str:
    """The format of a file that is there; UserError for a missing one, a folder, or a name that
    tells nothing."""
    name = os.fspath(path)
    if format is not None and format not in FORMATS:
        raise UserError(f"format {format!r} is not known; known are {', '.join(FORMATS)}")
    if name == STDIN:
        if format == "parquet":
            raise UserError("Parquet cannot be read from standard input: name the file")
        return format or "txt"
    try:
        is_folder = Path(name).is_dir()
        if not is_folder:
            Path(name).stat()
    except OSError as fault:
        raise UserError(f"{name}: cannot be read: {fault.strerror}") from fault
    except ValueError as fault:
        raise UserError(f"{name!r}: not the name of a file: {fault}") from fault
    if is_folder:
        raise UserError(f"{name}: is a folder; name a file in it")
    kind = format or kind_by_name(name)
    if kind is None:
        raise UserError(
            f"{name}: what is in it? Give the format, or a name ending in {', '.join(_SUFFIXES)}"
        )
    return kind


def kind_by_name(name: str) -> str | None:
    """The format that a file's name tells, if any."""
    lower = name.lower()
    if lower.endswith(".gz") and not lower.endswith(".parquet.gz"):
        lower = lower[:-3]
    return _SUFFIXES.get(Path(lower).suffix)


_LONE_CR = r"a carriage return (\r) that ends no line: end lines with \n or \r\n"


# --- the formats ----------------------------------------------------------------------------------


def _read_text(lines: Lines, need: Sequence[str], reject: _Reject) -> Iterator[Row]:
    _check_header(["text"], need, lines.name)
    for line in lines:
        text = line.removesuffix("\n").removesuffix("\r") if line.endswith("\n") else line
        if lines.fault or "\r" in text:
            number, reason = lines.fault or (lines.number, _LONE_CR)
            reject(number, reason, line)
        else:
            yield Row({"text": text}, lines.name, lines.number, line)
        lines.begin()


def _read_jsonl(lines: Lines, need: Sequence[str], reject: _Reject) -> Iterator[Row]:
    decode = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant).decode
    for line in lines:
        try:
            if lines.fault:
                raise ValueError(lines.fault[1])
            if text := line.strip(" \t\r\n"):
                values = decode(text)
                if not isinstance(values, dict):
                    raise ValueError(
                        f'{type(values).__name__} instead of an object like {{"text": "..."}}'
                    )
                yield Row(values, lines.name, lines.number, line)
        except json.JSONDecodeError as fault:
            reason = (
                _LONE_CR
                if "\r" in line.rstrip("\r\n")
                else f"{fault.msg}, character {fault.pos + 1}"
            )
            reject(lines.number, f"not JSON: {reason}; every line must be one object", line)
        except ValueError as fault:
            reject(lines.number, str(fault), line)
        except RecursionError:
            reject(lines.number, "JSON nested too deeply", line)
        lines.begin()


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return values


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _read_csv(lines: Lines, need: Sequence[str], reject: _Reject) -> Iterator[Row]:
    yield from _read_separated(lines, need, reject, ",")


def _read_tsv(lines: Lines, need: Sequence[str], reject: _Reject) -> Iterator[Row]:
    yield from _read_separated(lines, need, reject, "\t")


def _read_separated(
    lines: Lines, need: Sequence[str], reject: _Reject, delimiter: str
) -> Iterator[Row]:
    # The limit belongs to the module and not to the reader; raised, never lowered, for whoever else
    # uses it.
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST))
    # strict: otherwise a quote that is never closed would silently make one field of the rest of
    # the file.
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        lines.begin()
        start = lines.number + 1
        reason = ""
        fields: list[str] | None = []
        try:
            fields = next(reader, None)
        except csv.Error as fault:
            reason = _quoting(str(fault), lines, start, delimiter)
        if fields is None:
            return
        raw = lines.row[0] if len(lines.row) == 1 else "".join(lines.row)
        number, reason = lines.fault or (start, reason)
        if header is None:
            if reason:
                raise UserError(f"{lines.name}:{number}: {reason}")
            if fields:
                header = [field.strip() for field in fields]
                _check_header(header, need, f"{lines.name}:{start}")
        elif fields and not reason and len(fields) != len(header):
            reject(start, _ragged(len(fields), len(header), delimiter), raw)
        elif reason:
            reject(number, reason, raw)
        elif fields:
            yield Row(dict(zip(header, fields, strict=True)), lines.name, start, raw)


def _ragged(found: int, wanted: int, delimiter: str) -> str:
    if found < wanted:
        guess = "is a field missing, or a line break not quoted?"
    else:
        guess = (
            f"is there a {'comma' if delimiter == ',' else 'tab'} in a field that is not quoted?"
        )
    return f"{found} field{'s' if found > 1 else ''}, but the header has {wanted}: {guess}"


def _quoting(message: str, lines: Lines, start: int, delimiter: str) -> str:
    """What the csv module's complaint means; UserError where it leaves open which rows come
    next."""
    if message.startswith("new-line character"):
        return _LONE_CR
    whole = "".join(lines.row)
    # The last quoted field of the row is the one that went wrong.
    quoted = re.compile(rf'(?:\A|(?<=[{delimiter}\r\n]))"[^"]*+(?:""[^"]*+)*+"?')
    opened = start
    for field in quoted.finditer(whole):
        opened = start + whole.count("\n", 0, field.start())
    if message.startswith("unexpected end"):
        raise UserError(
            f"{lines.name}:{opened}: the quote that opens a field in this line is never closed"
        )
    reason = f'text after the closing quote of a field (line {lines.number}): double a quote that belongs to the text ("")'
    if len(lines.row) > 1:
        raise UserError(f"{lines.name}:{opened}: the field that opens here has {reason}")
    return reason


def _check_header(header: Sequence[str], need: Sequence[str], where: str) -> None:
    for name in header:
        if list(header).count(name) > 1:
            raise UserError(f"{where}: the column {name!r} is there twice")
    for name in need:
        if name not in header:
            raise UserError(f"{where}: no column {name!r}; there are: {', '.join(header)}")


def _read_parquet(path: StrPath, need: Sequence[str], reject: _Reject) -> Iterator[Row]:
    arrow = require("pyarrow.parquet", "parquet", f"{path}: Parquet")
    unreadable = (arrow.ArrowException, OSError, ValueError, OverflowError)
    name, number = os.fspath(path), 0
    try:
        with arrow.parquet.ParquetFile(name, page_checksum_verification=True) as file:
            schema = file.schema_arrow
            _check_header(schema.names, need, name)
            # Vectors and dates beside the text are not unpacked: they cost time, and some cannot
            # be.
            plain = [field.name for field in schema if _is_plain(arrow, field.type)]
            other = {
                field.name: NoValue(str(field.type)) for field in schema if field.name not in plain
            }
            for batch in file.iter_batches(batch_size=1024, columns=plain):
                for values in _unpacked(batch, unreadable):
                    number += 1
                    if isinstance(values, dict):
                        yield Row(
                            {
                                column: values.get(column, other.get(column))
                                for column in schema.names
                            },
                            name,
                            number,
                            "",
                        )
                    else:
                        reject(number, f"cannot be read: {values}", "")
    except UserError:
        raise
    except unreadable as fault:
        reason = str(fault).strip().partition("\n")[0]
        raise UserError(
            f"{name}: not a Parquet file that can be read (after row {number}): {reason}"
        ) from fault


def _is_plain(arrow: Any, kind: Any) -> bool:
    if arrow.types.is_dictionary(kind):
        kind = kind.value_type
    is_text = (
        arrow.types.is_string(kind)
        or arrow.types.is_large_string(kind)
        or arrow.types.is_string_view(kind)
    )
    is_number = arrow.types.is_integer(kind) or arrow.types.is_floating(kind)
    return bool(is_text or is_number or arrow.types.is_boolean(kind))


def _unpacked(
    batch: Any, unreadable: tuple[type[Exception], ...]
) -> list[dict[str, object] | Exception]:
    """The rows of a batch; when one of them cannot be read, the error in its place."""
    try:
        rows: list[dict[str, object] | Exception] = batch.to_pylist()
    except unreadable:
        rows = []
        for row in range(batch.num_rows):
            try:
                rows += batch.slice(row, 1).to_pylist()
            except unreadable as fault:
                rows.append(fault)
    return rows


_READERS: dict[str, Callable[[Lines, Sequence[str], _Reject], Iterator[Row]]] = {
    "csv": _read_csv,
    "tsv": _read_tsv,
    "jsonl": _read_jsonl,
    "txt": _read_text,
}
