"""Opening what encode.py wrote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from minilm_retriever import __main__
from minilm_retriever.encoding.config import EncodeConfig
from minilm_retriever.encoding.encode_files import encode_files
from minilm_retriever.errors import UserError
from minilm_retriever.vectors.vector_folder import open_vectors


@pytest.fixture(scope="module")
def vectors_once(tmp_path_factory, tiny_folder):
    folder = tmp_path_factory.mktemp("made")
    (folder / "in.txt").write_text("one\ntwo\nthree\nfour\nfive\n", "utf-8")
    source = str(folder / "in.txt")
    for out in ("v", "v.npy"):
        encode_files(
            EncodeConfig(
                inputs=(source,), model=str(tiny_folder), out=str(folder / out), shard_size=2
            )
        )
    return folder


@pytest.fixture()
def vectors_folder(vectors_once, tmp_path, monkeypatch):
    """A folder of three shards and a single .npy of the same five texts, to be damaged."""
    monkeypatch.chdir(shutil.copytree(vectors_once, tmp_path / "made"))
    return tmp_path / "made"


@pytest.mark.parametrize("name", ["v", "v.npy"])
def test_rows_are_found_by_number(vectors_folder, name):
    vectors = open_vectors(Path(name))
    assert len(vectors) == 5 and vectors.starts[-1] == 5
    assert vectors.rows([4, 0, 2]) == [("4", "five"), ("0", "one"), ("2", "three")]
    with pytest.raises(IndexError):
        vectors.rows([5])


def test_shards_are_mapped_and_not_loaded(vectors_folder):
    vectors = open_vectors(vectors_folder / "v")
    assert len(vectors.shards) == 3 and all(
        isinstance(shard, np.memmap) for shard in vectors.shards
    )
    assert [vectors.shards[n].shape for n in (1, 2)] == [(2, 32), (1, 32)]
    assert vectors.floats(vectors.shards[0]) is not None


def test_search_finds_a_text_itself_in_fewer_dimensions_and_int8(
    vectors_folder, tiny, tiny_folder, capsys
):
    flags = {"model": str(tiny_folder), "threads": 1, "overwrite": True, "out": "v"}
    encode_files(EncodeConfig(inputs=("in.txt",), dtype="int8", dimensions=16, **flags))
    assert __main__.main(["search", "v", "three", "-k", "1", "--model", str(tiny_folder)]) == 0
    printed = capsys.readouterr().out.split()
    assert printed[-2:] == ["2", "three"] and abs(float(printed[-3]) - 1) < 0.02


@pytest.mark.parametrize("name", ["v", "v.npy"])
def test_verify_names_a_changed_file(vectors_folder, name, capsys):
    assert __main__.main(["verify", name]) == 0
    assert "5 vectors" in capsys.readouterr().out
    for path in sorted(
        (vectors_folder / "v").iterdir() if name == "v" else vectors_folder.glob("v.npy*")
    ):
        whole = path.read_bytes()
        for damaged in (whole[:-1], whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]):
            path.write_bytes(damaged)
            assert __main__.main(["verify", name]) == 2
            assert path.name in capsys.readouterr().err
            with pytest.raises(UserError, match=path.name):
                open_vectors(Path(name))
        path.write_bytes(whole)


def test_what_is_no_folder_of_vectors_is_one_line(vectors_folder, tiny, tmp_path):
    with pytest.raises(
        UserError,
        match=r"nowhere: no such folder; minilm-retriever encode INPUT --out .*nowhere makes one",
    ):
        open_vectors(tmp_path / "nowhere")
    with pytest.raises(UserError, match="manifest.json: missing"):
        open_vectors(tmp_path)
    tiny.save("model")
    with pytest.raises(UserError, match="not a folder of vectors"):
        open_vectors(Path("model"))


def test_the_manifest_says_what_the_vectors_are(vectors_folder, tiny):
    info = json.loads(Path("v/manifest.json").read_text("utf-8"))["vectors"]
    assert info["model"] == tiny.model.fingerprint()
    assert (info["rows"], info["dimension"], info["dtype"], info["shard_size"]) == (
        5,
        32,
        "float32",
        2,
    )
    assert info["shards"] == [2, 2, 1] and info["ranges"] is None and info["unit"]
    assert info["text_policy"] == {
        "prompt": "", "prompt_pooled": True, "strip": True, "lower_case": False, "max_length": 64,
    }  # fmt: skip
