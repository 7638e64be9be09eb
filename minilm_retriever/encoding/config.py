"""Flags of `encode`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from minilm_retriever.data.config import ReadingFlags
from minilm_retriever.errors import UserError
from minilm_retriever.flags import check_bounds, flag
from minilm_retriever.pretrained import config as shared


@dataclass(frozen=True)
class EncodeConfig(ReadingFlags):
    """Encode files of texts."""

    inputs: tuple[str, ...] = flag(
        (),
        "text, CSV, TSV, JSONL or Parquet files (also .gz), folders of them, or - for stdin",
        "input",
        name="INPUT",
        may_change=True,
    )
    text: str | None = flag(None, "the column that holds the text")
    id: str | None = flag(None, "the column that holds the id (default: the row's number, from 0)")
    template: str | None = flag(None, "a text of several columns, such as '{title} {body}'")

    model: str = flag(shared.BASE_FOLDER, shared.MODEL_HELP, "model", may_change=True)
    revision: str | None = flag(None, shared.REVISION_HELP)
    prompt: str | None = flag(
        None, "prefix of each text (default: the model's for documents)", also="--document-prompt"
    )
    prompt_name: str | None = flag(None, "or the name of one of the model's", may_change=True)
    batch_size: int | None = flag(None, "texts a batch, at most (default: by tokens)", at_least=1)
    precision: shared.Precision = flag("fp32", shared.PRECISION_HELP)
    device: str | None = flag(None, shared.DEVICE_HELP, may_change=True)
    threads: int | None = flag(None, shared.THREADS_HELP, at_least=1, below=1025, may_change=True)
    cache: str | None = flag(None, "a folder to keep vectors in, for texts that come again")

    out: str = flag("", "a folder of shards, or FILE.npy", "output", may_change=True)
    dtype: Literal["float32", "float16", "int8", "binary"] = flag("float32", "type of the vectors")
    dimensions: int | None = flag(
        None, "keep so many leading dimensions, scaled to unit length again", at_least=1
    )
    calibrate: str | None = flag(None, "texts that set int8's ranges (default: the first shard)")
    shard_format: Literal["npy", "safetensors", "parquet"] = flag("npy", "files of a shard")
    shard_size: int = flag(16384, "rows a shard", at_least=1)
    texts: bool = flag(True, "store the texts beside the ids, for search to show")
    overwrite: bool = flag(False, "replace what is there, finished or not", may_change=True)
    dry_run: bool = flag(False, shared.DRY_RUN_HELP, may_change=True)

    engine: Literal["local", "ray"] = flag(
        "local", "in this process, or on a Ray cluster (extra)", "engine", may_change=True
    )
    workers: int | None = flag(
        None, "actors on Ray (default: as many as it has room for)", at_least=1, may_change=True
    )

    def __post_init__(self) -> None:
        check_bounds(self)
        if not self.out:
            raise UserError("--out is missing: a folder, or FILE.npy")
        if not self.inputs:
            raise UserError("no input: name files, folders, or - for standard input")
        form = self.shard_format
        if self.out.endswith(".npy") and form != "npy":
            raise UserError(f"--shard-format {form} is for a folder, not for {self.out}")
        if self.calibrate and self.dtype != "int8":
            raise UserError("--calibrate sets the ranges of --dtype int8")
        if self.workers and self.engine != "ray":
            raise UserError("--workers is for --engine ray; torchrun has --nproc-per-node")
        if self.prompt is not None and self.prompt_name is not None:
            raise UserError("--prompt and --prompt-name exclude each other")
