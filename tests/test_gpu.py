"""What only a GPU can show. `pytest -m gpu` runs these; without one each is skipped and says so."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from minilm_retriever import Encoder, UserError
from minilm_retriever.encoder import encode_texts, packed_batches
from minilm_retriever.kernels import ops, varlen
from minilm_retriever.kernels.fixed_layout import FixedLayout
from minilm_retriever.kernels.graphs import GraphCapture, gpu_settings
from minilm_retriever.training import callbacks, checkpoint, prepare
from minilm_retriever.training.captured_step import CapturedTrainer
from minilm_retriever.training.run import train
from tests.test_captured_step import Killed, capturing, config, run_and_keep, take_steps
from tests.test_gpu_encoding import some_texts

__all__ = ["config"]  # a fixture
DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use"),
]


def steps_on_gpu(settings, monkeypatch, capture):
    """take_steps() on a stream of its own, as a run does it."""
    with gpu_settings(torch.device(DEVICE), settings.precision, own_stream=True):
        return take_steps(settings, monkeypatch, capturing(capture))


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_replayed_steps_are_the_launched_ones_to_the_bit(config, monkeypatch, precision, dropout):
    settings = config(device=DEVICE, epochs=6, dropout=dropout, precision=precision)
    replayed, weights, run = steps_on_gpu(settings, monkeypatch, GraphCapture())
    assert run.trainer.graphs and run.trainer.capture is not None
    launched, other, _ = steps_on_gpu(settings, monkeypatch, None)
    assert np.abs(replayed - launched).max() == 0.0
    assert all(weights[key].equal(other[key]) for key in weights)


def test_steps_are_those_of_a_cpu(config, monkeypatch):
    ours, _, _ = steps_on_gpu(config(device=DEVICE, dropout=0.0), monkeypatch, GraphCapture())
    expected, _, _ = take_steps(config(dropout=0.0), monkeypatch, prepare.make_trainer)
    assert np.abs(ours - expected)[0].max() < 1e-4 and np.abs(ours - expected).max() < 1e-2


def test_bf16_is_near_fp32(config, monkeypatch):
    settings = config(device=DEVICE, dropout=0.0)
    expected, _, _ = steps_on_gpu(settings, monkeypatch, GraphCapture())
    lower = config(device=DEVICE, dropout=0.0, precision="bf16")
    ours, _, _ = steps_on_gpu(lower, monkeypatch, GraphCapture())
    assert np.abs(ours[:, 0] - expected[:, 0]).max() < 0.05


def test_a_run_captures_by_itself_and_goes_on_to_the_same_bits(config, tmp_path, monkeypatch):
    whole = config(device=DEVICE, epochs=4, out=str(tmp_path / "whole"))
    (name, expected), losses = run_and_keep(whole, monkeypatch)
    settings = config(device=DEVICE, epochs=4, out=str(tmp_path / "killed"))
    save = checkpoint.save

    def save_and_die(run, trainer, position, keep):
        assert isinstance(trainer, CapturedTrainer)
        save(run, trainer, position, keep)
        raise Killed

    for _ in range(3):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(checkpoint, "save", save_and_die)
            train(settings)
    (last, tensors), resumed = run_and_keep(settings, monkeypatch)
    assert last == name and resumed == losses
    for ours, theirs in zip(tensors, expected, strict=True):
        assert all(ours[key].equal(theirs[key]) for key in theirs)


def test_a_step_that_is_not_finite_is_not_taken_in_a_graph_either(config, monkeypatch):
    monkeypatch.setattr(callbacks, "READ_EVERY", 4)
    settings = config(device=DEVICE, epochs=6, dropout=0.0, log_steps=100, save_steps=100)
    make = prepare.make_trainer

    def poisoned(*given):
        trainer = make(*given)
        loss = trainer.loss
        trainer.loss = lambda vectors, rows: (
            loss(vectors, rows) * torch.where(trainer.number[0] == 20, torch.inf, 1.0)
        )
        return trainer

    monkeypatch.setattr(prepare, "make_trainer", poisoned)
    with pytest.raises(UserError, match="the loss of step 21 is not finite"):
        train(settings)


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
