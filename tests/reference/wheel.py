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


def interpreter() -> str:
    """This one, or the system's where others than root cannot run this one."""
    names = (sys.executable, "/usr/bin/python3")
    return next((name for name in names if is_open(Path(name).resolve())), sys.executable)


def is_open(path: Path) -> bool:
    """Whether every user reaches a file."""
    return path.exists() and all(parent.stat().st_mode & 0o001 for parent in path.parents)


def install(place: Path) -> Path:
    """The interpreter of an environment that has the wheel and what it needs, and [serve]."""
    pip = ["-m", "pip", "--disable-pip-version-check", "--quiet"]
    # A checkout on the path would count as installed.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    build = [sys.executable, *pip, "wheel", "--no-deps", "--wheel-dir", place, ROOT]
    subprocess.run(build, check=True, env=environment)
    subprocess.run([interpreter(), "-m", "venv", place / "venv"], check=True, env=environment)
    (wheel,) = place.glob("*.whl")
    python = place / "venv" / "bin" / "python"
    wanted = [*os.environ.get("PIP_FLAGS", "").split(), "-c", ROOT / "constraints.txt"]
    subprocess.run(
        [python, *pip, "install", *wanted, f"{wheel}[serve]"], check=True, env=environment
    )
    return python


def check(python: Path, home: Path) -> int:
    """Run all of it in `home`; how many failed."""
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(ROOT / "examples/job_skills", home / "examples/job_skills")
    program = python.with_name("minilm-retriever")
    home.parent.chmod(0o755)
    other = os.geteuid() == 0 and is_open(python.resolve())
    if other:
        for path in (home, *home.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
    user = {"user": NOBODY, "group": NOBODY} if other else {}
    print(f"as {'another user' if user else 'this user'}, on {python.resolve()}", flush=True)
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
        environment = {"HOME": str(home), "PATH": os.environ["PATH"], "OMP_WAIT_POLICY": "PASSIVE"}
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
