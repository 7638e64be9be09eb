"""How often 95 % bootstrap intervals hold the truth: 1,000 draws of queries from populations whose
mean is known.

python benchmarks/bootstrap_coverage.py [--draws 1000] [--samples 2000] [--json FILE]

Beside the interval of bootstrap.py (BCa) stands the plain percentile interval of the same resampled
means. "gain" draws both models' values of a query together, and asks for the interval of their
difference."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import stats

from minilm_retriever.evaluation.bootstrap import mean_interval

RECIPROCAL = np.array([1 / rank for rank in range(1, 11)] + [0.0])


def reciprocal_ranks(first: float) -> np.ndarray:
    """Per-query reciprocal ranks with this share of queries answered at rank 1, and a tail."""
    return np.array([first] + [(1 - first) * 0.08] * 9 + [(1 - first) * 0.28])


# name: values a query can take (or both models' pairs of values), and their probabilities
POPULATIONS: dict[str, tuple[np.ndarray, np.ndarray]] = {
    "mrr, 85 % at rank 1": (RECIPROCAL, reciprocal_ranks(0.85)),
    "mrr, 60 % at rank 1": (RECIPROCAL, reciprocal_ranks(0.6)),
    "mrr, 20 % at rank 1": (RECIPROCAL, reciprocal_ranks(0.2)),
    "accuracy 0.9": (np.array([0.0, 1.0]), np.array([0.1, 0.9])),
    "accuracy 0.6": (np.array([0.0, 1.0]), np.array([0.4, 0.6])),
    "gain in mrr": (
        np.array([[1, 1], [0.5, 1], [1, 0.5], [1 / 3, 1], [0.1, 1], [0, 0.5], [0.5, 0.5]]),
        np.array([0.5, 0.15, 0.05, 0.1, 0.05, 0.05, 0.1]),
    ),
}
Method = Callable[[np.ndarray, int], tuple[float, float]]


def bca(values: np.ndarray, samples: int) -> tuple[float, float]:
    """The interval of bootstrap.py."""
    x = values[:, 1] - values[:, 0] if values.ndim == 2 else values
    return mean_interval(x, samples)[1:]


def percentile(values: np.ndarray, samples: int) -> tuple[float, float]:
    """The plain percentile interval."""
    x = values[:, 1] - values[:, 0] if values.ndim == 2 else values
    rng = np.random.default_rng(0)
    interval = stats.bootstrap(
        [x], np.mean, n_resamples=samples, batch=(1 << 18) // len(x), method="percentile", rng=rng
    ).confidence_interval
    return float(interval.low), float(interval.high)


def coverage(method: Method, name: str, queries: int, draws: int, samples: int) -> float:
    """Share of draws whose interval holds the population's mean."""
    values, shares = POPULATIONS[name]
    truth = (
        float(shares @ values)
        if values.ndim == 1
        else float(shares @ (values[:, 1] - values[:, 0]))
    )
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(draws):
        low, high = method(values[rng.choice(len(values), queries, p=shares)], samples)
        held += low - 1e-12 <= truth <= high + 1e-12
    return held / draws


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--queries", type=int, nargs="+", default=[50, 100, 300, 1000])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    print(f"{'population':<22}{'queries':>8}{'BCa':>9}{'percentile':>12}")
    for name in POPULATIONS:
        for queries in args.queries:
            covered = {
                method.__name__: coverage(method, name, queries, args.draws, args.samples)
                for method in (bca, percentile)
            }
            rows.append({"population": name, "queries": queries, **covered})
            print(
                f"{name:<22}{queries:>8}{covered['bca']:>9.1%}{covered['percentile']:>12.1%}",
                flush=True,
            )
    if args.json:
        args.json.write_text(
            json.dumps({"draws": args.draws, "samples": args.samples, "rows": rows}, indent=1),
            "utf-8",
        )


if __name__ == "__main__":
    main()
