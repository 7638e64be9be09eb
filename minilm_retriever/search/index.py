"""What searches a collection of documents: `search(queries, k) -> scores, rows`; `find` adds ids
and texts.

    find(ExactIndex(open_vectors(Path("vectors"))), encoder.encode_query(["who bakes bread?"]), 10)

A collection is vectors by shard, and what their rows are called and say: what encode.py wrote, or
arrays at hand. Here stands the exact index; approximate ones are in `approximate`, and those on
disk, which may span several folders of vectors, in `index_folder`.

Shapes: B queries, H hidden, N documents, K top-k."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from minilm_retriever.errors import UserError
from minilm_retriever.search.exact import (
    NO_ROWS,
    gather,
    lengths,
    nearest_bits,
    rank,
    top_k,
)
from minilm_retriever.types import Array, FloatArray, IntArray
from minilm_retriever.vectors.quantization import quantize

OVERSAMPLE = 10  # times k: the documents that bits choose, to be ranked by more than bits
LEAST = 100  # of them


class Collection(Protocol):
    """Documents: their vectors by shard, and what their rows are called and say.
    vectors.open_vectors gives one."""

    @property
    def shards(self) -> Sequence[Array]:
        """Vectors as they are kept, (rows, width) each, memory-mapped or not."""

    @property
    def dtype(self) -> str:
        """As what they are kept: one of quantization.DTYPES."""

    def floats(self, kept: Array) -> FloatArray:
        """Some rows of a shard as float32 vectors (N, H)."""

    def truncate_queries(self, queries: FloatArray) -> FloatArray:
        """Query vectors (B, H) with as many dimensions as the documents."""

    def prepare_queries(self, vectors: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Query vectors (B, H) as the shards want them, and what to add to each one's inner
        products (B,)."""

    def rows(self, numbers: Sequence[int]) -> Sequence[tuple[str, str]]:
        """Id and text of these rows, which count on from shard to shard."""


@dataclass(frozen=True)
class InMemory:
    """A collection of arrays and lists at hand."""

    vectors: Array  # (N, H)
    ids: Sequence[str]
    texts: Sequence[str]
    dtype = "float32"

    @property
    def shards(self) -> Sequence[Array]:
        """The vectors, in one shard."""
        return [self.vectors]

    def floats(self, kept: Array) -> FloatArray:
        """As float32."""
        return kept.astype(np.float32, copy=False)

    def truncate_queries(self, queries: FloatArray) -> FloatArray:
        """As they are."""
        return queries

    def prepare_queries(self, vectors: FloatArray) -> tuple[FloatArray, FloatArray]:
        """As they are."""
        return vectors, np.zeros(len(vectors), np.float32)

    def rows(self, numbers: Sequence[int]) -> list[tuple[str, str]]:
        """Id and text of these rows."""
        return [(self.ids[number], self.texts[number]) for number in numbers]


class Index(Protocol):
    """What searches a collection, exactly or not."""

    def search(self, queries: FloatArray, k: int) -> tuple[FloatArray, IntArray]:
        """FloatArray (B, K) and rows (B, K) for queries (B, H), best first; row -1 where less was
        found."""

    def rows(self, numbers: Sequence[int]) -> Sequence[tuple[str, str]]:
        """Id and text of these rows."""


@dataclass(frozen=True)
class ExactIndex:
    """Compares each query with every document.

    Of binary vectors the bits choose OVERSAMPLE times k documents (LEAST at least), those that
    differ from the query's in the fewest; these are then ranked by the query's own numbers, with
    the vectors of `finer`, the same documents at more than a bit a dimension, or else with the bits
    as +-1 / sqrt(H)."""

    collection: Collection
    without: IntArray = field(default_factory=lambda: NO_ROWS)  # rows that do not count, ascending
    finer: Collection | None = None

    def __post_init__(self) -> None:
        if self.finer is None:
            return
        if self.collection.dtype != "binary":
            raise UserError(
                f"only binary vectors are ranked anew by others; these are {self.collection.dtype}"
            )
        counts = [sum(lengths(c.shards)) for c in (self.collection, self.finer)]
        if counts[0] != counts[1]:
            raise UserError(
                f"the vectors to rank by have {counts[1]:,} rows, not {counts[0]:,}: encode the same texts"
            )

    def search(self, queries: FloatArray, k: int) -> tuple[FloatArray, IntArray]:
        """FloatArray (B, K) and rows (B, K), best first."""
        if self.collection.dtype == "binary":
            return self._by_bits(queries, k)
        asked, offsets = self.collection.prepare_queries(queries)
        scores, rows = top_k(asked, self.collection.shards, k, without=self.without)
        return scores + offsets[:, None], rows

    def _by_bits(self, queries: FloatArray, k: int) -> tuple[FloatArray, IntArray]:
        if k < 1:
            raise UserError(f"k = {k}: ask for at least 1 document")
        bits = quantize(self.collection.truncate_queries(queries), "binary")
        chosen = nearest_bits(
            bits, self.collection.shards, max(LEAST, OVERSAMPLE * k), without=self.without
        )
        return exact_scores([self.finer or self.collection], queries, chosen, k)

    def rows(self, numbers: Sequence[int]) -> Sequence[tuple[str, str]]:
        """Id and text of these rows."""
        return self.collection.rows(numbers)


def exact_scores(
    collections: Sequence[Collection], queries: FloatArray, chosen: IntArray, k: int
) -> tuple[FloatArray, IntArray]:
    """The best k of the rows chosen (B, C) for each query (B, H), by inner products with the
    vectors as floats.

    IntArray count on from one collection to the next; -1 is none."""
    asked = torch.from_numpy(collections[0].truncate_queries(queries))
    ends = torch.tensor([sum(lengths(collection.shards)) for collection in collections]).cumsum(0)

    def vectors(rows: Tensor) -> Tensor:
        found = torch.empty(len(rows), asked.shape[1], dtype=torch.float64)
        owner = torch.bucketize(rows, ends, right=True)
        for number in sorted(set(owner.tolist())):
            mine, one = owner == number, collections[number]
            start = int(ends[number - 1]) if number else 0
            found[mine] = gather(one.shards, rows[mine] - start, asked.shape[1], one.floats)
        return found

    return rank(asked, vectors, torch.from_numpy(chosen), k)


class Hit(NamedTuple):
    """A document that was found."""

    id: str
    text: str
    score: float


def find(index: Index, queries: FloatArray, k: int) -> list[list[Hit]]:
    """The best k documents of each query (B, H), best first, with ids and texts."""
    hits = []
    for scores, rows in zip(*index.search(queries, k), strict=True):
        named = index.rows(rows[rows >= 0].tolist())
        hits.append(
            [
                Hit(*pair, score)
                for pair, score in zip(named, scores[rows >= 0].tolist(), strict=True)
            ]
        )
    return hits
