"""Encoder: texts in, vectors out. A model, its tokenizer and its settings behind encode, similarity
and save."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar, Unpack, cast, get_args, overload

import numpy as np
import torch
from torch import Tensor

from minilm_retriever.core.model import SentenceEncoder, l2_normalize
from minilm_retriever.data.distinct import deduplicate
from minilm_retriever.distributed import check_device
from minilm_retriever.errors import UserError
from minilm_retriever.kernels.memory import keep_freed_memory
from minilm_retriever.kernels.processor import lacks_instructions
from minilm_retriever.pretrained.config import Precision, SaveDtype
from minilm_retriever.pretrained.model_folder import LoadedModel, load_pretrained, write_model
from minilm_retriever.pretrained.prompts import DOCUMENT, QUERY, find_prompt
from minilm_retriever.pretrained.tokenizer import TextTokenizer, TokenizedTexts, check_texts
from minilm_retriever.progress import Progress
from minilm_retriever.storage import atomic_folders
from minilm_retriever.types import FloatArray, IntArray
from minilm_retriever.vectors.checks import check_vectors
from minilm_retriever.vectors.shards import SHARD_ROWS, make_shards

# Padded tokens a batch: enough rows for matrix products at full speed; on a CPU no more than what
# keeps a layer's activations near the caches.
BATCH_TOKENS = {"cpu": 1024, "cuda": 65536}
KEPT_BYTES = 256 << 20  # of freed memory, for the next batch: far more than one takes on a CPU
DISTANCE_NORMS = {"euclidean": 2, "manhattan": 1}

Texts = str | Sequence[str]
Device = str | torch.device | None
Array = TypeVar("Array", FloatArray, Tensor)


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
        left, right = self._rows(a), self._rows(b)
        norm = DISTANCE_NORMS.get(self.model.settings.similarity)
        scores = left @ right.T if norm is None else -torch.cdist(left, right, p=norm)
        return scores if isinstance(a, Tensor) else scores.numpy()

    def similarity_pairwise(self, a: Array, b: Array) -> Array:
        """Similarity of row i of a (N, H) to row i of b (N, H) -> (N,)."""
        left, right = self._rows(a), self._rows(b)
        if left.shape != right.shape:
            raise UserError(
                f"pairwise similarity of {len(left)} and {len(right)} rows: not as many"
            )
        norm = DISTANCE_NORMS.get(self.model.settings.similarity)
        if norm is None:
            scores = (left * right).sum(-1)
        else:
            scores = -torch.linalg.vector_norm(left - right, ord=norm, dim=-1)
        return scores if isinstance(a, Tensor) else scores.numpy()

    def _rows(self, x: FloatArray | Tensor) -> Tensor:
        """x (N, H), or one vector (H,) as (1, H); unit rows where the cosine compares them."""
        rows = x if isinstance(x, Tensor) else torch.from_numpy(np.asarray(x, dtype=np.float32))
        rows = rows.unsqueeze(0) if rows.dim() == 1 else rows
        return l2_normalize(rows) if self.model.settings.similarity == "cosine" else rows

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


def open_for_command(
    model: str, device: str | None = None, precision: Precision = "fp32"
) -> Encoder:
    """Encoder.from_pretrained() for a command, whose process may keep freed memory."""
    check_precision(precision, torch.device(device or default_device()))  # before reading a model
    encoder = Encoder.from_pretrained(model, device=device, precision=precision)
    if encoder.device.type == "cpu":
        keep_freed_memory(KEPT_BYTES)
    return encoder


def split_fingerprint(fingerprint: str) -> tuple[str, Precision]:
    """The model's fingerprint and the precision of what Encoder.fingerprint() gave."""
    own, _, precision = fingerprint.partition(" ")
    return own, cast(Precision, precision or "fp32")


def check_precision(precision: str, device: torch.device) -> None:
    """UserError where a model on this device would not be faster in that precision."""
    if precision not in get_args(Precision):
        choices = ", ".join(get_args(Precision))
        raise UserError(f"precision is {precision!r}; it can be {choices}")
    if precision != "fp32" and device.type != "cpu":
        raise UserError(f"precision {precision} is for a CPU, not for {device}")
    check_instructions(precision)


def check_instructions(precision: str) -> None:
    """UserError where this processor would not be faster in that precision."""
    if missing := lacks_instructions(precision):
        slower = f"precision {precision} would be slower than fp32 on this processor"
        raise UserError(f"{slower}, which lacks {missing}: choose fp32")


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def encode_texts(
    encoder: SentenceEncoder,
    tokenizer: TextTokenizer,
    texts: Sequence[str],
    *,
    batch_size: int | None = None,
    normalize: bool | None = None,
    prompt_tokens: int = 0,
    progress: Callable[[int], Any] | None = None,
) -> FloatArray:
    """Vectors (N, H) float32 of N texts, in their order.

    batch_size, normalize: see Encoder.encode. prompt_tokens: so many leading tokens of each text
    are not pooled. progress: called after each batch with how many texts are done, repeats counted.
    Raises UserError (a ValueError) naming the index of a text that is no str or holds a lone
    surrogate, or whose vector is not finite, or zero where it is to have length 1."""
    check_texts(texts)  # before deduplication: the index in an error is the caller's
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
    as_made = encoder.normalize and encoder.kept == encoder.dimension
    unit = as_made if normalize is None else normalize
    check_vectors(vectors, lambda row: f"text {row}", unit=unit)
    return vectors


@torch.inference_mode()
def encode_tokens(
    encoder: SentenceEncoder,
    tokens: TokenizedTexts,
    *,
    batch_size: int | None = None,
    normalize: bool | None = None,
    prompt_tokens: int = 0,
    progress: Callable[[int, int], Any] | None = None,
) -> FloatArray:
    """Vectors (N, H) float32 of N tokenised texts, in their order; see encode_texts.

    progress: called after each batch with how many texts are done and how many tokens they have."""
    out = np.empty((len(tokens), encoder.kept), dtype=np.float32)
    device = encoder.bert.embeddings.word_embeddings.weight.device
    training = encoder.training
    if training:
        encoder.eval()
    batches = length_batches(tokens.lengths, BATCH_TOKENS.get(device.type, 1024), batch_size)[::-1]
    fitting = math.inf  # padded tokens that are thought to fit in memory
    texts_done = tokens_done = 0
    while batches:
        rows = batches.pop()
        lengths = tokens.lengths_of(rows)
        padded = len(rows) * int(lengths.max())
        if padded > fitting and len(rows) > 1:
            batches += np.array_split(rows, 2)[::-1]
            continue
        try:
            ids, mask = (part.to(device) for part in tokens.batch(rows))
            prompted = mask.new_full((len(mask),), prompt_tokens) if prompt_tokens else None
            vectors = encoder(ids, mask, normalize=normalize, prompt_tokens=prompted)
            if encoder.kept < encoder.dimension:
                vectors = vectors[:, : encoder.kept]
                vectors = l2_normalize(vectors) if normalize else vectors
            out[rows] = vectors.cpu().numpy()
        except RuntimeError as problem:
            if not out_of_memory(problem) or len(rows) == 1:
                raise
            if fitting == math.inf:
                message = f"{len(rows)} texts do not fit in memory: halving (see batch_size)"
                warnings.warn(message, stacklevel=3)
            fitting = padded / 2
            batches.append(rows)
            continue
        texts_done, tokens_done = texts_done + len(rows), tokens_done + int(lengths.sum())
        if progress:
            progress(texts_done, tokens_done)
    if training:
        encoder.train()
    return out


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
