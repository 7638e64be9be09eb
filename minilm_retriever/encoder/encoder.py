"""Encoder: texts in, vectors out. A model, its tokenizer and its settings behind encode, similarity
and save."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from inspect import signature
from types import MappingProxyType
from typing import Any, Literal, Unpack, cast, overload

import torch

from minilm_retriever.distributed import check_device
from minilm_retriever.encoder.encode_texts import encode_texts, token_states
from minilm_retriever.encoder.inputs import (
    Device,
    Options,
    Outputs,
    Texts,
    check_list,
    read_list,
)
from minilm_retriever.encoder.precision import check_precision, default_device
from minilm_retriever.encoder.similarity import Array, similarity, similarity_pairwise
from minilm_retriever.errors import UserError
from minilm_retriever.pretrained.config import Precision, SaveDtype
from minilm_retriever.pretrained.model_folder import LoadedModel, load_pretrained, write_model
from minilm_retriever.pretrained.prompts import DOCUMENT, QUERY, find_prompt
from minilm_retriever.progress import Progress
from minilm_retriever.storage import atomic_folders
from minilm_retriever.types import FloatArray, StrPath
from minilm_retriever.vectors.shards import SHARD_ROWS, make_shards


class Encoder:
    """Text to vectors.

    >>> encoder = Encoder("checkpoints/all-MiniLM-L6-v2")  # a folder, or a name at the hub
    >>> embeddings = encoder.encode(["He bakes bread.", "She repairs watches."])  # (2, 384) float32
    >>> encoder.similarity(embeddings, embeddings)  # (2, 2)

    Threads may share one; forked and spawned processes, too, and pickles hold it whole."""

    def __init__(
        self,
        model: StrPath | LoadedModel,
        device: Device = None,
        *,
        revision: str | None = None,
        precision: Precision = "fp32",
    ) -> None:
        """Open a model folder (of sentence-transformers, or a plain BertModel's) or a hub name.

        revision: of a hub name, a commit, branch or tag. device: "cpu", "cuda", ...; by default a
        GPU where there is one. precision: see the attribute. Raises UserError (a ValueError) where
        something is missing, damaged, or of another architecture."""
        self.name = "" if isinstance(model, LoadedModel) else str(model)
        self.model: LoadedModel = (
            model if isinstance(model, LoadedModel) else load_pretrained(model, revision)
        )
        if device is not None:
            check_device(device)
        self.device = torch.device(device or default_device())
        self.precision = precision
        self.model.encoder.to(self.device)

    @classmethod
    def from_pretrained(
        cls,
        model: StrPath,
        *,
        revision: str | None = None,
        device: Device = None,
        precision: Precision = "fp32",
    ) -> Encoder:
        """Encoder(model, ...), as other libraries have it."""
        return cls(model, device, revision=revision, precision=precision)

    def __repr__(self) -> str:
        settings = self.model.settings
        return (
            f"Encoder({self.name or 'in memory'}: {self.dimension} dimensions, at most "
            f"{self.max_length} tokens, {settings.pooling} pooling, {settings.similarity}, "
            f"{self.device}, {self.precision})"
        )

    @property
    def precision(self) -> Precision:
        """Numbers that are computed with: "fp32"; on a GPU "tf32" or "fp16"; on a CPU "bf16" or
        "int8" where its instructions make that faster (else a UserError). It is the model's: all
        encoders of one model share it."""
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
    def truncate_dim(self) -> int | None:
        """How many leading numbers of a vector are kept; None: all. It is the model's."""
        return self.model.settings.truncate_dim

    @truncate_dim.setter
    def truncate_dim(self, size: int | None) -> None:
        whole = self.model.encoder.dimension
        if size is not None and not 1 <= size <= whole:
            raise UserError(f"truncate_dim is {size}; it can be from 1 to {whole}, or None")
        self.model.encoder.kept = whole if size is None else size
        self._change(truncate_dim=size)

    @property
    def max_length(self) -> int:
        """Tokens of a text that count, [CLS] and [SEP] included."""
        return self.model.settings.max_length

    @max_length.setter
    def max_length(self, limit: int) -> None:
        self.model = self.model.with_max_length(limit)

    @property
    def prompts(self) -> Mapping[str, str]:
        """Texts put before others, by name; "query" and "document" are those of encode_query() and
        encode_document()."""
        return MappingProxyType(dict(self.model.settings.prompts))

    @prompts.setter
    def prompts(self, prompts: Mapping[str, str]) -> None:
        if not all(isinstance(word, str) for item in prompts.items() for word in item):
            raise UserError("prompts are texts by name, such as {'query': 'query: '}")
        default = self.model.settings.default_prompt_name
        kept = default if default in prompts else None
        self._change(prompts=dict(prompts), default_prompt_name=kept)

    def _change(self, **settings: Any) -> None:
        self.model = replace(self.model, settings=replace(self.model.settings, **settings))

    def fingerprint(self) -> str:
        """What decides a vector: the model's fingerprint, and the precision if it is not fp32."""
        own = self.model.fingerprint()
        return own if self.precision == "fp32" else f"{own} {self.precision}"

    @overload
    def encode(self, sentences: Texts, **options: Unpack[Options]) -> FloatArray: ...

    @overload
    def encode(self, sentences: Texts, **options: Unpack[Outputs]) -> Any: ...

    def encode(
        self,
        sentences: Texts,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        batch_size: int | None = None,
        normalize: bool | None = None,
        output: Literal["vectors", "tokens"] = "vectors",
        convert_to: Literal["numpy", "torch"] = "numpy",
        device: Device = None,
        show_progress: bool | str = False,
    ) -> Any:
        """Vectors (N, H) float32 of N sentences in their order, or (H,) of one string; (0, H) of
        none.

        sentences: a list, a generator, an array of str, a pandas Series, ... prompt: prefix of each
        text; or prompt_name: the one of that name (by default the model's default prompt).
        batch_size: at most so many texts a batch (by default a budget of tokens decides).
        normalize: unit rows or not (by default as the model's folder says). output: "tokens" gives
        in place of vectors a list of the states (T, H) of each text's tokens, [CLS] and [SEP] among
        them. device: moves the model there, and a torch result stays there. show_progress: a bar on
        stderr, or its label. Raises UserError (a ValueError) naming the index of a text that is no
        str or holds a lone surrogate."""
        check_choices(output, convert_to, batch_size)
        if device is not None:
            self._move(torch.device(device))
        model = self.model  # which another thread may replace
        prefix = find_prompt(model, prompt, prompt_name)
        texts, is_one = read_list(sentences)
        job = show_progress if isinstance(show_progress, str) else "encoding"
        with Progress(job, len(texts), "texts") if show_progress else nullcontext() as progress:
            result = (token_states if output == "tokens" else encode_texts)(
                model.encoder,
                model.tokenizer,
                prefix.before(texts),
                batch_size=batch_size,
                normalize=normalize,
                prompt_tokens=prefix.tokens,
                progress=progress.at if progress else None,
            )
        if convert_to == "torch":
            result = to_tensors(result, self.device)
        return result[0] if is_one else result

    @overload
    def encode_query(self, queries: Texts, **options: Unpack[Options]) -> FloatArray: ...

    @overload
    def encode_query(self, queries: Texts, **options: Unpack[Outputs]) -> Any: ...

    def encode_query(self, queries: Texts, **options: Unpack[Outputs]) -> Any:
        """encode(), with the prompt that the model's folder has for queries, if it has one."""
        return self.encode(queries, **self._with_prompt(QUERY, options))

    @overload
    def encode_document(self, documents: Texts, **options: Unpack[Options]) -> FloatArray: ...

    @overload
    def encode_document(self, documents: Texts, **options: Unpack[Outputs]) -> Any: ...

    def encode_document(self, documents: Texts, **options: Unpack[Outputs]) -> Any:
        """encode(), with the prompt that the model's folder has for documents, if it has one (the
        first of document, passage, corpus that is there, also an empty one)."""
        return self.encode(documents, **self._with_prompt(DOCUMENT, options))

    def _with_prompt(self, task: Sequence[str], options: Outputs) -> Outputs:
        text, name = options.get("prompt"), options.get("prompt_name")
        prompt = find_prompt(self.model, text, name, task).text
        return {**options, "prompt": prompt, "prompt_name": None}

    def _move(self, device: torch.device) -> None:
        if device != self.device:
            check_precision(self.precision, device)
            self.device = device
            self.model.encoder.to(device)

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
        self, folder: StrPath, *, overwrite: bool = False, dtype: SaveDtype = "float32"
    ) -> None:
        """Write the model as a sentence-transformers folder (3.x layout), whole or not at all.

        dtype: of the stored weights; readers compute in float32 all the same. Raises UserError
        where the folder exists and `overwrite` is not given."""
        with atomic_folders.staged_folder(folder, overwrite=overwrite) as staging:
            write_model(staging, self.model, dtype=dtype)


for _method in (Encoder.encode_query, Encoder.encode_document):  # for help() and notebooks
    setattr(_method, "__signature__", signature(Encoder.encode))  # noqa: B010 - unknown to mypy


def check_choices(output: str, convert_to: str, batch_size: int | None) -> None:
    """UserError for an option of encode() that is none."""
    if output not in ("vectors", "tokens"):
        raise UserError(f"output is {output!r}; it can be 'vectors' or 'tokens'")
    if convert_to not in ("numpy", "torch"):
        raise UserError(f"convert_to is {convert_to!r}; it can be 'numpy' or 'torch'")
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be at least 1")


def to_tensors(arrays: Any, device: torch.device) -> Any:
    """An array as a tensor on the device; of a list each."""
    if isinstance(arrays, list):
        return [to_tensors(array, device) for array in arrays]
    return torch.from_numpy(arrays).to(device)
