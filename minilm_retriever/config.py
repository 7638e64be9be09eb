"""What a run is made of: frozen dataclasses, validated once. The command-line flags are built from them."""

from __future__ import annotations

import argparse
import types
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from minilm_retriever.errors import UserError

BASE_FOLDER = "checkpoints/all-MiniLM-L6-v2"
Config = TypeVar("Config")


def flag(default: Any, help_text: str, group: str, *, bare: Any = None) -> Any:
    """A field that is also a flag: its help, the heading that it stands under, and what it means without a value."""
    return field(default=default, metadata={"help": help_text, "group": group, "bare": bare})


@dataclass(frozen=True)
class TrainConfig:
    """A fine-tuning run. The defaults are the published recipe's (`--recipe printed`)."""

    train: tuple[str, ...] = flag(
        (), "pairs to train on: CSV, TSV, JSONL or Parquet; several are taken in turn", "data"
    )
    columns: tuple[str, ...] = flag((), "columns to read: query, document and maybe hard negatives", "data")
    eval: str | None = flag(None, "held-out pairs (same columns), or a BEIR-style folder", "data")
    model: str = flag(BASE_FOLDER, "base model: a folder or a hub name", "data")
    out: str = flag("", "folder to publish the fine-tuned model in", "data")

    recipe: Literal["printed", "fit"] = flag(
        "printed", "printed: what the published card says; fit: what sentence-transformers' fit() runs", "recipe"
    )
    epochs: int = flag(3, "passes over the data", "recipe")
    max_steps: int | None = flag(None, "optimizer steps, in place of epochs", "recipe")
    batch_size: int = flag(
        16, "pairs in a batch, over all ranks: each query sees the others' documents as negatives", "recipe"
    )
    learning_rate: float = flag(5e-5, "peak learning rate, falling linearly to 0 (fit: 2e-5)", "recipe")
    warmup_steps: int = flag(0, "steps over which the learning rate rises linearly (fit: 10000)", "recipe")
    weight_decay: float = flag(0.0, "AdamW weight decay, biases and LayerNorm left out (fit: 0.01)", "recipe")
    adam_beta1: float = flag(0.9, "AdamW beta 1", "recipe")
    adam_beta2: float = flag(0.999, "AdamW beta 2", "recipe")
    adam_epsilon: float = flag(1e-8, "AdamW epsilon", "recipe")
    max_grad_norm: float = flag(1.0, "gradients are scaled down to this norm", "recipe")
    scale: float = flag(20.0, "factor on the cosine similarities (inverse temperature)", "recipe")
    label_smoothing: float = flag(0.0, "label smoothing of the cross-entropy", "recipe")
    dropout: float | None = flag(None, "dropout in place of the model's own (hidden states and attention)", "recipe")
    max_length: int | None = flag(None, "token limit in place of the model's own", "recipe")
    seed: int = flag(42, "seed of the data order and of dropout", "recipe")

    false_negatives: Literal["keep", "mask", "avoid"] = flag(
        "keep", "copies of a row's positive in its batch: keep, mask them in the loss, or avoid them", "negatives"
    )
    distinct: bool = flag(False, "train on the distinct rows of each file", "negatives")
    guide: str | None = flag(
        None, "mask what a frozen model (alone: the base) finds closer than the positive", "negatives", bare="base"
    )
    guide_margin: float = flag(0.0, "by how much (cosine) the guide has to find it closer", "negatives")
    symmetric: bool = flag(False, "also tell each document's query apart from the others", "negatives")
    matryoshka: tuple[int, ...] = flag((), "mean loss over vectors cut to these lengths: 384 256 128 64", "negatives")

    gradient_accumulation_steps: int = flag(1, "batches a step, losses averaged; it adds no negatives", "machine")
    cache_batch: int | None = flag(
        None, "gradient caching: texts encoded at a time; memory for these, negatives from the whole batch", "machine"
    )
    gradient_checkpointing: bool = flag(False, "recompute activations: less memory, a third more work", "machine")
    precision: Literal["fp32", "bf16", "fp16"] = flag("fp32", "autocast of the forward pass", "machine")
    device: str | None = flag(None, "cpu, cuda, ... (default: a GPU where there is one)", "machine")
    threads: int | None = flag(None, "CPU threads (default: all; another number changes the last bits)", "machine")

    eval_steps: int | None = flag(None, "evaluate every so many steps (default: each epoch's end)", "evaluation")
    metric: str = flag("mrr@10", "the metric that decides which weights are published", "evaluation")
    patience: int | None = flag(None, "stop after so many evaluations without a better metric", "evaluation")

    log_steps: int | None = flag(None, "log the mean loss every so many steps (default 500, or a tenth)", "output")
    save_steps: int | None = flag(None, "write a training state every so many steps", "output")
    save_minutes: float = flag(10.0, "and at least every so many minutes", "output")
    keep: int = flag(2, "training states to keep", "output")
    language: str = flag("en", "language named in the model card", "output")
    license: str = flag("apache-2.0", "licence named in the model card (the base model's is apache-2.0)", "output")
    intended_use: str | None = flag(None, "a sentence on intended use for the model card", "output")
    limits: str | None = flag(None, "a sentence on limits for the model card", "output")
    tensorboard: bool = flag(False, "also write TensorBoard events (needs the extra)", "output")
    overwrite: bool = flag(False, "replace a finished model, or start an unfinished run anew", "output")
    dry_run: bool = flag(False, "print the plan and an estimate, and do nothing else", "output")

    def __post_init__(self) -> None:
        at_least(self, 1, "epochs", "max_steps", "batch_size", "gradient_accumulation_steps", "threads", "eval_steps")
        at_least(self, 1, "patience", "log_steps", "save_steps", "keep", "cache_batch")
        at_least(self, 0, "learning_rate", "warmup_steps", "weight_decay", "label_smoothing", "dropout", "seed")
        at_least(self, 0, "guide_margin")
        for name in ("scale", "max_grad_norm", "adam_epsilon", "save_minutes"):
            if not getattr(self, name) > 0:
                raise UserError(f"--{name.replace('_', '-')} must be more than 0, not {getattr(self, name)}")
        for name in ("adam_beta1", "adam_beta2", "label_smoothing", "dropout"):
            if (getattr(self, name) or 0) >= 1:
                raise UserError(f"--{name.replace('_', '-')} must be less than 1, not {getattr(self, name)}")
        if any(size < 1 for size in self.matryoshka) or len(set(self.matryoshka)) < len(self.matryoshka):
            given = " ".join(map(str, self.matryoshka))
            raise UserError(f"--matryoshka needs different lengths of at least 1, not {given}")
        if self.guide_margin and not self.guide:
            raise UserError("--guide-margin needs --guide")
        if len(self.columns) == 1:
            raise UserError("--columns needs two names at least: query and document")
        if self.patience and not self.eval:
            raise UserError("--patience needs --eval: early stopping watches a metric on held-out data")
        if self.max_length is not None and self.max_length < 3:
            raise UserError(f"--max-length must be at least 3 ([CLS], a token, [SEP]), not {self.max_length}")


@dataclass(frozen=True)
class EncodeConfig:
    """Encoding files of texts."""

    inputs: tuple[str, ...] = flag(
        (), "text, CSV, TSV, JSONL or Parquet files (also .gz), folders of them, or - for stdin", "input"
    )
    text: str | None = flag(None, "the column that holds the text", "input")
    id: str | None = flag(None, "the column that holds the id (default: the row's number, from 0)", "input")
    template: str | None = flag(None, "a text of several columns, such as '{title} {body}'", "input")
    format: Literal["csv", "tsv", "jsonl", "txt", "parquet"] | None = flag(
        None, "format of stdin (default txt), or of odd suffixes", "input"
    )
    skip_bad: str | None = flag(None, "set rows that cannot be used aside in this file, and go on", "input")
    max_bad: int = flag(1000, "stop at more bad rows than this", "input")
    model: str = flag(BASE_FOLDER, "a model folder or a hub name", "model")
    prompt: str | None = flag(
        None, "words before each text (default: the model folder's own for documents, if any)", "model"
    )
    prompt_name: str | None = flag(None, "or the name of one of the model folder's prompts", "model")
    batch_size: int | None = flag(None, "at most so many texts a batch (default: a budget of tokens decides)", "model")
    device: str | None = flag(None, "cpu, cuda, ... (default: a GPU where there is one)", "model")
    threads: int | None = flag(None, "CPU threads (default: all; another number changes the last bits)", "model")
    cache: str | None = flag(
        None, "a folder to keep vectors in, for texts that come again in other shards and runs", "model"
    )
    out: str = flag("", "a folder of shards (vectors, ids, texts), or FILE.npy", "output")
    engine: Literal["local", "ray"] = flag(
        "local", "where: in this process (or torchrun's), or on a Ray cluster (needs the extra)", "engine"
    )
    workers: int | None = flag(None, "actors on the Ray cluster (default: as many as it has room for)", "engine")
    dtype: Literal["float32", "float16", "int8", "binary"] = flag(
        "float32", "what a vector's numbers are kept as", "output"
    )
    dimensions: int | None = flag(None, "keep so many leading dimensions, scaled to unit length again", "output")
    calibrate: str | None = flag(None, "texts that set int8's ranges (default: the first shard)", "output")
    shard_format: Literal["npy", "safetensors", "parquet"] = flag("npy", "files of a shard", "output")
    shard_size: int = flag(16384, "rows a shard", "output")
    texts: bool = flag(True, "keep the texts beside the ids, for search to show", "output")
    overwrite: bool = flag(False, "replace what is there, also an unfinished run of something else", "output")
    dry_run: bool = flag(False, "print the plan and an estimate, and do nothing else", "output")

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size", "shard_size", "threads", "dimensions", "workers")
        at_least(self, 0, "max_bad")
        if not self.out:
            raise UserError("--out is missing: a folder, or FILE.npy")
        if not self.inputs:
            raise UserError("no input: name files, folders, or - for standard input")
        if self.out.endswith(".npy") and self.shard_format != "npy":
            raise UserError(f"--shard-format {self.shard_format} is for a folder, not for {self.out}")
        if self.calibrate and self.dtype != "int8":
            raise UserError("--calibrate sets the ranges of --dtype int8")
        if self.workers and self.engine != "ray":
            raise UserError("--workers is for --engine ray; torchrun --nproc-per-node N starts N processes")
        if self.prompt is not None and self.prompt_name is not None:
            raise UserError("--prompt and --prompt-name exclude each other")


@dataclass(frozen=True)
class MineConfig:
    """Adding hard negatives to pairs."""

    pairs: str = flag("", "pairs: CSV, TSV, JSONL or Parquet", "data")
    columns: tuple[str, ...] = flag((), "the columns of query and document", "data")
    corpus: str | None = flag(None, "more documents to choose from: a file of texts", "data")
    out: str = flag("", "where to write the pairs with their negatives: .csv, .tsv or .jsonl", "data")
    overwrite: bool = flag(False, "replace what is there", "data")
    model: str = flag(BASE_FOLDER, "the model that ranks: best the one that is trained next", "mining")
    negatives: int = flag(1, "hard negatives a row", "mining")
    ranks: tuple[int, ...] = flag((1, 50), "first and last rank to choose from, known answers left out", "mining")
    margin: float = flag(0.05, "how much lower (cosine) than the row's own document a negative has to be", "mining")
    seed: int = flag(42, "seed of the random documents where the ranks hold too few", "mining")
    device: str | None = flag(None, "cpu, cuda, ... (default: a GPU where there is one)", "mining")

    def __post_init__(self) -> None:
        at_least(self, 1, "negatives")
        at_least(self, 0, "margin", "seed")
        if not self.out:
            raise UserError("--out is missing: the file to write")
        if len(self.columns) not in (0, 2):
            raise UserError(f"--columns needs two names, query and document, not {' '.join(self.columns)}")
        if len(self.ranks) != 2 or not 1 <= self.ranks[0] <= self.ranks[1]:
            given = " ".join(map(str, self.ranks))
            raise UserError(f"--ranks needs a first and a last rank, counted from 1, not {given}")
        if self.ranks[1] - self.ranks[0] + 1 < self.negatives:
            raise UserError(f"--ranks {self.ranks[0]} {self.ranks[1]} has no room for --negatives {self.negatives}")


# What sets a recipe apart from the defaults above.
RECIPES: dict[str, dict[str, Any]] = {
    "printed": {},
    "fit": {"learning_rate": 2e-5, "weight_decay": 0.01, "warmup_steps": 10_000},
}


def at_least(config: object, lowest: float, *names: str) -> None:
    """UserError for the first of the named fields that is below `lowest` or not finite (None is not checked)."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not lowest <= value < float("inf"):
            raise UserError(f"--{name.replace('_', '-')} must be at least {lowest}, not {value}")


def add_flags(parser: argparse.ArgumentParser, config: type, positional: Sequence[str] = ()) -> None:
    """A flag for each field that has help text, under the field's heading; a flag not given is left out."""
    hints = get_type_hints(config)
    groups: dict[str, Any] = {}
    for item in fields(config):
        if "help" not in item.metadata:
            continue
        title = item.metadata["group"]
        group = groups.setdefault(title, None) or parser.add_argument_group(title)
        groups[title] = group
        name = item.name if item.name in positional else "--" + item.name.replace("_", "-")
        shown = item.default not in (None, "", (), False)
        text = item.metadata["help"] + (
            f" (default {item.default})" if shown and "default" not in item.metadata["help"] else ""
        )
        bare = {"nargs": "?", "const": item.metadata["bare"]} if item.metadata["bare"] is not None else {}
        settings = {**argument(hints[item.name]), **bare}
        group.add_argument(name, default=argparse.SUPPRESS, help=text.replace("%", "%%"), **settings)


def argument(hint: Any) -> dict[str, Any]:
    """argparse's settings for a field's type."""
    if get_origin(hint) in (Union, types.UnionType):  # X | None
        hint = next(kind for kind in get_args(hint) if kind is not type(None))
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(hint) is Literal:
        return {"choices": get_args(hint)}
    if get_origin(hint) is tuple:
        return {"nargs": "+", **argument(get_args(hint)[0])}
    return {"type": hint, "metavar": {int: "N", float: "X"}.get(hint, "NAME")}


def from_args(config: type[Config], args: argparse.Namespace, **defaults: Any) -> Config:
    """A config of the flags that were given over `defaults` over the dataclass's own."""
    names = set(get_type_hints(config))
    given = {name: tuple(v) if isinstance(v, list) else v for name, v in vars(args).items() if name in names}
    return config(**{**defaults, **given})
