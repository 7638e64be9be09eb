"""Flags of `fetch`, and what several commands say of their flags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from minilm_retriever.flags import flag

Precision = Literal["fp32", "bf16"]  # the numbers that a model computes with
BASE_FOLDER = "checkpoints/all-MiniLM-L6-v2"
MODEL_HELP = "a model folder or a hub name (org/name, org/name@revision)"
REVISION_HELP = "of a hub name: a commit, branch or tag (default: the newest)"
DEVICE_HELP = "cpu, cuda, ... (default: a GPU where there is one)"
THREADS_HELP = "CPU threads (default: all; another number changes the last bits)"
PRECISION_HELP = "fp32; or bf16 on a CPU whose instructions make it faster"
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
