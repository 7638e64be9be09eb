"""What fine-tuning teaches and what it forgets: runs, seeds and shares side by side.

    python benchmarks/forgetting.py --data ROWS.jsonl --sts STSB.jsonl

ROWS.jsonl: `role`, `description` and `skills` in each line, with the frequencies of the published
data; they are drawn to 100,000 rows. STSB.jsonl: sentence1, sentence2, score. Each run is the
`train` command (passes: the same steps, with the weights after each pass kept); shares are measured
of the run's own weights. Own queries: texts on the duties of each role, written for this project
from roles and descriptions (benchmarks/job_duties.jsonl), and the roles' names; both to all lists
of skills. Or --own PAIRS. Models and measures are kept in --work, so a stopped command resumes, and
--table prints what is there; the table is Markdown."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch

from minilm_retriever import Encoder
from minilm_retriever.__main__ import main as run_command
from minilm_retriever.data import read_pairs
from minilm_retriever.data.pairs import read_scored_pairs
from minilm_retriever.data.texts import read_texts
from minilm_retriever.evaluation.bootstrap import mean_interval
from minilm_retriever.evaluation.evaluate import evaluate_retrieval, row_cosines
from minilm_retriever.evaluation.general import read_general
from minilm_retriever.evaluation.metrics import rank_correlation
from minilm_retriever.evaluation.tasks import RetrievalTask, retrieval_from_pairs
from minilm_retriever.pretrained.mixing import mix_weights
from minilm_retriever.storage import atomic_files
from minilm_retriever.training.config import TrainConfig, with_recipe
from minilm_retriever.training.prepare import prepare

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.reproduction import ROWS, draw  # noqa: E402

EXAMPLE = ROOT / "examples/job_skills"
DISTINCT = ["--distinct", "--false-negatives", "avoid"]
LARGE = [*DISTINCT, "--batch-size", "64", "--learning-rate", "1e-4", "--warmup-steps", "5"]
ROBUST = ["--recipe", "robust", "--mix", "1"]
RUNS: dict[str, list[str]] = {  # flags of train; --mix 1: shares are measured here
    "robust-unmixed": ROBUST,
    "printed-375": ["--max-steps", "375"],
    "batch-16-8-passes": [*DISTINCT, "--epochs", "8"],
    "not-near": [*ROBUST, "--stay-near", "0"],
    "one-direction": [*LARGE, "--epochs", "8"],
    "passes": [],  # of robust-unmixed: see train_passes
    "rate-2e-4": [*ROBUST, "--learning-rate", "2e-4"],
    "rate-5e-5": [*ROBUST, "--learning-rate", "5e-5"],
    "batch-128": [*ROBUST, "--batch-size", "128", "--learning-rate", "1.5e-4"],
    "all-in-a-batch": [*ROBUST, "--batch-size", "376", "--learning-rate", "2e-4"],
    "batch-16-3-passes": [*DISTINCT, "--epochs", "3"],
    "batch-16-16-passes": [*DISTINCT, "--epochs", "16"],
    "guide": [*ROBUST, "--guide"],
    "near-1": [*ROBUST, "--stay-near", "1"],
    "smoothing": [*ROBUST, "--label-smoothing", "0.1"],
    "robust": ["--recipe", "robust"],  # as it publishes
    "printed-whole": [],
}
USUAL = [run for run in RUNS if run != "printed-whole"]
SHARES = (1.0, 0.75, 0.5)
LAST_PASSES = 4  # whose weights are averaged
Result = dict[str, Any]  # name, figures, and whether each query's first document is right


class Point(NamedTuple):
    """What is measured: the mean of base + share * (folder - base) over folders."""

    name: str
    seed: int | str
    runs: Sequence[tuple[str, int]]  # the runs that make the folders, with their seeds
    folders: Sequence[str]
    share: float


def main(words: Sequence[str] | None = None) -> None:
    """Train and measure what is missing, then print the tables."""
    args = parse(words)
    work = Path(args.work)
    atomic_files.make_folder(work)
    measures = None if args.table else Measures(args)
    results = []
    for point in points(args):
        path = work / f"measured-{point.name}-{point.seed}.json".replace(" ", "-")
        if not path.exists() and measures is not None:
            for run, seed in point.runs:
                make(run, seed, args, work)
            folders = [str(work / folder) for folder in point.folders]
            result = {"name": point.name, **measures.of(folders, point.share)}
            atomic_files.write_json(path, result)
            figures = {key: value for key, value in result.items() if isinstance(value, float)}
            print(point.name, point.seed, figures, flush=True)
        if path.exists():
            results.append(json.loads(path.read_text("utf-8")))
    print(table(results) if results else "nothing is measured yet")


def points(args: argparse.Namespace) -> Iterator[Point]:
    """All lines of the table, in the order in which they are measured."""
    yield Point("base", "", [], [], 0)
    for run in args.runs:
        shares = (1.0,) if run == "robust" else SHARES
        for share in shares:
            named = run if len(shares) == 1 else f"{run}|{share:g}"
            for seed in args.seeds:
                made, folders = [(run, seed)], [f"{run}-{seed}"]
                if run == "passes":
                    named = f"mean of the last {LAST_PASSES} passes|{share:g}"
                    folders = [f"{run}-{seed}/{number}" for number in range(LAST_PASSES)]
                yield Point(named, seed, made, folders, share)
            if run == "robust-unmixed" and len(args.seeds) > 1:
                named, made = (
                    f"mean of {len(args.seeds)} runs|{share:g}",
                    [(run, s) for s in args.seeds],
                )
                yield Point(named, "", made, [f"{run}-{seed}" for seed in args.seeds], share)


def make(run: str, seed: int, args: argparse.Namespace, work: Path) -> None:
    """Train a run, unless it is there."""
    pairs, out = work / "pairs.csv", work / f"{run}-{seed}"
    if not pairs.exists():
        draw(Path(args.data), pairs, args.rows)
    words = ["--train", str(pairs), "--model", args.model, "--out", str(out), "--seed", str(seed)]
    words += ["--threads", str(args.threads), "--precision", args.precision]
    words += [] if args.max_steps is None else ["--max-steps", str(args.max_steps)]
    if run == "passes":
        train_passes(args, pairs, seed, out)
    elif not out.exists() and run_command(["train", *words, *RUNS[run]]):
        sys.exit(f"{run}, seed {seed}: stopped; the same command goes on")


def train_passes(args: argparse.Namespace, pairs: Path, seed: int, out: Path) -> None:
    """The weights of robust-unmixed after each of its last passes, as folders 0, 1, ..."""
    flags = {"train": (str(pairs),), "model": args.model, "out": str(out), "recipe": "robust"}
    flags |= {"seed": seed, "threads": args.threads, "precision": args.precision}
    flags |= {} if args.max_steps is None else {"max_steps": args.max_steps}
    if (out / str(LAST_PASSES - 1)).exists():
        return
    run = prepare(TrainConfig(**with_recipe(flags)))
    each = run.sampler.steps_per_epoch
    for step, batches in enumerate(run.batches(0, run.total)):
        run.trainer.step(step, batches)
        number = (step + 1 - run.total) // each + LAST_PASSES - 1
        if (step + 1) % each == 0 and number >= 0:
            Encoder(run.base).save(out / str(number), overwrite=True)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="JSONL: role, description, skills")
    parser.add_argument("--sts", required=True, help="scored pairs, such as STS-b dev")
    parser.add_argument("--own", help="pairs of own queries, in place of duties")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=USUAL)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--table", action="store_true", help="only print what was measured")
    parser.add_argument("--rows", type=int, default=ROWS, help="rows drawn")
    parser.add_argument("--max-steps", type=int, help="of each run, for a try")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", default=str(ROOT / "checkpoints/all-MiniLM-L6-v2"))
    parser.add_argument("--work", default=str(ROOT / "benchmarks/results/forgetting"))
    return parser.parse_args(words)


class Measures:
    """Own queries, the example, STS-b and agreement of a model."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.encoder = Encoder.from_pretrained(args.model, precision=args.precision)
        bert = self.encoder.model.encoder.bert
        self.base = {name: tensor.clone() for name, tensor in bert.state_dict().items()}
        self.tasks = dict(own_tasks(args.data, args.own))
        corpus = [record.text for record in read_texts(EXAMPLE / "corpus.csv", text="skills")]
        held_out = [
            read_pairs(EXAMPLE / f"unseen_{name}.csv", ["description", "skills"])
            for name in ("wordings", "occupations")
        ]
        texts = [sum((pairs.texts[i] for pairs in held_out), []) for i in (0, 1)]
        self.tasks["example"] = retrieval_from_pairs(*texts, corpus=corpus)
        self.general = read_general(None, self.encoder.encode)
        self.left, self.right, self.scores = read_scored_pairs(args.sts)

    def of(self, folders: Sequence[str], share: float) -> Result:
        """The figures of the mean of base + share * (folder - base) over the folders."""
        weights = self.base
        if folders:
            models = (Encoder.from_pretrained(f).model.encoder.bert.state_dict() for f in folders)
            mixed = [mix_weights(self.base, model, share) for model in models]
            weights = {n: torch.stack([m[n] for m in mixed]).mean(0) for n in self.base}
        self.encoder.model.encoder.bert.load_state_dict(weights)
        return self.figures()

    def figures(self) -> Result:
        encode, result = self.encoder.encode, Result()
        for name, task in self.tasks.items():
            per_query = evaluate_retrieval(task, encode).per_query
            result[name] = 100 * float(per_query["accuracy@1"].mean())
            result[f"{name} mrr"] = 100 * float(per_query["mrr@10"].mean())
            result[f"{name} hits"] = per_query["accuracy@1"].tolist()
        cosines = row_cosines(encode(self.left), encode(self.right))
        result["sts"] = 100 * rank_correlation(cosines, self.scores)
        result["agreement"] = self.general.measure(encode)
        return result


def own_tasks(data: str, own: str | None) -> Iterator[tuple[str, RetrievalTask]]:
    """Queries of the kind that is trained on, against all lists of skills."""
    rows = [json.loads(line) for line in Path(data).read_text("utf-8").splitlines()]
    pairs = {(row["description"], row["skills"]): row for row in rows}
    skills = [row["skills"] for row in pairs.values()]
    if own:
        yield "own", retrieval_from_pairs(*read_pairs(own).texts[:2], corpus=skills)
        return
    duties = {}
    for line in Path(__file__).with_name("job_duties.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        duties[row["role"], row["description"]] = row["duties"]
    texts = [duties[row["role"], row["description"][:60]] for row in pairs.values()]
    yield "duties", retrieval_from_pairs(texts, skills)
    yield "role", retrieval_from_pairs([row["role"] for row in pairs.values()], skills)


def table(results: Sequence[Result]) -> str:
    """Markdown: means over the seeds with their range, and the gain over the base model, paired by
    query."""
    names = [name for name, value in results[0].items() if isinstance(value, float)]
    lines = [f"| run | seeds | {' | '.join(names)} |", "|" + "---|" * (len(names) + 2)]
    gains = ["", "| run | gain in accuracy@1 over the base model, 95 % interval |", "|---|---|"]
    for name in dict.fromkeys(result["name"] for result in results):
        of_run = [result for result in results if result["name"] == name]
        cells = [spread([result[key] for result in of_run]) for key in names]
        shown = name.replace("|", ", share ")
        lines.append(f"| {shown} | {len(of_run)} | {' | '.join(cells)} |")
        if name == "base":
            continue
        parts = []
        for key in (key for key in results[0] if key.endswith(" hits")):
            hits = np.mean([result[key] for result in of_run], axis=0)
            gain = mean_interval(100 * (hits - np.array(results[0][key])))
            bounds = f"[{gain.low:+.1f}, {gain.high:+.1f}]"
            parts.append(f"{key.removesuffix(' hits')} {gain.mean:+.1f} {bounds}")
        gains.append(f"| {shown} | {'; '.join(parts)} |")
    return "\n".join([*lines, *gains])


def spread(values: Sequence[float]) -> str:
    digits = 4 if max(values) <= 1 else 1
    mean = f"{fmean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    main()
