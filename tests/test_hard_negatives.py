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
from tests.conftest import REFERENCE


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
    for row, kept in enumerate(expected):
        assert negatives.rows[row].tolist() == kept + [-1] * (count - len(kept))  # never filled up
    assert any(len(kept) < count for kept in expected) or margin == 0.0


BOUNDS = [
    {"margin": 0.1},
    {"relative_margin": 0.2},
    {"margin": 0.0, "relative_margin": 0.1, "min_cosine": -0.1},
    {"min_cosine": 0.1, "max_cosine": 0.3},
    {"max_cosine": 0.15},
]


@pytest.mark.parametrize("sampling", ["top", "random"])
@pytest.mark.parametrize("bounds", BOUNDS)
def test_every_bound_is_its_definition(bounds, sampling):
    queries, documents = unit(30, 0), unit(80, 1)
    own = np.random.default_rng(2).integers(0, 80, 30)
    known = [{int(document)} for document in own]
    held = [{int(d) for d in np.random.default_rng(row).integers(0, 80, 20)} for row in range(30)]
    flags = {"ranks": (3, 40), "negatives": 4, "sampling": sampling, **bounds}
    config = MineConfig(pairs="-", out="x.csv", **flags)
    chosen = choose(queries, documents, np.arange(30), own, known, config, held)
    margin = bounds.get("margin", 0.0 if "relative_margin" in bounds else 0.05)
    sampled = 0
    for row in range(30):
        scores = (documents @ queries[row]).astype(float)
        order = [d for d in np.argsort(-scores, kind="stable") if d not in known[row]][2:40]
        highest = scores[own[row]] - max(
            margin, abs(scores[own[row]]) * bounds.get("relative_margin", 0)
        )
        kept = [d for d in order if scores[d] <= min(highest, bounds.get("max_cosine", 1))]
        kept = [d for d in kept if scores[d] >= bounds.get("min_cosine", -1)]
        kept = [d for d in kept if d not in held[row]]
        mined = [d for d in chosen.rows[row].tolist() if d >= 0]
        assert len(mined) == min(4, len(kept)) and [d for d in kept if d in mined] == mined
        np.testing.assert_allclose(chosen.cosines[row, : len(mined)], scores[mined], atol=1e-6)
        sampled += mined != kept[:4]
    assert (sampled > 0) == (sampling == "random")
    again = choose(queries, documents, np.arange(30), own, known, config, held)
    assert again.rows.tolist() == chosen.rows.tolist()


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
    said = capsys.readouterr().err
    assert "14 rows with 27 new hard negatives, mean" in said and "fewer than 2 in 1:" in said
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
        (["--max-cosine", "-1"], "no document is left that could be a negative"),
        (["--max-cosine", "0.1", "--min-cosine", "0.2"], "--min-cosine 0.2 is above"),
        (["--relative-margin", "-1"], "--relative-margin must be at least 0"),
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


def test_negatives_that_are_there_stay_and_are_not_mined_again(
    pairs, tmp_path, tiny_folder, capsys
):
    """As lists and as columns; what is written is read again, without its cosines."""
    rows = [
        {"query": query, "pos": [document], "neg": negatives}
        for (query, document), negatives in zip(
            zip(*read_pairs(pairs, ["query", "document"]).texts, strict=True),
            [[], ["nurse wanted,\n1 years"], ["never mined", "judge wanted,\n4 years"]] * 5,
            strict=False,
        )
    ]
    path, out = tmp_path / "in.jsonl", tmp_path / "out.csv"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    flags = ["--model", str(tiny_folder), "--margin", "0", "--negatives", "9", "--cosines"]
    assert main(["mine", str(path), "--out", str(out), *flags, "--ranks", "1", "9"]) == 0
    said = capsys.readouterr().err
    assert "fewer than 9 in " in said and "random" not in said
    mined = read_pairs(out)
    assert mined.columns[:4] == ("query", "pos", "neg_1", "neg_2")
    for row, texts in zip(rows, zip(*mined.texts, strict=True), strict=True):
        present = [text for text in texts[2:] if text]
        before, after = present[: len(row["neg"])], present[len(row["neg"]) :]
        assert before == row["neg"] and len(set(after)) == len(after) and not {*before} & {*after}
    with out.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            assert bool(row["negative_3"]) == bool(row["cosine_negative_3"])
            assert float(row["cosine_negative_3"] or -1) <= float(row["cosine_pos"])


@pytest.mark.parametrize("columns", [(), ("query", "document"), ("query", "document", "negative")])
def test_a_column_of_negatives_stays_whatever_is_named(columns, tmp_path, tiny_folder):
    rows = [
        (f"looks for a {n}", f"{n} wanted", f"a {n} of old") for n in "cook nurse pilot".split()
    ]
    path, out = tmp_path / "in.csv", tmp_path / "out.csv"
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([("query", "document", "negative"), *rows])
    command = ["mine", str(path), "--out", str(out), "--model", str(tiny_folder), "--margin", "0"]
    assert main([*command, *(["--columns", *columns] if columns else [])]) == 0
    mined = read_pairs(out)
    assert mined.columns == ("query", "document", "negative", "negative_2")
    assert list(zip(*mined.texts[:3], strict=True)) == rows


@pytest.mark.parametrize("name", ["margin", "relative", "bounds", "prompts"])
def test_what_is_mined_is_what_sentence_transformers_mines(name, tmp_path, tiny_folder):
    """Recorded by tests/reference/make_losses.py."""
    recorded = json.loads((REFERENCE / "losses_st6.json").read_text("ascii"))
    mined, settings = recorded["mined"][name]["rows"], recorded["mined"][name]["settings"]
    texts = json.loads((REFERENCE / "pairs.json").read_text("ascii"))[: recorded["rows"]]
    path, out = tmp_path / "pairs.jsonl", tmp_path / "mined.jsonl"
    path.write_text("".join(json.dumps({"query": q, "document": d}) + "\n" for q, d in texts))
    flags = {
        "absolute_margin": "--margin",
        "relative_margin": "--relative-margin",
        "min_score": "--min-cosine",
        "max_score": "--max-cosine",
        "num_negatives": "--negatives",
        "query_prompt": "--query-prompt",
        "corpus_prompt": "--document-prompt",
    }
    given = [
        text for key, flag in flags.items() if key in settings for text in (flag, settings[key])
    ]
    command = ["mine", path, "--out", out, "--model", tiny_folder, *given]
    assert main([str(a) for a in [*command, "--ranks", 1, settings["range_max"]]]) == 0
    ours = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    found = [
        [row["query"], row["document"], text]
        for row in ours
        for name, text in row.items()
        if name.startswith("negative") and text
    ]
    assert sorted(found) == sorted(mined)
