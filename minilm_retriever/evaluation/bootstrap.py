"""Correlations, and 95 % bootstrap intervals of means and correlations, by SciPy (extra: [stats]).

Intervals are bias-corrected and accelerated (BCa; B. Efron, "Better bootstrap confidence
intervals", JASA 82, 1987): per-query metrics are skewed (most queries at 1, a tail at 0), where the
plain percentile interval is too narrow (measured by benchmarks/bootstrap_coverage.py)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from minilm_retriever.errors import require

BATCH_VALUES = 1 << 18  # resampled at a time: they stay in the cache
# BCa's jackknife takes quadratic time. With more rows its correction is below the noise of 10,000
# resamples, and the percentile interval is taken.
BCA_ROWS = 5_000


class Interval(NamedTuple):
    """An estimate and the bounds of its 95 % interval, which are NaN for a single row."""

    mean: float
    low: float
    high: float


def scipy_stats() -> Any:
    return require("scipy.stats", "stats", "evaluate").stats


def pearson(a: npt.ArrayLike, b: npt.ArrayLike) -> Any:
    """Pearson's correlation along the last axis; NaN where a series does not vary."""
    if np.shape(a)[-1] < 2:
        return np.full(np.shape(a)[:-1], np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a series does not vary, or hardly
        return scipy_stats().pearsonr(a, b, axis=-1).statistic


def spearman(a: npt.ArrayLike, b: npt.ArrayLike) -> Any:
    """Spearman's rank correlation along the last axis; equal values share their mean rank."""
    rankdata = scipy_stats().rankdata
    return pearson(rankdata(a, axis=-1), rankdata(b, axis=-1))


def mean_interval(values: npt.ArrayLike, samples: int = 10_000) -> Interval:
    """The mean of per-query values (Q,)."""
    return _interval(lambda x: x.mean(axis=-1), [values], samples)


def correlation_interval(
    correlation: Callable[[Any, Any], Any],
    scores: npt.ArrayLike,
    cosines: npt.ArrayLike,
    before: npt.ArrayLike | None = None,
) -> Interval:
    """The correlation of cosines (Q,) with human scores (Q,), or its gain over other cosines.

    A resample in which a series does not vary counts as a correlation of 0."""

    def gain(new: Any, old: Any, scores: Any) -> Any:
        return correlation(new, scores) - correlation(old, scores)

    if before is None:
        return _interval(correlation, [cosines, scores], 2_000)
    return _interval(gain, [cosines, before, scores], 2_000)


def _interval(statistic: Callable[..., Any], series: list[npt.ArrayLike], samples: int) -> Interval:
    """The statistic of series (Q,), whose rows are drawn together, with its interval."""
    arrays = [np.asarray(values, np.float64) for values in series]
    rows, estimate = len(arrays[0]), float(statistic(*arrays))
    if rows < 2 or not np.isfinite(estimate):
        return Interval(estimate, np.nan, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing differs: see below
        result = scipy_stats().bootstrap(
            arrays,
            lambda *drawn, axis: np.nan_to_num(statistic(*drawn)),
            paired=len(arrays) > 1,
            n_resamples=samples,
            batch=max(1, BATCH_VALUES // rows),
            method="BCa" if rows <= BCA_ROWS else "percentile",
            rng=np.random.default_rng(0),
        )
    low, high = map(float, result.confidence_interval)
    if np.isnan(low):  # neither resamples nor jackknife differ
        return Interval(estimate, estimate, estimate)
    return Interval(estimate, low, high)
