"""The closest pairs among N vectors: our time and memory beside the matrix products alone, and
sentence-transformers.

python benchmarks/paraphrases.py [--texts 50000] [-n 1000] [--threads 2] [--rounds 3] [--peer
PYTHON]

The vectors are random ones in groups of near neighbours. `products` are those of the blocks that
our search goes through, and nothing else: no exact search can do with fewer. The peer is
sentence-transformers' function paraphrase_mining_embeddings with its own defaults (it looks at 100
neighbours a text) in an interpreter of its own, by default that of .peers/bench. All take turns;
memory is what the work adds to its process at the peak."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.search import memory_of  # noqa: E402
from minilm_retriever.curation.paraphrases import BLOCK_COLUMNS, BLOCK_ROWS, closest_pairs  # noqa: E402

PEER = """
import json, sys, time, torch, numpy as np
sys.path.insert(0, sys.argv[1])
from sentence_transformers.util import paraphrase_mining_embeddings
torch.set_num_threads(int(sys.argv[3]))
vectors = torch.from_numpy(np.load(sys.argv[2]))
def status(name):
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(name)) / 1000
before, began = status("VmRSS"), time.perf_counter()
found = paraphrase_mining_embeddings(vectors)
took = time.perf_counter() - began
print(json.dumps({"s": took, "MB": status("VmHWM") - before, "pairs": found[: int(sys.argv[4])]}))
"""


def make_vectors(texts: int, width: int = 384) -> np.ndarray:
    """Unit vectors, five around each of texts / 5 centres."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((-(-texts // 5), width), dtype=np.float32)
    vectors = centres[np.arange(texts) % len(centres)] + rng.uniform(0.2, 2, (texts, 1)).astype(
        np.float32
    ) * rng.standard_normal((texts, width), dtype=np.float32)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def products(vectors: np.ndarray) -> None:
    """The blocks of closest_pairs, multiplied."""
    x = torch.from_numpy(vectors)
    for start in range(0, len(x), BLOCK_ROWS):
        for first in range(start, len(x), BLOCK_COLUMNS):
            x[start : start + BLOCK_ROWS] @ x[first : first + BLOCK_COLUMNS].T


def timed(work: object) -> float:
    """Seconds of a call."""
    began = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=int, default=50_000)
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", default=str(ROOT / ".peers/bench/bin/python"), metavar="PYTHON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    vectors = make_vectors(args.texts)
    memory = memory_of(lambda: closest_pairs(vectors, args.n))
    found = closest_pairs(vectors, args.n)
    ours, bare, theirs = list[float](), list[float](), list[dict]()
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "v.npy", vectors)
        for _ in range(args.rounds):
            ours.append(timed(lambda: closest_pairs(vectors, args.n)))
            bare.append(timed(lambda: products(vectors)))
            if Path(args.peer).exists():
                command = [
                    args.peer,
                    "-c",
                    PEER,
                    str(ROOT),
                    str(Path(folder) / "v.npy"),
                    str(args.threads),
                    str(args.n),
                ]
                output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                theirs.append(json.loads(output.splitlines()[-1]))
    print(
        f"{args.texts:,} vectors of {vectors.shape[1]}, the best {args.n:,} pairs, "
        f"{args.threads} threads"
    )
    print(f"{'ours':<24}{statistics.median(ours):8.1f} s{memory:8.0f} MB")
    ratio = statistics.median(a / b for a, b in zip(ours, bare, strict=True))
    print(
        f"{'products alone':<24}{statistics.median(bare):8.1f} s            "
        f"ours takes {ratio:.2f} x as long"
    )
    if theirs:
        seconds = [one["s"] for one in theirs]
        ratio = statistics.median(b / a for a, b in zip(ours, seconds, strict=True))
        peak = max(one["MB"] for one in theirs)
        same = {(i, j) for _, i, j in theirs[0]["pairs"]} == set(
            zip(found.left.tolist(), found.right.tolist(), strict=True)
        )
        line = f"{statistics.median(seconds):8.1f} s{peak:8.0f} MB   ours is {ratio:.2f} x as fast"
        print(f"{'sentence-transformers':<24}{line}")
        print(f"the same pairs: {'yes' if same else 'no'}")


if __name__ == "__main__":
    main()
