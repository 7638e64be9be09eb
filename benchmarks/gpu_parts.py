"""The parts of bench_gpu.py, each a row of figures."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.texts import distinct_texts
from minilm_retriever import Encoder, UserError
from minilm_retriever.core.trainer import Trainer
from minilm_retriever.kernels.graphs import GraphCapture, gpu_settings
from minilm_retriever.training import make_trainer, prepare
from minilm_retriever.training.config import TrainConfig

ROOT = Path(__file__).resolve().parent.parent
TARGETS = {  # the issue's: must, aim
    "step fp32": "3.5 ms, aim 2.5", "step tf32": "2.2 ms, aim 1.5", "step bf16": "2.2 ms, aim 1.5",
    "encode fp32": "1.4 M tokens/s", "encode fp16": "4 M tokens/s, aim the tokenizer's rate",
    "query fp32": "1.0 ms, aim 0.6", "query fp16": "1.0 ms, aim 0.6",
    "whole fp32": "75 s", "whole bf16": "45 s, aim 30",
}  # fmt: skip


class Bench:
    """What is measured, and until when."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.device = options, torch.device(options.device)
        self.end = time.monotonic() + 60 * options.minutes
        self.results: dict[str, dict[str, Any]] = {}
        self.on_gpu = self.device.type == "cuda"
        self.peaks: dict[str, float] = {}

    def part(self, name: str, measure: Callable[[], dict[str, Any]]) -> None:
        """Measure a row and print it; a fault or a lack of time is a row, too."""
        if time.monotonic() > self.end:
            row: dict[str, Any] = {"skipped": "no time left"}
        else:
            try:
                self.reset_peak()
                row = measure()
                if self.on_gpu:
                    row["GiB"] = round(torch.cuda.max_memory_allocated(self.device) / 2**30, 2)
            except (RuntimeError, UserError, ImportError, AttributeError) as fault:
                row = {"failed": f"{type(fault).__name__}: {str(fault).splitlines()[0][:200]}"}
        if name in TARGETS:
            row["target"] = TARGETS[name]
        self.results[name] = row
        shown = ", ".join(f"{key} {value}" for key, value in row.items())
        print(f"{name:14} {shown}", flush=True)

    def reset_peak(self) -> None:
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def limit(self, precision: str) -> float:
        """Operations a second of the fastest large product."""
        if precision not in self.peaks:
            size = 8192 if self.on_gpu else 128
            dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
            with gpu_settings(self.device, precision):
                a = torch.randn(size, size, device=self.device).to(dtype)
                times = []
                for _ in range(8):
                    self.wait()
                    start = time.perf_counter()
                    a @ a
                    self.wait()
                    times.append(time.perf_counter() - start)
            self.peaks[precision] = 2 * size**3 / min(times)
        return self.peaks[precision]

    def share(self, precision: str, operations: float, seconds: float) -> str:
        return f"{operations / seconds / self.limit(precision):.0%}"


def operations(lengths: Any) -> float:
    """Of a forward pass over texts of n tokens each: in 6 layers 24 H^2 a token and 4 n H more."""
    counts = lengths.astype(float)
    return float(6 * (24 * 384**2 * counts.sum() + 4 * 384 * (counts**2).sum()))


def at_once(run: Callable[[], None]) -> Callable[[], None]:
    """In place of a graph."""
    return run


@contextmanager
def training_run(
    bench: Bench, pairs: Path, precision: str, kind: str = "graphs", **flags: Any
) -> Iterator[Any]:
    """A prepared run of the recipe; kind: graphs, launched (the same step without them), plain."""
    config = TrainConfig(
        train=(str(pairs),), columns=("query", "document"), model=bench.options.model,
        out="unused", device=str(bench.device), precision=precision, **flags,
    )  # fmt: skip

    def make(config: Any, encoder: Any, loss: Any, settings: Any, *others: Any) -> Trainer:
        if kind == "plain":
            return Trainer(encoder, loss, settings)
        capture = GraphCapture() if bench.on_gpu and kind == "graphs" else at_once
        capture = None if kind == "launched" else capture
        data, sampler, _ = others
        return make_trainer.captured(config, encoder, loss, settings, data, sampler, capture)

    before = prepare.make_trainer
    prepare.make_trainer = make
    try:
        with gpu_settings(bench.device, precision, own_stream=True):
            yield prepare.prepare(config)
    finally:
        prepare.make_trainer = before


def measure_step(bench: Bench, pairs: Path, precision: str, kind: str) -> dict[str, Any]:
    """ms a step, once all sizes are captured; also of the first 100."""
    steps = bench.options.steps if kind == "graphs" else max(2, bench.options.steps // 6)
    with training_run(bench, pairs, precision, kind) as run:
        marks, lengths, losses = [], [], []
        warm = max(1, steps // 3)
        for number, batches in enumerate(run.batches(0, steps)):
            if number in (0, min(100, warm), warm):
                bench.wait()
                marks.append((number, time.perf_counter()))
            step = run.trainer.step(number, batches)
            losses.append(step.losses.sum().detach())
            if number >= warm:
                own = [run.data.tokens.lengths_of(b.rows.inputs.reshape(-1)) for b in batches]
                lengths.append(np.concatenate(own))
        bench.wait()
        seconds = (time.perf_counter() - marks[-1][1]) / (steps - warm)
        first, start = marks[1][0], marks[1][1] - marks[0][1]
        needed = 3 * sum(map(operations, lengths)) / len(lengths)
        row = {
            "ms": round(seconds * 1e3, 3),
            "first ms": round(start / first * 1e3, 2),
            "tokens/s": int(sum(x.sum() for x in lengths) / len(lengths) / seconds),
            "of the limit": bench.share(precision, needed, seconds),
            "mean loss": round(float(torch.stack(losses).mean()), 4),
        }
        if kind == "graphs":
            slots = np.mean([shape.slots for shape in run.trainer.shapes.values()])
            captured = bench.on_gpu and run.trainer.capture is not None
            row |= {"graphs": len(run.trainer.graphs), "slots": int(slots), "captured": captured}
        return row


def check_replay(bench: Bench, pairs: Path) -> dict[str, Any]:
    """The greatest difference between losses of replayed and of launched steps, dropout off."""
    count, found = min(100, bench.options.steps), []
    for kind in ("graphs", "launched", "plain"):
        with training_run(bench, pairs, "fp32", kind, dropout=0.0) as run:
            steps = [run.trainer.step(n, b).losses.sum().detach().clone()
                     for n, b in enumerate(run.batches(0, count))]  # fmt: skip
            found.append(torch.stack(steps).cpu())
    replayed, launched, plain = found
    return {
        "replayed - launched": float((replayed - launched).abs().max()),
        "launched - plain": float((launched - plain).abs().max()),
    }


def measure_cudnn(bench: Bench, pairs: Path, allowed: bool) -> dict[str, Any]:
    """bf16's first 50 steps by core/trainer.py, each with a shape of its own."""
    module = import_module("minilm_retriever.kernels.graphs")
    before = module.ATTENTION
    count = min(50, bench.options.steps)
    try:
        if allowed:
            every = torch.nn.attention.SDPBackend
            module.ATTENTION = [every.CUDNN_ATTENTION, *before]
        with training_run(bench, pairs, "bf16", "plain") as run:
            start = time.perf_counter()
            for number, batches in enumerate(run.batches(0, count)):
                run.trainer.step(number, batches)
            bench.wait()
            return {"ms of the first steps": round((time.perf_counter() - start) / count * 1e3, 1)}
    finally:
        module.ATTENTION = before


def measure_encode(bench: Bench, precision: str, texts: list[str]) -> dict[str, Any]:
    encoder = Encoder(bench.options.model, device=bench.device)
    expected = encoder.encode(texts)
    if bench.on_gpu:
        encoder.precision = precision
    encoder.encode(texts[:2000])
    times = []
    for _ in range(3):
        start = time.perf_counter()
        vectors = encoder.encode(texts)
        times.append(time.perf_counter() - start)
    start = time.perf_counter()
    tokens = encoder.model.tokenizer.tokenize(texts)
    tokenizing = time.perf_counter() - start
    count = int(tokens.offsets[-1])
    return {
        "M tokens/s": round(count / min(times) / 1e6, 3),
        "of the limit": bench.share(precision, operations(tokens.lengths), min(times)),
        "tokenising alone": round(count / tokenizing / 1e6, 2),
        "worst cosine": round(float((vectors * expected).sum(1).min()), 7),
    }


def measure_query(bench: Bench, precision: str, encode: Callable[[str], Any]) -> dict[str, Any]:
    times = []
    for text in distinct_texts(bench.options.queries, seed=2, median=8, spread=0.0):
        start = time.perf_counter()
        encode(text)
        times.append(time.perf_counter() - start)
    times = times[len(times) // 4 :]
    p50, p95 = (round(float(np.quantile(times, q)) * 1e3, 3) for q in (0.5, 0.95))
    return {"p50 ms": p50, "p95 ms": p95}


def ours(bench: Bench, precision: str) -> Callable[[str], Any]:
    encoder = Encoder(bench.options.model, device=bench.device)
    if bench.on_gpu:
        encoder.precision = precision  # type: ignore[assignment]
    return encoder.encode


def measure_peer(bench: Bench, texts: list[str], half: bool) -> dict[str, Any]:
    """sentence-transformers: texts at batch 512, and queries."""
    package = import_module("sentence_transformers")
    model = package.SentenceTransformer(str(bench.options.model), device=str(bench.device))
    model = model.half() if half else model
    texts = texts[: max(10, len(texts) // 4)]
    model.encode(texts[:512], batch_size=512)
    start = time.perf_counter()
    model.encode(texts, batch_size=512)
    seconds = time.perf_counter() - start
    tokens = Encoder(bench.options.model, device="cpu").model.tokenizer.tokenize(texts)
    row = {"version": package.__version__}
    row["M tokens/s"] = round(int(tokens.offsets[-1]) / seconds / 1e6, 3)
    return row | measure_query(bench, "fp32", model.encode)


def measure_whole(bench: Bench, pairs: Path, precision: str) -> dict[str, Any]:
    """All steps of the recipe, by train.py in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "train.py"), "--train", str(pairs), "--columns",
                   "query", "document", "--model", str(bench.options.model), "--device",
                   str(bench.device), "--precision", precision, "--out", f"{folder}/out",
                   *(() if bench.on_gpu else ("--max-steps", "4"))]  # fmt: skip
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    losses = [line for line in done.stderr.splitlines() if " loss " in line]
    return {"s": round(seconds, 1), "last line": losses[-1].strip() if losses else ""}
