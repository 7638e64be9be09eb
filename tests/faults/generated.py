"""Faults that a generator makes: each is drawn from its number alone, and tried in a process with
limits of time and memory."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from minilm_retriever.errors import UserError
from minilm_retriever.storage import manifest
from tests.faults.commands import command
from tests.faults.processes import limited
from tests.faults.row import Outcome, Scene, of_text

HANG_SECONDS = 60.0
MEMORY_BYTES = 1 << 30  # more than a process has that does nothing
LONGEST_LINE = 2000

Case = Callable[[random.Random, Path], str]


def tried(scene: Scene, count: int, case: Case) -> Iterator[Outcome]:
    """case(generator, empty folder) for each of `count` faults: "survived" or "detected", and
    whatever else it returns or raises is silent."""

    def work(number: int) -> str:
        room = scene.room(f"case-{number % 4}")
        try:
            return case(random.Random(f"{scene.seed} {number}"), room)
        finally:
            shutil.rmtree(room, ignore_errors=True)

    for number, outcome in limited(work, count, seconds=HANG_SECONDS, memory=MEMORY_BYTES):
        yield of_text(outcome, f"fault {number} of seed {scene.seed}")


def outcome(work: Callable[[], Any]) -> str:
    """ "survived", or "detected" for a UserError of one line."""
    try:
        work()
    except UserError as fault:
        if "\n" in str(fault) or len(str(fault)) > LONGEST_LINE:
            return f"no line: {fault}"
        return f"detected {fault}"
    return "survived"


def ended(line: list[object]) -> tuple[str, str]:
    """How a command in this process ends, as `outcome` says it, and its stdout."""
    try:
        status, out, errors = command(*line)
    except SystemExit as usage:  # argparse
        return ("detected usage" if usage.code == 2 else f"exit {usage.code}"), ""
    lines = [said for said in errors if said.startswith("error: ")]
    if status == 0 and not lines:
        return "survived", out
    if status == 2 and len(lines) == 1 and lines[0] == errors[-1] and len(lines[0]) < LONGEST_LINE:
        return f"detected {lines[0]}", out
    return f"status {status}: {errors[-3:]}", out


def rewrite(folder: Path, key: str, info: Any) -> None:
    """A manifest over what is there now, right in every sum."""
    (folder / manifest.NAME).unlink(missing_ok=True)
    files = {path.name: manifest.entry(path) for path in folder.iterdir() if path.is_file()}
    (folder / manifest.NAME).write_bytes(manifest.to_bytes(files, {key: info}))
