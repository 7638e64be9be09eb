"""Metrics against trec_eval and SciPy (reference/make_trec_metrics.py), and against values known in
closed form."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from minilm_retriever.evaluation.metrics import (
    average_ranks,
    bootstrap_interval,
    metrics_from_ranks,
    paired_bootstrap,
    pearson,
    ranking_metrics,
    run_metrics,
    spearman,
    trec_order,
)

REFERENCE = json.loads(
    (Path(__file__).parent / "reference" / "trec_metrics.json").read_text("utf-8")
)


def ranked(scores: dict[str, float]) -> list[str]:
    ids = list(scores)
    return [ids[position] for position in trec_order(ids, list(scores.values()))]


# --- rankings -------------------------------------------------------------------------------------


def test_equals_trec_eval_on_runs_with_ties_and_graded_judgements():
    run = {query: ranked(scores) for query, scores in REFERENCE["run"].items()}
    queries, values = run_metrics(run, REFERENCE["judgements"], REFERENCE["ks"])
    assert sorted(queries) == sorted(REFERENCE["expected"])
    assert set(values) == set(REFERENCE["expected"][queries[0]])
    for metric, series in values.items():
        expected = [REFERENCE["expected"][query][metric] for query in queries]
        np.testing.assert_allclose(series, expected, rtol=0, atol=1e-9, err_msg=metric)


def test_equal_scores_are_ordered_by_id_descending_as_strings():
    assert ranked({"9": 1.0, "10": 1.0, "b": 2.0, "a": 2.0}) == ["b", "a", "9", "10"]


def test_scores_are_compared_as_float32():
    assert ranked({"a": 0.5 + 1e-9, "b": 0.5}) == ["b", "a"]
    assert ranked({"a": 0.5 + 1e-6, "b": 0.5}) == ["a", "b"]


def test_closed_form_of_one_graded_ranking():
    # Grades by rank 2, 0, 1; also judged: a 3 that was not found and a 0.
    values = ranking_metrics([[2, 0, 1]], [[0, 1, 2, 3]], ks=(1, 3))
    ideal = 3 + 2 / math.log2(3) + 1 / 2
    expected = {
        "accuracy@1": 1,
        "accuracy@3": 1,
        "recall@1": 1 / 3,
        "recall@3": 2 / 3,
        "mrr@1": 1,
        "mrr@3": 1,
    }
    expected |= {
        "map@1": 1 / 3,
        "map@3": (1 + 2 / 3) / 3,
        "ndcg@1": 2 / 3,
        "ndcg@3": (2 + 1 / 2) / ideal,
    }
    assert {metric: series[0] for metric, series in values.items()} == pytest.approx(
        expected, abs=1e-12
    )


def test_one_relevant_document_needs_only_its_rank():
    ranks = [1, 2, 7, 10, 11, 0]
    gains = np.zeros((len(ranks), 11))
    for row, rank in enumerate(ranks):
        gains[row, rank - 1] = rank > 0
    whole = ranking_metrics(gains, [[1]] * len(ranks), ks=(1, 10, 100))
    short = metrics_from_ranks(ranks, ks=(1, 10, 100))
    assert list(short) == list(whole)
    for metric in whole:
        np.testing.assert_allclose(short[metric], whole[metric], atol=1e-12, err_msg=metric)
    np.testing.assert_allclose(short["mrr@10"], [1, 1 / 2, 1 / 7, 1 / 10, 0, 0])


def test_judged_queries_count_whatever_was_found_and_others_do_not():
    run = {"found": ["d"], "unjudged": ["d"], "empty judgements": ["d"]}
    judgements = {
        "found": {"d": 1},
        "nothing relevant": {"d": 0},
        "no run": {"d": 1},
        "empty judgements": {},
    }
    queries, values = run_metrics(run, judgements, ks=(1,))
    assert queries == ["found", "nothing relevant", "no run"]
    assert all(series.tolist() == [1, 0, 0] for series in values.values())


def test_the_document_that_is_the_query_itself_can_be_left_out():
    run, judgements = {"x": ["x", "y"]}, {"x": {"y": 1}}
    assert run_metrics(run, judgements, ks=(1,))[1]["accuracy@1"] == [0]
    assert run_metrics(run, judgements, ks=(1,), ignore_identical_ids=True)[1]["accuracy@1"] == [1]


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="judged"):
        ranking_metrics([[1, 0]], [[1], [1]])
    with pytest.raises(ValueError, match="cut-off"):
        ranking_metrics([[1, 0]], [[1]], ks=(0, 1))


# --- correlation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("series", REFERENCE["series"])
def test_equals_scipy_on_series_with_ties(series):
    assert spearman(series["a"], series["b"]) == pytest.approx(series["spearman"], abs=1e-12)
    assert pearson(series["a"], series["b"]) == pytest.approx(series["pearson"], abs=1e-12)


def test_correlations_in_closed_form():
    assert average_ranks([30, 10, 20, 20]).tolist() == [4, 1, 2.5, 2.5]
    assert spearman([1, 2, 3, 4], [1, 8, 27, 64]) == pytest.approx(1)  # monotone
    assert pearson([1, 2, 3], [5, 3, 1]) == pytest.approx(-1)  # linear
    assert spearman([1, 2, 3], [1, 3, 2]) == pytest.approx(
        1 - 6 * 2 / (3 * (9 - 1))
    )  # 1 - 6 sum(d^2) / (n (n^2 - 1))
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3]))
    with pytest.raises(ValueError, match="shapes"):
        pearson([1, 2], [1, 2, 3])


# --- how sure -------------------------------------------------------------------------------------


def test_interval_of_symmetric_values_is_that_of_the_normal_law():
    values = np.linspace(-1, 1, 401)
    half = 1.96 * values.std() / math.sqrt(len(values))
    mean, low, high = bootstrap_interval(values)
    assert mean == pytest.approx(0, abs=1e-12)
    assert (low, high) == pytest.approx((-half, half), rel=0.03)


def test_interval_follows_confidence_and_skew():
    values = np.array([1.0] * 52 + [0.0] * 8)
    mean, low, high = bootstrap_interval(values)
    narrow = bootstrap_interval(values, confidence=0.5)
    assert low < narrow.low < mean < narrow.high < high < 1
    assert mean - low > high - mean  # the long tail is below


def test_interval_is_the_same_each_time_and_its_seed_matters_little():
    values = np.random.default_rng(3).random(50)
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values, seed=1) == pytest.approx(bootstrap_interval(values), abs=0.01)


def test_interval_where_there_is_no_spread():
    assert bootstrap_interval([0.5, 0.5]) == (0.5, 0.5, 0.5)
    single = bootstrap_interval([0.5])
    assert single.mean == 0.5 and math.isnan(single.low) and math.isnan(single.high)
    with pytest.raises(ValueError, match="shape"):
        bootstrap_interval([])
    with pytest.raises(ValueError, match="confidence"):
        bootstrap_interval([1, 2], confidence=95)


def test_pairing_cancels_what_both_find_hard():
    rng = np.random.default_rng(0)
    a = rng.random(100)
    b = a + 0.02 + rng.normal(0, 0.01, 100)
    gain = paired_bootstrap(a, b)
    assert gain.mean == pytest.approx(0.02, abs=0.003) and gain.low > 0.015
    assert bootstrap_interval(b).low < bootstrap_interval(a).high  # unpaired, the two overlap
    assert paired_bootstrap(b, a).mean == -gain.mean
    with pytest.raises(ValueError, match="same queries"):
        paired_bootstrap(a, b[1:])


def test_intervals_hold_the_truth_as_often_as_they_say():
    # Skewed like per-query reciprocal ranks; benchmarks/bootstrap_coverage.py does this at full
    # scale.
    ranks, shares = (
        np.array([1, 1 / 2, 1 / 3, 1 / 5, 1 / 10, 0]),
        np.array([0.7, 0.1, 0.05, 0.05, 0.05, 0.05]),
    )
    rng = np.random.default_rng(0)
    intervals = [
        bootstrap_interval(rng.choice(ranks, 60, p=shares), samples=1000) for _ in range(400)
    ]
    held = np.mean([interval.low <= ranks @ shares <= interval.high for interval in intervals])
    assert 0.93 <= held <= 0.97
