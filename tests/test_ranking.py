"""ranking.py: every document for every query, in portions; ties and copies as trec_eval has
them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from minilm_retriever.evaluation import ranking
from minilm_retriever.evaluation.evaluate import evaluate_retrieval
from minilm_retriever.evaluation.metrics import trec_order
from minilm_retriever.evaluation.ranking import rank_documents
from minilm_retriever.evaluation.tasks import RetrievalTask, read_beir, retrieval_from_pairs
from tests.conftest import REFERENCE
from tests.letters import one_hot


def test_equal_scores_are_cut_as_trec_eval_would():
    """Of 40 documents that score the same, the ten with the last ids; where they stand in the file
    means nothing."""
    ids = [f"d{number:02}" for number in range(40)]
    texts = [
        " ".join("a" + "z" * (number % 3)) for number in range(40)
    ]  # some are copies of each other
    judgements = {"q": {"d30": 1, "d29": 1}}
    expected = None
    for order in (range(40), range(39, -1, -1), np.random.default_rng(0).permutation(40)):
        task = RetrievalTask(
            "t", ["q"], ["a"], [ids[i] for i in order], [texts[i] for i in order], judgements
        )
        result = evaluate_retrieval(task, one_hot, ks=(10,))
        assert [document for document, _ in result.run["q"]] == ids[:29:-1]
        expected = expected or result.metrics
        assert result.metrics == expected
    assert expected["mrr@10"] == 1 / 10 and expected["recall@10"] == 1 / 2


def test_copies_of_a_document_tie_even_where_encode_is_noisy():
    noise = np.random.default_rng(0)
    task = RetrievalTask(
        "t", ["q"], ["a"], ["1", "2", "3", "4"], ["a", "b", "a", "a"], {"q": {"4": 1}}
    )
    for _ in range(5):
        result = evaluate_retrieval(
            task, lambda texts: one_hot(texts) + noise.normal(0, 1e-6, (len(texts), 26))
        )
        assert [document for document, _ in result.run["q"]] == ["4", "3", "1", "2"]


def test_the_document_that_is_the_query_itself_can_be_left_out():
    task = RetrievalTask("t", ["x"], ["a"], ["x", "y"], ["a", "b"], {"x": {"y": 1}})
    assert evaluate_retrieval(task, one_hot).metrics["accuracy@1"] == 0
    task = replace(task, ignore_identical_ids=True)
    assert evaluate_retrieval(task, one_hot).metrics["accuracy@1"] == 1


def test_an_encoder_that_loses_texts_is_noticed():
    with pytest.raises(ValueError, match="for 2 texts"):
        evaluate_retrieval(
            retrieval_from_pairs(["a", "b"], ["a", "b"]), lambda texts: one_hot(texts[:1])
        )


def test_equals_trec_eval_from_vectors_to_metrics():
    """Vectors that give the reference's scores, in any corpus order: its metrics come out."""
    reference = json.loads((REFERENCE / "trec_metrics.json").read_text("utf-8"))
    for query, run in list(reference["run"].items())[::7]:
        if query in reference["expected"] and run:
            task = RetrievalTask(
                "t", [query], ["?"], list(run), list(run), {query: reference["judgements"][query]}
            )
            vectors = {"?": 1.0, **run}
            result = evaluate_retrieval(
                task,
                lambda texts, v=vectors: np.array([[v[t]] for t in texts], np.float32),
                reference["ks"],
            )
            assert result.metrics == pytest.approx(reference["expected"][query], abs=1e-9)


@pytest.mark.parametrize("portion", [1, 7, 1 << 15])
def test_portions_change_nothing_and_brute_force_agrees(monkeypatch, portion):
    """A set with copies, ties and queries that are documents, against float64 over all documents at
    once."""
    monkeypatch.setattr(ranking, "PORTION_DOCUMENTS", portion)
    task = read_beir(REFERENCE / "beir")
    documents = one_hot(task.documents).astype(np.float64)
    run = rank_documents(task, one_hot, one_hot, 20)
    for query, text in zip(task.query_ids, task.queries, strict=True):
        scores = documents @ one_hot([text])[0]
        order = [i for i in trec_order(task.document_ids, scores) if task.document_ids[i] != query][
            :20
        ]
        assert run[query] == [(task.document_ids[i], scores[i]) for i in order]


def test_no_more_than_a_portion_is_encoded_at_a_time_and_no_text_twice(monkeypatch):
    monkeypatch.setattr(ranking, "PORTION_DOCUMENTS", 10)
    texts = [" ".join("abcdefgh"[i % 8] for i in range(number % 40 + 1)) for number in range(100)]
    ids = [str(number) for number in range(100)]
    task = RetrievalTask("t", ["q"], ["a"], ids, texts, {"q": {"0": 1}})
    seen = []

    def encode(portion):
        seen.append(list(portion))
        return one_hot(portion)

    rank_documents(task, one_hot, encode, 5)
    assert max(map(len, seen)) == 10
    assert sorted(sum(seen, [])) == sorted(set(texts))
    monkeypatch.setattr(ranking, "PORTION_CHARACTERS", 200)
    seen.clear()
    rank_documents(task, one_hot, encode, 5)
    assert 1 < max(map(len, seen[4:])) < 10
