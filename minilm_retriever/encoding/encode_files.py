"""Bulk encoding: text files to shards of vectors, streamed and resumable.

    RowReader -> Shard -> ShardEncoder -> UnfinishedRun (OUT.run) -> OUT

Each rank of torchrun takes the next shard that no rank has taken; on a Ray cluster actors do
(ray_engine.py). Memory holds one shard. A shard's bytes depend on its rows, the model, the flags
and the thread count alone."""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch

from minilm_retriever import distributed
from minilm_retriever.data.texts import input_files
from minilm_retriever.distributed import Ranks
from minilm_retriever.encoding.config import EncodeConfig
from minilm_retriever.encoding.inputs import STREAM, RowReader, survey
from minilm_retriever.encoding.resumable_output import UnfinishedRun
from minilm_retriever.encoding.shard_encoder import COUNTED, Counts, ShardEncoder
from minilm_retriever.errors import UserError
from minilm_retriever.flags import flag_values
from minilm_retriever.formats.readers import file_format
from minilm_retriever.kernels.graphs import peak_memory
from minilm_retriever.pretrained.hub import name_beside
from minilm_retriever.progress import Progress, duration, say
from minilm_retriever.storage import atomic_files, manifest
from minilm_retriever.vectors.quantization import calibrate, quantize
from minilm_retriever.vectors.shards import SHARD_CHARACTERS, Shard, row_lines, sidecar_paths

SAMPLE_ROWS = 1024  # that an estimate is made from
Engine = Callable[["EncodingJob", Ranks], int]  # makes missing shards; returns the number of all


def encode_files(config: EncodeConfig, engine: Engine | None = None) -> str:
    """Encode all inputs to a folder of shards, or to one .npy; returns a line on what was made.

    Raises UserError for a mistake in the inputs (path:line), a finished output, or an unfinished
    run with other settings."""
    # A Ray cluster's actors have the device: it need not be here.
    with distributed.join(None if config.engine == "ray" else config.device) as ranks:
        check_outputs_outside_inputs(config)
        paths = input_files(config.inputs, config.format)
        for path in paths:
            file_format(path, config.format)  # a missing input stops before any file is written
        run = UnfinishedRun(Path(config.out))
        if config.dry_run:
            return EncodingJob(config, paths, run).estimate() if ranks.is_first else ""
        with atomic_files.lock(run.folder) if ranks.is_first else nullcontext():
            return _encode(config, paths, run, ranks, engine or encode_shards)


def _encode(
    config: EncodeConfig, paths: Sequence[str], run: UnfinishedRun, ranks: Ranks, engine: Engine
) -> str:
    """All ranks make shards; the first one begins the run and publishes it."""
    is_finished = run.out.exists() and not (config.overwrite or run.folder.exists())
    if ranks.restarts and ranks.broadcast_json(is_finished):
        return f"{run.out} was finished before the restart" if ranks.is_first else ""
    if ranks.is_first:
        run.remove_leftovers(*sidecar_paths(run.out))
        run.check_not_finished(config.overwrite)  # before the model is loaded
        config.bad_rows().check(run.folder.exists() or config.overwrite, config.inputs)
    job = EncodingJob(config, paths, run)
    settings = job.run_settings()
    if ranks.world_size > 1:
        if STREAM in settings.values():
            raise UserError("standard input and pipes are for one process: give files")
        ranks.check_same({**vars(config), **settings})
    if ranks.is_first and run.begin_or_resume(settings, config.overwrite) and not run.complete:
        run.write_settings(settings)  # also of inputs that were allowed to change
        say(f"resuming {run.folder}")
    if not ranks.broadcast_json(run.complete):
        try:
            count = engine(job, ranks)
        except UserError:
            if job.reader.stopped:
                run.let_inputs_change(settings)
            raise
        if not count:
            bad = f"all {job.reader.bad_rows.count} rows are bad, see {config.skip_bad}"
            raise UserError(f"nothing to encode: {bad}")
        if ranks.is_first:
            run.check_end(count)
            run.finish(job.manifest_info(settings))
    ranks.finish()
    return job.summary(run.publish(config.overwrite)) if ranks.is_first else ""


def encode_shards(job: EncodingJob, ranks: Ranks) -> int:
    """The engine of one process, or of torchrun's: each takes the next shard that none has."""
    encoder, count, own = job.encoder, 0, ranks.next_task()
    with Progress("encoding", job.rows, "rows") as progress:
        encoder.set_ranges(job.run)
        try:
            for shard in job.reader.shards(write_bad_rows=ranks.is_first):
                if shard.number == 0 and ranks.world_size > 1 and encoder.needs_ranges:
                    if ranks.is_first:  # the others need the ranges that the first shard sets
                        job.encode_shard(shard, progress)
                    ranks.barrier()
                    encoder.ranges = job.run.read_ranges()
                if shard.number == own:
                    job.encode_shard(shard, progress)
                    own = ranks.next_task()
                count += 1
        except KeyboardInterrupt:
            say(f"the finished shards stay in {job.run.folder}: the same command resumes")
            raise
    job.counts = Counts({name: int(ranks.all_reduce_sum(job.counts[name])) for name in COUNTED})
    return count


class EncodingJob:
    """The inputs, the model, and the counts of what this process has encoded."""

    def __init__(self, config: EncodeConfig, paths: Sequence[str], run: UnfinishedRun) -> None:
        self.config, self.run = config, run
        self.sources = [survey(path, config.format) for path in paths]
        # A Ray cluster's actors have the device; here the model only gives its fingerprint.
        device = "cpu" if config.engine == "ray" else config.device
        self.encoder = ShardEncoder(config, device)
        self.reader = RowReader(config, paths)
        self.counts = Counts()
        self.start_time = time.monotonic()

    @property
    def rows(self) -> int | None:
        """About how many rows there are, None where that is not known."""
        counts = [source.rows for source in self.sources if source.rows is not None]
        return sum(counts) if len(counts) == len(self.sources) else None

    def run_settings(self) -> dict[str, Any]:
        """The settings that determine the output's bytes; a resumed run must have the same."""
        config, device = self.config, self.encoder.encoder.device.type
        if config.engine == "ray":
            device = (config.device or "cpu").split(":")[0]
        libraries = {"torch": torch, "numpy": np, "tokenizers": tokenizers}
        return {
            **flag_values(config, may_change=False),
            "model": self.encoder.fingerprint,
            "prompt": self.encoder.prompt.text,
            "calibrate": manifest.sha256_file(config.calibrate) if config.calibrate else None,
            "cache": bool(config.cache),
            "device": device,
            "threads": torch.get_num_threads(),
            "versions": ", ".join(f"{name} {lib.__version__}" for name, lib in libraries.items()),
            **{
                f"input {number} ({source.path})": source.identity()
                for number, source in enumerate(self.sources)
            },
        }

    def encode_shard(self, shard: Shard, progress: Progress) -> None:
        """Make a shard, unless it is finished."""
        end = shard.start + len(shard.ids)
        if self.run.has(shard):
            progress.skip(end)
            return

        def show(rows: int, tokens: int) -> None:
            progress.at(shard.start + rows, **self.figures(tokens))

        self.counts += self.encoder.encode_into(self.run, shard, show)
        progress.at(end, **self.figures())

    def figures(self, more_tokens: int = 0) -> dict[str, str]:
        """What progress shows beside the number of rows."""
        duplicates = self.counts["rows"] - self.counts["distinct"]
        rate = self.tokens_a_second(more_tokens)
        return {"tokens/s": f"{rate:,.0f}", "duplicates saved": f"{duplicates:,}"}

    def tokens_a_second(self, more_tokens: int = 0) -> float:
        return (self.counts["tokens"] + more_tokens) / (time.monotonic() - self.start_time)

    def manifest_info(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What the manifest says under "vectors"."""
        config, encoder = self.config, self.encoder
        model = encoder.encoder.model.settings
        shards = [record["shard"] for record in self.run.records()]
        return {
            "model": encoder.fingerprint,
            "model_name": name_beside(encoder.model, Path(config.out)),
            "precision": config.precision,
            "rows": sum(shard["rows"] for shard in shards),
            "dimension": encoder.dimension,
            "dtype": config.dtype,
            "ranges": encoder.ranges.as_json() if encoder.ranges else None,
            "unit": model.normalize,
            "similarity": model.similarity,
            "text_policy": {
                "prompt": encoder.prompt.text,
                "prompt_pooled": not encoder.prompt.tokens,
                # Whether white space at the ends makes no difference.
                "strip": encoder.encoder.model.tokenizer.is_wordpiece,
                "lower_case": model.lower_case,
                "max_length": model.max_length,
            },
            "texts": config.texts,
            "shard_format": config.shard_format,
            "shard_size": config.shard_size,
            "shard_characters": SHARD_CHARACTERS,
            "shards": [shard["rows"] for shard in shards],
            "distinct": sum(shard["distinct"] for shard in shards),
            "clipped": sum(shard["clipped"] for shard in shards),
            "bad_rows": self.reader.bad_rows.count,
            # Vectors from the cache, of other batches, are equal within 1e-6 and not to the bit.
            "cache": bool(config.cache),
            "asked": dict(settings),
        }

    def summary(self, info: Mapping[str, Any]) -> str:
        """The last line of a run."""
        counts, rows = self.counts, info["rows"]
        made = f"{rows:,} vectors of {info['dimension']} ({info['dtype']}) in {self.config.out}"
        parts = [made, f"{rows - info['distinct']:,} duplicates saved"]
        if counts["cached"]:
            parts.append(f"{counts['cached']:,} from the cache")
        if info["clipped"]:
            share = info["clipped"] / (rows * info["dimension"])
            parts.append(f"{share:.2%} of the values outside int8's ranges")
        if info["bad_rows"]:
            parts.append(f"{info['bad_rows']:,} bad rows in {self.config.skip_bad}")
        if counts["rows"] < rows:
            parts.append(f"{rows - counts['rows']:,} rows were encoded before")
        seconds, rate = time.monotonic() - self.start_time, self.tokens_a_second()
        parts.append(f"{counts['tokens']:,} tokens in {duration(seconds)}, {rate:,.0f} tokens/s")
        if peak := peak_memory(self.encoder.encoder.device):
            parts.append(peak)
        return "; ".join(parts)

    def estimate(self) -> str:
        """The plan, and how long it may take, from the first rows."""
        config, encoder = self.config, self.encoder
        on_bad = partial(self.reader.bad_rows.add, io.BytesIO())
        sample = [*itertools.islice(self.reader.rows(on_bad, say), SAMPLE_ROWS)]
        if not sample:
            raise UserError(f"nothing to encode: all {self.reader.bad_rows.count} rows are bad")
        ids, texts = [record.id for record in sample], [record.text for record in sample]
        encoder.float_vectors(texts[:8])  # the first call is slower
        start_time = time.monotonic()
        vectors, _ = encoder.float_vectors(texts[: SAMPLE_ROWS // 4])
        row_seconds = (time.monotonic() - start_time) / max(1, len(vectors))
        stored = quantize(vectors, config.dtype, calibrate(vectors))
        lines = row_lines(ids, texts if config.texts else None)
        row_bytes = stored.nbytes / len(stored) + len(lines) / len(sample)
        rows = self.rows or len(sample)
        number = "an unknown number of" if self.rows is None else f"about {rows:,}"
        return (
            f"{len(self.sources)} inputs, {number} rows; {config.model} -> {config.out}, "
            f"{stored.shape[1]} x {stored.dtype}; estimate: {duration(rows * row_seconds)} and "
            f"{rows * row_bytes / 1e6:,.1f} MB for {rows:,} rows; nothing was written"
        )


def check_outputs_outside_inputs(config: EncodeConfig) -> None:
    """UserError where an output would be in an input folder: the next run would read it."""
    for flag, output in (("--out", config.out), ("--skip-bad", config.skip_bad)):
        if output:
            inputs = [*config.inputs, config.model, config.calibrate, config.cache]
            atomic_files.check_not_input(output, inputs, flag)
        for folder in filter(Path.is_dir, map(Path, config.inputs)):
            if output and Path(output).resolve().is_relative_to(folder.resolve()):
                raise UserError(f"{flag} {output} lies inside the input {folder}: choose another")
