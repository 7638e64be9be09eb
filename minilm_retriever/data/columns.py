"""Which columns of a file hold what, where none are named."""

from __future__ import annotations

import re
from collections.abc import Sequence

from minilm_retriever.errors import UserError

PAIR_COLUMNS = (("sentence_0", "sentence_1"), ("anchor", "positive"))
TEXT_COLUMNS = ("text", "sentence", "body", "sentence_0", "query")
_NEGATIVE = re.compile(r"negative(_?[0-9]+)?|sentence_([2-9]|[1-9][0-9]+)")
_ID = re.compile(r"_?id|.+_id", re.IGNORECASE)


def check_header(header: Sequence[str], need: Sequence[str], where: str) -> None:
    """UserError where a column is there twice, or one that is needed is not."""
    columns = set[str]()
    for name in header:
        if name in columns:
            raise UserError(f"{where}: the column {name!r} is there twice")
        columns.add(name)
    for name in need:
        if name not in columns:
            raise UserError(f"{where}: no column {name!r}; there are: {', '.join(header)}")


def text_column(columns: Sequence[str], id: str | None = None) -> str:
    """The column that holds the text: the only one, one of TEXT_COLUMNS, else the first.

    Neither the id column nor one that is called id (`id`, `_id`, `doc_id`, ...) is chosen while
    there is another."""
    known = [name for name in TEXT_COLUMNS if name in columns and name != id]
    others = [name for name in columns if name != id and not _ID.fullmatch(name)]
    return [*known, *others, *columns, TEXT_COLUMNS[0]][0]


def pair_columns(columns: Sequence[str], where: str) -> tuple[str, ...]:
    """sentence_0 and sentence_1, else anchor and positive, else the first two; then hard negatives.

    Hard negatives are the columns negative, negative_1, ... and sentence_2, sentence_3, ... in the
    order of the file."""
    pair = next((known for known in PAIR_COLUMNS if set(known) <= set(columns)), tuple(columns[:2]))
    if len(pair) < 2:
        there = ", ".join(columns) or "none"
        raise UserError(f"{where}: pairs need two columns, there is only {there}")
    return (*pair, *(name for name in columns if _NEGATIVE.fullmatch(name) and name not in pair))


def check_pair_columns(columns: Sequence[str] | None) -> tuple[str, ...]:
    """The columns that were named, or none; UserError where they cannot hold pairs."""
    if columns is not None and (len(columns) < 2 or len(set(columns)) < len(columns)):
        names = ", ".join(columns) or "none"
        raise UserError(f"pairs need two different columns or more, not {names}")
    return tuple(columns or ())
