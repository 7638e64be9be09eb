"""Messages and results: a broken stream, a terminal that obeys, an encoding without the bars."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from minilm_retriever import progress
from minilm_retriever.__main__ import main
from minilm_retriever.errors import run_command
from minilm_retriever.progress import escape, json_text, print_result, say
from tests.conftest import ROOT

BIDI = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def obeyed(character: str) -> bool:
    """Whether a terminal, or what breaks lines, may obey it."""
    return (
        unicodedata.category(character) in ("Cc", "Zl", "Zp", "Cs")
        or unicodedata.bidirectional(character) in BIDI
        or len(f"a{character}b".splitlines()) > 1
    )


def test_every_character_that_a_terminal_obeys_is_escaped_and_text_is_not():
    for number in range(0x30000):
        character = chr(number)
        shown = escape(character)
        if obeyed(character):
            assert shown.startswith("\\") and shown.isascii() and shown.isprintable()
        elif character not in "\u200e\u200f\u061c":
            assert shown == character


def command(*line: str, **settings: object) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **settings.pop("env", {})}  # type: ignore[dict-item]
    run = [sys.executable, "-m", "minilm_retriever", *line]
    return subprocess.run(run, env=environment, timeout=120, **settings)  # type: ignore[call-overload]


@pytest.fixture
def vectors(tiny_folder, tmp_path, monkeypatch):
    """A folder of vectors, v, whose ids and texts would control a terminal."""
    monkeypatch.chdir(tmp_path)
    bad = "\x1b]0;PWNED\x07\x1b[2J\u202e\u2066\x85\u2028\n9.9999  FAKE"
    rows = [json.dumps({"id": f"{n}{bad}", "text": f"a nurse {n}{bad}"}) for n in range(3)]
    Path("i.jsonl").write_text("\n".join(rows), encoding="utf-8")
    line = ["encode", "i.jsonl", "--text", "text", "--id", "id", "--out", "v"]
    assert main([*line, "--model", str(tiny_folder)]) == 0
    return ["--model", str(tiny_folder)]


def test_ids_and_texts_forge_no_lines(vectors, capsysbinary):
    assert main(["search", "v", "nurse\x1b[2J", *vectors]) == 0
    lines = capsysbinary.readouterr().out.decode().splitlines()
    assert len(lines) == 5 and not any(map(obeyed, "".join(lines)))
    line = ["paraphrases", "i.jsonl", "--text", "text", "--id", "id"]
    assert main([*line, *vectors]) == 0
    lines = capsysbinary.readouterr().out.decode().splitlines()
    assert len(lines) == 6 and not any(map(obeyed, "".join(lines)))


def test_programs_get_the_bytes(vectors, capsysbinary):
    assert main(["search", "v", "nurse", "--format", "jsonl", *vectors]) == 0
    (row,) = map(json.loads, capsysbinary.readouterr().out.split(b"\n")[:-1])
    assert all("\x1b[2J\u202e" in hit["id"] and "\u202e" in hit["text"] for hit in row["hits"])


def test_messages_are_a_line_each(capsys):
    say("no id \x1b[2J\nFAKE line")
    assert capsys.readouterr().err == "no id \\x1b[2J\\nFAKE line\n"


def test_a_column_and_a_file_are_shown_escaped(tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = "p\x1b[2J.csv"
    Path(name).write_text("q\x1b[2J,a\nx,y\nz,\x9bw\nz,\x9bw\n", encoding="utf-8")
    assert main(["inspect", name, "--header", "--model", str(tiny_folder)]) == 0
    assert "\x1b" not in (out := capsys.readouterr().out) and "\x9b" not in out
    assert "q\\x1b[2J" in out and "p\\x1b[2J.csv" in out


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_encoding_of_stdout(tiny_folder, tmp_path, encoding):
    (tmp_path / "p.csv").write_text("q,a\nx,\u4f60\nz,\u4f60\n", encoding="utf-8")
    line = ["inspect", str(tmp_path / "p.csv"), "--model", str(tiny_folder)]
    done = command(*line, capture_output=True, env={"PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stderr.decode(encoding).count("\n")) == (0, 1)  # the columns
    assert done.stdout.decode(encoding).count("\n") > 5


def broken(kind: str) -> dict[str, object]:
    """subprocess settings for one of the streams."""
    if kind == "full":
        return {"stream": os.open("/dev/full", os.O_WRONLY)}
    reader, writer = os.pipe()
    os.close(reader)
    return {"stream": writer}


@pytest.mark.parametrize("kind", ["full", "unread", "closed"])
def test_a_broken_stderr_decides_nothing(tiny_folder, tmp_path, kind):
    (tmp_path / "t.txt").write_text("a nurse\na cook\n", encoding="utf-8")
    rows = "".join(f"what is {i},it is {i}\n" for i in range(8))
    (tmp_path / "p.csv").write_text(f"q,a\n{rows}", encoding="utf-8")
    model = ["--model", str(tiny_folder)]
    train = ["train", "--train", "p.csv", "--max-steps", "3", "--log-steps", "1", *model]
    for number, line in enumerate((["encode", "t.txt", *model], train)):
        if kind == "closed":
            settings: dict[str, object] = {"preexec_fn": lambda: os.close(2)}
        else:
            settings = {"stderr": broken(kind)["stream"]}
        done = command(*line, "--out", f"out{number}", cwd=tmp_path, **settings)
        assert done.returncode == 0
        assert main(["verify", str(tmp_path / f"out{number}")]) == 0
        done = command(*line, "--out", f"out{number}", cwd=tmp_path, **settings)
        assert done.returncode == 2  # finished already, which nobody reads


@pytest.mark.parametrize(
    ("kind", "status", "message"),
    [
        ("full", 2, b"error: standard output: No space left on device\n"),
        ("unread", 141, b""),
        ("closed", 2, b"error: standard output: Bad file descriptor\n"),
    ],
)
def test_a_broken_stdout_is_no_success(vectors, kind, status, message):
    for line in (["search", "v", "nurse", *vectors], ["verify", "v"]):
        if kind == "closed":
            settings: dict[str, object] = {"preexec_fn": lambda: os.close(1)}
        else:
            settings = {"stdout": broken(kind)["stream"]}
        done = command(*line, stderr=subprocess.PIPE, **settings)
        assert (done.returncode, done.stderr) == (status, message)


def test_a_closed_stdin_is_one_line(vectors):
    for line in (["search", "v", *vectors], ["encode", "-", "--out", "w", *vectors]):
        done = command(*line, stderr=subprocess.PIPE, preexec_fn=lambda: os.close(0))
        assert done.returncode == 2
        assert done.stderr.startswith(b"error: standard input is closed")


def test_what_json_has_no_number_for_is_null():
    value = {"a": [float("nan"), (1.5, float("-inf"))], "b": {"c": True, "d": "NaN"}}
    assert json.loads(json_text(value)) == {"a": [None, [1.5, None]], "b": {"c": True, "d": "NaN"}}


def test_what_the_system_refuses_is_one_line_and_no_success(capsys):
    def refused() -> None:
        raise PermissionError(13, "Permission denied", "a\nb")

    assert run_command(refused) == 2
    assert capsys.readouterr().err == "error: a\\nb: Permission denied\n"


def test_nothing_is_said_where_nothing_can_be(monkeypatch):
    closed = io.StringIO()
    closed.close()
    for stream in (None, closed):
        monkeypatch.setattr(sys, "stderr", stream)
        say("a line")
        with progress.Progress("a job", 3, "steps") as bar:
            bar.at(1)
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(OSError, match="standard output"):
        print_result("a line")
