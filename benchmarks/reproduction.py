"""The published run again: rows drawn to 100,000, the printed recipe, fit()'s, and the closest that
was found.

    python benchmarks/reproduction.py --data ROWS.jsonl --steps 2000 --threads 2

ROWS.jsonl has a `description` and a `skills` field in each line, with the frequencies of the
published data. Prints the mean loss of every 500 steps beside the published one and beside the
floor that duplicated positives put under it, and writes benchmarks/results/reproduction.json as it
goes."""

from __future__ import annotations

import argparse
import csv
import json
import random
import tempfile
import time
from collections import Counter
from math import log
from pathlib import Path
from typing import Any

from minilm_retriever.storage import atomic_files
from minilm_retriever.training.config import RECIPES, TrainConfig
from minilm_retriever.training.prepare import TrainingRun, prepare

ROWS, LOG_STEPS = 100_000, 500
RUNS: dict[str, dict[str, Any]] = {
    "closest": {"learning_rate": 2e-5, "warmup_steps": 100, "weight_decay": 0.01},
    "printed": {},
    "fit": RECIPES["fit"],
}
# From the published card: mean loss of the 500 steps before each step.
PUBLISHED = {
    500: 0.0787,
    1000: 0.047,
    1500: 0.0427,
    2000: 0.0379,
    2500: 0.039,
    3000: 0.0394,
    18500: 0.0361,
}


def main() -> None:
    """Run what is asked for and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="JSONL with description and skills")
    parser.add_argument("--model", default="checkpoints/all-MiniLM-L6-v2")
    parser.add_argument(
        "--steps", type=int, default=2000, help="of 18,750: the schedule is that of the whole run"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--out", default="benchmarks/results/reproduction.json")
    args = parser.parse_args()
    out = Path(args.out)
    results = json.loads(out.read_text("utf-8")) if out.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        pairs = draw(Path(args.data), Path(folder) / "pairs.csv")
        for name in args.runs:
            config = TrainConfig(
                train=(str(pairs),),
                model=args.model,
                out=folder,
                threads=args.threads,
                device="cpu",
                **RUNS[name],
            )
            run = prepare(config)
            results[name] = {"settings": RUNS[name], "rows": []}
            began = time.monotonic()
            for row in windows(run, args.steps):
                results[name]["rows"].append({**row, "seconds": round(time.monotonic() - began)})
                atomic_files.make_folder(out.parent)
                atomic_files.write_json(out, results)
                print(name, row, flush=True)
    print(table(results))


def draw(source: Path, target: Path, count: int = ROWS) -> Path:
    """So many rows with replacement, as the published data set was drawn from few distinct pairs;
    seeded."""
    rows = [json.loads(line) for line in source.read_text("utf-8").splitlines()]
    drawn = random.Random(0).choices(rows, k=count)
    with target.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [("sentence_0", "sentence_1"), *((r["description"], r["skills"]) for r in drawn)]
        )
    return target


def windows(run: TrainingRun, steps: int) -> Any:
    """Mean loss, and mean floor of the same batches, of every LOG_STEPS steps."""
    losses, floors = [], []
    for number, batches in enumerate(run.batches(0, steps)):
        losses.append(float(run.trainer.step(number, batches).losses.sum()))
        floors.append(floor([run.data.texts[i] for i in batches[0].rows.texts[1]]))
        if (number + 1) % LOG_STEPS == 0:
            mean = [sum(values[-LOG_STEPS:]) / LOG_STEPS for values in (losses, floors)]
            yield {"step": number + 1, "loss": round(mean[0], 4), "floor": round(mean[1], 4)}


def floor(positives: list[str]) -> float:
    """Mean of log(1 + K) over a batch, K the other copies of a row's positive: no model can go
    below."""
    counts = Counter(positives)
    return sum(log(counts[text]) for text in positives) / len(positives)


def table(results: dict[str, Any]) -> str:
    """Markdown: a row for each 500 steps."""
    names = [name for name in RUNS if name in results]
    lines = [
        "| step | published | " + " | ".join(names) + " | floor of these batches |",
        "|" + "---|" * (len(names) + 3),
    ]
    found = {name: {row["step"]: row for row in results[name]["rows"]} for name in names}
    for step in sorted({step for rows in found.values() for step in rows}):
        cells = [
            f"{found[name][step]['loss']:.4f}" if step in found[name] else "" for name in names
        ]
        floors = {found[name][step]["floor"] for name in names if step in found[name]}
        lines.append(
            f"| {step} | {PUBLISHED.get(step, '')} | {' | '.join(cells)} | {max(floors):.4f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
