"""Vectors of texts: identical ones once, in batches of similar length."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from functools import partial
from typing import Any, TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor

from minilm_retriever.core.model import SentenceEncoder, l2_normalize
from minilm_retriever.data.distinct import deduplicate
from minilm_retriever.encoder.packed_batches import (
    Readback,
    batch_tokens,
    embed_packed,
    shorten,
)
from minilm_retriever.encoder.parallel import ahead, on_cores
from minilm_retriever.encoder.query_graphs import query_graphs
from minilm_retriever.kernels.graphs import gpu_settings
from minilm_retriever.pretrained.tokenizer import TextTokenizer, TokenizedTexts, check_texts
from minilm_retriever.types import FloatArray, IntArray
from minilm_retriever.vectors.checks import check_vectors

# Padded tokens a batch: enough rows for matrix products at full speed, no more than what keeps a
# layer's activations near a CPU's caches. For GPUs see `batch_tokens`.
BATCH_TOKENS = 1024
LEAST_TOKENS = 128  # of a core's batch: of fewer the weights' way through the caches is the cost
PIECE_TEXTS = 4096  # tokenised at a time while a GPU computes
TOKENIZING, AHEAD = 2, 4  # threads, and pieces of texts that wait for the device


class BatchOptions(TypedDict, total=False):
    """batch_size, normalize: see Encoder.encode. prompt_tokens: so many leading tokens of each text
    are not pooled."""

    batch_size: int | None
    normalize: bool | None
    prompt_tokens: int


def encode_texts(
    encoder: SentenceEncoder,
    tokenizer: TextTokenizer,
    texts: Sequence[str],
    *,
    progress: Callable[[int], Any] | None = None,
    **options: Unpack[BatchOptions],
) -> FloatArray:
    """Vectors (N, H) float32 of N texts, in their order.

    progress: called after each batch with how many texts are done, repeats counted. Raises
    UserError (a ValueError) naming the index of a text that is no str or holds a lone surrogate, or
    whose vector is not finite, or zero where it is to have length 1."""
    one_thread_after_fork()
    check_texts(texts)  # before deduplication: the index in an error is the caller's
    distinct, inverse = deduplicate(texts)

    def show(done: int, _: int) -> None:
        if progress:
            progress(len(texts) * done // len(distinct))

    vectors, _ = encode_distinct(encoder, tokenizer, distinct, progress=show, **options)
    vectors = vectors if len(distinct) == len(texts) else vectors[inverse]
    unit = options.get("normalize")
    if unit is None:  # as they are made
        unit = encoder.normalize and encoder.kept == encoder.dimension
    check_vectors(vectors, lambda row: f"text {row}", unit=unit)
    return vectors


@torch.inference_mode()
def token_states(
    encoder: SentenceEncoder,
    tokenizer: TextTokenizer,
    texts: Sequence[str],
    *,
    batch_size: int | None = None,
    normalize: bool | None = None,
    prompt_tokens: int = 0,
    progress: Callable[[int], Any] | None = None,
) -> list[FloatArray]:
    """The last states (T, H) float32 of each text's tokens, special ones and a prompt's included.

    normalize: unit rows; a model's own setting is of its vectors, and no part of this."""
    one_thread_after_fork()
    check_texts(texts)
    tokens, states = tokenizer.tokenize(texts), [np.empty((0, 0), np.float32)] * len(texts)
    device = encoder.bert.embeddings.word_embeddings.weight.device
    done, training = 0, encoder.training
    encoder.eval()
    for rows in length_batches(tokens.lengths, most_tokens(encoder, device), batch_size):
        ids, mask = (part.to(device) for part in tokens.batch(rows))
        hidden = encoder.bert(ids, mask).float()  # (B, T, H)
        hidden = (l2_normalize(hidden) if normalize else hidden).cpu().numpy()
        for row, length, own in zip(rows, tokens.lengths_of(rows), hidden, strict=True):
            states[row] = own[:length].copy()
        done += len(rows)
        if progress:
            progress(done)
    encoder.train(training)
    return states


def encode_tokens(
    encoder: SentenceEncoder,
    tokens: TokenizedTexts,
    *,
    progress: Callable[[int, int], Any] | None = None,
    **options: Unpack[BatchOptions],
) -> FloatArray:
    """Vectors (N, H) float32 of N tokenised texts, in their order.

    progress: called after each batch with how many texts are done and how many tokens they have."""
    batches = Batches(encoder, progress, **options)
    return batches.encode(len(tokens), [tokens])


def encode_distinct(
    encoder: SentenceEncoder,
    tokenizer: TextTokenizer,
    texts: Sequence[str],
    *,
    progress: Callable[[int, int], Any] | None = None,
    **options: Unpack[BatchOptions],
) -> tuple[FloatArray, int]:
    """encode_tokens of N texts, and how many tokens they have; a GPU computes while the next ones
    are tokenised."""
    batches = Batches(encoder, progress, **options)
    if not batches.packs or len(texts) <= PIECE_TEXTS:
        pieces: Iterable[TokenizedTexts] = [tokenizer.tokenize(texts)]
    else:
        starts = range(0, len(texts), PIECE_TEXTS)
        parts = (texts[i : i + PIECE_TEXTS] for i in starts)
        pieces = ahead(tokenizer.tokenize, parts, workers=TOKENIZING, started=AHEAD)
    return batches.encode(len(texts), pieces), batches.tokens


class Batches:
    """Encodes tokenised texts batch by batch; of one that does not fit in memory each half."""

    def __init__(
        self,
        encoder: SentenceEncoder,
        progress: Callable[[int, int], Any] | None,
        *,
        batch_size: int | None = None,
        normalize: bool | None = None,
        prompt_tokens: int = 0,
    ) -> None:
        self.encoder, self.batch_size, self.progress = encoder, batch_size, progress
        self.normalize, self.prompt_tokens = normalize, prompt_tokens
        self.device = encoder.bert.embeddings.word_embeddings.weight.device
        self.packs = packs_on(self.device)
        self.fitting = math.inf  # padded tokens that are thought to fit in memory
        self.texts = self.tokens = 0  # done

    @torch.inference_mode()
    def encode(self, count: int, pieces: Iterable[TokenizedTexts]) -> FloatArray:
        """Vectors (N, H) of N = count texts that come in pieces."""
        out = np.empty((count, self.encoder.kept), dtype=np.float32)
        training, first = self.encoder.training, 0
        if training:
            self.encoder.eval()
        readback = Readback(out)
        with gpu_settings(self.device, self.encoder.bert.packed.precision):
            for tokens in pieces:
                if (vector := self.from_graph(tokens)) is not None:
                    out[first] = vector[0]
                else:
                    self.encode_piece(tokens, first, readback)
                first += len(tokens)
            readback.finish()
        if training:
            self.encoder.train()
        return out

    def from_graph(self, tokens: TokenizedTexts) -> FloatArray | None:
        """The vector of a single short text on a GPU."""
        if len(tokens) != 1 or self.device.type != "cuda":
            return None
        graphs = query_graphs(self.encoder)
        vector = graphs.encode(self.encoder, tokens, self.normalize, self.prompt_tokens)
        if vector is not None:
            self.done(tokens.lengths)
        return vector

    def encode_piece(self, tokens: TokenizedTexts, first: int, readback: Readback) -> None:
        """Vectors of texts that are the rows from `first` on."""
        batches = self.batches(tokens.lengths)
        on_cpu = self.device.type == "cpu"
        if on_cpu and len(batches) > 1:  # here, once: else in each thread
            bert = self.encoder.bert
            bert.packed.ready(bert.embeddings.word_embeddings.weight)
        work, most = partial(self.fit, tokens), len(batches) if on_cpu else 1
        with closing(on_cores(work, batches, most)) as results:
            for rows, vectors in zip(batches, results, strict=True):
                if self.packs:
                    readback.add(first + rows, vectors)
                else:
                    readback.out[first + rows] = vectors.cpu().numpy()
                self.done(tokens.lengths_of(rows))

    def batches(self, lengths: IntArray) -> list[IntArray]:
        """Rows of similar length; of a few texts on a CPU a batch for each core."""
        most, cores = most_tokens(self.encoder, self.device), 1
        if self.device.type == "cpu":
            cores = min(torch.get_num_threads(), int(lengths.sum()) // LEAST_TOKENS)
        if cores < 2 or lengths.sum() > cores * most:
            return length_batches(lengths, most, self.batch_size)
        by_length = np.argsort(-lengths, kind="stable")
        ends = np.cumsum(lengths[by_length])
        cuts = np.searchsorted(ends, ends[-1] * np.arange(1, cores) / cores) + 1
        parts = [rows for rows in np.split(by_length, np.unique(cuts)) if len(rows)]
        return [
            rows[batch]
            for rows in parts
            for batch in length_batches(lengths[rows], most, self.batch_size)
        ]

    @torch.inference_mode()
    def fit(self, tokens: TokenizedTexts, rows: IntArray) -> Tensor:
        """Vectors (B, H); of what does not fit in memory those of each half."""
        padded = len(rows) * int(tokens.lengths_of(rows).max())
        if padded <= self.fitting or len(rows) == 1:
            try:
                return self.embed(tokens, rows)
            except RuntimeError as problem:
                if not out_of_memory(problem) or len(rows) == 1:
                    raise
            self.halve(padded, len(rows))
        return torch.cat([self.fit(tokens, half) for half in np.array_split(rows, 2)])

    def embed(self, tokens: TokenizedTexts, rows: IntArray) -> Tensor:
        """Vectors (B, H)."""
        encoder, normalize, prompt_tokens = self.encoder, self.normalize, self.prompt_tokens
        if self.packs:
            return embed_packed(encoder, tokens, rows, normalize, prompt_tokens)
        ids, mask = (part.to(self.device) for part in tokens.batch(rows))
        prompted = mask.new_full((len(mask),), prompt_tokens) if prompt_tokens else None
        vectors = encoder(ids, mask, normalize=normalize, prompt_tokens=prompted)
        return shorten(encoder, vectors, normalize)

    def halve(self, padded: int, texts: int) -> None:
        if self.fitting == math.inf:
            message = f"{texts} texts do not fit in memory: halving (see batch_size)"
            warnings.warn(message, stacklevel=2)
        self.fitting = min(self.fitting, padded / 2)

    def done(self, lengths: IntArray) -> None:
        self.texts, self.tokens = self.texts + len(lengths), self.tokens + int(lengths.sum())
        if self.progress:
            self.progress(self.texts, self.tokens)


def packs_on(device: torch.device) -> bool:
    """Whether batches go to this device packed, and their vectors come back later."""
    return device.type == "cuda"


def most_tokens(encoder: SentenceEncoder, device: torch.device) -> int:
    """Padded tokens a batch may have on this device."""
    return batch_tokens(encoder, device) if packs_on(device) else BATCH_TOKENS


def one_thread_after_fork() -> None:
    """In a process that was forked from one that has encoded, the threads of OpenMP are gone, and
    work that is given to them never ends."""
    if _encodes_in[:1] not in ([], [os.getpid()]):
        torch.set_num_threads(1)
    _encodes_in[:] = [os.getpid()]


_encodes_in: list[int] = []  # the process that last encoded, as this one knows it


def out_of_memory(problem: BaseException) -> bool:
    """Whether an error says that the device's or the machine's memory is used up."""
    messages = ("not enough memory", "can't allocate memory")
    return isinstance(problem, torch.OutOfMemoryError) or any(m in str(problem) for m in messages)


def length_batches(lengths: IntArray, tokens: int, texts: int | None = None) -> list[IntArray]:
    """Rows grouped by token count, longest first (memory is at its peak at once): batches of at
    most `tokens` tokens once padded, never fewer than one row, and of at most `texts` rows."""
    by_length = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(by_length):
        size = max(1, tokens // max(1, int(lengths[by_length[start]])))
        size = min(size, texts or size)
        batches.append(by_length[start : start + size])
        start += size
    return batches
