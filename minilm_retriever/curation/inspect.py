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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from minilm_retriever.curation.duplicates import Repeats, count_repeats
from minilm_retriever.data.columns import pair_columns
from minilm_retriever.data.distinct import deduplicate
from minilm_retriever.data.readers import read_rows
from minilm_retriever.data.rows import BadRow, Row, lone_surrogate
from minilm_retriever.errors import UserError
from minilm_retriever.pretrained.tokenizer import TextTokenizer

Ids = npt.NDArray[np.int64]

SAMPLE = 10_000  # rows whose texts are tokenised
AT_A_TIME = 2048  # of them
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


@dataclass
class Fault:
    """Rows that training refuses."""

    rows: int = 0
    first: str = ""  # path:line and what is wrong

    def note(self, first: str) -> None:
        """One more."""
        self.rows += 1
        self.first = self.first or first


@dataclass(frozen=True)
class Inspection:
    """All that is found; counts of rows unless said otherwise."""

    path: str
    columns: tuple[str, ...]
    limit: int  # tokens that the model takes
    repeats: Repeats
    tokens: dict[str, Tokens]
    sampled_rows: int  # over which token counts are stated
    most_repeated: dict[str, list[tuple[int, str]]]  # by column, the most frequent first
    unreadable: Fault
    empty: Fault
    identical: int = 0  # the query is the document
    swapped: int = 0  # the query stands elsewhere as a document, and the document as a query
    own_negatives: int = 0  # a hard negative is the row's own document

    def as_json(self) -> dict[str, Any]:
        """For machines; the repeats' figures stand at the top."""
        mine = asdict(self)
        repeats = mine.pop("repeats")
        return {**mine, **repeats, "advice": advice(self)}


def inspect(
    path: str,
    tokenizer: TextTokenizer,
    *,
    columns: Sequence[str] | None = None,
    batch_size: int = 16,
) -> Inspection:
    """Read a file of pairs and say what is in it, with the model's tokenizer.

    Raises UserError where there is no row to look at, a column is missing, or batch_size is below
    1."""
    if batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, not {batch_size}")
    if columns is not None and (len(columns) < 2 or len(set(columns)) < len(columns)):
        raise UserError(f"--columns needs two different names at least, not {', '.join(columns)}")
    # With room for one token more, so that a text that is cut can be told from one that just fits.
    roomy = TextTokenizer(
        tokenizer.json.encode(),
        max_length=tokenizer.max_length + 1,
        lower_case=tokenizer.lower_case,
    )
    scan = Scan(path, tuple(columns or ()), roomy)
    scan.read()
    if not scan.rows:
        raise UserError(scan.unreadable.first or scan.empty.first)
    hashes = [np.frombuffer(column, dtype=np.int64) for column in scan.hashes]
    queries, documents = hashes[:2]
    same = queries == documents
    crossed = np.isin(queries, documents) & np.isin(documents, queries) & ~same
    return Inspection(
        path=path,
        columns=scan.columns,
        limit=tokenizer.max_length,
        repeats=count_repeats(queries, documents, batch_size),
        tokens=scan.tokens(),
        sampled_rows=len(scan.sample.lengths),
        most_repeated=quote(path, scan.columns, [most_frequent(column) for column in hashes]),
        unreadable=scan.unreadable,
        empty=scan.empty,
        identical=int(same.sum()),
        swapped=int(crossed.sum()),
        own_negatives=int(sum((column == documents).sum() for column in hashes[2:])),
    )


class Scan:
    """One pass over a file: hashes of all texts, token counts of a sample."""

    def __init__(self, path: str, columns: tuple[str, ...], tokenizer: TextTokenizer) -> None:
        self.path, self.columns, self.tokenizer = path, columns, tokenizer
        self.hashes: list[array[int]] = []
        self.unreadable, self.empty = Fault(), Fault()
        self.sample = Sample(tokenizer)
        self.rows = 0

    def read(self) -> None:
        """Take the file in."""

        def note(bad: BadRow) -> None:
            self.unreadable.note(f"{bad.where}: {bad.reason}")

        for row in read_rows(self.path, need=self.columns, on_bad=note):
            self.columns = self.columns or pair_columns(list(row.values), row.where)
            self.hashes = self.hashes or [array("q") for _ in self.columns]
            texts = texts_of(row, self.columns)
            if texts is None:
                self.unreadable.note(f"{row.where}: {why_unreadable(row, self.columns)}")
            elif not all(texts):
                self.empty.note(f"{row.where}: column {self.columns[texts.index('')]!r} is empty")
            else:
                for column, text in zip(self.hashes, texts, strict=True):
                    column.append(hash(text))
                self.sample.offer(self.rows, texts)
                self.rows += 1
        self.sample.settle()

    def tokens(self) -> dict[str, Tokens]:
        """Token counts by column."""
        lengths = np.array(self.sample.lengths)
        return {
            name: describe_lengths(lengths[:, place], self.tokenizer.max_length - 1)
            for place, name in enumerate(self.columns)
        }


class Sample:
    """Token counts of at most SAMPLE rows, each row equally likely; the texts are forgotten at
    once."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.tokenizer, self.random = tokenizer, random.Random(0)
        self.lengths: list[list[int]] = []
        self.waiting: dict[int, list[str]] = {}  # by place in `lengths`

    def offer(self, number: int, texts: list[str]) -> None:
        """Row `number`, counted from 0: it takes a place at first, later the place of a random one,
        or none."""
        place = number if number < SAMPLE else self.random.randrange(number + 1)
        if place < SAMPLE:
            self.waiting[place] = texts
            if len(self.waiting) == AT_A_TIME:
                self.settle()

    def settle(self) -> None:
        """Tokenise what waits."""
        distinct, inverse = deduplicate([text for texts in self.waiting.values() for text in texts])
        values = iter(self.tokenizer.tokenize(distinct).lengths[inverse].tolist())
        for place, texts in self.waiting.items():
            row = list(islice(values, len(texts)))
            if place < len(self.lengths):
                self.lengths[place] = row
            else:
                self.lengths.append(row)
        self.waiting.clear()


def texts_of(row: Row, columns: Sequence[str]) -> list[str] | None:
    """The row's texts without the white space around them, None where one is no text."""
    found = []
    for name in columns:
        text = row.values.get(name)
        if not isinstance(text, str) or lone_surrogate(text) is not None:
            return None
        found.append(text.strip())
    return found


def why_unreadable(row: Row, columns: Sequence[str]) -> str:
    """What is wrong with a row that has no texts."""
    for name in columns:
        if name not in row.values:
            return f"no column {name!r}; there are: {', '.join(row.values) or 'none'}"
        if not isinstance(row.values[name], str):
            return f"column {name!r} holds no text"
    return "a text holds half a character (a lone surrogate)"


def most_frequent(column: Ids) -> dict[int, int]:
    """The most frequent hashes of a column that stand there twice at least, with how often."""
    values, counts = np.unique(column, return_counts=True)
    top = np.argsort(-counts, kind="stable")[:QUOTED]
    return {int(values[i]): int(counts[i]) for i in top if counts[i] > 1}


def quote(
    path: str, columns: Sequence[str], wanted: list[dict[int, int]]
) -> dict[str, list[tuple[int, str]]]:
    """The texts behind hashes, from a second look at the file that ends with the last of them."""
    found: list[dict[int, str]] = [{} for _ in columns]
    missing = sum(map(len, wanted))
    for row in read_rows(path, on_bad=lambda bad: None) if missing else ():
        for place, text in enumerate(texts_of(row, columns) or ()):
            number = hash(text)
            if number in wanted[place] and number not in found[place]:
                found[place][number] = text
                missing -= 1
        if not missing:
            break
    return {
        name: [(count, texts.get(number, "")) for number, count in top.items()]
        for name, top, texts in zip(columns, wanted, found, strict=True)
    }


def describe_lengths(lengths: Ids, limit: int) -> Tokens:
    """lengths (N,): token counts cut one above the limit."""
    cut = lengths.clip(max=limit)
    low, high = int(cut.min()), int(cut.max())
    width = max(1, math.ceil((high - low + 1) / 16))
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


# --- in words -------------------------------------------------------------------------------------


def as_text(found: Inspection) -> str:
    """For people."""
    r = found.repeats
    lines = [
        f"{found.path}: {r.rows:,} rows of {', '.join(found.columns)}",
        f"distinct: {r.distinct_pairs:,} pairs, {r.distinct_queries:,} of {found.columns[0]}, "
        f"{r.distinct_documents:,} of {found.columns[1]}",
    ]
    sampled = f", in a sample of {found.sampled_rows:,} rows" if found.sampled_rows < r.rows else ""
    lines.append(f"tokens (limit {found.limit}{sampled}):")
    width = max(map(len, found.columns))
    for name, t in found.tokens.items():
        shares = "  ".join(f"{p} % {value}" for p, value in t.percentiles.items())
        bars = "".join(BARS[math.ceil(7 * n / max(t.histogram))] for n in t.histogram)
        lines.append(
            f"  {name:<{width}}  min {t.min}  mean {t.mean:.1f}  {shares}  max {t.max}  "
            f"{t.truncated:.1%} cut  {t.edges[0]} {bars} {t.edges[-1] - 1}"
        )
    for name, texts in found.most_repeated.items():
        lines += [f"most repeated {name}:"] if texts else []
        lines += [
            f"  {count:,} x {text if len(text) < 90 else text[:87] + '...'}"
            for count, text in texts
        ]
    lines += [summary(r), *(f"- {line}" for line in advice(found))]
    return "\n".join(lines)


def summary(r: Repeats) -> str:
    """Two lines on batches drawn at random: the short form, also said when training starts."""
    repeated = f"{r.repeat_share:.1%} hold some document twice, {r.query_repeat_share:.1%} some query twice"
    return (
        f"batches of {r.batch_size}: {repeated}; the mean loss cannot go below {r.loss_floor:.4f}\n"
        f"a pass over all rows takes {r.steps:,} steps, over the {r.distinct_pairs:,} distinct pairs "
        f"{r.distinct_steps:,}"
    )


def advice(found: Inspection) -> list[str]:
    """What to do about it, a line each."""
    r, lines = found.repeats, []
    for what, fault in (("unreadable", found.unreadable), ("empty", found.empty)):
        if fault.rows:
            lines.append(
                f"{fault.rows:,} rows are {what}, and training refuses them; the first: {fault.first}"
            )
    if r.distinct_documents < 2:
        lines.append("every row has the same document: there is no negative to learn from")
    if r.distinct_pairs < r.rows:
        lines.append(
            f"{r.rows - r.distinct_pairs:,} rows repeat others: --distinct trains on each pair once, in "
            f"{r.distinct_steps:,} steps a pass"
        )
    if r.loss_floor > 5e-4:
        lines.append(
            f"{r.repeat_share:.1%} of the batches push a query away from a copy of its own document: --false-negatives "
            "avoid draws batches without copies, mask leaves them out of the loss"
        )
    if r.unplaceable:
        lines.append(
            f"one text stands in so many rows that --false-negatives avoid leaves out {r.unplaceable:,} rows a pass"
        )
    for name, t in found.tokens.items():
        if t.truncated > 0.001:
            lines.append(
                f"{t.truncated:.1%} of {name} is longer than {found.limit} tokens: the rest is not seen"
            )
    if found.identical:
        lines.append(
            f"{found.identical:,} rows have the same text on both sides: they teach nothing"
        )
    if found.swapped:
        lines.append(
            f"{found.swapped:,} rows look swapped: their query is a document elsewhere, and their document a query"
        )
    if found.own_negatives:
        lines.append(f"{found.own_negatives:,} hard negatives are their row's own document")
    return lines
