"""What people bring, as the jobs want it: texts to encode, pairs to train on, scored pairs to
evaluate with."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from minilm_retriever.data.lines import StrPath
from minilm_retriever.data.readers import read_rows
from minilm_retriever.data.values import Unusable, filled_text, number_of
from minilm_retriever.errors import UserError

PAIR_COLUMNS = (("sentence_0", "sentence_1"), ("anchor", "positive"))
SCORED_COLUMNS = ("sentence1", "sentence2", "score")
_NEGATIVE = re.compile(r"negative(_?[0-9]+)?|sentence_([2-9]|[1-9][0-9]+)")


# --- texts ----------------------------------------------------------------------------------------


# --- pairs ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    """Rows to train on, by column: the query, what answers it, and hard negatives if there are
    more."""

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


def read_pairs(
    path: StrPath, columns: Sequence[str] | None = None, *, format: str | None = None
) -> Pairs:
    """Read training pairs into memory, with the columns named or chosen by `pair_columns`.

    Raises UserError with `path:line`, also for a text of nothing but white space: there is nothing
    to learn from it."""
    if columns is not None and (len(columns) < 2 or len(set(columns)) < len(columns)):
        raise UserError(
            f"pairs need two different columns or more, not {', '.join(columns) or 'none'}"
        )
    names: tuple[str, ...] = tuple(columns or ())
    texts: list[list[str]] = [[] for _ in names]
    lines: list[int] = []
    for row in read_rows(path, format=format, need=names):
        if not names:
            names = pair_columns(list(row.values), row.where)
            texts = [[] for _ in names]
        try:
            for name, column in zip(names, texts, strict=True):
                column.append(filled_text(row, name))
        except Unusable as reason:
            raise UserError(f"{row.where}: {reason}") from None
        lines.append(row.line)
    return Pairs(os.fspath(path), names, texts, lines)


def pair_columns(columns: Sequence[str], where: str) -> tuple[str, ...]:
    """sentence_0 and sentence_1, else anchor and positive, else the first two; and the hard
    negatives behind them.

    Hard negatives are the columns negative, negative_1, ... and sentence_2, sentence_3, ... in the
    order of the file."""
    pair = next((known for known in PAIR_COLUMNS if set(known) <= set(columns)), tuple(columns[:2]))
    if len(pair) < 2:
        raise UserError(
            f"{where}: pairs need two columns, there is only {', '.join(columns) or 'none'}"
        )
    return (*pair, *(name for name in columns if _NEGATIVE.fullmatch(name) and name not in pair))


def read_scored_pairs(
    path: StrPath, *, format: str | None = None
) -> tuple[list[str], list[str], list[float]]:
    """Read the columns sentence1, sentence2 and score (a finite number); UserError with
    `path:line`."""
    first, second, score = SCORED_COLUMNS
    left: list[str] = []
    right: list[str] = []
    scores: list[float] = []
    for row in read_rows(path, format=format, need=SCORED_COLUMNS):
        try:
            left.append(filled_text(row, first))
            right.append(filled_text(row, second))
            scores.append(number_of(row, score))
        except Unusable as reason:
            raise UserError(f"{row.where}: {reason}") from None
    return left, right, scores


# --- one value ------------------------------------------------------------------------------------
