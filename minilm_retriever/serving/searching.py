"""Search in a served folder: hits, what moved between two models, best passages, a picture.

Shapes: B queries, H hidden, K hits."""

from __future__ import annotations

import asyncio
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from minilm_retriever.search.index import Hit, Index, find
from minilm_retriever.serving.models import ServedModel, Side
from minilm_retriever.types import FloatArray

PICTURED = 50  # hits in the picture
PASSAGE_CHARACTERS = 80  # at least, so that a passage says something
PASSAGES = 24  # of a text at most: the rest is the last one
PIECE = re.compile(r"(?<=[.!?;:,\n])\s+")  # where a passage may end


async def search(side: Side, queries: Sequence[str], k: int) -> tuple[list[list[Hit]], int]:
    """The best k hits of each query, and how many tokens the queries have together."""
    vectors, tokens = await side.model.batcher("query").encode(queries)
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(side.model.workers, find, side.index, vectors, k), tokens


@dataclass
class PageHit:
    """A hit as the page shows it."""

    rank: int
    id: str
    text: str
    score: float
    best: tuple[int, int] = (0, 0)  # where the best passage begins and ends, if it was looked for
    other: int | None = None  # its rank by the other model, None: beyond what was looked through

    def parts(self) -> tuple[str, str, str]:
        """What stands before the best passage, the passage, and what stands after it."""
        start, end = self.best
        return self.text[:start], self.text[start:end], self.text[end:]


@dataclass(frozen=True)
class Column:
    """What a folder answers to a query."""

    side: Side
    hits: list[PageHit]
    points: list[tuple[float, float]]  # from -1 to 1: the query, then the first hits
    tokens: list[str]  # of the query, those that the model sees
    is_truncated: bool  # whether it has more


async def search_columns(sides: Sequence[Side], query: str, depth: int) -> list[Column]:
    """The answer of each of one or two folders; in that of two the ranks by the other."""
    columns = [await search_column(side, query, depth) for side in sides]
    for column, other in zip(columns, columns[::-1], strict=True):
        ranks = {hit.id: hit.rank for hit in reversed(other.hits)}
        for hit in column.hits:
            hit.other = ranks.get(hit.id)
    return columns


async def search_column(side: Side, query: str, depth: int) -> Column:
    batcher, index = side.model.batcher("query"), side.index
    vectors, _ = await batcher.encode([query])

    def look() -> tuple[list[PageHit], list[tuple[float, float]]]:
        scores, rows = index.search(vectors, depth)
        found = rows[0][rows[0] >= 0].tolist()
        pairs = zip(index.rows(found), scores[0].tolist(), strict=False)
        hits = [PageHit(rank, *pair, score) for rank, (pair, score) in enumerate(pairs, 1)]
        near = stored_vectors(index, found[:PICTURED])
        return hits, project(index.sources[0].truncate_queries(vectors), near)

    loop = asyncio.get_running_loop()
    hits, points = await loop.run_in_executor(side.model.workers, look)
    seen = side.model.encoder.model.tokenizer.fast.encode(batcher.prompt.before([query])[0])
    return Column(side, hits, points, seen.tokens, bool(seen.overflowing))


def stored_vectors(index: Index, rows: Sequence[int]) -> FloatArray:
    """(N, H) float32 of these rows of an index."""
    vectors = [np.zeros((0, index.info["dimension"]), np.float32)]
    for row in rows:
        owner = bisect_right(index.starts, row) - 1
        folder, own_row = index.sources[owner], row - index.starts[owner]
        shard = bisect_right(folder.starts, own_row) - 1
        vectors.append(folder.floats(folder.shards[shard][[own_row - folder.starts[shard]]]))
    return np.concatenate(vectors)


def project(query: FloatArray, vectors: FloatArray) -> list[tuple[float, float]]:
    """The query (1, H) and the vectors (N, H) on their two principal axes, from -1 to 1; the query
    is never left of or below the middle."""
    points = np.concatenate([query, vectors]).astype(np.float64)
    points -= points.mean(axis=0)
    axes = np.linalg.svd(points, full_matrices=False)[2][:2]
    flat = np.zeros((len(points), 2))
    flat[:, : len(axes)] = points @ axes.T
    flat *= np.where(flat[0] < 0, -1, 1)
    flat /= max(1e-12, float(np.abs(flat).max()))
    return [(x, y) for x, y in flat.tolist()]


async def mark_passages(model: ServedModel, query: str, hits: Sequence[PageHit]) -> None:
    """Find in each text the passage whose vector is nearest to the query's."""
    spans = [(hit, of_hit) for hit in hits if len(of_hit := passages(hit.text)) > 1]
    if not spans:
        return
    parts = [hit.text[start:end] for hit, of_hit in spans for start, end in of_hit]
    vectors, _ = await model.batcher("document").encode(parts)
    queries, _ = await model.batcher("query").encode([query])
    scores = iter(model.encoder.similarity(queries, vectors)[0].tolist())
    for hit, of_hit in spans:
        hit.best = of_hit[int(np.argmax([next(scores) for _ in of_hit]))]


def passages(text: str) -> list[tuple[int, int]]:
    """Where each passage begins and ends: sentences, or parts of them, not too short."""
    ends, start = [0], 0
    for match in PIECE.finditer(text):
        if match.end() - start >= PASSAGE_CHARACTERS and len(ends) < PASSAGES:
            start = match.end()
            ends.append(start)
    if len(text) - start < PASSAGE_CHARACTERS // 2 and len(ends) > 1:
        ends.pop()
    return list(pairwise([*ends, len(text)]))
