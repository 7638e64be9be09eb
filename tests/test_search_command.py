"""encode, search, index and verify as people type them."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.command_line import left_in, run
from tests.conftest import ROOT
from tests.folder_edits import edit


@pytest.fixture()
def vectors(capsys, tmp_path, tiny_folder):
    """Three texts, encoded."""
    texts = "id,body\na,bread and soup\nb,plumbing\nc,care\n"
    (tmp_path / "texts.csv").write_text(texts, encoding="utf-8")
    encode = ["encode", tmp_path / "texts.csv", "--text", "body", "--id", "id"]
    assert run(capsys, *encode, "--model", tiny_folder, "--out", tmp_path / "v")[0] == 0
    return tmp_path / "v"


def test_encode_search_verify(capsys, tiny_folder, vectors):
    status, out, _ = run(capsys, "search", vectors, "plumbing", "-k", "2", "--model", tiny_folder)
    found = [line.split() for line in out.splitlines() if line.strip()]
    assert (
        status == 0 and found[1][0] == "1" and found[1][2:] == ["b", "plumbing"] and len(found) == 3
    )
    assert run(capsys, "verify", vectors)[0] == 0
    (shard,) = vectors.glob("*.npy")
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    for command in (
        ("verify", vectors),
        ("search", vectors, "x", "--model", tiny_folder),
    ):
        status, _, err = run(capsys, *command)
        assert status == 2 and shard.name in err[-1]


def test_search_with_another_model_is_refused(capsys, tmp_path, tiny_folder, tiny_copy):
    (tmp_path / "texts.txt").write_text("bread\n", encoding="utf-8")
    assert (
        run(
            capsys,
            "encode",
            tmp_path / "texts.txt",
            "--model",
            tiny_folder,
            "--out",
            tmp_path / "v",
        )[0]
        == 0
    )
    (tiny_copy / "sentence_bert_config.json").write_text('{"max_seq_length": 32}')
    status, _, err = run(capsys, "search", tmp_path / "v", "x", "--model", tiny_copy)
    assert status == 2 and "another model" in err[-1]


def test_search_takes_the_model_that_the_vectors_remember(capsys, tmp_path, monkeypatch, tiny_copy):
    """From any folder, also where vectors and model were moved together, and never another."""
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    tiny_copy.rename(before / "model")
    (before / "texts.txt").write_text("bread\nmusic\n", encoding="utf-8")
    monkeypatch.chdir(before)
    assert run(capsys, "encode", "texts.txt", "--model", "model", "--out", "v")[0] == 0
    monkeypatch.chdir(tmp_path)
    before.rename(after)
    index = ("index", after / "v", "--kind", "exact", "--out", tmp_path / "i")
    assert run(capsys, *index)[0] == 0
    for place in (after / "v", tmp_path / "i"):
        status, out, _ = run(capsys, "search", place, "music", "-k", "1")
        assert status == 0 and "1  1.0000" in out
    (after / "model/sentence_bert_config.json").write_text('{"max_seq_length": 32}')
    status, _, err = run(capsys, "search", after / "v", "music")
    assert status == 2 and "is another model, or has changed" in err[-1] and "--model" in err[-1]
    (after / "model").rename(after / "elsewhere")
    status, _, err = run(capsys, "search", after / "v", "music")
    assert status == 2 and f"no folder {after / 'model'}" in err[-1] and "--model" in err[-1]


def test_vectors_that_the_model_shortens_are_stored_with_length_1(capsys, tmp_path, tiny_copy):
    edit(tiny_copy, "config_sentence_transformers.json", truncate_dim=16)
    (tmp_path / "texts.txt").write_text("bread\nmusic\n", encoding="utf-8")
    out, model = tmp_path / "v", ("--model", tiny_copy)
    assert run(capsys, "encode", tmp_path / "texts.txt", *model, "--out", out)[0] == 0
    assert run(capsys, "verify", out)[0] == 0
    status, text, _ = run(capsys, "search", out, "music", "-k", "1")
    assert status == 0 and "1  1.0000" in text


def test_queries_from_a_file_give_json_lines_or_a_trec_run(capsys, tmp_path, tiny_folder, vectors):
    (tmp_path / "q.jsonl").write_text(
        '{"_id": "q7", "text": "care"}\n{"_id": "q8", "text": "plumbing"}\n'
    )
    search = [
        "search",
        vectors,
        "--queries",
        tmp_path / "q.jsonl",
        "--model",
        tiny_folder,
        "-k",
        "2",
    ]
    status, out, _ = run(capsys, *search, "--format", "jsonl")
    first, second = map(json.loads, out.splitlines())
    assert status == 0 and (first["id"], first["query"], second["id"]) == ("q7", "care", "q8")
    assert [hit["rank"] for hit in first["hits"]] == [1, 2]
    assert first["hits"][0]["id"] == "c" and first["hits"][0]["text"] == "care"
    assert first["hits"][0]["score"] == pytest.approx(1, abs=1e-5)
    assert run(capsys, *search, "--out", tmp_path / "run.trec")[0] == 0
    lines = [line.split(" ") for line in (tmp_path / "run.trec").read_text().splitlines()]
    assert [(line[0], line[1], line[2], line[3]) for line in lines[::2]] == [
        ("q7", "Q0", "c", "1"),
        ("q8", "Q0", "b", "1"),
    ]
    assert all(len(line) == 6 and line[5] == "minilm-retriever" for line in lines)
    (tmp_path / "q.txt").write_text("care\n")
    status, out, _ = run(
        capsys, "search", vectors, "--queries", tmp_path / "q.txt", "--model", tiny_folder
    )
    assert status == 0 and out.splitlines()[1] == "care" and len(out.splitlines()) == 5


def test_lines_piped_in_are_queries(vectors, tiny_folder):
    search = [
        sys.executable,
        "-m",
        "minilm_retriever",
        "search",
        str(vectors),
        "-k",
        "1",
        "--model",
        str(tiny_folder),
    ]
    done = subprocess.run(
        search, input="care\n\nplumbing\n", capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    shown = [line.split() for line in done.stdout.splitlines() if line]
    assert [line[-1] for line in shown] == ["care", "care", "plumbing", "plumbing"] and shown[1][
        2
    ] == "c"


def test_a_prompt_answers_lines_until_the_end(capsys, monkeypatch, vectors, tiny_folder):
    typed = iter(["care", "plumbing"])

    def line(prompt):
        assert prompt == "\nsearch> "
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", line)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    status, out, err = run(capsys, "search", vectors, "-k", "1", "--model", tiny_folder)
    assert status == 0 and err[0].startswith("3 documents")
    assert [found.split()[2:] for found in out.splitlines() if found.startswith("   1")] == [
        ["c", "care"],
        ["b", "plumbing"],
    ]


def test_an_index_is_made_searched_changed_and_verified(capsys, tmp_path, tiny_folder, vectors):
    index, model = tmp_path / "i", ("--model", tiny_folder)
    status, _, err = run(capsys, "index", vectors, "--kind", "hnsw", "--out", index)
    assert status == 0 and "hnsw over 3 documents" in err[-1]
    status, out, _ = run(capsys, "search", index, "plumbing", "-k", "1", "--effort", "8", *model)
    assert status == 0 and out.split()[-2:] == ["b", "plumbing"]
    (tmp_path / "more.csv").write_text("id,body\nb,pipes\nd,a violin\n", encoding="utf-8")
    encode = [
        "encode",
        tmp_path / "more.csv",
        "--text",
        "body",
        "--id",
        "id",
        *model,
        "--out",
        tmp_path / "more",
    ]
    assert run(capsys, *encode)[0] == 0
    change = ["index", index, "--add", tmp_path / "more", "--out", index]
    assert "exists" in run(capsys, *change)[2][-1]
    assert "has a document 'b' already" in run(capsys, *change, "--overwrite")[2][-1]
    (tmp_path / "gone.txt").write_text("b\nc\n")
    status, _, err = run(capsys, *change, "--overwrite", "--delete", f"@{tmp_path / 'gone.txt'}")
    assert status == 0 and "hnsw over 3 documents, 2 deleted" in err[-1]
    status, out, _ = run(capsys, "search", index, "plumbing", *model)
    assert status == 0 and sorted(line.split()[2] for line in out.splitlines()[2:]) == [
        "a",
        "b",
        "d",
    ]
    assert run(capsys, "verify", index)[0] == 0
    assert (
        "no document has the id 'x'"
        in run(capsys, "index", index, "--delete", "x", "--out", tmp_path / "j")[2][-1]
    )
    assert not (tmp_path / "j").exists()


def test_what_search_cannot_do_is_one_line(capsys, tmp_path, tiny_folder, tiny_copy, vectors):
    model = ("--model", tiny_folder)
    (tmp_path / "q.txt").write_text("care\n")
    for words, message in {
        ("care", "-k", "0"): "-k must be at least 1",
        ("care", "--queries", tmp_path / "q.txt"): "exclude each other",
        ("--out", tmp_path / "o"): "--out needs queries",
        ("--queries", tmp_path / "none.txt"): "none.txt",
        ("--queries", tmp_path / "q.txt", "--text", "x"): "q.txt",
        ("care", "--effort", "0"): "at least 1",
        ("care", "--rescore", vectors): "only binary vectors",
    }.items():
        status, out, err = run(capsys, "search", vectors, *words, *model)
        assert status == 2 and out == "" and len(err) == 1 and message in err[0], (words, err)
    (tiny_copy / "sentence_bert_config.json").write_text('{"max_seq_length": 32}')
    assert run(capsys, "index", vectors, "--kind", "hnsw", "--out", tmp_path / "i")[0] == 0
    status, _, err = run(capsys, "search", tmp_path / "i", "x", "--model", tiny_copy)
    assert status == 2 and "another model" in err[-1]
    (tmp_path / "texts.csv").write_text("id,body\na b,bread\n", encoding="utf-8")
    encode = [
        "encode",
        tmp_path / "texts.csv",
        "--text",
        "body",
        "--id",
        "id",
        *model,
        "--out",
        tmp_path / "w",
    ]
    assert run(capsys, *encode)[0] == 0
    status, _, err = run(
        capsys, "search", tmp_path / "w", "x", *model, "--out", tmp_path / "run.trec"
    )
    assert (
        status == 2
        and "'a b' cannot stand in a TREC run" in err[-1]
        and not (tmp_path / "run.trec").exists()
    )


def test_one_npy_with_its_ids(capsys, tmp_path, tiny_folder):
    (tmp_path / "texts.txt").write_text("bread\nsoup\n", encoding="utf-8")
    status, _, err = run(
        capsys,
        "encode",
        tmp_path / "texts.txt",
        "--model",
        tiny_folder,
        "--out",
        tmp_path / "v.npy",
    )
    assert status == 0, err
    vectors = np.load(tmp_path / "v.npy", allow_pickle=False)
    assert vectors.shape == (2, 32) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert len(left_in(tmp_path)) > 2
