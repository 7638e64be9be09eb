"""The few operations that are faster on a CPU when written for it; everywhere else, plain torch.
Torch only.

Each gives the plain operation's numbers to float32 rounding (dropout: its distribution);
docs/performance.md says what each brings."""

from __future__ import annotations

import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilm_retriever.kernels.unpadding import Group, Layout

# The activations of a BERT config: what `gelu` is told, and None for relu.
ACTIVATIONS: dict[str, str | None] = {
    "gelu": "none",
    "gelu_python": "none",
    "gelu_new": "tanh",
    "gelu_pytorch_tanh": "tanh",
    "relu": None,
}

# oneDNN's linear layer with weights laid out beforehand (what torch.compile uses when it freezes a
# model).
ONEDNN = bool(torch._C._has_mkldnn) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x (S, inputs) through a linear layer, weight (outputs, inputs), bias (outputs,) -> (S,
    outputs)."""
    plain = (
        not ONEDNN
        or x.device.type != "cpu"
        or x.dtype != torch.float32
        or torch.is_autocast_enabled("cpu")
    )
    if plain or x.shape[0] == 0:
        return F.linear(x, weight, bias)
    out: Tensor = OneDnnLinear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return out


class OneDnnLinear(torch.autograd.Function):
    """A linear layer whose output and whose input's gradient oneDNN computes, and the weight's
    where MKL is slow."""

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
        if mkl_is_slow():
            own = (
                gradient.to_mkldnn(),
                x.to_mkldnn(),
            )  # oneDNN's own tensors: copies, for there is no other way in
            return for_x, *torch.ops.aten.mkldnn_linear_backward_weights(*own, weight, True)
        return for_x, gradient.t() @ x, gradient.sum(dim=0)


@cache
def mkl_is_slow() -> bool:
    """Whether MKL, which has only 256-bit kernels for AMD's processors, meets one that multiplies
    512 at once (Zen 5).

    By the processor's name and not by a trial: the choice decides the last bits of a run."""
    try:
        facts = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return False  # not Linux
    family = re.search(r"^cpu family\s*: (\d+)$", facts, re.MULTILINE)
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return wide and "AuthenticAMD" in facts and family is not None and int(family[1]) >= 26


def activate(x: Tensor, activation: str) -> Tensor:
    """x through the activation that a BERT config names."""
    form = ACTIVATIONS[activation]
    return F.relu(x) if form is None else F.gelu(x, approximate=form)


def attention(projected: Tensor, layout: Layout, heads: int, dropout: float = 0.0) -> Tensor:
    """Scaled dot-product attention of every token to the tokens of its own row: query, key and
    value side by side (S, 3H) -> (S, H)."""
    counts = [group.stop - group.start for group in layout.groups]
    *parts, spare = projected.split([*counts, layout.spare])  # type: ignore[no-untyped-call]
    mixed = [
        attend(part, group, heads, dropout)
        for part, group in zip(parts, layout.groups, strict=True)
    ]
    if len(mixed) == 1 and not layout.spare:
        return mixed[0]
    return torch.cat([*mixed, torch.zeros_like(spare[:, : projected.shape[1] // 3])])


def attend(projected: Tensor, group: Group, heads: int, dropout: float) -> Tensor:
    """The same for the tokens of one group, (n, 3H) -> (n, H)."""
    rows, width = group.rows, group.width
    parts = (
        group.pad(projected).view(rows, width, 3, heads, -1).permute(2, 0, 3, 1, 4)
    )  # (3, R, A, W, H / A)
    if not faster_by_hand(projected, dropout):
        query, key, value = parts.unbind(0)
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=group.mask, dropout_p=dropout
        )
        return group.unpad(mixed.transpose(1, 2))
    together = parts.reshape(3, rows * heads, width, -1)
    if dropout:
        mixed = AttentionWithDropout.apply(together, group.mask, dropout)  # type: ignore[no-untyped-call]
    else:
        query, key, value = together.unbind(0)
        mixed = attention_weights(query, key, group.mask) @ value
    return group.unpad(mixed.view(rows, heads, width, -1).transpose(1, 2))


def faster_by_hand(projected: Tensor, dropout: float) -> bool:
    """Whether to leave torch's attention: on a CPU it takes a detour over a dozen passes with
    dropout, and with several threads loses a microsecond at each of its small multiplications,
    which tells where they are many."""
    if projected.device.type != "cpu":
        return False
    many = len(projected) >= 64 and projected.dtype in (torch.float32, torch.float64)
    return dropout > 0 or (many and torch.get_num_threads() > 1 and not torch.is_grad_enabled())


def attention_weights(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax of the scaled scores of query and key (N, W, D), mask (R, 1, 1, W) True at real
    tokens -> (N, W, W)."""
    scale, key = query.shape[-1] ** -0.5, key.transpose(1, 2)
    if mask is None:
        scores = product(query, key, scale)
    else:
        bias = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, -math.inf)
        bias = bias.expand(-1, len(query) // len(mask), -1, -1).flatten(0, 1)  # (N, 1, W)
        scores = torch.baddbmm(bias, query, key, alpha=scale)
    return torch.softmax(scores, dim=-1, out=scores)


class AttentionWithDropout(torch.autograd.Function):
    """Scaled dot-product attention on a CPU with dropout of its weights, forward and backward in
    few passes.

    N = R * A matrices, each of W tokens and D = H / A numbers a token."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, mask: Tensor | None, p: float) -> Tensor:
        """Query, key and value (3, N, W, D), mask (R, 1, 1, W) True at real tokens or None -> (N,
        W, D)."""
        query, key, value = parts.unbind(0)
        weights = attention_weights(query, key, mask)  # (N, W, W)
        keep, ctx.rescaled = random_keep(weights, p)
        ctx.save_for_backward(parts, weights, keep)
        return product(weights * keep, value, ctx.rescaled)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of query, key and value for that of the output (N, W, D)."""
        parts, weights, keep = ctx.saved_tensors
        (gradient,) = (g.contiguous() for g in gradients)
        (query, key, value), scale = parts.unbind(0), parts.shape[-1] ** -0.5
        out = torch.empty_like(parts)
        product((weights * keep).transpose(1, 2), gradient, ctx.rescaled, out[2])
        for_weights = product(gradient, value.transpose(1, 2), ctx.rescaled).mul_(keep)
        for_scores = torch._softmax_backward_data(for_weights, weights, -1, weights.dtype)
        product(for_scores, key, scale, out[0])
        product(for_scores.transpose(1, 2), query, scale, out[1])
        return out, None, None


def product(left: Tensor, right: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
    """scale * left (N, I, J) @ right (N, J, K) -> (N, I, K), the scaling at no cost."""
    nothing = left.new_empty(1, 1, 1)  # beta=0: not even read
    return torch.baddbmm(nothing, left, right, beta=0, alpha=scale, out=out)


class Dropout(nn.Dropout):
    """nn.Dropout by `drop_out`."""

    def forward(self, x: Tensor) -> Tensor:
        """x with elements zeroed at random while training."""
        return drop_out(x, self.p) if self.training and self.p else x

    def add_residual(self, x: Tensor, residual: Tensor) -> Tensor:
        """The same, and the residual added."""
        if not (self.training and self.p) or x.device.type != "cpu" or x.dtype != residual.dtype:
            return self.forward(x) + residual
        return DropoutPlus.apply(x, residual, self.p)  # type: ignore[no-untyped-call, no-any-return]


class DropoutPlus(torch.autograd.Function):
    """Dropout on a CPU and a residual sum in one pass, and one back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor, p: float) -> Tensor:
        """As drop_out(x, p) + residual."""
        keep, ctx.rescaled = random_keep(x, p)
        ctx.save_for_backward(keep)
        return torch.addcmul(residual, x, keep, value=ctx.rescaled)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """The gradients of x and of the residual."""
        (keep,), (gradient,) = ctx.saved_tensors, gradients
        return (
            torch.addcmul(gradient.new_zeros(()), gradient, keep, value=ctx.rescaled),
            gradient,
            None,
        )


def drop_out(x: Tensor, p: float) -> Tensor:
    """x with each element zeroed with probability p (to 1 / 65536), the others scaled up to keep
    the mean."""
    if x.device.type != "cpu":
        return F.dropout(x, p)
    keep, rescaled = random_keep(x, p)
    return x * keep.mul_(rescaled)


def random_keep(x: Tensor, p: float) -> tuple[Tensor, float]:
    """On a CPU: a tensor like x of ones, zeros with probability p (to 1 / 65536), and what to scale
    the kept up by.

    16 random bits of the global generator decide on an element: torch's own dropout draws 64 for
    each, on one thread, and takes five times as long."""
    dropped = min(round(p * 65536), 65535)
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    keep = torch.empty(x.shape, dtype=x.dtype)
    torch.ge(words.view(torch.int16)[: x.numel()].view(x.shape), dropped - 32768, out=keep)
    return keep, 65536 / (65536 - dropped)
