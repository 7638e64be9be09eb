"""Hold this package against the programs that people have: `make clients`.

    python tests/reference/clients.py [--base checkpoints/all-MiniLM-L6-v2] [--python BIN/python] [--only WORD]

Makes an environment of examples/clients/requirements.txt and this package (.peers/clients; needs a
package index, once), and infinity one of its own, then
  1. serves the model, and compares what the openai client and LangChain return with Encoder.encode;
  2. exports the model, and compares onnxruntime, OpenVINO and fastembed over texts of 1 to 256 tokens;
  3. runs every snippet of examples/clients: it has to print what it says;
  4. has BEIR and MTEB judge our Encoder and sentence-transformers on the example: the same numbers;
  5. runs README's Python in an empty environment that has the wheel alone (wheel.py).
One line a check; exit status 1 if any fails, or could not be run."""

import argparse
import csv
import json
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SNIPPETS = ROOT / "examples" / "clients"
PRINTED = r"^ *print\(.*\)  # (.+)$"  # what a snippet says that it prints
BEIR = ROOT / "checkpoints" / "job-skills-beir"
TEXTS = ["He bakes bread.", "She repairs watches.", "", "שלום 👩‍🔧"]
INFINITY = ["infinity-emb[torch]==0.0.78", "torch==2.13.0", "sentence-transformers==3.4.1"]
INFINITY += ["transformers<5", "numpy<2", "click==8.1.8", "typer==0.12.5", "optimum<2"]
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", **os.environ}
ENVIRONMENT |= {"PYTHONPATH": str(ROOT), "ANONYMIZED_TELEMETRY": "False", "DO_NOT_TRACK": "1"}


class Report:
    """Prints a line a check, and counts those that failed."""

    def __init__(self) -> None:
        self.bad = 0

    def line(self, name: str, good: bool, figure: str) -> None:
        self.bad += not good
        print(f"{'ok ' if good else 'BAD'}  {name}: {' '.join(figure.split())[:150]}", flush=True)

    def run(self, name: str, command: list[Any]) -> str | None:
        """What a command prints; None, and a line, where it fails."""
        words = [str(word) for word in command]
        done = subprocess.run(words, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
        if done.returncode == 0:
            return done.stdout
        self.line(name, False, (done.stderr.strip().splitlines() or ["no message"])[-1])
        return None


def environment(name: str, requirements: list[str]) -> Path:
    """The interpreter of an environment with these, made where there is none."""
    folder = ROOT / ".peers" / name
    python, stamp = folder / "bin" / "python", folder / "requirements.txt"
    if not (stamp.exists() and stamp.read_text("utf-8") == "\n".join(requirements)):
        print(f"making .peers/{name} (some minutes) ...", flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        flags = os.environ.get("PIP_FLAGS", "").split()
        subprocess.run([*pip, *flags, *requirements], cwd=ROOT, check=True)
        stamp.write_text("\n".join(requirements), encoding="utf-8")
    return python


def serving(report: Report, python: Path, base: str) -> None:
    """1. `serve` and its clients."""
    from minilm_retriever import Encoder

    command = [sys.executable, "-m", "minilm_retriever", "serve", "--model", base]
    command += ["--port", "0", "--api-key", "zebra-7"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as server:
        address = server.stderr.readline().split("serving at ")[1].split()[0] + "v1"
        try:
            script = [python, HERE / "clients_of_serve.py", address, json.dumps(TEXTS)]
            answer = report.run("serve", script)
        finally:
            server.terminate()
    if answer is None:
        return
    expected, answers = Encoder.from_pretrained(base).encode(TEXTS), json.loads(answer)
    for name, vectors in answers["made"].items():
        same_as(report, f"serve: {name}", vectors, expected, 1e-6)
    for name, outcome in answers["raised"].items():
        report.line(f"serve: {name}", outcome == "ok", f"refused ({outcome})")


def same_as(report: Report, name: str, vectors: Any, expected: Any, most: float) -> None:
    import numpy as np

    difference = float(np.abs(np.array(vectors) - expected).max())
    report.line(name, difference <= most, f"difference {difference:.1e}")


def onnx(report: Report, python: Path, base: str, place: Path) -> Path:
    """2. `export` and the runtimes that open it; the folder."""
    import numpy as np

    from minilm_retriever import Encoder

    folder, words, made = place / "onnx", place / "texts.json", place / "made.npz"
    export = [sys.executable, "-m", "minilm_retriever", "export", base, "--onnx", folder]
    if report.run("export", export) is None:
        return folder
    known = [row["text"] for row in json.loads((HERE / "texts.json").read_text("utf-8"))]
    lengths = ["the " * count for count in (*range(1, 254, 3), 253, 254)]
    texts = [*(text for text in known if len(text) < 3000), *lengths]
    words.write_text(json.dumps(texts), encoding="utf-8")
    script = [python, HERE / "clients_of_onnx.py", folder, words, made]
    if report.run("export: opened", script) is not None:
        expected = Encoder.from_pretrained(base).encode(texts)
        for name, vectors in np.load(made, allow_pickle=False).items():
            same_as(report, f"export: {name}, {len(texts)} texts", vectors, expected, 1e-5)
    return folder


def snippets(report: Report, python: Path, folder: Path, only: str) -> None:
    """3. Every file of examples/clients prints what it says."""
    for path in sorted(SNIPPETS.glob("with_*.py")):
        if only not in path.name:
            continue
        if "sqlite_vec" in path.name and not hasattr(sqlite3.Connection, "enable_load_extension"):
            print(
                f"--   {path.name}: not run: this Python's sqlite3 loads no extensions", flush=True
            )
            continue
        own = environment("infinity", INFINITY) if "infinity" in path.name else python
        printed = report.run(path.name, [own, path, folder])
        if printed is not None:
            (expected,) = re.findall(PRINTED, path.read_text("utf-8"), re.M)
            last = (printed.strip().splitlines() or [""])[-1]
            report.line(path.name, last == expected, last)


def beir_folder() -> None:
    """The example as a BEIR folder."""
    rows = list(csv.DictReader((ROOT / "examples/job_skills/corpus.csv").open(encoding="utf-8")))
    asked = (ROOT / "examples/job_skills/unseen_wordings.csv").open(encoding="utf-8")
    ids = {row["skills"]: f"d{number}" for number, row in enumerate(rows)}
    queries = list(csv.DictReader(asked))
    files = {
        "corpus.jsonl": [{"_id": ids[r["skills"]], "title": "", "text": r["skills"]} for r in rows],
        "queries.jsonl": [
            {"_id": f"q{number}", "text": row["description"]} for number, row in enumerate(queries)
        ],
    }
    (BEIR / "qrels").mkdir(parents=True, exist_ok=True)
    for name, lines in files.items():
        (BEIR / name).write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    judged = [f"q{number}\t{ids[row['skills']]}\t1\n" for number, row in enumerate(queries)]
    (BEIR / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(judged), "utf-8")


def judges(report: Report, python: Path, base: str) -> None:
    """4. BEIR's and MTEB's numbers of ours and of sentence-transformers, and our own."""
    from minilm_retriever import Encoder
    from minilm_retriever.evaluation import evaluate_retrieval, read_beir

    made = report.run("judges", [python, HERE / "clients_judge.py", base, BEIR])
    if made is None:
        return
    scores = json.loads(made.strip().splitlines()[-1])  # by judge: ours, theirs
    own = evaluate_retrieval(read_beir(BEIR), Encoder(base).encode).metrics["ndcg@10"]
    scores["`evaluate`, beside MTEB"] = [own, scores["MTEB"][1]]
    for judge, (ours, theirs) in scores.items():
        figures = f"ours {ours:.6f}, sentence-transformers {theirs:.6f}"
        report.line(f"nDCG@10 by {judge}", abs(ours - theirs) <= 1e-5, figures)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default=str(ROOT / "checkpoints/all-MiniLM-L6-v2"))
    parser.add_argument("--python", type=Path, help="of an environment that has the clients")
    parser.add_argument("--only", default="", help="snippets whose names hold this, nothing else")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    wanted = ["-e", ".[onnx]", "-r", str(SNIPPETS / "requirements.txt")]
    python, report = args.python or environment("clients", wanted), Report()
    beir_folder()
    with tempfile.TemporaryDirectory() as place:
        if not args.only:
            serving(report, python, args.base)
        folder = onnx(report, python, args.base, Path(place))
        snippets(report, python, folder, args.only)
    if not args.only:
        judges(report, python, args.base)
        report.bad += subprocess.run([sys.executable, HERE / "wheel.py"], check=False).returncode
    return int(report.bad > 0)


if __name__ == "__main__":
    sys.exit(main())
