"""Schedule, decay, accumulation, clipping, precision: what a step does."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file

from minilm_retriever.core.model import Embedding
from minilm_retriever.core.trainer import Hyperparameters, linear_schedule
from minilm_retriever.errors import UserError
from minilm_retriever.kernels import processor
from minilm_retriever.training import checkpoint, prepare
from minilm_retriever.training.run import train
from minilm_retriever.training.sparse_embedding import SparseEmbedding

LACKS_BF16 = processor.lacks_instructions("bf16")


def test_the_learning_rate_is_transformers_linear_schedule():
    transformers = pytest.importorskip("transformers")
    for warmup, total in ((0, 50), (10, 50), (60, 50)):
        parameter = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.AdamW([parameter], lr=2e-5)
        schedule = transformers.get_linear_schedule_with_warmup(optimizer, warmup, total)
        settings = Hyperparameters(total, learning_rate=2e-5, warmup_steps=warmup)
        for step in range(total):
            ours = linear_schedule(step, settings)
            assert math.isclose(ours, optimizer.param_groups[0]["lr"], rel_tol=1e-12, abs_tol=1e-20)
            optimizer.step()
            schedule.step()


def test_biases_and_layer_norms_do_not_decay(config):
    trainer = prepare.prepare(config(weight_decay=0.1)).trainer
    names = {parameter: name for name, parameter in trainer.encoder.named_parameters()}
    decayed, spared = (
        {names[p] for p in group["params"]} for group in trainer.optimizer.param_groups
    )
    assert all("bias" in name or "LayerNorm" in name for name in spared)
    assert not any("bias" in name or "LayerNorm" in name for name in decayed)
    assert "bert.embeddings.word_embeddings.weight" in decayed
    assert trainer.optimizer.param_groups[0]["weight_decay"] == 0.1


def test_accumulated_gradients_are_those_of_the_mean(config):
    """Two batches at once give the gradient of the mean of their losses."""
    ready = prepare.prepare(
        config(dropout=0.0, gradient_accumulation_steps=2, max_grad_norm=1e9, learning_rate=0.0)
    )
    (batches,), trainer = ready.batches(0, 1), ready.trainer
    trainer.encoder.train()
    losses = [trainer.batch_loss(batch) for batch in batches]
    (sum(losses) / 2).backward()
    expected = {
        n: p.grad.clone() for n, p in trainer.encoder.named_parameters() if p.grad is not None
    }
    trainer.optimizer.zero_grad()
    seen = {}
    trainer.optimizer.register_step_pre_hook(
        lambda *a: seen.update(
            {n: p.grad.clone() for n, p in trainer.encoder.named_parameters() if p.grad is not None}
        )
    )
    trainer.step(0, batches)
    for name, gradient in expected.items():
        torch.testing.assert_close(seen[name], gradient, atol=1e-6, rtol=1e-4)


def test_gradients_are_clipped_at_one(config):
    ready = prepare.prepare(config(scale=1000.0, learning_rate=0.0))
    trainer = ready.trainer
    norms = []
    trainer.optimizer.register_step_pre_hook(
        lambda *a: norms.append(
            float(
                torch.stack(
                    [p.grad.norm() for p in trainer.parameters if p.grad is not None]
                ).norm()
            )
        )
    )
    step = trainer.step(0, *ready.batches(0, 1))
    assert step.gradient_norm > 1
    assert norms[0] == pytest.approx(1.0, abs=1e-4)


@pytest.mark.skipif(bool(LACKS_BF16), reason=f"this processor lacks {LACKS_BF16}")
def test_bf16_trains(config, tmp_path):
    assert train(config(precision="bf16", max_steps=2)) == 0
    assert all(
        t.dtype == torch.float32 for t in load_file(tmp_path / "out/model.safetensors").values()
    )


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_precision_that_would_be_slower_is_refused(config, precision, monkeypatch, tmp_path):
    monkeypatch.setattr(processor, "bf16_is_fast", lambda: False)
    slower = "bf16 would be slower .* lacks AMX-BF16 .*: choose fp32|fp16 is for a GPU"
    with pytest.raises(UserError, match=f"precision ({slower})"):
        train(config(model="no such model", precision=precision))  # before a model is read
    assert not (tmp_path / "out.run").exists()


def steps_of(config, count=6, *, learn_all):
    """A trainer after some steps; learn_all: the whole table of word vectors takes part."""
    with pytest.MonkeyPatch.context() as patch:
        if learn_all:
            patch.setattr(prepare, "train_used_words", lambda *_: None)
        ready = prepare.prepare(config)
    for number, batches in enumerate(ready.batches(0, count)):
        ready.trainer.step(number, batches)
    return ready.trainer


def test_rows_of_words_that_no_text_has_need_no_optimizer(config):
    """A table of the rows in use alone learns the same bits, where clipping does not sum in another
    order."""
    unclipped = config(max_grad_norm=1e9)
    whole, small = (steps_of(unclipped, learn_all=learn_all) for learn_all in (True, False))
    tables = [trainer.encoder.bert.embeddings.word_embeddings for trainer in (whole, small)]
    assert type(tables[0]) is Embedding and type(tables[1]) is SparseEmbedding
    assert 0 < len(tables[1].learned) < len(tables[1].weight) / 2
    states = [trainer.encoder.state_dict() for trainer in (whole, small)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    moved = (states[1]["bert.embeddings.word_embeddings.weight"] != whole_base(unclipped)).any(
        dim=1
    )
    assert torch.equal(moved.nonzero()[:, 0], tables[1].rows.sort().values)
    clipped = [
        steps_of(config(), learn_all=learn_all).encoder.state_dict() for learn_all in (True, False)
    ]
    for name in clipped[0]:
        torch.testing.assert_close(clipped[0][name], clipped[1][name], atol=2e-6, rtol=0)
    moments = checkpoint.optimizer_tensors(small.encoder, small.optimizer)
    assert (
        moments["exp_avg/bert.embeddings.word_embeddings.learned"].shape == tables[1].learned.shape
    )


def whole_base(config):
    """The base model's table of word vectors."""
    return load_file(f"{config.model}/model.safetensors")["embeddings.word_embeddings.weight"]


def test_all_rows_learn_where_weights_decay(config):
    trainer = steps_of(config(weight_decay=0.01), 1, learn_all=False)
    assert type(trainer.encoder.bert.embeddings.word_embeddings) is Embedding
