"""distributed.py: several processes are one run, with one process's numbers, and end together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from minilm_retriever.__main__ import main
from minilm_retriever.core.trainer import Trainer
from minilm_retriever.distributed import Ranks, join
from minilm_retriever.encoding.config import EncodeConfig
from minilm_retriever.encoding.encode_files import encode_files
from minilm_retriever.encoding.resumable_output import UnfinishedRun
from minilm_retriever.errors import run_command
from minilm_retriever.storage import atomic_files
from minilm_retriever.training import checkpoint
from minilm_retriever.training.callbacks import read_loss
from minilm_retriever.training.config import TrainConfig
from minilm_retriever.training.prepare import prepare
from minilm_retriever.training.run import train
from tests.conftest import ROOT
from tests.ranks import launch
from tests.test_encode_files import contents
from tests.test_training import log_rows, write_pairs

NEGATIVES = ("sentence_0", "sentence_1", "negative")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture()
def config(tiny_folder, tmp_path):
    """42 rows in batches of 8, the last of 2; every third text repeats."""
    write_pairs(tmp_path / "pairs.csv", 30)
    lines = (tmp_path / "pairs.csv").read_text("utf-8").splitlines()
    rows = [
        line + f",an answer to something else {i % 5}"
        for i, line in enumerate(lines[1:] + lines[1:13])
    ]
    (tmp_path / "pairs.csv").write_text(
        "\n".join([",".join(NEGATIVES), *sorted(rows)]) + "\n", "utf-8"
    )
    defaults = {
        "train": (str(tmp_path / "pairs.csv"),),
        "columns": NEGATIVES[:2],
        "model": str(tiny_folder),
        "out": str(tmp_path / "out"),
        "batch_size": 8,
        "epochs": 2,
        "log_steps": 1,
        "save_steps": 3,
        "device": "cpu",
    }
    return lambda **changes: TrainConfig(**{**defaults, **changes})


# --- the same numbers -----------------------------------------------------------------------------

EVERYTHING = {
    "columns": NEGATIVES,
    "false_negatives": "mask",
    "guide": "base",
    "symmetric": True,
    "matryoshka": (32, 8),
    "label_smoothing": 0.1,
    "weight_decay": 0.1,
}
MIXTURES = [
    {},
    {"columns": NEGATIVES, "cache_batch": 3, "gradient_checkpointing": True},
    {"gradient_accumulation_steps": 4, "false_negatives": "avoid"},
    {
        "batch_size": 41,
        "cache_batch": 2,
        **EVERYTHING,
    },  # the last batch has one row: less than ranks
    {**EVERYTHING, "guide_all": True, "gradient_accumulation_steps": 2},
    {"distinct": True, "false_negatives": "avoid", "symmetric": True, "stay_near": 0.5},
]
SCORED = [
    {"loss": "cosent", "batch_size": 41, "matryoshka": (32, 8), "query_prompt": "a team "},
    {"loss": "cosine", "score_range": (0.0, 5.0), "cache_batch": 3},
]


def float64_steps(configs: list[TrainConfig], place: Path, name: str) -> None:
    """All steps of each run in float64; losses and last weights into a file."""
    with join("cpu") as ranks:
        results = {}
        for number, config in enumerate(configs):
            run = prepare(config, ranks)
            run.base.encoder.double()
            steps = enumerate(run.batches(0, run.total))
            losses = [read_loss(run, n + 1, run.trainer.step(n, batches)) for n, batches in steps]
            results[f"{number} losses"] = torch.tensor(losses, dtype=torch.float64)
            results |= {
                f"{number} {key}": t.clone() for key, t in run.base.encoder.state_dict().items()
            }
        save_file(results, place / f"{name}-{ranks.rank}")
        ranks.finish()


def test_ranks_give_one_process_losses_and_weights(config, tmp_path):
    configs = [config(dropout=0.0, epochs=1, **changes) for changes in MIXTURES]
    scored = tmp_path / "scored.csv"
    lines = (tmp_path / "pairs.csv").read_text("utf-8").splitlines()
    rows = [f"{i % 6},{line}" for i, line in enumerate(lines[1:])]
    scored.write_text("\n".join([f"score,{lines[0]}", *rows]) + "\n", "utf-8")
    more = {"dropout": 0.0, "epochs": 1, "train": (str(scored),)}
    configs += [config(**changes, **more) for changes in SCORED]
    float64_steps(configs, tmp_path, "alone")
    alone = load_file(tmp_path / "alone-0")
    assert len(alone["0 losses"]) == 6 and alone["0 losses"].std() > 1e-4
    for world in (2, 3):
        ended = launch(
            world, float64_steps, configs, tmp_path, f"of{world}", place=tmp_path / "logs"
        )
        assert ended.statuses == [0] * world, ended.stderr
        for rank in range(world):
            results = load_file(tmp_path / f"of{world}-{rank}")
            assert results.keys() == alone.keys()
            for name, tensor in alone.items():
                assert torch.abs(results[name] - tensor).max() < 1e-9, (world, rank, name)
        weights = [load_file(tmp_path / f"of{world}-{rank}") for rank in range(world)]
        assert all(
            torch.equal(weights[0][name], other[name]) for other in weights[1:] for name in alone
        )


def test_rows_are_parted_evenly_and_in_order():
    for world in (1, 2, 5):
        for count in (0, 1, 4, 5, 16):
            parts = [Ranks(rank, world).own_rows(count) for rank in range(world)]
            assert [i for part in parts for i in range(count)[part]] == list(range(count))
            sizes = [part.stop - part.start for part in parts]
            assert max(sizes) - min(sizes) <= 1 and sizes == Ranks(0, world).split_sizes(count)


# --- a run of several ranks -----------------------------------------------------------------------


def run(config: TrainConfig, dies: dict[str, int] | None = None) -> int:
    """train.py, whose process may die: before a step, or in the writing of a state."""
    rank = int(os.environ["RANK"])
    step, save = Trainer.step, checkpoint.save_tensors
    saved = []

    def dying_step(self, number, batches):
        if dies and (rank, number) == (dies["rank"], dies.get("step")):
            os.kill(os.getpid(), dies.get("signal", signal.SIGKILL))
        return step(self, number, batches)

    def dying_save(path, tensors):
        saved.append(path)
        if dies and (rank, len(saved)) == (dies["rank"], dies.get("save")):
            os.kill(os.getpid(), signal.SIGKILL)
        save(path, tensors)

    Trainer.step, checkpoint.save_tensors = dying_step, dying_save
    return train(config)


def weights_of(config: TrainConfig) -> dict[str, torch.Tensor]:
    return load_file(f"{config.out}/model.safetensors")


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


def test_another_number_of_ranks_goes_on_within_rounding_and_evaluates_alike(config, tmp_path):
    flags = {"dropout": 0.0, "eval": config().train[0], "eval_steps": 5, "patience": 5}
    alone = config(out=str(tmp_path / "alone"), **flags)
    assert train(alone) == 0
    ended = launch(
        3,
        run,
        config(**flags),
        {"rank": 2, "step": 5, "signal": signal.SIGTERM},
        place=tmp_path / "logs",
    )
    assert ended.statuses == [128 + signal.SIGTERM] * 3, (
        ended.stderr
    )  # one received a signal: all do, after the same step
    assert ended.stderr.count("stopped after step 6; the same command resumes from there") == 1
    assert launch(2, run, config(**flags), place=tmp_path / "logs").statuses == [0, 0]
    for name, tensor in weights_of(alone).items():
        if name.endswith("key.bias"):
            continue  # its true gradient is zero, and AdamW makes whole steps of rounding
        torch.testing.assert_close(weights_of(config())[name], tensor, atol=1e-5, rtol=0)
    for ours, theirs in zip(log_rows(config().out), log_rows(alone.out), strict=True):
        assert ours.get("loss", 0) == pytest.approx(theirs.get("loss", 0), abs=1e-5)
        assert ours.get("eval", {}) == pytest.approx(theirs.get("eval", {}), abs=1e-5)


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


def errors_of(ended):
    """What ranks said, but for the columns they read."""
    return [line for line in ended.stderr.splitlines() if ": columns " not in line]


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


# --- encoding -------------------------------------------------------------------------------------


def encode(config: EncodeConfig, dies_at: int | None = None) -> int:
    """encode.py, of which rank 1 may die when it has written a shard."""
    add, added = UnfinishedRun.add, []

    def dying_add(self, shard, *args, **kinds):
        add(self, shard, *args, **kinds)
        added.append(shard)
        if len(added) == dies_at and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)

    UnfinishedRun.add = dying_add
    return run_command(lambda: encode_files(config) and None)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_ranks_make_the_folder_of_one_process_byte_for_byte(tiny_folder, tmp_path, dtype):
    (tmp_path / "in.txt").write_text("".join(f"text {i % 30}\n" for i in range(58)), "utf-8")
    defaults = EncodeConfig(
        inputs=(str(tmp_path / "in.txt"),),
        model=str(tiny_folder),
        shard_size=7,
        dtype=dtype,
        device="cpu",
        out="?",
    )
    alone, many = (
        replace(defaults, out=str(tmp_path / "alone")),
        replace(defaults, out=str(tmp_path / "many")),
    )
    encode_files(alone)
    ended = launch(2, encode, many, 2, place=tmp_path / "logs")
    assert ended.statuses == [2, -signal.SIGKILL] and ended.stderr.count("error: ") == 1
    stood = len(list(Path(f"{many.out}.run/unfinished").glob("0*.json")))
    assert stood >= 2
    ended = launch(2, encode, many, place=tmp_path / "logs", restarts=1)
    assert ended.statuses == [0, 0] and "resuming " in ended.stderr, ended.stderr
    assert contents(many.out) == contents(alone.out)
    assert launch(2, encode, many, place=tmp_path / "logs", restarts=1).statuses == [
        0,
        0,
    ]  # it stands: nothing to do
    assert launch(2, encode, many, place=tmp_path / "logs").statuses == [
        2,
        2,
    ]  # but a second command is refused


# --- as people start it ---------------------------------------------------------------------------

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
