"""Runs whose steps are those of a GPU, on any device."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from minilm_retriever.training import prepare
from minilm_retriever.training.make_trainer import captured, make_trainer
from minilm_retriever.training.run import train


def at_once(run):
    """In place of a graph."""
    return run


def capturing(capture=at_once, double=False):
    """In place of `make_trainer`: a CapturedTrainer on any device; double: in float64."""

    def make(config, encoder, loss, settings, data, sampler, ranks):
        encoder = encoder.double() if double else encoder
        return captured(config, encoder, loss, settings, data, sampler, capture)

    return make


def plain_double(config, encoder, *others):
    return make_trainer(config, encoder.double(), *others)


def take_steps(config, monkeypatch, make):
    """Losses and gradient norms of all steps, and the weights at the end."""
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "make_trainer", make)
        run = prepare.prepare(config)
    steps = [run.trainer.step(n, batches) for n, batches in enumerate(run.batches(0, run.total))]
    figures = [(float(s.losses.sum()), float(s.gradient_norm), s.learning_rate) for s in steps]
    return np.array(figures), run.trainer.encoder.state_dict(), run


def last_state(out):
    states = sorted(Path(f"{out}.run").glob("step-*"))
    files = ("model.safetensors", "optimizer.safetensors")
    return states[-1].name, [load_file(states[-1] / name) for name in files]


def losses_of(out):
    path = Path(f"{out}.run/metrics.jsonl")
    path = path if path.exists() else Path(out) / "metrics.jsonl"
    return [json.loads(line).get("loss") for line in path.read_text("utf-8").splitlines()]


def run_and_keep(settings, monkeypatch):
    """The last training state and the losses of a run that is not published."""
    with monkeypatch.context() as patch:
        patch.setattr("minilm_retriever.training.run.publish", lambda *_: "not published")
        assert train(settings) == 0
    return last_state(settings.out), losses_of(settings.out)
