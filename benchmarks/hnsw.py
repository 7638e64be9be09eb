"""Recall against latency of the approximate indexes over real texts, beside exact search in the
same run.

python encode.py sentences.txt --out vectors python benchmarks/hnsw.py vectors [--kind hnsw ivfpq]
[--queries 1000] [--picture docs/recall.svg] [--json FILE]

The vectors of every (N / queries)-th text are the queries; each text would find itself, so that
rank is not counted: recall@10 is the share of the ten nearest other texts, by exact search, that
are found. Latency is the median of one query at a time through Index.search, exact scores
included; exact search answers in between, on the same queries. The index is built as
`minilm-retriever index` builds it, from the folder, into a temporary one."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from minilm_retriever.search.faiss_index import import_faiss
from minilm_retriever.search.index import Index
from minilm_retriever.search.index_folder import make_index, open_index
from minilm_retriever.types import FloatArray

K = 10
EFFORTS = {"hnsw": (32, 64, 128, 256, 512), "ivfpq": (4, 16, 64, 128, 256)}


def draw(index: Index, count: int) -> tuple[np.ndarray, FloatArray]:
    """Rows and vectors of evenly spaced documents."""
    rows = np.linspace(0, len(index) - 1, count).astype(np.int64)
    source = index.sources[0]
    starts = np.asarray(source.starts)
    owners = np.searchsorted(starts, rows, side="right") - 1
    kept = [source.shards[int(o)][r - starts[o]][None] for o, r in zip(owners, rows, strict=True)]
    return rows, np.concatenate([source.floats(vector) for vector in kept])


def others(found: np.ndarray, own: np.ndarray) -> list[set[int]]:
    """The K nearest of each query that are not itself."""
    return [
        set([row for row in rows if row != mine][:K])
        for rows, mine in zip(found.tolist(), own.tolist(), strict=True)
    ]


def one_at_a_time(index: Index, queries: FloatArray) -> list[float]:
    """Seconds of each query by itself."""
    seconds = []
    for query in queries:
        start = time.perf_counter()
        index.search(query[None], K + 1)
        seconds.append(time.perf_counter() - start)
    return seconds


def measure(
    exact: Index,
    index: Index,
    queries: FloatArray,
    own: np.ndarray,
    right: list[set[int]],
) -> list[dict]:
    """A row for each effort."""
    rows = []
    for effort in EFFORTS[index.plan.kind]:
        trial = replace(index, effort=effort)
        found = others(trial.search(queries, K + 1)[1], own)
        recall = float(np.mean([len(a & b) / K for a, b in zip(found, right, strict=True)]))
        # In turns, so that both meet the same machine.
        ours, brute = [], []
        for start in range(0, 300, 60):
            brute += one_at_a_time(exact, queries[start : start + 12])
            ours += one_at_a_time(trial, queries[start : start + 60])
        one, all_ = statistics.median(ours), statistics.median(brute)
        rows.append(
            {
                "kind": index.plan.kind,
                "effort": effort,
                "recall": recall,
                "ms": one * 1e3,
                "exact_ms": all_ * 1e3,
            }
        )
        name = f"{index.plan.kind:>6}{effort:>8}"
        print(
            f"{name}{recall:>11.4f}{one * 1e3:>10.2f} ms{all_ * 1e3:>10.2f} ms{all_ / one:>8.1f}",
            flush=True,
        )
    return rows


def draw_picture(rows: list[dict], path: Path, documents: int) -> None:
    """Recall over latency, a line for each kind."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "recall", "svg.fonttype": "none"})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.8), layout="constrained")
    for kind in dict.fromkeys(row["kind"] for row in rows):
        mine = [row for row in rows if row["kind"] == kind]
        axes.plot(
            [row["ms"] for row in mine],
            [row["recall"] for row in mine],
            "o-",
            label=kind,
            markersize=4,
        )
        for row in mine:
            axes.annotate(
                str(row["effort"]),
                (row["ms"], row["recall"]),
                (4, -9),
                textcoords="offset points",
                fontsize=7,
            )
    axes.axvline(
        statistics.median(row["exact_ms"] for row in rows),
        color="0.4",
        linestyle="--",
        label="exact",
    )
    axes.set(xscale="log", xlabel="one query, ms (the numbers: effort)", ylabel="recall@10")
    axes.set_title(f"{documents:,} sentences, 384 dimensions", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("vectors", type=Path, help="what encode.py wrote")
    parser.add_argument("--kind", nargs="+", choices=list(EFFORTS), default=list(EFFORTS))
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--index", type=Path, help="where the indexes are kept, KIND behind it (default: not kept)"
    )
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    import_faiss().omp_set_num_threads(args.threads)
    exact = open_index(args.vectors)
    own, queries = draw(exact, args.queries)
    right = others(exact.search(queries, K + 1)[1], own)
    rows: list[dict] = []
    built = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in args.kind:
            place = Path(f"{args.index}-{kind}") if args.index else Path(folder) / kind
            start = time.perf_counter()
            if not place.exists():
                make_index(args.vectors, place, kind=kind)
                built[kind] = time.perf_counter() - start
            size = sum(path.stat().st_size for path in place.iterdir()) / 1e6
            print(
                f"{kind}: built in {built.get(kind, 0):.0f} s, {size:.0f} MB; "
                f"load {os.getloadavg()[0]:.1f}"
            )
            print(
                f"{'kind':>6}{'effort':>8}{'recall@10':>11}"
                f"{'one query':>13}{'exact':>13}{'times':>8}"
            )
            rows += measure(exact, open_index(place), queries, own, right)
    if args.picture:
        draw_picture(rows, args.picture, len(exact))
    if args.json:
        args.json.write_text(
            json.dumps({"documents": len(exact), "built": built, "rows": rows}, indent=1), "utf-8"
        )


if __name__ == "__main__":
    main()
