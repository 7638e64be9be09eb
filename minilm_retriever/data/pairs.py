"""Pairs to train on, and scored pairs to evaluate with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from minilm_retriever.data.columns import check_pair_columns, pair_columns
from minilm_retriever.data.readers import read_rows
from minilm_retriever.types import StrPath

SCORED_COLUMNS = ("sentence1", "sentence2", "score")


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
    names = check_pair_columns(columns)
    texts: list[list[str]] = []
    lines: list[int] = []
    for row in read_rows(path, format=format, need=names):
        names = names or pair_columns(list(row.values), row.where)
        texts = texts or [[] for _ in names]
        for name, column in zip(names, texts, strict=True):
            column.append(row.filled_text(name))
        lines.append(row.line)
    return Pairs(os.fspath(path), names, texts, lines)


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
        left.append(row.filled_text(first))
        right.append(row.filled_text(second))
        scores.append(row.number(score))
    return left, right, scores
