"""From the texts of a shard to what is kept of their vectors. What runs on one process or on
many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from minilm_retriever.data.distinct import deduplicate
from minilm_retriever.encoder import Encoder, check_finite, encode_tokens
from minilm_retriever.encoding.vector_cache import VectorCache
from minilm_retriever.errors import UserError
from minilm_retriever.pretrained.prompts import Prompt
from minilm_retriever.types import Array, FloatArray
from minilm_retriever.vectors.quantization import (
    Ranges,
    calibrate,
    count_clipped,
    quantize,
    truncate,
)
from minilm_retriever.vectors.shards import Shard


@dataclass(frozen=True)
class Counts:
    """What became of texts."""

    rows: int = 0
    distinct: int = 0  # texts that differ within their shard
    cached: int = 0  # of these, known from before
    tokens: int = 0  # real tokens multiplied
    clipped: int = 0  # values outside int8's ranges

    def __add__(self, other: Counts) -> Counts:
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Counts(*(a + b for a, b in pairs))

    @property
    def repeated(self) -> int:
        """Rows whose text stood in their shard before."""
        return self.rows - self.distinct


class ShardEncoder:
    """A model with everything that decides what is kept of a text."""

    def __init__(
        self,
        encoder: Encoder,
        prompt: Prompt,
        *,
        dtype: str = "float32",
        dimensions: int | None = None,
        batch_size: int | None = None,
        cache: Path | None = None,
    ) -> None:
        self.encoder, self.prompt = encoder, prompt
        self.dtype, self.dimensions, self.batch_size = dtype, dimensions, batch_size
        self.ranges: Ranges | None = None  # of int8: the first shard sets them, where nobody has
        self.fingerprint = encoder.model.fingerprint()
        self.cache = (
            VectorCache(cache, f"{self.fingerprint} {prompt}", encoder.dimension) if cache else None
        )

    def encode(
        self, shard: Shard, progress: Callable[[Counts], Any] | None = None
    ) -> tuple[Array, Counts]:
        """What is kept of the shard's vectors, (N, width) of the dtype, and the counts."""
        vectors, counts = self.floats(shard.texts, progress)
        check_finite(vectors, lambda row: f"row {shard.ids[row]!r}")
        if self.dtype == "int8" and self.ranges is None:
            if shard.number:
                raise UserError(
                    f"shard {shard.number} needs the int8 ranges that the first shard or --calibrate gave"
                )
            self.ranges = calibrate(vectors)
        if self.ranges is not None:
            counts = replace(counts, clipped=count_clipped(vectors, self.ranges))
        return quantize(vectors, self.dtype, self.ranges), counts

    def floats(
        self, texts: Sequence[str], progress: Callable[[Counts], Any] | None = None
    ) -> tuple[FloatArray, Counts]:
        """Vectors (N, dimensions) float32 of N texts, each distinct text computed once or taken
        from the cache."""
        distinct, inverse = deduplicate(texts)
        known, from_cache = (
            self.cache.get(distinct) if self.cache else (np.zeros(0, np.int64), None)
        )
        unknown = np.setdiff1d(np.arange(len(distinct)), known, assume_unique=True)
        missing = [distinct[row] for row in unknown]
        tokens = self.encoder.model.tokenizer.tokenize(self.prompt.before(missing))
        counts = Counts(len(texts), len(distinct), len(known), int(tokens.offsets[-1]))

        def done(texts_done: int, tokens_done: int) -> None:
            share = (len(known) + texts_done) / len(distinct)
            if progress:
                part = [int(share * n) for n in (counts.rows, counts.distinct, counts.cached)]
                progress(Counts(part[0], part[1], part[2], tokens_done))

        made = encode_tokens(
            self.encoder.model.encoder,
            tokens,
            batch_size=self.batch_size,
            prompt_tokens=self.prompt.tokens,
            progress=done,
        )
        if self.cache and missing:
            self.cache.put(missing, made)
        if from_cache is not None:
            vectors = np.empty((len(distinct), made.shape[1]), np.float32)
            vectors[known], vectors[unknown] = from_cache, made
            made = vectors
        made = truncate(made, self.dimensions, unit=self.encoder.model.settings.normalize)
        return made if len(distinct) == len(texts) else made[inverse], counts
