"""A model's computation as an ONNX graph, and that with its weights in int8.

Shapes: B texts, T tokens of the longest, H numbers of a vector."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from minilm_retriever.core.model import SentenceEncoder, l2_normalize
from minilm_retriever.errors import require

OPSET = 18  # of 2022: older runtimes read it too
INPUTS, OUTPUT = ("input_ids", "attention_mask"), "sentence_embedding"
QUANTIZED = ["MatMul", "Gather"]  # layers, and the table of words
FOLDED_BYTES = 1 << 30  # constants up to this size are computed at the export


class TextVectors(nn.Module):
    """An encoder and the leading numbers of its vectors that are kept, as `encode --dimensions`."""

    def __init__(self, encoder: SentenceEncoder, dimensions: int | None) -> None:
        super().__init__()
        self.encoder, self.width = encoder, dimensions or encoder.kept
        is_unit = encoder.normalize and encoder.kept == encoder.dimension
        self.scale = is_unit and self.width < encoder.kept

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """input_ids, attention_mask (B, T) int64 -> (B, H) float32."""
        vectors: Tensor = self.encoder(input_ids, attention_mask)[:, : self.width]
        return l2_normalize(vectors) if self.scale else vectors


def trace(module: TextVectors) -> Any:
    """The graph as onnx.ModelProto, of any B and T; needs the extra [onnx]."""
    optimizer = require("onnxscript.optimizer", "onnx", "export").optimizer
    bert = module.encoder.bert
    axes = {0: Dim("batch"), 1: Dim("length", max=bert.config.max_position_embeddings)}
    ids = torch.zeros(2, 3, dtype=torch.int64)
    with torch.no_grad(), quiet():
        program: Any = torch.onnx.export(
            module,
            (ids, torch.ones_like(ids)),
            input_names=INPUTS,
            output_names=[OUTPUT],
            dynamic_shapes=(axes, axes),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
        optimizer.optimize(
            program.model, input_size_limit=FOLDED_BYTES, output_size_limit=FOLDED_BYTES
        )
    return program.model_proto


def quantize(graph: Any, path: Path) -> None:
    """Write a graph whose weights are int8, a scale for each output of a layer (one for all would
    cost five times as much); what they multiply is quantised as it comes."""
    quantization = require("onnxruntime.quantization", "onnx", "export").quantization
    with quiet():
        quantization.quantize_dynamic(graph, path, op_types_to_quantize=QUANTIZED, per_channel=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Without what the exporter says of itself."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
