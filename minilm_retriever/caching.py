"""Gradient caching: the vectors of a large batch in the memory of a small one, with the large batch's exact gradient.

A batch is encoded in pieces of which nothing but the vectors is kept; the loss sees all of them at once. On the way
back each piece is encoded a second time, with the random numbers of the first (the same dropout), and takes its part of
the gradient. That is what activation checkpointing does when a whole piece is the segment, so torch's own is used:
it also takes care of autocast, and gradients accumulate and scale as ever. It costs one more forward pass.
Source: Gao et al., 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup".
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from minilm_retriever.model import SentenceEncoder


def encode_in_pieces(encoder: SentenceEncoder, input_ids: Tensor, attention_mask: Tensor, size: int | None) -> Tensor:
    """input_ids, attention_mask (N, T) -> vectors (N, H) with gradient, `size` texts at a time (None: all at once)."""
    if size is None or size >= len(input_ids):
        vectors: Tensor = encoder(input_ids, attention_mask)
        return vectors
    pieces = []
    for start in range(0, len(input_ids), size):
        mask = attention_mask[start : start + size]
        mask = mask[:, : int(mask.sum(dim=1).max())]  # the longest of this piece, not of the batch
        ids = input_ids[start : start + size, : mask.shape[1]]
        pieces.append(checkpoint(encoder, ids, mask, use_reentrant=False))
    return torch.cat(pieces)
