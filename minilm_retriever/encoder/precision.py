"""Devices, and the precisions that pay on them."""

from __future__ import annotations

from typing import cast, get_args

import torch

from minilm_retriever.errors import UserError
from minilm_retriever.kernels.processor import lacks_instructions
from minilm_retriever.pretrained.config import Precision

GPU = ("fp32", "tf32", "fp16")


def check_precision(precision: str, device: torch.device) -> None:
    """UserError where a model on this device would not be faster in that precision."""
    if precision not in get_args(Precision):
        choices = ", ".join(get_args(Precision))
        raise UserError(f"precision is {precision!r}; it can be {choices}")
    if not is_of(precision, device):
        kind = "GPU" if precision in GPU else "CPU"
        raise UserError(f"precision {precision} is for a {kind}, not for {device}")
    check_instructions(precision)


def is_of(precision: str, device: torch.device) -> bool:
    """Whether devices of this kind compute in that precision."""
    return precision in (("fp32", "bf16", "int8") if device.type == "cpu" else GPU)


def check_instructions(precision: str) -> None:
    """UserError where this processor would not be faster in that precision."""
    if missing := lacks_instructions(precision):
        slower = f"precision {precision} would be slower than fp32 on this processor"
        raise UserError(f"{slower}, which lacks {missing}: choose fp32")


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def split_fingerprint(fingerprint: str) -> tuple[str, Precision]:
    """The model's fingerprint and the precision of what Encoder.fingerprint() gave."""
    own, _, precision = fingerprint.partition(" ")
    return own, cast(Precision, precision or "fp32")
