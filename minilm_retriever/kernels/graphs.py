"""CUDA graphs: a function's kernels recorded once and launched all together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

# Without cuDNN's, which builds a plan, up to a second of it, for every new shape of a batch.
ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
Array = npt.NDArray[np.generic]


class GraphCapture:
    """Captures functions into CUDA graphs that share their memory: one runs at a time, and none
    leaves results but in tensors made before."""

    def __init__(self, mode: str = "global") -> None:
        """mode: which other threads' calls are errors while a graph is captured."""
        self.pool, self.mode = torch.cuda.graph_pool_handle(), mode

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        """A function that does what `run` does, with the tensors that it now reads and writes. Does
        not run it: that must have been done, on the current stream, which is not the default."""
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream()
        with torch.cuda.graph(graph, pool=self.pool, stream=stream, capture_error_mode=self.mode):
            run()
        return graph.replay


@contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """On a GPU a stream that is not the default, for capturing; nothing elsewhere."""
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.current_stream(device)
    stream = torch.cuda.Stream(device)
    stream.wait_stream(before)
    with torch.cuda.stream(stream):
        yield
    before.wait_stream(stream)


def on_host(array: Array, device: torch.device) -> Tensor:
    """The array as a tensor, pinned where that lets a GPU copy it while the host goes on."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if device.type == "cuda" else tensor


def peak_memory(device: torch.device) -> str:
    """What this process took of a GPU's memory at most, in words; empty elsewhere."""
    if device.type != "cuda":
        return ""
    gibibytes = torch.cuda.max_memory_reserved(device) / 2**30
    return f"at most {gibibytes:.2f} GiB of the GPU's memory in use"


@contextmanager
def gpu_settings(
    device: torch.device, precision: str, *, own_stream: bool = False
) -> Iterator[None]:
    """On a GPU, for as long as it lasts: TF32 where that is the precision, attention without cuDNN
    in one of 16 bits, and a stream of its own, on which parameters must be used first if their
    gradients are to be captured. Nothing elsewhere."""
    if device.type != "cuda":
        yield
        return
    with ExitStack() as stack:
        if own_stream:
            stream = torch.cuda.Stream(device)
            stream.wait_stream(torch.cuda.current_stream(device))
            stack.enter_context(torch.cuda.stream(stream))
            stack.callback(stream.synchronize)
        if precision in ("bf16", "fp16"):
            stack.enter_context(sdpa_kernel(ATTENTION))
        if precision == "tf32":
            stack.enter_context(tf32_products())
        yield


@contextmanager
def tf32_products() -> Iterator[None]:
    """Products of float32 numbers on a GPU in TF32. torch keeps that setting twice, and where the
    two differ reading one is an error: only the older name sets both."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    if before == "tf32":
        yield
        return
    matmul.allow_tf32 = True
    try:
        yield
    finally:
        matmul.allow_tf32 = False
        matmul.fp32_precision = before
