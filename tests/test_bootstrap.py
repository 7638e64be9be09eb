"""bootstrap.py against correlations that SciPy gave (reference/make_trec_metrics.py), and against
intervals known in closed form."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest

from minilm_retriever.errors import UserError
from minilm_retriever.evaluation.bootstrap import (
    BCA_ROWS,
    correlation_interval,
    mean_interval,
    pearson,
    spearman,
)
from tests.conftest import REFERENCE

SERIES = json.loads((REFERENCE / "trec_metrics.json").read_text("utf-8"))["series"]


# --- correlation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("series", SERIES)
def test_equals_scipy_on_series_with_ties(series):
    assert spearman(series["a"], series["b"]) == pytest.approx(series["spearman"], abs=1e-12)
    assert pearson(series["a"], series["b"]) == pytest.approx(series["pearson"], abs=1e-12)


def test_correlations_in_closed_form():
    assert spearman([30, 10, 20, 20], [4, 1, 2.5, 2.5]) == pytest.approx(
        1
    )  # equal values share their mean rank
    assert spearman([1, 2, 3, 4], [1, 8, 27, 64]) == pytest.approx(1)  # monotone
    assert pearson([1, 2, 3], [5, 3, 1]) == pytest.approx(-1)  # linear
    assert spearman([1, 2, 3], [1, 3, 2]) == pytest.approx(
        1 - 6 * 2 / (3 * (9 - 1))
    )  # 1 - 6 sum(d^2) / (n (n^2 - 1))
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3]))
    assert math.isnan(pearson([1], [2]))
    with pytest.raises(ValueError, match="broadcast"):
        pearson([1, 2], [1, 2, 3])


# --- how sure -------------------------------------------------------------------------------------


def test_interval_of_symmetric_values_is_that_of_the_normal_law():
    values = np.linspace(-1, 1, 401)
    half = 1.96 * values.std() / math.sqrt(len(values))
    mean, low, high = mean_interval(values)
    assert mean == pytest.approx(0, abs=1e-12)
    assert (low, high) == pytest.approx((-half, half), rel=0.03)


def test_interval_follows_skew():
    values = np.array([1.0] * 52 + [0.0] * 8)
    mean, low, high = mean_interval(values)
    assert low < mean < high < 1
    assert mean - low > high - mean  # the long tail is below


def test_interval_is_the_same_each_time_and_which_resamples_matters_little():
    values = np.random.default_rng(3).random(50)
    assert mean_interval(values) == mean_interval(values)
    assert mean_interval(values, samples=9_000) == pytest.approx(mean_interval(values), abs=0.01)


def test_intervals_have_the_digits_that_were_published_before_scipy_computed_them():
    values = np.random.default_rng(282).choice([1, 1 / 2, 1 / 3, 1 / 5, 1 / 10, 0], 282)
    assert mean_interval(values) == pytest.approx((0.368913, 0.329905, 0.410165), abs=5e-5)


def test_many_rows_have_no_correction_and_hardly_another_interval():
    values = np.random.default_rng(0).choice([1.0, 0.5, 0.0], BCA_ROWS + 1, p=[0.8, 0.1, 0.1])
    assert mean_interval(values) == pytest.approx(mean_interval(values[:-1]), abs=5e-4)


def test_interval_where_there_is_no_spread():
    assert mean_interval([0.5, 0.5]) == (0.5, 0.5, 0.5)
    single = mean_interval([0.5])
    assert single.mean == 0.5 and math.isnan(single.low) and math.isnan(single.high)


def test_interval_of_a_correlation_is_that_of_fishers_z():
    rng = np.random.default_rng(0)
    people = rng.normal(size=800)
    cosines = people + rng.normal(size=800)
    r, low, high = correlation_interval(pearson, people, cosines)
    bounds = np.tanh(np.arctanh(r) + np.array([-1, 1]) * 1.96 / math.sqrt(800 - 3))
    assert (low, high) == pytest.approx(tuple(bounds), abs=0.01)
    gain = correlation_interval(spearman, people, people, cosines)
    assert gain.mean == pytest.approx(1 - spearman(cosines, people)) and gain.low > 0.2
    assert correlation_interval(spearman, people, cosines, cosines) == (0, 0, 0)


def test_correlations_of_few_pairs_have_bounds_though_some_resamples_do_not_vary():
    for correlation in (pearson, spearman):
        estimate, low, high = correlation_interval(correlation, [4.5, 0.5, 5.0], [0.9, 0.1, 0.8])
        assert low <= estimate <= high
    assert math.isnan(correlation_interval(pearson, [1, 1, 1], [0.1, 0.2, 0.3]).mean)


def test_pairing_cancels_what_both_find_hard():
    rng = np.random.default_rng(0)
    a = rng.random(100)
    b = a + 0.02 + rng.normal(0, 0.01, 100)
    gain = mean_interval(b - a)
    assert gain.mean == pytest.approx(0.02, abs=0.003) and gain.low > 0.015
    assert mean_interval(b).low < mean_interval(a).high  # unpaired, the two overlap
    assert mean_interval(a - b).mean == -gain.mean


def test_intervals_hold_the_truth_as_often_as_they_say():
    # Skewed like per-query reciprocal ranks; benchmarks/bootstrap_coverage.py does this at full
    # scale.
    ranks, shares = (
        np.array([1, 1 / 2, 1 / 3, 1 / 5, 1 / 10, 0]),
        np.array([0.7, 0.1, 0.05, 0.05, 0.05, 0.05]),
    )
    rng = np.random.default_rng(0)
    intervals = [mean_interval(rng.choice(ranks, 60, p=shares), samples=1000) for _ in range(400)]
    held = np.mean([interval.low <= ranks @ shares <= interval.high for interval in intervals])
    assert 0.93 <= held <= 0.97


def test_without_the_extra_one_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(UserError, match=r"minilm_retriever\[stats\]"):
        mean_interval([0.0, 1.0])
