"""Retrieval metrics of rankings, as trec_eval computes them. NumPy only.

BEIR uses trec_eval (https://github.com/usnistgov/trec_eval) through pytrec_eval. Its conventions:

- A document is relevant if its grade is at least 1; unjudged documents and negative grades count
  as 0.
- accuracy@k: 1 if one of the first k is relevant (trec_eval's success).
- recall@k: the relevant documents among the first k, over all relevant ones.
- mrr@k: 1 / rank of the first relevant, 0 beyond rank k (trec_eval's recip_rank, cut at k).
- map@k: the mean, over all relevant documents, of the precision at their rank, 0 beyond rank k.
- ndcg@k: the sum of grade / log2(rank + 1), over that of the best possible ranking.
- Equal scores are ordered by document id, descending as strings; scores are compared as float32.
- Every judged query counts, also where nothing is found or nothing is relevant (0); others do not.

Shapes: Q queries, K ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from minilm_retriever.types import Array, Float64Array

KS = (1, 3, 5, 10, 100)


def trec_order(ids: Sequence[str], scores: npt.ArrayLike) -> list[int]:
    """Positions of the documents, best first, ties as trec_eval breaks them."""
    compared = np.asarray(scores, np.float32).tolist()
    # Python orders strings by code point, which is the order of UTF-8 bytes in trec_eval's strcmp.
    return sorted(range(len(ids)), key=lambda i: (compared[i], ids[i]), reverse=True)


def run_metrics(
    run: Mapping[str, Sequence[str]],
    judgements: Mapping[str, Mapping[str, int]],
    ks: Sequence[int] = KS,
) -> tuple[list[str], dict[str, Float64Array]]:
    """The judged queries, and each metric of their ranked document ids, (Q,).

    run: query id -> document ids, best first; judgements: query id -> document id -> grade."""
    queries = [query for query, grades in judgements.items() if grades]
    gains = np.zeros((len(queries), max(ks)))  # (Q, K)
    for row, query in enumerate(queries):
        ranking = run.get(query, ())[: max(ks)]
        gains[row, : len(ranking)] = [judgements[query].get(document, 0) for document in ranking]
    return queries, ranking_metrics(gains, [judgements[query].values() for query in queries], ks)


def ranking_metrics(
    gains: npt.ArrayLike, judged: Sequence[Iterable[int]], ks: Sequence[int] = KS
) -> dict[str, Float64Array]:
    """Each metric (Q,) of grades by rank (Q, K); judged: all grades of each query, in any order."""
    gains = np.maximum(np.asarray(gains, np.float64), 0)
    if gains.ndim != 2 or len(gains) != len(judged):
        raise ValueError(f"gains {gains.shape} do not fit {len(judged)} judged queries")
    if min(ks) < 1:
        raise ValueError(f"a cut-off of {min(ks)}: ranks start at 1")
    ideal, total = _ideal_gains(judged, max(ks))  # (Q, max k) and (Q,)
    gains = np.pad(gains[:, : max(ks)], ((0, 0), (0, max(0, max(ks) - gains.shape[1]))))
    ranks = np.arange(1, max(ks) + 1)
    relevant = gains > 0
    hits = relevant.cumsum(axis=1)  # relevant documents up to each rank
    precision = (relevant * hits / ranks).cumsum(axis=1)
    first = np.where(relevant.any(axis=1), relevant.argmax(axis=1) + 1, np.inf)
    dcg = (gains / np.log2(ranks + 1)).cumsum(axis=1)
    ideal_dcg = (ideal / np.log2(ranks + 1)).cumsum(axis=1)
    metrics: dict[str, Float64Array] = {}
    for k in ks:
        metrics[f"accuracy@{k}"] = (hits[:, k - 1] > 0).astype(np.float64)
        metrics[f"recall@{k}"] = _ratio(hits[:, k - 1], total)
        metrics[f"mrr@{k}"] = np.where(first <= k, 1 / first, 0.0)
        metrics[f"map@{k}"] = _ratio(precision[:, k - 1], total)
        metrics[f"ndcg@{k}"] = _ratio(dcg[:, k - 1], ideal_dcg[:, k - 1])
    return metrics


def _ideal_gains(judged: Sequence[Iterable[int]], depth: int) -> tuple[Float64Array, Float64Array]:
    """Grades of the best possible ranking (Q, depth), and the number of relevant documents (Q,)."""
    ideal, total = np.zeros((len(judged), depth)), np.zeros(len(judged))
    for row, grades in enumerate(judged):
        positive = sorted((grade for grade in grades if grade > 0), reverse=True)
        ideal[row, : len(positive)] = positive[:depth]
        total[row] = len(positive)
    return ideal, total


def _ratio(part: Array, whole: Float64Array) -> Float64Array:
    """part / whole (Q,), 0 where there is nothing to find."""
    ratio: Float64Array = np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)
    return ratio


def rank_correlation(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Spearman's correlation of two series (N,); equal values share their mean rank. NaN where one
    does not vary."""
    x, y = (mean_ranks(np.asarray(values)) for values in (a, b))
    x, y = x - x.mean(), y - y.mean()
    norm = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / norm if norm else float("nan")


def mean_ranks(values: npt.NDArray[Any]) -> Float64Array:
    """The rank of each of N values, from 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Float64Array = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks
