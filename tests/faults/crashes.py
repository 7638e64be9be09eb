"""A process that dies, or a disk that fails, at every single file operation of saving, rotating and
publishing."""

from __future__ import annotations

import errno
import io
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minilm_retriever.encoder import Encoder
from minilm_retriever.encoding.config import EncodeConfig
from minilm_retriever.encoding.encode_files import encode_files
from minilm_retriever.errors import UserError
from minilm_retriever.storage import atomic_files, atomic_folders, manifest
from minilm_retriever.training import checkpoint
from minilm_retriever.training.checkpoint import Position
from minilm_retriever.training.run import train
from tests.faults.row import Outcome, Row, Scene, contents, judge, left_behind, patched
from tests.faults.scenes import texts_file, tiny_model, train_config
from tests.faulty_disk import Dead, FaultyDisk

WAYS = ("before", "half", "after")
REFUSALS = (errno.ENOSPC, errno.EIO, errno.EACCES)


@dataclass
class Job:
    """Work whose file operations are disturbed one by one."""

    name: str
    prepare: Callable[[], object]
    act: Callable[[], object]
    problem: Callable[
        [], str
    ]  # what is wrong right after a fault; "" where old or new stands, whole
    finish: Callable[
        [], str
    ]  # what is wrong once the next run has done its work, leftovers included


def saving(scene: Scene) -> Job:
    """A state is written beside two others, and the oldest go."""
    place = scene.room("saving")
    encoder = Encoder.from_pretrained(tiny_model(scene.place), device="cpu").model.encoder
    optimizer = torch.optim.AdamW(encoder.parameters(), fused=True)
    for parameter in encoder.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()

    def save(into: Path, step: int) -> Path:
        torch.manual_seed(step)  # a state holds that of the random generators
        return checkpoint.save_state(into, encoder, optimizer, Position(step=step))

    states = {f"step-{step:08d}": contents(save(place / "made", step)) for step in (1, 2, 3)}
    run = place / "run"

    def prepare() -> None:
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir()
        for step in (1, 2):
            shutil.copytree(place / "made" / f"step-{step:08d}", run / f"step-{step:08d}")

    def act() -> None:
        save(run, 3)
        checkpoint.rotate(run, 1)

    def problem() -> str:
        newest, skipped = checkpoint.latest(run)
        if newest is None or newest.name not in ("step-00000002", "step-00000003") or skipped:
            return f"the newest state is {newest}, {skipped} are not intact"
        mixed = [step.name for step in run.glob("step-*") if contents(step) != states[step.name]]
        return f"{mixed} hold other bytes" if mixed else ""

    def finish() -> str:
        atomic_files.clean_stale(run)
        act()
        names = {path.name for path in run.iterdir()}
        return "" if names == {"step-00000003"} else f"{sorted(names)} stand there in the end"

    return Job("save and rotate", prepare, act, problem, finish)


def publishing(scene: Scene) -> Job:
    """A model replaces another."""
    place = scene.room("publishing")
    out = place / "here" / "out"
    old, new = (Encoder.from_pretrained(tiny_model(scene.place), device="cpu") for _ in range(2))
    with torch.no_grad():
        next(new.model.encoder.parameters()).add_(1.0)
    old.save(place / "old")
    new.save(place / "new")
    known = [contents(place / "old"), contents(place / "new")]

    def prepare() -> None:
        shutil.rmtree(out.parent, ignore_errors=True)
        shutil.copytree(place / "old", out)

    def problem() -> str:
        atomic_folders.recover(out)
        return (
            ""
            if out.exists() and contents(out) in known
            else "neither the old model nor the new one stands there"
        )

    def finish() -> str:
        atomic_files.clean_stale(out.parent, out.name)
        new.save(out, overwrite=True)
        left = left_behind(out.parent)
        return (
            f"{left} are left"
            if left
            else ""
            if contents(out) == known[1]
            else "the new model is not there"
        )

    return Job(
        "publish over an old model", prepare, lambda: new.save(out, overwrite=True), problem, finish
    )


def whole_run(
    scene: Scene, name: str, act: Callable[[Path], object], result: Callable[[Path], Any]
) -> Job:
    """A run from its first file to its published output; the same command goes on after the
    fault."""
    place = scene.room(name)
    undisturbed = place / "alone" / "out"  # as far from its model: the path to it is kept
    act(undisturbed)
    expected = result(undisturbed)
    out = place / "here" / "out"

    def prepare() -> None:
        shutil.rmtree(out.parent, ignore_errors=True)

    def problem() -> str:
        atomic_folders.recover(out)
        broken = checkpoint.latest(Path(f"{out}.run")).skipped
        if broken:
            return f"{broken} are not intact"
        return (
            "" if not out.exists() or result(out) == expected else "a half-made output stands there"
        )

    def finish() -> str:
        try:
            act(out)
        except UserError as error:
            if "is already finished" not in str(error):
                return f"the same command does not go on: {error}"
            Path(f"{out}.run").exists() and shutil.rmtree(f"{out}.run")
        left = left_behind(out.parent)
        return (
            f"{left} are left" if left else "" if result(out) == expected else "the result differs"
        )

    return Job(name, prepare, lambda: act(out), problem, finish)


def training(scene: Scene) -> Job:
    """Two steps, each saved, and the published model."""

    def act(out: Path) -> None:
        with redirect_stderr(io.StringIO()):
            train(train_config(scene.place, out, steps=2, save=1, keep=1))

    def result(out: Path) -> object:
        manifest.verify_folder(out)
        return (out / "model.safetensors").read_bytes()

    return whole_run(scene, "train", act, result)


def encoding(scene: Scene) -> Job:
    """Two shards and the published folder."""
    source, model = str(texts_file(scene.place, 3)), str(tiny_model(scene.place))

    def act(out: Path) -> None:
        with redirect_stderr(io.StringIO()):
            encode_files(
                EncodeConfig(
                    inputs=(source,),
                    model=model,
                    out=str(out),
                    shard_size=2,
                    threads=1,
                    device="cpu",
                )
            )

    return whole_run(scene, "encode", act, contents)


JOBS = (saving, publishing, training, encoding)


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
