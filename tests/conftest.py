"""What many tests share: the tiny BERT for structure, the real weights for truth."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from minilm_retriever import Encoder
from tests.tiny import make_tiny_bert

REFERENCE = Path(__file__).parent / "reference"
ROOT = Path(__file__).parent.parent
THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))
BASE = ROOT / "checkpoints" / "all-MiniLM-L6-v2"


@pytest.fixture(autouse=True)
def two_threads():
    """Bit-identical results need a fixed number of threads; some tests set another."""
    torch.set_num_threads(THREADS)


@pytest.fixture(scope="session")
def base_model() -> Path:
    """The folder of the real weights."""
    if not (BASE / "model.safetensors").exists():
        pytest.fail("the base model is missing: run `minilm-retriever fetch` (make test does)")
    return BASE


@pytest.fixture(scope="session")
def base(base_model) -> Encoder:
    """The real model on the CPU. Tests must not change it."""
    return Encoder.from_pretrained(base_model, device="cpu")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A tiny random BERT's folder. Tests must not change it: see `tiny_copy`."""
    return make_tiny_bert(tmp_path_factory.mktemp("tiny") / "tiny-bert")


@pytest.fixture()
def tiny_copy(tiny_folder, tmp_path) -> Path:
    """A tiny BERT's folder that a test may damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


@pytest.fixture(scope="session")
def tiny(tiny_folder) -> Encoder:
    """The tiny BERT opened. Tests must not change it."""
    return Encoder.from_pretrained(tiny_folder, device="cpu")


@pytest.fixture(scope="session")
def reference_texts() -> list[str]:
    """The texts of tests/reference: empty, Unicode, control characters, 1 to 2,000 words, ..."""
    texts = json.loads((REFERENCE / "texts.json").read_text("utf-8"))
    return [text["text"] for text in texts]


@pytest.fixture(scope="session")
def reference_embeddings() -> np.ndarray:
    """What sentence-transformers 6.2.0 makes of them, (N, 384)."""
    return np.load(REFERENCE / "embeddings.npz", allow_pickle=False)["embeddings"]
