"""Ranks end together: killed, broken, mistaken, or started again by torchrun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from minilm_retriever.__main__ import main
from minilm_retriever.core.trainer import Trainer
from minilm_retriever.storage import atomic_files
from minilm_retriever.training import checkpoint
from minilm_retriever.training.config import TrainConfig
from minilm_retriever.training.run import train
from tests.conftest import ROOT
from tests.distributed.processes import NEGATIVES, errors_of, run, weights_of
from tests.ranks import launch
from tests.training.runs import log_rows


def test_killed_ranks_end_the_others_and_the_run_goes_on_to_the_same_bits(config, tmp_path):
    whole = config(
        out=str(tmp_path / "whole"), eval=config().train[0], eval_steps=5, columns=NEGATIVES
    )
    assert launch(2, run, whole, place=tmp_path / "logs").statuses == [0, 0]
    assert [row["step"] for row in log_rows(whole.out) if "loss" in row] == list(range(1, 13))
    for number, dies in enumerate(
        [{"rank": 1, "step": 7}, {"rank": 0, "step": 4}, {"rank": 0, "save": 5}]
    ):
        stopped = config(
            out=str(tmp_path / f"stopped{number}"), eval=whole.eval, eval_steps=5, columns=NEGATIVES
        )
        ended = launch(2, run, stopped, dies, place=tmp_path / "logs")
        assert (
            ended.statuses[dies["rank"]] == -signal.SIGKILL
            and ended.statuses[1 - dies["rank"]] == 2
        ), ended
        assert ended.stderr.count("error: ") == 1 and "ended without a message" in ended.stderr
        states = [
            path for path in Path(f"{stopped.out}.run").iterdir() if path.name.startswith("step-")
        ]
        assert states and all(checkpoint.latest(path.parent).path for path in states)
        assert not checkpoint.latest(states[0].parent).skipped
        if number == 2:  # and once more, on the way back
            launch(2, run, stopped, {"rank": 1, "step": 9}, place=tmp_path / "logs")
        ended = launch(2, run, stopped, place=tmp_path / "logs", restarts=1)
        assert ended.statuses == [0, 0] and "resuming from" in ended.stderr
        assert all(
            torch.equal(tensor, weights_of(whole)[name])
            for name, tensor in weights_of(stopped).items()
        )
        assert [r.get("loss") for r in log_rows(stopped.out)] == [
            r.get("loss") for r in log_rows(whole.out)
        ]


def broken(config: TrainConfig, what: str) -> int:
    """train.py, in which rank 1 meets a mistake of the user's, or a bug of ours."""
    if os.environ["RANK"] == "1":
        loss = Trainer.batch_loss
        if what == "bug":
            del Trainer.batch_loss
        else:
            Trainer.batch_loss = lambda *a: loss(*a) * float("nan")
    return train(config)


def two_folders(config: TrainConfig, place: Path) -> int:
    """train.py in a folder of its own for each rank, the pairs of which differ."""
    folder = place / os.environ["RANK"]
    os.chdir(folder)
    return main(
        [
            "train",
            "--train",
            "mine.csv",
            "--model",
            config.model,
            "--out",
            config.out,
            "--device",
            "cpu",
        ]
    )


def test_a_mistake_on_one_rank_ends_all_with_its_line(config, tmp_path):
    ended = launch(2, broken, config(), "nan", place=tmp_path / "logs")
    assert ended.statuses == [2, 2]
    assert (
        ended.stderr.count("error: ") == 1
        and "error: rank 1: the loss of step 1 is not finite" in ended.stderr
    )
    ended = launch(2, broken, config(), "bug", place=tmp_path / "logs")
    assert (
        ended.statuses == [2, 1]
        and ended.stderr.count("AttributeError") == 1
        and "error: " not in ended.stderr
    )


def test_ranks_that_disagree_on_data_are_told_in_one_line(config, tmp_path):
    for rank in ("0", "1"):
        (tmp_path / rank).mkdir()
        (tmp_path / rank / "mine.csv").write_text(
            f"sentence_0,sentence_1\na,b\nc,{rank}\n", "utf-8"
        )
    ended = launch(2, two_folders, config(), tmp_path, place=tmp_path / "logs")
    assert ended.statuses == [2, 2]
    (line,) = errors_of(ended)
    assert "the ranks disagree on data mine.csv" in line
    (tmp_path / "1/mine.csv").unlink()
    ended = launch(2, two_folders, config(), tmp_path, place=tmp_path / "logs")
    assert ended.statuses == [2, 2]
    (line,) = errors_of(ended)
    assert line.startswith("error: rank 1: mine.csv")
    with atomic_files.lock(f"{config().out}.run"):
        ended = launch(2, run, config(), place=tmp_path / "logs")
    assert ended.statuses == [2, 2] and ended.stderr.count("error: another process is writing") == 1


DYING = """
import os, pathlib, signal, sys
from minilm_retriever.core import trainer
from minilm_retriever.__main__ import main
step, flag = trainer.Trainer.step, pathlib.Path("died")
def dying(self, number, batches):
    if number == 7 and os.environ["RANK"] == "1" and not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, number, batches)
trainer.Trainer.step = dying
sys.exit(main(["train", *sys.argv[1:]]))
"""


def test_torchrun_comes_back_from_the_newest_state_by_itself(config, tmp_path):
    whole = config(out=str(tmp_path / "whole"))
    assert launch(2, run, whole, place=tmp_path / "logs").statuses == [0, 0]
    (tmp_path / "dying.py").write_text(DYING, "utf-8")
    flags = {
        "train": whole.train[0],
        "model": whole.model,
        "out": "out",
        "batch-size": 8,
        "epochs": 2,
    }
    flags |= {"log-steps": 1, "save-steps": 3, "device": "cpu"}
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    command = [
        *torchrun,
        "--max-restarts",
        "1",
        "dying.py",
        *(str(w) for k, v in flags.items() for w in (f"--{k}", v)),
    ]
    command += ["--columns", *whole.columns]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert (
        tmp_path / "died"
    ).exists() and "resuming from out.run/step-00000006 at step 6 of 12" in done.stderr
    assert all(
        torch.equal(t, weights_of(whole)[n])
        for n, t in load_file(tmp_path / "out/model.safetensors").items()
    )
