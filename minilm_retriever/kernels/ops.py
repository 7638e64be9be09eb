"""The few operations that are faster on a CPU when written for it; everywhere else, plain torch.

Each gives the plain operation's numbers to float32 rounding (dropout: its distribution);
docs/performance.md says what each brings.

Shapes: S tokens of a batch, n of a group, R rows of W tokens, H hidden, A attention heads,
N = R * A attention matrices, D = H / A."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilm_retriever.kernels.fixed_layout import FixedLayout
from minilm_retriever.kernels.processor import mkl_is_slow
from minilm_retriever.kernels.unpadding import Layout, Rectangle
from minilm_retriever.kernels.varlen import varlen_attention, varlen_can_run

# The activations of a BERT config: F.gelu's `approximate`, or None for relu.
ACTIVATIONS: dict[str, str | None] = {
    "gelu": "none",
    "gelu_python": "none",
    "gelu_new": "tanh",
    "gelu_pytorch_tanh": "tanh",
    "relu": None,
}
# oneDNN's linear layer with prepacked weights (torch.compile uses it for a frozen model).
ONEDNN = bool(torch._C._has_mkldnn) and hasattr(torch.ops.mkldnn, "_linear_pointwise")
DROPOUT_STEPS = 1 << 16  # a probability is rounded to one of so many


def plain_torch(x: Tensor) -> bool:
    """Whether plain torch it is: not on a CPU, or traced by torch.compile, torch.export or ONNX."""
    return x.device.type != "cpu" or torch.compiler.is_compiling()


def onednn_can_run(x: Tensor) -> bool:
    """Whether x is float32 on a CPU for which torch has oneDNN."""
    usable = ONEDNN and x.dtype == torch.float32 and not plain_torch(x)
    return usable and not torch.is_autocast_enabled("cpu")


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """F.linear: x (S, inputs), weight (outputs, inputs), bias (outputs,) -> (S, outputs)."""
    if not onednn_can_run(x) or x.shape[0] == 0:
        return F.linear(x, weight, bias)
    return OneDnnLinear.apply(x, weight, bias)  # type: ignore[no-untyped-call, no-any-return]


class OneDnnLinear(torch.autograd.Function):
    """F.linear with output and input's gradient by oneDNN; the weight's too where MKL is slow."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        for_x = torch.ops.mkldnn._linear_pointwise(gradient, weight.t(), None, "none", [], "")
        if mkl_is_slow():
            copies = gradient.to_mkldnn(), x.to_mkldnn()  # the operation takes no other tensors
            return for_x, *torch.ops.aten.mkldnn_linear_backward_weights(*copies, weight, True)
        return for_x, gradient.t() @ x, gradient.sum(dim=0)


def activate(x: Tensor, activation: str) -> Tensor:
    """x through the activation that a BERT config names."""
    approximate = ACTIVATIONS[activation]
    return F.relu(x) if approximate is None else F.gelu(x, approximate=approximate)


def attention(
    projected: Tensor, layout: Layout | FixedLayout, heads: int, dropout: float = 0.0
) -> Tensor:
    """Scaled dot-product attention of every token to the tokens of its own row: query, key and
    value side by side (S, 3H) -> (S, H)."""
    if isinstance(layout, FixedLayout):
        if varlen_can_run(projected, heads, dropout):
            return varlen_attention(projected, layout, heads)
        return group_attention(projected, layout, heads, dropout)
    if len(layout.groups) == 1 and not layout.spare:  # a query: each call counts
        return group_attention(projected, layout.groups[0], heads, dropout)
    counts = [group.tokens for group in layout.groups]
    *parts, spare = projected.split([*counts, layout.spare])
    pairs = zip(parts, layout.groups, strict=True)
    outputs = [group_attention(part, group, heads, dropout) for part, group in pairs]
    return torch.cat([*outputs, torch.zeros_like(spare[:, : projected.shape[1] // 3])])


def group_attention(
    projected: Tensor, group: Rectangle | FixedLayout, heads: int, dropout: float
) -> Tensor:
    """The same for the tokens of one group, (n, 3H) -> (n, H)."""
    rows, width = group.rows, group.width
    padded = group.pad(projected).view(rows, width, 3, heads, -1)
    parts = padded.permute(2, 0, 3, 1, 4)  # (3, R, A, W, D)
    if not own_attention_is_faster(projected, dropout):
        query, key, value = parts.unbind(0)
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=group.mask, dropout_p=dropout
        )
        return group.unpad(out.transpose(1, 2).flatten(2))
    matrices = parts.reshape(3, rows * heads, width, -1)
    if dropout:
        out = AttentionWithDropout.apply(matrices, group.mask, dropout)  # type: ignore[no-untyped-call]
    else:
        query, key, value = matrices.unbind(0)
        out = attention_weights(query, key, group.mask) @ value
    return group.unpad(out.view(rows, heads, width, -1).transpose(1, 2).flatten(2))


def own_attention_is_faster(projected: Tensor, dropout: float) -> bool:
    """Whether to do without torch's attention. On a CPU it takes a dozen passes where there is
    dropout, and with several threads it loses a microsecond at each of many small products."""
    if plain_torch(projected):
        return False
    many = len(projected) >= 64 and projected.dtype in (torch.float32, torch.float64)
    return dropout > 0 or (many and torch.get_num_threads() > 1 and not torch.is_grad_enabled())


def attention_weights(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax of the scaled scores of query and key (N, W, D), mask (R, 1, 1, W) True at real
    tokens -> (N, W, W)."""
    scale, key = query.shape[-1] ** -0.5, key.transpose(1, 2)
    if mask is None:
        scores = scaled_product(query, key, scale)
    else:
        bias = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, -math.inf)
        bias = bias.expand(-1, len(query) // len(mask), -1, -1).flatten(0, 1)  # (N, 1, W)
        scores = torch.baddbmm(bias, query, key, alpha=scale)
    return torch.softmax(scores, dim=-1, out=scores)


class AttentionWithDropout(torch.autograd.Function):
    """Scaled dot-product attention on a CPU with dropout of its weights, in few passes: query, key
    and value (3, N, W, D), mask (R, 1, 1, W) True at real tokens or None -> (N, W, D)."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, mask: Tensor | None, p: float) -> Tensor:
        query, key, value = parts.unbind(0)
        weights = attention_weights(query, key, mask)  # (N, W, W)
        keep, ctx.scale = dropout_mask(weights, p)
        ctx.save_for_backward(parts, weights, keep)
        return scaled_product(weights * keep, value, ctx.scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        parts, weights, keep = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        (query, key, value), scale = parts.unbind(0), parts.shape[-1] ** -0.5
        out = torch.empty_like(parts)
        scaled_product((weights * keep).transpose(1, 2), gradient, ctx.scale, out[2])
        for_weights = scaled_product(gradient, value.transpose(1, 2), ctx.scale).mul_(keep)
        for_scores = torch._softmax_backward_data(for_weights, weights, -1, weights.dtype)
        scaled_product(for_scores, key, scale, out[0])
        scaled_product(for_scores.transpose(1, 2), query, scale, out[1])
        return out, None, None


def scaled_product(left: Tensor, right: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
    """scale * left (N, I, J) @ right (N, J, K) -> (N, I, K), the scaling at no cost."""
    unread = left.new_empty(1, 1, 1)  # for beta is 0
    return torch.baddbmm(unread, left, right, beta=0, alpha=scale, out=out)


class Dropout(nn.Dropout):
    """nn.Dropout by `drop_out`."""

    def forward(self, x: Tensor) -> Tensor:
        return drop_out(x, self.p) if self.training and self.p else x

    def add_residual(self, x: Tensor, residual: Tensor) -> Tensor:
        """forward(x) + residual."""
        if not (self.training and self.p) or plain_torch(x) or x.dtype != residual.dtype:
            return self.forward(x) + residual
        return DropoutAddResidual.apply(x, residual, self.p)  # type: ignore[no-untyped-call, no-any-return]


class DropoutAddResidual(torch.autograd.Function):
    """drop_out(x, p) + residual on a CPU, in one pass forward and one backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor, p: float) -> Tensor:
        keep, ctx.scale = dropout_mask(x, p)
        ctx.save_for_backward(keep)
        return torch.addcmul(residual, x, keep, value=ctx.scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (keep,), (gradient,) = ctx.saved_tensors, gradients
        for_x = torch.addcmul(gradient.new_zeros(()), gradient, keep, value=ctx.scale)
        return for_x, gradient, None


def drop_out(x: Tensor, p: float) -> Tensor:
    """F.dropout: each element zeroed with probability p, the others scaled up to keep the mean."""
    if plain_torch(x):
        return F.dropout(x, p)
    keep, scale = dropout_mask(x, p)
    return x * keep.mul_(scale)


def dropout_mask(x: Tensor, p: float) -> tuple[Tensor, float]:
    """On a CPU: a tensor like x of ones, zeros with probability p, and what to scale the kept by.

    16 random bits of the global generator decide on an element: torch's own dropout draws 64 for
    each, on one thread, and takes five times as long."""
    dropped = min(round(p * DROPOUT_STEPS), DROPOUT_STEPS - 1)
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    keep = torch.empty(x.shape, dtype=x.dtype)
    lanes = words.view(torch.int16)[: x.numel()].view(x.shape)
    torch.ge(lanes, dropped - DROPOUT_STEPS // 2, out=keep)
    return keep, DROPOUT_STEPS / (DROPOUT_STEPS - dropped)
