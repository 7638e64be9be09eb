"""Texts to vectors: identical texts once, in order of length, in batches bounded by tokens, scattered back in order."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from minilm_retriever.batching import Rows, deduplicate, length_batches
from minilm_retriever.model import SentenceEncoder
from minilm_retriever.tokenization import TextTokenizer, TokenizedTexts, check_texts

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
    encoder.eval()
    done = 0
    for rows in length_batches(tokens.lengths, BATCH_TOKENS.get(device.type, 4096), batch_size):
        encode_batch(encoder, tokens, rows, out, normalize)
        done += len(rows)
        if progress:
            progress(len(texts) * done // len(distinct))
    encoder.train(training)
    return out if len(distinct) == len(texts) else out[inverse]


def encode_batch(
    encoder: SentenceEncoder, tokens: TokenizedTexts, rows: Rows, out: Vectors, normalize: bool | None
) -> None:
    """Encode these rows into `out`; a batch that does not fit in memory is halved and tried again, with one warning."""
    device = encoder.bert.embeddings.word_embeddings.weight.device
    try:
        ids, mask = tokens.batch(rows)
        vectors = encoder(ids.to(device), mask.to(device), normalize=normalize)
        out[rows] = vectors.cpu().numpy()
        return
    except RuntimeError as problem:
        if not out_of_memory(problem) or len(rows) == 1:
            raise
    # Outside the except block, where the failed attempt's tensors are no longer held by the traceback.
    warnings.warn(f"{len(rows)} texts do not fit in memory: halving the batch (see batch_size)", stacklevel=3)
    for half in np.array_split(rows, 2):
        encode_batch(encoder, tokens, half, out, normalize)


def out_of_memory(problem: BaseException) -> bool:
    """Whether an error says that the device's or the machine's memory is used up."""
    said = str(problem)
    return isinstance(problem, torch.OutOfMemoryError) or "not enough memory" in said or "can't allocate memory" in said
