"""What `minilm-retriever inspect` reports."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from minilm_retriever.__main__ import main
from minilm_retriever.curation.duplicates import loss_floor
from minilm_retriever.curation.inspect import Sample, inspect
from minilm_retriever.curation.inspection import advice, as_text
from minilm_retriever.data.pair_source import PairSource
from minilm_retriever.errors import UserError


def write(path, rows, columns=("sentence_0", "sentence_1")):
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(rows)
    return str(path)


@pytest.fixture()
def pairs(tmp_path):
    """40 rows: 10 pairs of which one stands 31 times; plus rows with something wrong."""
    rows = [("a cook bakes", "bread and cakes")] * 31 + [
        (f"job {i}", f"skills {i}") for i in range(9)
    ]
    wrong = [
        ("same", "same"),
        ("turned", "around"),
        (" around ", "turned"),
        ("", "no query"),
        ("only a query", "  "),
    ]
    return write(tmp_path / "pairs.csv", rows + wrong)


def test_what_is_found(pairs, tiny):
    inspection = inspect(PairSource(pairs), tiny.model.tokenizer, batch_size=8)
    repeats = inspection.repeats
    assert (repeats.rows, repeats.distinct_pairs, repeats.steps, repeats.distinct_steps) == (
        43,
        13,
        6,
        2,
    )
    assert (repeats.distinct_queries, repeats.distinct_documents) == (13, 13)
    assert repeats.loss_floor == pytest.approx(loss_floor(np.array([31] + [1] * 12), 8))
    assert repeats.unplaceable == 25  # of 31 copies 6 batches take one each
    assert inspection.most_repeated["sentence_0"] == [(31, "a cook bakes")]
    assert (
        inspection.identical,
        inspection.swapped,
        inspection.empty.rows,
        inspection.unreadable.rows,
    ) == (1, 2, 2, 0)
    assert (
        inspection.empty.first.startswith(f"{pairs}:45") and "sentence_0" in inspection.empty.first
    )
    assert "31 x a cook bakes" in as_text(inspection)
    assert len(advice(inspection)) == 6


def test_tokens_are_the_tokenizer_s(tmp_path, tiny):
    words = [
        "one",
        "two words",
        "a " * 100,
        "a " * 62,
        "a " * 63,
    ]  # the limit is 64, two of them special
    path = write(tmp_path / "p.csv", [(word, f"document {i}") for i, word in enumerate(words)])
    inspection = inspect(PairSource(path), tiny.model.tokenizer)
    tokens = inspection.tokens["sentence_0"]
    lengths = tiny.model.tokenizer.tokenize(words).lengths
    assert (tokens.min, tokens.max, tokens.mean) == (
        lengths.min(),
        64,
        pytest.approx(lengths.mean()),
    )
    assert tokens.truncated == pytest.approx(2 / 5)  # the fourth just fits
    assert sum(tokens.histogram) == 5 and inspection.limit == 64 and inspection.sampled_rows == 5


def test_a_sample_stands_for_all_rows(tiny, monkeypatch):
    monkeypatch.setattr("minilm_retriever.curation.inspect.SAMPLE", 500)
    sample = Sample(tiny.model.tokenizer)
    for row in range(20_000):  # ever longer: a biased sample would show
        sample.add(row, ["a " * (row // 1000 + 1), "bread"])
    lengths = sample.token_counts()
    assert [len(column) for column in lengths] == [500, 500]
    assert lengths[0].mean() == pytest.approx(12.5, abs=1.0)


def test_further_columns_and_jsonl(tmp_path, tiny):
    path = tmp_path / "p.jsonl"
    rows = [
        {"q": "x", "d": "y", "negative": "y"},
        {"q": "z", "d": "w", "negative": "v"},
        {"q": 3, "d": "w"},
        {"d": "w"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    inspection = inspect(PairSource(path), tiny.model.tokenizer)
    assert inspection.columns == ("q", "d", "negative") and inspection.own_negatives == 1
    assert inspection.unreadable.rows == 2 and f"{path}:3" in inspection.unreadable.first


def test_the_command_and_its_json(pairs, tiny_folder, capsys):
    assert main(["inspect", pairs, "--model", str(tiny_folder), "--batch-size", "4", "--json"]) == 0
    inspection = json.loads(capsys.readouterr().out)
    assert (
        inspection["loss_floor"] > 0.5
        and inspection["batch_size"] == 4
        and inspection["rows"] == 43
    )
    assert inspection["tokens"]["sentence_0"]["max"] >= 3 and inspection["empty"]["rows"] == 2
    assert main(["inspect", pairs, "--model", str(tiny_folder)]) == 0
    assert "cannot go below" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--columns", "sentence_0", "missing"], "missing"),
        (["--columns", "sentence_0"], "two different"),
        (["--batch-size", "0"], "--batch-size"),
    ],
)
def test_a_mistake_is_one_line(pairs, tiny_folder, capsys, flags, message):
    assert main(["inspect", pairs, "--model", str(tiny_folder), *flags]) == 2
    output = capsys.readouterr().err
    assert output.count("\n") == 1 and message in output


def test_nothing_to_look_at(tmp_path, tiny):
    with pytest.raises(UserError, match="p.csv:2: column 'sentence_1' is empty"):
        inspect(PairSource(write(tmp_path / "p.csv", [("a", "")])), tiny.model.tokenizer)
    path = tmp_path / "p.jsonl"
    path.write_text('{"a": "x", "b": "y"}', encoding="utf-8")
    with pytest.raises(UserError, match="no column 'c'"):
        inspect(PairSource(path, ["a", "c"]), tiny.model.tokenizer)
