"""What is in your pairs: lengths, truncation, repeats, and the floor that repeats put under the
loss.

The file is read once, a row at a time. Of each text a 64-bit hash is kept: 8 bytes a text, and
among 10 million texts two share one with a probability of 3 in a million. A text that is quoted as
repeated stands in one of 16,384 rows at least. Token counts are those of a random sample of the
rows where there are more than 10,000."""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, chain, islice, repeat
from typing import Any

import numpy as np

from minilm_retriever.curation.duplicates import Repeats, count_repeats
from minilm_retriever.data.distinct import deduplicate
from minilm_retriever.data.pair_source import PairSource
from minilm_retriever.errors import UserError
from minilm_retriever.formats.rows import BadRow, EmptyText, OnBad
from minilm_retriever.pretrained.tokenizer import TextTokenizer
from minilm_retriever.progress import escape
from minilm_retriever.types import IntArray

SAMPLE = 10_000  # rows whose texts are tokenised
BATCH_ROWS = 2048  # of them at a time
KEPT = 1 << 14  # texts of a column that may be among the most repeated
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
    source: PairSource,
    tokenizer: TextTokenizer,
    batch_size: int = 16,
    on_bad: OnBad | None = None,
) -> Inspection:
    """Read pairs once and count what is in them, with the model's tokenizer.

    Raises UserError where no row can be used, or the columns are not clear."""
    unreadable, empty = BadRows(), BadRows()
    sample, hashes = Sample(tokenizer), (array("q"), array("q"), array("q"))
    frequent = [Frequent() for _ in hashes]
    rows = own_negatives = 0
    for row in source.rows():
        if isinstance(row, BadRow):
            (empty if isinstance(row, EmptyText) else unreadable).add(row)
            if on_bad:
                on_bad(row)
            continue
        texts = [text.strip() for text in (row.query, row.document, *row.negatives)]
        for text, column in zip(texts, chain((0, 1), repeat(2)), strict=False):
            hashes[column].append(hash(text))
            frequent[column].add(text)
        own_negatives += texts[2:].count(texts[1])
        sample.add(rows, texts)
        rows += 1
    if not rows or not source.pair:
        raise UserError(unreadable.first or empty.first or f"{source.name}: there are no pairs")
    names = [source.pair.query, source.pair.document]
    names += [" ".join(source.pair.negatives)] if hashes[2] else []
    numbers = [np.frombuffer(column, dtype=np.int64) for column in hashes]
    queries, documents, _ = numbers
    identical = queries == documents
    swapped = np.isin(queries, documents) & np.isin(documents, queries) & ~identical
    lengths, limit = sample.token_counts(), tokenizer.max_length
    most = [texts.most(column) for texts, column in zip(frequent, numbers, strict=True)]
    return Inspection(
        path=source.name,
        columns=tuple(names),
        limit=limit,
        repeats=count_repeats(queries, documents, batch_size),
        tokens={name: Tokens.of(c, limit) for name, c in zip(names, lengths, strict=True)},
        sampled_rows=len(lengths[0]),
        most_repeated=dict(zip(names, most, strict=False)),
        unreadable=unreadable,
        empty=empty,
        identical=int(identical.sum()),
        swapped=int(swapped.sum()),
        own_negatives=own_negatives,
    )


class Frequent:
    """The texts that may be the most frequent of a column, few of them in memory.

    Source: J. Misra and D. Gries, Finding repeated elements, 1982. Every text that stands in more
    than one of KEPT rows is among them."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def add(self, text: str) -> None:
        if text in self.counts or len(self.counts) < KEPT:
            self.counts[text] = self.counts.get(text, 0) + 1
        else:
            self.counts = {text: count - 1 for text, count in self.counts.items() if count > 1}

    def most(self, hashes: IntArray) -> list[tuple[int, str]]:
        """How often, and the text, of those that stand there twice at least; ties by their first
        rows. hashes (N,) of all texts."""
        values, first, counts = np.unique(hashes, return_index=True, return_counts=True)
        kept = {hash(text): text for text in self.counts}
        order = np.lexsort((first, -counts))
        known = (i for i in order.tolist() if int(values[i]) in kept and counts[i] > 1)
        return [(int(counts[i]), kept[int(values[i])]) for i in islice(known, QUOTED)]


class Sample:
    """Token counts of at most SAMPLE rows, each row equally likely; few texts lie in memory."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        # With room for one token more, so that a text that is cut differs from one that just fits.
        self.tokenizer = tokenizer.with_max_length(tokenizer.max_length + 1)
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

    def token_counts(self) -> list[IntArray]:
        """Of queries, of documents, and of hard negatives if there are any."""
        self._tokenize()
        rows = list(self.lengths.values())
        columns = [row[0] for row in rows], [row[1] for row in rows]
        negatives = [length for row in rows for length in row[2:]]
        return [np.array(lengths) for lengths in (*columns, negatives) if lengths]

    def _tokenize(self) -> None:
        if self.waiting:
            texts, inverse = deduplicate([text for row in self.waiting.values() for text in row])
            lengths = self.tokenizer.tokenize(texts).lengths[inverse]
            ends = list(accumulate(map(len, self.waiting.values())))
            for place, row in zip(self.waiting, np.split(lengths, ends[:-1]), strict=True):
                self.lengths[place] = row.tolist()
            self.waiting = {}


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
    lines += [*summary(r).splitlines(), *(f"- {line}" for line in advice(i))]
    return "\n".join(map(escape, lines))


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
