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
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.contestants import (  # noqa: E402
    BACKENDS,
    HERE,
    MODEL,
    PEER,
    machine,
    make_peers,
    more_peers,
    python_of,
    versions,
)
from benchmarks.texts import distinct_texts, example_pairs, long_texts, repeated_rows, short_queries  # noqa: E402
from benchmarks.workloads import LOWER, PEERS, Bench, cold_start, encoding, queries, training  # noqa: E402
from minilm_retriever.data.pairs import read_pairs  # noqa: E402
from minilm_retriever.pretrained.tokenizer import TextTokenizer  # noqa: E402


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
