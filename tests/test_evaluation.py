"""evaluation.py: tasks from files, the field's conventions, two models side by side."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from minilm_retriever import evaluation
from minilm_retriever.errors import UserError
from minilm_retriever.evaluation import (
    RetrievalTask,
    compare,
    evaluate_models,
    evaluate_retrieval,
    evaluate_sts,
    read_beir,
    retrieval_from_pairs,
)
from tests.conftest import ROOT


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
    changed = compare(good, bad).changed
    assert all(gain < 0 for gain, _ in changed) and {query for _, query in changed} == {"a a", "b b"}
    same = compare(good, good, metrics=["ndcg@10"])
    assert same.changed == [] and same.gain == {"ndcg@10": (0, 0, 0)}
    with pytest.raises(UserError, match="same queries"):
        compare(good, evaluate_retrieval(retrieval_from_pairs(["a"], ["a"]), one_hot))


def test_equal_scores_are_cut_as_trec_eval_would():
    """Of 40 documents that score the same, the ten with the last ids; where they stand in the file means nothing."""
    ids = [f"d{number:02}" for number in range(40)]
    texts = [" ".join("a" + "z" * (number % 3)) for number in range(40)]  # some are copies of each other
    judgements = {"q": {"d30": 1, "d29": 1}}
    expected = None
    for order in (range(40), range(39, -1, -1), np.random.default_rng(0).permutation(40)):
        task = RetrievalTask("t", ["q"], ["a"], [ids[i] for i in order], [texts[i] for i in order], judgements)
        result = evaluate_retrieval(task, one_hot, ks=(10,))
        assert [document for document, _ in result.run["q"]] == ids[:29:-1]
        expected = expected or result.metrics
        assert result.metrics == expected
    assert expected["mrr@10"] == 1 / 10 and expected["recall@10"] == 1 / 2


def test_copies_of_a_document_tie_even_where_encode_is_noisy():
    noise = np.random.default_rng(0)
    task = RetrievalTask("t", ["q"], ["a"], ["1", "2", "3", "4"], ["a", "b", "a", "a"], {"q": {"4": 1}})
    for _ in range(5):
        result = evaluate_retrieval(task, lambda texts: one_hot(texts) + noise.normal(0, 1e-6, (len(texts), 26)))
        assert [document for document, _ in result.run["q"]] == ["4", "3", "1", "2"]


def test_a_run_reads_back_as_the_same_ranking():
    """trec_eval sorts by score, so scores that differ in float32 have to differ in the file."""
    close = np.array([[1, 0], [np.nextafter(np.float32(1), np.float32(0)), 0]], np.float32)
    task = RetrievalTask("t", ["q"], ["q"], ["a", "b"], ["x", "y"], {"q": {"a": 1}})
    result = evaluate_retrieval(task, lambda texts: close[[["x", "y"].index(t) if t != "q" else 0 for t in texts]])
    read = [line.split() for line in result.trec_run("ours").splitlines()]
    assert [(fields[2], np.float32(fields[4])) for fields in read] == [("a", close[0, 0]), ("b", close[1, 0])]
    odd = RetrievalTask("t", ["q 1"], ["a"], ["a"], ["a"], {"q 1": {"a": 1}})
    with pytest.raises(UserError, match="'q 1' cannot stand in a TREC run"):
        evaluate_retrieval(odd, one_hot).trec_run("ours")


def test_documents_without_text_stay_in_the_corpus(tmp_path):
    rows = [{"_id": "d1", "title": "a"}, {"_id": "d2", "title": None, "text": "b"}, {"_id": 3, "text": None}]
    task = read_beir(beir(tmp_path / "set", corpus=rows, qrels="q1\t3\t1\n"))
    assert dict(zip(task.document_ids, task.documents, strict=True)) == {"d1": "a", "d2": "b", "3": ""}
    with pytest.raises(UserError, match="no document has a title or a text"):
        read_beir(beir(tmp_path / "keys", corpus=[{"_id": "d1", "contents": "a"}]))


def test_an_id_may_stand_twice_with_one_text_alone(tmp_path):
    same = [{"_id": "d1", "text": "a"}, {"_id": "d2", "text": "b"}, {"_id": "d1", "text": "a"}]
    assert read_beir(beir(tmp_path / "same", corpus=same)).document_ids == ["d1", "d2"]
    other = [{"_id": "d1", "text": "a"}, {"_id": "d1", "text": "b"}]
    with pytest.raises(UserError, match=r"corpus\.jsonl:2: _id 'd1' stands twice"):
        read_beir(beir(tmp_path / "other", corpus=other))


def test_another_split_or_the_ones_there_are(tmp_path):
    folder = beir(tmp_path / "set")
    (folder / "qrels/dev.tsv").write_text("query-id\tcorpus-id\tscore\nunjudged\td1\t1\n")
    assert read_beir(folder, "dev").query_ids == ["unjudged"]
    with pytest.raises(UserError, match=r"train\.tsv: no such file; splits in this folder: dev, test"):
        read_beir(folder, "train")


def test_an_encoder_that_loses_texts_is_noticed():
    with pytest.raises(ValueError, match="for 2 texts"):
        evaluate_retrieval(retrieval_from_pairs(["a", "b"], ["a", "b"]), lambda texts: one_hot(texts[:1]))


def test_equals_trec_eval_from_vectors_to_metrics():
    """Vectors that give the reference's scores, in any corpus order: its metrics come out."""
    reference = json.loads((ROOT / "tests/reference/trec_metrics.json").read_text("utf-8"))
    for query, run in list(reference["run"].items())[::7]:
        if query in reference["expected"] and run:
            task = RetrievalTask("t", [query], ["?"], list(run), list(run), {query: reference["judgements"][query]})
            vectors = {"?": 1.0, **run}
            result = evaluate_retrieval(
                task, lambda texts, v=vectors: np.array([[v[t]] for t in texts], np.float32), reference["ks"]
            )
            assert result.metrics == pytest.approx(reference["expected"][query], abs=1e-9)
