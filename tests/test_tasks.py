"""tasks.py: pairs and BEIR-style folders, with all that is odd in such."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from minilm_retriever.errors import UserError
from minilm_retriever.evaluation.evaluate import evaluate_retrieval
from minilm_retriever.evaluation.tasks import first_occurrences, read_beir, retrieval_from_pairs
from tests.conftest import REFERENCE
from tests.letters import one_hot


def test_pairs_become_distinct_queries_and_documents():
    task = retrieval_from_pairs(["q", "q", "r"], ["a", "b", "a"], corpus=["c", "a"])
    assert task.queries == ["q", "r"]
    assert task.documents == ["c", "a", "b"]
    assert task.judgements == {"q0": {"1": 1, "2": 1}, "q1": {"1": 1}}


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
        (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    else:
        (folder / "corpus.jsonl").write_text(text)
    queries = [
        {"_id": "q1", "text": "a b c"},
        {"_id": "q2", "text": "c"},
        {"_id": "unjudged", "text": "a"},
    ]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n" + qrels)
    return folder


@pytest.mark.parametrize("compressed", [False, True])
def test_a_beir_folder(tmp_path, compressed):
    task = read_beir(beir(tmp_path / "set", compressed=compressed))
    assert task.query_ids == ["q1", "q2"]
    assert list(task.documents) == ["a b", "c", "c c c", "only"] and len(task.documents) == 4
    result = evaluate_retrieval(task, one_hot)
    assert [document for document, _ in result.run["q2"]][
        0
    ] == "d2"  # the document whose id is the query's is left out
    assert result.metrics["mrr@10"] == 1 / 2 * (1 / 2 + 1)  # q1: "c c c" scores 3, then d1
    assert result.trec_run("ours").splitlines()[0].split()[:4] == ["q1", "Q0", "q2", "1"]


@pytest.mark.parametrize(
    ("qrels", "message"),
    [
        (
            "q1\td9\t1\nq1\td1\t1\n",
            r"test\.tsv:2: no document of the corpus has the id 'd9' \(1 of 2 relevant",
        ),
        (
            "q1\td1\t1\nq7\td1\t1\n",
            r"test\.tsv:3: no query of queries.jsonl has the id 'q7' \(1 such judgements",
        ),
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
    with pytest.raises(UserError, match=r"corpus\.jsonl:2: column .text. holds a number"):
        read_beir(folder)


def test_documents_without_text_stay_in_the_corpus(tmp_path):
    rows = [
        {"_id": "d1", "title": "a"},
        {"_id": "d2", "title": None, "text": "b"},
        {"_id": 3, "text": None},
    ]
    task = read_beir(beir(tmp_path / "set", corpus=rows, qrels="q1\t3\t1\n"))
    assert dict(zip(task.document_ids, task.documents, strict=True)) == {
        "d1": "a",
        "d2": "b",
        "3": "",
    }
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
    with pytest.raises(
        UserError, match=r"train\.tsv: no such file; choose one with --split: dev, test"
    ):
        read_beir(folder, "train")


def test_the_names_of_a_header_do_not_matter_and_trec_s_judgements_have_none(tmp_path, capsys):
    folder = beir(tmp_path / "set")
    qrels = folder / "qrels/test.tsv"
    qrels.write_text(
        "qid\tdocid\trelevance\nq1\td1\t1.0\nq1\td1\t2\n"
    )  # the later judgement of a pair holds
    assert read_beir(folder).judgements == {"q1": {"d1": 2}}
    assert capsys.readouterr().err == ""
    for text, what in {
        "q1\td1\t1\nq1\td2\t0\n": "three columns, without a header",
        "q1\t0\td1\t1\nq1\t0\td2\t0\n": "TREC's four columns, without a header",
        "q1 0 d1 1\nq1 Q0 d2 0\n": "TREC's four columns, without a header",
    }.items():
        qrels.write_text(text)
        assert read_beir(folder).judgements == {"q1": {"d1": 1, "d2": 0}}
        assert capsys.readouterr().err == f"{qrels}: {what}\n"
    qrels.write_text("query document\nq1 d1\n")
    with pytest.raises(UserError, match=r"test\.tsv:2: 2 fields; .*TREC's four"):
        read_beir(folder)


def test_a_few_relevant_documents_may_be_missing_and_are_never_found(tmp_path, capsys):
    corpus = [{"_id": f"d{number}", "text": "a"} for number in range(100)]
    qrels = (
        "".join(f"q1\td{number}\t1\n" for number in range(100)) + "q1\tgone\t1\nq1\tirrelevant\t0\n"
    )
    task = read_beir(beir(tmp_path / "set", corpus=corpus, qrels=qrels))
    said = capsys.readouterr().err
    assert (
        said.count("\n") == 1
        and "(1 of 101 relevant documents): they count as never retrieved" in said
    )
    assert evaluate_retrieval(task, one_hot).metrics["recall@100"] == pytest.approx(100 / 101)


def test_a_set_with_all_oddities_equals_trec_eval(capsys):
    """reference/make_beir.py read the same folder in BEIR's way, and had trec_eval measure it."""
    expected = json.loads((REFERENCE / "beir.json").read_text("utf-8"))
    task = read_beir(REFERENCE / "beir")
    assert (
        "test.tsv:331: no document of the corpus has the id 'not-in-the-corpus'"
        in capsys.readouterr().err
    )
    result = evaluate_retrieval(task, one_hot, expected["ks"])
    assert sorted(result.query_ids) == sorted(expected["expected"]) and len(result.query_ids) == 15
    for name, values in result.per_query.items():
        wanted = [expected["expected"][query][name] for query in result.query_ids]
        np.testing.assert_allclose(values, wanted, rtol=0, atol=1e-9, err_msg=name)


def test_first_occurrences():
    texts = ["a", "b", "a", "", "b", "a", "\ud800", ""]
    assert first_occurrences(texts).tolist() == [0, 1, 0, 3, 1, 0, 6, 3]
    assert first_occurrences([]).tolist() == []
