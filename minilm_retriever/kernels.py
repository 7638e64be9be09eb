"""The few operations that are faster on a CPU when written for it; everywhere else, plain torch. Torch only.

Each gives the plain operation's numbers to float32 rounding (dropout: its distribution); docs/performance.md says what
each brings.
"""

from __future__ import annotations

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

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

optimizer_steps = 0  # of all optimizers: fused ones write to parameters without raising their version


def count_step(*_: object) -> None:
    """After any optimizer's step, weights laid out before it are out of date."""
    global optimizer_steps
    optimizer_steps += 1


register_optimizer_step_post_hook(count_step)


class FusedLinear:
    """One nn.Linear, or several side by side, together with the activation or the residual sum that follows.

    Plain torch where gradients are needed or on a GPU. Else oneDNN, with weights laid out for its kernels at the first
    call, and again after any change to them: the activation or the sum costs no second pass over memory, and a few
    rows run 1.7 times as fast.
    """

    def __init__(self, *layers: nn.Linear, activation: str | None = None) -> None:
        self.layers = layers
        self.activation = activation
        self.packed: tuple[Tensor, Tensor] | None = None  # weight in oneDNN's layout, bias
        self.packed_from: list[Tensor] = []  # the parameters that it was made of
        self.packed_state: list[object] = []  # and their state then

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x (S, inputs), residual (S, outputs) -> (S, outputs)."""
        if self.can_pack(x):
            weight, bias = self.packed_weights()
            if residual is not None:
                return torch.ops.mkldnn._linear_pointwise.binary(x, residual, weight, bias, "add")  # type: ignore[no-any-return]
            kind, form = self.onednn_activation()
            return torch.ops.mkldnn._linear_pointwise(x, weight, bias, kind, [], form)  # type: ignore[no-any-return]
        y = F.linear(x, *self.side_by_side())
        if self.activation is not None:
            approximate = ACTIVATIONS[self.activation]
            y = F.relu(y) if approximate is None else F.gelu(y, approximate=approximate)
        return y if residual is None else y + residual

    def can_pack(self, x: Tensor) -> bool:
        """Whether this is float32 inference on a CPU that has oneDNN."""
        return (
            ONEDNN
            and x.device.type == "cpu"
            and x.dtype == torch.float32
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and not self.layers[0].weight.is_inference()  # such tensors do not count what is written to them
        )

    def side_by_side(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the layers, one under the other."""
        if len(self.layers) == 1:
            return self.layers[0].weight, self.layers[0].bias
        return torch.cat([layer.weight for layer in self.layers]), torch.cat([layer.bias for layer in self.layers])

    def packed_weights(self) -> tuple[Tensor, Tensor]:
        """Weight in oneDNN's layout, and bias; made anew where a parameter was replaced or written to.

        Only a write through `parameter.data` goes unseen, as it does by autograd.
        """
        now = [p for layer in self.layers for p in (layer.weight, layer.bias)]
        state = [optimizer_steps, *((p.data_ptr(), p._version) for p in now)]
        if self.packed is None or state != self.packed_state:
            weight, bias = self.side_by_side()
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach()), bias.detach()
            self.packed_state = state
            self.packed_from = [p.detach() for p in now]  # keeps an address from being given to another tensor
        return self.packed

    def onednn_activation(self) -> tuple[str, str]:
        """What oneDNN calls the activation."""
        if self.activation is None:
            return "none", ""
        form = ACTIVATIONS[self.activation]
        return ("relu", "") if form is None else ("gelu", form)

    def __deepcopy__(self, memo: dict[int, object]) -> FusedLinear:
        """Of the copied layers, with nothing packed."""
        return FusedLinear(*deepcopy(self.layers, memo), activation=self.activation)

    def __getstate__(self) -> dict[str, object]:
        """Packed weights are of this process and machine."""
        return {**vars(self), "packed": None, "packed_from": [], "packed_state": []}


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
