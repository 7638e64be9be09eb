"""What a user gets who has no checkout: `make clients`.

    python tests/reference/wheel.py [--place FOLDER]

Builds the wheel, installs it with its dependencies alone into an empty environment, and, as a user
who is not root, in a folder that holds nothing but the example's data: fetches the base model, runs
every Python block of README.md, and the commands of the Dockerfile. One line a check; exit status 1
if any fails."""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
NOBODY = 65534


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--place", type=Path, help="where to work (default: a temporary folder)")
    args = parser.parse_args()
    place = args.place or Path(tempfile.mkdtemp(prefix="wheel-"))
    place.mkdir(parents=True, exist_ok=True)
    python = install(place)
    try:
        return check(python, place / "home")
    finally:
        if args.place is None:
            shutil.rmtree(place)


def install(place: Path) -> Path:
    """The interpreter of an environment that has the wheel and what it needs, and [serve]."""
    pip = ["-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run(
        [sys.executable, *pip, "wheel", "--no-deps", "--wheel-dir", place, ROOT], check=True
    )
    subprocess.run([sys.executable, "-m", "venv", place / "venv"], check=True)
    (wheel,) = place.glob("*.whl")
    python = place / "venv" / "bin" / "python"
    wanted = [*os.environ.get("PIP_FLAGS", "").split(), "-c", ROOT / "constraints.txt"]
    subprocess.run([python, *pip, "install", *wanted, f"{wheel}[serve]"], check=True)
    return python


def check(python: Path, home: Path) -> int:
    """Run all of it in `home`; how many failed."""
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(ROOT / "examples/job_skills", home / "examples/job_skills")
    program = python.with_name("minilm-retriever")
    if os.geteuid() == 0:
        for path in (home, *home.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
        for path in (home.parent, *home.parent.parents[:-1]):
            path.chmod(path.stat().st_mode | 0o055) if path.owner() == "root" else None
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    model = "checkpoints/all-MiniLM-L6-v2"
    corpus = "examples/job_skills/corpus.csv"
    steps: list[tuple[str, list[object]]] = [
        ("--version", [program, "--version"]),
        ("fetch", [program, "fetch"]),
        *((f"README's Python, block {n}", [python, "-c", b]) for n, b in enumerate(blocks, 1)),
        ("encode", [program, "encode", corpus, "--text", "skills", "--model", model, "--out", "v"]),
        ("search", [program, "search", "v", "looks after people's teeth", "-k", "1"]),
        ("a plain mistake is one line", [program, "search", "nowhere", "a"]),
    ]
    failed = 0
    for name, command in steps:
        user = {"user": NOBODY, "group": NOBODY} if os.geteuid() == 0 else {}
        environment = {"HOME": str(home), "PATH": os.environ["PATH"]}
        done = subprocess.run(
            command, cwd=home, env=environment, capture_output=True, text=True, **user
        )
        wanted = 2 if "mistake" in name else 0
        good = done.returncode == wanted and "Traceback" not in done.stderr
        failed += not good
        last = [*(done.stdout if good else done.stderr).strip().splitlines(), ""][0 if good else -1]
        print(f"{'ok ' if good else 'BAD'}  wheel, {name}: {last[:100]}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main() > 0)
