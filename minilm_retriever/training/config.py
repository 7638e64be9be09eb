"""What a run is made of: frozen dataclasses, validated once. The command-line flags are built from
them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from minilm_retriever.errors import UserError
from minilm_retriever.flags import at_least, flag
from minilm_retriever.pretrained.hub import BASE_FOLDER


@dataclass(frozen=True)
class TrainConfig:
    """A fine-tuning run. The defaults are the published recipe's (`--recipe printed`)."""

    train: tuple[str, ...] = flag(
        (), "pairs to train on: CSV, TSV, JSONL or Parquet; several are taken in turn", "data"
    )
    columns: tuple[str, ...] = flag(
        (), "columns to read: query, document and maybe hard negatives", "data"
    )
    eval: str | None = flag(None, "held-out pairs (same columns), or a BEIR-style folder", "data")
    model: str = flag(BASE_FOLDER, "base model: a folder or a hub name", "data")
    out: str = flag("", "folder to publish the fine-tuned model in", "data")

    recipe: Literal["printed", "fit"] = flag(
        "printed",
        "printed: what the published card says; fit: what sentence-transformers' fit() runs",
        "recipe",
    )
    epochs: int = flag(3, "passes over the data", "recipe")
    max_steps: int | None = flag(None, "optimizer steps, in place of epochs", "recipe")
    batch_size: int = flag(
        16,
        "pairs in a batch, over all ranks: each query sees the others' documents as negatives",
        "recipe",
    )
    learning_rate: float = flag(
        5e-5, "peak learning rate, falling linearly to 0 (fit: 2e-5)", "recipe"
    )
    warmup_steps: int = flag(
        0, "steps over which the learning rate rises linearly (fit: 10000)", "recipe"
    )
    weight_decay: float = flag(
        0.0, "AdamW weight decay, biases and LayerNorm left out (fit: 0.01)", "recipe"
    )
    adam_beta1: float = flag(0.9, "AdamW beta 1", "recipe")
    adam_beta2: float = flag(0.999, "AdamW beta 2", "recipe")
    adam_epsilon: float = flag(1e-8, "AdamW epsilon", "recipe")
    max_grad_norm: float = flag(1.0, "gradients are scaled down to this norm", "recipe")
    scale: float = flag(20.0, "factor on the cosine similarities (inverse temperature)", "recipe")
    label_smoothing: float = flag(0.0, "label smoothing of the cross-entropy", "recipe")
    dropout: float | None = flag(
        None, "dropout in place of the model's own (hidden states and attention)", "recipe"
    )
    max_length: int | None = flag(None, "token limit in place of the model's own", "recipe")
    seed: int = flag(42, "seed of the data order and of dropout", "recipe")

    false_negatives: Literal["keep", "mask", "avoid"] = flag(
        "keep",
        "copies of a row's positive in its batch: keep, mask them in the loss, or avoid them",
        "negatives",
    )
    distinct: bool = flag(False, "train on the distinct rows of each file", "negatives")
    guide: str | None = flag(
        None,
        "mask what a frozen model (alone: the base) finds closer than the positive",
        "negatives",
        bare="base",
    )
    guide_margin: float = flag(
        0.0, "by how much (cosine) the guide has to find it closer", "negatives"
    )
    symmetric: bool = flag(
        False, "also tell each document's query apart from the others", "negatives"
    )
    matryoshka: tuple[int, ...] = flag(
        (), "mean loss over vectors cut to these lengths: 384 256 128 64", "negatives"
    )

    gradient_accumulation_steps: int = flag(
        1, "batches a step, losses averaged; it adds no negatives", "machine"
    )
    cache_batch: int | None = flag(
        None,
        "gradient caching: texts encoded at a time; memory for these, negatives from the whole batch",
        "machine",
    )
    gradient_checkpointing: bool = flag(
        False, "recompute activations: less memory, a third more work", "machine"
    )
    precision: Literal["fp32", "bf16", "fp16"] = flag(
        "fp32", "autocast of the forward pass", "machine"
    )
    device: str | None = flag(None, "cpu, cuda, ... (default: a GPU where there is one)", "machine")
    threads: int | None = flag(
        None, "CPU threads (default: all; another number changes the last bits)", "machine"
    )

    eval_steps: int | None = flag(
        None, "evaluate every so many steps (default: each epoch's end)", "evaluation"
    )
    metric: str = flag(
        "mrr@10", "the metric that decides which weights are published", "evaluation"
    )
    patience: int | None = flag(
        None, "stop after so many evaluations without a better metric", "evaluation"
    )

    log_steps: int | None = flag(
        None, "log the mean loss every so many steps (default 500, or a tenth)", "output"
    )
    save_steps: int | None = flag(None, "write a training state every so many steps", "output")
    save_minutes: float = flag(10.0, "and at least every so many minutes", "output")
    keep: int = flag(2, "training states to keep", "output")
    language: str | None = flag(None, "language of the data, for the model card", "output")
    license: str | None = flag(
        None, "licence for the model card (the base model's is apache-2.0)", "output"
    )
    intended_use: str | None = flag(None, "a sentence on intended use for the model card", "output")
    limits: str | None = flag(None, "a sentence on limits for the model card", "output")
    tensorboard: bool = flag(False, "also write TensorBoard events (needs the extra)", "output")
    overwrite: bool = flag(
        False, "replace a finished model, or start an unfinished run anew", "output"
    )
    dry_run: bool = flag(False, "print the plan and an estimate, and do nothing else", "output")

    def __post_init__(self) -> None:
        at_least(
            self,
            1,
            "epochs",
            "max_steps",
            "batch_size",
            "gradient_accumulation_steps",
            "threads",
            "eval_steps",
        )
        at_least(self, 1, "patience", "log_steps", "save_steps", "keep", "cache_batch")
        at_least(
            self,
            0,
            "learning_rate",
            "warmup_steps",
            "weight_decay",
            "label_smoothing",
            "dropout",
            "seed",
        )
        at_least(self, 0, "guide_margin")
        for name in ("scale", "max_grad_norm", "adam_epsilon", "save_minutes"):
            if not getattr(self, name) > 0:
                raise UserError(
                    f"--{name.replace('_', '-')} must be more than 0, not {getattr(self, name)}"
                )
        for name in ("adam_beta1", "adam_beta2", "label_smoothing", "dropout"):
            if (getattr(self, name) or 0) >= 1:
                raise UserError(
                    f"--{name.replace('_', '-')} must be less than 1, not {getattr(self, name)}"
                )
        if any(size < 1 for size in self.matryoshka) or len(set(self.matryoshka)) < len(
            self.matryoshka
        ):
            given = " ".join(map(str, self.matryoshka))
            raise UserError(f"--matryoshka needs different lengths of at least 1, not {given}")
        if self.guide_margin and not self.guide:
            raise UserError("--guide-margin needs --guide")
        if len(self.columns) == 1:
            raise UserError("--columns needs two names at least: query and document")
        if self.patience and not self.eval:
            raise UserError(
                "--patience needs --eval: early stopping watches a metric on held-out data"
            )
        if self.max_length is not None and self.max_length < 3:
            raise UserError(
                f"--max-length must be at least 3 ([CLS], a token, [SEP]), not {self.max_length}"
            )


# What sets a recipe apart from the defaults above.
RECIPES: dict[str, dict[str, Any]] = {
    "printed": {},
    "fit": {"learning_rate": 2e-5, "weight_decay": 0.01, "warmup_steps": 10_000},
}
