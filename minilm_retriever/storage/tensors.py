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
    """Write tensors to a safetensors file in a folder that is being made; UserError where the disk
    refuses."""
    own = {n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}
    try:
        safetensors.torch.save_file(own, path, metadata=metadata)
    except safetensors.SafetensorError as problem:  # the library's word for a full disk
        raise UserError(f"{path}: cannot be written: {problem}") from problem


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, in memory of their own; UserError where it can't be
    read."""
    try:
        return {name: tensor.clone() for name, tensor in safetensors.torch.load_file(path).items()}
    except (OSError, safetensors.SafetensorError) as problem:
        raise UserError(f"{path}: {problem}") from None
