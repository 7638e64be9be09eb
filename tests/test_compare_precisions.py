"""compare: a precision of known error, beside figures that are computed another way."""

from __future__ import annotations

import json
import re
import zlib
from types import SimpleNamespace

import numpy as np
import pytest

from minilm_retriever import Encoder
from minilm_retriever.__main__ import main
from minilm_retriever.errors import UserError
from minilm_retriever.evaluation import compare_precisions as module
from minilm_retriever.evaluation.compare_precisions import RECALL, compare_precisions
from minilm_retriever.evaluation.config import CompareConfig
from minilm_retriever.evaluation.evaluate import evaluate_retrieval, retrieval_from_pairs

pytest.importorskip("scipy")
TRADES = "cook nurse writer pilot baker plumber dentist farmer tailor painter miner clerk".split()
PLACES = "town farm ship".split()
PAIRS = [(f"{trade}, {place}", f"a {place} has a {trade}") for trade in TRADES for place in PLACES]
COSINE = 0.8  # of each vector of the other precision to that of fp32


class Rotating:
    """An encoder whose vectors in any other precision than fp32 have COSINE to those in fp32."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder, self.precision = encoder, "fp32"
        self.model = SimpleNamespace(settings=encoder.model.settings)

    def encode(self, texts, **options):
        vectors = self.encoder.encode(texts, normalize=True)
        if self.precision == "fp32":
            return vectors
        rngs = [np.random.default_rng(zlib.crc32(text.encode())) for text in texts]
        noise = np.stack([rng.standard_normal(vectors.shape[1]) for rng in rngs])
        noise -= (noise * vectors).sum(axis=1, keepdims=True) * vectors
        noise *= (1 - COSINE**2) ** 0.5 / np.linalg.norm(noise, axis=1, keepdims=True)
        return (COSINE * vectors + noise).astype(np.float32)

    encode_query = encode


@pytest.fixture(autouse=True)
def rotating(tiny, monkeypatch):
    encoder = Rotating(tiny)
    monkeypatch.setattr(module, "open_for_command", lambda name: encoder)
    monkeypatch.setattr(module, "check_precision", lambda precision, device: None)
    return encoder


@pytest.fixture()
def pairs(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("query,document\n" + "".join(f'"{q}",{d}\n' for q, d in PAIRS))
    return str(path)


def test_figures_of_a_retrieval_task(pairs, rotating):
    table = compare_precisions(CompareConfig(pairs, ("fp32", "bf16")))
    first, other = table.as_json()["precisions"]
    assert first["worst_cosine"] == pytest.approx(1) and first[RECALL] == 1 and not first["change"]
    assert other["worst_cosine"] == pytest.approx(COSINE, abs=1e-6)
    assert other["mean_cosine"] == pytest.approx(COSINE, abs=1e-6)
    queries, documents = ([*column] for column in zip(*PAIRS, strict=True))
    best = {}
    for precision in ("fp32", "bf16"):
        rotating.precision = precision
        scores = rotating.encode(queries) @ rotating.encode(documents).T
        best[precision] = [set(row) for row in np.argsort(-scores, axis=1)[:, :10]]
    shares = [len(a & b) / 10 for a, b in zip(best["fp32"], best["bf16"], strict=True)]
    assert other[RECALL] == pytest.approx(np.mean(shares)) and 0.3 < np.mean(shares) < 1
    metrics = evaluate_retrieval(retrieval_from_pairs(queries, documents), rotating.encode).metrics
    assert other["metrics"] == pytest.approx(metrics)
    for name, change in other["change"].items():
        assert change["mean"] == pytest.approx(other["metrics"][name] - first["metrics"][name])
        assert change["low"] <= change["mean"] <= change["high"]


def test_figures_of_scored_pairs(tmp_path):
    path = tmp_path / "sts.jsonl"
    rows = [
        dict(zip(("sentence1", "sentence2", "score"), (*pair, n % 5), strict=True))
        for n, pair in enumerate(PAIRS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = compare_precisions(CompareConfig(str(path), ("fp32", "int8", "bf16")))
    first, *others = table.as_json()["precisions"]
    for other in others:
        assert RECALL not in other and other["mean_cosine"] == pytest.approx(COSINE, abs=1e-6)
        change = other["metrics"]["spearman"] - first["metrics"]["spearman"]
        assert other["change"]["spearman"]["mean"] == pytest.approx(change)
    text = table.as_text()
    assert "nan" not in text and "recall" not in text
    assert text.splitlines()[1].split() == ["fp32", "int8", "bf16"]


@pytest.mark.parametrize("order", ["data first", "data last"])
def test_the_command(pairs, capsys, order):
    words = ["--precision", "fp32", "bf16"]
    assert main(["compare", *([pairs, *words] if order == "data first" else [*words, pairs])]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["fp32", "bf16"]
    assert re.fullmatch(r"recall@10 of fp32's top 10 +1\.0000 +0\.\d{4}", lines[5])


@pytest.mark.parametrize("precisions", [("fp32",), ("bf16", "bf16"), ("fp32", "bf16", "fp32")])
def test_nothing_to_compare_is_one_line(pairs, precisions):
    with pytest.raises(UserError, match=f"nothing to compare: {' '.join(precisions)}"):
        compare_precisions(CompareConfig(pairs, precisions))


def test_without_the_flag_all_that_are_not_slower_are_compared(pairs, monkeypatch):
    monkeypatch.setattr(module, "lacks_instructions", lambda name: "" if name == "fp32" else "AMX")
    with pytest.raises(UserError, match="nothing to compare: fp32 "):
        compare_precisions(CompareConfig(pairs))
    monkeypatch.setattr(module, "lacks_instructions", lambda name: "")
    results = compare_precisions(CompareConfig(pairs)).results
    assert [result.precision for result in results][:2] == ["fp32", "bf16"]
