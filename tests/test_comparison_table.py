"""comparison_table.py: what people and programs get to see."""

from __future__ import annotations

from minilm_retriever.evaluation.bootstrap import Interval
from minilm_retriever.evaluation.comparison_table import ComparisonTable, ModelResult

BARE = ModelResult(
    "models/first", {"mrr@10": 0.5, "ndcg@3": 0.25}, {"mrr@10": Interval(0.5, 0.4, 0.6)}
)
BETTER = ModelResult(
    "second",
    {"mrr@10": 0.75, "ndcg@3": 0.5},
    {"mrr@10": Interval(0.75, 0.6, 0.8)},
    {"mrr@10": Interval(0.25, -0.1, 0.3)},
    [(-0.5, "a query\nin two lines"), (1.0, "another")],
)


def test_one_model_and_two():
    assert ComparisonTable("data", [BARE]).as_text().splitlines() == [
        "data",
        "        first",
        "mrr@10  0.5000 [0.4000, 0.6000]",
        "(in brackets: 95 % bootstrap intervals)",
    ]
    assert ComparisonTable("data", [BARE, BETTER]).as_text().splitlines() == [
        "data",
        "        first                     second                    gain",
        "mrr@10  0.5000 [0.4000, 0.6000]   0.7500 [0.6000, 0.8000]   +0.2500 [-0.1000, +0.3000]",
        "(in brackets: 95 % bootstrap intervals, of the gain paired by query)",
        "what changed most from first to second, in mrr@10:",
        "  -0.500  a query in two lines",
        "  +1.000  another",
    ]


def test_three_models_leave_their_own_intervals_to_json():
    report = ComparisonTable("data", [BARE, BETTER, BETTER])
    assert report.as_text().splitlines()[2].split() == (
        "mrr@10 0.5000 0.7500 +0.2500 [-0.1000, +0.3000] 0.7500 +0.2500 [-0.1000, +0.3000]".split()
    )
    found = report.as_json()
    assert found["model"] == "models/first" and found["ndcg@3"] == 0.25
    assert found["intervals"]["mrr@10"] == {"mean": 0.5, "low": 0.4, "high": 0.6}
    assert [other["gain"]["mrr@10"]["low"] for other in found["others"]] == [-0.1, -0.1]
    assert found["others"][0]["changed"][1] == {"gain": 1.0, "query": "another"}
    assert "others" not in ComparisonTable("data", [BARE]).as_json()
