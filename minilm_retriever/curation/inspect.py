"""What is in your pairs: lengths, truncation, repeats, and the floor that repeats put under the
loss.

The file is read once, a row at a time. Of each text a 64-bit hash is kept: 8 bytes a text, and
among 10 million texts two share one with a probability of 3 in a million. A text that is quoted as
repeated stands in one of 16,384 rows at least. Token counts are those of a random sample of the
rows where there are more than 10,000."""

from __future__ import annotations

import random
from array import array
from itertools import accumulate, chain, islice, repeat

import numpy as np

from minilm_retriever.curation.config import InspectConfig
from minilm_retriever.curation.duplicates import count_repeats
from minilm_retriever.curation.inspection import BadRows, Inspection, Tokens
from minilm_retriever.data.distinct import deduplicate
from minilm_retriever.data.pair_source import PairSource
from minilm_retriever.errors import UserError
from minilm_retriever.formats.rows import BadRow, EmptyText, OnBad
from minilm_retriever.in_memory import InMemory
from minilm_retriever.pretrained.model_folder import load_pretrained
from minilm_retriever.pretrained.tokenizer import TextTokenizer
from minilm_retriever.progress import say
from minilm_retriever.types import IntArray

SAMPLE = 10_000  # rows whose texts are tokenised
BATCH_ROWS = 2048  # of them at a time
KEPT = 1 << 14  # texts of a column that may be among the most repeated
QUOTED = 3  # most repeated texts of a column


def inspect_pairs(config: InspectConfig) -> Inspection:
    """The command `inspect`: what its flags say."""
    bad_rows = config.bad_rows()
    bad_rows.check(False, [config.pairs])
    source = config.pair_source(config.pairs, config.columns)
    if isinstance(config.model, InMemory):
        tokenizer = config.model.held.model.tokenizer
    else:
        tokenizer = load_pretrained(config.model, config.revision).tokenizer
    with bad_rows.open() as on_bad:
        inspection = inspect(source, tokenizer, config.batch_size, on_bad)
    say(source.note)
    return inspection


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
