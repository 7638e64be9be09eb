"""What an evaluation costs besides encoding: reading a BEIR-style corpus and ranking it, with
vectors drawn at random.

python benchmarks/big_corpus.py [--documents 1000000] [--queries 1000] [--threads 2]

Writes a corpus of that size (about 400 characters a document) to a temporary folder. Memory is that
of the process at its peak, less what it had after importing everything."""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from minilm_retriever.evaluation.evaluate import measure_run  # noqa: E402
from minilm_retriever.evaluation.ranking import PORTION_DOCUMENTS, rank_documents  # noqa: E402
from minilm_retriever.evaluation.tasks import read_beir  # noqa: E402


def write_folder(folder: Path, documents: int, queries: int) -> None:
    """Documents that differ in their number, and a judgement a query."""
    (folder / "qrels").mkdir()
    filling = "a document of the usual length, of which there are many; " * 7
    with (folder / "corpus.jsonl").open("w", encoding="utf-8") as stream:
        for number in range(documents):
            stream.write(
                json.dumps({"_id": f"d{number}", "title": f"{number}", "text": filling}) + "\n"
            )
    rows = [json.dumps({"_id": f"q{number}", "text": f"{number}"}) for number in range(queries)]
    (folder / "queries.jsonl").write_text("\n".join(rows) + "\n", "utf-8")
    rows = [
        "query-id\tcorpus-id\tscore",
        *(f"q{number}\td{number}\t1" for number in range(queries)),
    ]
    (folder / "qrels/test.tsv").write_text("\n".join(rows) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rng = np.random.default_rng(0)
    encoding = 0.0

    def encode(texts: list[str]) -> np.ndarray:
        nonlocal encoding
        began = time.perf_counter()
        vectors = rng.standard_normal((len(texts), 384), dtype=np.float32)
        encoding += time.perf_counter() - began
        return vectors

    with tempfile.TemporaryDirectory() as name:
        write_folder(Path(name), args.documents, args.queries)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        began = time.perf_counter()
        task = read_beir(Path(name))
        read = time.perf_counter() - began
        began = time.perf_counter()
        result = measure_run(task, rank_documents(task, encode, encode, 100))
        ranked = time.perf_counter() - began - encoding
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000 - before
    print(
        f"{args.documents:,} documents, {args.queries:,} queries, "
        f"portions of {PORTION_DOCUMENTS:,}, {args.threads} threads"
    )
    print(
        f"reading and checking {read:.0f} s; ranking, without encoding, {ranked:.0f} s; "
        f"{peak:,.0f} MB"
    )
    assert len(result.query_ids) == args.queries


if __name__ == "__main__":
    main()
