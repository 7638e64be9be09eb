"""Several processes against one, as JSON: the same numbers, what is left when one is killed, and
what it costs.

    python benchmarks/scaling.py parity                  2, 4 ranks against one process, 50 steps
    python benchmarks/scaling.py kills --kills 20        a rank killed in a step or while it saves
    python benchmarks/scaling.py speed --rounds 3        2 ranks of 1 thread against 1 of 2
    python benchmarks/scaling.py encoding --rows 1024    the same for encode.py, and 2 Ray actors
    python benchmarks/scaling.py reading --rows 200000   rows a second of one reader
    python benchmarks/scaling.py pieces                  a rank's part of mask and scores; search

parity: one global batch. speed and encoding: the real model, interleaved. pieces: 65,536 rows.

docs/scaling.md is written from what these print."""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from minilm_retriever.storage import tensors
from minilm_retriever.training import checkpoint

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from minilm_retriever.core.loss import info_nce_loss  # noqa: E402
from minilm_retriever.core.trainer import Trainer  # noqa: E402
from minilm_retriever.data.pairs import read_pairs  # noqa: E402
from minilm_retriever.distributed import join  # noqa: E402
from minilm_retriever.encoding import ray_engine  # noqa: E402
from minilm_retriever.encoding.config import EncodeConfig  # noqa: E402
from minilm_retriever.encoding.encode_files import encode_files  # noqa: E402
from minilm_retriever.encoding.inputs import RowReader  # noqa: E402
from minilm_retriever.kernels.memory import keep_freed_memory  # noqa: E402
from minilm_retriever.pretrained.config import BASE_FOLDER  # noqa: E402
from minilm_retriever.search.exact import top_k  # noqa: E402
from minilm_retriever.training.callbacks import read_loss  # noqa: E402
from minilm_retriever.training.config import TrainConfig  # noqa: E402
from minilm_retriever.training.objective import false_negative_mask  # noqa: E402
from minilm_retriever.training.prepare import prepare  # noqa: E402
from minilm_retriever.training.run import KEPT_BYTES, train  # noqa: E402
from tests import tiny  # noqa: E402
from tests.ranks import launch  # noqa: E402

EXAMPLE = ROOT / "examples/job_skills/train.csv"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=list(WORK))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--model", default=str(ROOT / BASE_FOLDER))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        found = WORK[args.what](args, Path(place))
    print(json.dumps({args.what: found}, indent=2))


def small_minilm(place: Path) -> str:
    """MiniLM's shape (6 layers, 12 heads, 4 x wide inside), an eighth as wide."""
    tiny.LAYERS, tiny.HIDDEN, tiny.HEADS, tiny.FFN = 6, 48, 12, 192
    return str(tiny.make_tiny_bert(place / "model"))


def with_negatives(place: Path) -> str:
    """The example's pairs, with another row's skills as a hard negative of each."""
    pairs = read_pairs(EXAMPLE)
    queries, documents = pairs.texts
    rows = [
        (q, d, documents[(i * 7 + 3) % len(documents)])
        for i, (q, d) in enumerate(zip(queries, documents, strict=True))
    ]
    with (place / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("sentence_0", "sentence_1", "negative"), *rows])
    return str(place / "pairs.csv")


# --- the same numbers -----------------------------------------------------------------------------


def fifty_steps(config: TrainConfig, path: str, double: bool) -> None:
    """Losses and last weights of a run."""
    torch.set_num_threads(1)
    with join("cpu") as ranks:
        run = prepare(config, ranks)
        if double:
            run.base.encoder.double()
        losses = [
            read_loss(run, number + 1, run.trainer.step(number, batches))
            for number, batches in enumerate(run.batches(0, 50))
        ]
        if ranks.is_first:
            save_file(
                {
                    "losses": torch.tensor(losses, dtype=torch.float64),
                    **run.base.encoder.state_dict(),
                },
                path,
            )
        ranks.finish()


def parity(args: argparse.Namespace, place: Path) -> list[dict[str, Any]]:
    """The largest differences to one process."""
    common = {
        "train": (with_negatives(place),),
        "model": small_minilm(place),
        "out": str(place / "out"),
    }
    common |= {"dropout": 0.0, "device": "cpu", "max_steps": 50, "batch_size": 32}
    arms: dict[str, dict[str, Any]] = {
        "plain": {"columns": ("sentence_0", "sentence_1")},
        "hard negatives, gradient caching, mask": {"cache_batch": 5, "false_negatives": "mask"},
    }
    found = []
    for name, flags in arms.items():
        for double in (False, True):
            config = TrainConfig(**common, **flags)
            fifty_steps(config, str(place / "alone"), double)
            alone = load_file(place / "alone")
            for world in (2, 4):
                ended = launch(
                    world,
                    fifty_steps,
                    config,
                    str(place / "many"),
                    double,
                    place=place / "logs",
                    seconds=900,
                )
                assert ended.statuses == [0] * world, ended.stderr
                apart = {
                    key: float((t - alone[key]).abs().max())
                    for key, t in load_file(place / "many").items()
                }
                key_bias = max(value for key, value in apart.items() if key.endswith("key.bias"))
                weights = max(
                    v for k, v in apart.items() if k != "losses" and not k.endswith("key.bias")
                )
                line = {"run": name, "dtype": "float64" if double else "float32", "ranks": world}
                line |= {"loss": apart["losses"], "weights": weights, "key.bias": key_bias}
                print(json.dumps(line), file=sys.stderr)
                found.append(line)
    return found


# --- killed ---------------------------------------------------------------------------------------


def mortal(config: TrainConfig, dies: dict[str, Any]) -> int:
    """train.py; a rank dies between forward and backward of a step, or half way through a file of a
    state."""
    torch.set_num_threads(1)
    losses, writes = [], []
    loss, save = Trainer.batch_loss, tensors.save_tensors
    ours = int(os.environ["RANK"]) == dies.get("rank")

    def dying_loss(self: Trainer, *batch: Any) -> torch.Tensor:
        value = loss(self, *batch)
        losses.append(1)
        if ours and len(losses) == dies.get("step"):
            os.kill(os.getpid(), signal.SIGKILL)
        return value

    def dying_save(path: Path, tensors: Any) -> None:
        save(path, tensors)
        writes.append(1)
        if ours and len(writes) == dies.get("file"):
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    Trainer.batch_loss, tensors.save_tensors = dying_loss, dying_save  # type: ignore[method-assign]
    return train(config)


def kills(args: argparse.Namespace, place: Path) -> dict[str, Any]:
    """A rank is killed; the others end, what stands is whole, and the run's end is the undisturbed
    one's."""
    flags = {
        "train": (with_negatives(place),),
        "model": small_minilm(place),
        "device": "cpu",
        "save_steps": 2,
    }
    flags |= {"max_steps": 18, "batch_size": 16, "log_steps": 6}
    whole = TrainConfig(**flags, out=str(place / "whole"))
    assert launch(2, mortal, whole, {}, place=place / "logs", seconds=600).statuses == [0, 0]
    expected = load_file(f"{whole.out}/model.safetensors")
    chance, seconds, found = (
        random.Random(0),
        [],
        dict.fromkeys(("in a step", "in a save", "same bits", "damaged"), 0),
    )
    for number in range(args.kills):
        config = TrainConfig(**flags, out=str(place / f"killed{number}"))
        step = number % 2 == 0
        dies = {"rank": chance.randrange(2), "step": chance.randrange(3, 18)}
        dies = dies if step else {"rank": 0, "file": chance.randrange(4, 27)}
        ended = launch(2, mortal, config, dies, place=place / "logs", seconds=600)
        seconds.append(ended.apart)
        assert ended.statuses[dies["rank"]] == -signal.SIGKILL, ended
        assert ended.statuses[1 - dies["rank"]] not in (0, None), ended
        found["in a step" if step else "in a save"] += 1
        found["damaged"] += len(checkpoint.latest(f"{config.out}.run").skipped)
        assert launch(
            2, mortal, config, {}, place=place / "logs", restarts=1, seconds=600
        ).statuses == [0, 0]
        weights = load_file(f"{config.out}/model.safetensors")
        found["same bits"] += all(torch.equal(t, expected[name]) for name, t in weights.items())
    return {
        "kills": args.kills,
        **found,
        "most seconds until the other ended": round(max(seconds), 1),
    }


# --- what it costs --------------------------------------------------------------------------------


def timed_steps(config: TrainConfig, path: str, threads: int) -> None:
    """Seconds of a step, the first left out, processor seconds of all ranks, and seconds of summing
    gradients alone."""
    torch.set_num_threads(threads)
    with join("cpu") as ranks:
        run = prepare(config, ranks)
        trainer = run.trainer
        keep_freed_memory(KEPT_BYTES)
        times, work, sums = [], [], []
        for number, batches in enumerate(run.batches(0, 5)):
            ranks.barrier()
            began, worked = time.perf_counter(), time.process_time()
            trainer.step(number, batches)
            times.append(time.perf_counter() - began)
            work.append(ranks.all_reduce_sum(time.process_time() - worked))
        for parameter in trainer.parameters:
            parameter.grad = torch.zeros_like(parameter)
        for _ in range(3):
            ranks.barrier()
            began = time.perf_counter()
            ranks.all_reduce_gradients(trainer.parameters)
            sums.append(time.perf_counter() - began)
        if ranks.is_first:
            Path(path).write_text(
                json.dumps([statistics.median(part) for part in (times[1:], work[1:], sums)]),
                "utf-8",
            )
        ranks.finish()


def speed(args: argparse.Namespace, place: Path) -> list[dict[str, Any]]:
    """Medians over the rounds, contestants in turn."""
    found = []
    for batch, cache in ((16, None), (64, 32)):
        config = TrainConfig(
            train=(str(EXAMPLE),),
            model=args.model,
            out=str(place / "out"),
            device="cpu",
            batch_size=batch,
            cache_batch=cache,
            max_steps=5,
        )
        seen: dict[int, list[list[float]]] = {1: [], 2: []}
        for _ in range(args.rounds):
            for world in seen:
                ended = launch(
                    world,
                    timed_steps,
                    config,
                    str(place / "time"),
                    2 // world,
                    place=place / "logs",
                    seconds=600,
                )
                assert ended.statuses == [0] * world, ended.stderr
                seen[world].append(json.loads((place / "time").read_text("utf-8")))
        one, two = (
            [statistics.median(column) for column in zip(*seen[world], strict=True)]
            for world in seen
        )
        ratios = [b[0] / a[0] for a, b in zip(seen[1], seen[2], strict=True)]
        line = {
            "batch": batch,
            "1 rank, 2 threads: s a step": one[0],
            "2 ranks, 1 thread: s a step": two[0],
        }
        line |= {
            "ratio": statistics.median(ratios),
            "of rounds": [min(ratios), max(ratios)],
            "s to sum": two[2],
        }
        line |= {"processor s a step": [one[1], two[1]], "ratio of these": two[1] / one[1]}
        print(json.dumps(line), file=sys.stderr)
        found.append(line)
    return found


def reading(args: argparse.Namespace, place: Path) -> dict[str, float]:
    """Rows a second out of files, as shards."""
    import pyarrow
    import pyarrow.parquet

    texts = read_pairs(EXAMPLE).texts[0]
    many = [texts[i % len(texts)] for i in range(args.rows)]
    with (place / "rows.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in many)
    pyarrow.parquet.write_table(pyarrow.table({"text": many}), place / "rows.parquet")
    found = {}
    for name in ("rows.jsonl", "rows.parquet"):
        config = EncodeConfig(inputs=(str(place / name),), out="nowhere")
        began = time.perf_counter()
        rows = sum(
            len(shard.ids)
            for shard in RowReader(config, config.inputs).shards(write_bad_rows=False)
        )
        found[name] = round(rows / (time.perf_counter() - began))
    return found


def encoded(config: EncodeConfig) -> None:
    """encode.py."""
    torch.set_num_threads(config.threads or 1)
    encode_files(config)


def encoding(args: argparse.Namespace, place: Path) -> dict[str, Any]:
    """Seconds of encode.py on distinct texts, model opened and all, contestants in turn."""
    texts = [f"{i} {text}" for i, text in enumerate(read_pairs(EXAMPLE).texts[0] * 8)][: args.rows]
    (place / "rows.txt").write_text("\n".join(texts), "utf-8")
    seen: dict[str, list[float]] = {
        "1 process, 2 threads": [],
        "2 ranks, 1 thread": [],
        "2 Ray actors, 1 thread": [],
    }
    for number in range(args.rounds):
        for name, times in seen.items():
            config = EncodeConfig(
                inputs=(str(place / "rows.txt"),),
                model=args.model,
                out=str(place / f"{name}{number}"),
                device="cpu",
                threads=2 if "2 threads" in name else 1,
                shard_size=64,
                engine="ray" if "Ray" in name else "local",
            )
            began = time.perf_counter()
            if "Ray" in name:
                ray_engine.encode_files_on_ray(config)
            else:
                ended = launch(
                    2 // (config.threads or 1), encoded, config, place=place / "logs", seconds=600
                )
                assert set(ended.statuses) == {0}, ended.stderr
            times.append(time.perf_counter() - began)
    first = [p.read_bytes() for p in sorted((place / "2 ranks, 1 thread0").glob("vectors-*"))]
    other = [p.read_bytes() for p in sorted((place / "2 Ray actors, 1 thread0").glob("vectors-*"))]
    medians = {name: round(statistics.median(times), 1) for name, times in seen.items()}
    return {"rows": len(texts), **medians, "ranks and actors: same bytes": first == other}


def pieces(args: argparse.Namespace, place: Path) -> dict[str, Any]:
    """What one of 64 ranks does beside encoding in a step of 65,536 rows, and exact search."""
    chance = np.random.default_rng(0)
    queries, documents = (chance.integers(0, 1 << 20, 65_536) for _ in range(2))
    began = time.perf_counter()
    false_negative_mask(queries, documents, slice(2048, 3072))
    mask = time.perf_counter() - began
    own, everyone = (
        torch.randn(1024, 384, requires_grad=True),
        torch.randn(65_536, 384, requires_grad=True),
    )
    began = time.perf_counter()
    info_nce_loss(own, everyone, first=2048).backward()
    scores = time.perf_counter() - began
    vectors = [chance.standard_normal((16_384, 384), np.float32) for _ in range(12)]
    began = time.perf_counter()
    top_k(vectors[0][:64], vectors, 10)
    search = (time.perf_counter() - began) / 64 / (12 * 16_384)
    return {
        "mask of 1,024 of 65,536 rows: s": round(mask, 3),
        "their loss and its gradient: s": round(scores, 2),
        "exact search: ms a query in 10 million": round(search * 1e10, 1),
    }


WORK = {
    "parity": parity,
    "kills": kills,
    "speed": speed,
    "encoding": encoding,
    "reading": reading,
    "pieces": pieces,
}

if __name__ == "__main__":
    main()
