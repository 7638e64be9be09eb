"""Hard negatives against brute force, and `minilm-retriever mine` from file to file."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from minilm_retriever.__main__ import main
from minilm_retriever.curation.config import MineConfig
from minilm_retriever.curation.hard_negatives import choose
from minilm_retriever.data.pairs import read_pairs


def unit(rows, seed):
    x = np.random.default_rng(seed).normal(size=(rows, 16)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def by_hand(queries, documents, query_of, own, known, first, last, margin, count):
    """Row by row, over all documents."""
    chosen = []
    for query, document in zip(query_of, own, strict=True):
        scores = documents.astype(np.float64) @ queries[query].astype(np.float64)
        order = [d for d in np.argsort(-scores, kind="stable") if d not in known[query]]
        kept = [d for d in order[first - 1 : last] if scores[d] <= scores[document] - margin]
        chosen.append(kept[:count])
    return chosen


@pytest.mark.parametrize(
    ("first", "last", "margin", "count"), [(1, 20, 0.0, 3), (5, 12, 0.1, 2), (1, 90, 0.4, 1)]
)
def test_what_is_chosen_is_what_brute_force_chooses(monkeypatch, first, last, margin, count):
    monkeypatch.setattr("minilm_retriever.curation.hard_negatives.QUERIES", 16)
    queries, documents = unit(40, 0), unit(90, 1)
    rng = np.random.default_rng(2)
    query_of = np.concatenate([np.arange(40), rng.integers(0, 40, 60)])
    own = rng.integers(0, 90, 100)
    known = [set() for _ in queries]
    for query, document in zip(query_of, own, strict=True):
        known[query].add(int(document))
    config = MineConfig(pairs="-", out="x.csv", ranks=(first, last), margin=margin, negatives=count)
    negatives = choose(queries, documents, query_of, own, known, config)
    expected = by_hand(queries, documents, query_of, own, known, first, last, margin, count)
    assert negatives.random == sum(count - len(kept) for kept in expected)
    for row, kept in enumerate(expected):
        assert negatives.rows[row, : len(kept)].tolist() == kept
        assert (
            len(set(negatives.rows[row])) == count
        )  # also what was drawn at random is nothing known, and nothing twice
        assert known[query_of[row]].isdisjoint(negatives.rows[row].tolist())


@pytest.fixture()
def pairs(tmp_path):
    path = tmp_path / "pairs.csv"
    jobs = "cook nurse pilot baker judge tailor".split()
    with path.open("w", encoding="utf-8", newline="") as stream:
        out = csv.writer(stream)
        out.writerow(["title", "query", "document"])
        out.writerows(
            (i, f"looks for a {job}", f"{job} wanted,\n{i % 6} years")
            for i, job in enumerate(jobs * 2)
        )
        out.writerow([99, "looks for a cook", "a second answer"])
        out.writerow([99, "baker wanted,\n3 years", "a query that is a document"])
    return str(path)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_from_file_to_file(pairs, tmp_path, tiny_folder, suffix, capsys):
    out = tmp_path / f"mined.{suffix}"
    command = [
        "mine",
        pairs,
        "--columns",
        "query",
        "document",
        "--model",
        str(tiny_folder),
        "--out",
        str(out),
    ]
    assert main([*command, "--negatives", "2", "--margin", "0"]) == 0
    assert "14 rows with 2 hard negatives" in capsys.readouterr().err
    original, mined = read_pairs(pairs, ["query", "document"]), read_pairs(out)
    assert mined.columns == ("query", "document", "negative_1", "negative_2")
    assert mined.texts[:2] == original.texts
    answers = {}
    for query, document in zip(*original.texts, strict=True):
        answers.setdefault(query, {query}).add(document)
    for query, *_, first, second in zip(*mined.texts, strict=True):
        assert first != second and not {first, second} & answers[query]
    assert main(command) == 2  # not over what is there
    assert main([*command, "--overwrite"]) == 0
    assert read_pairs(out).columns == ("query", "document", "negative")


def test_a_corpus_adds_documents(pairs, tmp_path, tiny_folder):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("a cook of old\n\nno pilot at all\n", encoding="utf-8")
    out = tmp_path / "mined.jsonl"
    flags = [
        "--columns",
        "query",
        "document",
        "--model",
        str(tiny_folder),
        "--corpus",
        str(corpus),
        "--margin",
        "0",
    ]
    assert (
        main(["mine", pairs, "--out", str(out), *flags, "--negatives", "8", "--ranks", "1", "8"])
        == 0
    )
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert any("a cook of old" in row.values() for row in rows)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--margin", "-1"], "--margin must be at least 0"),
        (["--ranks", "5", "2"], "--ranks needs a first and a last rank"),
        (["--ranks", "5", "6", "--negatives", "3"], "no room for --negatives 3"),
        (["--negatives", "7"], "leaves fewer than 7 negatives"),
        (["--columns", "query", "nothing"], "nothing"),
        (["--out", "mined.parquet"], ".csv, .tsv or .jsonl"),
    ],
)
def test_a_mistake_is_one_line(pairs, tmp_path, tiny_folder, capsys, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    usual = ["--columns", "query", "document", "--model", str(tiny_folder), "--out", "mined.csv"]
    assert main(["mine", pairs, *usual, *flags]) == 2
    *columns, error = capsys.readouterr().err.splitlines()
    assert message in error and all("columns query -> document" in line for line in columns)
    assert not (tmp_path / "mined.csv").exists()
