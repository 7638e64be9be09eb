"""What the flags on negatives do to a run: every mixture trains, the log knows the floor, a stopped
run goes on."""

from __future__ import annotations

import csv
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from minilm_retriever.__main__ import main
from minilm_retriever.core.trainer import Trainer
from minilm_retriever.distributed import Ranks
from minilm_retriever.errors import UserError
from minilm_retriever.training import loss_variants as loss
from minilm_retriever.training import objective, run
from minilm_retriever.training.config import TrainConfig
from minilm_retriever.training.objective import Objective
from minilm_retriever.training.prepare import prepare
from minilm_retriever.training.run import train

NEGATIVES = ["not wanted", "none of it", "a river"]
JOBS = "cook nurse pilot baker judge tailor miner diver".split()


def write(path, rows, columns=("query", "document")):
    with path.open("w", encoding="utf-8", newline="") as stream:
        out = csv.writer(stream)
        out.writerow(columns)
        out.writerows(rows)
    return str(path)


@pytest.fixture()
def config(tiny_folder, tmp_path):
    """32 rows in batches of 8; each of 8 pairs stands there four times."""
    rows = [(f"looks for a {job}", f"{job} wanted, {len(job)} years") for job in JOBS] * 4
    defaults = {
        "train": (write(tmp_path / "pairs.csv", rows),),
        "model": str(tiny_folder),
        "out": str(tmp_path / "out"),
        "batch_size": 8,
        "epochs": 1,
        "log_steps": 1,
        "device": "cpu",
    }
    return lambda **changes: TrainConfig(**{**defaults, **changes})


def with_hard_negatives(path, rows=32):
    """The same pairs with two hard negatives each, some of them other rows' documents."""
    named = [(f"looks for a {job}", f"{job} wanted, {len(job)} years") for job in JOBS]
    rows = [
        (*named[i % 8], named[(i + 3) % 8][1], f"{JOBS[(i * 5 + 1) % 8]} not wanted")
        for i in range(rows)
    ]
    return write(path, rows, ("query", "document", "negative_1", "negative_2"))


def log_of(config):
    return [
        json.loads(line)
        for line in (Path(config.out) / "metrics.jsonl").read_text("utf-8").splitlines()
    ]


def test_the_log_has_the_floor_of_its_batches(config):
    settings = config()
    assert train(settings) == 0
    ready = prepare(settings)
    for row, [(source, rows)] in zip(log_of(settings), ready.sampler.steps(0, 4), strict=True):
        documents = [int(ready.data.text_ids[source][r, 1]) for r in rows]
        expected = np.mean([math.log(documents.count(d)) for d in documents])
        assert row["loss_floor"] == pytest.approx(expected, abs=1e-12)
        assert row["loss"] > row["loss_floor"] - 0.05
    assert any(row["loss_floor"] > 0 for row in log_of(settings))
    assert (
        json.loads((Path(settings.out) / "training.json").read_text("utf-8"))["settings"][
            "false_negatives"
        ]
        == "keep"
    )


@pytest.mark.parametrize(
    "flags", [{"false_negatives": "mask"}, {"false_negatives": "avoid"}, {"distinct": True}]
)
def test_what_is_done_about_repeats_takes_the_floor_away(config, flags):
    settings = config(**flags)
    assert train(settings) == 0
    assert all(row["loss_floor"] == 0.0 for row in log_of(settings))
    assert len(log_of(settings)) == (1 if flags.get("distinct") else 4)


VARIANTS = list(
    itertools.product(
        ("keep", "mask", "avoid"), (None, "base"), (False, True), ((), (32, 16)), (None, 5)
    )
)


@pytest.mark.parametrize("number", range(0, len(VARIANTS), 5))
def test_every_mixture_gives_the_loss_that_is_put_together_by_hand(config, tmp_path, number):
    false_negatives, guide, symmetric, matryoshka, cache_batch = VARIANTS[number]
    settings = config(
        train=(with_hard_negatives(tmp_path / "hard.csv"),),
        false_negatives=false_negatives,
        guide=guide,
        guide_margin=0.001 if guide else 0.0,
        symmetric=symmetric,
        matryoshka=matryoshka,
        cache_batch=cache_batch,
        dropout=0.0,
    )
    ready = prepare(settings)
    encoder, trainer = ready.base.encoder, ready.trainer
    [[(source, rows)]] = ready.sampler.steps(0, 1)
    (texts, *_), ids, mask, _ = batch = ready.data.batch(source, rows)
    count = len(rows)
    assert texts.shape == (4, count)
    encoder.train()
    step_loss = trainer.batch_loss(batch)
    with torch.no_grad():
        vectors = encoder.eval()(ids, mask).double()
    left_out = np.zeros((count, 3 * count), bool), np.zeros((count, count), bool)
    if false_negatives == "mask":
        known = objective.false_negative_mask(texts[0], texts[1:].reshape(-1))
        left_out = left_out[0] | known, left_out[1] | known[:, :count].T
    if guide:
        scores = (vectors[:count] @ vectors[count:].T).numpy()
        own = np.diag(scores)
        left_out = (
            left_out[0] | (scores - own[:, None] > 0.001001),
            left_out[1] | (scores[:, :count].T - own[:, None] > 0.001001),
        )
    removed = loss.FalseNegatives(*(torch.from_numpy(x) for x in left_out))
    expected = loss.contrastive_loss(
        vectors[:count],
        vectors[count:],
        false_negatives=removed,
        symmetric=symmetric,
        dimensions=matryoshka,
    )
    assert float(step_loss.detach()) == pytest.approx(float(expected), abs=2e-6)
    encoder.train()  # gradient caching computes the pieces again
    step_loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in trainer.parameters)


def test_a_guide_of_its_own_masks_by_its_own_vectors(config, tiny_folder, tmp_path):
    other = config(guide=str(tiny_folder), false_negatives="mask")
    ready = prepare(other)
    guide = ready.objective.guide
    assert guide.shape == (16, 32)
    torch.testing.assert_close(guide.norm(dim=1), torch.ones(16))
    rows = ready.data.rows(0, np.arange(8))
    wide = Objective(
        config(guide="base", guide_margin=2.0, symmetric=True), Ranks(), guide
    ).false_negatives(rows, slice(0, 8), torch.device("cpu"))
    assert not wide.documents.any() and not wide.queries.any()  # no cosine is larger by 2


def test_a_stopped_run_that_avoids_repeats_goes_on_in_the_same_bits(config, tmp_path, monkeypatch):
    flags = {
        "false_negatives": "avoid",
        "guide": "base",
        "epochs": 2,
        "batch_size": 16,
        "cache_batch": 6,
        "save_steps": 2,
    }
    whole = config(out=str(tmp_path / "whole"), **flags)
    assert train(whole) == 0
    stopped = config(out=str(tmp_path / "stopped"), **flags)
    step = Trainer.step

    def dies(self, number, batches):
        if number == 3:
            raise KeyboardInterrupt
        return step(self, number, batches)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", dies)
        with pytest.raises(KeyboardInterrupt):
            train(stopped)
    assert train(stopped) == 0
    names = ("model.safetensors",)
    assert all(
        (tmp_path / "whole" / n).read_bytes() == (tmp_path / "stopped" / n).read_bytes()
        for n in names
    )
    losses = [[(row["loss"], row["loss_floor"]) for row in log_of(run)] for run in (whole, stopped)]
    assert losses[0] == losses[1] and len(losses[0]) == 4


def test_rows_that_no_batch_can_take_are_told(config, tmp_path, capsys):
    rows = [(f"query {i}", "one and the same" if i < 20 else f"document {i}") for i in range(32)]
    settings = config(
        train=(write(tmp_path / "skewed.csv", rows),), false_negatives="avoid", dry_run=True
    )
    assert train(settings) == 0
    assert f"16 rows of {settings.train[0]} find no batch" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--guide", "--guide-margin", "-0.1"], "--guide-margin must be at least 0"),
        (["--guide-margin", "0.1"], "--guide-margin needs --guide"),
        (["--matryoshka", "64"], "the model's vectors have 32 numbers"),
        (["--matryoshka", "8", "8"], "--matryoshka needs different lengths"),
        (["--cache-batch", "0"], "--cache-batch must be at least 1"),
        (["--columns", "query", "nothing"], "nothing"),
        (["--columns", "query", "constant"], "every row has the same document"),
        (["--columns", "constant", "document", "--false-negatives", "mask"], "leaves no negative"),
    ],
)
def test_a_mistake_is_one_line(tiny_folder, tmp_path, capsys, flags, message):
    rows = [(f"looks for a {job}", f"{job} wanted", "always") for job in JOBS]
    path = write(tmp_path / "pairs.csv", rows, ("query", "document", "constant"))
    out = tmp_path / "out"
    assert (
        main(["train", "--train", path, "--model", str(tiny_folder), "--out", str(out), *flags])
        == 2
    )
    *columns, error = capsys.readouterr().err.splitlines()
    assert message in error and len(columns) < 2
    assert not out.exists() and not Path(f"{out}.run").exists()


@pytest.mark.parametrize("flags", [{}, {"symmetric": True}, {"false_negatives": "mask"}])
def test_a_row_with_fewer_negatives_has_as_many_candidates_fewer(config, tmp_path, flags):
    """A batch's loss is that of a closed form over the documents that are there."""
    rows = [
        {"query": f"looks for a {job}", "pos": [f"{job} wanted"], "neg": NEGATIVES[: i % 4]}
        for i, job in enumerate(JOBS)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ready = prepare(config(train=(str(path),), dropout=0.0, **flags))
    assert ready.data.text_ids[0].shape == (8, 5) and ready.data.absent >= 0
    [batch] = next(ready.batches(0, 1))
    vectors = ready.base.encoder.eval()(batch.input_ids, batch.attention_mask).detach()
    loss = ready.objective.loss(vectors, batch.rows)
    present = batch.rows.texts[1:].reshape(-1) != ready.data.absent
    q = torch.nn.functional.normalize(vectors[:8], dim=1)
    d = torch.nn.functional.normalize(vectors[8:], dim=1)
    scores = 20 * q @ d[torch.from_numpy(present)].T
    expected = torch.nn.functional.cross_entropy(scores, torch.arange(8))
    if flags.get("symmetric"):
        back = torch.nn.functional.cross_entropy(20 * d[:8] @ q.T, torch.arange(8))
        expected = (expected + back) / 2
    torch.testing.assert_close(loss, expected)


def test_batches_are_drawn_apart_though_rows_lack_negatives(config, tmp_path):
    rows = [(f"looks for a {job}", f"{job} wanted", "") for job in JOBS]
    rows[0] = (*rows[0][:2], "none of these")
    path = write(tmp_path / "pairs.csv", rows, ("query", "document", "negative"))
    ready = prepare(config(train=(path,), false_negatives="avoid"))
    assert sum(map(len, ready.sampler.epoch(0)[0])) == len(rows)


def test_equal_texts_are_equal_whatever_white_space_stands_around_them(config, tmp_path):
    rows = [("q", "d"), (" q", "d "), ("q", "\td"), ("r", "e")]
    path = write(tmp_path / "p.csv", rows)
    assert len(prepare(config(train=(path,))).data.texts) == 4
    assert prepare(config(train=(path,), distinct=True)).data.sizes == (2,)


def test_hard_negatives_are_candidates(config, tmp_path):
    settings = config(train=(with_hard_negatives(tmp_path / "hard.csv"),))
    [[batch]] = prepare(settings).batches(0, 1)
    assert batch.input_ids.shape[0] == 4 * 8
    with pytest.raises(UserError, match="no_such"):
        prepare(config(train=settings.train, columns=("query", "document", "no_such")))
    assert run.train(settings) == 0
