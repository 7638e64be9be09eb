"""Flags of `fetch` and `mix`, and what several commands say of their flags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from minilm_retriever.errors import UserError
from minilm_retriever.flags import flag

Precision = Literal[
    "fp32", "tf32", "fp16", "bf16", "int8"
]  # the numbers that a model computes with
BASE_FOLDER = "checkpoints/all-MiniLM-L6-v2"
MODEL_HELP = "a model folder or a hub name (org/name, org/name@revision)"
REVISION_HELP = "of a hub name: a commit, branch or tag (default: the newest)"
QUERY_PROMPT_HELP = "text put before each query (default: the model folder's)"
DOCUMENT_PROMPT_HELP = "text put before each document (default: the model folder's)"
DEVICE_HELP = "cpu, cuda, ... (default: a GPU where there is one)"
THREADS_HELP = "CPU threads (default: all; another number changes the last bits)"
PRECISION_HELP = "fp32; on a GPU tf32 or fp16; on a CPU that is faster at it bf16 or int8"
DRY_RUN_HELP = "print the plan and an estimate, and do nothing else"
SaveDtype = Literal["float32", "float16", "bfloat16"]  # of a saved model's weights
SAVE_DTYPE_HELP = "of the saved weights; computed with in float32 all the same"


@dataclass(frozen=True)
class FetchConfig:
    """Get the base model, verified."""

    out: str = flag(BASE_FOLDER, "where to", metavar="DIR")


def with_revision(model: str, revision: str | None) -> str:
    """A hub name with a revision, as `hub.resolve` reads it."""
    return f"{model}@{revision}" if revision else model


@dataclass(frozen=True)
class MixConfig:
    """Write the model that lies at a share of the line between two."""

    base: str = flag("", "the model at share 0", name="BASE")
    tuned: str = flag("", "the model at share 1, of the same architecture", name="TUNED")
    share: float = flag(0.5, "how much of the second model", at_least=0)
    out: str = flag("", "folder to write", metavar="DIR", required=True)
    overwrite: bool = flag(False, "replace what is there", action="store_true")

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise UserError(f"--share must be from 0 to 1, not {self.share}")
