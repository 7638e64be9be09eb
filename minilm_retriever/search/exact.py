"""Exact top-k of inner products, by blocks: neither the documents nor the score matrix are ever
held whole.

    scores, rows = top_k(queries, documents, k)      best first, equal scores by the lower row
    rows = nearest_bits(queries, documents, k)       of vectors kept as bits: those that differ in the fewest

The documents may be memory-mapped, in one array or in several shards, as float32, float16 or int8;
they are read in order, once for each QUERIES queries. A block of them is multiplied with the
queries, and only what beats a query's k-th best so far is looked at: first the maximum of each
group of scores, then the few groups that hold such a score. At the end the candidates, a few more
than k, are scored once more one by one in float64. So ids and scores depend neither on the block
size nor on the other queries nor on threads, and equal documents have equal scores; only of more
than MARGIN documents that equal the k-th best within float32's rounding may others than the first
ones be kept.

Shapes: B queries, H hidden, N documents, n documents of one block, K top-k."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minilm_retriever.errors import UserError
from minilm_retriever.kernels.ops import ONEDNN
from minilm_retriever.types import Array, FloatArray, IntArray

Multiply = Callable[
    [Tensor], Tensor
]  # documents (n, H) -> their scores (n, B), to be used before the next call

QUERIES = 1024  # searched at a time: the more, the less often the documents are read
CANDIDATES = 1 << 20  # of all of them together: the more are asked for, the fewer queries at a time
BLOCK = 1 << 21  # scores of a block, 8 MB: they are read again while they are in the cache
GROUP = 16  # documents of whose scores the maximum is looked at first
MARGIN = (
    16  # candidates beyond k whose score equals the k-th within rounding; the exact scores decide
)
FEW = 16  # queries: fewer are multiplied as they stand, more have their matrix laid out for oneDNN
ROUNDING = 1e-6  # of a score in float32, relative to the best one
NO_ROWS: IntArray = np.empty(0, np.int64)
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8)
_BIT_COUNT = getattr(np, "bitwise_count", None)  # from NumPy 2 on


def top_k(
    queries: Array | Tensor,
    documents: Array | Tensor | Sequence[Array],
    k: int,
    *,
    without: IntArray = NO_ROWS,
    block: int | None = None,
) -> tuple[FloatArray, IntArray]:
    """FloatArray (B, K) and rows (B, K) of the k documents with the largest inner products, best first;
    K is min(k, N).

    `queries` (B, H); `documents` (N, H), or shards of it, whose rows count on from one to the next.
    Codes of int8 count as they are: multiply the queries by the scale of each dimension. `without`
    are rows that do not count, ascending. `block` is the number of documents at a time."""
    if k < 1:
        raise UserError(f"k = {k}: ask for at least 1 document")
    shards = [documents] if isinstance(documents, (np.ndarray, Tensor)) else documents
    asked = _tensor(queries).float()
    _check_queries(asked)
    k = min(k, sum(lengths(shards)) - len(without))
    scores, rows = np.empty((len(asked), k), np.float32), np.empty((len(asked), k), np.int64)
    if k == 0:
        for shard in shards:
            _check_documents(asked, _tensor(shard))
        return scores, rows
    step = min(QUERIES, max(1, CANDIDATES // (k + MARGIN)))
    for start in range(0, len(asked), step):
        part = asked[start : start + step]
        # Two columns, for MKL reads memory twice as fast in a product of matrices as in one with a
        # vector.
        columns = part if len(part) > 1 else part.repeat(2, 1)
        size = _block_size(len(columns), block)
        multiply, best = _inner_products(columns, size), _Best(len(columns), k)
        for shard in shards:
            best.add_shard(_check_documents(asked, _tensor(shard)), multiply, size, without)
        best.merge()
        needed = int((best.scores > _slightly_below(best.scores[:, :k])[:, None]).sum(dim=1).max())
        chosen = best.rows[: len(part), :needed]
        scores[start : start + step], rows[start : start + step] = rank(
            part, lambda wanted: gather(shards, wanted, asked.shape[1]), chosen, k
        )
    return scores, rows


def nearest_bits(
    queries: Array,
    documents: Sequence[Array],
    k: int,
    *,
    without: IntArray = NO_ROWS,
    block: int | None = None,
) -> IntArray:
    """IntArray (B, K) of the k documents that differ in the fewest bits, these first, ties by the lower
    row.

    `queries` (B, W) and the shards of `documents` (n, W) are uint8, eight bits each."""
    k = min(k, sum(lengths(documents)) - len(without))
    rows = np.empty((len(queries), max(k, 0)), np.int64)
    step = min(QUERIES, max(1, CANDIDATES // (k + MARGIN)))
    for start in range(0, len(queries) if k > 0 else 0, step):
        part = _tensor(queries[start : start + step])
        size = _block_size(len(part), block)
        multiply, best = _agreements(part, size), _Best(len(part), k)
        for shard in documents:
            best.add_shard(_tensor(shard), multiply, size, without)
        best.merge()
        rows[start : start + step] = best.rows[
            :, :k
        ]  # the scores are whole numbers: there is nothing to refine
    return rows


def lengths(shards: Sequence[Array | Tensor]) -> Sequence[int]:
    """IntArray of each shard; those on disk that know it beforehand (vectors.MappedShards) are not
    opened for it."""
    known: Sequence[int] | None = getattr(shards, "rows", None)
    return [len(shard) for shard in shards] if known is None else known


def _tensor(array: Array | Tensor) -> Tensor:
    """The array as a tensor on the same memory."""
    if isinstance(array, Tensor):
        return array.detach().cpu()
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*not writable"
        )  # a read-only map; nothing here writes
        return torch.from_numpy(np.asarray(array))


def _check_queries(queries: Tensor) -> None:
    """Refuse what cannot be multiplied."""
    if queries.ndim != 2:
        raise UserError(f"queries of shape {tuple(queries.shape)}, not (B, H)")
    if not queries.isfinite().all():
        row = int((~queries.isfinite()).any(dim=1).nonzero()[0])
        raise UserError(f"query {row} holds a value that is not a finite number")


def _check_documents(queries: Tensor, shard: Tensor) -> Tensor:
    """The shard, unless it cannot be multiplied with the queries."""
    if shard.ndim != 2 or shard.dtype not in _DTYPES:
        raise UserError(
            f"documents of shape {tuple(shard.shape)} and {shard.dtype}, not (N, H) floats or int8"
        )
    if shard.shape[1] != queries.shape[1]:
        raise UserError(
            f"the queries have {queries.shape[1]} dimensions and the documents {shard.shape[1]}: "
            "encode both with the same model and the same --dimensions"
        )
    return shard


# --- products of a block --------------------------------------------------------------------------


def _block_size(queries: int, block: int | None) -> int:
    """Documents at a time: a multiple of GROUP."""
    return -(-(block or max(1024, min(BLOCK // queries, 1 << 16))) // GROUP) * GROUP


def _inner_products(queries: Tensor, size: int) -> Multiply:
    """Inner products with at most `size` documents of any dtype."""
    if len(queries) >= FEW and ONEDNN:
        # Laid out once, the queries run through oneDNN at 1.1 times the rate of MKL's product.
        weight = torch.ops.mkldnn._reorder_linear_weight(queries)
        return lambda documents: torch.ops.mkldnn._linear_pointwise(
            documents.float(), weight, None, "none", [], ""
        )
    products = torch.empty(size, len(queries))

    def multiply(documents: Tensor) -> Tensor:
        if documents.dtype == torch.float32:
            return torch.mm(documents, queries.T, out=products[: len(documents)])
        for start in range(
            0, len(documents), 1 << 12
        ):  # small enough that the floats stay in the cache
            part = documents[start : start + (1 << 12)]
            torch.mm(part.float(), queries.T, out=products[start : start + len(part)])
        return products[: len(documents)]

    return multiply


def _agreements(queries: Tensor, size: int) -> Multiply:
    """Of rows of bits, uint8 (B, W): in how many each document agrees with each query, less in how
    many it does not.

    That is the inner product of rows of +-1, and for many queries it is computed so: both ways give
    whole numbers."""
    if len(queries) >= FEW or _BIT_COUNT is None:
        signed = _inner_products(_signs(queries), size)
        return lambda documents: signed(_signs(documents))
    word = next(
        kind
        for kind in (np.uint64, np.uint32, np.uint16, np.uint8)
        if queries.shape[1] % kind(0).nbytes == 0
    )
    asked = queries.numpy().view(word)
    products = torch.empty(size, len(queries))

    def count(documents: Tensor) -> Tensor:
        words = documents.numpy().view(word)
        for number, query in enumerate(asked):
            differing = np.zeros(len(words), np.int32)
            for place, bits in enumerate(query):
                differing += _BIT_COUNT(words[:, place] ^ bits)
            products[: len(words), number] = torch.from_numpy(queries.shape[1] * 8 - 2 * differing)
        return products[: len(words)]

    return count


def _signs(bits: Tensor) -> Tensor:
    """IntArray of bits (n, W) as +-1 (n, 8 W)."""
    return torch.from_numpy(np.unpackbits(bits.numpy(), axis=1)).float().mul_(2).sub_(1)


# --- candidates: a running best -------------------------------------------------------------------


class _Best:
    """The best rows of each query so far, and those found since that may be among them."""

    def __init__(self, queries: int, k: int) -> None:
        self.k = k
        self.scores = torch.full((queries, k + MARGIN), -torch.inf)
        self.rows = torch.full((queries, k + MARGIN), -1)
        self.threshold = torch.full((queries,), -torch.inf)  # (B,) what a score has to beat
        self.found: list[
            tuple[Tensor, Tensor, Tensor]
        ] = []  # scores, rows, queries, (C,) each, by ascending row
        self.waiting = 0
        self.seen = 0
        self.maxima = torch.empty(0)

    def add_shard(self, shard: Tensor, multiply: Multiply, size: int, without: IntArray) -> None:
        """Consider the next documents (N, H), all but the rows `without`, `size` at a time."""
        for start in range(0, len(shard), size):
            products = multiply(shard[start : start + size])
            left_out = (
                without[slice(*np.searchsorted(without, (self.seen, self.seen + len(products))))]
                - self.seen
            )
            self.add(products, torch.from_numpy(left_out))

    def add(self, products: Tensor, left_out: Tensor) -> None:
        """Consider the scores (n, B) of the next n documents, all but those `left_out`."""
        count, queries = products.shape
        products[left_out] = -torch.inf
        if (
            self.seen < self.k <= count
        ):  # what the k-th best of this block does not reach is none of the best
            self.threshold = _slightly_below(products[:count].topk(self.k, dim=0).values.T)
        stride = -(
            -count // GROUP
        )  # a group is every stride-th document, for then the maxima are taken of whole rows
        if count < stride * GROUP:
            products = torch.cat(
                [products, torch.full((stride * GROUP - count, queries), -torch.inf)]
            )
        groups = products.view(GROUP, stride, queries)
        if self.maxima.shape != groups.shape[1:]:
            self.maxima = torch.empty(groups.shape[1:])
        maxima = torch.amax(groups, dim=0, out=self.maxima)  # (n / GROUP, B)
        if not (maxima[:, 0] < torch.inf if len(left_out) else maxima[:, 0].isfinite()).all():
            raise UserError(
                f"among document rows {self.seen} to {self.seen + count - 1}: not a finite number"
            )
        group, query = (maxima > self.threshold).nonzero(as_tuple=True)
        scores = groups.view(GROUP, -1).index_select(1, group * queries + query)  # (GROUP, C)
        place, hit = (scores > self.threshold[query]).nonzero(as_tuple=True)
        self.found.append((scores[place, hit], self.seen + stride * place + group[hit], query[hit]))
        self.waiting += len(hit)
        self.seen += count
        if self.waiting >= self.k * queries:
            self.merge()

    def merge(self) -> None:
        """Rank what was found together with the best so far."""
        queries, keep = self.scores.shape
        old = (
            self.scores.flatten(),
            self.rows.flatten(),
            torch.arange(queries).repeat_interleave(keep),
        )
        scores, rows, query = (torch.cat(parts) for parts in zip(old, *self.found, strict=True))
        # Within a query the rows ascend among equal scores, and stable sorting leaves them so.
        order = ((query << 32) - _ranks(scores)).argsort(stable=True)
        counts = query.bincount(
            minlength=queries
        )  # keep or more, for the best so far are among them
        chosen = order[((counts.cumsum(0) - counts)[:, None] + torch.arange(keep)).flatten()]
        self.scores, self.rows = (
            scores[chosen].view(queries, keep),
            rows[chosen].view(queries, keep),
        )
        if self.seen >= self.k:
            # Nor is a score of use that does not beat the last one kept: it would come after that
            # one.
            self.threshold = torch.maximum(
                _slightly_below(self.scores[:, : self.k]), self.scores[:, -1]
            )
        self.found, self.waiting = [], 0


def _ranks(scores: Tensor) -> Tensor:
    """Whole numbers of 32 bits that are in the order of these float32 scores, equal where they
    are."""
    bits = (scores + 0.0).view(torch.int32)  # -0.0 becomes 0.0
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()


def _slightly_below(scores: Tensor) -> Tensor:
    """The least of these scores (B, k), best first, less what rounding may have added to it:
    (B,)."""
    first, last = scores[:, 0], scores[:, -1]
    return (
        last - ROUNDING * torch.maximum(first.abs(), last.abs()) - torch.finfo(torch.float32).tiny
    )


# --- ranking: exact scores of the candidates ------------------------------------------------------


def rank(
    queries: Tensor, vectors: Callable[[Tensor], Tensor], rows: Tensor, k: int
) -> tuple[FloatArray, IntArray]:
    """The best k of the candidates (B, C) by their scores in float64, rounded to float32; ties by
    row, -1 last.

    `vectors` gives those of rows (R,) as float64 (R, H)."""
    rows = rows.sort(dim=1).values
    scores = torch.empty(rows.shape)
    portion = max(
        1, (1 << 11) // max(1, rows.shape[1])
    )  # 6 MB at 384 dimensions, which stay in the cache
    for start in range(0, len(rows), portion):
        documents = vectors(rows[start : start + portion].flatten().clamp(min=0))
        pairs = documents.view(-1, rows.shape[1], queries.shape[1]).mul_(
            queries[start : start + portion, None]
        )
        scores[start : start + portion] = pairs.sum(dim=-1)
    scores[rows < 0] = -torch.inf
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    return scores.gather(1, order).numpy(), rows.gather(1, order).numpy()


def gather(
    shards: Sequence[Array | Tensor],
    rows: Tensor,
    width: int,
    floats: Callable[[Any], Array] | None = None,
) -> Tensor:
    """The documents of these rows (R, H), in float64. `floats` makes vectors of rows that are not
    kept as such."""
    sizes = lengths(shards)
    ends = torch.tensor(sizes).cumsum(0)
    owner = torch.bucketize(rows, ends, right=True)
    owners = sorted(set(owner.tolist())) if len(sizes) > 1 else [0]
    documents = torch.empty(len(rows) if len(owners) > 1 else 0, width, dtype=torch.float64)
    for number in owners:
        mine = owner == number if len(owners) > 1 else slice(None)
        kept = _tensor(shards[number]).index_select(0, rows[mine] - (ends[number] - sizes[number]))
        found = (kept if floats is None else _tensor(floats(kept.numpy()))).double()
        if len(owners) == 1:
            return found
        documents[mine] = found
    return documents
