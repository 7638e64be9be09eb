"""What to do about repeated rows: keep, mask, avoid, distinct, a guide. Quality against steps, on
repetitive data.

    python benchmarks/negatives.py --out FILE.json --steps 100 --seeds 0 1 2 --sts FILE \
        --floor PAIRS --overhead

The 282 pairs of examples/job_skills/train.csv are drawn with replacement to 100,000 rows, so that
the floor under the loss is the published run's. Each arm trains on the same rows with the same
settings but for its own flags, and is evaluated along the way on occupations and wordings that
training never sees (352 lists of skills are searched), and at the end on STS (Spearman), for what
was forgotten. Results go to FILE.json after every run; a run that is there already is not done
again. docs/negatives.md is written from it: --table FILE.json."""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from minilm_retriever.curation.duplicates import batch_floor, loss_floor, repeat_share
from minilm_retriever.data.pairs import read_pairs, read_scored_pairs
from minilm_retriever.encoder.encode_texts import encode_texts
from minilm_retriever.evaluation.bootstrap import spearman
from minilm_retriever.kernels.memory import keep_freed_memory
from minilm_retriever.storage import atomic_files
from minilm_retriever.training.batches import shuffle
from minilm_retriever.training.config import TrainConfig
from minilm_retriever.training.dataset import BatchRows
from minilm_retriever.training.prepare import TrainingRun, prepare
from minilm_retriever.training.run import KEPT_BYTES

EXAMPLE = Path("examples/job_skills")
ROWS = 100_000
ARMS: dict[str, dict[str, Any]] = {
    "keep": {},
    "mask": {"false_negatives": "mask"},
    "avoid": {"false_negatives": "avoid"},
    "distinct": {"distinct": True},
    "guide": {"false_negatives": "mask", "guide": "base"},
}
BASE: dict[str, float] = {}  # the base model's figures, measured once


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="negatives.json")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument(
        "--at",
        type=int,
        nargs="+",
        help="steps to evaluate after (default: 1/8, 1/4, 1/2, 3/4, all)",
    )
    parser.add_argument("--threads", type=int)
    parser.add_argument("--sts", help="scored pairs: what was forgotten")
    parser.add_argument(
        "--floor", help="pairs (description, skills) whose floor is predicted and measured"
    )
    parser.add_argument(
        "--overhead", action="store_true", help="time what mask and avoid add to a step"
    )
    parser.add_argument(
        "--table",
        metavar="FILE.json",
        help="print the tables of a finished run, and do nothing else",
    )
    args = parser.parse_args()
    if args.table:
        print(tables(json.loads(Path(args.table).read_text("utf-8"))))
        return
    out = Path(args.out)
    found = json.loads(out.read_text("utf-8")) if out.exists() else {"runs": []}
    if args.floor:
        found["floor"] = floor_figures(args.floor)
        atomic_files.write_json(out, found)
    done = {(run["arm"], run["seed"], run["steps"]) for run in found["runs"]}
    with tempfile.TemporaryDirectory() as folder:
        train = repetitive(Path(folder) / "train.csv")
        if args.overhead:
            found["overhead"] = overhead(train, args)
            atomic_files.write_json(out, found)
        for seed in args.seeds:
            for arm in args.arms:
                if (arm, seed, args.steps) not in done:
                    found["runs"].append(run_arm(arm, seed, train, args))
                    atomic_files.write_json(out, found)
    print(tables(found))


def repetitive(path: Path) -> Path:
    """The example's pairs drawn with replacement to ROWS rows."""
    pairs = read_pairs(EXAMPLE / "train.csv", ["description", "skills"])
    drawn = np.random.default_rng(0).integers(0, len(pairs), ROWS)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(pairs.columns)
        writer.writerows((pairs.texts[0][row], pairs.texts[1][row]) for row in drawn)
    return path


def run_arm(arm: str, seed: int, train: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One run: quality at several steps along it."""
    config = TrainConfig(
        train=(str(train),),
        out="never-written",
        max_steps=args.steps,
        seed=seed,
        threads=args.threads,
        **ARMS[arm],
    )
    run = prepare(config)
    at = set(
        args.at or [args.steps // 8, args.steps // 4, args.steps // 2, args.steps * 3 // 4]
    ) | {0, args.steps}
    points, losses, seconds = [], [], 0.0
    for number, batches in enumerate([None, *run.batches(0, args.steps)]):
        if batches is not None:
            began = time.monotonic()
            loss = float(run.trainer.step(number - 1, batches).losses.sum())
            seconds += time.monotonic() - began
            losses.append((loss, run.objective.floor(batches[0].rows)))
        if number in at:
            loss, floor = np.mean(losses[-50:], axis=0) if losses else (0.0, 0.0)
            point = {"step": number, "minutes": seconds / 60, "loss": loss, "floor": floor}
            values = {} if number else BASE  # the base model is the same for all
            if not values:
                values.update(evaluate(run, args.sts if number in (0, args.steps) else None))
            points.append({**point, **values})
            print(arm, seed, {k: round(float(v), 4) for k, v in points[-1].items()}, flush=True)
    return {"arm": arm, "seed": seed, "steps": args.steps, "points": points}


def evaluate(run: TrainingRun, sts: str | None) -> dict[str, float]:
    """Accuracy@1 and MRR@10 on the held-out files, over all lists of skills; Spearman on STS."""
    values = {}
    corpus = [
        row["skills"]
        for row in csv.DictReader((EXAMPLE / "corpus.csv").open(encoding="utf-8", newline=""))
    ]
    documents = encode_texts(run.base.encoder, run.base.tokenizer, corpus)
    for name in ("unseen_wordings", "unseen_occupations"):
        pairs = read_pairs(EXAMPLE / f"{name}.csv", ["description", "skills"])
        scores = encode_texts(run.base.encoder, run.base.tokenizer, pairs.texts[0]) @ documents.T
        own = scores[np.arange(len(pairs)), [corpus.index(skills) for skills in pairs.texts[1]]]
        ranks = 1 + (scores > own[:, None]).sum(axis=1)
        values[f"{name} accuracy@1"] = float((ranks == 1).mean())
        values[f"{name} mrr@10"] = float(np.where(ranks <= 10, 1 / ranks, 0.0).mean())
    if sts:
        left, right, gold = read_scored_pairs(sts)
        vectors = encode_texts(run.base.encoder, run.base.tokenizer, left + right)
        values["sts"] = spearman(
            (vectors[: len(left)] * vectors[len(left) :]).sum(axis=1), np.array(gold)
        )
    return values


def overhead(train: Path, args: argparse.Namespace, rounds: int = 15) -> dict[str, float]:
    """Milliseconds: a step, its loss with and without masks (interleaved, medians), and drawing an
    epoch of batches."""
    keep_freed_memory(KEPT_BYTES)
    runs = {
        arm: prepare(
            TrainConfig(train=(str(train),), out="never-written", threads=args.threads, **ARMS[arm])
        )
        for arm in ("keep", "mask", "avoid")
    }
    times: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], Any]) -> None:
        began = time.perf_counter()
        work()
        times.setdefault(name, []).append(1000 * (time.perf_counter() - began))

    keep = runs["keep"]
    for number, batches in enumerate(keep.batches(0, rounds)):
        timed("step", partial(keep.trainer.step, number, batches))
        rows, ids, mask, _ = batches[0]
        device = keep.trainer.device
        vectors = keep.base.encoder(ids.to(device), mask.to(device)).detach().requires_grad_()
        for _ in range(20):
            for arm in ("keep", "mask"):
                timed(f"loss, {arm}", partial(loss_and_gradient, runs[arm], vectors, rows))
    for _ in range(3):
        for arm in ("keep", "avoid"):
            timed(f"order of 6,250 batches, {arm}", partial(runs[arm].sampler.epoch, 0))
    return {name: float(np.median(values)) for name, values in times.items()}


def loss_and_gradient(run: TrainingRun, vectors: Tensor, rows: BatchRows) -> None:
    """What comes between the two passes through the model."""
    run.objective.loss(vectors, rows).backward()


def floor_figures(path: str) -> dict[str, float]:
    """The floor of rows drawn to 100,000, in closed form and in the batches of an epoch."""
    pairs = read_pairs(path, ["description", "skills"])
    drawn = np.random.default_rng(0).integers(0, len(pairs), ROWS)
    _, texts = np.unique(np.array(pairs.texts[1])[drawn], return_inverse=True)
    rows = shuffle([ROWS], 42, 0)[0]
    floors = [batch_floor(np.stack([texts[rows[i : i + 16]]] * 2)) for i in range(0, ROWS, 16)]
    frequencies = np.bincount(texts)
    return {
        "distinct documents": len(frequencies),
        "predicted": loss_floor(frequencies, 16),
        "measured, 500 steps": float(np.mean(floors[:500])),
        "measured, one epoch": float(np.mean(floors)),
        "share of batches with a repeat": repeat_share(frequencies, 16),
    }


def tables(found: dict[str, Any]) -> str:
    """Markdown: for each arm and step the mean over seeds and the standard deviation; and the
    floor."""
    heads = (
        "arm",
        "steps",
        "minutes",
        "loss of the last 50 steps (floor)",
        "unseen wordings acc@1, MRR@10",
        "unseen occupations acc@1, MRR@10",
        "STS",
    )
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    runs = found["runs"]
    for arm in ARMS:
        mine = [run["points"] for run in runs if run["arm"] == arm]
        for points in zip(*mine, strict=True):
            wordings, occupations = (
                f"{spread(points, f'{name} accuracy@1')}, {spread(points, f'{name} mrr@10')}"
                for name in ("unseen_wordings", "unseen_occupations")
            )
            sts = spread(points, "sts") if "sts" in points[0] else ""
            loss = f"{spread(points, 'loss', 4)} ({np.mean([p['floor'] for p in points]):.4f})"
            lines.append(
                f"| {arm} | {points[0]['step']} | {np.mean([p['minutes'] for p in points]):.1f} "
                f"| {loss if points[0]['step'] else ''} | {wordings} | {occupations} | {sts} |"
            )
        lines.append(f"| ({len(mine)} seeds) | | | | | | |")
    for title in ("floor", "overhead"):
        if title in found:
            lines += ["", f"| {title} | |", "|---|---|"]
            lines += [f"| {name} | {value:.4g} |" for name, value in found[title].items()]
    return "\n".join(lines)


def spread(points: Any, name: str, places: int = 3) -> str:
    """mean ± standard deviation over the seeds."""
    values = [point[name] for point in points]
    deviation = f" ± {np.std(values, ddof=1):.{places}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{places}f}{deviation}"


if __name__ == "__main__":
    main()
