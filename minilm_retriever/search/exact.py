"""Exact top-k of inner products, by blocks: neither documents nor score matrix are held whole.

The documents may be memory-mapped, in one array or in several shards; they are read in order, once
for each QUERIES queries. A block of them is multiplied with the queries, and only what beats a
query's k-th best so far is looked at: first the maximum of each group of scores, then the few
groups that hold such a score. At the end the candidates, a few more than k, are scored once more in
float64. So ids and scores depend neither on the block size nor on the other queries nor on threads,
and equal documents have equal scores; only of more than MARGIN documents that equal the k-th best
within float32's rounding may others than the first ones be kept.

Shapes: B queries, H hidden, N documents, n documents of one block, K top-k, C candidates."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from minilm_retriever.errors import UserError
from minilm_retriever.kernels.ops import ONEDNN
from minilm_retriever.types import Array, FloatArray, IntArray

QUERIES = 1024  # searched at a time: the more, the less often the documents are read
CANDIDATES = 1 << 20  # of all these queries together: with a large k they are fewer
BLOCK_SCORES = 1 << 21  # 8 MB: the scores of a block are read again while they are in the cache
CONVERTED_DOCUMENTS = 1 << 12  # at a time, so that their floats stay in the cache
GROUP = 16  # documents whose largest score is looked at first
MARGIN = 16  # candidates beyond k, equal to the k-th within rounding: the exact scores decide
PREPACK_FROM = 16  # queries; below it a plain product is faster
ROUNDING = 1e-6  # of a float32 score, relative to the best one
RESCORED_PAIRS = 1 << 11  # at a time: 6 MB at 384 dimensions, which stay in the cache
NO_ROWS: IntArray = np.empty(0, np.int64)
DOCUMENT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8)
_count_bits = getattr(np, "bitwise_count", None)  # NumPy 2

# Documents (n, H) -> their scores (n, B), to be used before the next call.
Multiply = Callable[[Tensor], Tensor]
Read = Callable[[int, Tensor], Tensor]  # (number of a shard, rows in it (R,)) -> documents (R, H)


def top_k(
    queries: Array | Tensor,
    documents: Array | Tensor | Sequence[Array],
    k: int,
    *,
    without: IntArray = NO_ROWS,
    block: int | None = None,
) -> tuple[FloatArray, IntArray]:
    """Scores (B, K) and rows (B, K) of the k documents with the largest inner products, best first;
    K is min(k, N).

    `queries` (B, H); `documents` (N, H), or shards of it, whose rows count on from one to the next.
    int8 codes count as they are: multiply the queries by the scale of each dimension. `without` are
    rows that do not count, ascending. `block` is the number of documents at a time."""
    check_k(k)
    shards = [documents] if isinstance(documents, (np.ndarray, Tensor)) else documents
    queries = _check_queries(_tensor(queries).float())
    counts = lengths(shards)
    k = min(k, sum(counts) - len(without))
    scores, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)

    def read(number: int, rows: Tensor) -> Tensor:
        return _tensor(shards[number]).index_select(0, rows)

    for part in _portions(len(queries), k):
        columns = queries[part]
        if len(columns) == 1:  # MKL reads memory twice as fast for a matrix as for one vector
            columns = columns.repeat(2, 1)
        size = _block_size(len(columns), block)
        best = TopCandidates(len(columns), k, _inner_products(columns, size))
        for shard in shards:
            best.add_shard(_check_documents(_tensor(shard), queries.shape[1]), size, without)
        best.merge()
        needed = int((best.scores > _slightly_below(best.scores[:, :k])[:, None]).sum(dim=1).max())
        chosen = best.rows[: len(queries[part]), :needed]
        scores[part], rows[part] = rank(queries[part], chosen, k, counts, read)
    return scores, rows


def nearest_bits(
    queries: Array,
    documents: Sequence[Array],
    k: int,
    *,
    without: IntArray = NO_ROWS,
    block: int | None = None,
) -> IntArray:
    """Rows (B, K) of the k documents with the smallest Hamming distance, nearest first, ties by the
    lower row.

    `queries` (B, W) and the shards of `documents` (n, W) are uint8, eight bits each."""
    k = max(0, min(k, sum(lengths(documents)) - len(without)))
    rows = np.empty((len(queries), k), np.int64)
    for part in _portions(len(queries), k):
        bits = _tensor(queries[part])
        size = _block_size(len(bits), block)
        best = TopCandidates(len(bits), k, _agreements(bits, size))
        for shard in documents:
            best.add_shard(_tensor(shard), size, without)
        best.merge()
        rows[part] = best.rows[:, :k]  # the scores are whole numbers: nothing to refine
    return rows


def check_k(k: int) -> None:
    if k < 1:
        raise UserError(f"k = {k}: ask for at least 1 document")


def lengths(shards: Sequence[Array | Tensor]) -> Sequence[int]:
    """Rows of each shard; MappedShards know them without being opened."""
    known: Sequence[int] | None = getattr(shards, "rows", None)
    return [len(shard) for shard in shards] if known is None else known


def _tensor(array: Array | Tensor) -> Tensor:
    """The array as a tensor on the same memory."""
    if isinstance(array, Tensor):
        return array.detach().cpu()
    with warnings.catch_warnings():
        # A read-only map; nothing here writes.
        warnings.filterwarnings("ignore", message=".*not writable")
        return torch.from_numpy(np.asarray(array))


def _check_queries(queries: Tensor) -> Tensor:
    if queries.ndim != 2:
        raise UserError(f"queries of shape {tuple(queries.shape)}, not (B, H)")
    if not (finite := queries.isfinite().all(dim=1)).all():
        row = int((~finite).nonzero()[0])
        raise UserError(f"query {row} holds a value that is not a finite number")
    return queries


def _check_documents(shard: Tensor, dimension: int) -> Tensor:
    if shard.ndim != 2 or shard.dtype not in DOCUMENT_DTYPES:
        actual = f"shape {tuple(shard.shape)} and {shard.dtype}"
        raise UserError(f"documents of {actual}, not (N, H) floats or int8")
    if shard.shape[1] != dimension:
        sizes = f"{dimension} dimensions and the documents {shard.shape[1]}"
        raise UserError(f"the queries have {sizes}: encode both with the same model and flags")
    return shard


def _portions(queries: int, k: int) -> list[slice]:
    step = min(QUERIES, max(1, CANDIDATES // (k + MARGIN)))
    return [slice(start, start + step) for start in range(0, queries if k else 0, step)]


# --- products of a block --------------------------------------------------------------------------


def _block_size(queries: int, block: int | None) -> int:
    """Documents at a time: a multiple of GROUP."""
    return -(-(block or max(1024, min(BLOCK_SCORES // queries, 1 << 16))) // GROUP) * GROUP


def _inner_products(queries: Tensor, size: int) -> Multiply:
    """Inner products with at most `size` documents of any dtype."""
    if len(queries) >= PREPACK_FROM and ONEDNN:
        # Prepacked, the queries run through oneDNN at 1.1 times the rate of MKL's product.
        weight = torch.ops.mkldnn._reorder_linear_weight(queries)
        return lambda documents: torch.ops.mkldnn._linear_pointwise(
            documents.float(), weight, None, "none", [], ""
        )
    products = torch.empty(size, len(queries))

    def multiply(documents: Tensor) -> Tensor:
        if documents.dtype == torch.float32:
            return torch.mm(documents, queries.T, out=products[: len(documents)])
        for start in range(0, len(documents), CONVERTED_DOCUMENTS):
            part = documents[start : start + CONVERTED_DOCUMENTS]
            torch.mm(part.float(), queries.T, out=products[start : start + len(part)])
        return products[: len(documents)]

    return multiply


def _agreements(queries: Tensor, size: int) -> Multiply:
    """Of rows of bits (B, W): in how many each document agrees with each query, less in how many it
    does not.

    That is the inner product of rows of +-1, and for many queries it is computed so: both ways give
    whole numbers."""
    if len(queries) >= PREPACK_FROM or _count_bits is None:
        multiply = _inner_products(_signs(queries), size)
        return lambda documents: multiply(_signs(documents))
    words = (np.uint64, np.uint32, np.uint16, np.uint8)
    word = next(w for w in words if queries.shape[1] % w(0).nbytes == 0)
    query_words = queries.numpy().view(word)
    products = torch.empty(size, len(queries))

    def count(documents: Tensor) -> Tensor:
        document_words = documents.numpy().view(word)
        for number, query in enumerate(query_words):
            distance = np.zeros(len(documents), np.int32)
            for place, bits in enumerate(query):
                distance += _count_bits(document_words[:, place] ^ bits)
            agreements = queries.shape[1] * 8 - 2 * distance
            products[: len(documents), number] = torch.from_numpy(agreements)
        return products[: len(documents)]

    return count


def _signs(bits: Tensor) -> Tensor:
    """Rows of bits (n, W) as +-1 (n, 8 W)."""
    return torch.from_numpy(np.unpackbits(bits.numpy(), axis=1)).float().mul_(2).sub_(1)


# --- candidates -----------------------------------------------------------------------------------


class TopCandidates:
    """The best rows of each query so far, and those since that may be among them."""

    def __init__(self, queries: int, k: int, multiply: Multiply) -> None:
        self.k, self.multiply = k, multiply
        self.scores = torch.full((queries, k + MARGIN), -torch.inf)
        self.rows = torch.full((queries, k + MARGIN), -1)
        self.threshold = torch.full((queries,), -torch.inf)  # (B,) what a score has to beat
        self.new: list[tuple[Tensor, ...]] = []  # scores, rows, queries, (C,) each, rows ascending
        self.new_count = 0
        self.seen = 0  # documents

    def add_shard(self, shard: Tensor, size: int, without: IntArray) -> None:
        """Consider the next documents (N, H), all but the rows `without`, `size` at a time."""
        for start in range(0, len(shard), size):
            products = self.multiply(shard[start : start + size])
            ends = np.searchsorted(without, (self.seen, self.seen + len(products)))
            self.add(products, torch.from_numpy(without[slice(*ends)] - self.seen))

    def add(self, products: Tensor, left_out: Tensor) -> None:
        """Consider the scores (n, B) of the next n documents, all but those `left_out`."""
        count, queries = products.shape
        products[left_out] = -torch.inf
        if self.seen < self.k <= count:
            # What does not reach the k-th best of this block is none of the best.
            self.threshold = _slightly_below(products[:count].topk(self.k, dim=0).values.T)
        # A group is every stride-th document, for then the maxima are taken of whole rows.
        stride = -(-count // GROUP)
        if count < stride * GROUP:
            padding = torch.full((stride * GROUP - count, queries), -torch.inf)
            products = torch.cat([products, padding])
        groups = products.view(GROUP, stride, queries)
        maxima = groups.amax(dim=0)  # (n / GROUP, B)
        if not (maxima[:, 0] < torch.inf if len(left_out) else maxima[:, 0].isfinite()).all():
            where = f"document rows {self.seen} to {self.seen + count - 1}"
            raise UserError(f"among {where}: not a finite number")
        group, query = (maxima > self.threshold).nonzero(as_tuple=True)
        scores = groups.view(GROUP, -1).index_select(1, group * queries + query)  # (GROUP, C)
        place, hit = (scores > self.threshold[query]).nonzero(as_tuple=True)
        self.new.append((scores[place, hit], self.seen + stride * place + group[hit], query[hit]))
        self.new_count += len(hit)
        self.seen += count
        if self.new_count >= self.k * queries:
            self.merge()

    def merge(self) -> None:
        """Rank the new candidates together with the best so far."""
        queries, width = self.scores.shape
        owners = torch.arange(queries).repeat_interleave(width)
        best = (self.scores.flatten(), self.rows.flatten(), owners)
        scores, rows, query = (torch.cat(parts) for parts in zip(best, *self.new, strict=True))
        # Within a query the rows ascend among equal scores, and stable sorting leaves them so.
        order = ((query << 32) - _sort_keys(scores)).argsort(stable=True)
        counts = query.bincount(minlength=queries)  # width or more: the best so far are among them
        starts = counts.cumsum(0) - counts
        chosen = order[starts[:, None] + torch.arange(width)]
        self.scores, self.rows = scores[chosen], rows[chosen]
        if self.seen >= self.k:
            # Nor is a score of use that does not beat the last one here: it would come after that.
            kth = _slightly_below(self.scores[:, : self.k])
            self.threshold = torch.maximum(kth, self.scores[:, -1])
        self.new, self.new_count = [], 0


def _sort_keys(scores: Tensor) -> Tensor:
    """Whole numbers of 32 bits in the order of these float32 scores, equal where they are."""
    bits = (scores + 0.0).view(torch.int32)  # -0.0 becomes 0.0
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()


def _slightly_below(scores: Tensor) -> Tensor:
    """The least of these scores (B, k), best first, less what rounding may have added: (B,)."""
    first, last = scores[:, 0], scores[:, -1]
    rounding = ROUNDING * torch.maximum(first.abs(), last.abs())
    return last - rounding - torch.finfo(torch.float32).tiny


# --- exact scores of the candidates ---------------------------------------------------------------


def rank(
    queries: Tensor, rows: Tensor, k: int, counts: Sequence[int], read: Read
) -> tuple[FloatArray, IntArray]:
    """The best k of the candidates (B, C) by their scores in float64, rounded to float32; ties by
    row, -1 last. Rows count on from shard to shard of `counts` rows."""
    rows = rows.sort(dim=1).values
    scores = torch.empty(rows.shape)
    step = max(1, RESCORED_PAIRS // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        documents = gather(rows[part].flatten().clamp(min=0), queries.shape[1], counts, read)
        products = documents.view(*rows[part].shape, -1).mul_(queries[part, None])
        scores[part] = products.sum(dim=-1)
    scores[rows < 0] = -torch.inf
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    return scores.gather(1, order).numpy(), rows.gather(1, order).numpy()


def gather(rows: Tensor, width: int, counts: Sequence[int], read: Read) -> Tensor:
    """The documents of rows (R,), from all shards, as float64 (R, width)."""
    if len(counts) == 1:
        return read(0, rows).double()
    ends = torch.tensor(counts).cumsum(0)
    owners = torch.bucketize(rows, ends, right=True)
    documents = torch.empty(len(rows), width, dtype=torch.float64)
    for number in sorted(set(owners.tolist())):
        places = (owners == number).nonzero().squeeze(1)
        documents[places] = read(number, rows[places] - ends[number] + counts[number]).double()
    return documents
