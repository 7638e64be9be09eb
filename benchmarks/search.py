"""Exact search against faiss IndexFlatIP on the same vectors, in the same run, taking turns.

python benchmarks/search.py [--documents 1000000] [--queries 1 1000] [--k 10] [--threads 2] [--json
FILE]

The vectors are written to a file and memory-mapped; faiss gets a copy in memory, which is its only
way. Each round times both once on the same queries, drawn near documents; the table shows the best
and the median round, and the median over the rounds of how much faster we are. `memory` is what our
search adds to the process beyond the mapped file (peak of anonymous memory). Ids have to be
identical wherever neighbouring scores differ by more than 1e-6. Run it on a quiet machine: two
threads that wait for each other suffer from a third."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from minilm_retriever.search.exact import top_k

Found = tuple[np.ndarray, np.ndarray]


def write_vectors(path: Path, documents: int, width: int) -> np.ndarray:
    """Unit vectors in a file, mapped."""
    rng = np.random.default_rng(0)
    target = np.lib.format.open_memmap(path, "w+", np.float32, (documents, width))
    for start in range(0, documents, 1 << 16):
        block = rng.standard_normal((min(1 << 16, documents - start), width), dtype=np.float32)
        target[start : start + len(block)] = block / np.linalg.norm(block, axis=1, keepdims=True)
    target.flush()
    del target
    return np.load(path, mmap_mode="r")


def draw_queries(documents: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Unit vectors, each near a document."""
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.integers(len(documents), size=count))
    queries = documents[rows] + 0.05 * rng.standard_normal(
        (count, documents.shape[1]), dtype=np.float32
    )
    return (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32)


class Peak(threading.Thread):
    """The largest anonymous memory of the process while it runs, in MB (Linux)."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.first, self.most, self.done = self.now(), 0.0, threading.Event()

    @staticmethod
    def now() -> float:
        """Anonymous memory of the process, in MB."""
        for line in Path("/proc/self/status").read_text("utf-8").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) / 1000
        return float("nan")

    def run(self) -> None:
        """Watch until `done` is set."""
        while not self.done.wait(0.005):
            self.most = max(self.most, self.now() - self.first)


def memory_of(work: Callable[[], object]) -> float:
    """Anonymous memory that the work adds at its peak, in MB."""
    peak = Peak()
    peak.start()
    work()
    peak.done.set()
    peak.join()
    return peak.most


def agree(ours: Found, theirs: Found) -> bool:
    """Whether the ids are the same up to documents whose scores are within 1e-6 of each other."""
    if np.abs(ours[0] - theirs[0]).max() > 1e-6:
        return False
    for scores, mine, other in zip(ours[0], ours[1], theirs[1], strict=True):
        apart = [0, *(np.flatnonzero(-np.diff(scores) > 1e-6) + 1).tolist()]
        for start, end in zip(apart, apart[1:], strict=False):  # the last group may go on beyond k
            if set(mine[start:end]) != set(other[start:end]):
                return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 1000])
    parser.add_argument("--k", type=int, nargs="+", default=[10])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--rounds", type=int, default=5, help="for 1,000 queries; smaller batches get more"
    )
    parser.add_argument(
        "--folder", type=Path, help="where the vectors are written (default: a temporary folder)"
    )
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    import faiss

    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    rows = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        documents = write_vectors(Path(folder) / "vectors.npy", args.documents, args.width)
        index = faiss.IndexFlatIP(args.width)
        for start in range(0, len(documents), 1 << 16):
            index.add(np.ascontiguousarray(documents[start : start + (1 << 16)]))
        print(
            f"{args.documents:,} x {args.width} float32, {args.threads} threads, "
            f"load {os.getloadavg()[0]:.1f}"
        )
        print(
            f"{'queries':>8}{'k':>5}{'ours, s':>18}{'faiss, s':>18}{'faiss/ours':>12}"
            f"{'memory':>9}  ids"
        )
        for count in args.queries:
            for k in args.k:
                warm = draw_queries(documents, count, 0)
                memory = memory_of(lambda q=warm, k=k: top_k(q, documents, k))
                index.search(warm, k)
                times: dict[str, list[float]] = {"ours": [], "faiss": []}
                same = True
                for number in range(1, 1 + args.rounds * max(1, min(8, 100 // count))):
                    queries = draw_queries(documents, count, number)
                    start = time.perf_counter()
                    ours = top_k(queries, documents, k)
                    middle = time.perf_counter()
                    theirs = index.search(queries, k)
                    end = time.perf_counter()
                    times["ours"].append(middle - start)
                    times["faiss"].append(end - middle)
                    same = same and agree(ours, theirs)
                ratio = statistics.median(
                    b / a for a, b in zip(times["ours"], times["faiss"], strict=True)
                )
                shown = {
                    name: f"{min(t):.4f} / {statistics.median(t):.4f}" for name, t in times.items()
                }
                print(
                    f"{count:>8}{k:>5}{shown['ours']:>18}{shown['faiss']:>18}{ratio:>12.2f}"
                    f"{memory:>6.0f} MB  {'same' if same else 'DIFFER'}",
                    flush=True,
                )
                rows.append(
                    {
                        "queries": count,
                        "k": k,
                        "seconds": times,
                        "ratio": ratio,
                        "memory_mb": memory,
                        "same_ids": same,
                    }
                )
    if args.json:
        machine = {"python": sys.version, "torch": torch.__version__, "faiss": faiss.__version__}
        machine |= {
            "processor": platform.processor() or platform.machine(),
            "threads": args.threads,
        }
        figures = {
            "documents": args.documents,
            "width": args.width,
            "machine": machine,
            "rows": rows,
        }
        args.json.write_text(json.dumps(figures, indent=1), "utf-8")


if __name__ == "__main__":
    main()
