"""Safetensors files, written and read whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor

from minilm_retriever.errors import UserError


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write tensors to a file of a staged folder; UserError where the disk refuses."""
    own = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    try:
        safetensors.torch.save_file(own, path, metadata=metadata)
    except safetensors.SafetensorError as fault:  # what it raises when the disk is full
        raise UserError(f"{path}: cannot be written: {fault}") from fault


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, in memory of their own; UserError where it cannot be read."""
    try:
        return {name: t.clone() for name, t in safetensors.torch.load_file(path).items()}
    except (OSError, safetensors.SafetensorError) as fault:
        raise UserError(f"{path}: {fault}") from None
