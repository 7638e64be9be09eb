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
from minilm_retriever.model import SentenceEncoder
from minilm_retriever.tokenization import TextTokenizer, check_texts

Vectors = npt.NDArray[np.float32]

# Padded tokens a batch: enough rows for the matrix multiplications to run at full speed; on a CPU no more than what
# keeps a layer's activations near the caches.
BATCH_TOKENS = {"cpu": 4096, "cuda": 65536}


@torch.inference_mode()
def encode_texts(
    encoder: SentenceEncoder,
    tokenizer: TextTokenizer,
    texts: Sequence[str],
    *,
    batch_size: int | None = None,
    normalize: bool | None = None,
    progress: Callable[[int], Any] | None = None,
) -> Vectors:
    """Vectors (N, H) float32 of N texts, in their order.

    batch_size: at most so many texts a batch; without it a budget of tokens alone decides. normalize: unit rows or
    not; None leaves it to the model. progress: called after each batch with how many texts are done, repeats counted.
    Raises UserError (a ValueError) naming the index of a text that is no str or holds a lone surrogate.
    """
    check_texts(texts)  # before repeats are folded: the index in an error is the caller's
    distinct, inverse = deduplicate(texts)
    tokens = tokenizer.tokenize(distinct)
    out = np.empty((len(distinct), encoder.bert.config.hidden_size), dtype=np.float32)
    device = encoder.bert.embeddings.word_embeddings.weight.device
    training = encoder.training
    if training:
        encoder.eval()
    waiting = length_batches(tokens.lengths, BATCH_TOKENS.get(device.type, 4096), batch_size)[::-1]
    most, done = math.inf, 0  # padded tokens that are known to fit; texts that are done
    while waiting:
        rows = waiting.pop()
        padded = len(rows) * int(tokens.lengths_of(rows).max())
        if padded <= most or len(rows) == 1:
            try:
                ids, mask = tokens.batch(rows)
                out[rows] = encoder(ids.to(device), mask.to(device), normalize=normalize).cpu().numpy()
                done += len(rows)
                if progress:
                    progress(len(texts) * done // len(distinct))
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
    return out if len(distinct) == len(texts) else out[inverse]


def out_of_memory(problem: BaseException) -> bool:
    """Whether an error says that the device's or the machine's memory is used up."""
    said = str(problem)
    return isinstance(problem, torch.OutOfMemoryError) or "not enough memory" in said or "can't allocate memory" in said
