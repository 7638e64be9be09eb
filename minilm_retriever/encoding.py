"""Texts to vectors: identical texts once, in order of length, in batches bounded by tokens, scattered back in order."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from minilm_retriever.batching import deduplicate, length_batches
from minilm_retriever.errors import UserError
from minilm_retriever.model import SentenceEncoder
from minilm_retriever.tokenization import TextTokenizer, TokenizedTexts, check_texts

Vectors = npt.NDArray[np.float32]

# Padded tokens a batch: enough rows for the matrix multiplications to run at full speed; on a CPU no more than what
# keeps a layer's activations near the caches.
BATCH_TOKENS = {"cpu": 1024, "cuda": 65536}


def encode_texts(
    encoder: SentenceEncoder,
    tokenizer: TextTokenizer,
    texts: Sequence[str],
    *,
    batch_size: int | None = None,
    normalize: bool | None = None,
    prompt_tokens: int = 0,
    progress: Callable[[int], Any] | None = None,
) -> Vectors:
    """Vectors (N, H) float32 of N texts, in their order.

    batch_size: at most so many texts a batch; without it a budget of tokens alone decides. normalize: unit rows or
    not; None leaves it to the model. prompt_tokens: as many leading tokens of each text are not pooled. progress:
    called after each batch with how many texts are done, repeats counted.
    Raises UserError (a ValueError) naming the index of a text that is no str or holds a lone surrogate, or whose vector
    is not finite.
    """
    check_texts(texts)  # before repeats are folded: the index in an error is the caller's
    distinct, inverse = deduplicate(texts)
    vectors = encode_tokens(
        encoder,
        tokenizer.tokenize(distinct),
        batch_size=batch_size,
        normalize=normalize,
        prompt_tokens=prompt_tokens,
        progress=(lambda done, _: progress(len(texts) * done // len(distinct))) if progress else None,
    )
    vectors = vectors if len(distinct) == len(texts) else vectors[inverse]
    refuse_non_finite(vectors, lambda row: f"text {row}")
    return vectors


def refuse_non_finite(vectors: Vectors, name: Callable[[int], str]) -> None:
    """UserError with the name of the first of N vectors (N, H) that is not finite."""
    if not math.isfinite(float(vectors.sum(dtype=np.float64))):  # one pass, where all is well
        row = int(np.argmin(np.isfinite(vectors).all(axis=1)))
        raise UserError(f"the vector of {name(row)} is not finite: are the model's weights damaged, or far too large?")


@torch.inference_mode()
def encode_tokens(
    encoder: SentenceEncoder,
    tokens: TokenizedTexts,
    *,
    batch_size: int | None = None,
    normalize: bool | None = None,
    prompt_tokens: int = 0,
    progress: Callable[[int, int], Any] | None = None,
) -> Vectors:
    """Vectors (N, H) float32 of N tokenised texts, in their order; see encode_texts.

    progress: called after each batch with how many texts are done and how many tokens they have.
    """
    out = np.empty((len(tokens), encoder.bert.config.hidden_size), dtype=np.float32)
    device = encoder.bert.embeddings.word_embeddings.weight.device
    training = encoder.training
    if training:
        encoder.eval()
    waiting = length_batches(tokens.lengths, BATCH_TOKENS.get(device.type, 1024), batch_size)[::-1]
    most, done, real = math.inf, 0, 0  # padded tokens that are known to fit; texts that are done, and their tokens
    while waiting:
        rows = waiting.pop()
        lengths = tokens.lengths_of(rows)
        padded = len(rows) * int(lengths.max())
        if padded <= most or len(rows) == 1:
            try:
                ids, mask = (part.to(device) for part in tokens.batch(rows))
                out[rows] = encoder(ids, mask, normalize=normalize, prompt_tokens=prompt_tokens).cpu().numpy()
                done, real = done + len(rows), real + int(lengths.sum())
                if progress:
                    progress(done, real)
                continue
            except RuntimeError as problem:
                if not out_of_memory(problem) or len(rows) == 1:
                    raise
            if most == math.inf:
                warnings.warn(f"{len(rows)} texts do not fit in memory: halving (see batch_size)", stacklevel=3)
            most = padded / 2
        waiting += np.array_split(rows, 2)[::-1]
    if training:
        encoder.train()
    return out


def out_of_memory(problem: BaseException) -> bool:
    """Whether an error says that the device's or the machine's memory is used up."""
    said = str(problem)
    return isinstance(problem, torch.OutOfMemoryError) or "not enough memory" in said or "can't allocate memory" in said
