"""Pairs out of whatever holds them, one at a time: which columns, which rows, and the messages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from minilm_retriever.data import columns as choice
from minilm_retriever.data.beir import BeirFolder, beir_split
from minilm_retriever.data.columns import Column, PairColumns, columns_of, quoted, sampled
from minilm_retriever.data.filters import RowFilter
from minilm_retriever.data.texts import sources_of
from minilm_retriever.errors import UserError
from minilm_retriever.formats import names
from minilm_retriever.formats.objects import is_object, object_name
from minilm_retriever.formats.readers import RowSource
from minilm_retriever.formats.reading import Reading
from minilm_retriever.formats.rows import BadRow, Row
from minilm_retriever.formats.values import LISTS

LIST_NEGATIVES = 7  # of a row's list, as FlagEmbedding and Tevatron take by default


class PairRow(NamedTuple):
    """A query, a document that answers it, hard negatives, and where the row stands."""

    query: str
    document: str
    negatives: Sequence[str]
    score: float
    place: tuple[str, int]


@dataclass
class PairSource:
    """The pairs of a file, folder or object, one at a time.

    columns: query, document, hard negatives; chosen by `pair_columns` where there are none. A row
    with several documents is a pair with each. scores: whether a column of scores is needed (True),
    taken if there (None), or refused unless a condition makes pairs of it (False)."""

    source: object
    columns: Sequence[str] = ()
    positives_where: str | None = None
    min_score: float | None = None
    max_negatives: int | None = None
    reading: Reading = Reading()
    scores: bool | None = False
    keep_negatives: bool = False  # take columns of them also where two others are named

    # Once rows were read:
    pair: PairColumns | None = None
    score: str | None = None  # the column of scores
    note: str = ""  # what is read, and why
    findings: Sequence[str] = ()  # of that, what was found out about the file
    most_negatives: int = 0  # of a row, as it stands there

    def __post_init__(self) -> None:
        names.check_pair_columns(self.columns)
        if self.positives_where is not None and self.min_score is not None:
            raise UserError("--positives-where and --min-score exclude each other")
        where = self.positives_where
        self.condition = None if where is None else RowFilter.parse(where)
        self.name = object_name(self.source) if is_object(self.source) else str(self.source)

    def rows(self) -> Iterator[PairRow | BadRow]:
        """Each pair, or what is wrong with a row; UserError where the columns are not clear."""
        if split := beir_split(self.source):
            yield from self._beir_rows(*split)
            return
        for source in sources_of(self.source, self.reading):
            yield from self._rows_of(RowSource(source, self.reading))

    def _rows_of(self, source: RowSource) -> Iterator[PairRow | BadRow]:
        named = self.pair.names if self.pair else self.columns
        sample, rows = sampled(source.rows(named))
        known: set[str] | None = None
        for row in rows:
            if isinstance(row, BadRow):
                yield row
                continue
            try:
                if known is None:
                    known = self._choose(sample or [row], source)
                if not row.values.keys() <= known:
                    self._check_late(row, known)
                if self.condition is None or self.condition.keeps(row):
                    yield from self._pairs(row)
            except BadRow as bad:
                yield bad

    def _pairs(self, row: Row) -> Iterator[PairRow]:
        assert self.pair
        query = row.filled_text(self.pair.query)
        documents = row.texts(self.pair.document)
        if not documents and isinstance(row.value(self.pair.document), (list, tuple)):
            raise row.empty(self.pair.document, "is empty")
        documents = documents or [row.filled_text(self.pair.document)]
        negatives = [text for name in self.pair.negatives for text in row.texts(name)]
        self.most_negatives = max(self.most_negatives, len(negatives))
        score = row.number(self.score) if self.score else 1.0
        for document in documents:
            yield PairRow(query, document, negatives[: self.max_negatives], score, row[1:3])

    def _choose(self, sample: Sequence[Row], source: RowSource) -> set[str]:
        """Choose the columns by some rows; returns the names of all."""
        columns = columns_of(sample, named=bool(self.columns))
        where = sample[0].where
        if self.pair is None:
            pair = choice.named_pair(self.columns) if self.columns else None
            if pair and self.keep_negatives and not pair.negatives:
                pair = replace(pair, negatives=choice.negative_columns(columns, pair.names))
            pair = pair or choice.pair_columns(columns, where)
            if names.are_positions(pair.names) and _is_header(sample[0], pair):
                what = "the first row holds names of columns: leave it out, or give --header"
                raise UserError(f"{where}: {what}")
            self._choose_scores(columns, pair, where)
            self.pair = pair
            lists = any(c.kind == LISTS for c in columns if c.name in pair.negatives)
            if self.max_negatives is None and lists:
                self.max_negatives = LIST_NEGATIVES
            self.note = self._describe(columns, sample, source)
        return {name for row in sample for name in row.values}

    def _choose_scores(self, columns: Sequence[Column], pair: PairColumns, where: str) -> None:
        judged = choice.judgement_column(columns, pair.names)
        if self.condition is not None:
            return
        if self.min_score is not None:
            if judged is None:
                what = f"--min-score: no column of scores; {choice.table(columns)}"
                raise UserError(f"{where}: {what}; --positives-where 'COLUMN>=X' names one")
            self.condition = RowFilter(judged.name, ">=", str(self.min_score))
        elif self.scores and judged is None:
            raise UserError(f"{where}: no column of scores; {choice.table(columns)}")
        elif judged is not None and (self.scores or not self.columns):
            if judged.is_judgement and self.scores is False:
                choice.refuse_judgement(judged, pair, where)
            self.score = judged.name if judged.is_judgement or self.scores else None

    def _check_late(self, row: Row, known: set[str]) -> None:
        """UserError for a column that comes late, in JSON, and would have been taken."""
        late = [name for name in row.values if name not in known]
        known.update(late)
        patterns = (names.QUERY[0], *names.DOCUMENT[:-1], names.NEGATIVE)
        for name in late if not self.columns else ():
            if names.is_label(name) or any(p.fullmatch(names.plain(name)) for p in patterns):
                what = f"the column {name!r} first comes in this row"
                raise UserError(f"{row.where}: {what}: say with --columns which are to be read")

    def _describe(self, columns: Sequence[Column], sample: Sequence[Row], source: RowSource) -> str:
        """One line: what is read, why, what not, and the first row."""
        assert self.pair
        query, document, negatives = self.pair.query, self.pair.document, self.pair.negatives
        parts = [f"{source.name}: columns {query} -> {document}"]
        parts += [f", negatives {names.listed(negatives)}"] if negatives else []
        parts += [f", scores {self.score}"] if self.score else []
        parts += [f", rows of {self.condition}"] if self.condition else []
        parts.append(f" ({'; '.join([self.pair.why, *source.notes])})")
        self.findings = list(source.notes)
        used = [*self.pair.names, self.score or (self.condition.column if self.condition else "")]
        parts.append(choice.left_out(columns, used))
        if names.is_swapped(query, document):
            parts.append("; by their names these are the document and the query: swapped?")
        first, *_ = sample
        shown = (quoted(first_text(first, name)) for name in (query, document))
        return "".join([*parts, f"; row {first.line}: ", " -> ".join(shown)])

    def _beir_rows(self, folder: Path, split: str) -> Iterator[PairRow]:
        beir = BeirFolder.open(folder, split)
        self.pair = PairColumns("query", "document", (), "a BEIR folder")
        for query, document, line in beir.pairs():
            if not self.note:
                what = "; ".join(["columns query -> document (a BEIR folder)", *beir.notes])
                self.note = f"{beir.qrels}: {what}; {quoted(query)} -> {quoted(document)}"
            yield PairRow(query, document, (), 1.0, (str(beir.qrels), line))


def _is_header(row: Row, pair: PairColumns) -> bool:
    texts = [row.values.get(name) for name in (pair.query, pair.document)]
    return all(isinstance(text, str) and names.is_known(text) for text in texts)


def first_text(row: Row, column: str) -> object:
    """For people, whatever the column holds."""
    try:
        return next(iter(row.texts(column)), "")
    except BadRow:
        return row.values.get(column)
