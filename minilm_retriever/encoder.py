"""Encoder: what people import. A model, its tokenizer and its settings behind encode, similarity
and save."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from minilm_retriever.core.model import SentenceEncoder
from minilm_retriever.data.distinct import deduplicate
from minilm_retriever.errors import UserError
from minilm_retriever.kernels.memory import keep_freed_memory
from minilm_retriever.pretrained.model_folder import (
    LoadedModel,
    load_pretrained,
    plain_card,
    write_model,
)
from minilm_retriever.pretrained.prompts import DOCUMENT, QUERY, Prompt, find_prompt
from minilm_retriever.pretrained.tokenizer import TextTokenizer, TokenizedTexts, check_texts
from minilm_retriever.progress import Progress
from minilm_retriever.storage import atomic_folders
from minilm_retriever.types import IntArray
from minilm_retriever.vectors.shards import SHARD_ROWS, make_shards

KEPT_MEMORY = (
    256 << 20
)  # bytes of freed memory kept for the next batch, far more than one takes on a CPU

Array = TypeVar("Array", npt.NDArray[np.float32], Tensor)


class Encoder:
    """Text to vectors.

    >>> encoder = Encoder.from_pretrained("checkpoints/all-MiniLM-L6-v2") >>> embeddings =
    encoder.encode(["He bakes bread.", "She repairs watches."])  # (2, 384) float32, unit rows >>>
    encoder.similarity(embeddings, embeddings)  # (2, 2)"""

    def __init__(self, model: LoadedModel, device: str | torch.device | None = None) -> None:
        self.model = model
        self.device = torch.device(device or default_device())
        model.encoder.to(self.device)
        if self.device.type == "cpu":
            keep_freed_memory(KEPT_MEMORY)

    @classmethod
    def from_pretrained(
        cls, model: str | Path, *, device: str | torch.device | None = None
    ) -> Encoder:
        """Open a model folder (either sentence-transformers layout, or a plain BertModel's) or a
        hub name.

        device: "cpu", "cuda", ...; by default a GPU where there is one. Raises UserError (a
        ValueError) in one line on a folder that lacks something, was damaged, or holds another
        architecture."""
        return cls(load_pretrained(model), device)

    @property
    def dimension(self) -> int:
        """H, the length of a vector."""
        return self.model.encoder.bert.config.hidden_size

    @property
    def max_length(self) -> int:
        """Tokens of a text that count, [CLS] and [SEP] included."""
        return self.model.settings.max_length

    @overload
    def encode(
        self,
        sentences: str | Sequence[str],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        batch_size: int | None = None,
        normalize: bool | None = None,
        convert_to: Literal["numpy"] = "numpy",
        device: str | torch.device | None = None,
        show_progress: bool = False,
    ) -> Vectors: ...

    @overload
    def encode(
        self,
        sentences: str | Sequence[str],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        batch_size: int | None = None,
        normalize: bool | None = None,
        convert_to: Literal["torch"],
        device: str | torch.device | None = None,
        show_progress: bool = False,
    ) -> Tensor: ...

    def encode(
        self,
        sentences: str | Sequence[str],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        batch_size: int | None = None,
        normalize: bool | None = None,
        convert_to: Literal["numpy", "torch"] = "numpy",
        device: str | torch.device | None = None,
        show_progress: bool = False,
    ) -> Vectors | Tensor:
        """Vectors (N, H) float32 of N sentences in their order, or (H,) of one string; (0, H) of
        none.

        prompt: words put before each text; or prompt_name: those that the model's folder has under
        that name (by default its default prompt, if it has one). batch_size: at most so many texts
        a batch (by default a budget of tokens decides). normalize: unit rows or not, where it
        should differ from what the model's folder says. device: moves the model there, and a torch
        result stays there. show_progress: a bar on stderr. Raises UserError (a ValueError) naming
        the index of a text that is no str or holds a lone surrogate."""
        if convert_to not in ("numpy", "torch"):
            raise UserError(f"convert_to is {convert_to!r}; it can be 'numpy' or 'torch'")
        if device is not None and torch.device(device) != self.device:
            self.device = torch.device(device)
            self.model.encoder.to(self.device)
        words = find_prompt(self.model, prompt, prompt_name)
        result = self._encode(sentences, words, batch_size, normalize, show_progress)
        return result if convert_to == "numpy" else torch.from_numpy(result).to(self.device)

    def encode_query(
        self,
        queries: str | Sequence[str],
        *,
        batch_size: int | None = None,
        normalize: bool | None = None,
    ) -> Vectors:
        """encode(), with the prompt that the model's folder has for queries, if it has one."""
        words = find_prompt(self.model, task=QUERY)
        return self._encode(queries, words, batch_size, normalize)

    def encode_document(
        self,
        documents: str | Sequence[str],
        *,
        batch_size: int | None = None,
        normalize: bool | None = None,
    ) -> Vectors:
        """encode(), with the prompt that the model's folder has for documents, if it has one."""
        words = find_prompt(self.model, task=DOCUMENT)
        return self._encode(documents, words, batch_size, normalize)

    def encode_stream(
        self,
        texts: Iterable[str | tuple[str, ...]],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        batch_size: int | None = None,
        normalize: bool | None = None,
        shard_size: int = SHARD_ROWS,
    ) -> Iterator[tuple[list[str], Vectors]]:
        """Yield (ids, vectors (N, H)) of `shard_size` texts at a time, in order, however many come.

        texts: strings, whose ids are their numbers from "0" on, or tuples that begin with id and
        text, such as the records of `data.read_texts`. Identical texts are computed once in each
        yield. The rest as in encode(), the default prompt as in encode_document()."""
        words = find_prompt(self.model, prompt, prompt_name, DOCUMENT)
        numbered = (
            (str(n), t) if isinstance(t, str) else (t[0], t[1]) for n, t in enumerate(texts)
        )
        for shard in make_shards(numbered, shard_size):
            yield shard.ids, self._encode(shard.texts, words, batch_size, normalize)

    def _encode(
        self,
        sentences: str | Sequence[str],
        prompt: Prompt,
        batch_size: int | None,
        normalize: bool | None,
        show_progress: bool = False,
    ) -> Vectors:
        if batch_size is not None and batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; it must be at least 1")
        texts = [sentences] if isinstance(sentences, str) else list(sentences)
        with contextlib.ExitStack() as stack:
            progress = (
                stack.enter_context(Progress("encoding", len(texts), "texts"))
                if show_progress
                else None
            )
            vectors = encode_texts(
                self.model.encoder,
                self.model.tokenizer,
                prompt.before(texts),
                batch_size=batch_size,
                normalize=normalize,
                prompt_tokens=prompt.tokens,
                progress=progress.at if progress else None,
            )
        return vectors[0] if isinstance(sentences, str) else vectors

    def similarity(self, a: Array, b: Array) -> Array:
        """Similarity of every row of a (N, H) to every row of b (M, H) -> (N, M), by the model's
        own measure.

        Cosine, dot product, or minus a Euclidean or Manhattan distance, as the model's folder says.
        """
        left, right = rows_of(a), rows_of(b)
        kind = self.model.settings.similarity
        if kind == "cosine":
            scores = unit(left) @ unit(right).T
        elif kind == "dot":
            scores = left @ right.T
        else:
            scores = -torch.cdist(left, right, p=2.0 if kind == "euclidean" else 1.0)
        return scores if isinstance(a, Tensor) else scores.numpy()

    def similarity_pairwise(self, a: Array, b: Array) -> Array:
        """Similarity of row i of a (N, H) to row i of b (N, H) -> (N,)."""
        left, right = rows_of(a), rows_of(b)
        if left.shape != right.shape:
            raise UserError(
                f"pairwise similarity needs as many rows on both sides, not {len(left)} and {len(right)}"
            )
        kind = self.model.settings.similarity
        if kind in ("cosine", "dot"):
            scores = (
                (unit(left) * unit(right)).sum(-1) if kind == "cosine" else (left * right).sum(-1)
            )
        else:
            scores = -torch.linalg.vector_norm(
                left - right, ord=2 if kind == "euclidean" else 1, dim=-1
            )
        return scores if isinstance(a, Tensor) else scores.numpy()

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write the model as a sentence-transformers folder (3.x layout), whole or not at all.

        Raises UserError where the folder exists and `overwrite` is not given.
        """
        with atomic_folders.staged_folder(Path(folder), overwrite=overwrite) as making:
            write_model(making, self.model, card=plain_card(self.model))


def default_device() -> str:
    """A GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def rows_of(x: npt.NDArray[np.float32] | Tensor) -> Tensor:
    """x (N, H), or one vector (H,) taken as (1, H), as a tensor."""
    tensor = x if isinstance(x, Tensor) else torch.from_numpy(np.asarray(x, dtype=np.float32))
    return tensor.unsqueeze(0) if tensor.dim() == 1 else tensor


def unit(x: Tensor) -> Tensor:
    """Rows scaled to unit length."""
    return torch.nn.functional.normalize(x, dim=-1)


Vectors = npt.NDArray[np.float32]

# Padded tokens a batch: enough rows for the matrix multiplications to run at full speed; on a CPU
# no more than what keeps a layer's activations near the caches.
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

    batch_size: at most so many texts a batch; without it a budget of tokens alone decides.
    normalize: unit rows or not; None leaves it to the model. prompt_tokens: as many leading tokens
    of each text are not pooled. progress: called after each batch with how many texts are done,
    repeats counted. Raises UserError (a ValueError) naming the index of a text that is no str or
    holds a lone surrogate, or whose vector is not finite."""
    check_texts(texts)  # before repeats are folded: the index in an error is the caller's
    distinct, inverse = deduplicate(texts)
    vectors = encode_tokens(
        encoder,
        tokenizer.tokenize(distinct),
        batch_size=batch_size,
        normalize=normalize,
        prompt_tokens=prompt_tokens,
        progress=(lambda done, _: progress(len(texts) * done // len(distinct)))
        if progress
        else None,
    )
    vectors = vectors if len(distinct) == len(texts) else vectors[inverse]
    refuse_non_finite(vectors, lambda row: f"text {row}")
    return vectors


def refuse_non_finite(vectors: Vectors, name: Callable[[int], str]) -> None:
    """UserError with the name of the first of N vectors (N, H) that is not finite."""
    if not math.isfinite(float(vectors.sum(dtype=np.float64))):  # one pass, where all is well
        row = int(np.argmin(np.isfinite(vectors).all(axis=1)))
        raise UserError(
            f"the vector of {name(row)} is not finite: are the model's weights damaged, or far too large?"
        )


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
    most, done, real = (
        math.inf,
        0,
        0,
    )  # padded tokens that are known to fit; texts that are done, and their tokens
    while waiting:
        rows = waiting.pop()
        lengths = tokens.lengths_of(rows)
        padded = len(rows) * int(lengths.max())
        if padded <= most or len(rows) == 1:
            try:
                ids, mask = (part.to(device) for part in tokens.batch(rows))
                out[rows] = (
                    encoder(ids, mask, normalize=normalize, prompt_tokens=prompt_tokens)
                    .cpu()
                    .numpy()
                )
                done, real = done + len(rows), real + int(lengths.sum())
                if progress:
                    progress(done, real)
                continue
            except RuntimeError as problem:
                if not out_of_memory(problem) or len(rows) == 1:
                    raise
            if most == math.inf:
                warnings.warn(
                    f"{len(rows)} texts do not fit in memory: halving (see batch_size)",
                    stacklevel=3,
                )
            most = padded / 2
        waiting += np.array_split(rows, 2)[::-1]
    if training:
        encoder.train()
    return out


def out_of_memory(problem: BaseException) -> bool:
    """Whether an error says that the device's or the machine's memory is used up."""
    said = str(problem)
    return (
        isinstance(problem, torch.OutOfMemoryError)
        or "not enough memory" in said
        or "can't allocate memory" in said
    )


def length_batches(
    lengths: npt.NDArray[np.int64], tokens: int, texts: int | None = None
) -> list[IntArray]:
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
