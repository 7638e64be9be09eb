"""What onnxruntime makes of a file, beside the model's own vectors.

Shapes: N texts, B of a batch, T tokens of its longest, H numbers of a vector."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minilm_retriever.errors import require
from minilm_retriever.evaluation.general import read_sentences
from minilm_retriever.exporting.onnx_graph import INPUTS, TextVectors
from minilm_retriever.pretrained.tokenizer import TextTokenizer

EVERY, BATCH_ROWS = 3, 16  # of the package's sentences
Batch = tuple[Tensor, Tensor]  # ids and mask, (B, T) each


@dataclass(frozen=True)
class Loss:
    """How a file's vectors differ from the model's own."""

    file: str
    megabytes: float
    difference: float  # the largest, of a number
    mean: float  # cosine
    worst: float  # cosine
    over: str

    def __str__(self) -> str:
        return (
            f"{self.file}: {self.megabytes:.1f} MB; numbers differ by at most "
            f"{self.difference:.1e}, cosine {self.mean:.5f}, at worst {self.worst:.5f}, {self.over}"
        )


def sample_batches(tokenizer: TextTokenizer) -> list[Batch]:
    """A third of the package's sentences, and up to 32 of them end to end."""
    sentences = read_sentences(None)[::EVERY]
    joined = [" ".join(sentences[: 2**power]) for power in range(1, 6)]
    tokens = tokenizer.tokenize(["", *sentences, *joined])
    rows = np.argsort(tokens.lengths, kind="stable")
    starts = range(0, len(rows), BATCH_ROWS)
    return [tokens.batch(rows[start : start + BATCH_ROWS]) for start in starts]


@torch.inference_mode()
def compare(path: Path, own: TextVectors, batches: list[Batch]) -> Loss:
    """Run a file on onnxruntime's CPU provider, and the model, over the same batches."""
    onnxruntime = require("onnxruntime", "onnx", "export")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    theirs = np.concatenate([run(session, batch) for batch in batches])  # (N, H)
    ours = np.concatenate([own(*batch).numpy() for batch in batches])
    lengths = np.linalg.norm(theirs, axis=1) * np.linalg.norm(ours, axis=1)
    cosines = (theirs * ours).sum(axis=1) / np.maximum(lengths, 1e-12)
    longest = max(ids.shape[1] for ids, _ in batches)
    return Loss(
        path.name,
        path.stat().st_size / 1e6,
        float(np.abs(theirs - ours).max()),
        float(cosines.mean()),
        float(cosines.min()),
        f"over {len(ours)} texts of up to {longest} tokens",
    )


def run(session: Any, batch: Batch) -> Any:
    """(B, H) of an onnxruntime session."""
    return session.run(None, {n: part.numpy() for n, part in zip(INPUTS, batch, strict=True)})[0]
