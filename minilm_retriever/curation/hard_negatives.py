"""Hard negatives: for each pair, documents that the model finds close to the query and that are not
its answer.

Documents are ranked for each query by exact search, block by block. Left out before ranking: every
known answer of the query, anywhere in the data, and the query's own text. From the ranks asked for,
the nearest are taken whose cosine is at least `margin` below that of the row's own document (what
is as close may well be another right answer)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from minilm_retriever.curation.config import MineConfig
from minilm_retriever.data.distinct import deduplicate
from minilm_retriever.data.pairs import Pairs, read_pairs
from minilm_retriever.data.texts import read_texts
from minilm_retriever.data.writer import check_table, write_table
from minilm_retriever.encoder import Encoder, encode_texts, open_for_command
from minilm_retriever.errors import UserError
from minilm_retriever.progress import Progress
from minilm_retriever.search.exact import top_k

Ids = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]
QUERIES = 4096  # searched at a time: bounds the memory of what is found


def mine(config: MineConfig) -> str:
    """Write the pairs with `negatives` further columns; returns a line that says how it went."""
    out = Path(config.out)
    check_table(out, config.overwrite)
    pairs = read_pairs(config.pairs, config.columns[:2] or None)
    queries, query_of = deduplicate([text.strip() for text in pairs.texts[0]])
    further = [record.text.strip() for record in read_texts(config.corpus)] if config.corpus else []
    documents, place = deduplicate(
        [*(text.strip() for text in pairs.texts[1]), *filter(None, further)]
    )
    own = place[: len(pairs)]
    known = Known.of(queries, query_of, documents, own)
    most = max(map(len, known.documents), default=0)
    if len(documents) - most < config.negatives:
        raise UserError(
            f"{config.pairs}: of its {len(documents)} distinct documents {most} are known answers of one query, which "
            f"leaves fewer than {config.negatives} negatives; name more documents with --corpus"
        )
    encoder = open_for_command(config.model, config.device)
    query_vectors = encode(encoder, queries, "queries")
    document_vectors = encode(encoder, documents, "documents")
    found = choose(query_vectors, document_vectors, query_of, own, known, config)
    names = (*pairs.columns[:2], *negative_names(config.negatives))
    write_table(out, names, rows_of(pairs, documents, found.rows))
    return (
        f"{out}: {len(pairs):,} rows with {config.negatives} hard negatives each, at a mean cosine of "
        f"{found.mean_cosine:.3f} (their own documents: {found.mean_own:.3f}); {found.drawn:,} were drawn at random, "
        f"for ranks {config.ranks[0]} to {config.ranks[1]} held too few that are {config.margin:g} below the own one"
    )


@dataclass(frozen=True)
class Known:
    """Documents that are no negatives of a query: its answers anywhere in the data, and its own
    text."""

    documents: list[set[int]]  # by query

    @staticmethod
    def of(queries: Sequence[str], query_of: Ids, documents: Sequence[str], own: Ids) -> Known:
        """From the pairs (query_of[i], own[i])."""
        places = {text: number for number, text in enumerate(documents)}
        known = [{places[text]} if text in places else set() for text in queries]
        for query, document in zip(query_of.tolist(), own.tolist(), strict=True):
            known[query].add(document)
        return Known(known)


@dataclass(frozen=True)
class Found:
    """Negatives of each row, (N, K) places of documents."""

    rows: Ids
    drawn: int  # of them at random
    mean_cosine: float  # of those that were found by rank
    mean_own: float


def choose(
    queries: Vectors, documents: Vectors, query_of: Ids, own: Ids, known: Known, config: MineConfig
) -> Found:
    """Negatives for the N pairs (query_of[i], own[i]); queries (Q, H) and documents (D, H) are unit
    vectors."""
    by_query = np.argsort(query_of, kind="stable")
    bounds = np.searchsorted(query_of[by_query], np.arange(len(queries) + 1))
    own_cosines = np.empty(len(own), dtype=np.float64)
    rows, cosines = (
        np.full((len(own), config.negatives), -1, dtype=np.int64),
        np.zeros((len(own), config.negatives)),
    )
    with Progress("mining", len(queries), "queries") as progress:
        for start in range(0, len(queries), QUERIES):
            stop = min(start + QUERIES, len(queries))
            for query, near, scores in ranked(
                queries, documents, range(start, stop), known, config.ranks
            ):
                for row in by_query[bounds[query] : bounds[query + 1]]:
                    own_cosines[row] = queries[query] @ documents[own[row]]
                    far = np.flatnonzero(scores <= own_cosines[row] - config.margin)[
                        : config.negatives
                    ]
                    rows[row, : len(far)], cosines[row, : len(far)] = near[far], scores[far]
            progress.at(stop)
    ranks, drawn = rows >= 0, int((rows < 0).sum())
    mean_cosine = float(cosines[ranks].mean()) if ranks.any() else 0.0
    fill(rows, query_of, known, len(documents), config.seed)
    return Found(rows, drawn, mean_cosine, float(own_cosines.mean()))


def ranked(
    queries: Vectors, documents: Vectors, block: range, known: Known, ranks: tuple[int, ...]
) -> Iterator[tuple[int, Ids, Vectors]]:
    """For each query of a block: the documents at these ranks, known ones left out, and their
    cosines."""
    first, last = ranks
    most = max(len(known.documents[query]) for query in block)
    scores, places = top_k(queries[block.start : block.stop], documents, last + most)
    for query, near, cosines in zip(block, places, scores, strict=True):
        allowed = np.array([place not in known.documents[query] for place in near.tolist()])
        yield query, near[allowed][first - 1 : last], cosines[allowed][first - 1 : last]


def fill(rows: Ids, query_of: Ids, known: Known, documents: int, seed: int) -> None:
    """Put random documents, no known ones and none twice, where a row has too few (-1)."""
    random = np.random.default_rng(seed)
    for row in np.flatnonzero((rows < 0).any(axis=1)):
        taken = known.documents[int(query_of[row])] | set(rows[row].tolist())
        for column in np.flatnonzero(rows[row] < 0):
            place = int(random.integers(documents))
            while (
                place in taken
            ):  # the next that is free: there are enough, as mine() has made sure
                place = (place + 1) % documents
            rows[row, column] = place
            taken.add(place)


def encode(encoder: Encoder, texts: Sequence[str], what: str) -> Vectors:
    """Unit vectors (N, H)."""
    with Progress(f"encoding {what}", len(texts), "texts") as progress:
        return encode_texts(
            encoder.model.encoder,
            encoder.model.tokenizer,
            texts,
            normalize=True,
            progress=progress.at,
        )


def negative_names(count: int) -> list[str]:
    """Names that read_pairs knows for what they are."""
    return ["negative"] if count == 1 else [f"negative_{number}" for number in range(1, count + 1)]


def rows_of(pairs: Pairs, documents: Sequence[str], negatives: Ids) -> Iterator[list[str]]:
    """Each pair with its negatives."""
    for query, document, places in zip(*pairs.texts[:2], negatives.tolist(), strict=True):
        yield [query, document, *(documents[place] for place in places)]
