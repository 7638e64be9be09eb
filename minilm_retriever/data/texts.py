"""Texts to encode, from files, folders and standard input."""

from __future__ import annotations

import os
import string
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from minilm_retriever.data.columns import text_column
from minilm_retriever.data.lines import STDIN
from minilm_retriever.data.readers import format_by_name, read_rows
from minilm_retriever.data.rows import BadRow, OnBad, Row
from minilm_retriever.errors import UserError
from minilm_retriever.types import StrPath

Template = list[tuple[str, str | None]]  # pieces of text, each with the column that follows it


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

    The text is the column `text`, or a `template` such as "{title} {body}", or what `text_column`
    chooses for each file. The id is the column `id` (text or whole numbers), else the number of the
    row over all inputs, from 0; bad rows are counted, so that it tells the row whatever is skipped.
    Texts may be empty.

    Raises UserError that says `path:line`. What is wrong with a single row goes to `on_bad`, if
    there is one, and that row is left out."""
    if text is not None and template is not None:
        raise UserError("a text column and a template exclude each other")
    named: Template = [] if text is None else [("", text)]
    if template is not None:
        named = _parse_template(template)
    need = [column for _, column in named if column] + ([] if id is None else [id])
    number = 0

    def skip(bad: BadRow) -> None:
        nonlocal number
        number += 1
        if on_bad is None:
            raise bad
        on_bad(bad)

    for path in input_files(paths, format):
        pieces = named
        for row in read_rows(path, format=format, need=need, on_bad=skip):
            pieces = pieces or [("", text_column(list(row.values), id))]
            try:
                row_id = str(number) if id is None else row.id(id)
                record = Record(row_id, _fill(pieces, row), row.where)
            except BadRow as bad:
                skip(bad)
            else:
                number += 1
                yield record


def input_files(paths: StrPath | Iterable[StrPath], format: str | None = None) -> list[str]:
    """The files behind paths, in order; of a folder all that can be read, sorted, hidden names left
    out.

    Without a format these are the ones whose name says it. UserError for a folder without any."""
    files: list[str] = []
    for path in [paths] if isinstance(paths, (str, os.PathLike)) else paths:
        name = os.fspath(path)
        if name == STDIN or not Path(name).is_dir():
            files.append(name)
            continue
        inside = [file for file in sorted(Path(name).rglob("*")) if _is_input(file, name, format)]
        if not inside:
            formats = "CSV, TSV, JSONL, txt, Parquet"
            raise UserError(f"{name}: the folder holds no file that can be read ({formats})")
        files += map(str, inside)
    if not files:
        raise UserError("no input: name files, folders, or - for standard input")
    return files


def _is_input(file: Path, folder: str, format: str | None) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return not hidden and file.is_file() and bool(format or format_by_name(file.name))


def _parse_template(template: str) -> Template:
    """UserError for a template that is more than text and column names in braces."""
    try:
        fields = list(string.Formatter().parse(template))
    except ValueError as fault:
        reason = f"{fault}; a brace of the text itself is doubled"
        raise UserError(f"template {template!r}: {reason}") from fault
    columns = [name for _, name, _, _ in fields if name is not None]
    if not all(columns) or not columns or any(spec or conv for _, _, spec, conv in fields):
        hint = "name columns in braces, like '{title} {body}', and nothing else"
        raise UserError(f"template {template!r}: {hint}")
    return [(literal, name) for literal, name, _, _ in fields]


def _fill(template: Template, row: Row) -> str:
    return "".join([text + (row.text(column) if column else "") for text, column in template])
