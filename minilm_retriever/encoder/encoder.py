"""Encoder: texts in, vectors out. A model, its tokenizer and its settings behind encode, similarity
and save."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, cast, overload

import torch
from torch import Tensor

from minilm_retriever.distributed import check_device
from minilm_retriever.encoder.encode_texts import encode_texts
from minilm_retriever.encoder.precision import check_precision, default_device
from minilm_retriever.encoder.similarity import Array, similarity, similarity_pairwise
from minilm_retriever.errors import UserError
from minilm_retriever.pretrained.config import Precision, SaveDtype
from minilm_retriever.pretrained.model_folder import LoadedModel, load_pretrained, write_model
from minilm_retriever.pretrained.prompts import DOCUMENT, QUERY, find_prompt
from minilm_retriever.progress import Progress
from minilm_retriever.storage import atomic_folders
from minilm_retriever.types import FloatArray
from minilm_retriever.vectors.shards import SHARD_ROWS, make_shards

Texts = str | Sequence[str]
Device = str | torch.device | None


class Options(TypedDict, total=False):
    prompt: str | None
    prompt_name: str | None
    batch_size: int | None
    normalize: bool | None
    device: Device
    show_progress: bool | str


class Encoder:
    """Text to vectors.

    >>> encoder = Encoder.from_pretrained("checkpoints/all-MiniLM-L6-v2")
    >>> embeddings = encoder.encode(["He bakes bread.", "She repairs watches."])  # (2, 384) float32
    >>> encoder.similarity(embeddings, embeddings)  # (2, 2)
    """

    def __init__(
        self, model: LoadedModel, device: Device = None, *, precision: Precision = "fp32"
    ) -> None:
        self.model = model
        if device is not None:
            check_device(device)
        self.device = torch.device(device or default_device())
        self.precision = precision
        model.encoder.to(self.device)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        revision: str | None = None,
        device: Device = None,
        precision: Precision = "fp32",
    ) -> Encoder:
        """Open a model folder (of sentence-transformers, or a plain BertModel's) or a hub name.

        revision: of a hub name, a commit, branch or tag. device: "cpu", "cuda", ...; by default a
        GPU where there is one. precision: see the attribute. Raises UserError (a ValueError) where
        something is missing, damaged, or of another architecture."""
        return cls(load_pretrained(model, revision), device, precision=precision)

    @property
    def precision(self) -> Precision:
        """Numbers that a CPU computes with: "fp32", or "bf16" where its instructions make that
        faster (else a UserError). It is the model's: all encoders of one model share it."""
        return cast(Precision, self.model.encoder.bert.packed.precision)

    @precision.setter
    def precision(self, precision: Precision) -> None:
        check_precision(precision, self.device)
        self.model.encoder.bert.packed.precision = precision

    @property
    def dimension(self) -> int:
        """H, the length of a vector."""
        return self.model.encoder.kept

    @property
    def max_length(self) -> int:
        """Tokens of a text that count, [CLS] and [SEP] included."""
        return self.model.settings.max_length

    def fingerprint(self) -> str:
        """What decides a vector: the model's fingerprint, and the precision if it is not fp32."""
        own = self.model.fingerprint()
        return own if self.precision == "fp32" else f"{own} {self.precision}"

    @overload
    def encode(
        self, sentences: Texts, *, convert_to: Literal["numpy"] = ..., **options: Unpack[Options]
    ) -> FloatArray: ...

    @overload
    def encode(
        self, sentences: Texts, *, convert_to: Literal["torch"], **options: Unpack[Options]
    ) -> Tensor: ...

    def encode(
        self,
        sentences: Texts,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        batch_size: int | None = None,
        normalize: bool | None = None,
        convert_to: Literal["numpy", "torch"] = "numpy",
        device: Device = None,
        show_progress: bool | str = False,
    ) -> FloatArray | Tensor:
        """Vectors (N, H) float32 of N sentences in their order, or (H,) of one string; (0, H) of
        none.

        prompt: prefix of each text; or prompt_name: the one of that name in the model's folder
        (by default its default prompt). batch_size: at most so many texts a batch (by default a
        budget of tokens decides). normalize: unit rows or not (by default as the model's folder
        says). device: moves the model there, and a torch result stays there. show_progress: a bar
        on stderr, or its label. Raises UserError (a ValueError) naming the index of a text that is
        no str or holds a lone surrogate."""
        if convert_to not in ("numpy", "torch"):
            raise UserError(f"convert_to is {convert_to!r}; it can be 'numpy' or 'torch'")
        if batch_size is not None and batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; it must be at least 1")
        if device is not None and torch.device(device) != self.device:
            check_precision(self.precision, torch.device(device))
            self.device = torch.device(device)
            self.model.encoder.to(self.device)
        prefix = find_prompt(self.model, prompt, prompt_name)
        texts = [sentences] if isinstance(sentences, str) else list(check_list(sentences))
        job = show_progress if isinstance(show_progress, str) else "encoding"
        with Progress(job, len(texts), "texts") if show_progress else nullcontext() as progress:
            vectors = encode_texts(
                self.model.encoder,
                self.model.tokenizer,
                prefix.before(texts),
                batch_size=batch_size,
                normalize=normalize,
                prompt_tokens=prefix.tokens,
                progress=progress.at if progress else None,
            )
        vectors = vectors[0] if isinstance(sentences, str) else vectors
        return vectors if convert_to == "numpy" else torch.from_numpy(vectors).to(self.device)

    def encode_query(
        self, queries: Texts, *, batch_size: int | None = None, normalize: bool | None = None
    ) -> FloatArray:
        """encode(), with the prompt that the model's folder has for queries, if it has one."""
        prompt = find_prompt(self.model, task=QUERY).text
        return self.encode(queries, prompt=prompt, batch_size=batch_size, normalize=normalize)

    def encode_document(
        self, documents: Texts, *, batch_size: int | None = None, normalize: bool | None = None
    ) -> FloatArray:
        """encode(), with the prompt that the model's folder has for documents, if it has one (the
        first of document, passage, corpus that is there, also an empty one)."""
        prompt = find_prompt(self.model, task=DOCUMENT).text
        return self.encode(documents, prompt=prompt, batch_size=batch_size, normalize=normalize)

    def encode_stream(
        self,
        texts: Iterable[str | tuple[str, ...]],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        batch_size: int | None = None,
        normalize: bool | None = None,
        shard_size: int = SHARD_ROWS,
    ) -> Iterator[tuple[list[str], FloatArray]]:
        """Yield (ids, vectors (N, H)) of `shard_size` texts at a time, in order, however many come.

        texts: strings, whose ids are their numbers from "0" on, or tuples that begin with id and
        text, such as the records of `data.read_texts`. Identical texts are computed once in each
        yield. The rest as in encode(), the default prompt as in encode_document()."""
        prompt = find_prompt(self.model, prompt, prompt_name, DOCUMENT).text
        rows = enumerate(check_list(texts))
        records = ((str(n), t) if isinstance(t, str) else t for n, t in rows)
        for shard in make_shards(records, shard_size):
            vectors = self.encode(
                shard.texts, prompt=prompt, batch_size=batch_size, normalize=normalize
            )
            yield shard.ids, vectors

    def similarity(self, a: Array, b: Array) -> Array:
        """Similarity of every row of a (N, H) to every row of b (M, H) -> (N, M).

        Cosine, dot product, or minus a Euclidean or Manhattan distance, as the model's folder
        says."""
        return similarity(self.model.settings.similarity, a, b)

    def similarity_pairwise(self, a: Array, b: Array) -> Array:
        """Similarity of row i of a (N, H) to row i of b (N, H) -> (N,)."""
        return similarity_pairwise(self.model.settings.similarity, a, b)

    def save(
        self, folder: str | Path, *, overwrite: bool = False, dtype: SaveDtype = "float32"
    ) -> None:
        """Write the model as a sentence-transformers folder (3.x layout), whole or not at all.

        dtype: of the stored weights; readers compute in float32 all the same. Raises UserError
        where the folder exists and `overwrite` is not given."""
        with atomic_folders.staged_folder(Path(folder), overwrite=overwrite) as staging:
            write_model(staging, self.model, dtype=dtype)


def check_list(texts: Iterable[Any]) -> Iterable[Any]:
    """UserError for what gives something else than its texts one by one, in their order."""
    is_frame = hasattr(texts, "columns") or hasattr(texts, "column_names")
    if is_frame or isinstance(texts, (bytes, Mapping, Set)) or not isinstance(texts, Iterable):
        hint = "a list of str"
        if is_frame or isinstance(texts, Mapping):
            hint += ", such as one of its columns: data['text']"
        raise UserError(f"texts of the type {type(texts).__name__}: pass {hint}")
    return texts
