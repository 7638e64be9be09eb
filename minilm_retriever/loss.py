"""In-batch-negative cross-entropy over scaled cosine similarities: pure functions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from minilm_retriever.model import at_least_float32, l2_normalize


def in_batch_negatives(
    queries: Tensor, documents: Tensor, scale: float = 20.0, *, label_smoothing: float = 0.0
) -> Tensor:
    """Mean cross-entropy of each query's own document against all documents of the batch.

    queries: (B, H); documents: (B * C, H), the B positives first (row i belongs to query i), then hard negatives.
    scale: the inverse of the softmax temperature. Returns a scalar, float32 at least.
    Source: MultipleNegativesRankingLoss of sentence-transformers (Henderson et al., 2017), with cos_sim.
    """
    scores = l2_normalize(queries) @ l2_normalize(documents).T * scale  # (B, B * C)
    labels = torch.arange(len(queries), device=scores.device)
    return F.cross_entropy(at_least_float32(scores), labels, label_smoothing=label_smoothing)
