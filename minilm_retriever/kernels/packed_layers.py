"""The door to packed inference: which precision runs, and when weights are packed anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from minilm_retriever.kernels.fixed_layout import FixedLayout
from minilm_retriever.kernels.float_layers import pack_layer, run_bf16, run_fp16, run_fp32
from minilm_retriever.kernels.int8_layers import pack_int8, run_int8
from minilm_retriever.kernels.ops import onednn_can_run
from minilm_retriever.kernels.unpadding import Layout

SAMPLED_NUMBERS = 16  # of each parameter, compared at every call
RUN: dict[str, Callable[..., Tensor]] = {
    "fp32": run_fp32,
    "fp16": run_fp16,
    "bf16": run_bf16,
    "int8": run_int8,
}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Packed(NamedTuple):
    """Layers as they were packed, and what tells whether the parameters have changed since."""

    layers: list[Any]
    precision: str
    state: list[tuple[int, int]]  # address and count of writes of each parameter
    samples: list[Tensor]  # views: they also keep the addresses from being reused
    sampled: Tensor  # their numbers when the weights were packed


class PackedLayers:
    """All layers, packed at the first call, and again after their weights have changed.

    Packed weights are dropped where the layers are trained or run with gradients, and compared with
    the parameters at each call: identity of modules and memory, torch's count of in-place writes,
    and, since a fused optimizer step or a write through `parameter.data` is not counted, a sample
    of the numbers. Unseen is only an uncounted write that touches no number of the sample. Threads
    may share one: what was packed is replaced as a whole, never changed."""

    def __init__(
        self,
        layers: nn.ModuleList,
        embeddings: nn.Module,
        heads: int,
        activation: str,
        precision: str = "fp32",
    ) -> None:
        self.layers, self.embeddings = layers, embeddings
        self.heads, self.activation = heads, activation
        self.precision = precision  # of inference; see processor.lacks_instructions
        self.packed: Packed | None = None
        self.graphs: Any = None  # of short queries on a GPU
        # Looked up by name at each call, to see modules and parameters that were replaced.
        modules = list(layers.modules())
        self.slots = [(m._parameters, name) for m in modules for name in m._parameters]
        self.children = [(m._modules, *item) for m in modules for item in m._modules.items()]

    def ready(self, x: Tensor) -> Packed | None:
        """The packed layers where this is inference on a CPU with oneDNN, of float32 weights, or
        on a GPU in fp16. RuntimeError where it is inference in another precision, but not so."""
        if torch.compiler.is_compiling():
            return None
        if self.layers.training or torch.is_grad_enabled():
            self.packed = None
            return None
        on_gpu = x.is_cuda and self.precision in ("fp32", "tf32", "fp16")
        if on_gpu and self.precision != "fp16":
            return None
        parameters: list[Any] = [slot.get(name) for slot, name in self.slots]
        if (
            not (on_gpu or onednn_can_run(x))
            or (self.precision in ("tf32", "fp16") and not on_gpu)
            or any(modules.get(name) is not child for modules, name, child in self.children)
            or any(p is None or p.is_inference() for p in parameters)  # which counts no writes
        ):
            self.packed = None
            if self.precision != "fp32":
                where = "a GPU" if self.precision in ("tf32", "fp16") else "oneDNN, a CPU"
                needs = f"needs {where}, and the model's own modules with float32 parameters"
                raise RuntimeError(f"precision {self.precision} {needs}")
            return None
        if on_gpu:  # packing takes less of a batch than a look at whether weights have changed
            return Packed(self.pack("fp16"), "fp16", [], [], torch.empty(0))
        state, precision = [(p.data_ptr(), p._version) for p in parameters], self.precision
        packed = self.packed
        if (
            packed is None
            or (state, precision) != (packed.state, packed.precision)
            or not torch.cat(packed.samples).equal(packed.sampled)
        ):
            samples = [sample(p) for p in parameters]
            packed = Packed(self.pack(precision), precision, state, samples, torch.cat(samples))
            self.packed = packed
        return packed

    def pack(self, precision: str) -> list[Any]:
        if precision == "int8":
            return pack_int8(self.layers, self.embeddings)
        return [pack_layer(layer, DTYPES[precision]) for layer in self.layers]

    def run(self, packed: Packed, x: Tensor, layout: Layout | FixedLayout) -> Tensor:
        """(S, H) -> (S, H), by what `ready` gave; x may be overwritten."""
        return RUN[packed.precision](packed.layers, x, layout, self.heads, self.activation)

    def __reduce__(self) -> tuple[type[PackedLayers], tuple[Any, ...]]:
        """Copies and pickles hold the modules alone: packed weights are of this machine."""
        parts = (self.layers, self.embeddings, self.heads, self.activation)
        return PackedLayers, (*parts, self.precision)


def sample(parameter: Tensor) -> Tensor:
    """A view of a parameter's first numbers, which lie side by side."""
    row = parameter.detach() if parameter.ndim == 1 else parameter.detach()[0]
    return row[:SAMPLED_NUMBERS]
