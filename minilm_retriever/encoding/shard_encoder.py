"""From the texts of a shard to the vectors that are stored: in one process, or in each of many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minilm_retriever.data.distinct import deduplicate
from minilm_retriever.data.texts import read_texts
from minilm_retriever.encoder.command import open_for_command
from minilm_retriever.encoder.encode_texts import encode_distinct
from minilm_retriever.encoding.config import EncodeConfig
from minilm_retriever.encoding.resumable_output import UnfinishedRun
from minilm_retriever.encoding.vector_cache import VectorCache
from minilm_retriever.errors import UserError
from minilm_retriever.kernels.memory import give_back_memory
from minilm_retriever.pretrained.config import with_revision
from minilm_retriever.pretrained.prompts import DOCUMENT, find_prompt
from minilm_retriever.types import FloatArray
from minilm_retriever.vectors import quantization
from minilm_retriever.vectors.checks import check_vectors
from minilm_retriever.vectors.quantization import Ranges, calibrate
from minilm_retriever.vectors.shards import Shard, make_shards

# rows; distinct: texts that differ within their shard; cached: of these, those from the cache;
# tokens: real ones, encoded; clipped: values outside int8's ranges
COUNTED = ("rows", "distinct", "cached", "tokens", "clipped")
Counts = Counter[str]
OnProgress = Callable[[int, int], object]  # called with the numbers of rows and tokens done


class ShardEncoder:
    """A model, and the settings that decide what is stored of a text."""

    def __init__(self, config: EncodeConfig, device: str | None) -> None:
        if config.threads:
            torch.set_num_threads(config.threads)
        self.config = config
        self.model = with_revision(config.model, config.revision)
        self.encoder = open_for_command(self.model, device, config.precision)
        own = self.encoder.dimension
        self.dimension = config.dimensions or own
        if self.dimension > own:
            raise UserError(f"--dimensions must be at most the model's {own}, not {self.dimension}")
        quantization.stored_width(self.dimension, config.dtype)  # UserError where it does not fit
        self.prompt = find_prompt(self.encoder.model, config.prompt, config.prompt_name, DOCUMENT)
        self.fingerprint = self.encoder.fingerprint()
        self.ranges: Ranges | None = None  # of int8; where none are set the first shard sets them
        self.cache: VectorCache | None = None
        if config.cache and not config.dry_run:
            key = f"{self.fingerprint} {self.prompt}"
            self.cache = VectorCache(Path(config.cache), key, own)

    @property
    def needs_ranges(self) -> bool:
        return self.config.dtype == "int8" and self.ranges is None

    def set_ranges(self, run: UnfinishedRun) -> None:
        """int8's ranges: the run's, else those of --calibrate's texts, a shard of them at most."""
        config = self.config
        self.ranges = run.read_ranges()
        if self.ranges is not None and len(self.ranges.low) != self.dimension:
            raise UserError(f"{run.folder}: its int8 ranges are not of {self.dimension} values")
        if config.calibrate and self.needs_ranges:
            columns: dict[str, Any] = {"text": config.text, "template": config.template}
            records = read_texts([config.calibrate], **columns, **config.reading())
            sample = next(make_shards(records, config.shard_size))
            self.ranges = calibrate(self.float_vectors(sample.texts)[0])

    def encode_into(
        self, run: UnfinishedRun, shard: Shard, progress: OnProgress | None = None
    ) -> Counts:
        """Encode a shard and write its files."""
        config = self.config
        vectors, counts = self.float_vectors(shard.texts, progress)
        unit = self.encoder.model.settings.normalize
        check_vectors(vectors, lambda row: f"row {shard.ids[row]!r}", unit=unit)
        if self.needs_ranges:
            if shard.number:
                ranges = "the int8 ranges of the first shard or --calibrate"
                raise UserError(f"shard {shard.number} needs {ranges}")
            self.ranges = calibrate(vectors)
        if self.ranges is not None:
            counts["clipped"] = quantization.count_clipped(vectors, self.ranges)
            if run.read_ranges() is None:
                run.write_ranges(self.ranges)  # before the first shard that depends on them
        stored = quantization.quantize(vectors, config.dtype, self.ranges)
        run.add(shard, stored, counts, config.shard_format, config.texts)
        give_back_memory()
        return counts

    def float_vectors(
        self, texts: Sequence[str], progress: OnProgress | None = None
    ) -> tuple[FloatArray, Counts]:
        """Vectors (N, dimensions) float32 of N texts, each distinct text computed once or taken
        from the cache."""
        distinct, inverse = deduplicate(texts)
        cached = self.cache.get(distinct) if self.cache else {}
        missing = [row for row in range(len(distinct)) if row not in cached]
        new_texts = [distinct[row] for row in missing]
        model, config = self.encoder.model, self.config

        def show(texts_done: int, tokens_done: int) -> None:
            if progress:
                progress((len(cached) + texts_done) * len(texts) // len(distinct), tokens_done)

        vectors, tokens = encode_distinct(
            model.encoder,
            model.tokenizer,
            self.prompt.before(new_texts),
            batch_size=config.batch_size,
            normalize=model.settings.normalize,  # after truncate_dim too
            prompt_tokens=self.prompt.tokens,
            progress=show,
        )
        if self.cache and new_texts:
            self.cache.put(new_texts, vectors)
        if cached:
            new, vectors = vectors, np.empty((len(distinct), vectors.shape[1]), np.float32)
            vectors[missing], vectors[list(cached)] = new, list(cached.values())
        vectors = quantization.truncate(vectors, config.dimensions, unit=model.settings.normalize)
        counts = Counts(rows=len(texts), distinct=len(distinct), cached=len(cached))
        counts["tokens"] = tokens
        return vectors if len(distinct) == len(texts) else vectors[inverse], counts
