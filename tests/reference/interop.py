"""Hold this project and sentence-transformers 3.4.1 and 6.2.0 against each other: `make interop`.

    python tests/reference/interop.py [--base checkpoints/all-MiniLM-L6-v2] [--folder checkpoints/MINE ...] [--quick]

Makes each peer an environment of its own (.peers/st3, .peers/st6; needs a package index, once),
then
  1. makes every committed fixture anew, compares, and holds the reference loop against the new ones;
  2. opens our folders (the base model saved by our Encoder, and each --folder) in both peers and in plain transformers;
  3. opens the base model as each peer saves it with our Encoder;
  4. opens folders drawn at random, which the peers write, and the base model in the variations of
     tests/variations.py, with our Encoder, and each as ours saves it with the peers.
One line a check, a table at the end; exit status 1 if any check fails. --quick leaves out training
(the long part of 1). Standard library only: what needs more runs as a process in the environment
that has it."""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PEERS = {"st3": "sentence-transformers 3.4.1", "st6": "sentence-transformers 6.2.0"}
# On a busy machine threads that wait by spinning make torch several times slower; numbers are the
# same.
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
INPUTS = ("reference/texts.json", "reference/pairs.json", "tiny_vocab.txt")


@dataclass(frozen=True)
class Result:
    where: str
    good: bool
    check: str
    figure: str

    def __str__(self) -> str:
        return (
            f"{'ok' if self.good else 'FAILED':6}  {self.where:27}  {self.check:62}  {self.figure}"
        )


class Report:
    """Runs scripts, prints their checks as they come, and keeps them for the table."""

    def __init__(self) -> None:
        self.results: list[Result] = []

    def add(self, where: str, good: bool, check: str, figure: str) -> None:
        self.results.append(Result(where, good, check, figure))
        print(self.results[-1], flush=True)

    def script(self, where: str, python: Path, name: str, *arguments: str | Path) -> None:
        """Run one of the scripts beside this one; without a line of its own that says what failed,
        its end is it."""
        command = [str(python), str(HERE / name), *map(str, arguments)]
        start = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
        lines = [line.split("\t") for line in done.stdout.splitlines()]
        checks = [line for line in lines if len(line) == 3 and line[0] in ("ok", "FAILED")]
        for verdict, check, figure in checks:
            self.add(where, verdict == "ok", check, figure)
        explained = any(verdict == "FAILED" for verdict, _, _ in checks)
        if done.returncode == 0 and not checks:
            self.add(where, True, f"{name} ran", f"{time.monotonic() - start:.0f} s")
        elif done.returncode != 0 and not explained:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            self.add(where, False, f"{name} ran", f"exit status {done.returncode}: {last}")


def peer_python(peer: str) -> Path:
    """The Python of a peer's environment, which is made unless it stands there with the same
    requirements."""
    folder, requirements = ROOT / ".peers" / peer, HERE / f"requirements-{peer}.txt"
    python, installed = folder / "bin" / "python", folder / "installed-requirements.txt"
    if not (installed.exists() and installed.read_bytes() == requirements.read_bytes()):
        print(f"making .peers/{peer} ({PEERS[peer]})", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", "-r", str(requirements)], check=True
        )
        installed.write_bytes(requirements.read_bytes())
    return python


def compare_inputs(report: Report, scratch: Path) -> None:
    """texts.json, pairs.json and tiny_vocab.txt come out of their script byte for byte."""
    report.script("standard library", Path(sys.executable), "make_inputs.py", "--out", scratch)
    for name in INPUTS:
        same = (scratch / name).exists() and (scratch / name).read_bytes() == (
            HERE.parent / name
        ).read_bytes()
        report.add("standard library", same, name, "equal" if same else "different")


def compare_fixtures(
    report: Report, pythons: dict[str, Path], base: Path, scratch: Path, quick: bool
) -> None:
    """Both peers make the embeddings; each makes its own training runs."""
    for peer, python in pythons.items():
        made = scratch / f"made-{peer}"
        report.script(PEERS[peer], python, "make_embeddings.py", "--model", base, "--out", made)
        if not quick:
            report.script(PEERS[peer], python, "make_training.py", "--model", base, "--out", made)
        if peer == "st6":
            report.script(PEERS[peer], python, "make_losses.py", "--out", made)
            report.script(PEERS[peer], python, "migration.py", "--compare")
        report.script(PEERS[peer], python, "compare_fixtures.py", "--made", made)
        if not quick:
            report.script(
                "this project", Path(sys.executable), "replay_fixtures.py", "--made", made
            )


def exchange_folders(
    report: Report, pythons: dict[str, Path], base: Path, folders: list[Path], scratch: Path
) -> None:
    """Ours in theirs, theirs in ours."""
    ours = Path(sys.executable)
    saved = scratch / "saved-by-us"
    report.script("this project", ours, "our_embeddings.py", "--model", base, "--save", saved)
    for i, folder in enumerate([saved, *folders]):
        expected = scratch / f"ours-{i}.npz"
        report.script(
            "this project", ours, "our_embeddings.py", "--model", folder, "--out", expected
        )
        for peer, python in pythons.items():
            report.script(
                PEERS[peer], python, "check_folder.py", "--folder", folder, "--expected", expected
            )
    for peer, python in pythons.items():
        saved = scratch / f"saved-by-{peer}"
        report.script(PEERS[peer], python, "check_folder.py", "--folder", base, "--save", saved)
        expected = HERE / "embeddings.npz"
        report.script(
            "this project", ours, "our_embeddings.py", "--model", saved, "--expected", expected
        )


def compare_drawn(
    report: Report, pythons: dict[str, Path], base: Path, count: int, scratch: Path
) -> None:
    """Every folder drawn at random, and then as ours writes it, opens alike or is refused."""
    ours, drawn = Path(sys.executable), scratch / "drawn"
    for peer, python in pythons.items():
        made = ("--count", str(count), "--out", drawn)
        report.script(PEERS[peer], python, "make_folders.py", *made)
    report.script(PEERS["st6"], pythons["st6"], "make_folders.py", "--real", base, "--out", drawn)
    for name, more in (("model", ("--save", "saved")), ("saved", ())):
        folders = ("--folders", drawn, "--name", name)
        for peer, python in pythons.items():
            report.script(PEERS[peer], python, "folder_vectors.py", *folders)
        report.script("this project", ours, "our_folders.py", *folders, *more)
    for peer, python in pythons.items():
        known = HERE / "variations.npz"
        report.script(PEERS[peer], python, "make_variations.py", "--compare", known)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--base", type=Path, default=ROOT / "checkpoints" / "all-MiniLM-L6-v2", help="base model"
    )
    parser.add_argument(
        "--folder", type=Path, action="append", default=[], help="a folder that train.py wrote"
    )
    parser.add_argument(
        "--quick", action="store_true", help="do not make the training fixtures anew"
    )
    parser.add_argument("--count", type=int, default=80, help="folders drawn for each peer")
    args = parser.parse_args()
    base, folders = args.base.resolve(), [folder.resolve() for folder in args.folder]
    for folder in (base, *folders):
        if not (folder / "modules.json").exists():
            raise SystemExit(f"{folder}: no model folder (it has no modules.json)")

    report = Report()
    pythons = {peer: peer_python(peer) for peer in PEERS}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        compare_inputs(report, scratch / "inputs")
        exchange_folders(report, pythons, base, folders, scratch)
        compare_drawn(report, pythons, base, args.count, scratch)
        compare_fixtures(report, pythons, base, scratch, args.quick)
    failed = [result for result in report.results if not result.good]
    print(f"\n{len(report.results)} checks, {len(failed)} failed", *failed, sep="\n")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
