"""Texts to encode, from files, folders and standard input."""

from __future__ import annotations

import os
import string
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, Unpack

from minilm_retriever.data.columns import columns_of, left_out, quoted, sampled, text_column
from minilm_retriever.errors import UserError
from minilm_retriever.formats.lines import STDIN
from minilm_retriever.formats.objects import is_object
from minilm_retriever.formats.readers import RowSource, format_by_name
from minilm_retriever.formats.reading import Reading, ReadingOptions
from minilm_retriever.formats.rows import BadRow, OnBad, Row

QUERY_IDS = ("id", "_id", "query_id", "qid")
Template = list[tuple[str, str | None]]  # pieces of text, each with the column that follows it


class Record(NamedTuple):
    """One text to encode."""

    id: str
    text: str
    where: str  # path:line


def read_texts(
    sources: object,
    *,
    text: str | None = None,
    id: str | None = None,
    template: str | None = None,
    queries: bool = False,
    on_bad: OnBad | None = None,
    on_choice: Callable[[str], object] | None = None,
    **reading: Unpack[ReadingOptions],
) -> Iterator[Record]:
    """Yield the texts of files, of the files in folders, of standard input ("-"), or of a list of
    dicts, a data frame or a datasets.Dataset, in that order.

    The text is the column `text`, or a `template` such as "{title} {body}", or what `text_column`
    chooses for each file. The id is the column `id` (text or whole numbers), else the number of the
    row over all inputs, from 0; bad rows are counted, so that it tells the row whatever is skipped.
    Texts may be empty. queries: the texts are queries: prefer a column of them, and take ids from a
    column called id, query_id or qid. on_choice: takes a line on which columns are read, and why.

    Raises UserError that says `path:line`. What is wrong with a single row goes to `on_bad`, if
    there is one, and that row is left out."""
    if text is not None and template is not None:
        raise UserError("a text column and a template exclude each other")
    named: Template = [] if text is None else [("", text)]
    if template is not None:
        named = _parse_template(template)
    need = [column for _, column in named if column is not None] + ([] if id is None else [id])
    how, number, last_reason = Reading(**reading), 0, ""
    for one in sources_of(sources, how):
        source = RowSource(one, how)
        sample, rows = sampled(source.rows(need))
        choice: Choice | None = None
        for row in rows:
            try:
                if isinstance(row, BadRow):
                    raise row
                if choice is None:
                    choice = _choose(source, sample or [row], named, id, queries)
                    if on_choice and choice.why != last_reason:
                        on_choice(f"{source.name}: {choice.why}; {choice.example}")
                    last_reason = choice.why
                row_id = str(number) if choice.id is None else row.id(choice.id)
                record = Record(row_id, _fill(choice.pieces, row), row.where)
            except BadRow as bad:
                number += 1
                if on_bad is None:
                    raise
                on_bad(bad)
            else:
                number += 1
                yield record


class Choice(NamedTuple):
    """What the texts of a file are made of."""

    pieces: Template
    id: str | None
    why: str
    example: str


def _choose(
    source: RowSource, sample: Sequence[Row], named: Template, id: str | None, queries: bool
) -> Choice:
    columns, first = columns_of(sample, named=bool(named)), sample[0]
    pieces, why = named, "named"
    if not named:
        name, why = text_column(columns, first.where, id, queries=queries)
        pieces = [("", name)]
    if id is None and queries:
        id = next((name for name in QUERY_IDS if name in first.values), None)
    taken = [column for _, column in pieces if column is not None]
    ids = f", ids of {id}" if id else ""
    line = f"text column {' + '.join(taken)}{ids} ({'; '.join([why, *source.notes])})"
    line += left_out(columns, taken if id is None else [*taken, id])
    example = quoted(first.values.get(taken[0]))
    return Choice(pieces, id, line, f"row {first.line}: {example}")


def sources_of(source: Any, reading: Reading) -> list[Any]:
    """The files behind paths, or the one object."""
    if isinstance(source, Iterator):  # of paths, or of rows
        first = list(islice(source, 1))
        is_paths = not is_object(first)
        source = [*first, *source] if is_paths else chain(first, source)
    return [source] if is_object(source) else list(input_files(source, reading.format))


def input_files(paths: Any, format: str | None = None) -> list[str]:
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
    return "".join(
        [text + ("" if column is None else row.text(column)) for text, column in template]
    )
