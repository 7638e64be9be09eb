"""evaluation.py: tasks from files, the field's conventions, two models side by side."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from minilm_retriever import evaluation
from minilm_retriever.errors import UserError
from minilm_retriever.evaluation import (
    evaluate_models,
    evaluate_retrieval,
    evaluate_sts,
    read_beir,
    retrieval_from_pairs,
)


def one_hot(texts):
    """Texts of words a..z: a vector that counts them, so that scores can be told by eye."""
    out = np.zeros((len(texts), 26), np.float32)
    for row, text in enumerate(texts):
        for word in text.split():
            out[row, ord(word[0]) - ord("a")] += 1
    return out


def test_pairs_become_distinct_queries_and_documents():
    task = retrieval_from_pairs(["q", "q", "r"], ["a", "b", "a"], corpus=["c", "a"])
    assert task.queries == ["q", "r"]
    assert task.documents == ["c", "a", "b"]
    assert task.judgements == {"q0": {"1": 1, "2": 1}, "q1": {"1": 1}}


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


def beir(folder, *, qrels="q1\td1\t2\nq1\td2\t1\nq2\td2\t1\n", corpus=None, compressed=False):
    (folder / "qrels").mkdir(parents=True)
    rows = corpus or [
        {"_id": "d1", "title": "a", "text": "b "},
        {"_id": "d2", "title": "", "text": "c"},
        {"_id": "q2", "text": "c c c"},
        {"_id": "d4", "title": "only", "text": ""},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if compressed:
        (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    else:
        (folder / "corpus.jsonl").write_text(text)
    queries = [{"_id": "q1", "text": "a b c"}, {"_id": "q2", "text": "c"}, {"_id": "unjudged", "text": "a"}]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n" + qrels)
    return folder


@pytest.mark.parametrize("compressed", [False, True])
def test_a_beir_folder(tmp_path, compressed):
    task = read_beir(beir(tmp_path / "set", compressed=compressed))
    assert task.query_ids == ["q1", "q2"]
    assert task.documents == ["a b", "c", "c c c", "only"]
    result = evaluate_retrieval(task, one_hot)
    assert [document for document, _ in result.run["q2"]][0] == "d2"  # the document whose id is the query's is left out
    assert result.metrics["mrr@10"] == 1 / 2 * (1 / 2 + 1)  # q1: "c c c" scores 3, then d1
    assert result.trec_run("ours").splitlines()[0].split()[:4] == ["q1", "Q0", "q2", "1"]


@pytest.mark.parametrize(
    ("qrels", "message"),
    [
        ("q1\td9\t1\nq7\td1\t1\n", r"2 judgements name what is not in the folder, the first at \S+test\.tsv:2"),
        ("q1\td1\tgood\n", r"test\.tsv:2: score 'good' is not a whole number"),
        ("q1\td1\n", r"test\.tsv:2"),
        ("", r"test\.tsv"),
    ],
)
def test_bad_judgements_are_one_line_with_their_place(tmp_path, qrels, message):
    with pytest.raises(UserError, match=message):
        read_beir(beir(tmp_path / "set", qrels=qrels))


def test_a_beir_folder_that_lacks_a_file(tmp_path):
    folder = beir(tmp_path / "set")
    (folder / "queries.jsonl").unlink()
    with pytest.raises(UserError, match="queries.jsonl"):
        read_beir(folder)


def test_a_malformed_document_is_named_by_line(tmp_path):
    folder = beir(tmp_path / "set", corpus=[{"_id": "d1", "text": "a"}, {"_id": "d2", "text": 7}])
    with pytest.raises(UserError, match=r"corpus\.jsonl:2: text is 7"):
        read_beir(folder)


def test_sts_is_the_correlation_of_cosine():
    left, right = ["a", "a", "a b", "c"], ["a", "b", "a c", "c c"]
    cosine = [1.0, 0.0, 0.5, 1.0]
    found = evaluate_sts(left, right, [5, 0, 2, 5], one_hot)
    assert found["pearson"] == pytest.approx(np.corrcoef(cosine, [5, 0, 2, 5])[0, 1])
    assert found["spearman"] == pytest.approx(1.0)


@pytest.fixture()
def pairs_file(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("query,document\ncook,bread\nnurse,hospital\nwriter,book\n")
    return str(path)


def test_one_model_and_two_models(tiny_folder, pairs_file, tmp_path):
    one = evaluate_models(pairs_file, [str(tiny_folder)]).as_json()
    assert {"ndcg@10", "mrr@10", "accuracy@1", "recall@10", "intervals"} <= set(one)
    two = evaluate_models(pairs_file, [str(tiny_folder), str(tiny_folder)])
    assert two.as_json()["gain"]["mrr@10"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert two.as_json()["other"]["mrr@10"] == one["mrr@10"]
    text = two.as_text().splitlines()
    assert text[0] == "pairs.csv: 3 queries, 3 documents"
    assert text[2].startswith("accuracy@1") and "[" in text[2]


def test_a_corpus_makes_it_harder_and_sts_files_are_known_by_their_columns(tiny_folder, pairs_file, tmp_path):
    corpus = tmp_path / "corpus.csv"
    corpus.write_text("id,document\n1,bread\n2,stone\n3,glass\n")
    assert evaluate_models(pairs_file, [str(tiny_folder)], corpus=str(corpus)).title.endswith("5 documents")
    sts = tmp_path / "sts.jsonl"
    rows = [("a cook", "a chef", 4.5), ("a cook", "a stone", 0.5), ("glass", "glass", 5.0)]
    sts.write_text("".join(json.dumps(dict(zip(evaluation.STS_COLUMNS, row, strict=True))) + "\n" for row in rows))
    report = evaluate_models(str(sts), [str(tiny_folder)])
    assert set(report.metrics[0]) == {"spearman", "pearson"}


def test_three_models_are_refused(pairs_file):
    with pytest.raises(UserError, match="3 models"):
        evaluate_models(pairs_file, ["a", "b", "c"])


def test_the_queries_that_changed_most_are_told():
    task = retrieval_from_pairs(["a a", "b b"], ["a", "b"])
    good = evaluate_retrieval(task, one_hot)
    bad = evaluate_retrieval(task, lambda texts: one_hot(texts if texts[0] == "a a" else texts[::-1]))
    changed = evaluation.most_changed(task, [good, bad])
    assert all(gain < 0 for gain, _ in changed) and {query for _, query in changed} == {"a a", "b b"}
    assert evaluation.most_changed(task, [good, good]) == []
