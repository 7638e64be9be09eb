"""Make trec_metrics.json: random runs with ties and graded judgements, measured by trec_eval
(pytrec_eval).

python -m venv /tmp/trec && /tmp/trec/bin/pip install pytrec-eval-terrier==0.5.11 scipy==1.17.1
/tmp/trec/bin/python tests/reference/make_trec_metrics.py

The runs hold what tends to go wrong: few distinct scores, scores that differ only beyond float32,
ids whose order as strings is not that of numbers, ids outside ASCII, negative grades, queries with
nothing relevant, with nothing found, with more relevant documents than ranks, without a run, and
runs of queries that nobody judged. Also Spearman and Pearson of series with ties, by SciPy."""

from __future__ import annotations

import json
import random
from importlib.metadata import version
from pathlib import Path

import pytrec_eval
from scipy.stats import pearsonr, spearmanr

KS = (1, 3, 5, 10, 100)
THEIRS = {"accuracy": "success", "recall": "recall", "map": "map_cut", "ndcg": "ndcg_cut"}
ODD_IDS = ["é", "日本", "\U0001f600", "\ufffd", "Z", "a-b"]


def make_query(rng: random.Random, kind: int) -> tuple[dict[str, float], dict[str, int]]:
    """A run and judgements, of one of a few kinds."""
    ids = [f"d{number}" for number in range(rng.choice((3, 12, 150)))] + ODD_IDS
    levels = rng.choice((1, 3, 10, 1000))
    run = {
        i: rng.randrange(levels) / levels - 0.25
        for i in rng.sample(ids, rng.randrange(1, len(ids) + 1))
    }
    if kind == 1:  # differences below float32's resolution are ties
        run = {i: 0.5 + rng.randrange(3) * 1e-9 for i in run}
    if kind == 2:
        run = {}
    highest = rng.choice((1, 2, 4))
    share = rng.choice((0.05, 0.3, 0.9))
    grades = {i: rng.randrange(-1, highest + 1) if rng.random() < share else 0 for i in ids}
    judged = {i: grades[i] for i in rng.sample(ids, rng.randrange(1, len(ids) + 1))}
    if kind == 3:
        judged = dict.fromkeys(judged, 0)
    return run, judged


def main() -> None:
    """Write the fixture beside this script."""
    rng = random.Random(7)
    run, judgements = {}, {}
    for number in range(60):
        run[f"q{number}"], judgements[f"q{number}"] = make_query(rng, number % 10)
    del judgements["q4"]  # nobody judged it
    cuts = ",".join(map(str, KS))
    names = {"recip_rank"} | {f"{name}.{cuts}" for name in THEIRS.values()}
    measured = pytrec_eval.RelevanceEvaluator(judgements, names).evaluate(run)
    expected = {}
    for query, values in measured.items():
        row = expected[query] = {}
        for k in KS:
            for ours, theirs in THEIRS.items():
                row[f"{ours}@{k}"] = values[f"{theirs}_{k}"]
            row[f"mrr@{k}"] = values["recip_rank"] if values["recip_rank"] * k >= 1 - 1e-9 else 0.0
    series = []
    for levels in (2, 5, 1000):
        a = [rng.randrange(levels) / levels for _ in range(40)]
        b = [0.5 * x + rng.randrange(levels) / levels for x in a]
        series.append(
            {
                "a": a,
                "b": b,
                "spearman": float(spearmanr(a, b)[0]),
                "pearson": float(pearsonr(a, b)[0]),
            }
        )
    peers = {name: version(name) for name in ("pytrec-eval-terrier", "scipy")}
    fixture = {
        "peers": peers,
        "ks": KS,
        "run": run,
        "judgements": judgements,
        "expected": expected,
        "series": series,
    }
    lines = (
        f"{json.dumps(key)}: {json.dumps(value, sort_keys=True)}" for key, value in fixture.items()
    )
    Path(__file__).with_name("trec_metrics.json").write_text(
        "{\n" + ",\n".join(lines) + "\n}\n", "utf-8"
    )


if __name__ == "__main__":
    main()
