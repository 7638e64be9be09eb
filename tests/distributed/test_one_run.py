"""Several processes are one run, with one process's numbers."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from minilm_retriever.distributed import Ranks, join
from minilm_retriever.encoding.config import EncodeConfig
from minilm_retriever.encoding.encode_files import encode_files
from minilm_retriever.encoding.resumable_output import UnfinishedRun
from minilm_retriever.errors import run_command
from minilm_retriever.training.callbacks import read_loss
from minilm_retriever.training.config import TrainConfig
from minilm_retriever.training.prepare import prepare
from minilm_retriever.training.run import train
from tests.distributed.processes import NEGATIVES, run, weights_of
from tests.encoding.files import contents
from tests.ranks import launch
from tests.training.runs import log_rows

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
