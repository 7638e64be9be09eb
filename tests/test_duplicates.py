"""The closed forms against counting every batch, and against batches that are drawn."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from minilm_retriever.curation.duplicates import batch_floor, expected_log, loss_floor, repeat_share
from minilm_retriever.training.batches import shuffle


def counted(frequencies, batch):
    """Both figures over all batches of `batch` rows that can be drawn."""
    texts = np.repeat(np.arange(len(frequencies)), frequencies)
    floors, repeats = [], []
    for rows in combinations(range(len(texts)), batch):
        drawn = texts[list(rows)]
        floors.append(batch_floor(np.stack([drawn, drawn])))
        repeats.append(len(set(drawn)) < batch)
    return np.mean(floors), np.mean(repeats)


@pytest.mark.parametrize(
    "frequencies", [(1, 1, 1, 1, 1), (3, 2, 1), (5, 1), (6,), (2, 2, 2, 2), (4, 3, 1, 1)]
)
def test_the_closed_forms_are_the_mean_over_all_batches(frequencies):
    frequencies = np.array(frequencies)
    rows = int(frequencies.sum())
    for batch in range(1, rows + 1):
        floor, share = counted(frequencies, batch)
        whole, rest = divmod(rows, batch)
        rest_floor, rest_share = counted(frequencies, rest) if rest else (0.0, 0.0)
        batches = whole + (rest > 0)
        assert loss_floor(frequencies, batch) == pytest.approx(
            (whole * floor + rest_floor) / batches, abs=1e-12
        )
        assert repeat_share(frequencies, batch) == pytest.approx(
            (whole * share + rest_share) / batches, abs=1e-12
        )


def test_figures_known_from_the_published_run():
    # 376 pairs equally frequent in 100,000 rows: a mean of log(1 + k) of 0.027, a third of the
    # batches with a repeat.
    frequencies = np.full(376, 266)
    assert loss_floor(frequencies, 16) == pytest.approx(0.027, abs=5e-4)
    by_hand = 1 - math.prod((100016 - 266 * i) / (100016 - i) for i in range(16))
    assert repeat_share(frequencies, 16) == pytest.approx(by_hand, abs=1e-9)


def test_what_is_predicted_is_what_is_drawn():
    rng = np.random.default_rng(0)
    texts = rng.choice(376, 8000, p=rng.dirichlet(np.full(376, 0.7)))
    floors, repeats = [], []
    for epoch in range(5):
        rows = shuffle([len(texts)], 42, epoch)[0]
        for start in range(0, len(texts), 16):
            drawn = texts[rows[start : start + 16]]
            floors.append(batch_floor(np.stack([drawn, drawn])))
            repeats.append(len(set(drawn)) < len(drawn))
    frequencies = np.bincount(texts)[np.bincount(texts) > 0]
    assert np.mean(floors) == pytest.approx(loss_floor(frequencies, 16), rel=0.03)
    assert np.mean(repeats) == pytest.approx(repeat_share(frequencies, 16), rel=0.03)


def test_large_sizes_stay_in_range():
    assert expected_log(10_000_000, 5_000_000, 4096) == pytest.approx(math.log(2048.5), abs=1e-3)
    assert loss_floor(np.full(1000, 10_000), 4096) == pytest.approx(
        math.log(1 + 4095 / 1000), rel=0.06
    )
    assert repeat_share(np.ones(1_000_000, np.int64), 4096) == pytest.approx(0.0, abs=1e-9)
    none = np.log1p(
        -np.arange(4000) / (1_000_000 - np.arange(4000))
    ).sum()  # P(no pair of copies), each text twice
    assert repeat_share(np.full(500_000, 2), 4000) == pytest.approx(-math.expm1(none), abs=1e-9)
    assert repeat_share(np.full(5000, 200), 4096) == 1.0
