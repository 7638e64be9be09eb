"""Rows of CSV, TSV and the like. Unless it is named, the beginning of the file decides on the
separator, on whether quotes are CSV's or text, and on whether the first row names the columns."""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from minilm_retriever.errors import UserError
from minilm_retriever.formats.lines import LONE_CR, MAX_ROW_BYTES, Lines
from minilm_retriever.formats.names import check_header, is_known, position_names
from minilm_retriever.formats.reading import SEPARATORS, Reading
from minilm_retriever.formats.rows import BadRow, Row
from minilm_retriever.formats.values import is_number

_SEP_LINE = re.compile('"?sep=(.)"?\r?\n')  # Excel's own: the separator of the lines below
_NAME = re.compile(r"[^\W\d][\w .\-/#()&:']{0,39}")  # what a column may be called
NAME_WORDS = 4


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


def _reader(lines: Iterator[str], separator: str, quotes: str) -> Any:
    if quotes == "literal":
        return _csv.reader(lines, delimiter=separator, quoting=_csv.QUOTE_NONE)
    # strict: otherwise a quote that is never closed makes one field of the rest of the file.
    spaced = quotes == "spaced"
    return _csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=spaced)


def separated_rows(
    lines: Lines, need: Sequence[str], usual: str, reading: Reading
) -> Iterator[Row | BadRow]:
    """usual: the separator that the file's name suggests."""
    dialect = find_dialect(lines, need, usual, reading)
    stream = iter(lines)
    if dialect.has_sep_line:
        next(stream)
    reader = _reader(stream, dialect.separator, dialect.quotes)
    header: list[str] = []
    names: list[str] | None = None  # the header as it stands there
    while True:
        lines.begin_row()
        fields: list[str] | None = []
        reason = ""
        try:
            fields = next(reader, None)
        except _csv.Error as fault:
            reason = _explain(str(fault), lines, dialect.separator)
        if fields is None:
            return
        if header and fields and len(fields) != len(header):
            reason = _ragged(len(fields), len(header), dialect.separator)
        if fields == names:
            reason = "the header again: were files joined?"
        if not (fields or reason or lines.defect):
            continue  # a blank line
        if header or not dialect.header:
            header = header or position_names(len(fields))
            check_header(header, need, f"{lines.name}:{lines.start}")
            yield lines.finish_row(dict(zip(header, fields, strict=False)), reason)
            continue
        row = lines.finish_row({}, reason)
        if isinstance(row, BadRow):
            raise row
        places = position_names(len(fields))
        names = fields
        header = [field.strip() or place for field, place in zip(fields, places, strict=True)]
        check_header(header, need, row.where)


def _ragged(count: int, columns: int, separator: str) -> str:
    name = SEPARATORS.get(separator, repr(separator)).removesuffix("s")
    guess = f"is there a {name} in a field that is not quoted?"
    if count < columns:
        guess = "is a field missing, or a line break not quoted?"
    if columns == 1:
        guess = "is it separated by something else? (--separator)"
    return f"{count} field{'s' if count > 1 else ''}, but the header has {columns}: {guess}"


def _explain(message: str, lines: Lines, separator: str) -> str:
    """What the csv module's complaint means; UserError where it is open which rows come next."""
    if message.startswith("new-line character"):
        return LONE_CR
    raw = "".join(lines.row)
    # The last quoted field of the row is the one that went wrong.
    begin = re.escape(separator)
    quoted = re.compile(rf'(?:\A|(?<=[{begin}\r\n]))"[^"]*+(?:""[^"]*+)*+"?')
    begins = [field.start() for field in quoted.finditer(raw)] or [0]
    where = f"{lines.name}:{lines.start + raw.count(chr(10), 0, begins[-1])}"
    hint = "or are quotes text here? (--quotes literal)"
    if message.startswith("unexpected end"):
        what = "the quote that opens a field in this line is never closed"
        raise UserError(f"{where}: {what}; {hint}")
    place = f"text after the closing quote of a field (line {lines.number})"
    reason = f'{place}: double a quote that belongs to the text (""), {hint}'
    if len(lines.row) > 1:
        raise UserError(f"{where}: the field that opens here has {reason}")
    return reason


# --- what the beginning says ----------------------------------------------------------------------


class Dialect(NamedTuple):
    separator: str
    quotes: str  # "csv", "literal" (they are text), or "spaced": a space before them is none
    header: bool  # the first row names the columns
    has_sep_line: bool


class Beginning(NamedTuple):
    """The first records of a file, if it is read so."""

    rows: list[list[str]]
    failed: bool  # it cannot be read so, or a quote that opens swallows many lines

    @property
    def share(self) -> float:
        """Of the rows that have as many fields as the first; 0 if that has one."""
        if not self.rows or len(self.rows[0]) < 2:
            return 0.0
        return sum(len(row) == len(self.rows[0]) for row in self.rows) / len(self.rows)


def find_dialect(lines: Lines, need: Sequence[str], usual: str, reading: Reading) -> Dialect:
    """As the head of the file suggests, but for what `reading` says; notes what is unusual."""
    sep_line = _SEP_LINE.match(lines.head)
    head = lines.head[sep_line.end() :] if sep_line else lines.head
    quotes = reading.quotes or "csv"

    def begin(separator: str, quotes: str = quotes) -> Beginning:
        return read_beginning(head, separator, quotes, lines.is_whole)

    separator = reading.separator or (sep_line[1] if sep_line else "")
    if not separator:
        separator = usual
        if (own := begin(usual)).share < 0.5:
            others = {other: begin(other).share for other in SEPARATORS if other != usual}
            best = max(others, key=lambda other: others[other])
            if others[best] >= 0.5 and (own.failed or not own.share):
                separator = best
    if separator != usual:
        lines.notes.append(f"separated by {SEPARATORS.get(separator, repr(separator))}")
    beginning = begin(separator)
    if reading.quotes is None and separator == "\t" and '"' in head:
        plain = begin(separator, "literal")
        spans = beginning.failed or any("\n" in field for row in beginning.rows for field in row)
        if spans and plain.share == 1 and not plain.failed:
            quotes, beginning = "literal", plain
            lines.notes.append("quotes taken for text (--quotes csv for CSV's)")
    elif reading.quotes is None and f'{separator} "' in head:
        spaced = begin(separator, "spaced")
        if (beginning.failed or beginning.share < 1) and spaced.share == 1 and not spaced.failed:
            quotes, beginning = "spaced", spaced
            lines.notes.append("spaces before quotes left out")
    header = reading.header
    if header is None:
        header = has_header(beginning.rows, need, lines.name)
        if not header:
            lines.notes.append("the first row taken for data (--header for names)")
    return Dialect(separator, quotes, header, bool(sep_line))


def read_beginning(text: str, separator: str, quotes: str, is_whole: bool) -> Beginning:
    rows: list[list[str]] = []
    lines = io.StringIO(text, newline="").readlines()
    reader = _reader(iter(lines), separator, quotes)
    try:
        for fields in reader:
            rows += [fields] if fields else []
    except _csv.Error as fault:
        is_cut = "unexpected end" in str(fault) and not is_whole
        swallowed = len(lines) - sum(1 + "".join(row).count("\n") for row in rows)
        return Beginning(rows, not is_cut or swallowed > 20)
    if not is_whole and len(rows) > 1:
        rows.pop()  # it may go on
    return Beginning(rows, False)


def has_header(rows: Sequence[Sequence[str]], need: Sequence[str], name: str) -> bool:
    """Whether the first row names the columns; UserError where it may be one or the other.

    It does if a name is known or needed, or all fields may be names: a few words, no number above
    numbers. It is data if no field may be one."""
    if not rows:
        return True
    first = [field.strip() for field in rows[0]]
    if set(need) & set(first) or any(map(is_known, first)):
        return True
    columns = list(zip(*(row for row in rows[1:] if len(row) == len(first)), strict=True))
    columns = columns or [()] * len(first)
    data = [
        field
        for field, below in zip(first, columns, strict=True)
        if field
        and not (_NAME.fullmatch(field) and len(field.split()) <= NAME_WORDS)
        and not (is_number(field) and below and not all(map(is_number, below)))
    ]
    if len(data) == len(first):
        return False
    if data:
        shown = " | ".join(field[:30] for field in first[:5])
        raise UserError(
            f"{name}:1: does the first row name the columns, or is it data? ({shown}) Say --header "
            "or --no-header"
        )
    return True
