"""minilm_retriever.train: the command's run, from Python."""

from __future__ import annotations

import csv
import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from minilm_retriever import Encoder, UserError, train
from minilm_retriever.__main__ import main
from minilm_retriever.training import trained as module

ROWS = [(f"who mends clock {n}?", f"a nurse, a cook and {n} clerks") for n in range(24)]
HELD_OUT = [(f"who mends bell {n}?", f"a cook and {n} clerks") for n in range(8)]


def write_pairs(path):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("query", "document"), *ROWS])
    return str(path)


@pytest.fixture()
def pairs_file(tmp_path):
    return write_pairs(tmp_path / "pairs.csv")


@pytest.fixture()
def tune(tiny_folder):
    """train() on the tiny BERT."""
    settings = {"model": tiny_folder, "batch_size": 8, "epochs": 2, "device": "cpu"}
    return lambda pairs=ROWS, **changes: train(pairs, **{**settings, **changes})


def weights(encoder):
    return encoder.model.encoder.bert.state_dict()


def command(pairs_file, tiny_folder, out, *flags):
    words = ["train", "--train", pairs_file, "--model", str(tiny_folder), "--out", str(out)]
    return main([*words, "--batch-size", "8", "--epochs", "2", "--device", "cpu", *flags])


def objects():
    yield "tuples", lambda: ROWS
    yield "dicts", lambda: [{"query": q, "document": d} for q, d in ROWS]
    yield "generator", lambda: (row for row in ROWS)
    yield (
        "DataFrame",
        lambda: pytest.importorskip("pandas").DataFrame(ROWS, columns=["query", "document"]),
    )


@pytest.fixture(scope="module")
def commanded(tiny_folder, tmp_path_factory):
    """The folder that the command publishes."""
    place = tmp_path_factory.mktemp("commanded")
    assert command(write_pairs(place / "pairs.csv"), tiny_folder, place / "out") == 0
    return place / "out"


@pytest.mark.parametrize(("kind", "make"), objects(), ids=[kind for kind, _ in objects()])
def test_it_gives_the_commands_bits(kind, make, tune, commanded, tmp_path):
    expected = load_file(commanded / "model.safetensors")
    tuned = tune(make())
    assert expected.keys() <= weights(tuned.encoder).keys()
    assert all(torch.equal(weights(tuned.encoder)[n], t) for n, t in expected.items()), kind
    tuned.save(tmp_path / "saved")
    saved = load_file(tmp_path / "saved/model.safetensors")
    assert all(torch.equal(saved[name], tensor) for name, tensor in expected.items())
    names = {path.name for path in commanded.iterdir()}
    assert names == {path.name for path in (tmp_path / "saved").iterdir()}


def test_it_gives_them_in_another_thread_too(tune):
    results = []
    thread = threading.Thread(target=lambda: results.append(tune()))
    thread.start()
    thread.join()
    assert np.array_equal(results[0].encoder.encode("a cook"), tune().encoder.encode("a cook"))


def test_two_threads_and_a_callback_that_trains_take_turns(tune):
    expected = tune().encoder.encode("a cook")
    with ThreadPoolExecutor(2) as pool:
        for tuned in pool.map(lambda _: tune(), range(2)):
            assert np.array_equal(tuned.encoder.encode("a cook"), expected)
    nested = tune(callback=lambda event: event.step == 1 and tune(epochs=1) and False)
    assert np.array_equal(nested.encoder.encode("a cook"), expected)


def test_a_recipe_is_the_flags(tune, tiny_folder, pairs_file, tmp_path):
    flags = ("--recipe", "robust", "--epochs", "1", "--mix", "0.5", "--max-steps", "3")
    assert command(pairs_file, tiny_folder, tmp_path / "out", *flags) == 0
    expected = load_file(tmp_path / "out/model.safetensors")
    tuned = tune(recipe="robust", epochs=1, mix=0.5, max_steps=3)
    assert all(torch.equal(weights(tuned.encoder)[n], t) for n, t in expected.items())
    assert tuned.finished.config.false_negatives == "avoid" and tuned.finished.config.symmetric


def test_what_comes_back(tune, tmp_path):
    tuned = tune(eval=HELD_OUT, out=tmp_path / "mine")
    assert [row["step"] for row in tuned.history if "eval" in row] == [0, 3, 6]
    log = (tmp_path / "mine/metrics.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in log] == tuned.history
    assert set(tuned.evaluation.before) == set(tuned.evaluation.after) >= {"mrr@10", "loss"}
    assert tuned.folder == tmp_path / "mine"
    again = Encoder(tmp_path / "mine", device="cpu")
    assert np.array_equal(again.encode("a cook"), tuned.encoder.encode("a cook"))
    assert "6 steps" in repr(tuned) and "mrr@10: " in repr(tuned) and "mine" in repr(tuned)
    assert "<td>mrr@10</td>" in tuned._repr_html_() and "<polyline" in tuned._repr_html_()
    with pytest.raises(UserError, match="exists"):
        tuned.save(tmp_path / "mine")


def test_what_is_trained_can_be_trained_on(tune):
    first = tune(epochs=1)
    before = {name: tensor.clone() for name, tensor in weights(first.encoder).items()}
    second = tune(model=first.encoder)
    assert all(torch.equal(weights(first.encoder)[n], t) for n, t in before.items())
    assert not np.array_equal(second.encoder.encode("a cook"), first.encoder.encode("a cook"))
    assert not first.encoder.model.encoder.training


def test_a_callback_learns_of_steps_and_evaluations(tune):
    events = []
    tuned = tune(eval=HELD_OUT, callback=events.append)
    assert [event.step for event in events if event.loss is not None] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in events if event.evaluation] == [0, 3, 6]
    assert events[-1].evaluation["mrr@10"] == tuned.history[-1]["eval"]["mrr@10"]
    assert all(event.total == 6 for event in events)


@pytest.mark.parametrize("held_out", [None, HELD_OUT])
def test_a_callback_that_returns_true_ends_the_run(held_out, tune):
    tuned = tune(eval=held_out, callback=lambda event: np.bool_(event.step == 2))
    assert tuned.finished.record.steps == 2
    assert "stopped early, after 2 of 6 steps" in " ".join(tuned.finished.record.notes)
    assert bool(tuned.evaluation) == bool(held_out)
    assert tune(callback=lambda event: "yes").finished.record.steps == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rat": 1}, "learning_rat is no setting of train: did you mean learning_rate"),
        ({"epoch": 1}, "epoch is no setting of train: did you mean epochs"),
        ({"epochs": "2"}, "epochs is '2'; it must be a whole number"),
        ({"epochs": 0}, "--epochs must be at least 1"),
        ({"recipe": "strong"}, "recipe is 'strong'; it can be printed, fit, robust"),
        ({"dry_run": True}, "dry_run trains nothing"),
        ({"eval": [("a", 1)]}, "<list>"),
    ],
)
def test_a_wrong_setting_is_named(settings, message, tune):
    with pytest.raises(UserError, match=message):
        tune(**settings)


def test_nothing_of_the_process_is_changed(tune, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    threads, handlers = torch.get_num_threads(), signal.getsignal(signal.SIGINT)
    tune(threads=1)
    assert torch.equal(torch.rand(3), expected) and torch.get_num_threads() == threads
    assert signal.getsignal(signal.SIGINT) is handlers
    with pytest.raises(UserError):
        tune([("a", "b")], loss="cosine")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("named", [True, False])
def test_control_c_keeps_the_state_and_says_how_to_go_on(named, tune, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    place = {"out": tmp_path / "mine"} if named else {}

    def press(event):
        if event.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=r"stopped after step 2; the same call") as stop:
        tune(callback=press, **place)
    if not named:
        (place["out"],) = (path.parent / "model" for path in tmp_path.glob("*/model.run"))
        assert f"with out={str(place['out'])!r} goes on" in str(stop.value)
    steps = []
    resumed = tune(callback=lambda event: steps.append(event.step), **place)
    assert steps == [3, 4, 5, 6]
    whole = tune()
    assert all(
        torch.equal(weights(resumed.encoder)[n], t) for n, t in weights(whole.encoder).items()
    )


def test_the_run_of_other_held_out_rows_is_not_resumed(tune, tmp_path):
    def press(event):
        if event.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        tune(eval=HELD_OUT, callback=press, out=tmp_path / "mine")
    with pytest.raises(UserError, match="data <list>"):
        tune(eval=HELD_OUT[:-1], out=tmp_path / "mine")


def test_several_processes_are_the_commands(tune, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(module, "start_or_resume", None)
    with pytest.raises(UserError, match="torchrun"):
        tune()
