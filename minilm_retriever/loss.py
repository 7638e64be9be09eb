"""In-batch-negative cross-entropy over scaled cosine similarities, and its variants: pure functions.

Shapes: B rows, H hidden, D candidates: the B positives first (row i's own is candidate i), then hard negatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from minilm_retriever.model import at_least_float32, l2_normalize

Ids = npt.NDArray[np.int64]  # which text stands where: equal numbers are equal texts


class Removed(NamedTuple):
    """Candidates that are left out of a row's softmax; never the row's own."""

    documents: Tensor  # (B, D) bool: document k is no negative of query i
    queries: Tensor | None = None  # (B, B) bool: query j is no negative of positive i, for the symmetric loss


def contrastive(
    queries: Tensor,
    documents: Tensor,
    scale: float = 20.0,
    *,
    label_smoothing: float = 0.0,
    removed: Removed | None = None,
    symmetric: bool = False,
    dimensions: Sequence[int] = (),
    first: int = 0,
    all_queries: Tensor | None = None,
) -> Tensor:
    """The loss of a batch, queries (B, H) and documents (D, H), with every variant that was asked for.

    symmetric: the mean of both directions, query -> documents and positive -> queries.
    first, all_queries: where `queries` are only some rows of a batch, the first one's number, and the queries of all
    rows for the other direction; then this is the mean over these rows.
    dimensions: Matryoshka, the mean over the losses of the first h numbers of each vector, for each h.
    Sources: Radford et al., 2021 (symmetric), Kusupati et al., 2022 (Matryoshka; there the sum, here the mean, so that
    the loss can be compared with its floor).
    """
    losses = []
    for size in dimensions or (queries.shape[1],):
        q, d = queries[:, :size], documents[:, :size]
        without = removed.documents if removed else None
        loss = in_batch_negatives(q, d, scale, label_smoothing=label_smoothing, removed=without, first=first)
        if symmetric:
            without = removed.queries if removed else None
            own, others = d[first : first + len(q)], q if all_queries is None else all_queries[:, :size]
            back = in_batch_negatives(own, others, scale, label_smoothing=label_smoothing, removed=without, first=first)
            loss = (loss + back) / 2
        losses.append(loss)
    return losses[0] if len(losses) == 1 else torch.stack(losses).mean()


def in_batch_negatives(
    queries: Tensor,
    documents: Tensor,
    scale: float = 20.0,
    *,
    label_smoothing: float = 0.0,
    removed: Tensor | None = None,
    first: int = 0,
) -> Tensor:
    """Mean cross-entropy of each query's own document against all documents of the batch.

    queries: (B, H); documents: (D, H), the positives first (row first + i belongs to query i), then hard negatives.
    scale: the inverse of the softmax temperature. removed: (B, D) bool, candidates left out of a row's softmax.
    Returns a scalar, float32 at least.
    Source: MultipleNegativesRankingLoss of sentence-transformers (Henderson et al., 2017), with cos_sim.
    """
    scores = at_least_float32(l2_normalize(queries) @ l2_normalize(documents).T * scale)  # (B, D)
    labels = torch.arange(first, first + len(queries), device=scores.device)
    if removed is None:
        return F.cross_entropy(scores, labels, label_smoothing=label_smoothing)
    scores = scores.masked_fill(removed, float("-inf"))
    loss = F.cross_entropy(scores, labels)
    if label_smoothing:  # cross_entropy's own would count the removed
        log_shares = scores.log_softmax(dim=1).masked_fill(removed, 0.0)
        uniform = -(log_shares.sum(dim=1) / (~removed).sum(dim=1)).mean()
        loss = (1 - label_smoothing) * loss + label_smoothing * uniform
    return loss


def known_pairs(queries: Ids, documents: Ids, rows: slice = slice(None)) -> npt.NDArray[np.bool_]:
    """(B, D): whether document k's text is, somewhere in this batch, a positive of query i's text; own ones left out.

    queries (B,), documents (D,); rows: of which queries i to tell. So a row loses the other copies of its positive, the
    positives of other rows with the same query, and hard negatives of other rows that are one of these.
    """
    asked, query = np.unique(queries[rows], return_inverse=True)
    _, document = np.unique(documents, return_inverse=True)
    pairs = np.zeros((len(asked), int(document.max()) + 1), dtype=np.bool_)
    place = np.searchsorted(asked, queries).clip(max=len(asked) - 1)
    here = asked[place] == queries  # (B,): rows whose query is one of those asked
    pairs[place[here], document[: len(queries)][here]] = True
    known = pairs[query][:, document]
    own = np.arange(len(queries))[rows]
    known[np.arange(len(own)), own] = False
    return known


def closer_than_own(rows: Tensor, candidates: Tensor, margin: float = 0.0, first: int = 0) -> Tensor:
    """(B, D) bool: whether a guide finds candidate k closer to row i than i's own (first + i), by more than margin.

    rows (B, G), candidates (D, G): unit vectors of a frozen model. Copies of a row's own candidate are equally close.
    """
    scores = rows @ candidates.T  # (B, D)
    own = scores.diagonal(first)[:, None]
    return scores > own + (margin + 1e-6)  # two equal texts may differ by a rounding


def batch_floor(texts: Ids) -> float:
    """The mean of log(1 + k) over a batch, k the other candidates with the text of a row's own: no model is below it.

    texts (1 + C, B): which texts stand in the columns of the batch's rows, queries first. Equal texts have equal
    vectors (but for dropout, which only adds to the mean), and 1 + k equal scores share a probability of 1.
    """
    documents = texts[1:].reshape(-1)  # (D,)
    _, place, count = np.unique(documents, return_inverse=True, return_counts=True)
    return float(np.log(count[place[: texts.shape[1]]]).mean())
