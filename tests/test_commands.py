"""The commands as people type them: exit status, one line for a mistake, nothing left behind."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from minilm_retriever.__main__ import main
from tests.conftest import ROOT
from tests.variations import edit

GOOD = (
    b"sentence_0,sentence_1\ncooks meals,bread and soup\nmends pipes,plumbing\nnurses people,care\n"
)


def run(capsys, *argv):
    """(exit status, stdout, lines on stderr) of a command."""
    try:
        status = main([str(word) for word in argv])
    except SystemExit as left:  # argparse's own
        status = left.code
    out, err = capsys.readouterr()
    return status, out, err.splitlines()


def left_in(folder):
    """Names in a folder."""
    return sorted(p.name for p in folder.iterdir())


BAD_DATA = {
    "empty": (b"", r"pairs\.csv.*empty"),
    "header only": (b"sentence_0,sentence_1\n", r"pairs\.csv.*no rows|pairs\.csv.*only"),
    "missing column": (b"a\nb\n", r"pairs\.csv:?1?"),
    "ragged row": (b"sentence_0,sentence_1\nx,y\nx\n", r"pairs\.csv:3"),
    "too many fields": (b"sentence_0,sentence_1\nx,y,z\n", r"pairs\.csv:2"),
    "invalid UTF-8": (b"sentence_0,sentence_1\nx,y\n\xff\xfe,y\n", r"pairs\.csv:3"),
    "NUL": (b"sentence_0,sentence_1\nx,y\x00\n", r"pairs\.csv:2"),
    "empty text": (b"sentence_0,sentence_1\nx, \n", r"pairs\.csv:2"),
    "unclosed quote": (b'sentence_0,sentence_1\nx,"y\nz,w\n', r"pairs\.csv:2"),
}


@pytest.mark.parametrize("kind", BAD_DATA)
def test_bad_pairs_stop_training_with_their_place_and_leave_nothing(
    capsys, tmp_path, tiny_folder, kind
):
    data, message = BAD_DATA[kind]
    (tmp_path / "pairs.csv").write_bytes(data)
    status, out, err = run(
        capsys,
        "train",
        "--train",
        tmp_path / "pairs.csv",
        "--model",
        tiny_folder,
        "--out",
        tmp_path / "o",
    )
    assert status == 2 and out == ""
    assert len(err) == 1 and err[0].startswith("error: ")
    assert re.search(message, err[0]), err[0]
    assert left_in(tmp_path) == ["pairs.csv"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"sentence_0": "x", "sentence_1": 5}', "pairs.jsonl:2"),
        (b'{"sentence_0": "x", "sentence_1": null}', "pairs.jsonl:2"),
        (b'{"sentence_0": ["a", "b"], "sentence_1": "x"}', "pairs.jsonl:2"),
        (b'{"sentence_0": "x", "sentence_1": ["a", 5]}', "pairs.jsonl:2"),
        (b'{"sentence_0": "x"}', "pairs.jsonl:2"),
        (b"[1, 2]", "pairs.jsonl:2"),
        (b"{", "pairs.jsonl:2"),
        (b'{"sentence_0": "\\ud800", "sentence_1": "y"}', "pairs.jsonl:2"),
    ],
)
def test_bad_json_is_named_by_line(capsys, tmp_path, tiny_folder, line, message):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b'{"sentence_0": "x", "sentence_1": "y"}\n' + line + b"\n")
    status, _, err = run(
        capsys, "train", "--train", path, "--model", tiny_folder, "--out", tmp_path / "out"
    )
    assert status == 2 and len(err) == 1 and message in err[0]
    assert left_in(tmp_path) == ["pairs.jsonl"]


def test_a_byte_order_mark_is_accepted(capsys, tmp_path, tiny_folder):
    (tmp_path / "pairs.csv").write_bytes(b"\xef\xbb\xbf" + GOOD)
    train = [
        "train",
        "--train",
        tmp_path / "pairs.csv",
        "--model",
        tiny_folder,
        "--out",
        tmp_path / "out",
    ]
    status, _, err = run(capsys, *train, "--max-steps", "1", "--device", "cpu")
    assert status == 0, err


def test_missing_files_and_folders_in_place_of_files(capsys, tmp_path, tiny_folder):
    model, out = ("--model", tiny_folder), ("--out", tmp_path / "out")
    for command in (
        ("train", "--train", tmp_path / "absent.csv", *model, *out),
        ("train", "--train", tmp_path, *model, *out),
        ("train", "--train", "x.csv", "--model", tmp_path / "absent", *out),
        ("train", *out, "--eval", "x.csv"),
        ("train", "--train", "x.csv"),
        ("encode", tmp_path / "absent.txt", *model, *out),
        ("encode", tmp_path / "absent.txt", *model),
        ("search", tmp_path / "absent", "query"),
        ("index", tmp_path / "absent", *out),
        ("evaluate", tmp_path / "absent.csv", *model),
        ("evaluate", tmp_path, *model),
        ("inspect", tmp_path / "absent.csv"),
        ("verify", tmp_path / "absent"),
    ):
        status, printed, err = run(capsys, *command)
        assert status == 2 and printed == "", command
        assert len(err) == 1 and err[0].startswith("error: "), (command, err)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda m: (m / "config.json").unlink(),
        lambda m: (m / "tokenizer.json").write_text("{}"),
        lambda m: (m / "model.safetensors").write_bytes(
            (m / "model.safetensors").read_bytes()[:500]
        ),
        lambda m: (m / "model.safetensors").unlink(),
        lambda m: (m / "modules.json").write_text('[{"type": "x.Dense", "path": ""}]'),
    ],
    ids=["no config", "no tokenizer", "cut weights", "no weights", "a Dense module"],
)
def test_a_damaged_model_folder_stops_every_command(capsys, tmp_path, tiny_copy, damage):
    damage(tiny_copy)
    (tmp_path / "pairs.csv").write_bytes(GOOD)
    for command in (
        ("train", "--train", tmp_path / "pairs.csv", "--out", tmp_path / "out"),
        ("encode", tmp_path / "pairs.csv", "--out", tmp_path / "out"),
        ("evaluate", tmp_path / "pairs.csv"),
    ):
        status, printed, err = run(capsys, *command, "--model", tiny_copy)
        *columns, error = err
        assert status == 2 and printed == "" and error.startswith("error: "), (command, err)
        assert all("columns sentence_0 -> sentence_1" in line for line in columns)
    assert left_in(tmp_path) == ["model", "pairs.csv"]


def test_encode_search_verify(capsys, tmp_path, tiny_folder):
    (tmp_path / "texts.csv").write_text(
        "id,body\na,bread and soup\nb,plumbing\nc,care\n", encoding="utf-8"
    )
    encode = [
        "encode",
        tmp_path / "texts.csv",
        "--text",
        "body",
        "--id",
        "id",
        "--model",
        tiny_folder,
    ]
    assert run(capsys, *encode, "--out", tmp_path / "vectors")[0] == 0
    status, out, _ = run(
        capsys, "search", tmp_path / "vectors", "plumbing", "-k", "2", "--model", tiny_folder
    )
    found = [line.split() for line in out.splitlines() if line.strip()]
    assert (
        status == 0 and found[1][0] == "1" and found[1][2:] == ["b", "plumbing"] and len(found) == 3
    )
    assert run(capsys, "verify", tmp_path / "vectors")[0] == 0
    (shard,) = (tmp_path / "vectors").glob("*.npy")
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    for command in (
        ("verify", tmp_path / "vectors"),
        ("search", tmp_path / "vectors", "x", "--model", tiny_folder),
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


@pytest.fixture()
def vectors(capsys, tmp_path, tiny_folder):
    """Three texts, encoded."""
    (tmp_path / "texts.csv").write_text(
        "id,body\na,bread and soup\nb,plumbing\nc,care\n", encoding="utf-8"
    )
    encode = [
        "encode",
        tmp_path / "texts.csv",
        "--text",
        "body",
        "--id",
        "id",
        "--model",
        tiny_folder,
    ]
    assert run(capsys, *encode, "--out", tmp_path / "v")[0] == 0
    return tmp_path / "v"


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


def test_evaluate_prints_json(capsys, tmp_path, tiny_folder):
    (tmp_path / "pairs.csv").write_bytes(GOOD)
    status, out, _ = run(
        capsys, "evaluate", tmp_path / "pairs.csv", "--model", tiny_folder, "--json"
    )
    found = json.loads(out)
    assert status == 0 and {"ndcg@10", "mrr@10", "recall@10", "accuracy@1"} <= set(found)


def test_help_of_every_command_needs_no_torch():
    code = (
        "import sys\nfrom minilm_retriever.__main__ import COMMANDS, main\n"
        "for words in (['--help'], *([command, '--help'] for command in COMMANDS)):\n"
        "    try:\n        main(words)\n"
        "    except SystemExit as left:\n        assert left.code == 0\n"
        "print({'torch', 'numpy', 'tqdm'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0 and done.stderr.strip() == "set()"
    assert "--learning-rate" in done.stdout and "--gradient-accumulation-steps" in done.stdout


def test_an_unknown_flag_is_exit_2(capsys):
    assert run(capsys, "train", "--no-such-flag")[0] == 2


def test_the_scripts_are_the_commands(tmp_path):
    for script, flag in (("train.py", "--learning-rate"), ("encode.py", "--shard-size")):
        done = subprocess.run(
            [sys.executable, ROOT / script, "--help"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 and flag in done.stdout


def test_serve_without_its_extra_is_one_line(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "starlette", None)
    status, _, err = run(capsys, "serve", "--model", "nowhere")
    assert (status, err) == (
        2,
        ["error: serve needs an extra: pip install 'minilm_retriever[serve]'"],
    )
