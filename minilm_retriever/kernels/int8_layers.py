"""A BERT's layers in int8, for inference on a CPU: products of 8-bit weights and activations by
oneDNN, residual sums, LayerNorm and softmax in float32.

Three of a layer's four linear layers are int8: query, key and value together, and both of the
feed-forward network. Attention and its output projection stay in bfloat16 (float32 where that is
faster): quantising their input would take as long as it saves.

Weights have a scale for each output. Activations have fixed scales, so that a vector does not
depend on the batch it is computed in. Their ranges are measured once, when the weights are packed,
in a float32 forward pass over tokens of the model's own vocabulary, most of them random: a function
of the weights alone. Two things that a plain scale would lose most by are undone in the weights:

- Few channels of LayerNorm's output are ten times as large as the others. A part of each channel's
  range is moved into the weights that it meets (SmoothQuant: Xiao et al., 2022).
- Few neurons of the feed-forward network reach 25 where the others stay below 6. A neuron is split
  into gelu(z), gelu(z - M), gelu(z - 2M), ..., which are clipped to M each and add up to it.

Shapes: S tokens, H hidden, N neurons of the feed-forward network."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from minilm_retriever.kernels.float_layers import Linear, Norm, norm, pack, parameters
from minilm_retriever.kernels.ops import ACTIVATIONS, attention
from minilm_retriever.kernels.processor import bf16_is_fast
from minilm_retriever.kernels.unpadding import Layout, make_layout

SMOOTHING = 0.8  # share of a channel's range, on a log scale, that is moved into the weights
MARGIN, NEURON_MARGIN = 1.2, 2.0  # texts reach further than a sample of tokens
SAMPLE_TOKENS, ROW_TOKENS, FIRST_TOKENS = 2048, 64, 128  # see sample_tokens
EXTRA_NEURONS = 64  # at most, by splitting
UINT8_ZERO = 128  # of the activations before a linear layer, which have both signs


class Int8Linear(NamedTuple):
    """What onednn.qlinear_pointwise takes between the activations' zero point and the output's."""

    weight: Tensor  # in oneDNN's own layout
    scales: Tensor  # (outputs,) of the weight times the activations' scale
    zero_points: Tensor  # (outputs,) zeros
    bias: Tensor


class Int8Layer(NamedTuple):
    """One layer, in order of use. x becomes uint8 as x * to_uint8 + 128."""

    attention_to_uint8: Tensor  # (H,)
    query_key_value: Int8Linear
    attention_output: Linear
    attention_norm: Norm
    inner_to_uint8: Tensor  # (H,)
    intermediate: Int8Linear
    inner_scale: float
    inner_zero: int
    output: Int8Linear
    output_norm: Norm


def run_int8(
    layers: list[Int8Layer], x: Tensor, layout: Layout, heads: int, activation: str
) -> Tensor:
    """(S, H) float32 -> (S, H) float32; x is overwritten."""
    linear = torch.ops.onednn.qlinear_pointwise.default
    linear_and_sum = torch.ops.onednn.qlinear_pointwise.binary
    plain_linear = torch.ops.mkldnn._linear_pointwise.default
    form = ACTIVATIONS[activation]
    function, algorithm = ("relu", "") if form is None else ("gelu", form)
    half_up = torch.full_like(x[:1], UINT8_ZERO + 0.5)
    for layer in layers:
        dtype = layer.attention_output[1].dtype
        codes = to_uint8(x, layer.attention_to_uint8, half_up)
        projected = linear(
            codes, 1.0, UINT8_ZERO, *layer.query_key_value, 1.0, 0, dtype, "none", [], ""
        )  # (S, 3H)
        mixed = attention(projected, layout, heads)
        x.add_(plain_linear(mixed, *layer.attention_output, "none", [], ""))
        x = torch.layer_norm(x, *layer.attention_norm)
        codes = to_uint8(x, layer.inner_to_uint8, half_up)
        scale, zero = layer.inner_scale, layer.inner_zero
        inner = linear(
            codes, 1.0, UINT8_ZERO, *layer.intermediate, scale, zero, torch.uint8,
            function, [], algorithm,
        )  # fmt: skip
        weight, scales, zeros, bias = layer.output
        linear_and_sum(
            inner, 1.0, zero, weight, scales, zeros, x, bias, 1.0, 0, torch.float32,
            1.0, 0, "sum", 1.0, "none", [], "",
        )  # fmt: skip  # into x
        x = torch.layer_norm(x, *layer.output_norm)
    return x


def to_uint8(x: Tensor, factor: Tensor, half_up: Tensor) -> Tensor:
    """x * factor (H,) + 128, rounded and clipped."""
    return torch.addcmul(half_up, x, factor).clamp_(0, 255).to(torch.uint8)


# --- packing --------------------------------------------------------------------------------------


def pack_int8(layers: nn.ModuleList, embeddings: nn.Module) -> list[Int8Layer]:
    """The weights of layers with BertLayer's parameter names."""
    return [
        pack_layer(layer, *found)
        for layer, found in zip(layers, input_ranges(layers, embeddings), strict=True)
    ]


def input_ranges(
    layers: nn.ModuleList, embeddings: nn.Module
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each layer the largest absolute values of its input (H,) and of the feed-forward
    network's (H,), and the largest neurons (N,), over sample_tokens()."""
    words = embeddings.get_parameter("word_embeddings.weight").detach()
    positions = embeddings.get_parameter("position_embeddings.weight")
    ids = sample_tokens(words).view(-1, min(ROW_TOKENS, len(positions)))
    layout = make_layout(torch.ones_like(ids), on_cpu=True)
    ranges, x = [], embeddings(layout.unpad(ids), layout.positions)
    for layer in layers:
        largest = [x.abs().amax(dim=0)]

        def see(module: nn.Module, inputs: tuple[Tensor], largest: list[Tensor] = largest) -> None:
            largest.append(inputs[0].abs().amax(dim=0))

        hooks = [
            layer.get_submodule(name).register_forward_pre_hook(see)
            for name in ("intermediate.dense", "output.dense")
        ]
        x = layer(x, layout)
        for hook in hooks:
            hook.remove()
        ranges.append((largest[0], largest[1], largest[2]))
    return ranges


def sample_tokens(words: Tensor) -> Tensor:
    """Token ids (SAMPLE_TOKENS,) of a table of embeddings (V, H): the first ones, which special
    tokens are among, those that are the largest or the smallest in a channel, and random ones."""
    first = torch.arange(min(FIRST_TOKENS, len(words)))
    chosen = torch.unique(torch.cat([first, words.argmax(dim=0), words.argmin(dim=0)]))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(words), (SAMPLE_TOKENS,), generator=generator)
    ids = torch.cat([chosen, drawn])[:SAMPLE_TOKENS]
    return ids[torch.randperm(len(ids), generator=generator)]


def pack_layer(layer: nn.Module, of_input: Tensor, of_inner: Tensor, neurons: Tensor) -> Int8Layer:
    """of_input, of_inner (H,), neurons (N,): see input_ranges."""
    part = layer.get_submodule
    query_key_value = [part(f"attention.self.{name}") for name in ("query", "key", "value")]
    attention_to_uint8, projection = pack_smooth(*parameters(*query_key_value), of_input)
    up, up_bias = parameters(part("intermediate.dense"))
    down, down_bias = parameters(part("output.dense"))
    limit, parents, offsets = split_neurons(neurons * NEURON_MARGIN)
    up, up_bias, down = up[parents], up_bias[parents] - offsets, down[:, parents]
    inner_to_uint8, intermediate = pack_smooth(up, up_bias, of_inner)
    lowest = 0.17  # of GELU
    scale = (limit + lowest) / 255
    return Int8Layer(
        attention_to_uint8,
        projection,
        pack(part("attention.output.dense"), dtype=float_dtype()),
        norm(part("attention.output.LayerNorm")),
        inner_to_uint8,
        intermediate,
        scale,
        round(lowest / scale),
        pack_linear(down * scale, down_bias),
        norm(part("output.LayerNorm")),
    )


def float_dtype() -> torch.dtype:
    """Of what is not int8."""
    return torch.bfloat16 if bf16_is_fast() else torch.float32


def pack_smooth(weight: Tensor, bias: Tensor, largest: Tensor) -> tuple[Tensor, Int8Linear]:
    """The factor (H,) that brings the layer's input to +-127, and the layer that takes that.

    largest: absolute values (H,) of the input."""
    share = largest.clamp(min=1e-3) ** SMOOTHING
    share /= weight.abs().amax(dim=0).clamp(min=1e-6) ** (1 - SMOOTHING)
    step = share * ((largest / share).amax() * MARGIN / 127)  # of the input, a number a channel
    return 1 / step, pack_linear(weight * step, bias)


def split_neurons(largest: Tensor) -> tuple[float, Tensor, Tensor]:
    """The least limit M for which neurons (N,) that reach so far are at most N + EXTRA_NEURONS
    pieces of at most M; of each piece its neuron, and what its input is lowered by."""
    low, limit = 0.0, float(largest.max().clamp(min=1e-3))
    for _ in range(30):
        middle = (low + limit) / 2
        pieces = (largest / middle).ceil().clamp(min=1)
        fits = int(pieces.sum()) <= len(largest) + EXTRA_NEURONS
        low, limit = (low, middle) if fits else (middle, limit)
    pieces = (largest / limit).ceil().clamp(min=1).long()
    parents = torch.arange(len(largest)).repeat_interleave(pieces)
    number = torch.arange(len(parents)) - (pieces.cumsum(0) - pieces)[parents]
    return limit, parents, number * limit


def pack_linear(weight: Tensor, bias: Tensor) -> Int8Linear:
    """A weight (outputs, inputs) as int8, with a scale for each output."""
    scales = weight.abs().amax(dim=1).clamp(min=1e-12) / 127
    codes = (weight / scales[:, None]).round().to(torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(codes, None)
    return Int8Linear(packed, scales, torch.zeros(len(codes), dtype=torch.int64), bias)
