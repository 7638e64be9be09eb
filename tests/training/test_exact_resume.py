"""A run resumes exactly wherever it was stopped, and only as the same run."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from minilm_retriever.core.trainer import Trainer
from minilm_retriever.errors import UserError
from minilm_retriever.training import checkpoint, run
from minilm_retriever.training.run import train
from tests.conftest import THREADS
from tests.training.runs import Killed, end_of, run_killed, same, write_pairs

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


def test_two_runs_in_one_folder_are_refused(config, tmp_path):
    from minilm_retriever.storage import atomic_files

    with atomic_files.lock(tmp_path / "out.run"), pytest.raises(UserError, match="another process"):
        train(config())
