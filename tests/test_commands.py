"""The commands as people type them: exit status, one line for a mistake, nothing left behind."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from tests.command_line import GOOD, left_in, run
from tests.conftest import ROOT

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


def test_evaluate_prints_json(capsys, tmp_path, tiny_folder):
    (tmp_path / "pairs.csv").write_bytes(GOOD)
    status, out, _ = run(
        capsys, "evaluate", tmp_path / "pairs.csv", "--model", tiny_folder, "--json"
    )
    found = json.loads(out)
    assert status == 0 and {"ndcg@10", "mrr@10", "recall@10", "accuracy@1"} <= set(found)
