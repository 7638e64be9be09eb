"""Hard negatives: for each pair, documents that are close to the query but no answer of it.

Documents are ranked for each query by exact search, without its known answers anywhere in the data
and its own text. Of the ranks in --ranks, the nearest are taken whose cosine is at least `margin`
below that of the row's own document (what is as close may be another right answer).

Shapes: N rows (pairs), Q distinct queries, D distinct documents, K negatives a row, H hidden."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minilm_retriever.curation.config import MineConfig
from minilm_retriever.data.distinct import deduplicate
from minilm_retriever.data.pairs import collect
from minilm_retriever.data.texts import read_texts
from minilm_retriever.data.writer import check_table, write_table
from minilm_retriever.encoder import open_for_command
from minilm_retriever.errors import UserError
from minilm_retriever.pretrained.config import with_revision
from minilm_retriever.progress import Progress, say
from minilm_retriever.search.exact import top_k
from minilm_retriever.types import FloatArray, IntArray

QUERIES = 4096  # searched at a time: bounds the memory of their neighbours


class Negatives(NamedTuple):
    rows: IntArray  # (N, K) documents of each row
    random: int  # of them drawn at random
    mean_cosine: float  # of the others
    mean_own: float  # of each row's own document


def mine(config: MineConfig) -> str:
    """Write the pairs with `negatives` further columns; returns a summary line."""
    out = Path(config.out)
    check_table(out, config.overwrite, (config.pairs, config.corpus))
    bad_rows = config.bad_rows()
    bad_rows.check(config.overwrite, (config.pairs, config.corpus))
    with bad_rows.open() as on_bad:
        pairs = collect(config.pair_source(config.pairs, config.columns), on_bad)
    say(pairs.note)
    queries, query_of = deduplicate([text.strip() for text in pairs.texts[0]])
    more = read_texts(config.corpus, on_choice=say) if config.corpus else ()
    corpus = [record.text.strip() for record in more]
    documents, place = deduplicate([*map(str.strip, pairs.texts[1]), *filter(None, corpus)])
    own = place[: len(pairs)]
    known = known_documents(queries, query_of, documents, own)
    most = max(map(len, known), default=0)
    if len(documents) - most < config.negatives:
        raise UserError(
            f"{config.pairs}: {most} of its {len(documents)} distinct documents answer one query, "
            f"which leaves fewer than {config.negatives} negatives; add documents with --corpus"
        )
    encoder = open_for_command(with_revision(config.model, config.revision), config.device)
    encode = partial(encoder.encode, prompt="", normalize=True)
    vectors = (
        encode(queries, show_progress="encoding queries"),
        encode(documents, show_progress="encoding documents"),
    )
    negatives = choose(*vectors, query_of, own, known, config)
    columns = [f"negative_{number}" for number in range(1, config.negatives + 1)]
    columns = columns if config.negatives > 1 else ["negative"]
    texts = ([documents[row] for row in rows] for rows in negatives.rows.tolist())
    rows = ([*pair, *more] for *pair, more in zip(*pairs.texts[:2], texts, strict=True))
    write_table(out, [*pairs.columns[:2], *columns], rows)
    return (
        f"{out}: {len(pairs):,} rows with {config.negatives} hard negatives each, mean cosine "
        f"{negatives.mean_cosine:.3f} (own documents: {negatives.mean_own:.3f}); "
        f"{negatives.random:,} drawn at random, where --ranks and --margin left too few"
    )


def known_documents(
    queries: Sequence[str], query_of: IntArray, documents: Sequence[str], own: IntArray
) -> list[set[int]]:
    """By query, its answers in any of the pairs (query_of[i], own[i]), and its own text."""
    index = {text: number for number, text in enumerate(documents)}
    known = [{index[text]} if text in index else set() for text in queries]
    for query, document in zip(query_of.tolist(), own.tolist(), strict=True):
        known[query].add(document)
    return known


def choose(
    queries: FloatArray,
    documents: FloatArray,
    query_of: IntArray,
    own: IntArray,
    known: Sequence[set[int]],
    config: MineConfig,
) -> Negatives:
    """Negatives for the N pairs (query_of[i], own[i]); queries (Q, H) and documents (D, H) are unit
    vectors."""
    rows_by_query: list[list[int]] = [[] for _ in known]
    for row, query in enumerate(query_of.tolist()):
        rows_by_query[query].append(row)
    rows = np.full((len(own), config.negatives), -1, dtype=np.int64)
    cosines = np.zeros(rows.shape)
    own_cosines = np.empty(len(own), dtype=np.float64)
    for query, near, scores in candidates(queries, documents, known, config.ranks):
        for row in rows_by_query[query]:
            own_cosines[row] = queries[query] @ documents[own[row]]
            far = np.flatnonzero(scores <= own_cosines[row] - config.margin)[: config.negatives]
            rows[row, : len(far)], cosines[row, : len(far)] = near[far], scores[far]
    ranked = rows >= 0
    mean_cosine = float(cosines[ranked].mean()) if ranked.any() else 0.0
    add_random(rows, query_of, known, len(documents), config.seed)
    return Negatives(rows, int((~ranked).sum()), mean_cosine, float(own_cosines.mean()))


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


def add_random(
    rows: IntArray, query_of: IntArray, known: Sequence[set[int]], documents: int, seed: int
) -> None:
    """Put random documents, no known ones and none twice, where a row has too few (-1)."""
    random = np.random.default_rng(seed)
    for row, column in np.argwhere(rows < 0):
        excluded = known[query_of[row]] | set(rows[row].tolist())
        document = int(random.integers(documents))
        while document in excluded:  # the next free one: mine() has checked that there are enough
            document = (document + 1) % documents
        rows[row, column] = document
