"""Bulk encoding of input that is not what it should be."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from minilm_retriever.errors import UserError
from minilm_retriever.vectors.vector_folder import open_vectors
from tests.encoding.files import contents, killed_after, write_lines

BAD = '{"body": "one"}\n{"body": 2}\n{"body": "three"}\nnot JSON\n{"body": "five"}\n'


def test_a_bad_row_stops_the_run_and_once_it_is_mended_the_same_command_goes_on(
    run, tiny, monkeypatch
):
    Path("in.jsonl").write_text(BAD, "utf-8")
    with pytest.raises(UserError, match=r"^in.jsonl:2: column 'body' holds a number"):
        run("in.jsonl", shard_size=1)
    Path("in.jsonl").write_text(BAD.replace("2", '"two"'), "utf-8")
    with pytest.raises(UserError, match=r"^in.jsonl:4: not JSON"):
        run("in.jsonl", shard_size=1)
    assert not Path("v").exists() and len(list(Path("v.run").glob("*.npy"))) == 3
    Path("in.jsonl").write_text(
        BAD.replace("2", '"two"').replace("not JSON", '{"body": "four"}'), "utf-8"
    )
    assert "3 rows were encoded before" in run("in.jsonl", shard_size=1)
    assert [text for _, text in open_vectors(Path("v"))] == ["one", "two", "three", "four", "five"]


def test_a_mended_input_that_differs_in_a_finished_shard_is_refused(run):
    Path("in.jsonl").write_text(BAD, "utf-8")
    with pytest.raises(UserError, match=r"^in.jsonl:2"):
        run("in.jsonl", shard_size=1)
    Path("in.jsonl").write_text(BAD.replace("one", "ONE").replace("2", '"two"'), "utf-8")
    with pytest.raises(
        UserError, match=r"v.run: rows 0 to 0 of the input are not those of the finished shard"
    ):
        run("in.jsonl", shard_size=1)


def test_a_stream_that_ends_earlier_than_before_is_refused(run, monkeypatch):
    def piped(text: str):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode()), "utf-8"))
        return run("-", shard_size=1)

    killed_after(monkeypatch, 2, lambda: piped("one\ntwo\nthree\n"))
    with pytest.raises(
        UserError, match="v.run: the input ends after 1 shards, but more were made from it before"
    ):
        piped("one\n")
    assert "2 rows were encoded before" in piped("one\ntwo\nthree\n")


def test_bad_rows_can_be_set_aside_up_to_a_number(run):
    Path("in.jsonl").write_text(BAD, "utf-8")
    summary = run("in.jsonl", skip_bad="bad.jsonl", max_bad=2)
    assert "2 bad rows in bad.jsonl" in summary
    aside = [json.loads(line) for line in Path("bad.jsonl").read_text("utf-8").splitlines()]
    assert [(row["where"], row["raw"]) for row in aside] == [
        ("in.jsonl:2", '{"body": 2}'),
        ("in.jsonl:4", "not JSON"),
    ]
    assert list(open_vectors(Path("v"))) == [("0", "one"), ("2", "three"), ("4", "five")]
    with pytest.raises(UserError, match="bad.jsonl: exists"):
        run("in.jsonl", out="w", skip_bad="bad.jsonl")
    with pytest.raises(UserError, match=r"in.jsonl:4: .* one more bad row than --max-bad 1"):
        run("in.jsonl", out="w", skip_bad="other.jsonl", max_bad=1)
    assert len(Path("other.jsonl").read_text("utf-8").splitlines()) == 1


def test_nothing_but_bad_rows_is_an_error(run):
    Path("in.jsonl").write_text("x\n", "utf-8")
    with pytest.raises(UserError, match="nothing to encode: all 1 rows are bad, see bad"):
        run("in.jsonl", skip_bad="bad")
    with pytest.raises(UserError, match="nothing to encode: all 1 rows are bad"):
        run("in.jsonl", dry_run=True)


def test_a_finished_output_is_kept_unless_it_may_be_replaced(run):
    run(write_lines("in.txt", ["one"]))
    for out in ("v", "v.npy"):
        if out == "v.npy":
            run("in.txt", out=out)
        with pytest.raises(UserError, match=f"{out} is already finished"):
            run("in.txt", out=out)
        write_lines("other.txt", ["two", "three"])
        run("other.txt", out=out, overwrite=True)
        assert len(open_vectors(Path(out))) == 2


def test_an_output_inside_the_input_is_refused(run):
    Path("texts").mkdir()
    write_lines("texts/in.txt", ["one"])
    with pytest.raises(UserError, match="lies inside the input"):
        run("texts", out="texts/v")
    with pytest.raises(UserError, match="--skip-bad texts/bad.jsonl lies inside the input texts"):
        run("texts", skip_bad="texts/bad.jsonl")


def test_a_dry_run_says_what_would_happen_and_writes_nothing(run):
    source = write_lines("in.txt", [f"text {n}" for n in range(30)])
    before = contents(".")
    summary = run(source, dry_run=True, dtype="int8", cache="c", skip_bad="bad")
    assert (
        summary.startswith("1 inputs, about 30 rows")
        and "estimate: " in summary
        and "nothing was written" in summary
    )
    assert contents(".") == before


def test_progress_tells_rows_tokens_a_second_and_duplicates(run, monkeypatch, capsys):
    monkeypatch.setattr("minilm_retriever.progress.LINE_SECONDS", 0.0)
    run(write_lines("in.txt", ["one", "one", "two"]))
    last = capsys.readouterr().err.splitlines()[-1]
    assert (
        last.startswith("encoding: 3 of 3 rows, ")
        and "tokens/s" in last
        and "duplicates saved 1" in last
    )
