"""Speed beside sentence-transformers, onnxruntime and fastembed: same texts, same machine,
interleaved rounds.

    make bench                                    everything (about half an hour on two quiet cores)
    make bench DATA=pairs.jsonl COLUMNS="description skills"
    .venv/bin/python benchmarks/bench.py --quick --only a b       a look

Makes .peers/bench from benchmarks/peers.txt, and .peers/st-onnx and .peers/st-openvino for other
backends of sentence-transformers where they install; prints a table a workload, writes
benchmarks/results/NAME.json. Each contestant is a process of its own; one works at a time, in an
order that turns with the round, and ratios are taken within a round, so that a busy machine
disturbs all alike. Medians; the spread is the least and the greatest round. No speed without its
quality: beside it stand the worst cosine to ours in fp32 and the change of nDCG@10 on the
example."""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.contestants import (  # noqa: E402
    BACKENDS,
    HERE,
    MODEL,
    ONNX,
    PEER,
    Worker,
    environment,
    machine,
    make_peers,
    more_peers,
    python_of,
    versions,
)
from benchmarks.quality import measure_quality, quality_task, task_texts  # noqa: E402
from benchmarks.texts import distinct_texts, example_pairs, long_texts, repeated_rows, short_queries  # noqa: E402
from minilm_retriever.data.pairs import read_pairs  # noqa: E402
from minilm_retriever.kernels.processor import lacks_instructions  # noqa: E402
from minilm_retriever.pretrained.tokenizer import TextTokenizer  # noqa: E402

LAYERS, HIDDEN = 6, 384
PEERS = ("sentence-transformers", "onnxruntime", "fastembed")
LOWER = [f"ours {name}" for name in ("bf16", "int8") if not lacks_instructions(name)]
COLD = {
    "ours": "from minilm_retriever import Encoder\n"
    "Encoder.from_pretrained({model!r}).encode({text!r})",
    "sentence-transformers": "from sentence_transformers import SentenceTransformer as S; "
    "S({model!r}, device='cpu').encode({text!r})",
    "onnxruntime": "import sys; sys.path.insert(0, {here!r}); import worker; "
    "worker.onnxruntime(dict(onnx={onnx!r}, threads={threads}))([{text!r}])",
    "fastembed": "import sys; sys.path.insert(0, {here!r}); import worker; "
    "worker.fastembed(dict(onnx={onnx!r}, threads={threads}))([{text!r}])",
    "import torch": "import torch",
}


@dataclass(frozen=True)
class Bench:
    """What all workloads share."""

    rounds: int
    threads: int
    quick: bool
    against: tuple[str, ...]  # other checkouts of this repository, measured in the peers' place
    without: tuple[str, ...]  # contestants left out
    work: Path  # a temporary folder
    tokenizer: TextTokenizer

    def start(self, name: str, **settings: Any) -> Worker:
        """A contestant in a process of its own. A name ours@PATH is another checkout's code."""
        kind, _, checkout = name.partition("@")
        settings |= {"threads": self.threads, "model": str(MODEL), "onnx": str(ONNX)}
        return Worker(
            name,
            kind,
            checkout or str(ROOT),
            settings,
            self.work / f"{name.replace('/', '_')}.stderr",
        )

    def ours_and(self, *peers: str) -> list[str]:
        """Ours and these, or ours and its other checkouts."""
        left = [name for name in peers if name not in self.without]
        return ["ours", *([f"ours@{path}" for path in self.against] or left)]


# --- workloads ------------------------------------------------------------------------------------


def encoding(
    bench: Bench, texts: list[str], contestants: list[str], *, others: int | None = None
) -> dict[str, Any]:
    """Rounds of encoding the same texts; contestants other than ours take only the first `others`
    of them."""
    shares = {
        name: texts if name.startswith("ours") or not others else texts[:others]
        for name in contestants
    }
    files = {name: bench.work / f"{name.replace('/', '_')}.json" for name in contestants}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    workers = [bench.start(name) for name in contestants]
    peaks = []
    quality = measured_quality(bench, workers)  # warms up too
    for worker in workers:
        files[worker.name].write_text(json.dumps(shares[worker.name]), encoding="utf-8")
    measurer = bench.start("ours")  # of its own: what it holds must not count for our memory
    measurer.answer()
    for number in range(bench.rounds):
        peaks.append(measurer.ask(peak=True)["gflops"])
        for worker in turned(workers, number):
            rounds[worker.name].append(worker.ask(texts=str(files[worker.name])))
    for worker in [*workers, measurer]:
        worker.stop()
    result: dict[str, Any] = {
        "peak_gflops": peaks,
        "rounds": rounds,
        "summary": {},
    }
    for name in contestants:
        lengths = bench.tokenizer.tokenize(list(dict.fromkeys(shares[name]))).lengths.astype(float)
        per_text = [r["seconds"] / len(shares[name]) for r in rounds[name]]
        rate = [float(lengths.sum()) / r["seconds"] for r in rounds[name]]
        flop = (
            LAYERS
            * (24 * HIDDEN**2 * lengths.sum() + 4 * HIDDEN * (lengths**2).sum())
            / lengths.sum()
        )  # a token
        base = [r["seconds"] / len(shares["ours"]) for r in rounds["ours"]]
        result["summary"][name] = {
            "texts": len(shares[name]),
            "texts_per_s": 1 / median(per_text),
            "tokens_per_s": median(rate),
            "share_of_peak": median(r * flop / 1e9 / p for r, p in zip(rate, peaks, strict=True)),
            **quality[name],
            "memory_mb": rounds[name][-1]["memory"],
            "ours_is_faster": spread([p / b for p, b in zip(per_text, base, strict=True)]),
            "in_processor_time": processor_time(
                rounds, name, len(shares["ours"]) / len(shares[name])
            ),
        }
    return result


def queries(bench: Bench, texts: list[str], contestants: list[str]) -> dict[str, Any]:
    """One query at a time, warm."""
    file = bench.work / "queries.json"
    file.write_text(json.dumps(texts), encoding="utf-8")
    workers = [bench.start(name) for name in contestants]
    quality = measured_quality(bench, workers)
    for worker in workers:
        worker.ask(texts=str(file), one_by_one=True)
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    for number in range(2 * bench.rounds):
        for worker in turned(workers, number):
            answer = worker.ask(texts=str(file), one_by_one=True)
            p50, p95 = np.percentile(answer["each"], [50, 95])
            rounds[worker.name].append(
                {
                    "p50": float(p50),
                    "p95": float(p95),
                    "cpu": answer.get("cpu", float("nan")),  # not of an older checkout
                    "memory": answer["memory"],
                }
            )
    for worker in workers:
        worker.stop()
    summary = {
        name: {
            "p50_ms": 1e3 * median(r["p50"] for r in rounds[name]),
            "p95_ms": 1e3 * median(r["p95"] for r in rounds[name]),
            **quality[name],
            "memory_mb": rounds[name][-1]["memory"],
            "ours_is_faster": spread(
                [p["p50"] / o["p50"] for p, o in zip(rounds[name], rounds["ours"], strict=True)]
            ),
            "in_processor_time": processor_time(rounds, name),
        }
        for name in contestants
    }
    return {"rounds": rounds, "summary": summary}


def training(
    bench: Bench, pairs: list[tuple[str, str]], batch_size: int, block: int, blocks: int
) -> dict[str, Any]:
    """Steps of the published recipe in interleaved blocks; one block before them warms up and does
    not count."""
    path = bench.work / "pairs.csv"
    rng = random.Random(0)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sentence_0", "sentence_1"])
        writer.writerows(rng.choices(pairs, k=batch_size * block * (blocks + 1)))
    tokens = bench.tokenizer.tokenize([text for pair in pairs for text in pair]).lengths.astype(
        float
    )
    flop = (
        3
        * LAYERS
        * (24 * HIDDEN**2 * tokens.mean() + 4 * HIDDEN * (tokens**2).mean())
        * 2
        * batch_size
    )
    contestants = bench.ours_and(*(name for name in LOWER if "bf16" in name), PEERS[0])
    settings = {"pairs": str(path), "out": str(bench.work / "out"), "batch_size": batch_size}
    workers = [
        bench.start(name, steps=block * (blocks + 1) + 1, **settings) for name in contestants
    ]
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    measurer, peaks = bench.start("ours"), []
    measurer.answer()
    for worker in workers:
        worker.ask(steps=block)
    for number in range(blocks):
        peaks.append(measurer.ask(peak=True)["gflops"])
        for worker in turned(workers, number):
            rounds[worker.name].append(worker.ask(steps=block))
    for worker in workers:
        worker.process.terminate()
        worker.process.wait()
    measurer.stop()
    summary = {}
    for name in contestants:
        seconds = [r["seconds"] / block for r in rounds[name]]
        base = [r["seconds"] / block for r in rounds["ours"]]
        summary[name] = {
            "ms_per_step": 1e3 * median(seconds),
            "tokens_per_s": 2 * batch_size * tokens.mean() / median(seconds),
            "share_of_peak": median(
                flop / s / 1e9 / p for s, p in zip(seconds, peaks, strict=True)
            ),
            "memory_mb": rounds[name][-1]["memory"],
            "loss": sum(r["loss"] for r in rounds[name]) / blocks,
            "ours_is_faster": spread([s / b for s, b in zip(seconds, base, strict=True)]),
            "in_processor_time": processor_time(rounds, name),
        }
    about = {"batch_size": batch_size, "steps": block * blocks, "peak_gflops": peaks}
    return {**about, "rounds": rounds, "summary": summary}


def cold_start(bench: Bench) -> dict[str, Any]:
    """A process: one sentence in, one vector out; and for comparison one that only imports
    torch."""
    fill = {"model": str(MODEL), "onnx": str(ONNX), "here": str(HERE), "threads": bench.threads}
    fill["text"] = "How do I repair a leaking kitchen tap?"
    names = bench.ours_and(*PEERS, "import torch")
    rounds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(bench.rounds + 1):
        for name in turned(names, number):
            kind, _, checkout = name.partition("@")
            code = COLD[kind].format(**fill)
            began = time.perf_counter()
            subprocess.run(
                [python_of(kind), "-c", code],
                check=True,
                env=environment(checkout or str(ROOT)),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            if number:  # the first round reads the files from disk
                rounds[name].append(time.perf_counter() - began)
    summary = {
        name: {
            "seconds": median(rounds[name]),
            "ours_is_faster": spread(
                [s / o for s, o in zip(rounds[name], rounds["ours"], strict=True)]
            ),
        }
        for name in names
    }
    return {"rounds": rounds, "summary": summary}


def turned(items: list[Any], number: int) -> list[Any]:
    """The items in an order that turns with the round, so that none is always first."""
    shift = number % len(items)
    return items[shift:] + items[:shift]


def spread(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "least": min(values), "most": max(values)}


def processor_time(
    rounds: dict[str, list[dict[str, float]]], name: str, scale: float = 1.0
) -> float:
    """Median ratio of processor seconds to ours: with --threads 1 it holds on a busy machine, where
    wall time lies."""
    return median(
        scale * p["cpu"] / o["cpu"] for p, o in zip(rounds[name], rounds["ours"], strict=True)
    )


def measured_quality(bench: Bench, workers: list[Worker]) -> dict[str, dict[str, Any]]:
    """What each contestant's vectors are worth; the first answer of each is read here."""
    task, texts = quality_task(), bench.work / "quality.json"
    texts.write_text(json.dumps(task_texts(task)), encoding="utf-8")
    files = {}
    for number, worker in enumerate(workers):
        files[worker.name] = bench.work / f"quality-{number}.npy"
        worker.answer()
        worker.ask(texts=str(texts), vectors=str(files[worker.name]))
    return measure_quality(task, files)


# --- the whole ------------------------------------------------------------------------------------


def run(
    bench: Bench, only: list[str], pairs: list[tuple[str, str]], data: str | None
) -> dict[str, Any]:
    """All workloads asked for, each printed as it ends."""
    size = 4 if bench.quick else 1
    texts = distinct_texts(2000)[:: size * size]
    few = distinct_texts(376, seed=4)
    rows = repeated_rows(few, 100_000)

    def everyone() -> list[str]:
        return bench.ours_and(*LOWER, *PEERS, *([] if bench.against else more_peers()))

    on = f"pairs of {data}" if data else "pairs of examples/job_skills (no DATA given)"
    steps = (lambda n: max(2, n // 5)) if bench.quick else (lambda n: n)
    workloads = {
        "a": ("2,000 distinct texts with a long tail", lambda: encoding(bench, texts, everyone())),
        "b": (
            "short queries one at a time",
            lambda: queries(bench, short_queries(200 // size), everyone()),
        ),
        "c": (
            "long documents, 256 tokens",
            lambda: encoding(bench, long_texts(96 // size), everyone()),
        ),
        "d0": (
            "the 376 distinct texts of (d) alone",
            lambda: encoding(bench, few, bench.ours_and()),
        ),
        "d": (
            "100,000 rows of 376 distinct texts (sentence-transformers: their first 1,000)",
            lambda: encoding(
                bench, rows, bench.ours_and("sentence-transformers"), others=1000 // size
            ),
        ),
        "e16": (
            f"training, batch 16, {on}",
            lambda: training(bench, pairs, 16, steps(10), bench.rounds),
        ),
        "e64": (
            f"training, batch 64, {on}",
            lambda: training(bench, pairs, 64, steps(4), bench.rounds),
        ),
        "f": (
            f"the recipe's first 500 steps, {on}",
            lambda: training(bench, pairs, 16, steps(50), 10),
        ),
        "g": ("a process: one sentence in, one vector out", lambda: cold_start(bench)),
    }
    results = {}
    for key, (title, work) in workloads.items():
        if any(key.startswith(chosen) for chosen in only):
            began = os.getloadavg()
            results[key] = {
                "title": title,
                **work(),
                "load_average": [began[0], os.getloadavg()[0]],
            }
            print(f"\n({key}) {title}\n\n{table(results[key])}", flush=True)
    return results


def table(result: dict[str, Any]) -> str:
    """A workload's summary as a Markdown table."""
    heads = {
        "texts_per_s": ("texts/s", ".0f"),
        "p50_ms": ("p50 ms", ".2f"),
        "p95_ms": ("p95 ms", ".2f"),
        "ms_per_step": ("ms a step", ".0f"),
        "seconds": ("seconds", ".2f"),
        "tokens_per_s": ("real tokens/s", ".0f"),
        "share_of_peak": ("of the peak", ".0%"),
        "memory_mb": ("peak MB", ".0f"),
        "loss": ("loss", ".4f"),
        "worst_cosine": ("worst cosine", ".5f"),
        "ndcg_change": ("nDCG@10 on the example", "+.4f"),
    }
    used = {key: head for key, head in heads.items() if key in result["summary"]["ours"]}
    lines = [
        [
            "",
            *(head for head, _ in used.values()),
            "ours is faster by (spread)",
            "in processor time",
        ]
    ]
    lines.append(["---"] * len(lines[0]))
    for name, row in result["summary"].items():
        faster = row["ours_is_faster"]
        by = (
            f"{faster['median']:.2f} x ({faster['least']:.2f} to {faster['most']:.2f})"
            if name != "ours"
            else ""
        )
        cpu = (
            f"{row['in_processor_time']:.2f} x"
            if name != "ours" and "in_processor_time" in row
            else ""
        )
        lines.append([name, *(format(row[key], form) for key, (_, form) in used.items()), by, cpu])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", help="pairs for the training workloads, in place of examples/job_skills"
    )
    parser.add_argument("--columns", nargs=2, help="its columns: query and document")
    parser.add_argument(
        "--only", nargs="+", default=list("abcdefg"), help="workloads: a b c d e f g"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a look, no figures: so few texts flatter who pads least",
    )
    parser.add_argument(
        "--against",
        nargs="+",
        default=[],
        metavar="DIR",
        help="other checkouts of this repository, measured in the peers' place",
    )
    parser.add_argument(
        "--without", nargs="+", default=[], metavar="NAME", help="contestants to leave out"
    )
    parser.add_argument("--name", default="bench", help="the result's file name")
    args = parser.parse_args()
    make_peers()
    tokenizer = TextTokenizer(json.loads((MODEL / "tokenizer.json").read_bytes()), max_length=256)
    pairs = example_pairs()
    if args.data:
        read = read_pairs(args.data, tuple(args.columns) if args.columns else None)
        pairs = list(zip(read.texts[0], read.texts[1], strict=True))
    about = {
        "machine": machine(),
        "versions": versions(sys.executable),
        "peers": versions(str(PEER)),
        **{name: versions(python_of(name)) for name in BACKENDS if Path(python_of(name)).exists()},
        "settings": {**vars(args), "data": Path(args.data).name if args.data else None},
    }
    print(json.dumps(about, indent=1))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(
            args.rounds,
            args.threads,
            args.quick,
            tuple(args.against),
            tuple(args.without),
            Path(folder),
            tokenizer,
        )
        results = run(bench, args.only, pairs, args.data and Path(args.data).name)
    out = HERE / "results" / f"{args.name}.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({**about, "workloads": results}, indent=1) + "\n", encoding="utf-8")
    print(f"\nwrote {out.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
