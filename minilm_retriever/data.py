"""What people bring, as the jobs want it: texts to encode, pairs to train on, scored pairs to evaluate with."""

from __future__ import annotations

import math
import os
import re
import string
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from minilm_retriever.errors import UserError
from minilm_retriever.lines import STDIN, StrPath
from minilm_retriever.rows import BadRow, NoValue, OnBad, Row, kind_by_name, read_rows

TEXT_COLUMNS = ("text", "sentence", "body", "sentence_0", "query")
PAIR_COLUMNS = (("sentence_0", "sentence_1"), ("anchor", "positive"))
SCORED_COLUMNS = ("sentence1", "sentence2", "score")
_NEGATIVE = re.compile(r"negative(_?[0-9]+)?|sentence_([2-9]|[1-9][0-9]+)")
_ID = re.compile(r"_?id|.+_id", re.IGNORECASE)


class _Unusable(Exception):
    """What is wrong with a row."""


# --- texts ------------------------------------------------------------------------------------------------------------


class Record(NamedTuple):
    """One text to encode."""

    id: str
    text: str
    where: str  # path:line


def read_texts(
    paths: StrPath | Iterable[StrPath],
    *,
    text: str | None = None,
    id: str | None = None,
    template: str | None = None,
    format: str | None = None,
    on_bad: OnBad | None = None,
) -> Iterator[Record]:
    """Yield the texts of files, of the files in folders, or of standard input ("-"), in that order.

    The text is the column `text`, or a `template` such as "{title} {body}", or what `text_column` chooses for each
    file. The id is the column `id` (text or whole numbers), else the number of the row over all inputs, from 0; bad
    rows are counted, so that it tells the row whatever is skipped. Texts may be empty.

    Raises UserError that says `path:line`. What is wrong with a single row goes to `on_bad`, if there is one, and that
    row is left out.
    """
    if text is not None and template is not None:
        raise UserError("a text column and a template exclude each other")
    wanted = _template_columns(template) if template is not None else [text] if text is not None else []
    number = 0

    def skip(bad: BadRow) -> None:
        nonlocal number
        number += 1
        if on_bad is not None:
            on_bad(bad)

    for path in input_files(paths, format):
        compose = None
        need = [*wanted, *([id] if id is not None else [])]
        for row in read_rows(path, format=format, need=need, on_bad=skip if on_bad else None):
            compose = compose or _composer(template, text if text is not None else text_column(list(row.values), id))
            try:
                record = Record(str(number) if id is None else _id_of(row, id), compose(row), row.where)
            except _Unusable as reason:
                if on_bad is None:
                    raise UserError(f"{row.where}: {reason}") from None
                skip(BadRow(row.where, str(reason), row.raw.rstrip("\r\n") or repr(row.values)))
                continue
            number += 1
            yield record


def input_files(paths: StrPath | Iterable[StrPath], format: str | None = None) -> list[str]:
    """The files behind paths, in order; of a folder all that can be read, sorted, hidden names left out.

    Without a format these are the ones whose name tells what is in them. UserError for a folder without any.
    """
    found = []
    for path in [paths] if isinstance(paths, (str, os.PathLike)) else paths:
        name = os.fspath(path)
        if name == STDIN or not Path(name).is_dir():
            found.append(name)
            continue
        inside = [file for file in sorted(Path(name).rglob("*")) if _is_input(file.relative_to(name), file, format)]
        if not inside:
            raise UserError(f"{name}: the folder holds no file that can be read (CSV, TSV, JSONL, txt, Parquet)")
        found += map(str, inside)
    if not found:
        raise UserError("no input: name files, folders, or - for standard input")
    return found


def _is_input(inside: Path, file: Path, format: str | None) -> bool:
    hidden = any(part.startswith(".") for part in inside.parts)
    return not hidden and file.is_file() and bool(format or kind_by_name(file.name))


def text_column(columns: Sequence[str], id: str | None = None) -> str:
    """The column that holds the text, where none is named: the only one, one of TEXT_COLUMNS, else the first.

    Neither the id column nor one that is called id (`id`, `_id`, `doc_id`, ...) is chosen while there is another.
    """
    if known := [name for name in TEXT_COLUMNS if name in columns and name != id]:
        return known[0]
    rest = [name for name in columns if name != id and not _ID.fullmatch(name)]
    return [*rest, *columns, TEXT_COLUMNS[0]][0]


def _composer(template: str | None, column: str) -> Callable[[Row], str]:
    if template is None:
        return lambda row: _text(row, column)
    pieces = [(literal, name) for literal, name, _, _ in string.Formatter().parse(template)]
    return lambda row: "".join(literal + (_text(row, name) if name is not None else "") for literal, name in pieces)


def _template_columns(template: str) -> list[str]:
    """The columns that a template names; UserError for one that is more than text and names in braces."""
    try:
        fields = [field for field in string.Formatter().parse(template) if field[1] is not None]
    except ValueError as fault:
        raise UserError(f"template {template!r}: {fault}; a brace of the text itself is doubled") from fault
    if not fields or any(not name or spec or conversion for _, name, spec, conversion in fields):
        raise UserError(f"template {template!r}: name columns in braces, like '{{title}} {{body}}', and nothing else")
    return [name for _, name, _, _ in fields if name]


# --- pairs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    """Rows to train on, by column: the query, what answers it, and hard negatives if there are more."""

    path: str
    columns: tuple[str, ...]
    texts: list[list[str]]  # one list per column
    lines: list[int]  # where each row starts

    def __len__(self) -> int:
        return len(self.lines)

    def where(self, row: int) -> str:
        """`path:line` of a row."""
        return f"{self.path}:{self.lines[row]}"

    def distinct(self) -> Pairs:
        """Each row once, where it first stands; white space around a text makes no difference."""
        first: dict[tuple[str, ...], int] = {}
        for row, texts in enumerate(zip(*self.texts, strict=True)):
            first.setdefault(tuple(text.strip() for text in texts), row)
        rows = list(first.values())
        columns = [[column[row] for row in rows] for column in self.texts]
        return Pairs(self.path, self.columns, columns, [self.lines[row] for row in rows])


def read_pairs(path: StrPath, columns: Sequence[str] | None = None, *, format: str | None = None) -> Pairs:
    """Read training pairs into memory, with the columns named or chosen by `pair_columns`.

    Raises UserError with `path:line`, also for a text of nothing but white space: there is nothing to learn from it.
    """
    if columns is not None and (len(columns) < 2 or len(set(columns)) < len(columns)):
        raise UserError(f"pairs need two different columns or more, not {', '.join(columns) or 'none'}")
    names: tuple[str, ...] = tuple(columns or ())
    texts: list[list[str]] = [[] for _ in names]
    lines: list[int] = []
    for row in read_rows(path, format=format, need=names):
        if not names:
            names = pair_columns(list(row.values), row.where)
            texts = [[] for _ in names]
        try:
            for name, column in zip(names, texts, strict=True):
                column.append(_filled(row, name))
        except _Unusable as reason:
            raise UserError(f"{row.where}: {reason}") from None
        lines.append(row.line)
    return Pairs(os.fspath(path), names, texts, lines)


def pair_columns(columns: Sequence[str], where: str) -> tuple[str, ...]:
    """sentence_0 and sentence_1, else anchor and positive, else the first two; and the hard negatives behind them.

    Hard negatives are the columns negative, negative_1, ... and sentence_2, sentence_3, ... in the order of the file.
    """
    pair = next((known for known in PAIR_COLUMNS if set(known) <= set(columns)), tuple(columns[:2]))
    if len(pair) < 2:
        raise UserError(f"{where}: pairs need two columns, there is only {', '.join(columns) or 'none'}")
    return (*pair, *(name for name in columns if _NEGATIVE.fullmatch(name) and name not in pair))


def read_scored_pairs(path: StrPath, *, format: str | None = None) -> tuple[list[str], list[str], list[float]]:
    """Read the columns sentence1, sentence2 and score (a finite number); UserError with `path:line`."""
    first, second, score = SCORED_COLUMNS
    left: list[str] = []
    right: list[str] = []
    scores: list[float] = []
    for row in read_rows(path, format=format, need=SCORED_COLUMNS):
        try:
            left.append(_filled(row, first))
            right.append(_filled(row, second))
            scores.append(_number(row, score))
        except _Unusable as reason:
            raise UserError(f"{row.where}: {reason}") from None
    return left, right, scores


# --- one value --------------------------------------------------------------------------------------------------------


def _value(row: Row, column: str) -> object:
    try:
        return row.values[column]
    except KeyError:
        raise _Unusable(f"no column {column!r}; there are: {', '.join(row.values) or 'none'}") from None


def _text(row: Row, column: str) -> str:
    value = _value(row, column)
    if not isinstance(value, str):
        raise _Unusable(
            f"column {column!r} holds {_kind(value)} instead of text: put it in quotes or leave the row out"
        )
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as fault:
            half = f"\\u{ord(value[fault.start]):04x}"
            raise _Unusable(f"column {column!r} holds half a character ({half}, a lone surrogate): mend it") from None
    return value


def _filled(row: Row, column: str) -> str:
    value = _text(row, column)
    if not value or value.isspace():
        raise _Unusable(f"column {column!r} is empty: fill it in or leave the row out")
    return value


def _id_of(row: Row, column: str) -> str:
    value = _value(row, column)
    if type(value) is int:
        return str(value)
    text = _text(row, column)
    if not text:
        raise _Unusable(f"column {column!r} is empty: every row needs its id")
    return text


def _number(row: Row, column: str) -> float:
    value = _value(row, column)
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)) or "_" in str(value):
            raise ValueError
        number = float(value)
        if not math.isfinite(number):
            raise ValueError
    except (ValueError, OverflowError):
        shown = repr(value)[:40] if isinstance(value, str) else _kind(value)
        raise _Unusable(f"column {column!r} holds {shown} instead of a number") from None
    return number


def _kind(value: object) -> str:
    if isinstance(value, NoValue):
        return f"a value of the type {value.type}"
    kinds: dict[type, str] = {
        dict: "an object",
        list: "a list",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return "nothing (null)" if value is None else kinds.get(type(value), type(value).__name__)
