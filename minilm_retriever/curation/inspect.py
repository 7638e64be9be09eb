"""What is in your pairs: lengths, truncation, repeats, and the floor that repeats put under the
loss.

The file is read once, a row at a time (and again up to the rows that are quoted). Of each text a
64-bit hash is kept: 8 bytes a text, and among 10 million texts two share one with a probability of
3 in a million. Token counts are those of a random sample of the rows where there are more than
10,000."""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from minilm_retriever.curation.duplicates import Repeats, count_repeats
from minilm_retriever.data.columns import pair_columns
from minilm_retriever.data.distinct import deduplicate
from minilm_retriever.data.readers import read_rows
from minilm_retriever.data.rows import BadRow
from minilm_retriever.errors import UserError
from minilm_retriever.pretrained.tokenizer import TextTokenizer
from minilm_retriever.types import IntArray

SAMPLE = 10_000  # rows whose texts are tokenised
BATCH_ROWS = 2048  # of them at a time
QUOTED = 3  # most repeated texts of a column
PERCENTILES = (50, 90, 99)
BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Tokens:
    """Token counts of a column, [CLS] and [SEP] included, cut at the model's limit."""

    min: int
    mean: float
    percentiles: Mapping[int, int]
    max: int
    truncated: float  # share of the texts that are longer than the limit
    edges: Sequence[int]  # of the histogram's bins
    histogram: Sequence[int]  # texts in each bin

    @staticmethod
    def of(lengths: IntArray, limit: int) -> Tokens:
        """lengths (N,), to be cut at the limit."""
        cut = lengths.clip(max=limit)
        low, high = int(cut.min()), int(cut.max())
        width = math.ceil((high - low + 1) / 16)
        edges = list(range(low, high + width + 1, width))
        return Tokens(
            min=low,
            mean=float(cut.mean()),
            percentiles={p: int(np.percentile(cut, p, method="inverted_cdf")) for p in PERCENTILES},
            max=high,
            truncated=float((lengths > limit).mean()),
            edges=edges,
            histogram=np.histogram(cut, edges)[0].tolist(),
        )


@dataclass
class BadRows:
    """Rows that training refuses."""

    rows: int = 0
    first: str = ""  # path:line and what is wrong

    def add(self, bad: BadRow) -> None:
        self.rows += 1
        self.first = self.first or str(bad)


@dataclass(frozen=True)
class Inspection:
    """Counts of rows unless stated otherwise."""

    path: str
    columns: tuple[str, ...]
    limit: int  # tokens that the model takes
    repeats: Repeats
    tokens: dict[str, Tokens]
    sampled_rows: int  # over which token counts are stated
    most_repeated: dict[str, list[tuple[int, str]]]  # by column, the most frequent first
    unreadable: BadRows
    empty: BadRows
    identical: int  # the query is the document
    swapped: int  # the query stands elsewhere as a document, and the document as a query
    own_negatives: int  # a hard negative is the row's own document

    def as_json(self) -> dict[str, Any]:
        """For machines; the repeats' figures stand at the top."""
        values = asdict(self)
        repeats = values.pop("repeats")
        return {**values, **repeats, "advice": advice(self)}


def inspect(
    path: str, tokenizer: TextTokenizer, columns: Sequence[str] = (), batch_size: int = 16
) -> Inspection:
    """Read a file of pairs and count what is in it, with the model's tokenizer.

    Raises UserError where no row can be used, or a column is missing."""
    scan, sample = Scan(path, tuple(columns)), Sample(tokenizer)
    arrays: list[array[int]] = []
    for row, texts in enumerate(scan.texts()):
        arrays = arrays or [array("q") for _ in texts]
        for column, text in zip(arrays, texts, strict=True):
            column.append(hash(text))
        sample.add(row, texts)
    if not arrays:
        raise UserError(scan.unreadable.first or scan.empty.first)
    hashes = [np.frombuffer(column, dtype=np.int64) for column in arrays]
    queries, documents = hashes[:2]
    identical = queries == documents
    swapped = np.isin(queries, documents) & np.isin(documents, queries) & ~identical
    lengths = sample.token_counts()
    limit = tokenizer.max_length
    return Inspection(
        path=path,
        columns=scan.columns,
        limit=limit,
        repeats=count_repeats(queries, documents, batch_size),
        tokens={name: Tokens.of(lengths[:, i], limit) for i, name in enumerate(scan.columns)},
        sampled_rows=len(lengths),
        most_repeated=quote(Scan(path, scan.columns), [most_frequent(column) for column in hashes]),
        unreadable=scan.unreadable,
        empty=scan.empty,
        identical=int(identical.sum()),
        swapped=int(swapped.sum()),
        own_negatives=int(sum((column == documents).sum() for column in hashes[2:])),
    )


class Scan:
    """One pass over a file of pairs."""

    def __init__(self, path: str, columns: tuple[str, ...]) -> None:
        self.path, self.columns = path, columns
        self.unreadable, self.empty = BadRows(), BadRows()

    def texts(self) -> Iterator[list[str]]:
        """The texts of each row that training takes, without the white space around them."""
        for row in read_rows(self.path, need=self.columns, on_bad=self.unreadable.add):
            self.columns = self.columns or pair_columns(list(row.values), row.where)
            try:
                texts = [row.text(column).strip() for column in self.columns]
            except BadRow as bad:
                self.unreadable.add(bad)
                continue
            if all(texts):
                yield texts
            else:
                self.empty.add(row.bad(f"column {self.columns[texts.index('')]!r} is empty"))


class Sample:
    """Token counts of at most SAMPLE rows, each row equally likely; few texts lie in memory."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        # With room for one token more, so that a text that is cut differs from one that just fits.
        self.tokenizer = TextTokenizer(
            tokenizer.json.encode(),
            max_length=tokenizer.max_length + 1,
            lower_case=tokenizer.lower_case,
        )
        self.random = random.Random(0)
        self.lengths: dict[int, list[int]] = {}  # by place, of SAMPLE places
        self.waiting: dict[int, list[str]] = {}

    def add(self, row: int, texts: list[str]) -> None:
        """Reservoir sampling: row `row`, from 0, takes a free place, else a random one or none."""
        place = row if row < SAMPLE else self.random.randrange(row + 1)
        if place < SAMPLE:
            self.waiting[place] = texts
            if len(self.waiting) == BATCH_ROWS:
                self._tokenize()

    def token_counts(self) -> IntArray:
        """(rows, columns)"""
        self._tokenize()
        return np.array(list(self.lengths.values()))

    def _tokenize(self) -> None:
        if self.waiting:
            texts, inverse = deduplicate([text for row in self.waiting.values() for text in row])
            lengths = self.tokenizer.tokenize(texts).lengths[inverse]
            rows = lengths.reshape(len(self.waiting), -1).tolist()
            self.lengths.update(zip(self.waiting, rows, strict=True))
            self.waiting = {}


def most_frequent(hashes: IntArray) -> dict[int, int]:
    """The most frequent hashes that stand there twice at least, with how often."""
    values, counts = np.unique(hashes, return_counts=True)
    top = np.argsort(-counts, kind="stable")[:QUOTED]
    return {int(values[i]): int(counts[i]) for i in top if counts[i] > 1}


def quote(scan: Scan, wanted: list[dict[int, int]]) -> dict[str, list[tuple[int, str]]]:
    """Counts and texts by column, of hashes with their counts; reads on to the last of them."""
    quotes: list[dict[int, str]] = [{} for _ in wanted]
    for texts in scan.texts():
        if [*map(len, quotes)] == [*map(len, wanted)]:
            break
        for text, known, counts in zip(texts, quotes, wanted, strict=True):
            if hash(text) in counts:
                known[hash(text)] = text
    return {
        name: [(count, known.get(number, "")) for number, count in counts.items()]
        for name, counts, known in zip(scan.columns, wanted, quotes, strict=True)
    }


# --- as text --------------------------------------------------------------------------------------


def as_text(inspection: Inspection) -> str:
    """The report as text."""
    i, r = inspection, inspection.repeats
    query, document = i.columns[:2]
    distinct = f"{r.distinct_queries:,} of {query}, {r.distinct_documents:,} of {document}"
    sampled = f", in a sample of {i.sampled_rows:,} rows" if i.sampled_rows < r.rows else ""
    lines = [
        f"{i.path}: {r.rows:,} rows of {', '.join(i.columns)}",
        f"distinct: {r.distinct_pairs:,} pairs, {distinct}",
        f"tokens (limit {i.limit}{sampled}):",
    ]
    width = max(map(len, i.columns))
    for name, t in i.tokens.items():
        shares = "  ".join(f"{p} % {value}" for p, value in t.percentiles.items())
        bars = "".join(BARS[math.ceil(7 * n / max(t.histogram))] for n in t.histogram)
        lines.append(
            f"  {name:<{width}}  min {t.min}  mean {t.mean:.1f}  {shares}  max {t.max}  "
            f"{t.truncated:.1%} cut  {t.edges[0]} {bars} {t.edges[-1] - 1}"
        )
    for name, texts in i.most_repeated.items():
        lines += [f"most repeated {name}:"] if texts else []
        for count, text in texts:
            lines.append(f"  {count:,} x {text if len(text) < 90 else text[:87] + '...'}")
    return "\n".join([*lines, summary(r), *(f"- {line}" for line in advice(i))])


def summary(r: Repeats) -> str:
    """Two lines on batches drawn at random, also printed when training starts."""
    documents = f"{r.repeat_share:.1%} hold some document twice"
    queries = f"{r.query_repeat_share:.1%} some query twice"
    floor = f"the mean loss cannot go below {r.loss_floor:.4f}"
    passes = f"{r.steps:,} steps, over the {r.distinct_pairs:,} distinct pairs {r.distinct_steps:,}"
    batches = f"batches of {r.batch_size}: {documents}, {queries}; {floor}"
    return f"{batches}\na pass over all rows takes {passes}"


def advice(i: Inspection) -> list[str]:
    """What to do about it, a line each."""
    r, refused = i.repeats, "and training refuses them; the first"
    counts = [
        (i.unreadable.rows, f"rows are unreadable, {refused}: {i.unreadable.first}"),
        (i.empty.rows, f"rows are empty, {refused}: {i.empty.first}"),
        (i.identical, "rows have the same text on both sides: they teach nothing"),
        (i.swapped, "rows look swapped: both of their texts stand elsewhere on the other side"),
        (i.own_negatives, "hard negatives are their row's own document"),
        (r.rows - r.distinct_pairs, "rows repeat others: --distinct trains on each pair once"),
        (r.unplaceable, "rows a pass have no batch with --false-negatives avoid: too many repeats"),
    ]
    lines = [f"{count:,} {text}" for count, text in counts if count]
    if r.distinct_documents < 2:
        lines.append("every row has the same document: there is no negative to learn from")
    if r.loss_floor > 5e-4:
        batches = f"{r.repeat_share:.1%} of the batches push a query away from a copy of its own"
        remedy = "avoid draws batches without copies, mask leaves them out of the loss"
        lines.append(f"{batches} document: --false-negatives {remedy}")
    for name, t in i.tokens.items():
        if t.truncated > 0.001:
            longer = f"{t.truncated:.1%} of {name} is longer than {i.limit} tokens"
            lines.append(f"{longer}: the rest is not seen")
    return lines
