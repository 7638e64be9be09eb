"""evaluation.py: models measured, and side by side; TREC runs."""

from __future__ import annotations

import json

import numpy as np
import pytest

from minilm_retriever import Encoder
from minilm_retriever.errors import UserError
from minilm_retriever.evaluation.config import EvaluateConfig
from minilm_retriever.evaluation.evaluate import (
    CORRELATIONS,
    evaluate_models,
    evaluate_retrieval,
    rank,
    retrieval_table,
    row_cosines,
)
from minilm_retriever.evaluation.tasks import RetrievalTask, retrieval_from_pairs
from tests.letters import one_hot


def test_metrics_by_hand():
    """Ranks of the right documents: first, second, none in ten."""
    queries = ["a a", "b", "z"]
    documents = ["a", "b b", "b", *("z z" for _ in range(1)), *(f"z z {c}" for c in "cdefghijklm")]
    task = retrieval_from_pairs(queries, ["a", "b", "m"], corpus=documents)
    result = evaluate_retrieval(task, one_hot)
    assert result.metrics["accuracy@1"] == pytest.approx(1 / 3)
    assert result.metrics["mrr@10"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert result.metrics["ndcg@10"] == pytest.approx((1 + 1 / np.log2(3) + 0) / 3)
    assert result.metrics["recall@10"] == pytest.approx(2 / 3)


def test_sts_is_the_correlation_of_cosine():
    left, right = ["a", "a", "a b", "c"], ["a", "b", "a c", "c c"]
    cosine = [1.0, 0.0, 0.5, 1.0]
    found = row_cosines(one_hot(left), one_hot(right))
    assert found == pytest.approx(cosine)
    expected = np.corrcoef(cosine, [5, 0, 2, 5])[0, 1]
    assert CORRELATIONS["pearson"](found, [5, 0, 2, 5]) == pytest.approx(expected)
    assert CORRELATIONS["spearman"](found, [5, 0, 2, 5]) == pytest.approx(1.0)


def measure(data, models, **flags):
    flags = {name: tuple(v) if isinstance(v, list) else v for name, v in flags.items()}
    return evaluate_models(EvaluateConfig(data, model=tuple(models), **flags))


@pytest.fixture()
def pairs_file(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("query,document\ncook,bread\nnurse,hospital\nwriter,book\n")
    return str(path)


def test_one_model_and_two_models(tiny_folder, pairs_file, tmp_path):
    one = measure(pairs_file, [str(tiny_folder)]).as_json()
    assert {"ndcg@10", "mrr@10", "accuracy@1", "recall@10", "intervals"} <= set(one)
    two = measure(pairs_file, [str(tiny_folder), str(tiny_folder)])
    (other,) = two.as_json()["others"]
    assert (
        other["gain"]["mrr@10"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
        and other["mrr@10"] == one["mrr@10"]
    )
    text = two.as_text().splitlines()
    assert text[0] == "pairs.csv: 3 queries, 3 documents"
    assert text[2].startswith("accuracy@1") and "[" in text[2]


def test_a_corpus_makes_it_harder_and_sts_files_are_known_by_their_columns(
    tiny_folder, pairs_file, tmp_path
):
    corpus = tmp_path / "corpus.csv"
    corpus.write_text("id,document\n1,bread\n2,stone\n3,glass\n")
    assert measure(pairs_file, [str(tiny_folder)], corpus=str(corpus)).title.endswith("5 documents")
    sts = tmp_path / "sts.jsonl"
    rows = [("a cook", "a chef", 4.5), ("a cook", "a stone", 0.5), ("glass", "glass", 5.0)]
    sts.write_text(
        "".join(
            json.dumps(dict(zip(("sentence1", "sentence2", "score"), row, strict=True))) + "\n"
            for row in rows
        )
    )
    found = measure(str(sts), [str(tiny_folder)] * 2).as_json()
    assert {"spearman", "pearson"} <= set(found) and found["intervals"]["spearman"]["low"] <= found[
        "spearman"
    ]
    assert found["others"][0]["gain"]["pearson"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    for mistake in ({"models": ["bm25"]}, {"models": [str(tiny_folder)], "run": ["run"]}):
        with pytest.raises(UserError, match="scored pairs"):
            measure(str(sts), **mistake)


def test_three_models_are_compared_in_turn_and_bm25_is_one(tiny_folder, pairs_file):
    pytest.importorskip("bm25s")
    report = measure(pairs_file, ["bm25", str(tiny_folder), "bm25"])
    first, second = (other["gain"]["mrr@10"]["mean"] for other in report.as_json()["others"])
    assert (
        first == -second and first > 0
    )  # no word of a query stands in a document, so BM25 finds nothing
    assert report.as_json()["mrr@10"] == 0
    header, row = report.as_text().splitlines()[1:3]
    assert header.split() == ["bm25", "tiny-bert", "gain", "bm25", "gain"] and row.count("[") == 2


def test_runs_are_written_as_trec_eval_reads_them(tiny_folder, pairs_file, tmp_path):
    run = tmp_path / "tiny.trec"
    measure(pairs_file, [str(tiny_folder)], run=[str(run)])
    lines = [line.split(" ") for line in run.read_text().splitlines()]
    assert (
        len(lines) == 9
        and {len(line) for line in lines} == {6}
        and {line[5] for line in lines} == {"tiny-bert"}
    )
    assert [line[3] for line in lines] == ["1", "2", "3"] * 3
    for runs, message in (([str(run)], "exists"), (["a", "b"], "2 files for 1 model")):
        with pytest.raises(UserError, match=message):
            measure(pairs_file, [str(tiny_folder)], run=runs)
    measure(pairs_file, [str(tiny_folder)], run=[str(run)], overwrite=True)
    with pytest.raises(UserError, match="stands twice"):
        measure(pairs_file, [str(tiny_folder)] * 2, run=[str(run)] * 2)


def test_prompts_and_similarity_are_the_folders_own(tiny_copy, pairs_file):
    """Queries and documents get the prompts of config_sentence_transformers.json, and dot products
    where it says so."""
    config = {
        "prompts": {"query": "query: ", "passage": "passage: "},
        "similarity_fn_name": "cosine",
    }
    (tiny_copy / "config_sentence_transformers.json").write_text(json.dumps(config))
    encoder = Encoder.from_pretrained(tiny_copy)
    task = retrieval_from_pairs(["cook", "nurse", "writer"], ["bread", "hospital", "book"])
    queries, documents = (
        encoder.encode_query(list(task.queries)),
        encoder.encode_document(list(task.documents)),
    )
    run = rank(task, str(tiny_copy), 3, EvaluateConfig())
    for row, query in enumerate(task.query_ids):
        found = dict(run[query])
        expected = {str(n): queries[row] @ document for n, document in enumerate(documents)}
        assert found == pytest.approx(expected, abs=1e-5)
    config["similarity_fn_name"] = "euclidean"
    (tiny_copy / "config_sentence_transformers.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="compares by euclidean"):
        rank(task, str(tiny_copy), 3, EvaluateConfig())


def test_the_queries_that_changed_most_are_told():
    task = retrieval_from_pairs(["a a", "b b"], ["a", "b"])
    good = evaluate_retrieval(task, one_hot)
    bad = evaluate_retrieval(
        task, lambda texts: one_hot(texts if texts[0] == "a a" else texts[::-1])
    )
    changed = retrieval_table(["good", "bad"], [good, bad]).results[1].changed
    assert all(gain < 0 for gain, _ in changed) and {query for _, query in changed} == {
        "a a",
        "b b",
    }
    same = retrieval_table(["good", "good"], [good, good]).results[1]
    assert same.changed == [] and set(same.gain.values()) == {(0, 0, 0)}


def test_a_run_reads_back_as_the_same_ranking():
    """trec_eval sorts by score, so scores that differ in float32 have to differ in the file."""
    close = np.array([[1, 0], [np.nextafter(np.float32(1), np.float32(0)), 0]], np.float32)
    task = RetrievalTask("t", ["q"], ["q"], ["a", "b"], ["x", "y"], {"q": {"a": 1}})
    result = evaluate_retrieval(
        task, lambda texts: close[[["x", "y"].index(t) if t != "q" else 0 for t in texts]]
    )
    read = [line.split() for line in result.trec_run("ours").splitlines()]
    assert [(fields[2], np.float32(fields[4])) for fields in read] == [
        ("a", close[0, 0]),
        ("b", close[1, 0]),
    ]
    odd = RetrievalTask("t", ["q 1"], ["a"], ["a"], ["a"], {"q 1": {"a": 1}})
    with pytest.raises(UserError, match="'q 1' cannot stand in a TREC run"):
        evaluate_retrieval(odd, one_hot).trec_run("ours")
