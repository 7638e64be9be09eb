"""The loop against sentence-transformers' own runs, recorded by tests/reference/make_training.py.

Dropout off, ours must give the peer's loss at every step. Dropout on, a plain loop on transformers'
BertModel gives it bit for bit, and ours gives that loop's order and a loss within the peer's spread
over seeds."""

from __future__ import annotations

import csv
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from minilm_retriever.training import batches
from minilm_retriever.training.config import TrainConfig
from minilm_retriever.training.prepare import prepare
from tests.conftest import REFERENCE
from tests.tiny import cpu_vendor, make_tiny_bert


@cache
def recorded(peer: str) -> dict:
    return json.loads((REFERENCE / f"training_{peer}.json").read_text("utf-8"))["runs"]


@cache
def recorded_weights(peer: str) -> dict[str, torch.Tensor]:
    return load_file(REFERENCE / f"training_{peer}.safetensors")


@cache
def pairs() -> list[tuple[str, str]]:
    return [tuple(pair) for pair in json.loads((REFERENCE / "pairs.json").read_text("utf-8"))]


def our_run(run: dict, folder: Path, tmp_path: Path, monkeypatch):
    """(losses of each micro-batch, rows of each, learning rates, weights before, after) of the same
    run by our loop."""
    first, paths = 0, []
    for number, size in enumerate(run["sizes"]):
        paths.append(str(tmp_path / f"pairs{number}.csv"))
        with Path(paths[-1]).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(
                [("sentence_0", "sentence_1"), *pairs()[first : first + size]]
            )
        first += size
    config = TrainConfig(
        train=tuple(paths),
        out="never-written",
        model=str(folder),
        recipe="fit" if run["api"] == "fit" else "printed",
        epochs=run["epochs"],
        batch_size=run["batch_size"],
        learning_rate=run["learning_rate"],
        warmup_steps=run["warmup_steps"],
        weight_decay=run["weight_decay"],
        dropout=run["dropout"],
        seed=run["seed"],
        gradient_accumulation_steps=run["accumulation"],
        device="cpu",
    )
    ready = prepare(config)
    trainer, encoder = ready.trainer, ready.base.encoder
    starts = np.cumsum([0, *run["sizes"]])
    losses, orders, rates = [], [], []
    batch_loss = trainer.batch_loss
    monkeypatch.setattr(
        trainer, "batch_loss", lambda *a: losses.append(batch_loss(*a)) or losses[-1]
    )
    before = {name: tensor.clone() for name, tensor in encoder.bert.state_dict().items()}
    for rows_of_step in ready.sampler.steps(0, ready.total):
        orders += [(starts[source] + rows).tolist() for source, rows in rows_of_step]
    for number, micro_batches in enumerate(ready.batches(0, ready.total)):
        rates.append(trainer.step(number, micro_batches).learning_rate)
    return (
        [float(loss.detach()) for loss in losses],
        orders,
        rates,
        before,
        encoder.bert.state_dict(),
    )


def successive_permutations(sizes, seed, epoch):
    """3.x's Trainer: epoch e is the e-th permutation of one generator; ours seeds anew each
    epoch."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epoch + 1):
        orders = [torch.randperm(n, generator=generator).numpy() for n in sizes]
    return orders


TINY_RUNS = [
    *(("st3", name) for name in ("fit", "fit-defaults", "trainer")),
    *(("st6", name) for name in ("trainer", "trainer-round-robin", "trainer-accumulation")),
]


@pytest.mark.parametrize(("peer", "name"), TINY_RUNS)
def test_tiny_bert_gives_the_peers_loss_at_every_step(peer, name, tmp_path, monkeypatch):
    run = recorded(peer)[name]
    if (peer, name) == ("st3", "trainer"):
        monkeypatch.setattr(batches, "shuffle", successive_permutations)
    folder = make_tiny_bert(tmp_path / "tiny", dropout=0.0)
    losses, orders, rates, before, after = our_run(run, folder, tmp_path, monkeypatch)
    assert orders == run["order"]
    assert np.abs(np.array(losses) - run["losses"]).max() <= 1e-5
    np.testing.assert_allclose(rates, run["learning_rates"], atol=1e-12)
    if run["keep"]:
        theirs = {
            n.split("/", 1)[1]: t
            for n, t in recorded_weights(peer).items()
            if n.startswith(f"{name}/")
        }
        assert relative_distance(before, after, theirs) <= 1e-3


def relative_distance(before, after, theirs) -> float:
    """|our change - their change| / |their change|, key biases left out: their true gradient is
    zero."""
    different, total = 0.0, 0.0
    for name in theirs:
        if not name.endswith("key.bias") and not name.startswith("pooler"):
            change = theirs[name].double() - before[name].double()
            different += float((after[name].double() - before[name].double() - change).pow(2).sum())
            total += float(change.pow(2).sum())
    return (different / total) ** 0.5


@pytest.mark.parametrize(
    ("peer", "name"), [("st3", "fit-real"), ("st3", "trainer-real"), ("st6", "trainer-real")]
)
def test_real_weights_give_the_peers_losses_and_change(
    peer, name, base_model, tmp_path, monkeypatch
):
    run = recorded(peer)[name]
    if (peer, name) == ("st3", "trainer-real"):
        monkeypatch.setattr(batches, "shuffle", successive_permutations)
    losses, orders, _, before, after = our_run(run, base_model, tmp_path, monkeypatch)
    assert orders == run["order"] and len(losses) == 30
    assert np.abs(np.array(losses) - run["losses"]).max() <= 1e-4
    recorded_changes = recorded_weights(peer)
    different, total = 0.0, 0.0
    for parameter, norm in run["change_norms"].items():
        if parameter.endswith("key.bias"):
            continue
        places = recorded_changes[f"{name}/{parameter}/indices"].long()
        theirs = recorded_changes[f"{name}/{parameter}/change"].double()
        ours = (after[parameter].double() - before[parameter].double()).flatten()[places]
        # A sample of a parameter's entries stands for all of them: weighted by the share of the
        # norm it carries.
        weight = norm**2 / max(float(theirs.pow(2).sum()), 1e-30)
        different += weight * float((ours - theirs).pow(2).sum())
        total += norm**2
    assert (different / total) ** 0.5 <= 1e-3


def test_a_plain_loop_on_bertmodel_is_fit_bit_for_bit_with_dropout(tmp_path):
    """So what the reference loop shows, dropout's place in the stream of random numbers too, is the
    peer itself."""
    from tests.reference.reference_loop import replay

    fixture = json.loads((REFERENCE / "training_st3.json").read_text("utf-8"))
    losses, weights = replay(
        fixture["runs"]["fit-dropout-42"], make_tiny_bert(tmp_path / "tiny", dropout=0.1), pairs()
    )
    theirs = {
        name: recorded_weights("st3")[f"fit-dropout-42/{name}"]
        for name in weights
        if "pooler" not in name
    }
    recorded_losses = fixture["runs"]["fit-dropout-42"]["losses"]
    here = {"cpu_capability": torch.backends.cpu.get_cpu_capability(), "cpu_vendor": cpu_vendor()}
    if here.items() <= fixture["peer"].items():
        assert losses == recorded_losses
        assert all(torch.equal(weights[name], tensor) for name, tensor in theirs.items())
    else:  # other kernels sum in another order
        np.testing.assert_allclose(losses, recorded_losses, atol=1e-4)


def test_without_dropout_ours_is_that_loop(tmp_path, monkeypatch):
    """Two implementations in one process, rather than against a recording: weights too."""
    from tests.reference.reference_loop import replay

    run = {**recorded("st3")["fit"], "epochs": 2}
    run["order"], run["total_steps"] = run["order"][:40], 38
    folder = make_tiny_bert(tmp_path / "tiny", dropout=0.0)
    losses, weights = replay(run, folder, pairs())
    ours, _, _, before, after = our_run(run, folder, tmp_path, monkeypatch)
    assert np.abs(np.array(ours) - losses).max() <= 1e-5
    assert relative_distance(before, after, weights) <= 1e-3


def test_with_dropout_the_order_is_the_peers_and_the_loss_within_its_spread_over_seeds(
    tmp_path, monkeypatch
):
    runs = [recorded("st3")[f"fit-dropout-{seed}"] for seed in range(42, 47)]
    folder = make_tiny_bert(tmp_path / "tiny", dropout=0.1)
    spread = [np.mean(run["losses"][len(run["losses"]) // 2 :]) for run in runs]
    losses, orders, _, _, _ = our_run(runs[0], folder, tmp_path, monkeypatch)
    assert orders == runs[0]["order"]
    ours = np.mean(losses[len(losses) // 2 :])
    assert min(spread) - np.std(spread) <= ours <= max(spread) + np.std(spread)
