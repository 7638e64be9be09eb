"""Exact top-k of inner products, by blocks: neither the documents nor the score matrix are ever held whole.

    scores, rows = top_k(queries, documents, k)      best first, equal scores by the lower row

The documents may be memory-mapped, in one array or in several shards, as float32, float16 or int8; they are read in
order, once for each QUERIES queries. A block of them is multiplied with the queries, and only what beats a query's k-th
best so far is looked at: first the maximum of each group of scores, then the few groups that hold such a score. At the
end the candidates, a few more than k, are scored once more one by one in float64. So ids and scores depend neither on
the block size nor on the other queries nor on threads, and equal documents have equal scores; only of more than MARGIN
documents that equal the k-th best within float32's rounding may others than the first ones be kept.

An index is anything with `search(queries, k) -> scores, rows` over a collection; `find` adds ids and texts.

Shapes: B queries, H hidden, N documents, n documents of one block, K top-k.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from minilm_retriever.errors import UserError

Array = npt.NDArray[Any]
Scores = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

QUERIES = 1024  # searched at a time: the more, the less often the documents are read
CANDIDATES = 1 << 20  # of all of them together: the more are asked for, the fewer queries at a time
BLOCK = 1 << 21  # scores of a block, 8 MB: they are read again while they are in the cache
GROUP = 16  # documents of whose scores the maximum is looked at first
MARGIN = 16  # candidates beyond k whose score equals the k-th within rounding; the exact scores decide
ROUNDING = 1e-6  # of a score in float32, relative to the best one
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8)


def top_k(
    queries: Array | Tensor, documents: Array | Tensor | Sequence[Array], k: int, *, block: int | None = None
) -> tuple[Scores, Rows]:
    """Scores (B, K) and rows (B, K) of the k documents with the largest inner products, best first; K is min(k, N).

    `queries` (B, H); `documents` (N, H), or shards of it, whose rows count on from one to the next. Codes of int8 count
    as they are: multiply the queries by the scale of each dimension. `block` is the number of documents at a time.
    """
    if k < 1:
        raise UserError(f"k = {k}: ask for at least 1 document")
    shards = [_tensor(d) for d in ([documents] if isinstance(documents, (np.ndarray, Tensor)) else documents)]
    asked = _tensor(queries).float()
    _check(asked, shards)
    k = min(k, sum(map(len, shards)))
    scores, rows = np.empty((len(asked), k), np.float32), np.empty((len(asked), k), np.int64)
    if k:
        step = min(QUERIES, max(1, CANDIDATES // (k + MARGIN)))
        for start in range(0, len(asked), step):
            part = asked[start : start + step]
            # Two columns, for MKL reads memory twice as fast in a product of matrices as in one with a vector.
            chosen = _candidates(part if len(part) > 1 else part.repeat(2, 1), shards, k, block)
            scores[start : start + step], rows[start : start + step] = _rank(part, shards, chosen[: len(part)], k)
    return scores, rows


def _tensor(array: Array | Tensor) -> Tensor:
    """The array as a tensor on the same memory."""
    if isinstance(array, Tensor):
        return array.detach().cpu()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable")  # a read-only map; nothing here writes
        return torch.from_numpy(np.asarray(array))


def _check(queries: Tensor, shards: Sequence[Tensor]) -> None:
    """Refuse what cannot be multiplied."""
    if queries.ndim != 2:
        raise UserError(f"queries of shape {tuple(queries.shape)}, not (B, H)")
    if not queries.isfinite().all():
        row = int((~queries.isfinite()).any(dim=1).nonzero()[0])
        raise UserError(f"query {row} holds a value that is not a finite number")
    for shard in shards:
        if shard.ndim != 2 or shard.dtype not in _DTYPES:
            raise UserError(f"documents of shape {tuple(shard.shape)} and {shard.dtype}, not (N, H) floats or int8")
        if shard.shape[1] != queries.shape[1]:
            raise UserError(
                f"the queries have {queries.shape[1]} dimensions and the documents {shard.shape[1]}: "
                "encode both with the same model and the same --dimensions"
            )


# --- candidates: blocks of products, and a running best ---------------------------------------------------------------


def _candidates(queries: Tensor, shards: Sequence[Tensor], k: int, block: int | None) -> Tensor:
    """Rows (B, k + a few) of the documents that score best in float32; -1 where there are no more."""
    as_it_is = all(shard.dtype == torch.float32 for shard in shards)
    size = block or max(1024, min(BLOCK // len(queries), 1 << 16 if as_it_is else 1 << 12))
    size = -(-size // GROUP) * GROUP
    products = torch.empty(size, len(queries))  # (n, B)
    floats = torch.empty(0 if as_it_is else size, queries.shape[1])
    best = _Best(len(queries), k)
    for shard in shards:
        for start in range(0, len(shard), size):
            documents = shard[start : start + size]  # (n, H)
            if documents.dtype != torch.float32:
                documents = floats[: len(documents)].copy_(documents)
            torch.mm(documents, queries.T, out=products[: len(documents)])
            best.add(products, len(documents))
    best.merge()
    needed = int((best.scores > _slightly_below(best.scores[:, :k])[:, None]).sum(dim=1).max())
    return best.rows[:, :needed]


class _Best:
    """The best rows of each query so far, and those found since that may be among them."""

    def __init__(self, queries: int, k: int) -> None:
        self.k = k
        self.scores = torch.full((queries, k + MARGIN), -torch.inf)
        self.rows = torch.full((queries, k + MARGIN), -1)
        self.threshold = torch.full((queries,), -torch.inf)  # (B,) what a score has to beat
        self.found: list[tuple[Tensor, Tensor, Tensor]] = []  # scores, rows, queries, (C,) each, by ascending row
        self.waiting = 0
        self.seen = 0
        self.maxima = torch.empty(0)

    def add(self, products: Tensor, count: int) -> None:
        """Consider the scores of the next `count` documents (n, B)."""
        queries = len(self.scores)
        if self.seen < self.k <= count:  # what the k-th best of this block does not reach is none of the best
            self.threshold = _slightly_below(products[:count].topk(self.k, dim=0).values.T)
        stride = -(-count // GROUP)  # a group is every stride-th document, for then the maxima are taken of whole rows
        products[count : stride * GROUP] = -torch.inf
        groups = products[: stride * GROUP].view(GROUP, stride, queries)
        if self.maxima.shape != groups.shape[1:]:
            self.maxima = torch.empty(groups.shape[1:])
        maxima = torch.amax(groups, dim=0, out=self.maxima)  # (n / GROUP, B)
        if not maxima[:, 0].isfinite().all():
            raise UserError(f"among document rows {self.seen} to {self.seen + count - 1}: not a finite number")
        group, query = (maxima > self.threshold).nonzero(as_tuple=True)
        scores = groups[:, group, query]  # (GROUP, C)
        place, hit = (scores > self.threshold[query]).nonzero(as_tuple=True)
        self.found.append((scores[place, hit], self.seen + stride * place + group[hit], query[hit]))
        self.waiting += len(hit)
        self.seen += count
        if self.waiting >= self.k * queries:
            self.merge()

    def merge(self) -> None:
        """Rank what was found together with the best so far."""
        queries, keep = self.scores.shape
        old = (self.scores.flatten(), self.rows.flatten(), torch.arange(queries).repeat_interleave(keep))
        scores, rows, query = (torch.cat(parts) for parts in zip(old, *self.found, strict=True))
        # Within a query the rows ascend among equal scores, and stable sorting leaves them so.
        order = scores.argsort(descending=True, stable=True)
        order = order[query[order].argsort(stable=True)]
        counts = query.bincount(minlength=queries)  # keep or more, for the best so far are among them
        chosen = order[((counts.cumsum(0) - counts)[:, None] + torch.arange(keep)).flatten()]
        self.scores, self.rows = scores[chosen].view(queries, keep), rows[chosen].view(queries, keep)
        if self.seen >= self.k:
            # Nor is a score of use that does not beat the last one kept: it would come after that one.
            self.threshold = torch.maximum(_slightly_below(self.scores[:, : self.k]), self.scores[:, -1])
        self.found, self.waiting = [], 0


def _slightly_below(scores: Tensor) -> Tensor:
    """The least of these scores (B, k), best first, less what rounding may have added to it: (B,)."""
    first, last = scores[:, 0], scores[:, -1]
    return last - ROUNDING * torch.maximum(first.abs(), last.abs()) - torch.finfo(torch.float32).tiny


# --- ranking: exact scores of the candidates --------------------------------------------------------------------------


def _rank(queries: Tensor, shards: Sequence[Tensor], rows: Tensor, k: int) -> tuple[Scores, Rows]:
    """The best k of the candidates (B, keep) by their scores in float64, rounded to float32; ties by row."""
    rows = rows.sort(dim=1).values
    scores = torch.empty(rows.shape)
    portion = max(1, (1 << 11) // rows.shape[1])  # 6 MB at 384 dimensions, which stay in the cache
    for start in range(0, len(rows), portion):
        documents = _gather(shards, rows[start : start + portion].flatten().clamp(min=0))
        pairs = documents.view(-1, rows.shape[1], queries.shape[1]) * queries[start : start + portion, None].double()
        scores[start : start + portion] = pairs.sum(dim=-1)
    scores[rows < 0] = -torch.inf
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    return scores.gather(1, order).numpy(), rows.gather(1, order).numpy()


def _gather(shards: Sequence[Tensor], rows: Tensor) -> Tensor:
    """The documents of these rows (R, H), in float64."""
    ends = torch.tensor([len(shard) for shard in shards]).cumsum(0)
    owner = torch.bucketize(rows, ends, right=True)
    documents = torch.empty(len(rows), shards[0].shape[1], dtype=torch.float64)
    for number in range(len(shards)):
        mine = owner == number
        documents[mine] = shards[number][rows[mine] - (ends[number] - len(shards[number]))].double()
    return documents


# --- indexes ----------------------------------------------------------------------------------------------------------


class Collection(Protocol):
    """Documents: their vectors by shard, and what their rows are called and say. vectors.open_vectors gives one."""

    @property
    def shards(self) -> Sequence[Array]:
        """Vectors, (rows, H) each, memory-mapped or not."""

    def rows(self, numbers: Sequence[int]) -> Sequence[tuple[str, str]]:
        """Id and text of these rows, which count on from shard to shard."""


@dataclass(frozen=True)
class InMemory:
    """A collection of arrays and lists at hand."""

    vectors: Array  # (N, H)
    ids: Sequence[str]
    texts: Sequence[str]

    @property
    def shards(self) -> Sequence[Array]:
        """The vectors, in one shard."""
        return [self.vectors]

    def rows(self, numbers: Sequence[int]) -> list[tuple[str, str]]:
        """Id and text of these rows."""
        return [(self.ids[number], self.texts[number]) for number in numbers]


class Index(Protocol):
    """What searches a collection, exactly or not."""

    @property
    def collection(self) -> Collection:
        """The documents."""

    def search(self, queries: Array, k: int) -> tuple[Scores, Rows]:
        """Scores (B, K) and rows (B, K) for queries (B, H), best first; row -1 where less was found."""


@dataclass(frozen=True)
class ExactIndex:
    """Compares each query with every document."""

    collection: Collection

    def search(self, queries: Array, k: int) -> tuple[Scores, Rows]:
        """Scores (B, K) and rows (B, K), best first."""
        return top_k(queries, self.collection.shards, k)


class Hit(NamedTuple):
    """A document that was found."""

    id: str
    text: str
    score: float


def find(index: Index, queries: Array, k: int) -> list[list[Hit]]:
    """The best k documents of each query (B, H), best first, with ids and texts."""
    hits = []
    for scores, rows in zip(*index.search(queries, k), strict=True):
        named = index.collection.rows(rows[rows >= 0].tolist())
        hits.append([Hit(*pair, score) for pair, score in zip(named, scores[rows >= 0].tolist(), strict=True)])
    return hits
