"""Fuzz targets: every reader of users' files, and every file that says what is in a folder, driven
by atheris.

See fuzz_target.py for what one of them does; `make faults` runs them all."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec

from tests.conftest import ROOT
from tests.faults.row import Outcome, Row, Scene, Skipped, patched
from tests.faults.seeds import SEEDS

TARGETS = tuple(SEEDS)
SECONDS_A_FAULT = 1.0


def fuzzed(scene: Scene, count: int) -> Iterator[Outcome]:
    """Every target for a share of `count` seconds; an outcome stands for a second without a
    finding."""
    yield from fuzz_all(scene, count, {})


def fuzz_all(scene: Scene, count: int, environment: dict[str, str]) -> Iterator[Outcome]:
    if find_spec("atheris") is None:
        raise Skipped("atheris is not installed: pip install 'minilm_retriever[fuzz]'")
    seconds = max(1, count // len(TARGETS))
    executions, coverage = {}, {}
    for kind in TARGETS:
        module = "tests.faults.fuzz_target"
        command = [sys.executable, "-m", module, kind, str(seconds), str(scene.seed)]
        mutated = {"FUZZ_MUTATION": "1"} if MUTATED else {}
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, cwd=ROOT,
            env={**os.environ, **environment, **mutated},
        )  # fmt: skip
        runs = re.findall(r"Done (\d+) runs|#(\d+)", done.stderr)
        executions[kind] = int(next((a or b for a, b in reversed(runs)), 0))
        coverage[kind] = int(next(reversed(re.findall(r"cov: (\d+)", done.stderr)), 0))
        if done.returncode:
            errors = [
                line
                for line in (done.stdout + done.stderr).splitlines()
                if re.match(r"\w*(Error|Exception|Other)\b|==\d+== ERROR", line.strip())
            ]
            yield Outcome("silent", f"{kind}: {' '.join(errors[:2]) or done.stderr[-300:]}")
        else:
            for _ in range(seconds):
                yield Outcome("survived")
    scene.notes |= {"executions": executions, "edges covered": coverage}


MUTATED = False


def readers_unguarded() -> object:
    """Mutation: the readers' errors are no UserErrors."""
    return patched((sys.modules[__name__], "MUTATED", True))


ROWS = (
    Row(
        "fuzz",
        f"seconds of fuzzing (atheris) over {', '.join(TARGETS)}",
        "read, or refused in one line that names the file",
        144,
        fuzzed,
        {"errors passed on raw": readers_unguarded},
        sample=0,
        mutated=17,
        minutes=20,
    ),
)
