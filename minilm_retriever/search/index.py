"""Indexes over collections of documents: `search(queries, k) -> scores, rows`; `find` adds ids and
texts.

    find(ExactIndex(open_vectors(Path("vectors"))), encoder.encode_query(["who bakes bread?"]), 10)

A collection is vectors by shard with the ids and texts of their rows: what encode.py wrote, or
arrays in memory. Approximate indexes are in faiss_index.py, and those on disk, which may span
several folders of vectors, in index_folder.py.

Shapes: B queries, H hidden, N documents, C candidates, K top-k."""

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
    check_k,
    gather,
    gather_parts,
    lengths,
    nearest_bits,
    rank,
    top_k,
)
from minilm_retriever.types import Array, FloatArray, IntArray
from minilm_retriever.vectors.quantization import Ranges, fold_scale, quantize

OVERSAMPLE = 10  # times k: the candidates that binary vectors are searched for
MIN_CANDIDATES = 100


class Collection(Protocol):
    """Documents; rows count on from shard to shard. `open_vectors` returns one."""

    @property
    def shards(self) -> Sequence[Array]:
        """Vectors as they are stored, (rows, width) each, memory-mapped or not."""

    @property
    def dtype(self) -> str:
        """One of quantization.DTYPES."""

    @property
    def ranges(self) -> Ranges | None:
        """Of int8."""

    def floats(self, codes: Array) -> FloatArray:
        """Some rows of a shard as float32 vectors (N, H)."""

    def truncate_queries(self, queries: FloatArray) -> FloatArray:
        """Query vectors (B, H) with as many dimensions as the documents."""

    def rows(self, numbers: Sequence[int]) -> Sequence[tuple[str, str]]:
        """(id, text) of these rows."""


@dataclass(frozen=True)
class InMemory:
    """A collection of arrays and lists."""

    vectors: FloatArray  # (N, H)
    ids: Sequence[str]
    texts: Sequence[str]
    dtype = "float32"
    ranges = None

    @property
    def shards(self) -> Sequence[Array]:
        return [self.vectors]

    def floats(self, codes: Array) -> FloatArray:
        return codes.astype(np.float32, copy=False)

    def truncate_queries(self, queries: FloatArray) -> FloatArray:
        return queries

    def rows(self, numbers: Sequence[int]) -> list[tuple[str, str]]:
        return [(self.ids[number], self.texts[number]) for number in numbers]


class Index(Protocol):
    """What searches a collection, exactly or not."""

    def search(self, queries: FloatArray, k: int) -> tuple[FloatArray, IntArray]:
        """Scores (B, K) and rows (B, K), best first; row -1 where fewer were found."""

    def rows(self, numbers: Sequence[int]) -> Sequence[tuple[str, str]]:
        """(id, text) of these rows."""


@dataclass(frozen=True)
class ExactIndex:
    """Compares each query with every document.

    Binary vectors: the OVERSAMPLE * k documents (MIN_CANDIDATES at least) with the smallest Hamming
    distance are ranked by inner products of the query itself with the vectors of `finer`, the same
    documents at more than a bit a dimension, or else with the bits as +-1 / sqrt(H)."""

    collection: Collection
    without: IntArray = field(default_factory=lambda: NO_ROWS)  # rows left out, ascending
    finer: Collection | None = None

    def __post_init__(self) -> None:
        if self.finer is None:
            return
        if self.collection.dtype != "binary":
            raise UserError(
                f"only binary vectors are ranked anew by others; these are {self.collection.dtype}"
            )
        stored, finer = (sum(lengths(c.shards)) for c in (self.collection, self.finer))
        if stored != finer:
            raise UserError(
                f"the vectors to rank by have {finer:,} rows, not {stored:,}: encode the same texts"
            )

    def search(self, queries: FloatArray, k: int) -> tuple[FloatArray, IntArray]:
        check_k(k)
        one = self.collection
        truncated = one.truncate_queries(queries)
        if one.dtype == "binary":
            candidates = max(MIN_CANDIDATES, OVERSAMPLE * k)
            bits = quantize(truncated, "binary")
            chosen = nearest_bits(bits, one.shards, candidates, without=self.without)
            return exact_scores([self.finer or one], queries, chosen, k)
        scaled, offsets = fold_scale(truncated, one.ranges)
        scores, rows = top_k(scaled, one.shards, k, without=self.without)
        return scores + offsets[:, None], rows

    def rows(self, numbers: Sequence[int]) -> Sequence[tuple[str, str]]:
        return self.collection.rows(numbers)


def exact_scores(
    collections: Sequence[Collection], queries: FloatArray, chosen: IntArray, k: int
) -> tuple[FloatArray, IntArray]:
    """The best k of the candidates (B, C) of queries (B, H), by inner products with the vectors as
    floats. Rows count on from one collection to the next; -1 is none."""
    counts = [sum(lengths(collection.shards)) for collection in collections]

    def read(number: int, rows: Tensor) -> Tensor:
        return gather(collections[number].shards, rows, collections[number].floats)

    truncated = torch.from_numpy(collections[0].truncate_queries(queries))
    return rank(truncated, lambda r: gather_parts(counts, r, read), torch.from_numpy(chosen), k)


class Hit(NamedTuple):
    """A document and its score for a query."""

    id: str
    text: str
    score: float


def find(index: Index, queries: FloatArray, k: int) -> list[list[Hit]]:
    """The best k documents of each query (B, H), best first, with ids and texts."""
    hits = []
    for scores, rows in zip(*index.search(queries, k), strict=True):
        found = rows >= 0
        pairs = zip(index.rows(rows[found].tolist()), scores[found].tolist(), strict=True)
        hits.append([Hit(*id_text, score) for id_text, score in pairs])
    return hits
