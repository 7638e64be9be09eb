"""The whole story in a few minutes: fetch, fine-tune, compare, encode, search, from Python. `make
demo` runs this.

Each step is a command that you can run yourself; it is printed before it runs. What is there
already is used again."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
DATA = "examples/job_skills"
BASE, TUNED, VECTORS = (
    "checkpoints/all-MiniLM-L6-v2",
    "checkpoints/job-skills",
    "checkpoints/job-skills-vectors",
)
QUERIES = (
    "Keeps a passenger jet apart from all the others in the sky, by voice alone, from a dark room "
    "with radar screens.",
    "mends old violins and builds new ones",
    "Looks after people's teeth, scrapes off plaque and shows them how to brush.",
)


def run(*command: str) -> None:
    """Print a command and run it; the demo ends where one fails."""
    shown = " ".join(shlex.quote(part) for part in command)
    print(f"\n$ {shown}", flush=True)
    program = {"minilm-retriever": ["-m", "minilm_retriever"], "python": []}[command[0]]
    status = subprocess.run(
        [sys.executable, *program, *command[1:]], cwd=ROOT, check=False
    ).returncode
    if status:
        sys.exit(status)


def main() -> None:
    """Run the steps that are still to do."""
    began = time.monotonic()
    run("minilm-retriever", "fetch")
    if (ROOT / TUNED).exists():
        print(f"\n{TUNED} is there: not trained again (remove it to train anew)")
    else:
        data = ["--train", f"{DATA}/train.csv", "--eval", f"{DATA}/unseen_wordings.csv"]
        run("python", "train.py", *data, "--recipe", "robust", "--out", TUNED)
    for held_out in ("unseen_wordings", "unseen_occupations"):
        corpus = ["--corpus", f"{DATA}/corpus.csv"]
        models = [word for model in ("bm25", BASE, TUNED) for word in ("--model", model)]
        data = f"{DATA}/{held_out}.csv"
        run("minilm-retriever", "evaluate", data, *corpus, *models, "--general")
    if not (ROOT / VECTORS).exists():
        flags = ["--text", "skills", "--id", "title", "--model", TUNED, "--out", VECTORS]
        run("python", "encode.py", f"{DATA}/corpus.csv", *flags)
    run("minilm-retriever", "search", VECTORS, *QUERIES, "-k", "3", "--model", TUNED)
    run("python", "examples/retrieval.py")
    print(f"\ndone in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
