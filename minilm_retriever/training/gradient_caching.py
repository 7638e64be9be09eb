"""Gradient caching (GradCache): the exact gradient of a large batch in the memory of a small one.

A batch is encoded in pieces of which only the vectors are stored; the loss sees all of them. In the
backward pass each piece is encoded again with the random numbers of the first time (the same
dropout) and takes its part of the gradient. That is activation checkpointing with a piece as the
segment, so torch's own is used. It costs one more forward pass. Source: Gao et al., 2021, "Scaling
Deep Contrastive Learning Batch Size under Memory Limited Setup"."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from minilm_retriever.core.model import SentenceEncoder
from minilm_retriever.kernels.memory import give_back_memory

TRIM_EVERY = 8  # pieces, forward and backward, after which freed memory is given back


def encode_in_pieces(
    encoder: SentenceEncoder,
    input_ids: Tensor,
    attention_mask: Tensor,
    size: int | None,
    prompt_tokens: Tensor | None = None,
) -> Tensor:
    """input_ids, attention_mask (N, T), prompt_tokens (N,) -> vectors (N, H) with gradient, `size`
    texts at a time (None: all at once)."""
    if not len(input_ids):  # a rank without rows
        weight = encoder.bert.embeddings.word_embeddings.weight
        return weight.new_zeros(0, weight.shape[1]).requires_grad_()
    if size is None or size >= len(input_ids):
        vectors: Tensor = encoder(input_ids, attention_mask, prompt_tokens=prompt_tokens)
        return vectors
    lengths = attention_mask.sum(dim=1)
    order = lengths.argsort(descending=True, stable=True)  # pieces of like lengths: little padding
    pieces = []
    for number, rows in enumerate(torch.split(order, size)):
        width = int(lengths[rows[0]])
        ids, mask = input_ids[rows, :width], attention_mask[rows, :width]
        prompts = None if prompt_tokens is None else prompt_tokens[rows]
        piece = checkpoint(encoder, ids, mask, None, prompts, use_reentrant=False)
        if number % TRIM_EVERY == 0:
            give_back_memory()
            piece.register_hook(lambda _: give_back_memory())  # before the piece is encoded again
        pieces.append(piece)
    return torch.cat(pieces)[order.argsort()]
