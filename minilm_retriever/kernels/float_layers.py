"""A BERT's layers in float32 or bfloat16, packed for inference on a CPU, or in float16 for a GPU,
and the functions that run them.

Activations and residual sums need no second pass over memory, a few rows run 1.7 times as fast as
plain torch, and a short query does not pay for forty calls of modules. In fp32 the results are the
plain layers' to float32 rounding. In bf16 weights, products and attention are bfloat16, while the
residual sums and LayerNorm stay float32. docs/performance.md says what each part brings."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilm_retriever.kernels.fixed_layout import FixedLayout
from minilm_retriever.kernels.ops import ACTIVATIONS, activate, attention
from minilm_retriever.kernels.unpadding import Layout

Linear = tuple[Tensor, Tensor]  # weight in oneDNN's own layout, bias
Norm = tuple[tuple[int, ...], Tensor, Tensor, float]  # what torch.layer_norm takes


class FloatLayer(NamedTuple):
    """One layer, in order of use."""

    query_key_value: Linear  # side by side
    attention_output: Linear
    attention_norm: Norm
    intermediate: Linear
    output: Linear
    output_norm: Norm


def run_fp32(
    layers: list[FloatLayer], x: Tensor, layout: Layout, heads: int, activation: str
) -> Tensor:
    """(S, H) -> (S, H)."""
    linear = torch.ops.mkldnn._linear_pointwise.default
    linear_and_sum = torch.ops.mkldnn._linear_pointwise.binary
    form = ACTIVATIONS[activation]
    function, algorithm = ("relu", "") if form is None else ("gelu", form)
    for layer in layers:
        projected = linear(x, *layer.query_key_value, "none", [], "")  # (S, 3H)
        mixed = attention(projected, layout, heads)
        x = linear_and_sum(mixed, x, *layer.attention_output, "add")
        x = torch.layer_norm(x, *layer.attention_norm)
        inner = linear(x, *layer.intermediate, function, [], algorithm)
        x = linear_and_sum(inner, x, *layer.output, "add")
        x = torch.layer_norm(x, *layer.output_norm)
    return x


def run_bf16(
    layers: list[FloatLayer], x: Tensor, layout: Layout, heads: int, activation: str
) -> Tensor:
    """(S, H) float32 -> (S, H) float32; x is overwritten.

    GELU by itself: within oneDNN's product it takes twice as long."""
    linear = torch.ops.mkldnn._linear_pointwise.default
    for layer in layers:
        projected = linear(x.bfloat16(), *layer.query_key_value, "none", [], "")  # (S, 3H)
        mixed = attention(projected, layout, heads)
        x.add_(linear(mixed, *layer.attention_output, "none", [], ""))
        x = torch.layer_norm(x, *layer.attention_norm)
        inner = linear(x.bfloat16(), *layer.intermediate, "none", [], "")
        inner = activate(inner, activation)
        x.add_(linear(inner, *layer.output, "none", [], ""))
        x = torch.layer_norm(x, *layer.output_norm)
    return x


def run_fp16(
    layers: list[FloatLayer], x: Tensor, layout: Layout | FixedLayout, heads: int, activation: str
) -> Tensor:
    """(S, H) -> (S, H) float16, on a GPU. LayerNorm computes in float32 inside."""
    x = x.half()
    for layer in layers:
        mixed = attention(F.linear(x, *layer.query_key_value), layout, heads)
        x = torch.layer_norm(x + F.linear(mixed, *layer.attention_output), *layer.attention_norm)
        inner = activate(F.linear(x, *layer.intermediate), activation)
        x = torch.layer_norm(x + F.linear(inner, *layer.output), *layer.output_norm)
    return x


def pack_layer(layer: nn.Module, dtype: torch.dtype) -> FloatLayer:
    """The weights of a layer with BertLayer's parameter names."""
    part = layer.get_submodule
    query_key_value = (part(f"attention.self.{name}") for name in ("query", "key", "value"))
    return FloatLayer(
        pack(*query_key_value, dtype=dtype),
        pack(part("attention.output.dense"), dtype=dtype),
        norm(part("attention.output.LayerNorm"), dtype),
        pack(part("intermediate.dense"), dtype=dtype),
        pack(part("output.dense"), dtype=dtype),
        norm(part("output.LayerNorm"), dtype),
    )


def pack(*layers: nn.Module, dtype: torch.dtype) -> Linear:
    """Linear layers side by side."""
    weight, bias = parameters(*layers)
    if dtype == torch.float16:  # a GPU has no layout of its own
        return weight.half(), bias.half()
    return torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype)), bias.to(dtype)


def parameters(*layers: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of linear layers side by side."""
    weight = torch.cat([layer.get_parameter("weight") for layer in layers]).detach()
    bias = torch.cat([layer.get_parameter("bias") for layer in layers]).detach()
    return weight, bias


def norm(module: nn.Module, dtype: torch.dtype = torch.float32) -> Norm:
    """Of float16 activations the same; else of float32."""
    assert isinstance(module, nn.LayerNorm)
    parts = module.weight, module.bias
    weight, bias = (x.half() for x in parts) if dtype == torch.float16 else parts
    return module.normalized_shape, weight, bias, module.eps
