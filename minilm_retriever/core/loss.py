"""The loss: cross-entropy of each query's own document against all documents of the batch, over
scaled cosine similarities.

Known as in-batch negatives, InfoNCE, NT-Xent, N-pair loss, batch softmax contrastive loss, and as
MultipleNegativesRankingLoss in sentence-transformers; its symmetric form as CLIP's loss or
MultipleNegativesSymmetricRankingLoss, with several vector lengths as MatryoshkaLoss.

Shapes: B rows, H hidden, D candidates: first the B positives (row i's own is candidate i), then
hard negatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from minilm_retriever.core.model import at_least_float32, l2_normalize


class FalseNegatives(NamedTuple):
    """Boolean masks of candidates excluded from the softmax; never a row's own."""

    documents: Tensor  # (B, D): document k is no negative of query i
    queries: Tensor | None = None  # (B, B): query j is no negative of positive i (symmetric loss)


def contrastive_loss(
    queries: Tensor,
    documents: Tensor,
    scale: float = 20.0,
    *,
    label_smoothing: float = 0.0,
    false_negatives: FalseNegatives | None = None,
    symmetric: bool = False,
    dimensions: Sequence[int] = (),
    first: int = 0,
    all_queries: Tensor | None = None,
) -> Tensor:
    """`info_nce_loss` of queries (B, H) and documents (D, H), and its variants.

    symmetric: the mean of both directions, query -> documents and positive -> queries. dimensions:
    Matryoshka, the mean over the losses of the first h numbers of each vector, for each h. first,
    all_queries: where `queries` are only some rows of a batch, the first one's number, and the
    queries of all rows for the other direction; the mean is over these rows then. Sources: Radford
    et al., 2021 (symmetric), Kusupati et al., 2022 (Matryoshka; there the sum)."""
    masks = false_negatives or (None, None)
    losses = []
    for size in dimensions or (queries.shape[1],):
        q, d = queries[:, :size], documents[:, :size]
        loss = info_nce_loss(q, d, scale, label_smoothing, masks[0], first)
        if symmetric:
            positives = d[first : first + len(q)]
            candidates = q if all_queries is None else all_queries[:, :size]
            back = info_nce_loss(positives, candidates, scale, label_smoothing, masks[1], first)
            loss = (loss + back) / 2
        losses.append(loss)
    return losses[0] if len(losses) == 1 else torch.stack(losses).mean()


def info_nce_loss(
    queries: Tensor,
    documents: Tensor,
    scale: float = 20.0,
    label_smoothing: float = 0.0,
    excluded: Tensor | None = None,
    first: int = 0,
) -> Tensor:
    """Mean cross-entropy of each query's own document against all documents.

    queries (B, H), documents (D, H): document first + i belongs to query i. scale: the inverse of
    the softmax temperature (20 is a temperature of 0.05). excluded (B, D) bool: candidates left out
    of a row's softmax. Returns a scalar, float32 at least. Source: Henderson et al., 2017."""
    scores = at_least_float32(l2_normalize(queries) @ l2_normalize(documents).T * scale)  # (B, D)
    labels = torch.arange(first, first + len(queries), device=scores.device)
    if excluded is None:
        return F.cross_entropy(scores, labels, label_smoothing=label_smoothing)
    scores = scores.masked_fill(excluded, float("-inf"))
    loss = F.cross_entropy(scores, labels)
    if label_smoothing:  # cross_entropy's own would count the excluded
        log_shares = scores.log_softmax(dim=1).masked_fill(excluded, 0.0)
        uniform = -(log_shares.sum(dim=1) / (~excluded).sum(dim=1)).mean()
        loss = (1 - label_smoothing) * loss + label_smoothing * uniform
    return loss
