"""A BERT's layers on a CPU without gradients: weights laid out once for oneDNN, and one straight
function over them.

The activation and the residual sums cost no second pass over memory, a few rows run 1.7 times as
fast as plain torch, and a short query does not pay for forty calls of modules. It gives the plain
layers' numbers to float32 rounding, and stands back wherever it cannot (see can_run).
docs/performance.md says what each part brings. Torch only."""

from __future__ import annotations

from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from minilm_retriever.kernels.ops import ACTIVATIONS, ONEDNN, attention
from minilm_retriever.kernels.unpadding import Layout

optimizer_steps = (
    0  # of all optimizers: fused ones write to parameters without raising their version
)


def count_step(*_: object) -> None:
    """After any optimizer's step, weights laid out before it are out of date."""
    global optimizer_steps
    optimizer_steps += 1


register_optimizer_step_post_hook(count_step)


class Packed(NamedTuple):
    """A linear layer, or several side by side."""

    weight: Tensor  # in oneDNN's layout
    bias: Tensor


class PackedLayer(NamedTuple):
    """One layer, in the order of its use."""

    projection: Packed  # query, key and value side by side
    mixed: Packed
    first_norm: nn.LayerNorm
    expand: Packed
    contract: Packed
    second_norm: nn.LayerNorm


class PackedLayers:
    """All layers, laid out at the first call, and again after any change to their weights."""

    def __init__(self, layers: nn.ModuleList, heads: int, activation: str) -> None:
        self.layers, self.heads, self.activation = layers, heads, activation
        self.packed: list[PackedLayer] = []
        self.made_of: list[Tensor] = []  # keeps an address from being given to another tensor
        self.state: list[object] = []  # of these parameters then
        # Where parameters and modules are found again, also those that were put in place of others
        # since.
        self.slots = [
            (module._parameters, name) for module in layers.modules() for name in module._parameters
        ]
        self.children = [
            (module._modules, name, child)
            for module in layers.modules()
            for name, child in module._modules.items()
        ]

    def can_run(self, x: Tensor) -> bool:
        """Whether this is float32 inference on a CPU that has oneDNN, of the modules that we
        know."""
        return (
            ONEDNN
            and x.device.type == "cpu"
            and x.dtype == torch.float32
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and all(modules.get(name) is child for modules, name, child in self.children)
            and not any(
                p is None or p.is_inference() for p in self.parameters()
            )  # such do not count writes to them
        )

    def parameters(self) -> list[Tensor | None]:
        """The parameters as they stand now."""
        return [parameters.get(name) for parameters, name in self.slots]

    def __call__(self, x: Tensor, layout: Layout) -> Tensor:
        """(S, H) -> (S, H)."""
        linear, linear_and_sum = (
            torch.ops.mkldnn._linear_pointwise.default,
            torch.ops.mkldnn._linear_pointwise.binary,
        )
        kind, form = onednn_activation(self.activation)
        for layer in self.up_to_date():
            projected = linear(x, *layer.projection, "none", [], "")  # (S, 3H)
            x = norm(
                linear_and_sum(attention(projected, layout, self.heads), x, *layer.mixed, "add"),
                layer.first_norm,
            )
            inner = linear(x, *layer.expand, kind, [], form)
            x = norm(linear_and_sum(inner, x, *layer.contract, "add"), layer.second_norm)
        return x

    def up_to_date(self) -> list[PackedLayer]:
        """The layers, laid out anew where a parameter was replaced or written to.

        Only a write through `parameter.data` goes unseen, as it does by autograd.
        """
        now = [p for p in self.parameters() if p is not None]
        state = [optimizer_steps, *((p.data_ptr(), p._version) for p in now)]
        if state != self.state:
            self.packed = [pack_layer(layer) for layer in self.layers]
            self.state, self.made_of = state, [p.detach() for p in now]
        return self.packed

    def __deepcopy__(self, memo: dict[int, object]) -> PackedLayers:
        """Of the copied layers, with nothing packed."""
        return PackedLayers(deepcopy(self.layers, memo), self.heads, self.activation)

    def __reduce__(self) -> tuple[type[PackedLayers], tuple[nn.ModuleList, int, str]]:
        """Packed weights are of this process and machine."""
        return PackedLayers, (self.layers, self.heads, self.activation)


def pack_layer(layer: nn.Module) -> PackedLayer:
    """The weights of a model.Layer."""
    attention, output = layer.get_submodule("attention"), layer.get_submodule("output")
    query_key_value = [
        attention.get_submodule(f"self.{name}") for name in ("query", "key", "value")
    ]
    return PackedLayer(
        pack(*query_key_value),
        pack(attention.get_submodule("output.dense")),
        as_norm(attention.get_submodule("output.LayerNorm")),
        pack(layer.get_submodule("intermediate.dense")),
        pack(output.get_submodule("dense")),
        as_norm(output.get_submodule("LayerNorm")),
    )


def pack(*layers: nn.Module) -> Packed:
    """Linear layers side by side."""
    weight = torch.cat([layer.get_parameter("weight") for layer in layers]).detach()
    bias = torch.cat([layer.get_parameter("bias") for layer in layers]).detach()
    return Packed(torch.ops.mkldnn._reorder_linear_weight(weight), bias)


def as_norm(module: nn.Module) -> nn.LayerNorm:
    """The module, which is one."""
    assert isinstance(module, nn.LayerNorm)
    return module


def norm(x: Tensor, module: nn.LayerNorm) -> Tensor:
    """x normalised, without the detour through the module's call."""
    return torch.layer_norm(x, module.normalized_shape, module.weight, module.bias, module.eps)


def onednn_activation(activation: str) -> tuple[str, str]:
    """What oneDNN calls it."""
    form = ACTIVATIONS[activation]
    return ("relu", "") if form is None else ("gelu", form)
