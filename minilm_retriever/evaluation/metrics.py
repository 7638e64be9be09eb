"""How good a ranking or a similarity is, in the field's numbers, and how sure one can be of them.
NumPy only.

Rankings are measured as trec_eval does (https://github.com/usnistgov/trec_eval; BEIR uses it
through pytrec_eval):

- a document is relevant if its grade is at least 1; unjudged documents and negative grades count as
0; - accuracy@k   1 if one of the first k is relevant (trec_eval's success) - recall@k     the
relevant among the first k, over all relevant - mrr@k        1 / rank of the first relevant, 0 if it
is not among the first k (trec_eval's recip_rank, cut at k) - map@k        the mean, over all
relevant documents, of the precision at its rank, 0 if it is not among the first k - ndcg@k
gain = grade, discount = log2(rank + 1), over the same sum for the best possible ranking - equal
scores are ordered by document id, descending as strings; scores are compared as float32; - every
judged query counts, also where it found nothing (0) or where nothing is relevant (0); others do
not.

Shapes: Q queries, K ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

KS = (1, 3, 5, 10, 100)


# --- rankings -------------------------------------------------------------------------------------


def trec_order(ids: Sequence[str], scores: npt.ArrayLike) -> list[int]:
    """Positions of the documents, best first, ties as trec_eval breaks them."""
    exact = np.asarray(scores, np.float32).tolist()
    # Python orders strings by code point, which is the order of their UTF-8 bytes that trec_eval's
    # strcmp sees.
    return sorted(range(len(ids)), key=lambda i: (exact[i], ids[i]), reverse=True)


def run_metrics(
    run: Mapping[str, Sequence[str]],
    judgements: Mapping[str, Mapping[str, int]],
    ks: Sequence[int] = KS,
    *,
    ignore_identical_ids: bool = False,
) -> tuple[list[str], dict[str, Floats]]:
    """Metrics of ranked document ids, best first: the judged queries, and by metric a value for
    each of them.

    `ignore_identical_ids` leaves out a document whose id is the query's, as BEIR does where queries
    are documents."""
    queries = [query for query, grades in judgements.items() if grades]
    depth = max(ks)
    gains = np.zeros((len(queries), depth))  # (Q, K)
    for row, query in enumerate(queries):
        ranking = run.get(query, ())
        kept = [d for d in ranking if d != query] if ignore_identical_ids else ranking
        found = [judgements[query].get(document, 0) for document in kept[:depth]]
        gains[row, : len(found)] = found
    return queries, ranking_metrics(gains, [judgements[query].values() for query in queries], ks)


def ranking_metrics(
    gains: npt.ArrayLike, judged: Sequence[Iterable[int]], ks: Sequence[int] = KS
) -> dict[str, Floats]:
    """Metrics of (Q, K) grades by rank, best rank first; `judged` holds all grades of each query,
    in any order."""
    gains = np.maximum(np.asarray(gains, np.float64), 0)
    if gains.ndim != 2 or len(gains) != len(judged):
        raise ValueError(f"gains {gains.shape} do not fit {len(judged)} judged queries")
    if min(ks) < 1:
        raise ValueError(f"a cut-off of {min(ks)}: ranks start at 1")
    ideal, total = _ideal(judged, max(ks))  # (Q, max k) and (Q,)
    gains = np.pad(gains[:, : max(ks)], ((0, 0), (0, max(0, max(ks) - gains.shape[1]))))
    ranks = np.arange(1, max(ks) + 1)
    relevant = gains > 0
    hits = relevant.cumsum(axis=1)  # relevant documents up to each rank
    precision = (relevant * hits / ranks).cumsum(axis=1)
    first = np.where(relevant.any(axis=1), relevant.argmax(axis=1) + 1, np.inf)
    gained = (gains / np.log2(ranks + 1)).cumsum(axis=1)
    best = (ideal / np.log2(ranks + 1)).cumsum(axis=1)
    metrics: dict[str, Floats] = {}
    for k in ks:
        metrics[f"accuracy@{k}"] = (hits[:, k - 1] > 0).astype(np.float64)
        metrics[f"recall@{k}"] = _ratio(hits[:, k - 1], total)
        metrics[f"mrr@{k}"] = np.where(first <= k, 1 / first, 0.0)
        metrics[f"map@{k}"] = _ratio(precision[:, k - 1], total)
        metrics[f"ndcg@{k}"] = _ratio(gained[:, k - 1], best[:, k - 1])
    return metrics


def metrics_from_ranks(ranks: npt.ArrayLike, ks: Sequence[int] = KS) -> dict[str, Floats]:
    """The same metrics where each query has one relevant document, from its rank (Q,): 1 is best, 0
    is not found."""
    ranks = np.asarray(ranks, np.int64)
    rank = np.where(ranks > 0, ranks.astype(np.float64), np.inf)
    metrics: dict[str, Floats] = {}
    for k in ks:
        found = rank <= k
        metrics[f"accuracy@{k}"] = metrics[f"recall@{k}"] = found.astype(np.float64)
        metrics[f"mrr@{k}"] = metrics[f"map@{k}"] = np.where(found, 1 / rank, 0.0)
        metrics[f"ndcg@{k}"] = np.where(found, 1 / np.log2(rank + 1), 0.0)
    return metrics


def _ideal(judged: Sequence[Iterable[int]], depth: int) -> tuple[Floats, Floats]:
    """Grades of the best possible ranking (Q, depth), and the number of relevant documents (Q,)."""
    ideal, total = np.zeros((len(judged), depth)), np.zeros(len(judged))
    for row, grades in enumerate(judged):
        positive = sorted((grade for grade in grades if grade > 0), reverse=True)
        ideal[row, : len(positive)] = positive[:depth]
        total[row] = len(positive)
    return ideal, total


def _ratio(part: npt.NDArray[Any], whole: Floats) -> Floats:
    """Part over whole (Q,), 0 where there is nothing to find."""
    ratio: Floats = np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)
    return ratio


# --- correlation ----------------------------------------------------------------------------------


def pearson(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Pearson's correlation of two (Q,) series; NaN where one of them does not vary."""
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"series of shapes {x.shape} and {y.shape}")
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip(x @ y / np.sqrt((x @ x) * (y @ y)), -1, 1))


def spearman(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Spearman's rank correlation of two (Q,) series: Pearson's of the ranks, equal values sharing
    their mean rank."""
    return pearson(average_ranks(a), average_ranks(b))


def average_ranks(values: npt.ArrayLike) -> Floats:
    """Rank of each value from 1, the smallest first; equal values share the mean of their ranks."""
    _, place, count = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    last = count.cumsum()
    ranks: Floats = (last - (count - 1) / 2)[place]
    return ranks


# --- how sure -------------------------------------------------------------------------------------


class Interval(NamedTuple):
    """A mean, and the bounds between which the mean over all such queries lies, with the confidence
    asked for."""

    mean: float
    low: float
    high: float


def bootstrap_interval(
    values: npt.ArrayLike, *, confidence: float = 0.95, samples: int = 10_000, seed: int = 0
) -> Interval:
    """Mean of per-query values (Q,) and its bias-corrected and accelerated bootstrap interval.

    BCa: B. Efron, "Better bootstrap confidence intervals", JASA 82 (1987), for the mean. Per-query
    metrics are skewed (most queries at 1, a tail at 0), where the plain percentile interval is too
    narrow: measured by benchmarks/bootstrap_coverage.py. A single query has no spread to measure:
    its bounds are NaN."""
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or not len(x):
        raise ValueError(f"values of shape {x.shape}, not (Q,)")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not between 0 and 1")
    mean = float(x.mean())
    if len(x) == 1:
        return Interval(mean, float("nan"), float("nan"))
    if np.ptp(x) == 0:
        return Interval(mean, mean, mean)
    spread = x - mean
    acceleration = (spread**3).sum() / (6 * (spread**2).sum() ** 1.5)
    return _accelerated(mean, _resampled_means(x, samples, seed), acceleration, confidence)


def _accelerated(
    estimate: float, drawn: Floats, acceleration: float, confidence: float
) -> Interval:
    """Efron's interval from what resamples gave (samples,)."""
    samples = len(drawn)
    below = (np.count_nonzero(drawn < estimate) + np.count_nonzero(drawn == estimate) / 2) / samples
    normal = NormalDist()
    bias = normal.inv_cdf(min(max(below, 1 / (samples + 1)), samples / (samples + 1)))
    shares = []
    for tail in ((1 - confidence) / 2, (1 + confidence) / 2):
        z = bias + normal.inv_cdf(tail)
        shares.append(normal.cdf(bias + z / max(1 - acceleration * z, 1e-9)))
    low, high = np.quantile(drawn, shares)
    return Interval(estimate, float(low), float(high))


def bootstrap_statistic(
    statistic: Callable[[Rows], float],
    rows: int,
    *,
    confidence: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Any statistic of rows, given by their numbers (some of them twice), and its interval as in
    bootstrap_interval.

    The acceleration is that of a jackknife in at most 200 groups. NaN bounds where the statistic is
    not defined."""
    everything = np.arange(rows)
    estimate = statistic(everything)
    rng = np.random.default_rng(seed)
    drawn = np.array([statistic(rng.integers(rows, size=rows)) for _ in range(samples)])
    drawn = drawn[np.isfinite(drawn)]  # a resample of one row alone has no correlation
    groups = min(rows, 200)
    without = np.array(
        [statistic(everything[everything % groups != group]) for group in range(groups)]
    )
    if not np.isfinite(estimate) or not len(drawn) or not np.isfinite(without).all():
        return Interval(estimate, float("nan"), float("nan"))
    spread = without.mean() - without
    if not spread.any():
        return Interval(estimate, estimate, estimate)
    return _accelerated(
        estimate, drawn, (spread**3).sum() / (6 * (spread**2).sum() ** 1.5), confidence
    )


def paired_bootstrap(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    *,
    confidence: float = 0.95,
    samples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Mean gain of b over a on the same queries (Q,), with its interval: above 0 throughout, b is
    better.

    Queries are drawn, each with both of its values, so what makes a query hard for both models
    cancels out."""
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if x.shape != y.shape:
        raise ValueError(f"values of {x.shape} and {y.shape} are not of the same queries")
    return bootstrap_interval(y - x, confidence=confidence, samples=samples, seed=seed)


def _resampled_means(values: Floats, samples: int, seed: int) -> Floats:
    """Means (samples,) of as many draws with replacement, in portions that stay small."""
    generator = np.random.default_rng(seed)
    portion = max(1, (1 << 20) // len(values))
    means = []
    for start in range(0, samples, portion):
        rows = generator.integers(
            len(values), size=(min(portion, samples - start), len(values)), dtype=np.int32
        )
        means.append(values[rows].mean(axis=1))
    return np.concatenate(means)
