"""A run whose loss would be 0 throughout is refused; scores and drawn negatives that do teach."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from minilm_retriever.__main__ import main
from minilm_retriever.training.batches import NegativeSampler
from minilm_retriever.training.config import TrainConfig
from minilm_retriever.training.prepare import prepare
from tests.test_training_prompts import JOBS, TEXTS, logged, write

SAME_QUERY = [("one query", document) for _, document in TEXTS]
SAME_DOCUMENT = [(query, "one document") for query, _ in TEXTS]
FLAT = [(*row, 0.5) for row in TEXTS]
SCORED = [(*row, i % 3) for i, row in enumerate(TEXTS)]
HARD = [(*row, "always wrong") for row in TEXTS]
NO_LESSON = [
    # rows, flags, what the line names
    (TEXTS, ["--batch-size", "1"], "--batch-size 1 has no negatives"),
    (TEXTS[:1], [], "same document"),
    (TEXTS[:1] * 9, [], "same document"),
    (SAME_DOCUMENT, [], "same document"),
    (SAME_QUERY, ["--false-negatives", "mask"], "leaves no negative"),
    (SAME_QUERY, ["--false-negatives", "avoid"], "leaves no negative"),
    ([(q, q) for q, _ in TEXTS], ["--guide", "--guide-margin", "0"], None),  # can be learnt
    ([(*TEXTS[0], TEXTS[0][1])] * 9, ["--columns", "query", "document", "negative"], "document"),
    (HARD, ["--batch-size", "1"], None),
    ([(*row, row[1]) for row in TEXTS], ["--batch-size", "1"], "no batch of an epoch holds"),
    ([("one", "a"), ("one", "b"), ("two", "a")], ["--false-negatives", "mask"], None),
    (FLAT, ["--loss", "cosent"], "all scores are 0.5"),
    (SCORED, ["--loss", "cosent", "--batch-size", "1"], "no batch of an epoch holds two scores"),
    (FLAT, ["--loss", "cosine", "--batch-size", "1"], None),
    (SCORED, ["--loss", "cosine"], "--score-range 0 2"),
    (SCORED, ["--loss", "cosine", "--score-range", "2", "0"], "the lower score comes first"),
    (SCORED, ["--loss", "cosent", "--guide"], "--guide has no part in --loss cosent"),
    (SCORED, ["--loss", "cosine", "--symmetric"], "--symmetric has no part in --loss cosine"),
    (SCORED, ["--loss", "cosent", "--score-range", "0", "2"], "--score-range has no part"),
    (TEXTS, ["--loss", "cosent"], "no column of scores"),
    (SCORED, [], "--loss cosent"),
    (TEXTS, ["--guide-all"], "--guide-all needs --guide"),
]


@pytest.mark.parametrize("number", range(len(NO_LESSON)))
def test_what_can_teach_nothing_is_refused_before_anything_is_written(
    number, tiny_folder, tmp_path, capsys
):
    rows, flags, message = NO_LESSON[number]
    third = "negative" if isinstance(rows[0][-1], str) else "score"
    path = write(tmp_path / "pairs.csv", rows, ("query", "document", third)[: len(rows[0])])
    command = ["train", "--train", path, "--model", str(tiny_folder), "--out", str(tmp_path / "o")]
    dry = ["--dry-run"] if message is None else []
    status = main([*command, "--max-steps", "1", *dry, *flags])
    said = capsys.readouterr().err
    if message is None:
        assert status == 0, said
        return
    assert status == 2 and said.count("error:") <= 1 and message in said.splitlines()[-1]
    assert not list(tmp_path.glob("o*"))


def test_no_epoch_without_a_negative_is_trained(tiny_folder, tmp_path, capsys):
    """Of random data of few texts, what is trained has a loss above 0, and what is not has none."""
    random.seed(0)
    trained = refused = 0
    for number in range(14):
        few = [f"text {i}" for i in range(random.randint(1, 3))]
        rows = [(f"q {t}", f"d {random.choice(few)}") for t in random.choices(few, k=5)]
        flags = {
            "batch_size": random.randint(1, 4),
            "false_negatives": random.choice(["keep", "mask", "avoid"]),
            "guide": random.choice([None, "base"]),
        }
        path = write(tmp_path / f"{number}.csv", rows)
        model, out = str(tiny_folder), str(tmp_path / "out")
        config = TrainConfig(train=(path,), model=model, out=out, dropout=0.0, **flags)
        try:
            ready = prepare(config)
        except ValueError:
            refused += 1
            continue
        steps = enumerate(ready.batches(0, ready.sampler.steps_per_epoch))
        losses = [float(ready.trainer.step(n, batches).losses.sum()) for n, batches in steps]
        assert max(losses) > 0, (rows, flags)
        trained += 1
    assert trained > 3 and refused > 3


def test_a_last_batch_of_one_row_is_told(tiny_folder, tmp_path, capsys):
    path = write(tmp_path / "pairs.csv", [*TEXTS, ("looks for a ninth", "a ninth wanted")])
    command = ["train", "--train", path, "--model", str(tiny_folder), "--out", str(tmp_path / "o")]
    assert main([*command, "--batch-size", "4", "--dry-run"]) == 0
    assert "has one row, which teaches nothing" in capsys.readouterr().err
    assert main([*command, "--batch-size", "3", "--dry-run"]) == 0
    assert "has one row" not in capsys.readouterr().err


def test_scores_train_and_what_is_best_by_spearman_is_published(tiny_folder, tmp_path, capsys):
    rows = [(f"a {a}", f"the {b}", 5.0 if a == b else i % 3) for i, (a, b) in enumerate(pairs())]
    path, out = (
        write(tmp_path / "sts.csv", rows, ("sentence1", "sentence2", "score")),
        tmp_path / "o",
    )
    flags = ["--model", str(tiny_folder), "--out", str(out), "--loss", "cosent", "--epochs", "3"]
    learning = ["--learning-rate", "1e-3", "--batch-size", "8", "--eval-steps", "6"]
    assert main(["train", "--train", path, "--eval", path, *flags, *learning]) == 0
    assert "spearman" in capsys.readouterr().err
    first, *_ = figures = logged(out)
    assert set(first) == {"spearman", "pearson", "standard_error", "loss"}
    assert max(row["spearman"] for row in figures) > first["spearman"] + 0.1
    card = (out / "README.md").read_text("utf-8")
    assert "CoSENTLoss" in card and "pairs with scores" in card and "Ranking" not in card
    assert (out / "report.html").read_text("utf-8").count("pairs with scores") == 1


def pairs():
    return [(a, b) for a in JOBS[:5] for b in JOBS[:5]]


# --- hard negatives that are drawn ----------------------------------------------------------------


def many_negatives(tmp_path) -> str:
    rows = [
        {"query": q, "pos": [d], "neg": [f"no {i} {n}" for n in range(3 * i)]}
        for i, (q, d) in enumerate(TEXTS)
    ]
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_negatives_are_drawn_anew_in_each_epoch_and_the_same_again(tiny_folder, tmp_path):
    flags = {"model": str(tiny_folder), "out": str(tmp_path / "o"), "batch_size": 8}
    config = TrainConfig(train=(many_negatives(tmp_path),), sample_negatives=4, **flags)
    ready = prepare(config)
    assert ready.data.text_ids[0].shape == (8, 2 + 21)  # of a list: all of them, not the first 7
    epochs = []
    for [batch] in ready.batches(0, 3):
        assert batch.rows.texts.shape == (6, 8)
        by_query = {}
        for query, _, *drawn in batch.rows.texts.T:
            names = [ready.data.texts[text] for text in drawn]
            count = 3 * JOBS.index(ready.data.texts[query].split()[-1])
            present = [name for name in names if name]
            assert len(present) == len(set(present)) == min(4, count)  # absent only for want
            assert all(name.startswith(f"no {count // 3} ") for name in present)
            by_query[int(query)] = names
        epochs.append(by_query)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    [later] = next(prepare(config).batches(2, 3))  # as a resumed run begins
    assert {int(q): [ready.data.texts[t] for t in n] for q, _, *n in later.rows.texts.T} == epochs[
        2
    ]


def test_each_negative_is_drawn_as_often_as_any_other():
    texts = np.hstack([np.zeros((1, 2), np.int64), np.arange(1, 11)[None]])
    sampler = NegativeSampler(3, seed=0)
    drawn = [sampler.draw(0, texts, epoch, absent=-1)[0, 2:] for epoch in range(3000)]
    counts = np.bincount(np.concatenate(drawn), minlength=11)[1:]
    assert counts.sum() == 9000 and abs(counts - 900).max() < 5 * (900 * 0.7) ** 0.5
