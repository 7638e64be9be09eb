"""Which columns are read, and why: those that somebody names, else those whose names are known,
else the only ones that hold text. What stays ambiguous is an error that shows the columns.

Columns of ids, numbers, dates, scores and labels are never taken unless they are named."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice

from minilm_retriever.errors import UserError
from minilm_retriever.formats import names, values
from minilm_retriever.formats.rows import BadRow, Row

SAMPLE_ROWS, SAMPLE_CELLS = 200, 40_000
SAMPLE_SIZE = 1 << 18  # characters
MOST_COLUMNS = 10_000  # looked at where none is named


@dataclass(frozen=True)
class Column:
    """A column by a sample of its values."""

    name: str
    kind: str
    example: object  # the first value that is there
    distinct: tuple[str, ...]  # of its values, sorted, a few
    asks: bool  # most of its values end in a question mark
    span: str = ""  # of numbers: from the least to the largest

    @cached_property
    def key(self) -> str:
        """Its name as names.py compares it."""
        return names.plain(self.name)

    @cached_property
    def is_text(self) -> bool:
        """Whether it may be taken though nobody names it."""
        return self.kind == values.TEXT and not names.is_id(self.name) and not self.is_judgement

    @property
    def may_be_text(self) -> bool:
        """Whether it may be taken for its name: lists too, and where the sample has no value."""
        return self.is_text or self.kind in (values.LISTS, values.NOTHING)

    @cached_property
    def is_judgement(self) -> bool:
        """Whether it says of each row whether its texts belong together, or how much."""
        small = self.kind in (values.WHOLE, values.NUMBERS, values.TRUTH, values.LABELS)
        short = self.kind == values.TEXT and all(len(v.split()) < 3 for v in self.distinct)
        if names.is_label(self.name):
            return small or short
        if self.kind == values.NUMBERS and names.are_positions([self.name]):
            return True  # beside texts without names
        return values.are_verdicts(self.distinct)

    @property
    def role(self) -> str:
        """What it is, for people."""
        if self.kind == values.TEXT and names.is_id(self.name):
            return values.IDS
        return "labels" if self.kind == values.TEXT and self.is_judgement else self.kind


Rows = Iterator[Row | BadRow]


def quoted(value: object, length: int = 40) -> str:
    """The beginning of a value, in one line."""
    text = " ".join((value if isinstance(value, str) else repr(value))[: 4 * length].split())
    return f"'{text if len(text) <= length else text[: length - 1] + '…'}'"


def sampled(rows: Rows) -> tuple[list[Row], Rows]:
    """Some rows from the beginning, and all of them again; what goes wrong there comes later."""
    first: list[Row | BadRow] = []

    def end(fault: UserError) -> Rows:
        raise fault
        yield first[0]

    cells = size = 0
    try:
        while cells < SAMPLE_CELLS and size < SAMPLE_SIZE and len(first) < SAMPLE_ROWS:
            row = next(rows, None)
            if row is None:
                break
            first.append(row)
            cells += len(row.values) if isinstance(row, Row) else 1
            size += row.size
    except UserError as fault:
        rows = end(fault)
    return [row for row in first if isinstance(row, Row)], chain(first, rows)


def columns_of(rows: Sequence[Row], named: bool) -> list[Column]:
    """The columns of these rows, in their order; UserError for too many of them if none is named,
    else the first."""
    cells: dict[str, list[object]] = {}
    for row in rows:
        for name, value in row.values.items():
            cells.setdefault(name, []).append(value)
    if len(cells) > MOST_COLUMNS and not named:
        what = f"{len(cells):,} columns: name those to read with --columns or --text"
        raise UserError(f"{rows[0].where}: {what}")
    return [_column(name, held) for name, held in islice(cells.items(), MOST_COLUMNS)]


def _column(name: str, held: Sequence[object]) -> Column:
    present = [value for value in held if not values.is_empty(value)]
    distinct = sorted({str(value)[:40] for value in present if not isinstance(value, (list, dict))})
    asking = sum(isinstance(value, str) and value.rstrip().endswith("?") for value in present)
    first = present[0] if present else None
    few, kind, span = tuple(distinct[:6]), values.kind_of(held), ""
    if kind in (values.WHOLE, values.NUMBERS):
        numbers = [n for n in map(values.as_number, present) if n == n]
        span = " to ".join(dict.fromkeys(f"{f(numbers):.4g}" for f in (min, max)))
    return Column(name, kind, first, few, 2 * asking > len(present), span)


# --- pairs ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairColumns:
    """The columns that a pair is read from."""

    query: str
    document: str
    negatives: tuple[str, ...]
    why: str

    @property
    def names(self) -> tuple[str, ...]:
        return (self.query, self.document, *self.negatives)


def named_pair(columns: Sequence[str]) -> PairColumns:
    """Columns that somebody named: query, document, hard negatives."""
    return PairColumns(columns[0], columns[1], tuple(columns[2:]), "named")


def pair_columns(columns: Sequence[Column], where: str) -> PairColumns:
    """The columns of query, document and hard negatives; UserError where they are not clear."""
    negatives = negative_columns(columns)
    named = [column for column in columns if column.may_be_text]
    named = [column for column in named if not names.NEGATIVE.fullmatch(column.key)]
    free = [column for column in named if column.is_text]
    families = names.numbered([column.name for column in named])
    if len(families) == 1 and not ranked(named, names.DOCUMENT):
        query, document, *more = families[0]
        return PairColumns(query, document, (*more, *negatives), "known names")
    if names.are_positions([column.name for column in columns]) and len(free) > 1:
        query, document, *more = (column.name for column in named if column.kind != values.NOTHING)
        return PairColumns(query, document, tuple(more), "by position")
    queries, documents = ranked(named, names.QUERY), ranked(named, names.DOCUMENT)
    why = "known names"
    if len(queries) + len(documents) < 2:
        queries, documents, why = only_texts(columns, free, queries, documents)
    if len(queries) == len(documents) == 1:
        return PairColumns(queries[0].name, documents[0].name, negatives, why)
    what = f"which column is the query, and which the document? {table(columns)}"
    if len(free) < 2:
        what = f"pairs need two columns of text: {table(columns)}"
    how = "name them with --columns QUERY DOCUMENT"
    if any(column.kind in (values.OBJECTS, values.LISTS) for column in columns):
        how = f"spread lists and objects into columns of texts, or {how}"
    elif len(columns) == 1:
        how += "; or is it another --format (csv, tsv, jsonl) or --separator?"
    raise UserError(f"{where}: {what}; {how}")


def negative_columns(columns: Sequence[Column], taken: Sequence[str] = ()) -> tuple[str, ...]:
    """Those of hard negatives by their names."""
    free = [column for column in columns if column.may_be_text and column.name not in taken]
    return tuple(column.name for column in free if names.NEGATIVE.fullmatch(column.key))


def ranked(columns: Sequence[Column], patterns: Sequence[re.Pattern[str]]) -> list[Column]:
    """Those whose names match the first of the patterns that any matches."""
    for pattern in patterns:
        if known := [column for column in columns if pattern.fullmatch(column.key)]:
            return known
    return []


def only_texts(
    columns: Sequence[Column],
    free: Sequence[Column],
    queries: list[Column],
    documents: list[Column],
) -> tuple[list[Column], list[Column], str]:
    """Query, document and why, where names tell one of them at most and no other text is there,
    but for texts about texts, such as titles. As they were where that is not clear."""
    known = (names.QUERY[0], *names.DOCUMENT[:-1])
    others = [column for column in columns if not column.may_be_text]
    if any(ranked(others, [pattern]) for pattern in known):
        return queries, documents, ""  # what should hold texts holds ids
    rest = [column for column in free if column not in (*queries, *documents)]
    missing = 2 - len(queries) - len(documents)
    why = "the only texts"
    if len(rest) > missing:
        aside = [column.name for column in rest if names.is_beside(column.name)]
        rest = [column for column in rest if column.name not in aside]
        why += f" beside {names.listed(aside)}"
    if len(rest) != missing or (missing == 2 and rest[1].asks and not rest[0].asks):
        return queries, documents, ""
    if not documents or names.is_document(documents[0].name) or names.is_beside(rest[0].name):
        return queries or rest[:1], documents or rest[-1:], why
    if columns.index(documents[0]) < columns.index(rest[0]):
        return queries, documents, ""  # `text`, and then something of it
    return rest, documents, why


def table(columns: Sequence[Column]) -> str:
    """Columns with an example of each, for a message."""
    shown = [
        f"{column.name[:60]} {quoted(column.example)}"
        + ("" if column.is_text else f" ({column.role})")
        for column in columns[:8]
    ]
    more = [f"and {len(columns) - 8:,} more"] if len(columns) > 8 else []
    return ", ".join([*shown, *more]) or "there are none"


def judgement_column(columns: Sequence[Column], taken: Sequence[str]) -> Column | None:
    """The column of labels or scores, if there is one; else one that is called so."""
    known = frozenset(taken)
    free = [column for column in columns if column.name not in known]
    named = [column for column in free if names.is_label(column.name)]
    judging = [column for column in (*named, *free) if column.is_judgement]
    return next(iter((*judging, *named)), None)


def refuse_judgement(judged: Column, pair: PairColumns, where: str) -> None:
    """UserError: labels or scores say that not every row is a pair that belongs together."""
    held = f"labels ({', '.join(judged.distinct)})"
    is_clear = values.are_verdicts(judged.distinct)
    take = f"--positives-where {judged.name}={values.positive(judged.distinct) or 'X'}"
    is_class = judged.kind == values.WHOLE and bool(re.search("label|class", judged.key))
    if judged.span and not is_class and not is_clear:
        held = f"scores ({judged.span})"
        take = "--min-score X, or learn the scores with --loss cosent"
    raise UserError(
        f"{where}: the column {judged.name!r} holds {held}, so not every row is a pair: take some "
        f"with {take}; all with --columns {' '.join(pair.names)}"
    )


# --- texts ----------------------------------------------------------------------------------------


def text_column(
    columns: Sequence[Column], where: str, id: str | None = None, *, queries: bool = False
) -> tuple[str, str]:
    """The column that holds the text, and why; UserError where it is not clear.

    queries: the texts are queries, so that a column of them comes first."""
    if len(columns) == 1:
        return columns[0].name, "the only column"
    texts = [column for column in columns if column.is_text and column.name != id]
    known = [column for column in texts if names.TEXT.fullmatch(column.key)]
    query_texts = ranked(texts, names.QUERY)
    if queries and len(query_texts) == 1:
        return query_texts[0].name, "known name"
    plainly = [column for column in known if column.key == "text"]
    if plainly or (len(known) == 1 and not query_texts):
        return (plainly or known)[0].name, "known name"
    aside = [column.name for column in texts if names.is_beside(column.name)]
    if len(texts) == 1:
        return texts[0].name, "the only text"
    if len(texts) - len(aside) == 1:
        chosen = next(column.name for column in texts if column.name not in aside)
        return chosen, f"the only text beside {names.listed(aside)}"
    what = "which column holds the text?" if texts else "no column holds texts:"
    raise UserError(f"{where}: {what} {table(columns)}; name it with --text")


# --- messages -------------------------------------------------------------------------------------


def left_out(columns: Sequence[Column], read: Sequence[str]) -> str:
    """The columns that are not read, and what they hold."""
    taken = frozenset(read)
    rest = [c for c in columns if c.name not in taken and c.kind != values.NOTHING]
    shown = [f"{c.name[:60]} ({c.role})" for c in rest[:6]]
    more = [f"{len(rest) - 6:,} more"] if len(rest) > 6 else []
    return f"; not read: {', '.join([*shown, *more])}" if rest else ""
