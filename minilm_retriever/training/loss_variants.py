"""Variants of the contrastive loss: both directions, several vector lengths, more candidates.

Shapes: B rows, H hidden, D candidates, as in core/loss.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from minilm_retriever.core.loss import info_nce_loss


class FalseNegatives(NamedTuple):
    """Boolean masks of candidates excluded from the softmax; never a row's own."""

    documents: Tensor  # (B, D), or (B, D + 2 B) with same_side: document k is no negative of i
    queries: Tensor | None = None  # (B, B): query j is no negative of positive i (symmetric loss)


def contrastive_loss(
    queries: Tensor,
    documents: Tensor,
    scale: float = 20.0,
    *,
    label_smoothing: float = 0.0,
    false_negatives: FalseNegatives | None = None,
    symmetric: bool = False,
    same_side: bool = False,
    dimensions: Sequence[int] = (),
    first: int = 0,
    all_queries: Tensor | None = None,
) -> Tensor:
    """`info_nce_loss` of queries (B, H) and documents (D, H), and its variants.

    symmetric: the mean of both directions, query -> documents and positive -> queries (CLIP's loss,
    MultipleNegativesSymmetricRankingLoss). same_side: each query is compared to the other queries,
    too, and each positive to the other positives (GISTEmbedLoss). dimensions: see `matryoshka`.
    first, all_queries: where `queries` are only some rows of a batch, the first one's number, and
    the queries of all rows; the mean is over these rows then. Sources: Radford et al., 2021
    (symmetric), Solatorio, 2024 (GISTEmbed)."""
    documents_mask, queries_mask = false_negatives or (None, None)

    def loss(q: Tensor, d: Tensor, everyone: Tensor) -> Tensor:
        others = everyone if same_side else None
        forth = info_nce_loss(q, d, scale, label_smoothing, documents_mask, first, others)
        if not symmetric:
            return forth
        positives = d[first : first + len(q)]
        back = info_nce_loss(positives, everyone, scale, label_smoothing, queries_mask, first)
        return (forth + back) / 2

    everyone = queries if all_queries is None else all_queries
    return matryoshka(loss, (queries, documents, everyone), dimensions)


def matryoshka(
    loss: Callable[..., Tensor], vectors: Sequence[Tensor], dimensions: Sequence[int]
) -> Tensor:
    """The mean of loss(*vectors) over the first h numbers of each vector, for each h of
    `dimensions`, or over all numbers. MatryoshkaLoss; Kusupati et al., 2022 (there the sum)."""
    if not dimensions:
        return loss(*vectors)
    losses = [loss(*(v[:, :size] for v in vectors)) for size in dimensions]
    return losses[0] if len(losses) == 1 else torch.stack(losses).mean()
