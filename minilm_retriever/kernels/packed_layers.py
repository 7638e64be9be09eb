"""A BERT's layers for inference on a CPU: weights prepacked for oneDNN, one function over them all.

Activations and residual sums need no second pass over memory, a few rows run 1.7 times as fast as
plain torch, and a short query does not pay for forty calls of modules. In fp32 the results are the
plain layers' to float32 rounding. In bf16 weights, products and attention are bfloat16, while the
residual sums and LayerNorm stay float32. docs/performance.md says what each part brings."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from minilm_retriever.kernels.ops import ACTIVATIONS, activate, attention, onednn_can_run
from minilm_retriever.kernels.unpadding import Layout

SAMPLED_NUMBERS = 16  # of each parameter, compared at every call

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

Linear = tuple[Tensor, Tensor]  # weight in oneDNN's own layout, bias
Norm = tuple[tuple[int, ...], Tensor, Tensor, float]  # what torch.layer_norm takes


class PackedLayer(NamedTuple):
    """One layer, in order of use."""

    query_key_value: Linear  # side by side
    attention_output: Linear
    attention_norm: Norm
    intermediate: Linear
    output: Linear
    output_norm: Norm


class PackedLayers:
    """All layers, packed at the first call, and again after their weights have changed.

    Packed weights are dropped where the layers are trained or run with gradients, and compared with
    the parameters at each call: identity of modules and memory, torch's count of in-place writes,
    and, since a fused optimizer step or a write through `parameter.data` is not counted, a sample
    of the numbers. Unseen is only an uncounted write that touches no number of the sample."""

    def __init__(
        self,
        layers: nn.ModuleList,
        heads: int,
        activation: str,
        precision: str = "fp32",
    ) -> None:
        self.layers, self.heads, self.activation = layers, heads, activation
        self.precision = precision  # of inference; see processor.lacks_instructions
        self.packed_precision = ""
        self.packed: list[PackedLayer] = []
        self.state: list[tuple[int, int]] = []  # address and count of writes of each parameter
        self.samples: list[Tensor] = []  # views: they also keep the addresses from being reused
        self.sampled = torch.empty(0)  # their numbers when the weights were packed
        # Looked up by name at each call, to see modules and parameters that were replaced.
        modules = list(layers.modules())
        self.slots = [(m._parameters, name) for m in modules for name in m._parameters]
        self.children = [(m._modules, *item) for m in modules for item in m._modules.items()]

    def can_run(self, x: Tensor) -> bool:
        """Whether this is inference on a CPU with oneDNN, of float32 weights; packs them if need
        be. RuntimeError where it is inference in another precision than fp32, but not so."""
        if self.layers.training or torch.is_grad_enabled():
            self.packed = []
            return False
        parameters: list[Any] = [slot.get(name) for slot, name in self.slots]
        if (
            not onednn_can_run(x)
            or any(modules.get(name) is not child for modules, name, child in self.children)
            or any(p is None or p.is_inference() for p in parameters)  # which counts no writes
        ):
            self.packed = []
            if self.precision != "fp32":
                needs = "needs oneDNN, a CPU, and the model's own modules with float32 parameters"
                raise RuntimeError(f"precision {self.precision} {needs}")
            return False
        state = [(p.data_ptr(), p._version) for p in parameters]
        known = self.packed and state == self.state and self.precision == self.packed_precision
        if not known or not torch.cat(self.samples).equal(self.sampled):
            self.packed = [pack_layer(layer, DTYPES[self.precision]) for layer in self.layers]
            self.packed_precision = self.precision
            self.state, self.samples = state, [sample(p) for p in parameters]
            self.sampled = torch.cat(self.samples)
        return True

    def __call__(self, x: Tensor, layout: Layout) -> Tensor:
        """(S, H) -> (S, H), where `can_run`; x may be overwritten."""
        run = run_fp32 if self.packed_precision == "fp32" else run_bf16
        return run(self.packed, x, layout, self.heads, self.activation)

    def __reduce__(self) -> tuple[type[PackedLayers], tuple[Any, ...]]:
        """Copies and pickles hold the layers alone: packed weights are of this machine."""
        return PackedLayers, (self.layers, self.heads, self.activation, self.precision)


def run_fp32(
    layers: list[PackedLayer], x: Tensor, layout: Layout, heads: int, activation: str
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
    layers: list[PackedLayer], x: Tensor, layout: Layout, heads: int, activation: str
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


def sample(parameter: Tensor) -> Tensor:
    """A view of a parameter's first numbers, which lie side by side."""
    row = parameter.detach() if parameter.ndim == 1 else parameter.detach()[0]
    return row[:SAMPLED_NUMBERS]


def pack_layer(layer: nn.Module, dtype: torch.dtype) -> PackedLayer:
    """The weights of a layer with BertLayer's parameter names."""
    part = layer.get_submodule
    query_key_value = (part(f"attention.self.{name}") for name in ("query", "key", "value"))
    return PackedLayer(
        pack(*query_key_value, dtype=dtype),
        pack(part("attention.output.dense"), dtype=dtype),
        norm(part("attention.output.LayerNorm")),
        pack(part("intermediate.dense"), dtype=dtype),
        pack(part("output.dense"), dtype=dtype),
        norm(part("output.LayerNorm")),
    )


def pack(*layers: nn.Module, dtype: torch.dtype) -> Linear:
    """Linear layers side by side."""
    weight = torch.cat([layer.get_parameter("weight") for layer in layers]).detach()
    bias = torch.cat([layer.get_parameter("bias") for layer in layers]).detach()
    return torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype)), bias.to(dtype)


def norm(module: nn.Module) -> Norm:
    assert isinstance(module, nn.LayerNorm)
    return module.normalized_shape, module.weight, module.bias, module.eps
