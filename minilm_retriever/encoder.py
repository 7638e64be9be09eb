"""Encoder: what people import. A model, its tokenizer and its settings behind encode, similarity and save."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeVar, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from minilm_retriever import folders, weights
from minilm_retriever.encoding import Vectors, encode_texts
from minilm_retriever.errors import UserError
from minilm_retriever.memory import keep_freed_memory
from minilm_retriever.model_folder import LoadedModel, open_model, plain_card, write_model
from minilm_retriever.progress import Progress
from minilm_retriever.prompts import DOCUMENT, QUERY, Prompt, find_prompt
from minilm_retriever.shards import SHARD_SIZE, group

KEPT_MEMORY = 256 << 20  # bytes of freed memory kept for the next batch, far more than one takes on a CPU

Array = TypeVar("Array", npt.NDArray[np.float32], Tensor)


class Encoder:
    """Text to vectors.

    >>> encoder = Encoder.from_pretrained("checkpoints/all-MiniLM-L6-v2")
    >>> embeddings = encoder.encode(["He bakes bread.", "She repairs watches."])  # (2, 384) float32, unit rows
    >>> encoder.similarity(embeddings, embeddings)  # (2, 2)
    """

    def __init__(self, model: LoadedModel, device: str | torch.device | None = None) -> None:
        self.model = model
        self.device = torch.device(device or default_device())
        model.encoder.to(self.device)
        if self.device.type == "cpu":
            keep_freed_memory(KEPT_MEMORY)

    @classmethod
    def from_pretrained(cls, model: str | Path, *, device: str | torch.device | None = None) -> Encoder:
        """Open a model folder (either sentence-transformers layout, or a plain BertModel's) or a hub name.

        device: "cpu", "cuda", ...; by default a GPU where there is one. Raises UserError (a ValueError) in one line
        on a folder that lacks something, was damaged, or holds another architecture.
        """
        return cls(open_model(weights.resolve(str(model))), device)

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
        """Vectors (N, H) float32 of N sentences in their order, or (H,) of one string; (0, H) of none.

        prompt: words put before each text; or prompt_name: those that the model's folder has under that name (by
        default its default prompt, if it has one). batch_size: at most so many texts a batch (by default a budget of
        tokens decides). normalize: unit rows or not, where it should differ from what the model's folder says.
        device: moves the model there, and a torch result stays there. show_progress: a bar on stderr.
        Raises UserError (a ValueError) naming the index of a text that is no str or holds a lone surrogate.
        """
        if convert_to not in ("numpy", "torch"):
            raise UserError(f"convert_to is {convert_to!r}; it can be 'numpy' or 'torch'")
        if device is not None and torch.device(device) != self.device:
            self.device = torch.device(device)
            self.model.encoder.to(self.device)
        words = find_prompt(self.model.settings, self.model.tokenizer, prompt, prompt_name)
        result = self._encode(sentences, words, batch_size, normalize, show_progress)
        return result if convert_to == "numpy" else torch.from_numpy(result).to(self.device)

    def encode_query(
        self, queries: str | Sequence[str], *, batch_size: int | None = None, normalize: bool | None = None
    ) -> Vectors:
        """encode(), with the prompt that the model's folder has for queries, if it has one."""
        words = find_prompt(self.model.settings, self.model.tokenizer, None, None, QUERY)
        return self._encode(queries, words, batch_size, normalize)

    def encode_document(
        self, documents: str | Sequence[str], *, batch_size: int | None = None, normalize: bool | None = None
    ) -> Vectors:
        """encode(), with the prompt that the model's folder has for documents, if it has one."""
        words = find_prompt(self.model.settings, self.model.tokenizer, None, None, DOCUMENT)
        return self._encode(documents, words, batch_size, normalize)

    def encode_stream(
        self,
        texts: Iterable[str | tuple[str, ...]],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        batch_size: int | None = None,
        normalize: bool | None = None,
        shard_size: int = SHARD_SIZE,
    ) -> Iterator[tuple[list[str], Vectors]]:
        """Yield (ids, vectors (N, H)) of `shard_size` texts at a time, in order, however many come.

        texts: strings, whose ids are their numbers from "0" on, or tuples that begin with id and text, such as the
        records of `data.read_texts`. Identical texts are computed once in each yield. The rest as in encode(), the
        default prompt as in encode_document().
        """
        words = find_prompt(self.model.settings, self.model.tokenizer, prompt, prompt_name, DOCUMENT)
        numbered = ((str(n), t) if isinstance(t, str) else (t[0], t[1]) for n, t in enumerate(texts))
        for shard in group(numbered, shard_size):
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
            progress = stack.enter_context(Progress("encoding", len(texts), "texts")) if show_progress else None
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
        """Similarity of every row of a (N, H) to every row of b (M, H) -> (N, M), by the model's own measure.

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
            raise UserError(f"pairwise similarity needs as many rows on both sides, not {len(left)} and {len(right)}")
        kind = self.model.settings.similarity
        if kind in ("cosine", "dot"):
            scores = (unit(left) * unit(right)).sum(-1) if kind == "cosine" else (left * right).sum(-1)
        else:
            scores = -torch.linalg.vector_norm(left - right, ord=2 if kind == "euclidean" else 1, dim=-1)
        return scores if isinstance(a, Tensor) else scores.numpy()

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write the model as a sentence-transformers folder (3.x layout), whole or not at all.

        Raises UserError where the folder exists and `overwrite` is not given.
        """
        with folders.publish_folder(Path(folder), overwrite=overwrite) as making:
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
