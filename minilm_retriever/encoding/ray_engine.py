"""encode.py on a Ray cluster: one task reads, actors of Ray Data each make the next shard, and the
folder is the same.

    rows -> shards (a row of the data set each) -> map_batches(ShardWorker) -> OUT.run -> OUT

Inputs, model and output lie where all of the cluster sees them under the same path. An actor that
dies is started again by Ray, with the shard that it had. Nothing here decides a byte: shards depend
on their own rows alone."""

from __future__ import annotations

import json
import logging
import os
import platform
import socket
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import torch

from minilm_retriever.data.texts import input_files
from minilm_retriever.distributed import Ranks
from minilm_retriever.encoding.config import EncodeConfig
from minilm_retriever.encoding.encode_files import (
    Job,
    RowReader,
    encode_files,
    keep_shard,
    open_worker,
)
from minilm_retriever.encoding.resumable_output import UnfinishedRun
from minilm_retriever.encoding.shard_encoder import Counts
from minilm_retriever.errors import UserError, require
from minilm_retriever.progress import Progress
from minilm_retriever.vectors.shards import Shard

SECONDS = 10  # for a cluster to answer


def encode_files_on_ray(config: EncodeConfig) -> str:
    """As encode_files, with the shards made by a cluster: the one at RAY_ADDRESS, or one on this
    machine."""
    if "-" in config.inputs:
        raise UserError("standard input cannot be read by a Ray cluster: give files")
    ray = connect()
    return encode_files(config, lambda *job: make_on(ray, *job))


def connect() -> Any:
    """Ray, connected; UserError in one line where the extra is missing or the cluster does not
    answer."""
    os.environ.setdefault(
        "RAY_USAGE_STATS_ENABLED", "0"
    )  # a local cluster would tell its makers of us
    ray = require("ray.data", "ray", "--engine ray")
    if ray.is_initialized():
        return ray
    address = os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if port.isdigit():  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), SECONDS).close()
        ray.init(logging_level="ERROR", log_to_driver=False)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module="ray")  # more actors than shards are no mistake
    except (OSError, RuntimeError, ValueError) as fault:
        said = str(fault).splitlines()[0]
        raise UserError(
            f"RAY_ADDRESS={address}: no Ray cluster answers there ({said}); without it one is started here"
        ) from None
    return ray


def make_on(ray: Any, job: Job, run: UnfinishedRun, ranks: Ranks) -> int:
    """All shards that are not there yet; returns how many there are. One driver: torchrun is for
    the other engine."""
    if ranks.world_size > 1:
        raise UserError("--engine ray is started once, not by torchrun")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = (
        1  # a block for each shard, so that each goes to an actor as soon as it is read
    )
    job.worker.ranges = run.ranges or job.calibrated()
    if job.config.dtype == "int8" and not run.ranges:
        if job.worker.ranges:
            run.ranges = job.worker.ranges
        else:  # the first shard sets them, and the others need them
            go_through(ray, job, run, only_first=True)
            job.worker.ranges = run.ranges
    return go_through(ray, job, run, only_first=False)


def go_through(ray: Any, job: Job, run: UnfinishedRun, *, only_first: bool) -> int:
    """One pass of the cluster over the shards, or over the first one."""
    made, done, problem = 0, 0, ""
    with Progress("encoding", job.rows, "rows") as progress:
        for row in shards_on(ray, job, only_first).iter_rows():
            said = json.loads(row["said"])
            if "failed" in said:
                raise UserError(said["failed"])
            if "read" in said:  # raised below: what was read before is made
                problem, job.reader.stopped, job.reader.bad = said["read"]
                continue
            made, done = made + 1, done + said["rows"]
            job.counts += Counts(*said["counts"])
            progress.at(done, **job.figures(job.counts))
    if problem:
        raise UserError(problem)
    return made


def shards_on(ray: Any, job: Job, only_first: bool) -> Any:
    """The data set of what became of each shard, made as it is read."""
    config, threads = job.config, torch.get_num_threads()
    gpu = str(config.device).startswith("cuda")
    workers = 1 if only_first else room(ray, config.workers, threads, gpu)
    start = {"folder": str(Path.cwd()), "only_first": only_first}
    return (
        ray.data.from_items([start])
        # It waits for the disk and the actors: a CPU of its own would be one of theirs.
        .map_batches(read_shards, fn_args=(config,), batch_size=1, num_cpus=0)
        .map_batches(
            ShardWorker,
            fn_constructor_args=(
                replace(config, threads=threads),
                start["folder"],
                job.worker.fingerprint,
            ),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=0 if gpu else threads,
            num_gpus=1 if gpu else 0,
            compute=ray.data.ActorPoolStrategy(size=workers),
        )
    )


def room(ray: Any, asked: int | None, threads: int, gpu: bool) -> int:
    """How many actors: as many as were asked for, at most as many as the cluster has room for."""
    kind, need = ("GPU", 1) if gpu else ("CPU", threads)
    fit = sum(int(node["Resources"].get(kind, 0)) // need for node in ray.nodes() if node["Alive"])
    if not fit:
        raise UserError(
            f"no machine of the Ray cluster has {need} {kind}s for an actor: see --threads and --device"
        )
    return min(asked or fit, fit)


def read_shards(batch: dict[str, Any], config: EncodeConfig) -> Iterator[Any]:
    """In a task: a table of one row for each shard; the last one says what stopped the reading, and
    the bad rows."""
    arrow = require("pyarrow.parquet", "parquet", "Parquet")

    def row(
        said: dict[str, Any], number: int, start: int = 0, ids: Any = (), texts: Any = ()
    ) -> Any:
        strings = arrow.list_(arrow.string())
        columns = {"said": [json.dumps(said)], "number": [number], "start": [start]}
        lists = {
            "ids": arrow.array([list(ids)], strings),
            "texts": arrow.array([list(texts)], strings),
        }
        return arrow.table({**columns, **lists})

    only_first = bool(batch["only_first"][0])
    os.chdir(
        str(batch["folder"][0])
    )  # names in flags, and in what people are told, are the driver's
    reader = RowReader(config, input_files(config.inputs, config.format))
    problem = ""
    try:
        for shard in reader.shards(keep_aside=not only_first):
            yield row({}, shard.number, shard.start, shard.ids, shard.texts)
            if only_first:
                return
    except UserError as fault:
        problem = str(fault)
    yield row({"read": [problem, reader.stopped, reader.bad]}, -1)


class ShardWorker:
    """In an actor: the model, and for each shard its files and its record in OUT.run."""

    def __init__(self, config: EncodeConfig, folder: str, fingerprint: str) -> None:
        self.config, self.problem = config, ""
        try:
            with suppress(OSError):  # then what follows says what is not there
                os.chdir(folder)
            self.run = UnfinishedRun(Path(config.out))
            if not self.run.state.exists():
                self.problem = f"{self.run.folder} is not seen from {platform.node()}: all of a cluster needs one file system"
                return
            self.worker = open_worker(config, config.device or "cpu")
            self.worker.ranges = self.run.ranges
            if self.worker.fingerprint != fingerprint:
                self.problem = f"{config.model} is another model on {platform.node()}"
        except UserError as fault:
            self.problem = f"{platform.node()}: {fault}"

    def __call__(self, table: Any) -> Any:
        """A shard's rows (a table of one row) -> what became of it."""
        (given,) = table.to_pylist()
        said = json.loads(given["said"]) or self.make(
            Shard(given["number"], given["start"], given["ids"], given["texts"])
        )
        return require("pyarrow.parquet", "parquet", "Parquet").table({"said": [json.dumps(said)]})

    def make(self, shard: Shard) -> dict[str, Any]:
        """One shard, unless it is there; what the driver has to know."""
        if self.problem:
            return {"failed": self.problem}
        try:
            there = self.run.finished(shard)
            counts = Counts() if there else keep_shard(self.worker, self.run, self.config, shard)
        except UserError as fault:
            return {"failed": str(fault)}
        return {"rows": len(shard.ids), "counts": astuple(counts)}
