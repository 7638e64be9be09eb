"""What `inspect` counts, and how it reads: as text, as JSON and in a notebook."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from minilm_retriever.curation.duplicates import Repeats
from minilm_retriever.display import html_table
from minilm_retriever.formats.rows import BadRow
from minilm_retriever.progress import escape
from minilm_retriever.types import IntArray

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


@dataclass(frozen=True, repr=False)
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

    def __repr__(self) -> str:
        return as_text(self)

    def _repr_html_(self) -> str:
        r = self.repeats
        header = ["tokens", "min", "mean", *(f"{p} %" for p in PERCENTILES), "max", "cut"]
        rows = [
            (name, t.min, f"{t.mean:.1f}", *t.percentiles.values(), t.max, f"{t.truncated:.1%}")
            for name, t in self.tokens.items()
        ]
        caption = f"{self.path}: {r.rows:,} rows, {r.distinct_pairs:,} distinct pairs"
        return html_table(caption, header, rows, [*summary(r).splitlines(), *advice(self)])


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
