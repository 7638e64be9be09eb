"""Bulk encoding that died, and goes on to the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from minilm_retriever.errors import UserError
from minilm_retriever.storage import atomic_files
from minilm_retriever.vectors.vector_folder import open_vectors
from tests.conftest import ROOT
from tests.encoding.files import contents, killed_after, write_lines
from tests.faulty_disk import Dead, FaultyDisk, every_refusal


@pytest.mark.parametrize(
    "flags", [{}, {"dtype": "int8", "cache": "c"}, {"shard_format": "safetensors"}]
)
def test_killed_between_shards_the_same_command_ends_in_the_same_bytes(run, monkeypatch, flags):
    source = write_lines("in.txt", [f"text {n % 7}" for n in range(20)])
    run(
        source,
        out="undisturbed",
        shard_size=4,
        **(flags | ({"cache": "other"} if "cache" in flags else {})),
    )
    for done in (0, 1, 3):
        killed_after(monkeypatch, done, lambda: run(source, shard_size=4, **flags))
    with pytest.raises(UserError, match="v: is not finished"):
        open_vectors(Path("v"))
    with pytest.raises(UserError, match="v.run: is not finished"):
        open_vectors(Path("v.run"))
    assert "12 rows were encoded before" in run(source, shard_size=4, **flags)
    assert contents("v") == contents("undisturbed")
    assert not Path("v.run").exists()


def test_a_shard_that_was_damaged_meanwhile_is_made_again(run, monkeypatch):
    source = write_lines("in.txt", [f"text {n}" for n in range(9)])
    run(source, out="undisturbed", shard_size=3)
    killed_after(monkeypatch, 2, lambda: run(source, shard_size=3))
    damaged = Path("v.run/vectors-00001.npy")
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x7f")
    assert "3 rows were encoded before" in run(source, shard_size=3)
    assert contents("v") == contents("undisturbed")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"dtype": "float16"}, "with dtype 'float32', now it is 'float16'"),
        ({"prompt": "query: "}, "with prompt '', now it is 'query: '"),
        ({"shard_size": 5}, "with shard_size 3, now it is 5"),
        ({"threads": 2}, "with threads 1, now it is 2"),
        ({"model": "other"}, "with model '[0-9a-f]{64}', now it is '[0-9a-f]{64}'"),
        (
            {"input": "more"},
            r"with input 0 \(in.txt\) '72 bytes, sha256 .*, now it is '77 bytes, sha256 ",
        ),
        (
            {"input": "other"},
            r"with input 0 \(in.txt\) '72 bytes, sha256 .*, now it is '72 bytes, sha256 ",
        ),
    ],
)
def test_another_flag_model_or_input_is_refused_by_name_and_may_be_started_anew(
    run, monkeypatch, tiny, change, named
):
    texts = [f"text {n}" for n in range(9)]
    source = write_lines("in.txt", [*texts, "text 9 x"])
    killed_after(monkeypatch, 2, lambda: run(source, shard_size=3))
    if "input" in change:
        write_lines(
            "in.txt", [*texts, "text 9 x", *(["more"] if change["input"] == "more" else [])]
        )
        if change["input"] == "other":
            write_lines("in.txt", [*texts, "text 9 y"])
    flags = {name: value for name, value in change.items() if name != "input"}
    if "model" in flags:
        from tests.tiny import make_tiny_bert

        flags["model"] = str(make_tiny_bert("other", seed=1))
    before = contents("v.run")
    with pytest.raises(UserError, match=f"^v.run: the unfinished run there was started {named}"):
        run(source, **{"shard_size": 3, **flags})
    assert contents("v.run") == before
    run(source, overwrite=True, **{"shard_size": 3, **flags})
    assert len(open_vectors(Path("v"))) == len(Path("in.txt").read_text("utf-8").splitlines())


def test_dying_at_any_file_operation_costs_nothing(run, light):
    """In the middle of each write and before anything else, for a folder and for one .npy."""
    write_lines("in.txt", ["one", "two", "three"])
    for out in ("v", "v.npy"):
        job = lambda out=out: run("in.txt", out=out, shard_size=2, dtype="int8")  # noqa: E731

        def prepare(job=job):
            for name in contents("."):
                if name != "in.txt":
                    Path(name).unlink()
            for folder in sorted((p for p in Path().rglob("*") if p.is_dir()), reverse=True):
                folder.rmdir()
            return job

        prepare()()
        expected = contents(".")
        for at in range(1000):
            action = prepare()
            with FaultyDisk(at, "half").installed() as disk, suppress(Dead):
                action()
            if not disk.struck:
                break
            try:
                job()
            except UserError as finished:
                assert "is already finished" in str(finished), disk.log[-1]
            assert contents(".") == expected, disk.log[-1]
        assert 50 < at < 999


def test_a_disk_that_refuses_is_one_line_and_the_same_command_goes_on(run, light):
    write_lines("in.txt", ["one", "two", "three"])
    run("in.txt", out="undisturbed", shard_size=2)
    expected = contents("undisturbed")

    def prepare():
        for folder in ("v", "v.run"):
            if Path(folder).exists():
                atomic_files.remove(Path(folder))
        return lambda: run("in.txt", shard_size=2)

    refusals = 0
    for where, raised in every_refusal(prepare, 28):
        refusals += 1
        assert raised is None or (isinstance(raised, UserError) and "\n" not in str(raised)), where
        if not Path("v").exists():
            run("in.txt", shard_size=2)
        assert contents("v") == expected, where
    assert refusals > 50


def test_a_real_process_killed_in_the_middle(run, tiny_folder):
    """One of the hundred of benchmarks/bulk.py kills."""
    source = write_lines("in.txt", [f"text {n % 999}" for n in range(3000)])
    run(source, out="undisturbed", shard_size=30, threads=1)
    command = [
        sys.executable,
        ROOT / "encode.py",
        source,
        "--model",
        tiny_folder,
        "--out",
        "v",
        "--shard-size",
        "30",
    ]
    process = subprocess.Popen(
        [*command, "--threads", "1"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not Path("v.run/unfinished/00002.json").exists():
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -9 and not Path("v").exists()
    assert "rows were encoded before" in run(source, shard_size=30, threads=1)
    assert contents("v") == contents("undisturbed")
