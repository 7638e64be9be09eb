"""Files that are odd in size: their time grows with them, their memory does not; pipes are read
once; unusable rows are set aside by every command."""

from __future__ import annotations

import json
import os
import sys
import threading

import pytest

from minilm_retriever.__main__ import main
from minilm_retriever.data import read_pairs, read_texts
from minilm_retriever.errors import UserError

PAIRS = [(f"what is number {n}?", f"it is {n} of them") for n in range(40)]
ROWS = "".join(f"{query},{document}\n" for query, document in PAIRS)


def calls(read, *arguments, **options):
    """Calls of functions that reading makes, however it ends: what takes time, on any machine."""
    count = 0

    def trace(frame, event, value):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(trace)
    try:
        list(read(*arguments, **options))
    except UserError:
        pass
    finally:
        sys.setprofile(None)
    return count


WIDE = {
    "columns": (
        "a.csv",
        lambda n: ",".join(f"c{i}" for i in range(n)) + "\n" + ",".join("x y" for _ in range(n)),
    ),
    "keys": ("a.jsonl", lambda n: json.dumps({f"k{i}": "x y" for i in range(n)})),
    "a key twice": (
        "a.jsonl",
        lambda n: "{" + ",".join(f'"k{i}":1' for i in range(n)) + ',"k0":2}',
    ),
    "quoted fields": ("a.csv", lambda n: "text\n" + '"x y"\n' * n),
    "fields in one row": ("a.csv", lambda n: "text\n" + ",".join('"x"' for _ in range(n))),
    "quotes and a defect": ("a.csv", lambda n: "text\n" + '"x", ' * n + '"y" z'),
    "an array": ("a.json", lambda n: json.dumps([{"text": "x y"}] * n)),
    "a long value": ("a.json", lambda n: json.dumps([{"text": "x y " * n}, {"text": "z"}])),
}


@pytest.mark.parametrize("kind", WIDE)
def test_time_grows_with_the_file_and_not_with_its_square(tmp_path, kind):
    name, content = WIDE[kind]
    counts = []
    for number, size in enumerate((2000, 8000)):
        (tmp_path / str(number)).mkdir()
        path = tmp_path / str(number) / name
        path.write_text(content(size))
        counts.append(calls(read_texts, path))
    assert counts[1] < 5 * counts[0] + 1000


def test_a_message_is_short_however_many_columns_there_are(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(WIDE["columns"][1](5000))
    for read in (read_texts, read_pairs):
        with pytest.raises(UserError) as error:
            list(read(path))
        assert len(str(error.value)) < 1000
    with pytest.raises(UserError, match="no column 'x'; there are: c0, .* and 4,980 more$"):
        list(read_texts(path, text="x"))


def test_of_very_many_columns_some_must_be_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(WIDE["columns"][1](10_001))
    for read in (read_texts, read_pairs):
        with pytest.raises(
            UserError, match=r"a.csv:2: 10,001 columns: name those to read with --col"
        ):
            list(read(path))
    assert [record.text for record in read_texts(path, text="c10000")] == ["x y"]
    assert read_pairs(path, ["c10000", "c7"]).texts == [["x y"], ["x y"]]


def test_rows_of_many_lists_and_names_take_time_that_grows_with_them(tmp_path):
    counts = []
    for size in (1000, 4000):
        path = tmp_path / f"{size}.jsonl"
        negatives = json.dumps({"query": "a b", "pos": ["c d"], "neg": ["x y"] * size}) + "\n"
        late = "".join(
            json.dumps({"query": "a b", "pos": ["c d"], f"k{n}": "x"}) + "\n" for n in range(size)
        )
        path.write_text(negatives + late)
        counts.append(calls(lambda path: read_pairs(path, max_negatives=None).texts, path))
    assert counts[1] < 5 * counts[0] + 1000


def pipe(path, content):
    """A named pipe that somebody writes to, once."""
    os.mkfifo(path)
    threading.Thread(target=lambda: path.write_text(content), daemon=True).start()
    return str(path)


def test_a_pipe_is_read_once_by_every_command(tmp_path, tiny_folder, capsys):
    model = ["--model", str(tiny_folder)]
    out = iter(range(9))

    def piped(name, content="query,document\n" + ROWS):
        return pipe(tmp_path / f"{next(out)}{name}", content)

    for command in (
        ["inspect", piped("a.csv")],
        ["mine", piped("a.csv"), "--out", str(tmp_path / "mined.csv")],
        ["evaluate", piped("a.csv")],
        ["train", "--train", piped("a.csv"), "--eval", piped("b.csv"), "--out"]
        + [str(tmp_path / "out"), "--max-steps", "1"],
        ["paraphrases", piped("a.txt", ROWS), "-n", "1"],
        ["encode", piped("a.txt", ROWS), "--out", str(tmp_path / "vectors")],
    ):
        assert main([*command, *model]) == 0, capsys.readouterr().err
    capsys.readouterr()
    queries = piped("q.jsonl", '{"qid": "a", "text": "one"}\n{"qid": "b", "text": "two"}\n')
    search = ["search", str(tmp_path / "vectors"), "--queries", queries, "-k", "1"]
    assert main([*search, "--format", "jsonl", *model]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["a", "b"]


def test_the_data_of_a_run_are_known_by_their_texts():
    rows = [("a b", "c d", "e f"), ("a b", "c d", "g h")]
    digests = [read_pairs([row]).digest() for row in (*rows, rows[0])]
    assert digests[0] != digests[1] and digests[0] == digests[2]


BAD = "query,document\n" + ROWS + "only one\n,no query\n"
COMMANDS = {
    "train": ["train", "--max-steps", "1", "--out", "{}/out", "--train"],
    "evaluate": ["evaluate"],
    "inspect": ["inspect"],
    "mine": ["mine", "--out", "{}/mined.csv"],
    "paraphrases": ["paraphrases", "--text", "document"],
    "encode": ["encode", "--text", "document", "--out", "{}/vectors"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_unusable_rows_are_set_aside_or_stop(tmp_path, tiny_folder, capsys, command):
    path, aside = tmp_path / "pairs.csv", tmp_path / "bad.jsonl"
    path.write_text(BAD)
    words = [word.format(tmp_path) for word in COMMANDS[command]]
    run = [words[0], *words[1:], str(path), "--model", str(tiny_folder)]
    if command != "inspect":  # which counts them
        assert main(run) == 2
        assert f"error: {path}:42: 1 field, but" in capsys.readouterr().err
    assert main([*run, "--skip-bad", str(aside), "--max-bad", "0"]) == 2
    assert "--max-bad 0 allows" in capsys.readouterr().err
    aside.unlink()
    assert main([*run, "--skip-bad", str(aside)]) == 0, capsys.readouterr().err
    bad = [json.loads(line) for line in aside.read_text("utf-8").splitlines()]
    empty = [] if "document" in words else [f"{path}:43"]
    assert [row["where"] for row in bad] == [f"{path}:42", *empty]
    assert bad[0]["raw"] == "only one"
    assert main([*run, "--skip-bad", str(aside)]) == 2
    error = capsys.readouterr().err
    assert "exists; " in error or "is already finished" in error
