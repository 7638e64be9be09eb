"""An Encoder for a command, whose process may do what a library may not."""

from __future__ import annotations

from typing import cast

import torch

from minilm_retriever.encoder.encoder import Encoder
from minilm_retriever.encoder.precision import check_precision, default_device
from minilm_retriever.in_memory import InMemory
from minilm_retriever.kernels.memory import keep_freed_memory
from minilm_retriever.pretrained.config import Precision

KEPT_BYTES = 256 << 20  # of freed memory, for the next batch: far more than one takes on a CPU


def open_for_command(
    model: str, device: str | None = None, precision: Precision = "fp32"
) -> Encoder:
    """Encoder.from_pretrained() for a command, whose process may keep freed memory; an encoder in
    memory as it is."""
    if isinstance(model, InMemory):
        return cast(Encoder, model.held)
    check_precision(precision, torch.device(device or default_device()))  # before reading a model
    encoder = Encoder.from_pretrained(model, device=device, precision=precision)
    if encoder.device.type == "cpu":
        keep_freed_memory(KEPT_BYTES)
    return encoder
