"""Bulk encoding: from files of texts to a folder of vectors."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from minilm_retriever import Encoder
from minilm_retriever.encoding import resumable_output
from minilm_retriever.encoding.config import EncodeConfig
from minilm_retriever.encoding.encode_files import encode_files
from minilm_retriever.encoding.shard_encoder import Counts, ShardEncoder
from minilm_retriever.errors import UserError
from minilm_retriever.storage import atomic_files
from minilm_retriever.vectors import shards
from minilm_retriever.vectors.quantization import Ranges, calibrate, quantize
from minilm_retriever.vectors.vector_folder import VectorFolder, open_vectors
from tests.conftest import ROOT
from tests.faulty_disk import Dead, FaultyDisk, every_refusal, patch_module
from tests.test_shards import FORMATS
from tests.texts import varied_texts


@pytest.fixture(autouse=True)
def opened_once(monkeypatch, tiny, tiny_folder):
    """The tiny model is opened once for all runs; another name is opened as ever."""
    torch.set_num_threads(1)  # faster at this size
    real = Encoder.from_pretrained
    known = str(tiny_folder)
    monkeypatch.setattr(
        Encoder,
        "from_pretrained",
        lambda model, **device: tiny if model == known else real(model, **device),
    )


@pytest.fixture()
def place(monkeypatch) -> Iterator[Path]:
    """A folder in memory to work in: thousands of files come and go."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        monkeypatch.chdir(name)
        yield Path(name)


@pytest.fixture()
def run(place, tiny_folder):
    """encode.py with the tiny model: run(input, ..., out=..., flags)."""
    return lambda *inputs, **flags: encode_files(
        EncodeConfig(inputs=inputs, **{"model": str(tiny_folder), "out": "v", **flags})
    )


@pytest.fixture()
def light(monkeypatch):
    """No model: vectors out of the texts' bytes, for tests of the files alone. What reaches the
    disk plays no role."""

    def float_vectors(self, texts, progress=None):
        vectors = [
            np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8) for text in texts
        ]
        counts = dict.fromkeys(("rows", "distinct", "tokens"), len(texts))
        rows = np.stack(vectors).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True), Counts(counts)

    monkeypatch.setattr(ShardEncoder, "float_vectors", float_vectors)
    patch_module(monkeypatch, "os", fsync=os.fstat)


def write_rows(name: str, texts: list[str]) -> str:
    """A JSONL file with ids a0, a1, ..."""
    lines = "".join(json.dumps({"doc_id": f"a{i}", "body": t}) + "\n" for i, t in enumerate(texts))
    Path(name).write_bytes(
        gzip.compress(lines.encode()) if name.endswith(".gz") else lines.encode()
    )
    return name


def write_lines(name: str, lines: list[str]) -> str:
    Path(name).write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return name


def whole(vectors: VectorFolder) -> np.ndarray:
    return np.concatenate([np.asarray(shard) for shard in vectors.shards])


def contents(folder: str | Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(Path(folder).rglob("*"))
        if p.is_file()
    }


# --- what comes out -------------------------------------------------------------------------------


def test_order_ids_and_texts_are_exact_on_shuffled_repeated_empty_and_very_long_texts(run, tiny):
    texts = [text for text in varied_texts(120) if "\x00" not in text] * 2
    random.Random(0).shuffle(texts)
    run(write_rows("in.jsonl.gz", texts), text="body", id="doc_id", shard_size=50)
    vectors = open_vectors(Path("v"))
    assert list(vectors) == [(f"a{i}", text) for i, text in enumerate(texts)]
    assert vectors.rows([101]) == [("a101", texts[101])] and len(vectors) == len(texts)
    assert np.abs(whole(vectors) - tiny.encode(texts)).max() <= 1e-6
    assert [len(shard) for shard in vectors.shards] == [50, 50, 50, 50, len(texts) - 200]
    assert vectors.info["distinct"] < len(texts)


def test_ids_are_row_numbers_over_all_inputs_and_a_template_joins_columns(run, tiny):
    Path("a.csv").write_text("title,body\ncook,in a kitchen\nnurse,on a ward\n", "utf-8")
    Path("b.csv").write_text("title,body\nbaker,of bread\n", "utf-8")
    run("a.csv", "b.csv", template="{title}: {body}")
    assert list(open_vectors(Path("v"))) == [
        ("0", "cook: in a kitchen"),
        ("1", "nurse: on a ward"),
        ("2", "baker: of bread"),
    ]


def test_standard_input(run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\n\ntwo\n"), "utf-8"))
    run("-", shard_size=2)
    assert list(open_vectors(Path("v"))) == [("0", "one"), ("1", ""), ("2", "two")]


def test_one_npy_holds_what_the_shards_would(run):
    source = write_lines("in.txt", [f"text {n}" for n in range(11)])
    run(source, shard_size=4)
    run(source, shard_size=4, out="one.npy")
    np.testing.assert_array_equal(np.load("one.npy"), whole(open_vectors(Path("v"))))
    assert list(open_vectors(Path("one.npy"))) == list(open_vectors(Path("v")))
    assert not Path("one.npy.run").exists()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "binary"])
def test_every_format_and_dtype_holds_the_same_vectors(run, tiny, format, dtype):
    texts = [f"text {n}" for n in range(9)]
    run(write_lines("in.txt", texts), shard_size=5, shard_format=format, dtype=dtype)
    vectors = open_vectors(Path("v"))
    floats = np.concatenate([tiny.encode(texts[:5]), tiny.encode(texts[5:])])
    expected = quantize(floats, dtype, calibrate(floats[:5]) if dtype == "int8" else None)
    np.testing.assert_array_equal(whole(vectors), expected)
    assert list(vectors) == [(str(n), text) for n, text in enumerate(texts)]
    if dtype != "binary":
        np.testing.assert_allclose(vectors.floats(vectors.shards[0]), floats[:5], atol=2e-3)


def test_other_tools_open_the_shards(run):
    import safetensors.numpy

    parquet = pytest.importorskip("pyarrow.parquet")
    source = write_lines("in.txt", ["one", "two", "three"])
    for format in FORMATS:
        run(source, out=format, shard_format=format)
    plain = np.load("npy/vectors-00000.npy", allow_pickle=False)
    np.testing.assert_array_equal(
        safetensors.numpy.load_file("safetensors/vectors-00000.safetensors")["vectors"], plain
    )
    table = parquet.read_table("parquet/vectors-00000.parquet")
    assert table.column_names == ["id", "text", "vector"] and table["text"].to_pylist() == [
        "one",
        "two",
        "three",
    ]
    np.testing.assert_array_equal(np.array(table["vector"].to_pylist(), np.float32), plain)


def test_dimensions_keep_a_unit_prefix(run, tiny):
    run(write_lines("in.txt", ["one", "two"]), dimensions=8)
    prefix = tiny.encode(["one", "two"])[:, :8]
    expected = prefix / np.linalg.norm(prefix, axis=1, keepdims=True)
    np.testing.assert_allclose(whole(open_vectors(Path("v"))), expected, atol=1e-6)
    with pytest.raises(UserError, match="--dimensions must be at most the model's 32, not 33"):
        run("in.txt", out="w", dimensions=33)
    with pytest.raises(UserError, match="binary needs a multiple of 8 dimensions, not 12"):
        run("in.txt", out="w", dimensions=12, dtype="binary")


def test_int8_ranges_come_from_the_first_shard_or_from_texts_that_are_named(run, tiny):
    texts = [f"text {n}" for n in range(20)]
    source = write_lines("in.txt", texts)
    summary = run(source, dtype="int8", shard_size=4)
    assert "of the values outside int8's ranges" in summary
    vectors = open_vectors(Path("v"))
    np.testing.assert_array_equal(vectors.ranges.low, tiny.encode(texts[:4]).min(axis=0))
    summary = run(source, out="w", dtype="int8", shard_size=20, calibrate=source)
    assert "outside" not in summary
    ranges = open_vectors(Path("w")).ranges
    assert isinstance(ranges, Ranges) and (ranges.low <= vectors.ranges.low).all()


def test_int8_never_goes_on_without_the_ranges_that_it_began_with(run, monkeypatch):
    source = write_lines("in.txt", [f"text {n}" for n in range(9)])
    killed_after(monkeypatch, 1, lambda: run(source, dtype="int8", shard_size=3))
    Path("v.run/unfinished/ranges.json").unlink()
    with pytest.raises(UserError, match="shard 1 needs the int8 ranges"):
        run(source, dtype="int8", shard_size=3)


def test_texts_can_be_left_out(run):
    run(write_lines("in.txt", ["one", "two"]), texts=False)
    assert list(open_vectors(Path("v"))) == [("0", ""), ("1", "")]
    assert b"one" not in b"".join(contents("v").values())


def test_a_prompt_goes_before_each_text_and_stands_in_the_manifest(run, tiny):
    run(write_lines("in.txt", ["one", "two"]), prompt="query: ")
    vectors = open_vectors(Path("v"))
    np.testing.assert_array_equal(whole(vectors), tiny.encode(["query: one", "query: two"]))
    assert vectors.info["text_policy"]["prompt"] == "query: " and list(vectors)[0] == ("0", "one")


def test_a_shard_of_very_long_texts_ends_early(run, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_CHARACTERS", 100)
    run(write_lines("in.txt", ["x" * 60] * 4 + ["short"]))
    assert open_vectors(Path("v")).info["shards"] == [2, 2, 1]


def test_memory_holds_a_shard_and_not_the_input(run, light):
    def peak(rows: int) -> int:
        source = write_lines(f"{rows}.txt", [f"{n} " + "word " * 2000 for n in range(rows)])
        tracemalloc.start()
        run(source, out=f"{rows}", shard_size=20)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(20)  # imports and caches
    assert peak(300) < 1.1 * peak(110)


def test_a_vector_that_is_not_finite_is_never_written(run, tiny, monkeypatch):
    forward = tiny.model.encoder.forward
    monkeypatch.setattr(
        tiny.model.encoder,
        "forward",
        lambda *a, **k: forward(*a, **k).index_fill(0, torch.tensor(1), np.nan),
    )
    with pytest.raises(UserError, match="the vector of row '[01]' is not finite"):
        run(write_lines("in.txt", ["one", "two"]))
    assert not Path("v").exists()


# --- the cache ------------------------------------------------------------------------------------


def test_a_cache_saves_texts_of_other_shards_and_runs(run, tiny, monkeypatch):
    source = write_lines("in.txt", ["one", "two", "three", "one", "four", "two"])
    run(source)
    assert "2 from the cache" in run(source, out="w", cache="c", shard_size=3)
    monkeypatch.setattr(tiny.model.encoder, "forward", None)  # not called any more
    assert "6 from the cache" in run(source, out="x", cache="c", shard_size=3, dimensions=16)
    plain, cached = open_vectors(Path("v")), open_vectors(Path("w"))
    assert np.abs(whole(plain) - whole(cached)).max() <= 1e-6
    assert cached.info["cache"] and not plain.info["cache"]


# --- mistakes -------------------------------------------------------------------------------------

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


# --- killed anywhere ------------------------------------------------------------------------------


class Killed(BaseException):
    pass


def killed_after(monkeypatch, shards_done: int, job) -> None:
    """Run a job that dies once so many shards are there."""
    real = resumable_output.UnfinishedRun.add

    def add(self, shard, *args, **kwargs):
        if shard.number == shards_done:
            raise Killed
        real(self, shard, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(resumable_output.UnfinishedRun, "add", add)
        job()


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
