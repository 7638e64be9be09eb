"""Bulk encoding on a Ray cluster: one task reads, and actors of Ray Data each make the next shard.

    RowReader -> a row of the data set for each shard -> map_batches(ShardWorker) -> OUT.run -> OUT

Inputs, model and output are under the same paths on all machines. Ray restarts an actor that dies,
with its shard. The output is that of one process: shards depend on their own rows alone."""

from __future__ import annotations

import json
import logging
import os
import platform
import socket
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from minilm_retriever.data.texts import input_files
from minilm_retriever.distributed import Ranks
from minilm_retriever.encoding.config import EncodeConfig
from minilm_retriever.encoding.encode_files import EncodingJob, encode_files
from minilm_retriever.encoding.inputs import RowReader
from minilm_retriever.encoding.resumable_output import UnfinishedRun
from minilm_retriever.encoding.shard_encoder import Counts, ShardEncoder
from minilm_retriever.errors import UserError, first_line, require
from minilm_retriever.progress import Progress
from minilm_retriever.vectors.shards import Shard

CONNECT_SECONDS = 10


def encode_files_on_ray(config: EncodeConfig) -> str:
    """encode_files() on the cluster at RAY_ADDRESS, or one that is started on this machine."""
    if "-" in config.inputs:
        raise UserError("standard input cannot be read by a Ray cluster: give files")
    return encode_files(config, partial(encode_shards_on_ray, connect()))


def connect() -> Any:
    """The package ray, connected; UserError where it is missing or the cluster does not answer."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a local cluster would send statistics
    ray = require("ray.data", "ray", "--engine ray")
    if ray.is_initialized():
        return ray
    address = os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if port.isdigit():  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        ray.init(logging_level="ERROR", log_to_driver=False)
    except (OSError, RuntimeError, ValueError) as fault:
        mistake = f"RAY_ADDRESS={address}: no Ray cluster answers there ({first_line(fault)})"
        raise UserError(f"{mistake}; without it one is started here") from None
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="ray")  # more actors than shards are no mistake
    return ray


def encode_shards_on_ray(ray: Any, job: EncodingJob, ranks: Ranks) -> int:
    """The engine: make the missing shards, and return the number of all."""
    if ranks.world_size > 1:
        raise UserError("--engine ray is started once, not by torchrun")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # a block for each shard, handed on at once
    encoder = job.encoder
    encoder.set_ranges(job.run)
    if encoder.ranges and not job.run.read_ranges():
        job.run.write_ranges(encoder.ranges)
    if encoder.needs_ranges:  # the first shard sets them, and the others need them
        run_pass(ray, job, only_first=True)
        encoder.ranges = job.run.read_ranges()
    return run_pass(ray, job, only_first=False)


def run_pass(ray: Any, job: EncodingJob, *, only_first: bool) -> int:
    """Let the cluster make what is missing of all shards, or of the first; returns how many."""
    count, rows, error = 0, 0, ""
    with Progress("encoding", job.rows, "rows") as progress:
        for row in results(ray, job, only_first).iter_rows():
            result = json.loads(row["json"])
            if "failed" in result:
                raise UserError(result["failed"])
            if "end" in result:  # raised below: the shards before it are made
                error, job.reader.stopped, job.reader.bad_rows.count = result["end"]
                continue
            count, rows = count + 1, rows + result["rows"]
            job.counts += Counts(result["counts"])
            progress.at(rows, **job.figures())
    if error:
        raise UserError(error)
    return count


def results(ray: Any, job: EncodingJob, only_first: bool) -> Any:
    """The data set of what became of each shard, which makes them as it is read."""
    config = replace(job.config, threads=torch.get_num_threads())
    folder, on_gpu = str(Path.cwd()), str(config.device).startswith("cuda")
    workers = 1 if only_first else fitting_workers(ray, config, on_gpu)
    return (
        ray.data.from_items([0])
        # It waits for the disk and the actors: a CPU of its own would be one of theirs.
        .map_batches(read_shards, fn_args=(config, folder, only_first), num_cpus=0)
        .map_batches(
            ShardWorker,
            fn_constructor_args=(config, folder, job.encoder.fingerprint),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=0 if on_gpu else config.threads,
            num_gpus=1 if on_gpu else 0,
            compute=ray.data.ActorPoolStrategy(size=workers),
        )
    )


def fitting_workers(ray: Any, config: EncodeConfig, on_gpu: bool) -> int:
    """--workers, but at most as many as the cluster has room for."""
    kind, need = ("GPU", 1) if on_gpu else ("CPU", config.threads or 1)
    fit = sum(int(node["Resources"].get(kind, 0)) // need for node in ray.nodes() if node["Alive"])
    if not fit:
        missing = f"no machine of the Ray cluster has {need} {kind}s for an actor"
        raise UserError(f"{missing}: see --threads and --device")
    return min(config.workers or fit, fit)


def read_shards(
    batch: object, config: EncodeConfig, folder: str, only_first: bool
) -> Iterator[Any]:
    """In a task: a row for each shard, and a last one with the error that stopped the reading."""
    os.chdir(folder)  # paths in flags and messages are relative to the driver's folder
    reader = RowReader(config, input_files(config.inputs, config.format))
    error = ""
    try:
        for shard in reader.shards(write_bad_rows=not only_first):
            yield as_table(asdict(shard))
            if only_first:
                return
    except UserError as fault:
        error = str(fault)
    yield as_table({"end": [error, reader.stopped, reader.bad_rows.count]})


def as_table(content: object) -> Any:
    return require("pyarrow", "ray", "--engine ray").table(
        {"json": [json.dumps(content, allow_nan=False)]}
    )


class ShardWorker:
    """In an actor: the model, and OUT.run, where it writes each shard's files and record."""

    def __init__(self, config: EncodeConfig, folder: str, fingerprint: str) -> None:
        self.config, self.fingerprint = config, fingerprint
        with suppress(OSError):  # then OUT.run is not there either
            os.chdir(folder)
        self.run = UnfinishedRun(Path(config.out))

    def __call__(self, table: Any) -> Any:
        content = json.loads(table["json"][0].as_py())
        if "end" not in content:
            try:
                content = self.encode(Shard(**content))
            except UserError as fault:
                content = {"failed": f"{platform.node()}: {fault}"}
        return as_table(content)

    def encode(self, shard: Shard) -> dict[str, Any]:
        """Make a shard, unless it is finished; what the driver needs to know."""
        done = self.run.has(shard)
        counts = Counts() if done else self.encoder.encode_into(self.run, shard)
        return {"rows": len(shard.ids), "counts": counts}

    @cached_property
    def encoder(self) -> ShardEncoder:
        if not self.run.state.exists():
            missing = f"{self.run.folder} is not there"
            raise UserError(f"{missing}: all of a cluster needs one file system")
        encoder = ShardEncoder(self.config, self.config.device or "cpu")
        if encoder.fingerprint != self.fingerprint:
            raise UserError(f"{self.config.model} is another model")
        encoder.ranges = self.run.read_ranges()
        return encoder
