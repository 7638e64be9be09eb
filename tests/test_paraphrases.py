"""The closest pairs against all pairs in float64, and the command from file to file."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from minilm_retriever.__main__ import main
from minilm_retriever.curation import paraphrases
from minilm_retriever.curation.paraphrases import closest_pairs
from minilm_retriever.data.pairs import read_pairs
from minilm_retriever.errors import UserError


def unit(rows, seed, width=8):
    x = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def by_hand(vectors):
    """(score, left, right) of every pair, best first."""
    scores = np.clip(vectors.astype(np.float64) @ vectors.T.astype(np.float64), -1, 1).astype(
        np.float32
    )
    left, right = np.triu_indices(len(vectors), 1)
    order = np.lexsort((right, left, -scores[left, right]))
    return scores[left, right][order], left[order], right[order]


@pytest.mark.parametrize("blocks", [(1024, 8192), (4, 4), (7, 30), (64, 5)])
@pytest.mark.parametrize(
    ("count", "threshold"), [(1, None), (50, None), (None, 0.7), (20, 0.7), (5000, None), (9, 2)]
)
def test_the_best_pairs_are_brute_forces(monkeypatch, blocks, count, threshold):
    left, right = blocks
    monkeypatch.setattr(paraphrases, "BLOCK_ROWS", left)
    monkeypatch.setattr(paraphrases, "BLOCK_COLUMNS", max(left, right))
    vectors = unit(90, 0)
    vectors[40:44] = vectors[3]  # ties, at 1
    closest = closest_pairs(vectors, count, threshold)
    scores, one, other = by_hand(vectors)
    kept = slice(
        0,
        min(count or len(scores), int((scores >= (-1 if threshold is None else threshold)).sum())),
    )
    np.testing.assert_allclose(closest.scores, scores[kept], atol=1e-7)
    if count != 1:  # several pairs are equally good
        assert set(zip(closest.left, closest.right, strict=True)) == set(
            zip(one[kept], other[kept], strict=True)
        )
    assert (closest.left < closest.right).all() and (np.diff(closest.scores) <= 0).all()


def test_what_is_kept_is_bounded(monkeypatch):
    monkeypatch.setattr(paraphrases, "MAX_PAIRS", 1000)
    with pytest.raises(UserError, match="more than 1,000 pairs reach the threshold"):
        closest_pairs(unit(100, 1), None, -1.0)
    assert len(closest_pairs(unit(100, 1), 10, -1.0).scores) == 10


@pytest.fixture()
def texts(tmp_path):
    path = tmp_path / "texts.csv"
    words = ["bread", "soup", "steel", " bread", "glass", "bread", "soup"]
    path.write_text(
        "name,body\n" + "".join(f"n{i},{word}\n" for i, word in enumerate(words)), encoding="utf-8"
    )
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv"])
def test_from_file_to_file(texts, tmp_path, tiny_folder, capsys, suffix):
    out = tmp_path / f"pairs.{suffix}"
    command = [
        "paraphrases",
        texts,
        "--text",
        "body",
        "--id",
        "name",
        "--model",
        tiny_folder,
        "--out",
        out,
    ]
    assert main([str(word) for word in command]) == 0
    assert (
        "7 texts, 4 distinct (3 copies: --duplicates shows them); 6 pairs"
        in capsys.readouterr().err
    )
    with pytest.raises(UserError, match="--min-score"):
        read_pairs(out)
    pairs = read_pairs(out, min_score=0)
    assert pairs.columns == ("sentence_0", "sentence_1")  # what train.py takes
    words = ["bread", "soup", "steel", "glass"]
    assert set(zip(*pairs.texts, strict=True)) == set(itertools.combinations(words, 2))
    assert main([str(word) for word in command]) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_copies_come_first_where_they_are_wanted(texts, tmp_path, tiny_folder, capsys):
    out = tmp_path / "pairs.jsonl"
    command = [
        "paraphrases",
        texts,
        "--text",
        "body",
        "--id",
        "name",
        "--model",
        tiny_folder,
        "--duplicates",
    ]
    assert main([str(word) for word in [*command, "--out", out, "-n", "5"]]) == 0
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [(row["id_0"], row["id_1"], row["score"]) for row in rows[:3]] == [
        ("n0", "n3", 1.0),
        ("n0", "n5", 1.0),
        ("n1", "n6", 1.0),
    ]
    assert len(rows) == 5 and rows[3]["score"] >= rows[4]["score"]
    assert main([str(word) for word in [*command, "-n", "1"]]) == 0
    assert capsys.readouterr().out == "   1  1.0000  n0  bread\n              n3   bread\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-n", "0"], "-n must be between 1 and"),
        (["--threshold", "1.5"], "between -1 and 1"),
        (["--out", "pairs.txt"], ".csv, .tsv or .jsonl"),
        (["--text", "nothing"], "nothing"),
    ],
)
def test_a_mistake_is_one_line(texts, tiny_folder, capsys, flags, message):
    assert main(["paraphrases", str(texts), "--model", str(tiny_folder), *flags]) == 2
    output = capsys.readouterr().err
    assert output.count("\n") == 1 and message in output


def test_one_text_has_no_pair(tmp_path, tiny_folder, capsys):
    (tmp_path / "one.txt").write_text("bread\nbread\n", encoding="utf-8")
    command = ["paraphrases", str(tmp_path / "one.txt"), "--model", str(tiny_folder)]
    assert main(command) == 2 and "pairs need two" in capsys.readouterr().err
    assert main([*command, "--duplicates"]) == 0
