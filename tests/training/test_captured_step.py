"""The step that a GPU runs from CUDA graphs, here without a GPU: the same function run at once.

Sizes, packing, counters and the order of reads are held against core/trainer.py; that the step asks
the device nothing, by running it on "meta" tensors, which have no numbers to ask for."""

from __future__ import annotations

import csv
from importlib import import_module
from itertools import pairwise

import numpy as np
import pytest
import torch

from minilm_retriever.errors import UserError
from minilm_retriever.training import callbacks, captured_step, checkpoint, prepare
from minilm_retriever.training.make_trainer import make_trainer, why_not_captured
from minilm_retriever.training.run import train
from tests.training.captured import (
    capturing,
    last_state,
    plain_double,
    run_and_keep,
    take_steps,
)
from tests.training.runs import Killed

JOBS = "cook nurse pilot baker judge tailor miner diver".split()


def with_hard_negatives(path, missing=False):
    rows = [
        (
            f"looks for a {job}",
            f"{job} wanted, {len(job)} years",
            f"{JOBS[(i + 3) % 8]} wanted, {len(JOBS[(i + 3) % 8])} years",
            "" if missing and i % 3 else f"{JOBS[(i * 5 + 1) % 8]} not wanted at all",
        )
        for i, job in enumerate(JOBS * 4)
    ]
    return write_rows(path, rows, ("query", "document", "negative_1", "negative_2"))


def with_scores(path):
    rows = [(f"a {job} {i}", f"two {job}s", (i % 6) / 5) for i, job in enumerate(JOBS * 3)]
    return write_rows(path, rows, ("a", "b", "score"))


def write_rows(path, rows, columns):
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([columns, *rows])
    return str(path)


FLAGS = {
    "the recipe": {},
    "accumulation": {"gradient_accumulation_steps": 3},
    "the whole word table": {"weight_decay": 0.01, "warmup_steps": 3},
    "prompts": {"query_prompt": "find: ", "document_prompt": "a text: "},
    "guide": {"guide": "base", "guide_all": True, "symmetric": True, "hard": True},
    "mask": {"false_negatives": "mask", "hard": True, "matryoshka": (32, 16)},
    "mask of all": {"false_negatives": "mask", "guide": "base", "guide_all": True},
    "smoothing": {"false_negatives": "mask", "symmetric": True, "label_smoothing": 0.1},
    "drawn": {"sample_negatives": 1, "hard": True, "missing": True, "false_negatives": "mask"},
    "avoid": {"false_negatives": "avoid", "hard": True, "missing": True},
    "two files": {"two": True},
    "robust": {"distinct": True, "symmetric": True, "stay_near": 0.5, "hard": True},
    "cosent": {"loss": "cosent", "scored": True},
    "cosine": {"loss": "cosine", "scored": True},
}


@pytest.mark.parametrize("name", FLAGS)
def test_the_captured_step_is_the_trainers(config, tmp_path, monkeypatch, name):
    flags = dict(FLAGS[name])
    paths = [config().train[0]]
    if flags.pop("hard", False):
        paths = [with_hard_negatives(tmp_path / "hard.csv", flags.pop("missing", False))]
    if flags.pop("scored", False):
        paths = [with_scores(tmp_path / "scored.csv")]
    if flags.pop("two", False):
        paths.append(with_hard_negatives(tmp_path / "hard.csv"))
    settings = config(train=tuple(paths), epochs=6, dropout=0.0, **flags)
    figures, weights, _ = take_steps(settings, monkeypatch, plain_double)
    ours, our_weights, run = take_steps(settings, monkeypatch, capturing(double=True))
    # 1e-7: learning rates, losses and norms lie on the device in float32
    assert np.abs(ours - figures).max() < 2e-6 * max(1, figures.max())
    for key, weight in weights.items():
        assert (our_weights[key] - weight).abs().max() < 2e-6, key
    assert len(run.trainer.graphs) >= 1


def test_in_float32_too_and_two_runs_are_equal_to_the_bit(config, monkeypatch):
    settings = config(dropout=0.0)
    figures, _, _ = take_steps(settings, monkeypatch, make_trainer)
    ours, weights, _ = take_steps(settings, monkeypatch, capturing())
    again, other_weights, _ = take_steps(settings, monkeypatch, capturing(None))
    assert np.abs(ours - figures).max() < 1e-4 and np.abs(ours - figures)[0].max() < 1e-6
    assert (ours == again).all()
    assert all(weights[key].equal(other_weights[key]) for key in weights)


@pytest.mark.parametrize("flags", [{}, FLAGS["guide"] | {"hard": False}, FLAGS["mask of all"]])
def test_the_step_asks_the_device_nothing(config, monkeypatch, flags):
    """Meta tensors have no numbers, and mixed with a CPU's they are an error: so nothing is read
    back and nothing is copied from the host."""
    settings = config(**{k: v for k, v in flags.items() if k != "hard"})

    def on_meta(config, encoder, loss, *others):
        words = encoder.bert.embeddings.word_embeddings
        words.rows, words.row_numbers = words.rows.to("meta"), words.row_numbers.to("meta")
        if loss.__self__.guide is not None:
            object.__setattr__(loss.__self__, "guide", loss.__self__.guide.to("meta"))
        return capturing()(config, encoder.to("meta"), loss, *others)

    module = import_module("torch.optim.optimizer")
    devices = [*module._get_fused_kernels_supported_devices(), "meta"]
    monkeypatch.setattr(module, "_get_fused_kernels_supported_devices", lambda: devices)
    updates = []
    monkeypatch.setattr(torch, "_fused_adamw_", lambda *given, **named: updates.append(named))
    monkeypatch.setattr(prepare, "make_trainer", on_meta)
    run = prepare.prepare(settings)
    batches = list(run.batches(0, run.total))
    run.trainer.step(run.total - 1, batches[-1])
    monkeypatch.setattr(torch, "tensor", None)  # copies from the host, which no graph can hold
    monkeypatch.setattr(torch, "from_numpy", None)
    step = run.trainer.step(run.total - 1, batches[-1])
    assert step.losses.device.type == "meta" and len(updates) == 2 * 2  # groups
    assert updates[-1]["found_inf"].device.type == updates[-1]["lr"].device.type == "meta"


@pytest.mark.parametrize("log_steps", [1, 5])
def test_a_killed_run_goes_on_to_the_same_bits(config, tmp_path, monkeypatch, log_steps):
    monkeypatch.setattr(prepare, "make_trainer", capturing())
    monkeypatch.setattr(callbacks, "READ_EVERY", 4)
    monkeypatch.setattr(captured_step, "STEPS_AHEAD", 5)
    monkeypatch.setattr(captured_step, "STEPS_BACK", 7)
    whole = config(out=str(tmp_path / "whole"), log_steps=log_steps)
    (name, expected), losses = run_and_keep(whole, monkeypatch)
    settings = config(out=str(tmp_path / "killed"), log_steps=log_steps)
    save = checkpoint.save

    def save_and_die(run, trainer, position, keep):
        save(run, trainer, position, keep)
        raise Killed

    for _ in range(3):  # after steps 3, 6 and 9
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(checkpoint, "save", save_and_die)
            train(settings)
    (last, tensors), resumed = run_and_keep(settings, monkeypatch)
    assert last == name == "step-00000012" and resumed == losses
    for ours, theirs in zip(tensors, expected, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(ours[key].equal(theirs[key]) for key in theirs)


def test_state_files_are_those_of_the_plain_trainer(config, monkeypatch):
    """A run begun by one goes on with the other, and both write the same tensors."""
    settings = config(dropout=0.0)
    save = checkpoint.save

    def save_and_die(run, trainer, position, keep):
        save(run, trainer, position, keep)
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(prepare, "make_trainer", capturing())
        patch.setattr(checkpoint, "save", save_and_die)
        train(settings)
    name, ours = last_state(settings.out)
    (last, theirs), _ = run_and_keep(settings, monkeypatch)
    assert (name, last) == ("step-00000003", "step-00000012")
    for a, b in zip(ours, theirs, strict=True):
        assert {k: (v.shape, v.dtype) for k, v in a.items()} == {
            k: (v.shape, v.dtype) for k, v in b.items()
        }


@pytest.mark.parametrize("late", [1, 4])
def test_a_step_that_is_not_finite_is_not_taken_and_is_named_when_read(config, monkeypatch, late):
    settings = config(dropout=0.0)
    monkeypatch.setattr(callbacks, "READ_EVERY", late)
    monkeypatch.setattr(prepare, "make_trainer", capturing())
    run = prepare.prepare(settings)
    trainer, loss, weights = run.trainer, run.trainer.loss, []

    def infinite(vectors, rows):
        return loss(vectors, rows) * torch.where(trainer.number[0] == 4, torch.inf, 1.0)

    trainer.loss = infinite
    progress = type("Silent", (), {"at": lambda *_, **__: None})()
    seen = callbacks.Callbacks(run, checkpoint.Position(), progress, callbacks.AS_COMMAND)
    run = run._replace(config=config(log_steps=100))
    seen.run = run
    with pytest.raises(UserError) as problem:
        for number, batches in enumerate(run.batches(0, run.total)):
            weights.append([p.detach().clone() for p in trainer.parameters])
            seen.log(number + 1, batches, trainer.step(number, batches), 0.0)
    (batches,) = run.sampler.steps(4, 5)
    rows = [run.data.sources[0].where(int(row)) for row in batches[0][1]]
    assert "the loss of step 5 is not finite" in str(problem.value)
    assert all(row in str(problem.value) for row in rows)
    assert len(weights) == (5 if late == 1 else 8)
    if late > 1:  # step 5 changed nothing, step 6 did
        same = [[a.equal(b) for a, b in zip(x, y, strict=True)] for x, y in pairwise(weights)]
        assert all(same[4]) and not any(all(s) for s in same[:4] + same[5:])
        steps = {float(s["step"]) for s in trainer.optimizer.state.values()}
        assert steps == {7.0}


def test_each_size_is_captured_once_after_three_steps(config, monkeypatch):
    captures = []

    def capture(run):
        captures.append(run)
        return run

    _, _, run = take_steps(config(epochs=6), monkeypatch, capturing(capture))
    met = run.trainer.met
    assert len(captures) == len(run.trainer.graphs) == sum(count > 3 for count in met.values())
    assert sum(met.values()) == run.total and len(run.trainer.sizes) <= 8


def test_where_capturing_fails_steps_run_without_and_it_is_said_once(config, monkeypatch, capsys):
    def capture(run):
        raise RuntimeError("operation not permitted\nwhen a stream is capturing")

    settings = config(epochs=6)
    figures, _, _ = take_steps(settings, monkeypatch, capturing(capture))
    expected, _, _ = take_steps(settings, monkeypatch, capturing())
    assert (figures == expected).all()
    told = [line for line in capsys.readouterr().err.splitlines() if "CUDA graphs" in line]
    assert told == ["steps run without CUDA graphs: operation not permitted"]


def test_a_device_without_room_is_not_taken_for_one_that_cannot_capture(config, monkeypatch):
    def capture(run):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        take_steps(config(epochs=6), monkeypatch, capturing(capture))


def test_what_cannot_be_captured_has_a_reason(config):
    one, two = prepare.Ranks(), prepare.Ranks(0, 2)
    assert why_not_captured(config(), one) is None
    assert "ranks" in why_not_captured(config(), two)
    for flags in ({"cache_batch": 4}, {"gradient_checkpointing": True}, {"precision": "fp16"}):
        (name,) = flags
        assert f"--{name.replace('_', '-')}" in why_not_captured(config(**flags), one)
