"""metrics.py against trec_eval (reference/make_trec_metrics.py), and against values known in closed
form."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from minilm_retriever.evaluation.metrics import ranking_metrics, run_metrics, trec_order

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


def test_closed_form_where_one_document_is_relevant():
    ranks = np.array([1, 2, 7, 10, 11, np.inf])  # of the relevant one, in a ranking of 11
    gains = ranks[:, None] == np.arange(1, 12)
    values = ranking_metrics(gains, [[1]] * len(ranks), ks=(1, 10, 100))
    for k in (1, 10, 100):
        found = ranks <= k
        for metric in ("accuracy", "recall"):
            np.testing.assert_array_equal(values[f"{metric}@{k}"], found)
        for metric in ("mrr", "map"):
            np.testing.assert_allclose(values[f"{metric}@{k}"], found / ranks, atol=1e-12)
        np.testing.assert_allclose(values[f"ndcg@{k}"], found / np.log2(ranks + 1), atol=1e-12)
    np.testing.assert_allclose(values["mrr@10"], [1, 1 / 2, 1 / 7, 1 / 10, 0, 0])


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


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="judged"):
        ranking_metrics([[1, 0]], [[1], [1]])
    with pytest.raises(ValueError, match="cut-off"):
        ranking_metrics([[1, 0]], [[1]], ks=(0, 1))
