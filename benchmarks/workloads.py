"""What `bench.py` times: encoding, single queries, training steps, a process from its start.

Each contestant is a process of its own; one works at a time, in an order that turns with the round,
and ratios are taken within a round."""

from __future__ import annotations

import csv
import json
import random
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.contestants import HERE, MODEL, ONNX, Worker, environment, python_of
from benchmarks.quality import measure_quality, quality_task, task_texts
from minilm_retriever.kernels.processor import lacks_instructions
from minilm_retriever.pretrained.tokenizer import TextTokenizer

ROOT = Path(__file__).resolve().parent.parent
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
