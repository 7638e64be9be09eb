"""bm25.py against the formula, term by term in float64; what counts as a term."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from minilm_retriever.errors import UserError
from minilm_retriever.evaluation.bm25 import K1, STOP_WORDS, B, Vocabulary, rank_by_terms
from minilm_retriever.evaluation.metrics import trec_order
from minilm_retriever.evaluation.tasks import RetrievalTask, read_beir, retrieval_from_pairs
from tests.conftest import REFERENCE

Stemmer = pytest.importorskip("Stemmer")
pytest.importorskip("bm25s")


def by_hand(query, documents):
    """Lucene's BM25 of each document: idf * tf / (tf + k1 (1 - b + b length / mean length)), over
    query terms."""
    mean = sum(map(len, documents)) / len(documents)
    scores = np.zeros(len(documents))
    for term in query:
        containing = sum(term in document for document in documents)
        idf = math.log(1 + (len(documents) - containing + 0.5) / (containing + 0.5))
        for number, document in enumerate(documents):
            count = document.count(term)
            scores[number] += idf * count / (count + K1 * (1 - B + B * len(document) / mean))
    return scores


def test_scores_are_the_formulas():
    task = read_beir(REFERENCE / "beir")
    terms = Vocabulary(Stemmer.Stemmer("porter").stemWord)
    documents = [terms.term_ids(text) for text in task.documents]
    run = rank_by_terms(task, 20)
    assert list(run) == list(task.query_ids)
    for query, text in zip(task.query_ids, task.queries, strict=True):
        scores = by_hand(terms.term_ids(text), documents)
        found = dict(run[query])
        numbers = {name: number for number, name in enumerate(task.document_ids)}
        assert found == pytest.approx({name: scores[numbers[name]] for name in found}, rel=1e-5)
        others = [
            i for i, name in enumerate(task.document_ids) if name != query and name not in found
        ]
        assert len(found) == min(
            20, sum(scores[i] > 0 for i in range(len(scores)) if task.document_ids[i] != query)
        )
        assert not found or max(scores[others], default=0) <= min(found.values()) + 1e-5
        names, values = list(found), list(found.values())
        assert trec_order(names, values) == list(range(len(names)))


def test_what_counts_as_a_term():
    terms = Vocabulary(Stemmer.Stemmer("porter").stemWord)
    assert terms.term_ids("The nurse's hospitals, the NURSE’S Hospital!") == [0, 1, 0, 1]
    assert (
        terms.term_ids("don't U.S. x-rays 3.5")
        == terms.term_ids("Don't u.s. X ray 3.5")
        == [2, 3, 4, 5, 6]
    )
    assert terms.term_ids(" ".join(STOP_WORDS)) == [] and len(STOP_WORDS) == 33
    assert terms.term_ids("") == []


def test_what_shares_no_term_is_not_found_and_equal_texts_tie():
    documents = {"1": "bread soup", "2": "soup", "3": "steel", "4": "soup", "5": ""}
    task = RetrievalTask(
        "t",
        ["q", "r"],
        ["soup", "glass"],
        list(documents),
        list(documents.values()),
        {"q": {"4": 1}},
    )
    run = rank_by_terms(task, 2)
    assert [name for name, _ in run["q"]] == ["4", "2"] and run["q"][0][1] == run["q"][1][1]
    assert run["r"] == []
    assert rank_by_terms(retrieval_from_pairs(["a"], ["the"]), 2) == {
        "q0": []
    }  # a corpus without any term


def test_without_the_extra_one_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "Stemmer", None)
    with pytest.raises(UserError, match=r"minilm_retriever\[bm25\]"):
        rank_by_terms(retrieval_from_pairs(["a"], ["b"]), 2)
