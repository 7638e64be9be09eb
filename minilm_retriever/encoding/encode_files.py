"""Bulk encoding: text files to shards of vectors, streamed and resumable.

    RowReader -> Shard -> ShardEncoder -> UnfinishedRun (OUT.run) -> OUT

Each rank of torchrun takes the next shard that no rank has taken; on a Ray cluster actors do
(ray_engine.py). Memory holds one shard. A shard's bytes depend on its rows, the model, the flags
and the thread count alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

from minilm_retriever import distributed
from minilm_retriever.data.readers import file_format
from minilm_retriever.data.texts import input_files
from minilm_retriever.distributed import Ranks
from minilm_retriever.encoding.config import EncodeConfig
from minilm_retriever.encoding.input_survey import STREAM
from minilm_retriever.encoding.job import EncodingJob
from minilm_retriever.encoding.resumable_output import UnfinishedRun
from minilm_retriever.encoding.shard_encoder import COUNTED, Counts
from minilm_retriever.errors import UserError
from minilm_retriever.progress import Progress, say
from minilm_retriever.storage import atomic_files
from minilm_retriever.vectors.quantization import Ranges
from minilm_retriever.vectors.shards import sidecar_paths

Engine = Callable[[EncodingJob, Ranks], int]  # makes missing shards; returns the number of all


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
                    ranges = encoder.ranges.as_json() if encoder.ranges else None
                    encoder.ranges = Ranges.from_json(ranks.broadcast_json(ranges))
                if shard.number == own:
                    job.encode_shard(shard, progress)
                    own = ranks.next_task()
                count += 1
        except KeyboardInterrupt:
            say(f"the finished shards stay in {job.run.folder}: the same command resumes")
            raise
    job.counts = Counts({name: int(ranks.all_reduce_sum(job.counts[name])) for name in COUNTED})
    return count


def encode_files(config: EncodeConfig, engine: Engine = encode_shards) -> str:
    """Encode all inputs to a folder of shards, or to one .npy; returns a line on what was made.

    Raises UserError for a mistake in the inputs (path:line), a finished output, or an unfinished
    run with other settings."""
    with distributed.join(config.device) as ranks:
        check_outputs_outside_inputs(config)
        paths = input_files(config.inputs, config.format)
        for path in paths:
            file_format(path, config.format)  # a missing input stops before any file is written
        run = UnfinishedRun(Path(config.out))
        if config.dry_run:
            return EncodingJob(config, paths, run).estimate() if ranks.is_first else ""
        with atomic_files.lock(run.folder) if ranks.is_first else nullcontext():
            return _encode(config, paths, run, ranks, engine)


def _encode(
    config: EncodeConfig, paths: Sequence[str], run: UnfinishedRun, ranks: Ranks, engine: Engine
) -> str:
    """All ranks make shards; the first one begins the run and publishes it."""
    if ranks.restarts and ranks.broadcast_json(
        run.out.exists() and not (config.overwrite or run.folder.exists())
    ):
        return f"{run.out} was finished before the restart" if ranks.is_first else ""
    if ranks.is_first:
        run.remove_leftovers(*sidecar_paths(run.out))
        run.check_not_finished(config.overwrite)  # before the model is loaded
        check_bad_rows_file(config, run)
    job = EncodingJob(config, paths, run)
    settings = job.run_settings()
    if ranks.world_size > 1:
        if STREAM in settings.values():
            raise UserError("standard input and pipes are for one process: give files")
        ranks.check_same({**vars(config), **settings})
    if ranks.is_first and run.begin_or_resume(settings, config.overwrite) and not run.complete:
        say(f"resuming {run.folder}")
    if not ranks.broadcast_json(run.complete):
        try:
            count = engine(job, ranks)
        except UserError:
            if job.reader.stopped:
                run.let_inputs_change(settings)
            raise
        if not count:
            bad = f"all {job.reader.bad_rows} rows are bad, see {config.skip_bad}"
            raise UserError(f"nothing to encode: {bad}")
        if ranks.is_first:
            run.check_end(count)
            run.finish(job.manifest_info(settings))
    ranks.finish()
    return job.summary(run.publish(config.overwrite)) if ranks.is_first else ""


def check_outputs_outside_inputs(config: EncodeConfig) -> None:
    """UserError where an output would be in an input folder: the next run would read it."""
    for flag, output in (("--out", config.out), ("--skip-bad", config.skip_bad)):
        for folder in filter(Path.is_dir, map(Path, config.inputs)):
            if output and Path(output).resolve().is_relative_to(folder.resolve()):
                raise UserError(
                    f"{flag} {output} lies inside the input {folder}: choose a place outside"
                )


def check_bad_rows_file(config: EncodeConfig, run: UnfinishedRun) -> None:
    """UserError where the file of --skip-bad exists, unless an unfinished run has written it."""
    if config.skip_bad:
        path = Path(config.skip_bad)
        atomic_files.clean_stale(path.parent, path.name)
        if path.exists() and not (run.folder.exists() or config.overwrite):
            raise UserError(
                f"{path}: exists; name another file for bad rows, or replace it with --overwrite"
            )
