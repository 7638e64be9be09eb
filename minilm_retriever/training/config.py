"""Flags of `train`, with the recipes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal

from minilm_retriever.data.config import PairFlags
from minilm_retriever.errors import UserError
from minilm_retriever.flags import check_bounds, flag
from minilm_retriever.formats.names import check_pair_columns
from minilm_retriever.keywords import check_settings
from minilm_retriever.pretrained import config as shared
from minilm_retriever.progress import say

unlisted = partial(flag, may_change=True, on_card=False)  # no part of what a card describes


@dataclass(frozen=True, init=False)
class TrainConfig(PairFlags):
    """Fine-tune a model on pairs. The defaults are those of the published recipe."""

    train: tuple[str, ...] = flag(
        (), "pairs: CSV, TSV, JSONL or Parquet; several are taken in turn", "data", may_change=True
    )
    columns: tuple[str, ...] = flag((), "columns to read: query, document, maybe hard negatives")
    max_negatives: int | None = flag(
        None, "hard negatives a row, at most (default: all columns, 7 of a list)", at_least=0
    )
    sample_negatives: int | None = flag(
        None, "draw so many of each row's hard negatives, anew in each epoch", at_least=1
    )
    eval: str | None = flag(None, "held-out pairs, or a BEIR-style folder", may_change=True)
    model: str = flag(shared.BASE_FOLDER, "base model: a folder or a hub name", may_change=True)
    revision: str | None = flag(None, shared.REVISION_HELP)
    query_prompt: str | None = flag(None, shared.QUERY_PROMPT_HELP)
    document_prompt: str | None = flag(None, shared.DOCUMENT_PROMPT_HELP)
    out: str = unlisted("", "folder to publish the model in")

    recipe: Literal["printed", "fit", "robust"] = flag(
        "printed",
        "printed: what the published card says; fit: what sentence-transformers' fit() runs; "
        "robust: few passes over distinct pairs, then a mix with the base model that keeps what it "
        "could do",
        "recipe",
    )
    loss: Literal["infonce", "cosent", "cosine"] = flag(
        "infonce",
        "infonce: against the batch's other documents; of pairs with scores, cosent: by the order "
        "of the scores, cosine: by their values",
    )
    score_range: tuple[float, ...] = flag(
        (0.0, 1.0), "for --loss cosine: the scores that mean a cosine of 0, and of 1", nargs=2
    )
    epochs: int = flag(3, "passes over the data", at_least=1)
    max_steps: int | None = flag(None, "optimizer steps, in place of epochs", at_least=1)
    batch_size: int = flag(
        16, "pairs a batch, over all ranks; the others' documents are negatives", at_least=1
    )
    learning_rate: float = flag(5e-5, "peak value, falling linearly to 0 (fit: 2e-5)", at_least=0)
    warmup_steps: int = flag(0, "steps of linear warm-up to the peak (fit: 10000)", at_least=0)
    weight_decay: float = flag(0.0, "of AdamW, not on biases and LayerNorm (fit: 0.01)", at_least=0)
    adam_beta1: float = flag(0.9, "AdamW beta 1", at_least=0, below=1)
    adam_beta2: float = flag(0.999, "AdamW beta 2", at_least=0, below=1)
    adam_epsilon: float = flag(1e-8, "AdamW epsilon", above=0)
    max_grad_norm: float = flag(1.0, "gradients are scaled down to this norm", above=0)
    scale: float = flag(20.0, "factor on the cosine similarities (inverse temperature)", above=0)
    label_smoothing: float = flag(0.0, "of the cross-entropy", at_least=0, below=1)
    dropout: float | None = flag(
        None, "dropout in place of the model's (hidden states and attention)", at_least=0, below=1
    )
    max_length: int | None = flag(
        None, "token limit in place of the model's, [CLS] and [SEP] included", at_least=3
    )
    seed: int = flag(42, "seed of the data order and of dropout", at_least=0)

    false_negatives: Literal["keep", "mask", "avoid"] = flag(
        "keep",
        "copies of a row's positive in its batch: keep, mask them in the loss, or avoid them",
        "negatives",
    )
    distinct: bool = flag(False, "train on the distinct rows of each file")
    guide: str | None = flag(
        None,
        "mask what a frozen model (alone: the base) finds closer than the positive: GISTEmbed "
        "without its query-query and document-document candidates",
        nargs="?",
        const="base",
    )
    guide_margin: float = flag(
        0.0, "by how much (cosine) the guide must find it closer", at_least=0
    )
    guide_all: bool = flag(False, "with --guide: these candidates, too, which is all of GISTEmbed")
    symmetric: bool = flag(False, "also tell each document's query apart from the others")
    stay_near: float = flag(
        0.0, "weight of 1 - cosine of each vector with the base model's, added", at_least=0
    )
    matryoshka: tuple[int, ...] = flag((), "mean loss over vectors cut to these lengths")

    gradient_accumulation_steps: int = flag(
        1, "batches a step, losses averaged; it adds no negatives", "machine", at_least=1
    )
    cache_batch: int | None = flag(
        None, "gradient caching: texts encoded at a time, whatever the batch size", at_least=1
    )
    gradient_checkpointing: bool = flag(False, "recompute activations: less memory, a third slower")
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = flag(
        "fp32",
        "of products: tf32 on a GPU; bf16 (autocast) there or on a CPU that is faster at it",
    )
    device: str | None = flag(None, shared.DEVICE_HELP)
    threads: int | None = flag(None, shared.THREADS_HELP, at_least=1, below=1025, may_change=True)

    eval_steps: int | None = flag(
        None, "evaluate every so many steps (default: each epoch's end)", "evaluation", at_least=1
    )
    metric: str | None = flag(
        None,
        "the metric that decides which weights are published (default mrr@10; spearman for pairs "
        "with scores)",
    )
    general: str | None = flag(
        None,
        "what general ability is measured on, beside --eval: pairs with scores, sentences, or a "
        "BEIR-style folder (default: agreement with the base model over 200 sentences)",
        may_change=True,
    )
    patience: int | None = flag(None, "evaluations without a better metric, then stop", at_least=1)
    tolerance: float = flag(
        0.0,
        "standard errors by which the metric may be below its best: of such weights the latest are "
        "published (robust: 1)",
        at_least=0,
    )

    mix: str | None = flag(
        None,
        "publish base + SHARE x (fine-tuned - base); auto: the share with the best --metric among "
        "those that keep enough general ability",
        metavar="SHARE|auto",
    )

    log_steps: int | None = flag(
        None, "steps between logged mean losses (default 500, or a tenth)", "output", at_least=1
    )
    save_steps: int | None = flag(
        None, "write a training state every so many steps", at_least=1, may_change=True
    )
    save_minutes: float = flag(10.0, "and at least every so many minutes", above=0, may_change=True)
    save_dtype: shared.SaveDtype = flag("float32", shared.SAVE_DTYPE_HELP)
    keep: int = flag(2, "training states to keep", at_least=1, may_change=True)
    language: str | None = unlisted(None, "language of the texts, for the model card")
    license: str | None = unlisted(None, "licence of the model, for the model card")
    intended_use: str | None = unlisted(None, "a sentence on intended use for the model card")
    limits: str | None = unlisted(None, "a sentence on limits for the model card")
    tensorboard: bool = flag(False, "also write TensorBoard events (extra)", may_change=True)
    overwrite: bool = unlisted(False, "replace what is there, finished or not")
    dry_run: bool = unlisted(False, shared.DRY_RUN_HELP)

    def __init__(self, **settings: Any) -> None:
        """Settings that are not given are those of the recipe, then the defaults."""
        chosen = with_recipe(check_settings(TrainConfig, settings))
        for item in fields(self):
            object.__setattr__(self, item.name, chosen.get(item.name, item.default))
        self.__post_init__()

    def __post_init__(self) -> None:
        check_bounds(self)
        sizes = self.matryoshka
        if any(size < 1 for size in sizes) or len(set(sizes)) < len(sizes):
            shown = " ".join(map(str, sizes))
            raise UserError(f"--matryoshka needs different lengths of at least 1, not {shown}")
        for name in ("guide_margin", "guide_all"):
            if getattr(self, name) and not self.guide:
                raise UserError(f"--{name.replace('_', '-')} needs --guide")
        self.check_loss()
        check_pair_columns(self.columns)
        for name in ("patience", "tolerance"):
            if getattr(self, name) and not self.eval:
                raise UserError(f"--{name} needs --eval: it watches a metric on held-out data")
        if self.mix not in (None, "auto"):
            self.check_mix(str(self.mix))
        if not self.train:
            raise UserError("--train is missing: the pairs to train on")
        if not self.out:
            raise UserError("--out is missing: the folder to publish the fine-tuned model in")

    def check_loss(self) -> None:
        """UserError for flags of another loss."""
        if self.recipe == "robust" and self.loss != "infonce":
            raise UserError(
                f"--recipe robust is for pairs without scores, not for --loss {self.loss}"
            )
        scored = "label_smoothing false_negatives guide symmetric max_negatives positives_where"
        others = {"infonce": [], "cosine": ["scale"], "cosent": []}[self.loss]
        others += (
            [] if self.loss == "infonce" else [*scored.split(), "min_score", "sample_negatives"]
        )
        others += [] if self.loss == "cosine" else ["score_range"]
        for name in others:
            if getattr(self, name) != getattr(TrainConfig, name):
                raise UserError(f"--{name.replace('_', '-')} has no part in --loss {self.loss}")
        low, high = self.score_range
        if not -math.inf < low < high < math.inf:
            raise UserError(f"--score-range {low:g} {high:g}: the lower score comes first")

    @staticmethod
    def check_mix(share: str) -> None:
        try:
            if 0 <= float(share) <= 1:
                return
        except ValueError:
            pass
        raise UserError(f"--mix is a share from 0 to 1, or auto, not {share}")


RECIPES: dict[str, dict[str, Any]] = {  # what differs from the defaults above
    "printed": {},
    "fit": {"learning_rate": 2e-5, "weight_decay": 0.01, "warmup_steps": 10_000},
    "robust": {  # docs/forgetting.md says why
        "distinct": True,
        "false_negatives": "avoid",
        "symmetric": True,
        "stay_near": 0.5,
        "batch_size": 64,
        "learning_rate": 1e-4,
        "warmup_steps": 5,
        "epochs": 8,
        "mix": "auto",
    },
}
EARLY_STOPPING = {"robust": {"patience": 3, "tolerance": 1.0}}  # where --eval is given
EXAMPLE = {
    "train": ["examples/job_skills/train.csv"],
    "eval": "examples/job_skills/unseen_wordings.csv",
}


def with_recipe(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are given over those of their recipe."""
    recipe = settings.get("recipe", "printed")
    stopping = EARLY_STOPPING.get(recipe, {}) if settings.get("eval") else {}
    return {**RECIPES[recipe], **stopping, **settings}


def with_example(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that are given; without --train, the example's."""
    if flags.keys() & {"train", "eval", "columns"}:
        return dict(flags)
    say("no --train given: fine-tuning on examples/job_skills with the recipe's defaults")
    return {"out": "checkpoints/job-skills", **flags, **EXAMPLE}
