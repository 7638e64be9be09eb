"""Encoding where only a GPU can show it. `pytest -m gpu` runs these; without one each is skipped
and says so."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from minilm_retriever import Encoder
from minilm_retriever.encoder import encode_texts, packed_batches
from minilm_retriever.kernels import ops, varlen
from minilm_retriever.kernels.fixed_layout import FixedLayout
from tests.test_packed_encoding import some_texts

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use"),
]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_varlen_attention_is_the_padded_one(dtype):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([5, 31, 0, 1, 16])
    layout = FixedLayout.make(lengths.to(DEVICE), 60, 40)
    projected = torch.randn(60, 3 * 384, generator=generator).to(DEVICE, dtype)
    with torch.inference_mode():
        assert varlen.varlen_can_run(projected, 12, 0.0)
        ours = varlen.varlen_attention(projected, layout, 12)[: int(lengths.sum())].float()
        padded = ops.group_attention(projected, layout, 12, 0.0)[: int(lengths.sum())].float()
        exact = ops.group_attention(projected.float(), layout, 12, 0.0)[: int(lengths.sum())]
    assert torch.nn.functional.cosine_similarity(ours, exact).min() > 0.9999
    assert (ours - padded).abs().max() < 0.02


@pytest.mark.parametrize(
    ("precision", "cosine"), [("fp32", 1 - 1e-6), ("tf32", 0.9999), ("fp16", 0.9999)]
)
def test_vectors_are_those_of_a_cpu(tiny_folder, tiny, monkeypatch, precision, cosine):
    texts = ["", *some_texts(300)]
    before = torch.backends.cuda.matmul.fp32_precision
    encoder = Encoder(tiny_folder, device=DEVICE, precision=precision)
    monkeypatch.setattr(encode_texts, "PIECE_TEXTS", 64)
    monkeypatch.setattr(packed_batches, "PIECE_BYTES", 64 * 32 * 4)
    ours, expected = encoder.encode(texts), tiny.encode(texts)
    assert (ours * expected).sum(1).min() > cosine
    if precision == "fp32":
        np.testing.assert_allclose(ours, expected, atol=2e-6)
    assert torch.backends.cuda.matmul.fp32_precision == before
    for _ in range(5):  # from a graph after two
        one = encoder.encode("night river")
        np.testing.assert_allclose(one, encoder.encode(["night river", "soil"])[0], atol=2e-3)
    encoder.model.encoder.to("cpu")


def test_a_batch_that_does_not_fit_is_halved(tiny_folder, tiny, monkeypatch):
    encoder = Encoder(tiny_folder, device=DEVICE)
    texts = some_texts(20_000)
    encoder.encode(texts[:10])
    monkeypatch.setattr(encode_texts, "batch_tokens", lambda *_: 1 << 22)
    monkeypatch.setattr(encode_texts, "PIECE_TEXTS", 1 << 20)
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((256 << 20) / total)
    try:
        with pytest.warns(UserWarning, match="do not fit in memory: halving"):
            ours = encoder.encode(texts)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    np.testing.assert_allclose(ours[:500], tiny.encode(texts[:500]), atol=2e-6)
