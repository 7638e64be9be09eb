"""Training, encoding and queries on one GPU, each beside what the card could do.

    make bench-gpu                                       at most 6 minutes, no network
    .venv/bin/python benchmarks/bench_gpu.py --only step --minutes 3
    .venv/bin/python benchmarks/bench_gpu.py --whole     and all 18,750 steps, as a process
    .venv/bin/python benchmarks/bench_gpu.py --prepare DIR   only a copy of 45 MB, for --model

Prints a table and writes benchmarks/results/gpu.json. Beside sentence-transformers where that can
be imported. `--device cpu --steps 8 --texts 40 --queries 3` runs every part without a GPU, as the
tests do: its figures mean nothing. Without a GPU and without that: one line, status 2.

step: of the published recipe (batch 16, the example's pairs drawn to 100,000 rows), in each
precision, from CUDA graphs; the same steps launched one by one; core/trainer.py; bf16's first steps
with and without cuDNN's attention. encode: distinct texts of 63 tokens, end to end. query: one text
of 12 tokens. limit: the rate of the fastest large product in that precision; a step needs three
times the 21.2 million operations a token and those of attention."""

from __future__ import annotations

import argparse
import csv
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.gpu_parts import (  # noqa: E402
    Bench,
    check_replay,
    measure_cudnn,
    measure_encode,
    measure_peer,
    measure_query,
    measure_step,
    measure_whole,
    ours,
)
from benchmarks.texts import distinct_texts, example_pairs  # noqa: E402
from minilm_retriever import Encoder  # noqa: E402

MODEL = ROOT / "checkpoints" / "all-MiniLM-L6-v2"
ROWS = 100_000
PARTS = ("check", "step", "encode", "query", "peer", "cudnn")


def write_pairs(path: Path, rows: int) -> None:
    """The example's pairs, drawn with replacement."""
    drawn = random.Random(0).choices(example_pairs(), k=rows)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("query", "document"), *drawn])


def measure(bench: Bench, folder: Path) -> None:
    only = bench.options.only
    pairs = folder / "pairs.csv"
    write_pairs(pairs, ROWS if bench.on_gpu else 200)
    texts = distinct_texts(bench.options.texts, seed=5, median=46, spread=0.1)
    step = ("fp32", "tf32", "bf16") if bench.on_gpu else ("fp32",)
    if "check" in only:
        bench.part("replay", lambda: check_replay(bench, pairs))
    for precision in step if "step" in only else ():
        bench.part(f"step {precision}", lambda p=precision: measure_step(bench, pairs, p, "graphs"))
    for precision in ("fp32", "tf32", "fp16") if bench.on_gpu else ("fp32",):
        if "encode" in only:
            bench.part(f"encode {precision}", lambda p=precision: measure_encode(bench, p, texts))
        if "query" in only:
            bench.part(
                f"query {precision}", lambda p=precision: measure_query(bench, p, ours(bench, p))
            )
    for kind in ("launched", "plain") if "step" in only else ():
        bench.part(f"{kind} fp32", lambda k=kind: measure_step(bench, pairs, "fp32", k))
    for allowed in (False, True) if "cudnn" in only and bench.on_gpu else ():
        bench.part(
            f"bf16 {'with' if allowed else 'without'} cuDNN",
            lambda a=allowed: measure_cudnn(bench, pairs, a),
        )
    for half in (False, True) if "peer" in only and bench.on_gpu else ():
        bench.part(
            f"peer {'fp16' if half else 'fp32'}", lambda h=half: measure_peer(bench, texts, h)
        )
    for precision in ("bf16", "fp32") if bench.options.whole and bench.on_gpu else ():
        bench.part(f"whole {precision}", lambda p=precision: measure_whole(bench, pairs, p))


def describe(bench: Bench) -> dict[str, Any]:
    import transformers

    name = torch.cuda.get_device_name(bench.device) if bench.on_gpu else "no GPU"
    return {
        "card": name, "torch": torch.__version__, "transformers": transformers.__version__,
        "cpu threads": torch.get_num_threads(), "model": str(bench.options.model),
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", default=str(MODEL), help="a folder with the base model")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=5.5, help="no part begins after so many")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--texts", type=int, default=20_000)
    parser.add_argument("--queries", type=int, default=400)
    parser.add_argument("--whole", action="store_true", help="all steps too, by train.py")
    parser.add_argument("--prepare", metavar="DIR", help="only write a float16 copy of the model")
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "results" / "gpu.json"))
    options = parser.parse_args(arguments)
    if options.prepare:
        Encoder(options.model, device="cpu").save(options.prepare, dtype="float16")
        return 0
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print("bench_gpu: this machine has no GPU that torch can use", file=sys.stderr)
        return 2
    bench = Bench(options)
    about = describe(bench)
    print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        measure(bench, Path(folder))
    limits = {name: f"{peak / 1e12:.1f} TFLOP/s" for name, peak in bench.peaks.items()}
    print("limits:", ", ".join(f"{name} {limit}" for name, limit in limits.items()))
    report = {"about": about, "limits": limits, "results": bench.results}
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    Path(options.out).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
