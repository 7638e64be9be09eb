"""A step that is not finite is not taken."""

from __future__ import annotations

import pytest
import torch

from minilm_retriever.core.trainer import Trainer
from minilm_retriever.errors import UserError
from minilm_retriever.training import checkpoint, prepare, run
from minilm_retriever.training.run import train
from tests.training.runs import log_rows, run_killed


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_non_finite_step_is_not_taken_and_names_its_rows(config, monkeypatch, tmp_path, what):
    calls, loss = [], Trainer.batch_loss

    def poisoned(self, *args):
        calls.append(1)
        value = loss(self, *args)
        if len(calls) <= 7:
            return value
        # A loss of 0 whose gradient is NaN, or a NaN.
        return (
            value * float("nan") if what == "loss" else (value - value.detach()).clamp(min=0).sqrt()
        )

    monkeypatch.setattr(Trainer, "batch_loss", poisoned)
    with pytest.raises(
        UserError, match=rf"the {what} of step 8 is not finite, so the step was not taken"
    ) as caught:
        train(config())
    rows = next(iter(prepare.prepare(config()).sampler.steps(7, 8)))[0][1]
    assert all(f"pairs.csv:{row + 2}" in str(caught.value) for row in rows)
    assert "step-00000006" in str(caught.value)
    assert checkpoint.latest(tmp_path / "out.run").path.name == "step-00000006"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_non_finite_step_leaves_weights_and_optimizer_as_they_are(config, monkeypatch, precision):
    ready = prepare.prepare(config(precision=precision))
    first, second = ready.batches(0, 2)
    ready.trainer.step(0, first)
    before = checkpoint.optimizer_tensors(ready.base.encoder, ready.trainer.optimizer)
    before |= ready.base.encoder.state_dict()
    before = {name: tensor.clone() for name, tensor in before.items()}
    with monkeypatch.context() as patch:
        loss = Trainer.batch_loss
        patch.setattr(Trainer, "batch_loss", lambda *args: loss(*args) * float("nan"))
        assert ready.trainer.step(1, second).losses.isnan().all()
    after = checkpoint.optimizer_tensors(ready.base.encoder, ready.trainer.optimizer)
    after |= ready.base.encoder.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    ready.trainer.step(1, second)
    assert not torch.equal(
        after["bert.embeddings.LayerNorm.bias"], before["bert.embeddings.LayerNorm.bias"]
    )


def late(self, *args):
    """Callbacks that read losses three steps at a time, as they do 32 on a GPU."""
    INIT(self, *args)
    self.read_every = 3


INIT = run.Callbacks.__init__


def test_losses_that_are_read_late_are_the_same(config, monkeypatch, tmp_path):
    flags = {"log_steps": 5, "eval": config().train[0], "eval_steps": 4}
    train(config(out=str(tmp_path / "whole"), **flags))
    monkeypatch.setattr(run.Callbacks, "__init__", late)
    stopped = config(out=str(tmp_path / "late"), **flags)
    run_killed(stopped, monkeypatch, at_step=7)
    train(stopped)
    rows = [log_rows(tmp_path / name) for name in ("whole", "late")]
    for row in rows[0] + rows[1]:
        row.pop("seconds", None), row.pop("tokens_per_second", None)
    assert rows[0] == rows[1]


def test_a_non_finite_loss_that_is_read_late_names_its_own_step(config, monkeypatch):
    monkeypatch.setattr(run.Callbacks, "__init__", late)
    calls, loss = [], Trainer.batch_loss

    def poisoned(self, batch):
        calls.append(1)
        return loss(self, batch) * (float("nan") if len(calls) == 5 else 1.0)

    monkeypatch.setattr(Trainer, "batch_loss", poisoned)
    with pytest.raises(UserError, match="the loss of step 5 is not finite"):
        train(config(log_steps=100))
    assert len(calls) == 6


def test_too_little_memory_names_the_flags(config, monkeypatch):
    def scarce(self, *args):
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"
        )

    monkeypatch.setattr(Trainer, "batch_loss", scarce)
    with pytest.raises(UserError, match="--gradient-checkpointing.*--batch-size below 8"):
        train(config())
