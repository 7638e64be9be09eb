"""Hard negatives: for each pair, documents that are close to the query but no answer of it.

Documents are ranked for each query by exact search, without its known answers anywhere in the data
and its own text. Of the ranks in --ranks, those are candidates that are no negatives of the row
already and whose cosine is within the bounds: at least --margin below that of the row's own
document (what is as close may be another right answer), and so on. The nearest are taken, or random
ones; where there are too few, a row gets fewer.

Shapes: N rows (pairs), Q distinct queries, D distinct documents, K negatives a row, H hidden."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minilm_retriever.curation.config import MineConfig
from minilm_retriever.data.distinct import deduplicate
from minilm_retriever.data.pairs import Pairs, collect
from minilm_retriever.data.texts import read_texts
from minilm_retriever.data.writer import check_table, write_table
from minilm_retriever.display import html_table
from minilm_retriever.encoder.command import open_for_command
from minilm_retriever.errors import UserError
from minilm_retriever.in_memory import unwrap
from minilm_retriever.pretrained.config import with_revision
from minilm_retriever.pretrained.prompts import retrieval_prompts
from minilm_retriever.progress import Progress, say
from minilm_retriever.search.exact import top_k
from minilm_retriever.types import Float64Array, FloatArray, IntArray

SHOWN_ROWS = 5  # in a notebook
QUERIES = 4096  # searched at a time: bounds the memory of their neighbours


class Negatives(NamedTuple):
    rows: IntArray  # (N, K) documents of each row, nearest first; -1 where there are fewer
    cosines: Float64Array  # (N, K) with the row's query
    own_cosines: Float64Array  # (N,) of each row's own document

    def summary(self) -> str:
        """How many there are, and which rows have fewer."""
        there, wanted = self.rows >= 0, self.rows.shape[1]
        counts = there.sum(axis=1)
        line = (
            f"{len(counts):,} rows with {counts.sum():,} new hard negatives, mean cosine "
            f"{self.cosines[there].mean():.3f} (own documents: {self.own_cosines.mean():.3f})"
        )
        if fewer := int((counts < wanted).sum()):
            none = int((counts == 0).sum())
            line += f"; fewer than {wanted} in {fewer:,}" + f", none in {none:,}" * bool(none)
            line += ": no more documents are within --ranks and the bounds on the cosine"
        return line


@dataclass(frozen=True, repr=False)
class Mined:
    """Pairs with their new hard negatives: an iterable of dicts, as `train` and data frames take
    them."""

    pairs: Pairs
    documents: Sequence[str]
    negatives: Negatives
    with_cosines: bool = False
    out: str = ""  # where it was written

    @property
    def column_names(self) -> list[str]:
        return self.table()[0]

    def table(self) -> tuple[list[str], Iterable[Sequence[object]]]:
        """Columns and rows."""
        return mined_table(self.pairs, self.documents, self.negatives, self.with_cosines)

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[dict[str, object]]:
        columns, rows = self.table()
        return (dict(zip(columns, row, strict=True)) for row in rows)

    def __repr__(self) -> str:
        return f"{self.out or 'Mined'}: {self.negatives.summary()}"

    def _repr_html_(self) -> str:
        columns, rows = self.table()
        return html_table(repr(self), columns, islice(rows, SHOWN_ROWS))


def mine(config: MineConfig) -> Mined:
    """The pairs, their negatives and up to `negatives` new ones, also written to --out."""
    out = Path(config.out)
    if config.out:
        check_table(out, config.overwrite, (config.pairs, config.corpus))
    bad_rows = config.bad_rows()
    bad_rows.check(config.overwrite, (config.pairs, config.corpus))
    with bad_rows.open() as on_bad:
        source = config.pair_source(
            config.pairs, config.columns, max_negatives=sys.maxsize, keep_negatives=True
        )
        pairs = collect(source, on_bad)
    say(pairs.note)
    queries, query_of = deduplicate([text.strip() for text in pairs.texts[0]])
    more = read_texts(unwrap(config.corpus), on_choice=say) if config.corpus else ()
    corpus = [record.text.strip() for record in more]
    documents, place = deduplicate([*map(str.strip, pairs.texts[1]), *filter(None, corpus)])
    own = place[: len(pairs)]
    known = known_documents(queries, query_of, documents, own)
    encoder = open_for_command(with_revision(config.model, config.revision), config.device)
    prompts = retrieval_prompts(encoder.model, config.query_prompt, config.document_prompt)
    if prompts:
        say(str(prompts))
    encode = partial(encoder.encode, normalize=True)
    vectors = (
        encode(queries, prompt=prompts.query.text, show_progress="encoding queries"),
        encode(documents, prompt=prompts.document.text, show_progress="encoding documents"),
    )
    held = known_negatives(pairs, documents)
    negatives = choose(*vectors, query_of, own, known, config, held)
    if not (negatives.rows >= 0).any():
        wider = "widen --ranks, lower --margin, or add documents with --corpus"
        raise UserError(f"{config.pairs}: no document is left that could be a negative: {wider}")
    mined = Mined(pairs, documents, negatives, config.cosines, config.out)
    if config.out:
        write_table(out, *mined.table())
    return mined


def mined_table(
    pairs: Pairs, documents: Sequence[str], negatives: Negatives, with_cosines: bool
) -> tuple[list[str], Iterable[Sequence[object]]]:
    """Columns and rows: what the pairs had, then the new negatives, then the cosines; nothing where
    a row has fewer."""
    count, before = negatives.rows.shape[1], list(pairs.columns)
    first = len(before) - 1
    numbers = (f"negative_{number}" for number in range(first, first + len(before) + count))
    new = [name for name in numbers if name not in before][:count]
    if count == 1 and "negative" not in before:
        new = ["negative"]
    cosines = [f"cosine_{name}" for name in (before[1], *new)] if with_cosines else []

    def rows() -> Iterator[Sequence[object]]:
        held = zip(*pairs.texts, strict=True)
        for texts, chosen, own, scores in zip(held, *negatives_by_row(negatives), strict=True):
            mined = [documents[number] if number >= 0 else None for number in chosen]
            shown = [s if n >= 0 else None for s, n in zip(scores, chosen, strict=True)]
            yield [*texts, *mined, *([own, *shown] if with_cosines else [])]

    return [*before, *new, *cosines], rows()


def negatives_by_row(
    negatives: Negatives,
) -> tuple[list[list[int]], list[float], list[list[float]]]:
    """Documents, cosine of the own document, and cosines, for each row."""
    cosines = negatives.cosines.round(6).tolist()
    return negatives.rows.tolist(), negatives.own_cosines.round(6).tolist(), cosines


def known_documents(
    queries: Sequence[str], query_of: IntArray, documents: Sequence[str], own: IntArray
) -> list[set[int]]:
    """By query, its answers in any of the pairs (query_of[i], own[i]), and its own text."""
    index = {text: number for number, text in enumerate(documents)}
    known = [{index[text]} if text in index else set() for text in queries]
    for query, document in zip(query_of.tolist(), own.tolist(), strict=True):
        known[query].add(document)
    return known


def known_negatives(pairs: Pairs, documents: Sequence[str]) -> list[set[int]]:
    """By row, the documents that are its negatives already."""
    index = {text: number for number, text in enumerate(documents)}
    columns = [[index.get(text.strip(), -1) for text in column] for column in pairs.texts[2:]]
    return [set(numbers) for numbers in zip(*columns, strict=True)]


def choose(
    queries: FloatArray,
    documents: FloatArray,
    query_of: IntArray,
    own: IntArray,
    known: Sequence[set[int]],
    config: MineConfig,
    held: Sequence[set[int]] = (),
) -> Negatives:
    """Negatives for the N pairs (query_of[i], own[i]); queries (Q, H) and documents (D, H) are unit
    vectors; known: documents that are none, by query; held: or by row."""
    rows_by_query: list[list[int]] = [[] for _ in known]
    for row, query in enumerate(query_of.tolist()):
        rows_by_query[query].append(row)
    rows = np.full((len(own), config.negatives), -1, dtype=np.int64)
    cosines, own_cosines = np.zeros(rows.shape), np.empty(len(own))
    for query, near, scores in candidates(queries, documents, known, config.ranks):
        for row in rows_by_query[query]:
            own_cosines[row] = queries[query] @ documents[own[row]]
            fits = scores <= config.highest_cosine(own_cosines[row])
            if config.min_cosine is not None:
                fits &= scores >= config.min_cosine
            if held and held[row]:
                fits &= ~np.isin(near, list(held[row]))
            chosen = np.flatnonzero(fits)
            if config.sampling == "random":
                random = np.random.default_rng((config.seed, row))
                chosen = np.sort(random.permutation(chosen)[: config.negatives])
            chosen = chosen[: config.negatives]
            rows[row, : len(chosen)], cosines[row, : len(chosen)] = near[chosen], scores[chosen]
    return Negatives(rows, cosines, own_cosines)


def candidates(
    queries: FloatArray, documents: FloatArray, known: Sequence[set[int]], ranks: Sequence[int]
) -> Iterator[tuple[int, IntArray, FloatArray]]:
    """For each query: the documents at these ranks, known ones left out, and their cosines."""
    first, last = ranks
    with Progress("mining", len(queries), "queries") as progress:
        for start in range(0, len(queries), QUERIES):
            block = queries[start : start + QUERIES]
            most = max(map(len, known[start : start + QUERIES]))
            results = zip(*top_k(block, documents, last + most), strict=True)
            for query, (cosines, near) in enumerate(results, start):
                allowed = np.array([document not in known[query] for document in near.tolist()])
                yield query, near[allowed][first - 1 : last], cosines[allowed][first - 1 : last]
            progress.at(start + len(block))
