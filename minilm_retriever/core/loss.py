"""In-batch-negative cross-entropy over scaled cosine similarities, and its variants: pure
functions.

Shapes: B rows, H hidden, D candidates: the B positives first (row i's own is candidate i), then
hard negatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from minilm_retriever.core.model import at_least_float32, l2_normalize

Ids = npt.NDArray[np.int64]  # which text stands where: equal numbers are equal texts


class Removed(NamedTuple):
    """Candidates that are left out of a row's softmax; never the row's own."""

    documents: Tensor  # (B, D) bool: document k is no negative of query i
    queries: Tensor | None = (
        None  # (B, B) bool: query j is no negative of positive i, for the symmetric loss
    )


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
    """The loss of a batch, queries (B, H) and documents (D, H), with every variant that was asked
    for.

    symmetric: the mean of both directions, query -> documents and positive -> queries. first,
    all_queries: where `queries` are only some rows of a batch, the first one's number, and the
    queries of all rows for the other direction; then this is the mean over these rows. dimensions:
    Matryoshka, the mean over the losses of the first h numbers of each vector, for each h. Sources:
    Radford et al., 2021 (symmetric), Kusupati et al., 2022 (Matryoshka; there the sum, here the
    mean, so that the loss can be compared with its floor)."""
    losses = []
    for size in dimensions or (queries.shape[1],):
        q, d = queries[:, :size], documents[:, :size]
        without = removed.documents if removed else None
        loss = in_batch_negatives(
            q, d, scale, label_smoothing=label_smoothing, removed=without, first=first
        )
        if symmetric:
            without = removed.queries if removed else None
            own, others = (
                d[first : first + len(q)],
                q if all_queries is None else all_queries[:, :size],
            )
            back = in_batch_negatives(
                own, others, scale, label_smoothing=label_smoothing, removed=without, first=first
            )
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

    queries: (B, H); documents: (D, H), the positives first (row first + i belongs to query i), then
    hard negatives. scale: the inverse of the softmax temperature. removed: (B, D) bool, candidates
    left out of a row's softmax. Returns a scalar, float32 at least. Source:
    MultipleNegativesRankingLoss of sentence-transformers (Henderson et al., 2017), with cos_sim.
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
