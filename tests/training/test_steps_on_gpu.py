"""Captured steps where only a GPU can show it. `pytest -m gpu` runs these; without one each is
skipped and says so."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from minilm_retriever.errors import UserError
from minilm_retriever.kernels.graphs import GraphCapture, gpu_settings
from minilm_retriever.training import callbacks, checkpoint, prepare
from minilm_retriever.training.captured_step import CapturedTrainer
from minilm_retriever.training.run import train
from tests.training.captured import capturing, run_and_keep, take_steps
from tests.training.runs import Killed

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
