"""Evaluation, early stopping, refusals, and what is published."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from minilm_retriever import Encoder
from minilm_retriever.distributed import Ranks
from minilm_retriever.errors import UserError
from minilm_retriever.training import prepare
from minilm_retriever.training.config import TrainConfig
from minilm_retriever.training.run import train
from minilm_retriever.training.sparse_embedding import SparseEmbedding
from minilm_retriever.training.validation import Validation
from tests.training.runs import NOUNS, log_rows, write_pairs


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
