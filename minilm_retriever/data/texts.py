"""Texts to encode, from files, folders and standard input."""

from __future__ import annotations

import os
import re
import string
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from minilm_retriever.data.lines import STDIN, StrPath
from minilm_retriever.data.readers import BadRow, OnBad, Row, kind_by_name, read_rows
from minilm_retriever.data.values import Unusable, id_of, text_of
from minilm_retriever.errors import UserError

TEXT_COLUMNS = ("text", "sentence", "body", "sentence_0", "query")


_ID = re.compile(r"_?id|.+_id", re.IGNORECASE)


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
    wanted = (
        _template_columns(template) if template is not None else [text] if text is not None else []
    )
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
            compose = compose or _composer(
                template, text if text is not None else text_column(list(row.values), id)
            )
            try:
                record = Record(
                    str(number) if id is None else id_of(row, id), compose(row), row.where
                )
            except Unusable as reason:
                if on_bad is None:
                    raise UserError(f"{row.where}: {reason}") from None
                skip(BadRow(row.where, str(reason), row.raw.rstrip("\r\n") or repr(row.values)))
                continue
            number += 1
            yield record


def input_files(paths: StrPath | Iterable[StrPath], format: str | None = None) -> list[str]:
    """The files behind paths, in order; of a folder all that can be read, sorted, hidden names left
    out.

    Without a format these are the ones whose name tells what is in them. UserError for a folder
    without any."""
    found = []
    for path in [paths] if isinstance(paths, (str, os.PathLike)) else paths:
        name = os.fspath(path)
        if name == STDIN or not Path(name).is_dir():
            found.append(name)
            continue
        inside = [
            file
            for file in sorted(Path(name).rglob("*"))
            if _is_input(file.relative_to(name), file, format)
        ]
        if not inside:
            raise UserError(
                f"{name}: the folder holds no file that can be read (CSV, TSV, JSONL, txt, Parquet)"
            )
        found += map(str, inside)
    if not found:
        raise UserError("no input: name files, folders, or - for standard input")
    return found


def _is_input(inside: Path, file: Path, format: str | None) -> bool:
    hidden = any(part.startswith(".") for part in inside.parts)
    return not hidden and file.is_file() and bool(format or kind_by_name(file.name))


def text_column(columns: Sequence[str], id: str | None = None) -> str:
    """The column that holds the text, where none is named: the only one, one of TEXT_COLUMNS, else
    the first.

    Neither the id column nor one that is called id (`id`, `_id`, `doc_id`, ...) is chosen while
    there is another."""
    if known := [name for name in TEXT_COLUMNS if name in columns and name != id]:
        return known[0]
    rest = [name for name in columns if name != id and not _ID.fullmatch(name)]
    return [*rest, *columns, TEXT_COLUMNS[0]][0]


def _composer(template: str | None, column: str) -> Callable[[Row], str]:
    if template is None:
        return lambda row: text_of(row, column)
    pieces = [(literal, name) for literal, name, _, _ in string.Formatter().parse(template)]
    return lambda row: "".join(
        literal + (text_of(row, name) if name is not None else "") for literal, name in pieces
    )


def _template_columns(template: str) -> list[str]:
    """The columns that a template names; UserError for one that is more than text and names in
    braces."""
    try:
        fields = [field for field in string.Formatter().parse(template) if field[1] is not None]
    except ValueError as fault:
        raise UserError(
            f"template {template!r}: {fault}; a brace of the text itself is doubled"
        ) from fault
    if not fields or any(not name or spec or conversion for _, name, spec, conversion in fields):
        raise UserError(
            f"template {template!r}: name columns in braces, like '{{title}} {{body}}', and nothing else"
        )
    return [name for _, name, _, _ in fields if name]
