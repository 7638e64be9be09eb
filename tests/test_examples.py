"""examples/job_skills holds what its README says."""

from __future__ import annotations

import csv
import re
import runpy
from collections import Counter

import numpy as np
import pytest

from minilm_retriever import Encoder
from minilm_retriever.evaluation.bm25 import rank_by_terms
from minilm_retriever.evaluation.evaluate import measure_run
from minilm_retriever.evaluation.tasks import retrieval_from_pairs
from tests.conftest import ROOT

FOLDER = ROOT / "examples" / "job_skills"


def read(name):
    with (FOLDER / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


TRAIN, WORDINGS, OCCUPATIONS, CORPUS = (
    read(f"{name}.csv") for name in ("train", "unseen_wordings", "unseen_occupations", "corpus")
)
ROWS = TRAIN + WORDINGS + OCCUPATIONS


def words(text):
    return re.findall(r"[a-z]+", text.lower())


def stem(word):
    for ending in ("ing", "ers", "er", "ors", "or", "ists", "ist", "es", "s", "ed"):
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            return word[: -len(ending)]
    return word


def test_there_are_320_occupations_with_two_wordings_and_60_held_out_wholly():
    skills = {row["title"]: row["skills"] for row in CORPUS}
    assert len(skills) == len(CORPUS) == 352 and len(set(skills.values())) == 352
    assert all(skills[row["title"]] == row["skills"] for row in ROWS)
    assert Counter(row["title"] for row in ROWS) == dict.fromkeys(skills, 2)
    assert len({row["description"] for row in ROWS}) == len(ROWS) == 704


def test_the_split_leaks_nothing():
    trained, unseen = {row["title"] for row in TRAIN}, {row["title"] for row in OCCUPATIONS}
    assert len(unseen) == 70 and not trained & unseen
    assert {row["title"] for row in WORDINGS} == trained
    assert not {row["description"] for row in TRAIN} & {row["description"] for row in WORDINGS}


def test_descriptions_are_one_to_three_sentences_and_name_no_title():
    for row in ROWS:
        assert 1 <= len(re.findall(r"[.!?](?=\s|$)", row["description"])) <= 4, row["description"]
        assert 15 <= len(row["description"].split()) <= 70
        title = {stem(word) for word in words(row["title"]) if len(word) > 3}
        assert not title & {stem(word) for word in words(row["description"])}, row
        assert row["title"].lower() not in row["skills"].lower()


def test_no_six_words_are_repeated():
    counts = Counter()
    for row in ROWS:
        w = words(row["description"])
        counts.update({tuple(w[i : i + 6]) for i in range(len(w) - 5)})
    assert counts.most_common(1)[0][1] <= 0.01 * len(ROWS)


def test_it_is_hard_enough_for_bm25_and_neither_hopeless_nor_easy_for_the_base_model(base):
    pytest.importorskip("bm25s")
    documents = [row["skills"] for row in CORPUS]
    queries = [row["description"] for row in ROWS]
    task = retrieval_from_pairs(queries, [row["skills"] for row in ROWS], documents)
    assert measure_run(task, rank_by_terms(task, 1), (1,)).metrics["accuracy@1"] <= 0.6
    right = np.array([documents.index(row["skills"]) for row in ROWS])
    nearest = (base.encode(queries) @ base.encode(documents).T).argmax(axis=1)
    assert 0.4 <= (nearest == right).mean() <= 0.85


@pytest.mark.filterwarnings("ignore:.*failed to converge")
@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("retrieval", r"(0\.\d{4}  .+\n){2}nDCG@10 0\.\d{4}\n"),
        ("clustering", r"( *\d+  [^\n]+, [^\n]+\n){12}"),
        (
            "classification",
            r"accuracy on 282 descriptions, 282 occupations: 0\.\d{4}\n"
            r"by the nearest .*: 0\.\d{4}\n",
        ),
    ],
)
def test_the_python_examples_run(name, printed, tiny, monkeypatch, capsys):
    if name != "retrieval":
        pytest.importorskip("sklearn")
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(Encoder, "from_pretrained", lambda model: tiny)
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"))
    assert re.fullmatch(printed, capsys.readouterr().out)


def test_readme_shows_the_retrieval_example():
    code = (ROOT / "examples/retrieval.py").read_text("utf-8").split("\n\n", 1)[1]
    assert code in (ROOT / "README.md").read_text("utf-8")
