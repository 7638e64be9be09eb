"""Our ranking metrics beside trec_eval's (pytrec_eval) on random runs: the largest difference of
each.

python benchmarks/metrics.py [--queries 2000] [--seed 0] [--peer PYTHON]

Runs have few distinct scores (ties), scores that differ beyond float32, ids outside ASCII, grades
from -1 to 4, queries with nothing relevant and with nothing found. PYTHON is an interpreter with
pytrec-eval-terrier: by default that of .peers/bench, which `make bench` makes."""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np

from minilm_retriever.evaluation.metrics import run_metrics, trec_order

ROOT = Path(__file__).resolve().parent.parent
KS = (1, 3, 5, 10, 100)
THEIRS = {"accuracy": "success", "recall": "recall", "map": "map_cut", "ndcg": "ndcg_cut"}
MEASURE = """
import json, sys, pytrec_eval
given = json.load(sys.stdin)
evaluator = pytrec_eval.RelevanceEvaluator(given["judgements"], given["names"])
json.dump(evaluator.evaluate(given["run"]), sys.stdout)
"""


def draw(rng: random.Random) -> tuple[dict[str, float], dict[str, int]]:
    """A query's run and judgements."""
    ids = [f"d{number}" for number in range(rng.choice((2, 12, 300)))] + [
        "é",
        "日本",
        "\U0001f600",
        "\ufffd",
    ]
    levels, step = rng.choice((1, 3, 10, 10_000)), rng.choice((1.0, 1.0, 1e-8))
    found = rng.sample(ids, rng.randrange(0, len(ids) + 1))
    run = {i: 0.5 + step * (rng.randrange(levels) / levels - 0.5) for i in found}
    highest, share = rng.choice((0, 1, 2, 4)), rng.choice((0.05, 0.3, 0.9))
    judged = rng.sample(ids, rng.randrange(1, len(ids) + 1))
    return run, {i: rng.randrange(-1, highest + 1) if rng.random() < share else 0 for i in judged}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peer", default=str(ROOT / ".peers/bench/bin/python"), metavar="PYTHON")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    drawn = {f"q{number}": draw(rng) for number in range(args.queries)}
    run = {query: scores for query, (scores, _) in drawn.items()}
    judgements = {query: grades for query, (_, grades) in drawn.items()}
    cuts = ",".join(map(str, KS))
    question = {
        "run": run,
        "judgements": judgements,
        "names": ["recip_rank", *(f"{n}.{cuts}" for n in THEIRS.values())],
    }
    try:
        process = subprocess.run(
            [args.peer, "-c", MEASURE],
            input=json.dumps(question),
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError) as fault:
        sys.exit(
            f"{args.peer} has no pytrec_eval: see --help "
            f"({getattr(fault, 'stderr', None) or fault})"
        )
    theirs = json.loads(process.stdout)
    ranked = {
        query: [list(s)[i] for i in trec_order(list(s), list(s.values()))]
        for query, s in run.items()
    }
    queries, ours = run_metrics(ranked, judgements, KS)
    worst: dict[str, float] = {}
    for name, values in ours.items():
        kind, k = name.split("@")
        for query, mine in zip(queries, values, strict=True):
            peer = theirs[query]
            rank = peer["recip_rank"]
            wanted = (
                (rank if rank * int(k) >= 1 - 1e-9 else 0.0)
                if kind == "mrr"
                else peer[f"{THEIRS[kind]}_{k}"]
            )
            worst[kind] = max(worst.get(kind, 0.0), float(np.abs(mine - wanted)))
    print(
        f"{len(queries):,} judged queries, cut-offs {cuts}; the largest difference from "
        "trec_eval's value of a query"
    )
    for kind, difference in worst.items():
        print(f"{kind:<10}{difference:.1e}   (mean of {kind}@10: {ours[f'{kind}@10'].mean():.4f})")
    sys.exit(max(worst.values()) > 1e-9)


if __name__ == "__main__":
    main()
