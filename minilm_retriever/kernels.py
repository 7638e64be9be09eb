"""The few operations that are faster on a CPU when written for it; everywhere else, plain torch. Torch only.

Each gives the plain operation's numbers to float32 rounding (dropout: its distribution); docs/performance.md says what
each brings.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilm_retriever.layout import Group, Layout

# The activations of a BERT config: what `gelu` is told, and None for relu.
ACTIVATIONS: dict[str, str | None] = {
    "gelu": "none",
    "gelu_python": "none",
    "gelu_new": "tanh",
    "gelu_pytorch_tanh": "tanh",
    "relu": None,
}

# oneDNN's linear layer with weights laid out beforehand (what torch.compile uses when it freezes a model).
ONEDNN = bool(torch._C._has_mkldnn) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x (S, inputs) through a linear layer, weight (outputs, inputs), bias (outputs,) -> (S, outputs)."""
    plain = not ONEDNN or x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu")
    if plain or x.shape[0] == 0:
        return F.linear(x, weight, bias)
    out: Tensor = OneDnnLinear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return out


class OneDnnLinear(torch.autograd.Function):
    """A linear layer whose output and whose input's gradient oneDNN computes; the weight's is faster as it was."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """As F.linear."""
        ctx.save_for_backward(x, weight)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of x, weight and bias for that of the output (S, outputs)."""
        x, weight = ctx.saved_tensors
        (gradient,) = (g.contiguous() for g in gradients)
        for_x = torch.ops.mkldnn._linear_pointwise(gradient, weight.t(), None, "none", [], "")
        return for_x, gradient.t() @ x, gradient.sum(dim=0)


def activate(x: Tensor, activation: str) -> Tensor:
    """x through the activation that a BERT config names."""
    form = ACTIVATIONS[activation]
    return F.relu(x) if form is None else F.gelu(x, approximate=form)


def attention(projected: Tensor, layout: Layout, heads: int, dropout: float = 0.0) -> Tensor:
    """Scaled dot-product attention of every token to the tokens of its own row: query, key and value side by side
    (S, 3H) -> (S, H)."""
    mixed = [attend(projected[group.start : group.stop], group, heads, dropout) for group in layout.groups]
    return mixed[0] if len(mixed) == 1 else torch.cat([projected[:0, : projected.shape[1] // 3], *mixed])


def attend(projected: Tensor, group: Group, heads: int, dropout: float) -> Tensor:
    """The same for the tokens of one group, (n, 3H) -> (n, H)."""
    rectangle = group.pad(projected).view(group.rows, group.width, 3, heads, -1)
    query, key, value = rectangle.permute(2, 0, 3, 1, 4).unbind(0)  # (R, A, W, H / A) each
    if dropout and query.device.type == "cpu":  # torch's own kernel takes a detour over a dozen passes there
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)  # (R, A, W, W)
        if group.mask is not None:
            scores.masked_fill_(~group.mask, -math.inf)
        mixed = drop_out(scores.softmax(dim=-1), dropout) @ value
    else:
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=group.mask, dropout_p=dropout)
    return group.drop(mixed.transpose(1, 2))


class Dropout(nn.Dropout):
    """nn.Dropout by `drop_out`."""

    def forward(self, x: Tensor) -> Tensor:
        """x with elements zeroed at random while training."""
        return drop_out(x, self.p) if self.training and self.p else x


def drop_out(x: Tensor, p: float) -> Tensor:
    """x with each element zeroed with probability p (to 1 / 65536), the others scaled up to keep the mean.

    On a CPU 16 random bits of the global generator decide on an element: torch's own draws 64 for each, on one thread,
    and takes five times as long.
    """
    if x.device.type != "cpu":
        return F.dropout(x, p)
    dropped = min(round(p * 65536), 65535)
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    keep = torch.empty(x.shape, dtype=x.dtype)
    torch.ge(words.view(torch.int16)[: x.numel()].view(x.shape), dropped - 32768, out=keep)
    return x * keep.mul_(65536 / (65536 - dropped))
