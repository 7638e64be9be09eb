"""Small runs: data, a death in the middle, and how they end."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minilm_retriever.core.trainer import Trainer
from minilm_retriever.storage import tensors
from minilm_retriever.training import checkpoint
from minilm_retriever.training.config import TrainConfig
from minilm_retriever.training.run import train

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


def small_run(model, place, **settings):
    """Makes configurations of a small run: two epochs of 42 rows in batches of 8, the last of 2."""
    defaults = {"model": str(model), "out": str(place / "out"), "batch_size": 8, "epochs": 2}
    defaults |= {"device": "cpu", **settings}
    if "train" not in defaults:
        defaults["train"] = (write_pairs(place / "pairs.csv", 42),)
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
