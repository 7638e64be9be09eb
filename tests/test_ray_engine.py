"""A cluster of actors makes the folder that one process makes, whatever dies."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from minilm_retriever.__main__ import main
from minilm_retriever.encoding import ray_engine
from minilm_retriever.encoding.config import EncodeConfig
from minilm_retriever.encoding.encode_files import encode_files
from minilm_retriever.errors import UserError
from tests.encoding.files import contents, write_rows
from tests.texts import varied_texts

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster():
    """Two CPUs of this machine."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture()
def flags(tmp_path, monkeypatch, tiny_folder):
    """Nine shards of texts, the last of two rows; relative names."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    write_rows("in.jsonl", [text for text in varied_texts(98) if "\x00" not in text][:58])
    defaults = {
        "inputs": ("in.jsonl",),
        "text": "body",
        "id": "doc_id",
        "model": str(tiny_folder),
        "shard_size": 7,
    }
    return lambda **changes: EncodeConfig(**{**defaults, "threads": 1, "device": "cpu", **changes})


class DyingWorker(ray_engine.ShardWorker):
    """The first actor that has the fourth shard dies over it."""

    def encode(self, shard):
        if shard.number == 3 and not Path("died").exists():
            Path("died").touch()
            os._exit(1)
        return super().encode(shard)


def test_two_actors_of_which_one_dies_make_the_folder_of_one_process_byte_for_byte(
    cluster, flags, monkeypatch
):
    encode_files(flags(out="alone"))
    monkeypatch.setattr(ray_engine, "ShardWorker", DyingWorker)
    summary = ray_engine.encode_files_on_ray(flags(out="v", engine="ray", workers=2))
    assert summary.startswith("58 vectors of 32 (float32)")
    assert Path("died").exists()
    assert contents("v") == contents("alone")


def test_parquet_in_and_out_with_ranges_of_the_first_shard_and_bad_rows(cluster, flags):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    texts = [None if i == 40 else f"text {i}" for i in range(50)]
    parquet.write_table(
        arrow.table({"doc_id": [f"a{i}" for i in range(50)], "body": texts}), "in.parquet"
    )
    output = {"inputs": ("in.parquet",), "dtype": "int8", "shard_format": "parquet"}
    encode_files(flags(**output, out="alone", skip_bad="bad"))
    ray_engine.encode_files_on_ray(flags(**output, out="v", engine="ray", skip_bad="bad2"))
    assert Path("bad").read_bytes() == Path("bad2").read_bytes() != b""
    assert contents("v").keys() == contents("alone").keys()
    for name, data in contents("alone").items():
        assert (
            contents("v")[name] == data or name == "manifest.json"
        )  # another file for bad rows is another flag


def test_a_bad_row_stops_the_reading_after_the_shards_before_it(flags):
    Path("in.jsonl").write_text(
        '{"doc_id": "a", "body": "one"}\n' * 8 + '{"doc_id": "a"}\n', "utf-8"
    )
    tables = ray_engine.read_shards({}, flags(out="v"), str(Path.cwd()), only_first=False)
    shard, end = (json.loads(table["json"][0].as_py()) for table in tables)
    assert (shard["number"], shard["start"], len(shard["texts"])) == (0, 0, 7)
    error, stopped, bad_rows = end["end"]
    assert error.startswith("in.jsonl:9") and stopped and bad_rows == 0


def test_what_is_wrong_is_one_line(cluster, flags, monkeypatch, capsys):
    with pytest.raises(UserError, match="no machine of the Ray cluster has 3 CPUs for an actor"):
        ray_engine.encode_files_on_ray(flags(out="v", engine="ray", threads=3))
    torch.set_num_threads(1)
    with pytest.raises(UserError, match="standard input"):
        ray_engine.encode_files_on_ray(flags(out="v", engine="ray", inputs=("-",)))
    with pytest.raises(UserError, match="--workers is for --engine ray"):
        flags(out="v", workers=2)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert main(["encode", "in.jsonl", "--engine", "ray", "--out", "v"]) == 2
    error = capsys.readouterr().err
    assert (
        error.startswith("error: RAY_ADDRESS=127.0.0.1:1: no Ray cluster answers there")
        and error.count("\n") == 1
    )
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    assert main(["encode", "in.jsonl", "--engine", "ray", "--out", "v"]) == 2
    assert (
        capsys.readouterr().err
        == "error: --engine ray needs an extra: pip install 'minilm_retriever[ray]'\n"
    )
