"""Gradient caching: the vectors of a large batch in the memory of a small one, with the large
batch's exact gradient.

A batch is encoded in pieces of which nothing but the vectors is kept; the loss sees all of them at
once. On the way back each piece is encoded a second time, with the random numbers of the first (the
same dropout), and takes its part of the gradient. That is what activation checkpointing does when a
whole piece is the segment, so torch's own is used: it also takes care of autocast, and gradients
accumulate and scale as ever. It costs one more forward pass. Source: Gao et al., 2021, "Scaling
Deep Contrastive Learning Batch Size under Memory Limited Setup"."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from minilm_retriever.core.model import SentenceEncoder
from minilm_retriever.kernels.memory import give_back_memory

TRIM_EVERY = 8  # pieces, forward and backward, after which freed memory is given back


def encode_in_pieces(
    encoder: SentenceEncoder, input_ids: Tensor, attention_mask: Tensor, size: int | None
) -> Tensor:
    """input_ids, attention_mask (N, T) -> vectors (N, H) with gradient, `size` texts at a time
    (None: all at once)."""
    if not len(input_ids):
        weight = encoder.bert.embeddings.word_embeddings.weight
        return weight.new_zeros(0, weight.shape[1]).requires_grad_()
    if size is None or size >= len(input_ids):
        vectors: Tensor = encoder(input_ids, attention_mask)
        return vectors
    lengths = attention_mask.sum(dim=1)
    order = lengths.argsort(
        descending=True, stable=True
    )  # texts of a piece are of a length: little padding
    pieces = []
    for number, rows in enumerate(torch.split(order, size)):
        width = int(lengths[rows[0]])
        piece = checkpoint(
            encoder, input_ids[rows, :width], attention_mask[rows, :width], use_reentrant=False
        )
        if number % TRIM_EVERY == 0:
            give_back_memory()
            piece.register_hook(give_back_before_backward)
        pieces.append(piece)
    return torch.cat(pieces)[order.argsort()]


def give_back_before_backward(gradient: Tensor) -> None:
    """A hook on a piece's vectors: it runs just before the piece is encoded again."""
    give_back_memory()
