"""What `minilm-retriever export` writes, on onnxruntime beside our own encoder in the same run.

    python benchmarks/exported.py [--rounds 3] [--texts 2000]

Needs the extra [onnx]. Batches are the same for all (sorted by length, a budget of tokens), rounds
are interleaved. Prints the worst difference over 1,000 texts of 1 to 256 tokens, sizes, quality on
the example, tokens a second, and the time of a short query."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.quality import quality_task  # noqa: E402
from benchmarks.texts import distinct_texts, short_queries  # noqa: E402
from minilm_retriever.encoder.command import open_for_command  # noqa: E402
from minilm_retriever.encoder.encode_texts import BATCH_TOKENS, length_batches  # noqa: E402
from minilm_retriever.evaluation.evaluate import evaluate_retrieval  # noqa: E402
from minilm_retriever.exporting.compare import run  # noqa: E402
from minilm_retriever.exporting.config import ExportConfig  # noqa: E402
from minilm_retriever.exporting.export import export  # noqa: E402
from minilm_retriever.pretrained.tokenizer import TextTokenizer  # noqa: E402

MODEL = str(ROOT / "checkpoints" / "all-MiniLM-L6-v2")
Encode = Callable[[list[str]], Any]


def on_onnxruntime(path: Path, tokenizer: TextTokenizer, threads: int) -> Encode:
    """Encode on a file, in the batches that Encoder.encode would make."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def encode(texts: list[str]) -> Any:
        tokens = tokenizer.tokenize(texts)
        out = np.empty((len(texts), 384), dtype=np.float32)
        for rows in length_batches(tokens.lengths, BATCH_TOKENS):
            out[rows] = run(session, tokens.batch(rows))
        return out

    return encode


def texts_of_all_lengths(tokenizer: TextTokenizer, count: int = 1000) -> list[str]:
    """`count` texts of 1 to 256 tokens beside [CLS] and [SEP], as far as the limit lets them."""
    words = " ".join(distinct_texts(400)).split()
    rng = np.random.default_rng(0)
    lengths = np.linspace(1, 256, count).astype(int)
    starts = rng.integers(0, len(words) - 256, count)
    return [" ".join(words[s : s + n]) for s, n in zip(starts, lengths, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    encoder = open_for_command(MODEL, "cpu")
    tokenizer = encoder.model.tokenizer
    contestants: dict[str, Encode] = {"ours": encoder.encode}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "onnx"
        print("\n".join(export(ExportConfig(MODEL, onnx=str(folder), int8=True))))
        for name in ("model.onnx", "model_int8.onnx"):
            contestants[name] = on_onnxruntime(folder / name, tokenizer, args.threads)
        compare(contestants, tokenizer)
        race(contestants, tokenizer, args.texts, args.rounds)


def compare(contestants: dict[str, Encode], tokenizer: TextTokenizer) -> None:
    """Differences to ours, and what the vectors are worth on the example."""
    texts, task = texts_of_all_lengths(tokenizer), quality_task()
    lengths, own = tokenizer.tokenize(texts).lengths, contestants["ours"](texts)
    print(f"{len(texts)} texts of {lengths.min()} to {lengths.max()} tokens; {task.name}")
    for name, encode in contestants.items():
        vectors = encode(texts)
        cosines = (vectors * own).sum(axis=1)
        quality = evaluate_retrieval(task, encode).metrics["ndcg@10"]
        print(
            f"{name:16} worst difference {np.abs(vectors - own).max():.1e}, worst cosine "
            f"{cosines.min():.5f}, mean {cosines.mean():.5f}, nDCG@10 {quality:.4f}"
        )


def race(contestants: dict[str, Encode], tokenizer: TextTokenizer, count: int, rounds: int) -> None:
    """Interleaved rounds of many texts and of single queries."""
    texts, queries = distinct_texts(count), short_queries(100)
    tokens = int(tokenizer.tokenize(texts).lengths.sum())
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    waits: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, encode in contestants.items():
            start = time.perf_counter()
            encode(texts)
            seconds[name].append(time.perf_counter() - start)
            for query in queries:
                start = time.perf_counter()
                encode([query])
                waits[name].append(time.perf_counter() - start)
    for name, times in seconds.items():
        ratio = median(t / own for t, own in zip(times, seconds["ours"], strict=True))
        print(
            f"{name:16} {tokens / median(times):8,.0f} tokens/s ({ratio:.2f} x our time), "
            f"a query {1e3 * median(waits[name]):.2f} ms"
        )


if __name__ == "__main__":
    main()
