"""Batches on a GPU: packed, copied while it computes, read back in large pieces.

Shapes: B texts of S tokens together, H the numbers of a vector."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from minilm_retriever.core.model import SentenceEncoder, l2_normalize
from minilm_retriever.kernels.fixed_layout import FixedLayout
from minilm_retriever.kernels.graphs import on_host
from minilm_retriever.pretrained.tokenizer import TokenizedTexts
from minilm_retriever.types import FloatArray, IntArray

MOST_TOKENS, LEAST_TOKENS = 1 << 16, 1024  # a batch
SHARE_OF_FREE_MEMORY = 0.5  # that a batch is thought to take
WIDTHS = 8  # rows are padded to a multiple of it: attention would copy a mask of another width
PIECE_BYTES = 16 << 20  # of vectors that are read back together


def batch_tokens(encoder: SentenceEncoder, device: torch.device) -> int:
    """How many tokens a batch may have on this GPU, by its free memory."""
    if device.type != "cuda":
        return MOST_TOKENS
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    config = encoder.bert.config
    token = 4 * (12 * config.hidden_size + 2 * config.intermediate_size)  # bytes, at its peak
    return max(LEAST_TOKENS, min(MOST_TOKENS, int(free * SHARE_OF_FREE_MEMORY) // token))


def embed_packed(
    encoder: SentenceEncoder,
    tokens: TokenizedTexts,
    rows: IntArray,
    normalize: bool | None,
    prompt_tokens: int,
) -> Tensor:
    """Vectors (B, H) of these texts on their way: nothing waits for the device."""
    device = encoder.bert.embeddings.word_embeddings.weight.device
    ids, lengths = tokens.packed(rows)
    ids = ids if len(ids) else np.zeros(1, np.int32)  # texts without a token
    packed, counts = (on_host(x, device).to(device, non_blocking=True) for x in (ids, lengths))
    width = -(-max(1, int(lengths.max())) // WIDTHS) * WIDTHS
    layout = FixedLayout.make(counts, len(ids), width)
    return embed(encoder, packed, layout, normalize, prompt_tokens)


def embed(
    encoder: SentenceEncoder,
    ids: Tensor,
    layout: FixedLayout,
    normalize: bool | None,
    prompt_tokens: int,
) -> Tensor:
    """Vectors (B, H) of packed ids (S,)."""
    mask = layout.tokens.long()
    prompts = mask.new_full((len(mask),), prompt_tokens) if prompt_tokens else None
    hidden = layout.pad_states(encoder.bert.run(ids, layout))
    return shorten(encoder, encoder.embed(hidden, mask, normalize, prompts), normalize)


def shorten(encoder: SentenceEncoder, vectors: Tensor, normalize: bool | None) -> Tensor:
    """The leading numbers that the encoder keeps."""
    if encoder.kept == encoder.dimension:
        return vectors
    vectors = vectors[:, : encoder.kept]
    return l2_normalize(vectors) if normalize else vectors


class Readback:
    """Copies vectors to the host, PIECE_BYTES at a time, while the next are computed."""

    def __init__(self, out: FloatArray) -> None:
        self.out = out
        self.made: list[tuple[IntArray, Tensor]] = []  # on the device
        self.copied: list[tuple[IntArray, Tensor, Any]] = []  # on their way, with an event

    def add(self, rows: IntArray, vectors: Tensor) -> None:
        """Vectors (B, H) are of these rows of the array."""
        self.made.append((rows, vectors))
        if sum(len(own) for own, _ in self.made) * self.out.shape[1] * 4 >= PIECE_BYTES:
            self.send()

    def send(self) -> None:
        """Start the copy of what was made, and wait for the one before."""
        if not self.made:
            return
        rows = np.concatenate([own for own, _ in self.made])
        vectors = torch.cat([own for _, own in self.made])
        self.made = []
        event = None
        host = vectors.to("cpu", non_blocking=True)  # pinned, from a GPU
        if vectors.is_cuda:
            event = torch.cuda.Event()
            event.record()
        self.copied.append((rows, host, event))
        if len(self.copied) > 1:
            self.receive()

    def receive(self) -> None:
        rows, host, event = self.copied.pop(0)
        if event is not None:
            event.synchronize()
        self.out[rows] = host.numpy()

    def finish(self) -> None:
        self.send()
        while self.copied:
            self.receive()
