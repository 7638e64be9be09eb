"""A file system of a few hundred kilobytes that is really full: jobs run into its end, and go on
once there is room."""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from minilm_retriever.storage import atomic_files, manifest
from minilm_retriever.training import checkpoint
from tests.faults.processes import run, warm_up
from tests.faults.row import Outcome, Row, Scene, Skipped, contents, judge, left_behind
from tests.faults.scenes import encode_flags, train_flags
from tests.faulty_disk import patch_module

ROOM = 6 << 20  # bytes: more than any of the jobs needs


@contextmanager
def small_file_system(place: Path) -> Iterator[Path]:
    """A tmpfs of its own; needs root, or a user namespace that may mount (the campaign asks for
    one)."""
    place.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(place)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Skipped(f"no small file system can be mounted: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def full_disks(scene: Scene, count: int) -> Iterator[Outcome]:
    """Training and encoding with little room, up to the error; then room is made, and the same
    command goes on."""
    undisturbed = scene.room("undisturbed")
    output = scene.place / "output"
    jobs = []
    for name, flags in (("train", train_flags), ("encode", encode_flags)):
        out = undisturbed / name
        warm_up(flags(scene.place, undisturbed / f"warm-{name}"))
        status, words = run(flags(scene.place, out), output)
        assert status == 0, words
        jobs.append((name, flags, result_of(out)))
    with small_file_system(scene.place / "small") as disk:
        for number in range(count):
            name, flags, expected = jobs[number % 2]
            for path in disk.iterdir():
                atomic_files.remove(path)
            room = scene.rng.randrange(8 << 10, 700 << 10)
            ballast = disk / "ballast"
            ballast.write_bytes(bytes(disk_free(disk) - room))
            out = disk / "out"
            status, words = run(flags(scene.place, out), output)
            where = f"{name} with {room >> 10} KiB left: "
            problem = check_full(out, status, words) if status else ""
            if not status and result_of(out) != expected:
                problem = "the output that seems made is not right"
            ballast.unlink()
            if status and not problem:
                again, words_again = run(flags(scene.place, out), output)
                if again or result_of(out) != expected:
                    problem = f"with room, the same command ends with {again}: {words_again[-300:]}"
                problem = problem or str(left_behind(disk) or "")
            yield judge(not problem, "detected" if status else "survived", where + problem)


def check_full(out: Path, status: int, words: str) -> str:
    """What is wrong after a full disk: the message, or what stands there."""
    errors = [line for line in words.splitlines() if line.startswith("error: ")]
    if status != 2 or len(errors) != 1 or "No space left" not in errors[0] or "Traceback" in words:
        return f"status {status}: {words[-300:]}"
    skipped = checkpoint.latest(Path(f"{out}.run")).skipped
    if out.exists() or skipped:
        return f"{out} exists, or states are not intact: {skipped}"
    return ""


def result_of(out: Path) -> object:
    """The weights, or every byte of the vectors; their manifest is right."""
    manifest.verify_folder(out)
    weights = out / "model.safetensors"
    return weights.read_bytes() if weights.exists() else contents(out)


def disk_free(disk: Path) -> int:
    statistics = os.statvfs(disk)
    return statistics.f_bavail * statistics.f_bsize


@contextmanager
def unheard() -> Iterator[None]:
    """Mutation: a failed write counts as done."""

    class Believing(io.FileIO):
        def write(self, data: Any) -> int:
            try:
                return super().write(data)
            except OSError:
                return len(data)

    with pytest.MonkeyPatch.context() as patch:
        patch_module(patch, "io", FileIO=Believing)
        yield


ROWS = (
    Row(
        "full-file-system",
        "a small file system that is really full, at random points of training and encoding",
        "a one-line error, the earlier checkpoint intact; with room the same command ends in the "
        "same bytes",
        24,
        full_disks,
        {"a refused write taken for done": unheard},
        sample=2,
        mutated=10,
        minutes=10,
    ),
)
