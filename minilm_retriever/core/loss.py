"""The losses. First the cross-entropy of each query's own document against all documents of the
batch, over scaled cosine similarities.

Known as in-batch negatives, InfoNCE, NT-Xent, N-pair loss, batch softmax contrastive loss, and as
MultipleNegativesRankingLoss in sentence-transformers; its variants are in
training/loss_variants.py. Then CoSENT and the squared error, for pairs with scores.

Shapes: B rows, H hidden, D candidates: first the B positives (row i's own is candidate i), then
hard negatives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from minilm_retriever.core.model import at_least_float32, l2_normalize


def info_nce_loss(
    queries: Tensor,
    documents: Tensor,
    scale: float = 20.0,
    label_smoothing: float = 0.0,
    excluded: Tensor | None = None,
    first: int = 0,
    others: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy of each query's own document against all documents.

    queries (B, H), documents (D, H): document first + i belongs to query i. scale: the inverse of
    the softmax temperature (20 is a temperature of 0.05). excluded (B, D) bool: candidates left out
    of a row's softmax. others (N, H): the batch's queries, to which each query is compared, too,
    and each positive to the N positives: `excluded` is (B, D + 2 N) then. Returns a scalar, float32
    at least. Source: Henderson et al., 2017."""
    q, d = l2_normalize(queries), l2_normalize(documents)
    scores = q @ d.T  # (B, D)
    if others is not None:
        to_positives = d[first : first + len(q)] @ d[: len(others)].T
        scores = torch.cat([scores, q @ l2_normalize(others).T, to_positives], dim=1)
    scores = at_least_float32(scores * scale)
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


def pair_cosines(a: Tensor, b: Tensor) -> Tensor:
    """The cosine of each row of a (B, H) to that of b -> (B,), float32 at least."""
    return (l2_normalize(at_least_float32(a)) * l2_normalize(at_least_float32(b))).sum(dim=1)


def cosent_loss(a: Tensor, b: Tensor, scores: Tensor, scale: float = 20.0) -> Tensor:
    """CoSENT: of any two pairs, that with the higher score (B,) should have the higher cosine.

    log(1 + sum of exp(scale * (cosine_i - cosine_j)) over all i, j with score_i < score_j). Source:
    Su, 2022; CoSENTLoss in sentence-transformers."""
    cosines = pair_cosines(a, b) * scale
    differences = cosines[:, None] - cosines  # (B, B)
    wrong = differences.masked_fill(scores[:, None] >= scores, float("-inf")).flatten()
    return torch.cat([wrong.new_zeros(1), wrong]).logsumexp(dim=0)


def cosine_loss(a: Tensor, b: Tensor, scores: Tensor) -> Tensor:
    """The mean squared difference of cosine and score (B,); CosineSimilarityLoss in
    sentence-transformers."""
    return F.mse_loss(pair_cosines(a, b), scores)
