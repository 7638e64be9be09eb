"""encode.py's job: files of texts in, a folder of shards out. Any size, killed anywhere, gone on
with.

    read -> shards of rows -> ShardEncoder -> UnfinishedRun (OUT.run) -> OUT

Under torchrun each rank takes the next shard that nobody has taken; on Ray actors do
(ray_engine.py). Memory holds one shard. What is kept of a shard depends on its rows, the model, the
flags and the thread count alone."""

from __future__ import annotations

import io
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tokenizers
import torch

from minilm_retriever import distributed
from minilm_retriever.data.readers import file_format
from minilm_retriever.data.rows import BadRow
from minilm_retriever.data.texts import Record, input_files, read_texts
from minilm_retriever.distributed import Ranks
from minilm_retriever.encoder import open_for_command
from minilm_retriever.encoding.config import EncodeConfig
from minilm_retriever.encoding.input_survey import Source, survey
from minilm_retriever.encoding.resumable_output import UnfinishedRun
from minilm_retriever.encoding.shard_encoder import Counts, ShardEncoder
from minilm_retriever.errors import UserError
from minilm_retriever.flags import flag_values
from minilm_retriever.kernels.memory import give_back_memory
from minilm_retriever.pretrained.prompts import DOCUMENT, find_prompt
from minilm_retriever.progress import Progress, duration, say
from minilm_retriever.storage import atomic_files, manifest
from minilm_retriever.vectors.quantization import Ranges, calibrate, quantize, stored_width
from minilm_retriever.vectors.shards import (
    SHARD_CHARACTERS,
    Shard,
    make_shards,
    row_lines,
    sidecar_paths,
)

Maker = Callable[
    ["Job", UnfinishedRun, Ranks], int
]  # makes all shards and returns how many there are
SAMPLE = 1024  # rows that an estimate is made from


def encode_files(config: EncodeConfig, maker: Maker | None = None) -> str:
    """Encode all inputs to a folder of shards, or to one .npy; returns a line that says what was
    made.

    maker: what makes the shards and returns their number, in place of this process or of torchrun's
    ranks. Raises UserError for a mistake in the inputs (path:line), a finished output, or an
    unfinished one made otherwise."""
    with distributed.join(config.device) as ranks:
        refuse_inside(config)
        paths = input_files(config.inputs, config.format)
        for path in paths:
            file_format(path, config.format)  # a missing input stops before any file is written
        if config.dry_run:
            return Job.plan(config, paths).estimate() if ranks.is_first else ""
        run = UnfinishedRun(Path(config.out))
        with atomic_files.lock(run.folder) if ranks.is_first else nullcontext():
            return encode_on(ranks, config, paths, run, maker or make_here)


def encode_on(
    ranks: Ranks,
    config: EncodeConfig,
    paths: Sequence[str],
    run: UnfinishedRun,
    maker: Maker,
) -> str:
    """The job, alone or as one of several ranks: all make shards, the first one begins and
    publishes."""
    if ranks.restarts and ranks.broadcast_json(
        run.out.exists() and not (config.overwrite or run.folder.exists())
    ):
        return f"{run.out} was finished before the restart" if ranks.is_first else ""
    if ranks.is_first:
        run.remove_leftovers(*sidecar_paths(run.out))
        run.check_not_finished(config.overwrite)  # before a model is opened
        refuse_bad_rows_file(config, run)
    job = Job.plan(config, paths)
    asked = job.asked()
    if ranks.world_size > 1:
        if "a stream" in asked.values():
            raise UserError("standard input and pipes are for one process: give files")
        ranks.check_same({**vars(config), **asked})
    if ranks.is_first and run.begin_or_resume(asked, config.overwrite) and not run.complete:
        say(f"going on with {run.folder}")
    if not ranks.broadcast_json(run.complete):
        job.make(run, asked, ranks, maker)
    ranks.finish()
    return job.told(run.publish(config.overwrite)) if ranks.is_first else ""


@dataclass
class RowReader:
    """The rows of all inputs, and how many of them cannot be used."""

    config: EncodeConfig
    paths: Sequence[str]
    bad: int = 0
    stopped: bool = False  # by a bad row

    def shards(self, *, keep_aside: bool) -> Iterator[Shard]:
        """The rows as shards. What cannot be used goes to the file for it; where there is none, or
        there are too many, the first is raised, once what was set aside so far is kept."""
        place = self.config.skip_bad if keep_aside else None
        with (
            atomic_files.writing(place)
            if place
            else nullcontext(io.BytesIO() if self.config.skip_bad else None) as aside
        ):
            try:
                yield from make_shards(self.rows(aside), self.config.shard_size)
                return
            except UserError as fault:
                self.stopped, problem = True, fault
        raise problem

    def rows(self, aside: BinaryIO | None = None) -> Iterator[Record]:
        """The rows of all inputs; bad ones go to `aside`."""

        def set_aside(row: BadRow) -> None:
            self.bad += 1
            if self.bad > self.config.max_bad:
                more = f"and that is one more bad row than --max-bad {self.config.max_bad} allows"
                raise UserError(
                    f"{row.where}: {row.reason}; {more} (the others are in {self.config.skip_bad})"
                )
            assert aside is not None
            aside.write((json.dumps(vars(row)) + "\n").encode())

        config = self.config
        return read_texts(
            self.paths,
            text=config.text,
            id=config.id,
            template=config.template,
            format=config.format,
            on_bad=set_aside if aside else None,
        )


@dataclass
class Job:
    """What is to be encoded, with what, and how far it is."""

    config: EncodeConfig
    sources: list[Source]
    worker: ShardEncoder
    counts: Counts = field(default_factory=Counts)  # of this sitting
    reader: RowReader = field(init=False)
    began: float = field(default_factory=time.monotonic)

    @classmethod
    def plan(cls, config: EncodeConfig, paths: Sequence[str]) -> Job:
        """Look at the inputs and open the model."""
        # On a cluster the actors have the device; the model is opened here for its fingerprint
        # alone.
        device = "cpu" if config.engine == "ray" else config.device
        return cls(config, survey(paths, config.format), open_worker(config, device))

    def __post_init__(self) -> None:
        self.reader = RowReader(self.config, [source.path for source in self.sources])

    @property
    def rows(self) -> int | None:
        """About how many rows there are, where that can be told."""
        counts = [source.rows for source in self.sources]
        return None if None in counts else sum(n or 0 for n in counts)

    def asked(self) -> dict[str, Any]:
        """All that decides the output's bytes: an unfinished run only goes on with the same."""
        flags = flag_values(self.config, may_change=False)
        calibrated = manifest.sha256_file(self.config.calibrate) if self.config.calibrate else None
        return {
            **flags,
            "model": self.worker.fingerprint,
            "prompt": self.worker.prompt.text,
            "calibrate": calibrated,
            "cache": bool(self.config.cache),
            "device": (self.config.device or "cpu").split(":")[0]
            if self.config.engine == "ray"
            else self.worker.encoder.device.type,
            "threads": torch.get_num_threads(),
            "versions": f"torch {torch.__version__}, numpy {np.__version__}, tokenizers {tokenizers.__version__}",
            **{
                f"input {number} ({source.path})": source.identity()
                for number, source in enumerate(self.sources)
            },
        }

    # --- the work ---------------------------------------------------------------------------------

    def make(self, run: UnfinishedRun, asked: dict[str, Any], ranks: Ranks, maker: Maker) -> None:
        """All shards that are not there yet, and then the manifest."""
        try:
            made = maker(self, run, ranks)
        except UserError:
            if self.reader.stopped:
                run.let_inputs_change(asked)
            raise
        if not made:
            raise UserError(
                f"nothing to encode: all {self.reader.bad} rows are bad, see {self.config.skip_bad}"
            )
        if ranks.is_first:
            run.refuse_more_shards(made)
            run.complete_with(self.info([record["shard"] for record in run.records()], asked))

    def make_shard(self, run: UnfinishedRun, shard: Shard, progress: Progress) -> None:
        """One shard, unless it is there."""
        end = shard.start + len(shard.ids)
        if run.finished(shard) is not None:
            progress.skip(end)
            return
        before = self.counts

        def show(now: Counts) -> None:
            progress.at(shard.start + now.rows, **self.figures(before + now))

        self.counts = before + keep_shard(self.worker, run, self.config, shard, show)
        progress.at(end, **self.figures(self.counts))

    def figures(self, counts: Counts) -> dict[str, str]:
        """What is shown beside the number of rows."""
        rate = counts.tokens / (time.monotonic() - self.began)
        return {"tokens/s": f"{rate:,.0f}", "duplicates saved": f"{counts.repeated:,}"}

    def calibrated(self) -> Ranges | None:
        """The ranges of --calibrate's texts, a shard of them at most."""
        config = self.config
        if not config.calibrate:
            return None
        records = read_texts(
            [config.calibrate], text=config.text, template=config.template, format=config.format
        )
        return calibrate(self.worker.floats(next(make_shards(records, config.shard_size)).texts)[0])

    # --- what is told -----------------------------------------------------------------------------

    def info(self, shards: Sequence[Mapping[str, int]], asked: Mapping[str, Any]) -> dict[str, Any]:
        """What the manifest says under "vectors"."""
        encoder, ranges = self.worker.encoder, self.worker.ranges
        settings = encoder.model.settings
        return {
            "model": self.worker.fingerprint,
            "rows": sum(shard["rows"] for shard in shards),
            "dimension": self.config.dimensions or encoder.dimension,
            "dtype": self.config.dtype,
            "ranges": ranges.as_json() if ranges else None,
            "unit": settings.normalize,
            "similarity": settings.similarity,
            "text_policy": {
                "prompt": self.worker.prompt.text,
                "prompt_pooled": not self.worker.prompt.tokens,
                "strip": True,
                "lower_case": settings.lower_case,
                "max_length": settings.max_length,
            },
            "texts": self.config.texts,
            "shard_format": self.config.shard_format,
            "shard_size": self.config.shard_size,
            "shard_characters": SHARD_CHARACTERS,
            "shards": [shard["rows"] for shard in shards],
            "distinct": sum(shard["distinct"] for shard in shards),
            "clipped": sum(shard["clipped"] for shard in shards),
            "bad_rows": self.reader.bad,
            # Texts that were known from other batches: equal within 1e-6 and not to the bit.
            "cache": bool(self.config.cache),
            "asked": dict(asked),
        }

    def told(self, info: Mapping[str, Any]) -> str:
        """The last line."""
        counts, seconds = self.counts, time.monotonic() - self.began
        parts = [
            f"{info['rows']:,} vectors of {info['dimension']} ({info['dtype']}) in {self.config.out}"
        ]
        parts.append(f"{info['rows'] - info['distinct']:,} duplicates saved")
        if counts.cached:
            parts.append(f"{counts.cached:,} from the cache")
        if info["clipped"]:
            share = info["clipped"] / (info["rows"] * info["dimension"])
            parts.append(f"{share:.2%} of the values outside int8's ranges")
        if info["bad_rows"]:
            parts.append(f"{info['bad_rows']:,} bad rows in {self.config.skip_bad}")
        if counts.rows < info["rows"]:
            parts.append(f"{info['rows'] - counts.rows:,} rows stood there already")
        rate = counts.tokens / seconds
        return "; ".join(
            [*parts, f"{counts.tokens:,} tokens in {duration(seconds)}, {rate:,.0f} tokens/s"]
        )

    def estimate(self) -> str:
        """The plan, and how long it may take, from the first rows."""
        sample = [*itertools.islice(self.reader.rows(io.BytesIO()), SAMPLE)]
        texts = [record.text for record in sample]
        self.worker.floats(texts[:8])  # the first call is slower
        began = time.monotonic()
        vectors, counts = self.worker.floats(texts[: SAMPLE // 4])
        seconds = (time.monotonic() - began) / max(1, len(vectors))
        kept = quantize(vectors, self.config.dtype, calibrate(vectors))
        wide = kept.nbytes / len(kept) + len(
            row_lines([r.id for r in sample], texts if self.config.texts else None)
        ) / len(sample)
        rows = f"about {self.rows:,} rows" if self.rows is not None else "rows of an unknown number"
        what = f"{self.config.out}, {kept.shape[1]} x {kept.dtype}"
        lines = [f"{len(self.sources)} inputs, {rows}; {self.config.model} -> {what}"]
        if self.rows is not None:
            lines.append(
                f"estimate: {duration(self.rows * seconds)}, {self.rows * wide / 1e6:,.1f} MB"
            )
        lines.append(
            f"from the first {len(texts)} rows: {counts.tokens / counts.rows:.1f} tokens and {wide:,.0f} bytes a row"
        )
        return "; ".join([*lines, "nothing was written"])


def make_here(job: Job, run: UnfinishedRun, ranks: Ranks) -> int:
    """All shards that are not there yet, by this process, or by torchrun's: each takes the next
    that nobody has taken.

    Returns how many there are."""
    made, mine = 0, ranks.next_task()
    with Progress("encoding", job.rows, "rows") as progress:
        job.worker.ranges = run.ranges or job.calibrated()
        try:
            for shard in job.reader.shards(keep_aside=ranks.is_first):
                if (
                    shard.number == 0
                    and ranks.world_size > 1
                    and job.config.dtype == "int8"
                    and not job.worker.ranges
                ):
                    if ranks.is_first:  # the others need what the first shard is calibrated to
                        job.make_shard(run, shard, progress)
                    ranges = job.worker.ranges
                    job.worker.ranges = Ranges.from_json(
                        ranks.broadcast_json(ranges and ranges.as_json())
                    )
                if shard.number == mine:
                    job.make_shard(run, shard, progress)
                    mine = ranks.next_task()
                made += 1
        except KeyboardInterrupt:
            say(f"the finished shards stay in {run.folder}: the same command goes on from there")
            raise
    job.counts = Counts(*(int(ranks.all_reduce_sum(count)) for count in astuple(job.counts)))
    return made


def keep_shard(
    worker: ShardEncoder,
    run: UnfinishedRun,
    config: EncodeConfig,
    shard: Shard,
    progress: Callable[[Counts], Any] | None = None,
) -> Counts:
    """Encode a shard and write its files."""
    kept, counts = worker.encode(shard, progress)
    if worker.ranges is not None and run.ranges is None:
        run.ranges = worker.ranges  # on disk before the first shard that depends on them
    said = {"rows": counts.rows, "distinct": counts.distinct, "clipped": counts.clipped}
    run.add(shard, kept, said, format=config.shard_format, texts=config.texts)
    give_back_memory()
    return counts


def open_worker(config: EncodeConfig, device: str | None) -> ShardEncoder:
    """The model, and what becomes of its vectors."""
    if config.threads:
        torch.set_num_threads(config.threads)
    encoder = open_for_command(config.model, device)
    stored_width(config.dimensions or encoder.dimension, config.dtype)
    if (config.dimensions or 0) > encoder.dimension:
        raise UserError(
            f"--dimensions must be at most the model's {encoder.dimension}, not {config.dimensions}"
        )
    return ShardEncoder(
        encoder,
        find_prompt(encoder.model, config.prompt, config.prompt_name, DOCUMENT),
        dtype=config.dtype,
        dimensions=config.dimensions,
        batch_size=config.batch_size,
        cache=Path(config.cache) if config.cache and not config.dry_run else None,
    )


def refuse_inside(config: EncodeConfig) -> None:
    """UserError where an output would lie in a folder that is read: the next run would take it for
    input."""
    for flag, place in (("--out", config.out), ("--skip-bad", config.skip_bad)):
        for name in config.inputs:
            if (
                place
                and Path(name).is_dir()
                and Path(place).resolve().is_relative_to(Path(name).resolve())
            ):
                raise UserError(
                    f"{flag} {place} lies inside the input {name}: choose a place outside"
                )


def refuse_bad_rows_file(config: EncodeConfig, run: UnfinishedRun) -> None:
    """UserError where the file for bad rows stands already, and not from an unfinished run of this
    output."""
    if config.skip_bad:
        place = Path(config.skip_bad)
        atomic_files.clean_stale(place.parent, place.name)
        if place.exists() and not (run.folder.exists() or config.overwrite):
            raise UserError(
                f"{place}: exists; name another file for bad rows, or replace it with --overwrite"
            )
