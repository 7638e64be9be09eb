"""What is not ours, or is another thing, an input or a link, is never removed or replaced."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from minilm_retriever.__main__ import main
from minilm_retriever.errors import UserError
from minilm_retriever.storage import atomic_files, atomic_folders, manifest
from minilm_retriever.storage.resume import RunFolder
from tests.faults.row import contents

# What a user may have called so: files (name, bytes), folders (None) and links (a path).
OWN_THINGS: dict[str, dict[str, bytes | str | None]] = {
    "a thesis": {"sub/thesis.txt": b"years"},
    "a file called as ours": {"run.json": b'{"mine": 1}'},
    "ours without a record": {"metrics.jsonl": b"{}\n", "step-00000001/a": b"a"},
    "ours with more": {"run.json": manifest.to_bytes({}, {"asked": {}}), "notes.txt": b"n"},
    "a link to a log": {"run.json": manifest.to_bytes({}, {"asked": {}}), "metrics.jsonl": "/x"},
    "a link inside": {"run.json": manifest.to_bytes({}, {"asked": {}}), "tensorboard/a": "/x"},
    "an app's manifest": {"manifest.json": b'{"name": "a web site"}', "index.html": b"<p>"},
    "a finished model": {"manifest.json": manifest.to_bytes({}, {}), "model.safetensors": b"w"},
    "vectors without a record": {"vectors-00000.npy": b"v", "rows-00000.jsonl": b"{}\n"},
    "finished vectors": {
        "manifest.json": manifest.to_bytes({}, {"vectors": {"asked": {"input 0 (a)": "b"}}}),
    },
}


def fill(folder: Path, things: dict[str, bytes | str | None]) -> None:
    for name, content in things.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            secret = folder.parent / "secret"
            secret.write_bytes(b"secret")
            path.symlink_to(secret)
        else:
            path.write_bytes(content or b"")


@pytest.fixture
def commands(tiny_folder, tmp_path, monkeypatch):
    """Command lines without their --out."""
    monkeypatch.chdir(tmp_path)
    Path("t.txt").write_text("a nurse\na cook\n", encoding="utf-8")
    rows = "".join(f"what is number {i},it is {i}\n" for i in range(8))
    Path("pairs.csv").write_text(f"question,answer\n{rows}", encoding="utf-8")
    model = ["--model", str(tiny_folder)]
    return {
        "encode": ["encode", "t.txt", *model],
        "train": ["train", "--train", "pairs.csv", "--max-steps", "2", "--batch-size", "4", *model],
    }


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
@pytest.mark.parametrize("command", ["encode", "train"])
@pytest.mark.parametrize("what", OWN_THINGS)
def test_a_folder_of_the_users_where_a_run_would_be(commands, capsys, what, command, overwrite):
    fill(Path("out.run"), OWN_THINGS[what])
    before = contents(Path())
    assert main([*commands[command], "--out", "out", *overwrite]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "out.run" in error
    assert contents(Path()) == before


@pytest.mark.parametrize("command", ["encode", "train"])
def test_where_a_run_would_be_is_a_link_or_a_file(commands, capsys, command):
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("years", encoding="utf-8")
    Path("a.run").symlink_to("mine")
    Path("b.run").write_text("mine", encoding="utf-8")
    for out in "ab":
        assert main([*commands[command], "--out", out, "--overwrite"]) == 2
        assert f"{out}.run: not the folder of an unfinished run" in capsys.readouterr().err
    assert Path("mine/thesis.txt").read_text(encoding="utf-8") == Path("b.run").read_text(
        encoding="utf-8"
    ).replace("mine", "years")


def test_a_file_that_comes_while_a_run_is_going_on_stays(tmp_path):
    run = RunFolder(tmp_path / "out")
    run.begin_or_resume({})
    (run.folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt: not of an unfinished run"):
        run.discard()
    assert (run.folder / "notes.txt").exists()


KINDS = {"vectors": {"vectors": {}}, "index": {"index": {}}, "a model": {}}


@pytest.mark.parametrize(("old", "new"), itertools.product(KINDS, KINDS))
def test_a_folder_is_replaced_by_one_of_its_kind_alone(tmp_path, old, new):
    for number, kind in enumerate((old, new)):
        if old != new and number:
            with pytest.raises(UserError, match=f"out holds {old}, and is not replaced by {new}"):
                atomic_folders.check_replaceable(tmp_path / "out", new)
        elif old == new and number:
            atomic_folders.check_replaceable(tmp_path / "out", new)
        try:
            with atomic_folders.staged_folder(
                tmp_path / "out", overwrite=True, extra=KINDS[kind]
            ) as staged:
                (staged / f"of {kind}").write_text("x")
        except UserError:
            assert old != new
    assert (tmp_path / "out" / f"of {old}").exists()


@pytest.mark.parametrize(
    "things",
    [
        {"manifest.json": b'{"name": "a web site"}'},
        {"notes.txt": b"mine"},
        {"inside/notes.txt": b"mine"},
        {"a link": "/x"},
    ],
)
def test_what_a_manifest_does_not_list_is_not_replaced(tmp_path, things):
    out = tmp_path / "out"
    with atomic_folders.staged_folder(out) as staged:
        (staged / "README.md").write_text("a card")
    (out / "README.md").write_text("a card that was edited")
    fill(out, things)
    before = contents(out)
    with (
        pytest.raises(UserError, match=r"out (holds|is not replaced).*move"),
        atomic_folders.staged_folder(out, overwrite=True),
    ):
        pass
    assert contents(out) == before


INPUTS = {
    "encode its input": ("encode", "t.txt", "--out t.txt"),
    "encode its model": ("encode", "model", "--out model"),
    "encode bad rows to its input": ("encode", "t.txt", "--out v --skip-bad t.txt"),
    "encode over a folder around its input": ("encode", "in/t.txt", "--out in"),
    "train its pairs": ("train", "pairs.csv", "--out pairs.csv"),
    "train its model": ("train", "model", "--out model"),
    "mine its pairs": ("mine", "pairs.csv", "--out pairs.csv"),
    "paraphrases its texts": ("paraphrases", "rows.csv", "--out rows.csv"),
    "search its queries": ("search", "t.txt", "--out t.txt"),
    "search a link to its queries": ("search", "t.txt", "--out link.txt"),
}


@pytest.mark.parametrize("name", INPUTS)
def test_an_input_is_never_replaced(commands, capsys, tiny_folder, name):
    command, path, more = INPUTS[name]
    Path("in").mkdir()
    Path("in/t.txt").write_text("a nurse\n", encoding="utf-8")
    Path("rows.csv").write_text("text\na nurse\na cook\n", encoding="utf-8")
    Path("link.txt").symlink_to("t.txt")
    assert main(["encode", "t.txt", "--model", str(tiny_folder), "--out", "v"]) == 0
    with atomic_folders.staged_folder("model") as staged:
        for file in sorted(tiny_folder.rglob("*")):
            if file.is_file():
                atomic_files.write_bytes(staged / file.relative_to(tiny_folder), file.read_bytes())
    model = ["--model", "model" if path == "model" else str(tiny_folder)]
    line = {
        "encode": ["encode", "t.txt" if path == "model" else path],
        "train": ["train", "--train", "pairs.csv", "--max-steps", "1"],
        "mine": ["mine", path],
        "paraphrases": ["paraphrases", path],
        "search": ["search", "v", "--queries", path],
    }[command]
    before = contents(Path())
    assert main([*line, *model, *more.split(), "--overwrite"]) == 2
    assert f"would replace {path}, which is read" in capsys.readouterr().err
    after = contents(Path())
    assert {name: after.get(name) for name in before} == before


def test_results_replace_a_file_with_overwrite_alone(commands, capsys, tiny_folder):
    model = ["--model", str(tiny_folder)]
    assert main(["encode", "t.txt", *model, "--out", "v"]) == 0
    Path("r.jsonl").write_text("mine", encoding="utf-8")
    search = ["search", "v", "nurse", *model, "--out", "r.jsonl"]
    assert main(search) == 2
    assert "r.jsonl: exists" in capsys.readouterr().err and Path("r.jsonl").read_bytes() == b"mine"
    assert main([*search, "--overwrite"]) == 0
    assert json.loads(Path("r.jsonl").read_text(encoding="utf-8"))["query"] == "nurse"


@pytest.mark.parametrize("name", ["v.npy", "v.npy.rows.jsonl", "v.npy.manifest.json"])
@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_an_array_of_the_users(commands, capsys, name, overwrite):
    Path(name).write_bytes(b"mine")
    assert main([*commands["encode"], "--out", "v.npy", *overwrite]) == 2
    assert Path(name).read_bytes() == b"mine"
    Path(name).unlink()
    assert main([*commands["encode"], "--out", "v.npy", *overwrite]) == 0
    assert main([*commands["encode"], "--out", "v.npy", "--overwrite"]) == 0
