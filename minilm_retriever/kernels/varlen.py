"""Attention over packed rows on a GPU, in 16 bits, without padding: torch's varlen_attn."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from minilm_retriever.kernels.fixed_layout import FixedLayout


def varlen_can_run(projected: Tensor, heads: int, dropout: float) -> bool:
    """Whether these are numbers and heads that its kernel takes, in inference."""
    half = projected.dtype in (torch.float16, torch.bfloat16)
    if not (projected.is_cuda and half) or dropout or torch.is_grad_enabled():
        return False
    width = projected.shape[1] // (3 * heads)
    return width % 8 == 0 and width <= 256 and has_kernel(projected.device)


@cache
def has_kernel(device: torch.device) -> bool:
    """Whether the GPU is of Ampere's generation or later, for which FlashAttention is built."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


def varlen_attention(projected: Tensor, layout: FixedLayout, heads: int) -> Tensor:
    """As `ops.attention`: query, key and value side by side (S, 3H) -> (S, H); what comes out for
    slots left over is not defined."""
    from torch.nn.attention.varlen import varlen_attn

    query, key, value = projected.view(len(projected), 3, heads, -1).unbind(1)  # (S, A, D)
    ends, width = layout.ends, layout.width
    out = varlen_attn(query, key, value, ends, ends, width, width)
    assert isinstance(out, Tensor)  # else further results were asked for
    return out.flatten(1)
