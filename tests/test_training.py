"""training/run.py: exact resume wherever a run was stopped, refusals, schedule, early stopping,
what is published."""

from __future__ import annotations

import csv
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from minilm_retriever import Encoder
from minilm_retriever.core.model import Embedding
from minilm_retriever.core.trainer import Hyperparameters, Trainer, linear_schedule
from minilm_retriever.distributed import Ranks
from minilm_retriever.errors import UserError
from minilm_retriever.kernels import processor
from minilm_retriever.storage import tensors
from minilm_retriever.training import checkpoint, prepare, run
from minilm_retriever.training.config import TrainConfig
from minilm_retriever.training.run import train
from minilm_retriever.training.sparse_embedding import SparseEmbedding
from minilm_retriever.training.validation import Validation
from tests.conftest import THREADS

LACKS_BF16 = processor.lacks_instructions("bf16")
NOUNS = "data nurse cook engine river soil music night bread glass horse code paper metal".split()
NOUNS += ["forest", "child"]


class Killed(BaseException):
    """What a test raises where a process would die."""


def write_pairs(path, rows, start=0):
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(("sentence_0", "sentence_1"))
        for i in range(start, start + rows):
            words = [NOUNS[(i * k + k) % len(NOUNS)] for k in (1, 3, 5, 7)]
            out.writerow(
                (f"works with {' and '.join(words[:2])} {i}", f"{words[2]}, {words[3]} number {i}")
            )
    return str(path)


@pytest.fixture()
def config(tiny_folder, tmp_path):
    """A small run: 42 rows in batches of 8, the last of 2."""
    defaults = {
        "train": (write_pairs(tmp_path / "pairs.csv", 42),),
        "model": str(tiny_folder),
        "out": str(tmp_path / "out"),
        "batch_size": 8,
        "epochs": 2,
        "log_steps": 1,
        "save_steps": 3,
        "device": "cpu",
    }
    return lambda **changes: TrainConfig(**{**defaults, **changes})


def end_of(config, monkeypatch):
    """Weights, optimizer and loss log at the end of a run."""
    tensors_at_end = {}
    save = checkpoint.save_state

    def keep(run, encoder, optimizer, position):
        tensors_at_end.update(checkpoint.optimizer_tensors(encoder, optimizer))
        return save(run, encoder, optimizer, position)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_state", keep)
        assert train(config) == 0
    rows = log_rows(config.out)
    losses = [(row["step"], row["loss"], row["learning_rate"]) for row in rows if "loss" in row]
    return (
        load_file(f"{config.out}/model.safetensors"),
        {n: t.clone() for n, t in tensors_at_end.items()},
        losses,
    )


def log_rows(out):
    return [
        json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text("utf-8").splitlines()
    ]


def run_killed(config, monkeypatch, *, at_step=None, at_batch=None, in_save=None):
    """Run until it dies: before a step, inside one after some batches, or inside the writing of a
    state."""
    with monkeypatch.context() as patch:
        if at_step is not None:
            step = Trainer.step

            def dying(self, number, batches):
                if number == at_step:
                    raise Killed
                return step(self, number, batches)

            patch.setattr(Trainer, "step", dying)
        if at_batch is not None:
            seen, loss = [], Trainer.batch_loss

            def dying_inside(self, *args):
                seen.append(1)
                if len(seen) > at_batch:
                    raise Killed
                return loss(self, *args)

            patch.setattr(Trainer, "batch_loss", dying_inside)
        if in_save is not None:
            saves, write = [], tensors.save_tensors

            def dying_save(path, tensors):
                saves.append(path)
                if len(saves) > in_save:
                    raise Killed
                write(path, tensors)

            patch.setattr(checkpoint, "save_tensors", dying_save)
        with pytest.raises(Killed):
            train(config)


def same(a, b):
    weights, optimizer, losses = zip(a, b, strict=True)
    for x, y in (weights, optimizer):
        assert x.keys() == y.keys()
        assert all(torch.equal(x[name], y[name]) for name in x)
    assert losses[0] == losses[1]


# 12 steps an undisturbed run: 6 batches an epoch. With accumulation 4 an epoch is 2 steps, of 4 and
# of 2 batches.
STOPS = [
    *({"at_step": step, "changes": {}} for step in range(12)),  # mid-epoch and at an epoch's end
    *({"at_step": step, "changes": {"save_steps": 1}} for step in range(1, 12)),
    *({"at_step": step, "changes": {"save_steps": 2, "keep": 1}} for step in range(1, 12, 2)),
    *(
        {
            "at_batch": batch,
            "changes": {"gradient_accumulation_steps": 4, "save_steps": 1, "epochs": 3},
        }
        for batch in range(18)
    ),
    *({"in_save": number, "changes": {"save_steps": 2}} for number in range(15)),
    *(
        {"at_step": step, "changes": {"max_steps": 9, "warmup_steps": 3, "weight_decay": 0.1}}
        for step in (2, 5, 8)
    ),
]


def test_64_stopped_runs_and_more_end_in_the_same_bits(config, monkeypatch, tmp_path):
    assert len(STOPS) >= 64
    undisturbed = {}
    for number, stop in enumerate(STOPS):
        changes, where = stop["changes"], {k: v for k, v in stop.items() if k != "changes"}
        key = json.dumps(changes)
        if key not in undisturbed:
            undisturbed[key] = end_of(
                config(out=str(tmp_path / f"whole{number}"), **changes), monkeypatch
            )
        stopped = config(out=str(tmp_path / f"stopped{number}"), **changes)
        run_killed(stopped, monkeypatch, **where)
        same(undisturbed[key], end_of(stopped, monkeypatch))


def test_stopped_twice_in_a_row_and_before_the_first_state(config, monkeypatch, tmp_path):
    whole = end_of(config(out=str(tmp_path / "whole")), monkeypatch)
    stopped = config(out=str(tmp_path / "stopped"))
    for step in (1, 4, 4, 7, 10):
        run_killed(stopped, monkeypatch, at_step=step)
    same(whole, end_of(stopped, monkeypatch))


def test_a_crash_while_publishing_costs_no_training(config, monkeypatch, tmp_path):
    whole = end_of(config(out=str(tmp_path / "whole")), monkeypatch)
    stopped = config(out=str(tmp_path / "stopped"))
    with monkeypatch.context() as patch:
        patch.setattr(run, "publish", lambda *a: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            train(stopped)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", lambda *a: pytest.fail("trained again"))
        assert train(stopped) == 0
    assert all(
        torch.equal(t, whole[0][n])
        for n, t in load_file(tmp_path / "stopped/model.safetensors").items()
    )


def test_a_damaged_state_is_left_out_and_an_older_one_taken(config, monkeypatch, tmp_path, capsys):
    whole = end_of(config(out=str(tmp_path / "whole")), monkeypatch)
    stopped = config(out=str(tmp_path / "stopped"))
    run_killed(stopped, monkeypatch, at_step=8)
    newest = checkpoint.latest(tmp_path / "stopped.run").path
    data = bytearray((newest / "optimizer.safetensors").read_bytes())
    data[-5] ^= 4
    (newest / "optimizer.safetensors").write_bytes(data)
    same(whole, end_of(stopped, monkeypatch))
    assert "left out a damaged state, step-00000006" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_writes_a_state_and_says_how_to_go_on(config, tmp_path, number, monkeypatch):
    whole = end_of(config(out=str(tmp_path / "whole"), max_steps=150), monkeypatch)
    flags = {
        "train": tmp_path / "pairs.csv",
        "model": config().model,
        "out": tmp_path / "out",
        "batch-size": 8,
    }
    flags |= {
        "log-steps": 1,
        "save-steps": 3,
        "max-steps": 150,
        "device": "cpu",
        "threads": THREADS,
    }
    command = [
        sys.executable,
        "-m",
        "minilm_retriever",
        "train",
        *(str(x) for k, v in flags.items() for x in (f"--{k}", v)),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "out.run/metrics.jsonl"
    while process.poll() is None and not (log.exists() and len(log.read_bytes().splitlines()) > 4):
        time.sleep(0.01)
    process.send_signal(number)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number, stderr
    assert "the same command resumes from there" in stderr
    assert subprocess.run(command, stderr=subprocess.PIPE, check=False).returncode == 0
    assert all(
        torch.equal(t, whole[0][n])
        for n, t in load_file(tmp_path / "out/model.safetensors").items()
    )


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


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"learning_rate": 1e-4}, "learning_rate 5e-05, now it is 0.0001"),
        ({"batch_size": 4}, "batch_size 8, now it is 4"),
        ({"seed": 1}, "seed 42, now it is 1"),
    ],
)
def test_an_unfinished_run_is_not_continued_with_other_flags(config, monkeypatch, changes, named):
    run_killed(config(), monkeypatch, at_step=4)
    with pytest.raises(UserError, match=named):
        train(config(**changes))
    assert train(config(**changes, overwrite=True)) == 0


def test_an_unfinished_run_is_not_continued_with_other_data_or_another_model(
    config, monkeypatch, tmp_path, tiny_copy
):
    run_killed(config(), monkeypatch, at_step=4)
    (tiny_copy / "sentence_bert_config.json").write_text('{"max_seq_length": 32}')
    with pytest.raises(UserError, match="base model"):
        train(config(model=str(tiny_copy)))
    write_pairs(tmp_path / "pairs.csv", 42, start=1)
    with pytest.raises(UserError, match=r"data \S+pairs\.csv"):
        train(config())


def test_a_finished_model_is_refused_without_overwrite(config, tmp_path):
    assert train(config()) == 0
    assert not (tmp_path / "out.run").exists()
    with pytest.raises(UserError, match="out is already finished"):
        train(config())
    assert train(config(overwrite=True)) == 0


def test_several_files_are_taken_in_turn(config, tmp_path):
    second = write_pairs(tmp_path / "more.csv", 24, start=100)
    ready = prepare.prepare(config(train=(*config().train, second)))
    assert ready.total == 2 * 6  # the shorter has 3 batches: 3 of each an epoch
    assert [step[0][0] for step in ready.sampler.steps(0, 6)] == [0, 1, 0, 1, 0, 1]


def test_held_out_data_is_evaluated_before_during_and_after_and_the_best_is_published(
    config, tmp_path
):
    held_out = write_pairs(
        tmp_path / "held_out.csv", 30, start=30
    )  # 12 of them stand in training too
    settings = config(eval=held_out, eval_steps=4, learning_rate=2e-3)
    assert train(settings) == 0
    rows = log_rows(tmp_path / "out")
    evaluations = {row["step"]: row["eval"] for row in rows if "eval" in row}
    assert list(evaluations) == [0, 4, 8, 12]
    assert all(
        {"loss", "mrr@10", "accuracy@1", "recall@10"} <= set(values)
        for values in evaluations.values()
    )
    best = max(
        (step for step in evaluations if step),
        key=lambda step: (evaluations[step]["mrr@10"], -step),
    )
    again = Encoder.from_pretrained(tmp_path / "out", device="cpu")
    published = Validation.read(settings, again.model).evaluate(Ranks())
    assert published["mrr@10"] == pytest.approx(evaluations[best]["mrr@10"], abs=1e-9)
    assert published["loss"] == pytest.approx(evaluations[best]["loss"], abs=1e-6)


def test_the_evaluation_before_the_first_step_is_the_base_models(config, tmp_path):
    """Also where the held-out texts have words that the training texts do not use."""
    words = "apple bread candle dog engine flower garden house island jacket".split()
    held_out = tmp_path / "held_out.csv"
    rows = [f"{a} {b},{b} {c}" for a, b, c in zip(words, words[3:], words[5:], strict=False)]
    held_out.write_text("\n".join(["sentence_0,sentence_1", *rows]) + "\n", "utf-8")
    settings = config(eval=str(held_out), max_steps=1)
    ready = prepare.prepare(settings)
    table = ready.trainer.encoder.bert.embeddings.word_embeddings
    used = {int(id) for text in rows for id in ready.base.tokenizer.tokenize([text]).ids}
    assert isinstance(table, SparseEmbedding) and used - set(table.rows.tolist())
    base = Encoder.from_pretrained(settings.model, device="cpu").model
    expected = Validation.read(settings, base).evaluate(Ranks())
    assert Validation.read(settings, ready.base).evaluate(Ranks()) == expected
    assert train(settings) == 0
    assert log_rows(tmp_path / "out")[0]["eval"] == pytest.approx(expected, abs=1e-9)


def test_held_out_rows_that_are_trained_on_are_reported(config, tmp_path, capsys):
    train(config(eval=write_pairs(tmp_path / "held_out.csv", 30, start=30), max_steps=1))
    assert "warning: 12 rows of" in capsys.readouterr().err


def test_training_stops_early_when_the_metric_does_not_improve(config, tmp_path):
    held_out = write_pairs(tmp_path / "held_out.csv", 10, start=60)
    stopping = config(eval=held_out, eval_steps=1, patience=2, epochs=20, learning_rate=1e-12)
    assert train(stopping) == 0
    rows = log_rows(tmp_path / "out")
    assert [row["step"] for row in rows if "eval" in row] == [0, 1, 2, 3]
    assert "stopped early, after 3 of 120 steps" in (tmp_path / "out/README.md").read_text("utf-8")


def test_an_unknown_metric_is_named_before_any_training(config, tmp_path):
    with pytest.raises(UserError, match="--metric 'f1' is none of"):
        train(config(eval=write_pairs(tmp_path / "held_out.csv", 10, start=60), metric="f1"))


def test_a_dry_run_writes_nothing(config, tmp_path, capsys):
    assert train(config(dry_run=True)) == 0
    stderr = capsys.readouterr().err
    assert "estimate: " in stderr and "12 steps" in stderr
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith(".")) == ["pairs.csv"]


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


def test_what_is_published(config, tmp_path):
    assert train(config(tensorboard=True)) == 0
    out = tmp_path / "out"
    names = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert {
        "README.md",
        "report.html",
        "metrics.jsonl",
        "training.json",
        "model.safetensors",
        "manifest.json",
    } <= names
    assert any(name.startswith("tensorboard/events") for name in names)
    assert Encoder.from_pretrained(out, device="cpu").encode("a cook").shape == (32,)
    trained = load_file(out / "model.safetensors")
    base = load_file(config().model + "/model.safetensors")
    assert not torch.equal(
        trained["embeddings.word_embeddings.weight"], base["embeddings.word_embeddings.weight"]
    )
    assert torch.equal(trained["pooler.dense.weight"], base["pooler.dense.weight"])
    assert np.isfinite(Encoder.from_pretrained(out, device="cpu").encode(NOUNS)).all()


def test_two_runs_in_one_folder_are_refused(config, tmp_path):
    from minilm_retriever.storage import atomic_files

    with atomic_files.lock(tmp_path / "out.run"), pytest.raises(UserError, match="another process"):
        train(config())


def test_flags_out_of_range_are_one_line():
    for changes, message in [
        ({"batch_size": 0}, "--batch-size must be at least 1, not 0"),
        ({"learning_rate": -1.0}, "--learning-rate must be at least 0"),
        ({"learning_rate": float("nan")}, "--learning-rate must be at least 0"),
        ({"scale": 0.0}, "--scale must be more than 0"),
        ({"dropout": 1.0}, "--dropout must be less than 1"),
        ({"columns": ("a",)}, "--columns needs two names"),
        ({"patience": 2}, "--patience needs --eval"),
        ({"max_length": 2}, "--max-length must be at least 3"),
    ]:
        with pytest.raises(UserError, match=message):
            TrainConfig(**changes)


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
