"""A process that dies, or a disk that fails, at every file operation of the jobs in jobs.py."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from minilm_retriever.errors import UserError
from minilm_retriever.storage import atomic_files, atomic_folders
from tests.faults.jobs import JOBS, Job
from tests.faults.row import Outcome, Row, Scene, judge, patched
from tests.faulty_disk import Dead, FaultyDisk

WAYS = ("before", "half", "after")


REFUSALS = (errno.ENOSPC, errno.EIO, errno.EACCES)


def operations(job: Job) -> int:
    """How many file operations the undisturbed work has."""
    job.prepare()
    with FaultyDisk().installed() as disk:
        job.act()
    return len(disk.log)


def crashes(scene: Scene, count: int) -> Iterator[Outcome]:
    """Death before, in the middle of and after each operation of each job."""
    jobs = [make(scene) for make in JOBS]
    numbers = {job.name: operations(job) for job in jobs}
    scene.notes["file operations"] = numbers
    faults = [(job, how, at) for job in jobs for how in WAYS for at in range(numbers[job.name])]
    for job, how, at in chosen(scene, faults, count):
        job.prepare()
        with FaultyDisk(at, how).installed() as disk, suppress(Dead):
            job.act()
        problem = problem_of(job)
        last = disk.log[-1]
        yield judge(
            not problem,
            "survived",
            f"{job.name}: {how} operation {at}, {last[0]} {last[1][:1]}: {problem}",
        )


def refusals(scene: Scene, count: int) -> Iterator[Outcome]:
    """A full disk, a failing one and a forbidden one at each operation, once and for good."""
    jobs = [make(scene) for make in JOBS]
    numbers = {job.name: operations(job) for job in jobs}
    scene.notes["file operations"] = numbers
    faults = [
        (job, reason, stuck, at)
        for job in jobs
        for reason in REFUSALS
        for stuck in (False, True)
        for at in range(numbers[job.name])
    ]
    for job, reason, stuck, at in chosen(scene, faults, count):
        job.prepare()
        raised: BaseException | None = None
        with FaultyDisk(at, reason, stuck).installed() as disk:
            try:
                job.act()
            except Exception as fault:
                raised = fault
        operation = disk.log[min(at, len(disk.log) - 1)]
        where = f"{job.name}: {errno.errorcode[reason]} at {at}, stuck {stuck}, {operation}"
        loud = raised is None or (isinstance(raised, UserError) and "\n" not in str(raised))
        problem = "" if loud else f"{type(raised).__name__}: {raised}"
        problem = problem or problem_of(job)
        yield judge(not problem, "detected" if raised else "survived", f"{where[:200]}: {problem}")


def problem_of(job: Job) -> str:
    """What is wrong right after a fault, or after the next run."""
    try:
        return job.problem() or job.finish()
    except UserError as fault:
        return str(fault)


def chosen(scene: Scene, faults: list[Any], count: int) -> list[Any]:
    """All of them, or a sample where fewer are asked for."""
    return faults if count >= len(faults) else scene.rng.sample(faults, count)


@contextmanager
def in_place() -> Iterator[None]:
    """Mutation: folders are written in place, not staged and renamed."""

    @contextmanager
    def staged_folder(path: Path, *, overwrite: bool = False, **_: object) -> Iterator[Path]:
        if Path(path).exists():
            atomic_files.remove(Path(path))
        atomic_files.make_folder(path)
        yield Path(path)
        atomic_folders.write_manifest(path)

    with patched((atomic_folders, "staged_folder", staged_folder)):
        yield


def raw_errors() -> object:
    """Mutation: an OSError is raised as it is."""

    @contextmanager
    def bare(path: object) -> Iterator[None]:
        yield

    return patched((atomic_files, "user_errors", bare))


def nothing_cleaned() -> object:
    """Mutation: leftovers of dead processes are never removed."""
    return patched((atomic_files, "clean_stale", lambda *_: []))


ROWS = (
    Row(
        "crash-at-every-operation",
        "death before, in the middle of and after every file operation of save, rotate, publish, "
        "train and encode",
        "old or new, never neither, never mixed",
        900,
        crashes,
        {"folders filled in place": in_place, "leftovers not cleaned": nothing_cleaned},
        sample=16,
        mutated=16,
        minutes=30,
    ),
    Row(
        "refusal-at-every-operation",
        "ENOSPC, EIO and EACCES at every file operation, once and for good",
        "a one-line error, the earlier checkpoint intact, leftovers cleaned by the next run",
        1800,
        refusals,
        {"errors passed on raw": raw_errors},
        sample=16,
        mutated=10,
        minutes=30,
    ),
)
