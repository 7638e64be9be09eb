"""The tiny model opened once, a folder in memory, and no model at all."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from minilm_retriever import Encoder
from minilm_retriever.encoding.config import EncodeConfig
from minilm_retriever.encoding.encode_files import encode_files
from minilm_retriever.encoding.shard_encoder import Counts, ShardEncoder
from tests.faulty_disk import patch_module


@pytest.fixture(autouse=True)
def opened_once(monkeypatch, tiny, tiny_folder):
    """The tiny model is opened once for all runs; another name is opened as ever."""
    torch.set_num_threads(1)  # faster at this size
    real = Encoder.from_pretrained
    known = str(tiny_folder)
    monkeypatch.setattr(
        Encoder,
        "from_pretrained",
        lambda model, **device: tiny if model == known else real(model, **device),
    )


@pytest.fixture()
def place(monkeypatch) -> Iterator[Path]:
    """A folder in memory to work in: thousands of files come and go."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        monkeypatch.chdir(name)
        yield Path(name)


@pytest.fixture()
def run(place, tiny_folder):
    """encode.py with the tiny model: run(input, ..., out=..., flags)."""
    return lambda *inputs, **flags: encode_files(
        EncodeConfig(inputs=inputs, **{"model": str(tiny_folder), "out": "v", **flags})
    )


@pytest.fixture()
def light(monkeypatch):
    """No model: vectors out of the texts' bytes, for tests of the files alone. What reaches the
    disk plays no role."""

    def float_vectors(self, texts, progress=None):
        vectors = [
            np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8) for text in texts
        ]
        counts = dict.fromkeys(("rows", "distinct", "tokens"), len(texts))
        rows = np.stack(vectors).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True), Counts(counts)

    monkeypatch.setattr(ShardEncoder, "float_vectors", float_vectors)
    patch_module(monkeypatch, "os", fsync=os.fstat)
