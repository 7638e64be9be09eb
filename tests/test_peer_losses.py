"""Losses and prompts against what sentence-transformers 6.2 gives, recorded by
tests/reference/make_losses.py: of vectors with their gradients, and of whole runs of its Trainer,
each step."""

from __future__ import annotations

import csv
import json
from functools import cache, partial

import numpy as np
import pytest
import torch

from minilm_retriever.core.loss import cosent_loss, cosine_loss
from minilm_retriever.distributed import Ranks
from minilm_retriever.training.config import TrainConfig
from minilm_retriever.training.dataset import BatchRows
from minilm_retriever.training.objective import Objective
from minilm_retriever.training.prepare import prepare
from tests.conftest import REFERENCE
from tests.tiny import make_tiny_bert


@cache
def recorded() -> dict:
    return json.loads((REFERENCE / "losses_st6.json").read_text("ascii"))


LOSSES = ["cosent", "cosent-scale-5", "cosine", "guide", "guide-negatives", "guide-all"]
LOSSES += ["guide-all-negatives", "guide-all-margin"]


def our_loss(name: str, theirs: dict, vectors: list[torch.Tensor], inputs: dict) -> torch.Tensor:
    parameters = theirs["parameters"]
    scores = torch.tensor(inputs["scores"], dtype=torch.float64)
    if name.startswith("cosent"):
        return cosent_loss(*vectors, scores, parameters["scale"])
    if name == "cosine":
        return cosine_loss(*vectors, scores)
    columns = list(inputs)[: theirs["columns"]]
    guide = torch.tensor([inputs[f"guide_{column}"] for column in columns], dtype=torch.float64)
    config = TrainConfig(
        train=("-",),
        out="-",
        guide="base",
        guide_all="all" in name,
        guide_margin=-parameters.get("margin", 0.0),
        scale=1 / parameters["temperature"],
    )
    numbers = np.arange(len(columns) * 8).reshape(len(columns), 8)
    guide = torch.nn.functional.normalize(guide, dim=-1).flatten(0, 1)
    objective = Objective(config, Ranks(), guide)
    return objective.loss(torch.cat(vectors), BatchRows(numbers, numbers))


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_and_its_gradient_are_the_peers(name):
    inputs, theirs = recorded()["vectors"]["inputs"], recorded()["vectors"]["losses"][name]
    vectors = [
        torch.tensor(inputs[column], dtype=torch.float64).requires_grad_()
        for column in list(inputs)[: theirs["columns"]]
    ]
    loss = our_loss(name, theirs, vectors, inputs)
    assert float(loss.detach()) == pytest.approx(theirs["value"], abs=1e-5)
    for ours, gradient in zip(
        torch.autograd.grad(loss, vectors[:2]), theirs["gradients"], strict=True
    ):
        np.testing.assert_allclose(ours.numpy(), gradient, atol=1e-5)


def run_of(name: str, tmp_path) -> tuple[dict, TrainConfig]:
    """A recorded run, and the flags for the same."""
    run, folder = recorded()["runs"][name], tmp_path / "tiny"
    make_tiny_bert(folder, dropout=0.0, pooling=run.get("pooling", "mean"))
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text("utf-8"))
    pooling["include_prompt"] = run.get("include_prompt", True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")
    texts = json.loads((REFERENCE / "pairs.json").read_text("ascii"))[: recorded()["rows"]]
    columns, scored = ["sentence_0", "sentence_1"], run["loss"] in ("cosent", "cosine")
    if scored:
        texts = [[*pair, score] for pair, score in zip(texts, recorded()["scores"], strict=True)]
        columns.append("score")
    with (tmp_path / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *texts])
    prompts = run.get("prompts", {})
    return run, TrainConfig(
        train=(str(tmp_path / "pairs.csv"),),
        out=str(tmp_path / "out"),
        model=str(folder),
        loss=run["loss"] if scored else "infonce",
        guide="base" if run["loss"].startswith("guide") else None,
        guide_all=run["loss"] == "guide-all",
        query_prompt=prompts.get("sentence_0"),
        document_prompt=prompts.get("sentence_1"),
        batch_size=recorded()["batch_size"],
        epochs=recorded()["epochs"],
        learning_rate=recorded()["learning_rate"],
        dropout=0.0,
        device="cpu",
    )


RUNS = ["prompts", "prompts-not-pooled", "prompts-cls-not-pooled", "cosent", "cosent-prompts"]
RUNS += ["cosine", "guide", "guide-all", "guide-all-prompts"]


@pytest.mark.parametrize("name", RUNS)
def test_every_step_of_a_run_has_the_peers_loss(name, tmp_path):
    run, config = run_of(name, tmp_path)
    ready = prepare(config)
    steps = enumerate(ready.batches(0, ready.total))
    losses = [float(ready.trainer.step(number, batches).losses.sum()) for number, batches in steps]
    np.testing.assert_allclose(losses, run["losses"], atol=1e-5, rtol=0)


def test_prompts_pooling_and_candidates_matter():
    """Or the test above would show little."""
    runs = recorded()["runs"]
    first = {name: runs[name]["losses"][0] for name in RUNS}
    for name, other in (
        ("prompts", "prompts-not-pooled"),
        ("cosent", "cosent-prompts"),
        ("guide", "guide-all"),
        ("guide-all", "guide-all-prompts"),
    ):
        assert abs(first[name] - first[other]) > 5e-3


def by_pieces(config: TrainConfig, count: int) -> float:
    """The norm of the first step's gradient, `count` texts encoded at a time."""
    from dataclasses import replace

    ready = prepare(replace(config, cache_batch=count))
    return float(next(map(partial(ready.trainer.step, 0), ready.batches(0, 1))).gradient_norm)


@pytest.mark.parametrize("name", ["prompts-not-pooled", "cosent-prompts", "guide-all-prompts"])
def test_gradient_caching_gives_the_same_gradient(name, tmp_path):
    _, config = run_of(name, tmp_path)
    assert by_pieces(config, 5) == pytest.approx(by_pieces(config, 1000), rel=1e-4)
