"""Settings of an encoding run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from minilm_retriever.errors import UserError
from minilm_retriever.flags import at_least, flag
from minilm_retriever.pretrained.hub import BASE_FOLDER


@dataclass(frozen=True)
class EncodeConfig:
    """Encoding files of texts."""

    inputs: tuple[str, ...] = flag(
        (),
        "text, CSV, TSV, JSONL or Parquet files (also .gz), folders of them, or - for stdin",
        "input",
    )
    text: str | None = flag(None, "the column that holds the text", "input")
    id: str | None = flag(
        None, "the column that holds the id (default: the row's number, from 0)", "input"
    )
    template: str | None = flag(
        None, "a text of several columns, such as '{title} {body}'", "input"
    )
    format: Literal["csv", "tsv", "jsonl", "txt", "parquet"] | None = flag(
        None, "format of stdin (default txt), or of odd suffixes", "input"
    )
    skip_bad: str | None = flag(
        None, "set rows that cannot be used aside in this file, and go on", "input"
    )
    max_bad: int = flag(1000, "stop at more bad rows than this", "input")
    model: str = flag(BASE_FOLDER, "a model folder or a hub name", "model")
    prompt: str | None = flag(
        None,
        "words before each text (default: the model folder's own for documents, if any)",
        "model",
    )
    prompt_name: str | None = flag(
        None, "or the name of one of the model folder's prompts", "model"
    )
    batch_size: int | None = flag(
        None, "at most so many texts a batch (default: a budget of tokens decides)", "model"
    )
    device: str | None = flag(None, "cpu, cuda, ... (default: a GPU where there is one)", "model")
    threads: int | None = flag(
        None, "CPU threads (default: all; another number changes the last bits)", "model"
    )
    cache: str | None = flag(
        None,
        "a folder to keep vectors in, for texts that come again in other shards and runs",
        "model",
    )
    out: str = flag("", "a folder of shards (vectors, ids, texts), or FILE.npy", "output")
    engine: Literal["local", "ray"] = flag(
        "local",
        "where: in this process (or torchrun's), or on a Ray cluster (needs the extra)",
        "engine",
    )
    workers: int | None = flag(
        None, "actors on the Ray cluster (default: as many as it has room for)", "engine"
    )
    dtype: Literal["float32", "float16", "int8", "binary"] = flag(
        "float32", "what a vector's numbers are kept as", "output"
    )
    dimensions: int | None = flag(
        None, "keep so many leading dimensions, scaled to unit length again", "output"
    )
    calibrate: str | None = flag(
        None, "texts that set int8's ranges (default: the first shard)", "output"
    )
    shard_format: Literal["npy", "safetensors", "parquet"] = flag(
        "npy", "files of a shard", "output"
    )
    shard_size: int = flag(16384, "rows a shard", "output")
    texts: bool = flag(True, "keep the texts beside the ids, for search to show", "output")
    overwrite: bool = flag(
        False, "replace what is there, also an unfinished run of something else", "output"
    )
    dry_run: bool = flag(False, "print the plan and an estimate, and do nothing else", "output")

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size", "shard_size", "threads", "dimensions", "workers")
        at_least(self, 0, "max_bad")
        if not self.out:
            raise UserError("--out is missing: a folder, or FILE.npy")
        if not self.inputs:
            raise UserError("no input: name files, folders, or - for standard input")
        if self.out.endswith(".npy") and self.shard_format != "npy":
            raise UserError(
                f"--shard-format {self.shard_format} is for a folder, not for {self.out}"
            )
        if self.calibrate and self.dtype != "int8":
            raise UserError("--calibrate sets the ranges of --dtype int8")
        if self.workers and self.engine != "ray":
            raise UserError(
                "--workers is for --engine ray; torchrun --nproc-per-node N starts N processes"
            )
        if self.prompt is not None and self.prompt_name is not None:
            raise UserError("--prompt and --prompt-name exclude each other")
