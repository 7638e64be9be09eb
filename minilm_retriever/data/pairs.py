"""Pairs to train on, in memory: queries, the documents that answer them, hard negatives, scores."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Unpack

from minilm_retriever.data.pair_source import PairRow, PairSource
from minilm_retriever.errors import UserError
from minilm_retriever.formats.reading import Reading, ReadingOptions
from minilm_retriever.formats.rows import OnBad
from minilm_retriever.types import StrPath


@dataclass(frozen=True)
class Pairs:
    """Rows to train on, by column: the query, what answers it, and hard negatives if there are
    more. A row with fewer negatives than others has an empty text in place of each."""

    path: str
    columns: tuple[str, ...]
    texts: list[list[str]]  # one list per column
    places: list[tuple[str, int]]  # path and line of each row
    scores: list[float] | None  # where a column of them was read
    note: str = ""  # which columns these are and why, for people
    findings: Sequence[str] = ()  # what was found out about the file, such as its separator

    def __len__(self) -> int:
        return len(self.places)

    def where(self, row: int) -> str:
        """`path:line` of a row."""
        path, line = self.places[row]
        return f"{path}:{line}"

    def digest(self) -> str:
        """SHA-256 of the columns and all texts."""
        digest = hashlib.sha256("\0".join(self.columns).encode())
        for texts in self.texts:
            digest.update("\0".join([str(len(texts)), *texts]).encode())
        return digest.hexdigest()

    def distinct(self) -> Pairs:
        """Each row once, where it first stands; white space around a text makes no difference."""
        first: dict[tuple[str, ...], int] = {}
        for row, texts in enumerate(zip(*self.texts, strict=True)):
            first.setdefault(tuple(text.strip() for text in texts), row)
        rows = list(first.values())
        return replace(
            self,
            texts=[[column[row] for row in rows] for column in self.texts],
            places=[self.places[row] for row in rows],
            scores=self.scores and [self.scores[row] for row in rows],
        )


def read_pairs(
    source: StrPath | object,
    columns: Sequence[str] | None = None,
    *,
    positives_where: str | None = None,
    min_score: float | None = None,
    max_negatives: int | None = None,
    scores: bool | None = False,
    on_bad: OnBad | None = None,
    **reading: Unpack[ReadingOptions],
) -> Pairs:
    """Read training pairs into memory: from a file, a folder (of files, or BEIR's), a list of dicts
    or tuples, a data frame, or a datasets.Dataset.

    columns: query, document and hard negatives; without them `pair_columns` chooses.
    positives_where: a condition such as "label=1" or "score>=0.8" on the rows to take; min_score: a
    bound on the column of scores. max_negatives: of a row; by default 7 of a list.
    scores: also read a column of them (None: if there is one). on_bad takes the rows that cannot be
    used; without it the first is raised. reading: see `Reading`.

    Raises UserError with `path:line`, also for a text of nothing but white space: there is nothing
    to learn from it."""
    pairs = PairSource(
        source,
        tuple(columns or ()),
        positives_where,
        min_score,
        max_negatives,
        Reading(**reading),
        scores,
    )
    return collect(pairs, on_bad)


def collect(source: PairSource, on_bad: OnBad | None = None) -> Pairs:
    """All pairs of a source, as columns."""
    rows: list[PairRow] = []
    for row in source.rows():
        if isinstance(row, PairRow):
            rows.append(row)
        elif on_bad is None:
            raise row
        else:
            on_bad(row)
    if not rows or not source.pair:
        what = f"no row has {source.condition}" if source.condition else "all rows are bad"
        raise UserError(f"{source.name}: there are no pairs: {what}")
    width = max(len(row.negatives) for row in rows)
    held = [[row.query for row in rows], [row.document for row in rows]]
    held += [[nth(row.negatives, n) for row in rows] for n in range(width)]
    return Pairs(
        source.name,
        (source.pair.query, source.pair.document, *negative_names(source.pair.negatives, width)),
        held,
        [row.place for row in rows],
        [row.score for row in rows] if source.score else None,
        source.note + describe_negatives(source, min(len(row.negatives) for row in rows), width),
        source.findings,
    )


def nth(texts: Sequence[str], number: int) -> str:
    """A text by its place; empty where there is none."""
    return texts[number] if number < len(texts) else ""


def negative_names(columns: Sequence[str], count: int) -> list[str]:
    """Of `count` negatives a row, out of these columns."""
    if len(columns) == count:
        return list(columns)
    if len(columns) > count:
        return list(columns[:count])
    return [f"{columns[0]}_{number}" for number in range(1, count + 1)]


def describe_negatives(source: PairSource, least: int, most: int) -> str:
    """How many negatives the rows have, where that is not plain."""
    plain = source.pair and len(source.pair.negatives)
    if not most or least == most == source.most_negatives == plain:
        return ""
    line = f"; {least} to {most} negatives a row" if least < most else f"; {most} negatives a row"
    cut = f", the first of up to {source.most_negatives} (--max-negatives)"
    return line + (cut if most < source.most_negatives else "")


def read_scored_pairs(
    source: StrPath | object,
    columns: Sequence[str] | None = None,
    **reading: Unpack[ReadingOptions],
) -> tuple[list[str], list[str], list[float]]:
    """Read two columns of texts and one of scores (finite numbers), such as sentence1, sentence2
    and score; UserError with `path:line`."""
    pairs = read_pairs(source, columns, scores=True, **reading)
    return pairs.texts[0], pairs.texts[1], pairs.scores or []
