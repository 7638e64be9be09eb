"""Figures of bulk encoding, as JSON: memory, throughput, kills, recall of int8 and binary.

    python benchmarks/bulk.py memory                    peak memory, 10,000 to 1,000,000 rows
    python benchmarks/bulk.py throughput --data TEXTS   against Encoder.encode on a list
    python benchmarks/bulk.py kills --kills 100         real processes, SIGKILL at random points
    python benchmarks/bulk.py recall --data TEXTS       int8 and binary against float32
    python benchmarks/bulk.py texts                     a 10 MB line, and 10,040 hostile strings

Tiny models, but for `throughput` (both) and `recall` (the real one). TEXTS: files with columns of
text (JSONL, CSV, ...); the first column's texts are the queries of `recall`."""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from minilm_retriever import Encoder, UserError  # noqa: E402
from minilm_retriever.__main__ import main as command  # noqa: E402
from minilm_retriever.data.texts import input_files  # noqa: E402
from minilm_retriever.distributed import Ranks  # noqa: E402
from minilm_retriever.encoding.config import EncodeConfig  # noqa: E402
from minilm_retriever.encoding.encode_files import EncodingJob, encode_shards  # noqa: E402
from minilm_retriever.encoding.resumable_output import UnfinishedRun  # noqa: E402
from minilm_retriever.formats.readers import read_rows  # noqa: E402
from minilm_retriever.pretrained.config import BASE_FOLDER  # noqa: E402
from minilm_retriever.vectors import shards  # noqa: E402
from minilm_retriever.vectors.quantization import calibrate, quantize, to_float  # noqa: E402
from minilm_retriever.vectors.vector_folder import open_vectors  # noqa: E402
from tests.texts import hostile_texts  # noqa: E402
from tests.tiny import VOCABULARY, make_tiny_bert  # noqa: E402


def short_texts(path: Path, rows: int, lengths: Sequence[int] = (1, 2, 4, 6, 8)) -> Path:
    """A file of so many short texts; those of one word are repeated."""
    words = [w for w in VOCABULARY.read_text("utf-8").splitlines() if w.isalpha() and len(w) > 2]
    rng = random.Random(rows)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(rows):
            file.write(" ".join(rng.choices(words, k=rng.choice(lengths))) + "\n")
    return path


# --- memory ---------------------------------------------------------------------------------------


def memory(args: argparse.Namespace) -> dict[str, Any]:
    """Peak resident memory of encode.py, a process for each number of rows."""
    work, result = Path(args.work), {}
    model = make_tiny_bert(work / "tiny")
    for rows in args.rows or (10_000, 100_000, 1_000_000):
        source = short_texts(work / f"{rows}.txt", rows)
        began = time.monotonic()
        process = subprocess.Popen(
            [
                sys.executable,
                ROOT / "encode.py",
                source,
                "--model",
                model,
                "--out",
                work / f"v{rows}",
                "--threads",
                "1",
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        _, status, used = os.wait4(process.pid, 0)
        assert status == 0, f"encode.py ended with {status}"
        seconds = time.monotonic() - began
        result[f"{rows:,} rows"] = {
            "peak MB": round(used.ru_maxrss / 1024, 1),
            "rows a second": round(rows / seconds),
        }
    peaks = [entry["peak MB"] for entry in result.values()]
    return {**result, "largest / smallest": round(max(peaks) / min(peaks), 3)}


# --- throughput -----------------------------------------------------------------------------------


def throughput(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of Encoder.encode on a list and of the whole job but for opening the model,
    interleaved."""
    work = Path(args.work)
    result = {}
    cases = [
        (
            "tiny",
            make_tiny_bert(work / "tiny"),
            short_texts(work / "short.txt", 30_000, (4, 5, 6, 8)),
        )
    ]
    if args.data:
        real = work / "real.txt"
        texts = [t.replace("\n", " ") for t in distinct_texts(args.data)[1]][: args.texts]
        real.write_text("".join(f"{t}\n" for t in texts), "utf-8")
        cases.append(("real", Path(args.model), real))
    for name, model, source in cases:
        encoder = Encoder.from_pretrained(model)
        texts = source.read_text("utf-8").splitlines()
        encoder.encode(texts[:50])
        listed, bulk = Clock(), Clock()
        for n in range(args.rounds):
            with listed:
                encoder.encode(texts)
            config = EncodeConfig(
                inputs=(str(source),), model=str(model), out=str(work / f"{name}{n}")
            )
            run = UnfinishedRun(Path(config.out))
            job = EncodingJob(config, [str(source)], run)
            with bulk:
                settings = job.run_settings()
                run.begin_or_resume(settings)
                encode_shards(job, Ranks())
                run.finish(job.manifest_info(settings))
                run.publish(False)
        result[name] = {
            "texts": len(texts),
            "list s": rounded(listed.wall),
            "bulk s": rounded(bulk.wall),
            "ratio": round(
                statistics.median(a / b for a, b in zip(listed.wall, bulk.wall, strict=True)), 3
            ),
            "ratio of CPU time": round(sum(listed.cpu) / sum(bulk.cpu), 3),
        }
    return result


class Clock:
    """Wall and CPU seconds of each block; CPU time says more on a machine that is shared."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def __enter__(self) -> None:
        self.began = time.monotonic(), time.process_time()

    def __exit__(self, *problem: object) -> None:
        self.wall.append(time.monotonic() - self.began[0])
        self.cpu.append(time.process_time() - self.began[1])


def rounded(values: list[float]) -> list[float]:
    return [round(value, 2) for value in values]


# --- kills ----------------------------------------------------------------------------------------


def kills(args: argparse.Namespace) -> dict[str, Any]:
    """The same command again and again, killed at random points, until the output stands; and that
    so many times."""
    work = Path(args.work)
    rows = (args.rows or [6000])[0]
    model, source = make_tiny_bert(work / "tiny"), short_texts(work / "in.txt", rows)
    flags = [
        "encode",
        str(source),
        "--model",
        str(model),
        "--shard-size",
        str(rows // 20),
        "--threads",
        "1",
        "--out",
    ]
    opened = Encoder.from_pretrained(model, device="cpu")
    Encoder.from_pretrained = lambda *args, **kwargs: opened  # the children find it in their memory
    began = time.monotonic()
    assert finished(start([*flags, str(work / "undisturbed")])) == 0
    length = time.monotonic() - began
    expected = contents(work / "undisturbed")
    rng = random.Random(args.seed)
    killed = results = identical = wrong_rows = 0
    while killed < args.kills:
        out = work / f"out{results}"
        while not out.exists():
            child = start([*flags, str(out)])
            if killed < args.kills:
                time.sleep(
                    rng.uniform(0, length / 4)
                )  # the next attempt begins where this one ends
                os.kill(child, signal.SIGKILL)
            status = finished(child)
            assert status in (0, -signal.SIGKILL), f"encode ended with {status}"
            killed += status != 0
        results += 1
        identical += contents(out) == expected
        print(f"{killed} kills, {results} results, {identical} identical", file=sys.stderr)
        vectors = open_vectors(out)
        ids = [name for name, _ in vectors]
        wrong_rows += sum(name != str(n) for n, name in enumerate(ids)) + rows - len(ids)
        wrong_rows += sum(int((np.abs(shard).sum(axis=1) == 0).sum()) for shard in vectors.shards)
    return {
        "kills": killed,
        "results": results,
        "identical": identical,
        "missing, repeated or zero rows": wrong_rows,
        "seconds of an undisturbed run": round(length, 2),
    }


def start(arguments: list[str]) -> int:
    """A process of its own that runs the command; forked, so that it need not import torch
    first."""
    child = os.fork()
    if child == 0:
        status = 70
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 2)
            status = command(arguments)
        finally:
            os._exit(status)
    return child


def finished(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


# --- recall ---------------------------------------------------------------------------------------


def distinct_texts(paths: list[str]) -> tuple[list[str], list[str]]:
    """The distinct texts of the first text column of each file, and those of all text columns."""
    first, every = dict[str, None](), dict[str, None]()
    for path in input_files(paths):
        for row in read_rows(path):
            texts = [v for v in row.values.values() if isinstance(v, str) and " " in v.strip()]
            first |= dict.fromkeys(texts[:1])
            every |= dict.fromkeys(texts)
    return list(first), list(every)


def recall(args: argparse.Namespace) -> dict[str, Any]:
    """How many of float32's ten nearest documents are found, a query's own text left out of the
    documents."""
    queries, documents = distinct_texts(args.data)
    queries = queries[:: max(1, len(queries) // args.queries)]
    encoder = Encoder.from_pretrained(args.model)
    asked, held = encoder.encode(queries), encoder.encode(documents)
    same = np.array(queries)[:, None] == np.array(documents)[None, :]
    exact = asked @ held.T
    truth = top(np.where(same, -np.inf, exact), 10)
    result: dict[str, Any] = {"queries": len(queries), "documents": len(documents)}
    for dimensions in (held.shape[1], 256, 128):
        cut = [
            v[:, :dimensions] / np.linalg.norm(v[:, :dimensions], axis=1, keepdims=True)
            for v in (asked, held)
        ]
        result[f"{dimensions} dimensions"] = quantised(*cut, exact, same, truth)
    return result


def quantised(
    queries: np.ndarray,
    documents: np.ndarray,
    exact: np.ndarray,
    same: np.ndarray,
    truth: np.ndarray,
) -> dict:
    """recall@10 of what is kept, searched as it is and with the 40 nearest scored again by the
    float32 vectors."""
    ranges = calibrate(documents[: shards.SHARD_ROWS // 10])  # as of a first shard: a part of all
    kept = {
        "float32": queries @ documents.T,
        "float16": queries @ quantize(documents, "float16").astype(np.float32).T,
        "int8": queries @ to_float(quantize(documents, "int8", ranges), "int8", ranges).T,
        "binary, bits of the query": to_float(quantize(queries, "binary"), "binary")
        @ to_float(quantize(documents, "binary"), "binary").T,
        "binary, float query": queries @ to_float(quantize(documents, "binary"), "binary").T,
    }
    result = {}
    for name, scores in kept.items():
        scores = np.where(same, -np.inf, scores)
        nearest = top(scores, 40)
        again = np.take_along_axis(
            nearest, top(np.take_along_axis(exact, nearest, axis=1), 10), axis=1
        )
        result[name] = {
            "recall@10": overlap(top(scores, 10), truth),
            "40 rescored": overlap(again, truth),
        }
    return result


def top(scores: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def overlap(found: np.ndarray, truth: np.ndarray) -> float:
    hits = [len(set(a) & set(b)) for a, b in zip(found.tolist(), truth.tolist(), strict=True)]
    return round(sum(hits) / truth.size, 4)


# --- texts ----------------------------------------------------------------------------------------


def texts(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds to tokenise a line of 10 MB, and what becomes of hostile strings."""
    encoder = Encoder.from_pretrained(args.model)
    line = ("The plumber repairs the pumps of the bakery, and nobody thanks her. " * 150_000)[
        : 10 << 20
    ]
    seconds = Clock()
    for _ in range(9):
        with seconds:
            encoder.model.tokenizer.tokenize([line])
    tiny = Encoder.from_pretrained(make_tiny_bert(Path(args.work) / "tiny"))
    hostile, named, wrong = hostile_texts(10_040), 0, 0
    good = []
    for text in hostile:
        try:
            tiny.model.tokenizer.tokenize([text])
            good.append(text)
        except UserError as fault:
            named += "lone surrogate" in str(fault)
    vectors = tiny.encode(good)
    wrong = int((~np.isfinite(vectors)).any(axis=1).sum()) + int(
        (np.abs(np.linalg.norm(vectors, axis=1) - 1) > 1e-5).sum()
    )
    return {
        "10 MB line, s": {
            "median": round(statistics.median(seconds.wall), 4),
            "best": round(min(seconds.wall), 4),
        },
        "10 MB line, CPU s": round(statistics.median(seconds.cpu), 4),
        "hostile": {
            "strings": len(hostile),
            "encoded": len(good),
            "named lone surrogates": named,
            "wrong vectors": wrong,
        },
    }


MEASUREMENTS = {
    "memory": memory,
    "throughput": throughput,
    "kills": kills,
    "recall": recall,
    "texts": texts,
}


def main() -> None:
    """One measurement, as JSON on stdout."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=sorted(MEASUREMENTS))
    parser.add_argument("--data", nargs="+", default=[], help="files of texts")
    parser.add_argument("--model", default=str(ROOT / BASE_FOLDER))
    parser.add_argument(
        "--rows", type=int, nargs="+", help="rows of each run (memory), of a run (kills)"
    )
    parser.add_argument(
        "--texts", type=int, default=400, help="texts for the real model (throughput)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--work", help="a folder for the files in between (default: a temporary one)"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as temporary:
        args.work = args.work or temporary
        measured = MEASUREMENTS[args.what](args)
    figures = {"threads": args.threads, "load": rounded(list(os.getloadavg())), **measured}
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
