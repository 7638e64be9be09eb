"""SIGKILL at random times: real processes of train.py and encode.py, and beside them a loop that
saves in place."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from minilm_retriever.encoding import resumable_output
from minilm_retriever.errors import UserError
from minilm_retriever.pretrained.model_folder import load_pretrained
from minilm_retriever.storage import atomic_folders, manifest
from minilm_retriever.training import checkpoint
from tests.faults.processes import finished, fresh, patient, start, wait_until, warm_up
from tests.faults.row import Outcome, Row, Scene, contents, judge, patched
from tests.faults.scenes import encode_flags, tiny_model, train_flags

# One in so many kills strikes a process that was started anew, interpreter and imports included.
FRESH_SHARE = 10


@dataclass
class Job:
    """A command that is killed again and again, and what its result has to be."""

    flags: Callable[[Path], list[str]]
    script: str
    result: Callable[[Path], object]  # what is compared: bytes of the output
    broken: Callable[[Path], str]  # what is unusable after a kill, "" for nothing
    begun: Callable[[Path], bool]  # whether the work itself is under way


def kills(scene: Scene, count: int, job: Job) -> Iterator[Outcome]:
    """`count` kills. A result takes one to three of them; each of these shares the result's
    outcome."""
    output = scene.place / "output"
    warm_up(job.flags(scene.room("whole") / "out"))
    began = time.monotonic()
    whole = scene.room("whole") / "out"
    status = finished(start(job.flags(whole), output))
    length = time.monotonic() - began
    assert status == 0, output.read_text("utf-8")
    expected = job.result(whole)
    scene.notes |= {
        "seconds of an undisturbed run": round(length, 2),
        "fresh processes": 0,
        "results": 0,
    }
    done = 0
    while done < count:
        room = scene.room("killed")
        out, broken, hits = room / "out", "", 0
        for attempt in range(scene.rng.choice((1, 1, 2, 3))):
            share = scene.rng.uniform(0, 1 / (attempt + 1))
            anew = count >= 50 and (done + hits) % FRESH_SHARE == 0
            scene.notes["fresh processes"] += anew
            wait = share * length
            hit = (
                killed_fresh(job, out, output, scene.rng.uniform(0, length))
                if anew
                else killed(job, out, output, wait)
            )
            hits += hit
            broken = broken or job.broken(out)
            if not hit or done + hits >= count:
                break
        if not hits:
            continue
        problem = broken or goes_on(job, out, output, expected)
        scene.notes["results"] += 1
        for _ in range(hits):
            yield judge(not problem, "survived", problem)
        done += hits


def killed(job: Job, out: Path, output: Path, wait: float) -> bool:
    """Whether the kill struck the command before its end."""
    child = start(job.flags(out), output)
    time.sleep(wait)
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    return finished(child) == -signal.SIGKILL


def killed_fresh(job: Job, out: Path, output: Path, wait: float) -> bool:
    """The same for a new process, a while after it has begun its work."""
    process = fresh(job.script, job.flags(out)[1:], output)
    wait_until(lambda: process.poll() is not None or job.begun(out), 300)
    with suppress(subprocess.TimeoutExpired):
        process.wait(wait)
    process.kill()
    return process.wait() == -signal.SIGKILL


def goes_on(job: Job, out: Path, output: Path, expected: object) -> str:
    """What is wrong with the result once the same command has run to its end, "" for nothing."""
    if not out.exists() or Path(f"{out}.run").exists():
        status = patient(start(job.flags(out), output), 300)
        # A run that was killed after publishing has nothing left to do, and says so.
        if status not in (0, 2) or (
            status == 2 and "is already finished" not in output.read_text("utf-8")
        ):
            return f"the resumed run ended with {status}: {output.read_text('utf-8')[-300:]}"
    return "" if job.result(out) == expected else "the result differs from the undisturbed run's"


# --- training -------------------------------------------------------------------------------------


def weights_of(out: Path) -> object:
    """The published weights; their folder is whole."""
    try:
        manifest.verify_folder(out)
        load_pretrained(out)
    except UserError as fault:
        return str(fault)
    return (out / "model.safetensors").read_bytes()


def broken_state(out: Path) -> str:
    """A step folder that is there and not intact, or a published model that is not."""
    skipped = checkpoint.latest(Path(f"{out}.run")).skipped
    if out.exists():
        try:
            manifest.verify_folder(out)
        except UserError as fault:
            return str(fault)
    return "; ".join(reason for _, reason in skipped)


def train_kills(scene: Scene, count: int) -> Iterator[Outcome]:
    """Kills of training, with a state after every step and rotation down to two."""
    job = Job(
        flags=lambda out: train_flags(scene.place, out),
        script="train.py",
        result=weights_of,
        broken=broken_state,
        begun=lambda out: Path(f"{out}.run/run.json").exists(),
    )
    yield from kills(scene, count, job)
    if count >= 20:
        scene.notes["the same kills against torch.save in place"] = in_place(scene, count)


def in_place(scene: Scene, count: int) -> dict[str, int]:
    """Kills of a plain loop, which saves a checkpoint over the last one: how many of them leave it
    unreadable."""
    path = scene.room("plain") / "checkpoint.pt"
    tensors = {
        name: t.clone()
        for name, t in load_pretrained(tiny_model(scene.place)).encoder.state_dict().items()
    }
    state = {"model": tensors, "exp_avg": tensors, "exp_avg_sq": tensors}
    unusable = 0
    for _ in range(count):
        child = os.fork()
        if child == 0:
            while True:
                torch.save(state, path)
        wait_until(path.exists)
        time.sleep(scene.rng.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        finished(child)
        try:
            torch.load(path, weights_only=True)
        except Exception:
            unusable += 1
    return {"killed": count, "unusable": unusable}


@contextmanager
def states_in_place() -> Iterator[None]:
    """Mutation: a state is written in place, file by file."""

    @contextmanager
    def staged_folder(path: Path, **_: object) -> Iterator[Path]:
        Path(path).mkdir(exist_ok=True)
        yield Path(path)
        atomic_folders.write_manifest(path)

    with patched((checkpoint.atomic_folders, "staged_folder", staged_folder)):
        yield


def no_random_state() -> object:
    """Mutation: the random generators are not restored."""
    return patched((checkpoint, "restore_random", lambda folder: None))


# --- encoding -------------------------------------------------------------------------------------


def vectors_of(out: Path) -> object:
    """Every byte of the output."""
    return contents(out)


def broken_vectors(out: Path) -> str:
    """A finished output that is not whole."""
    if not out.exists():
        return ""
    try:
        manifest.verify_folder(out)
    except UserError as fault:
        return str(fault)
    return ""


def encode_kills(scene: Scene, count: int) -> Iterator[Outcome]:
    """Kills of encode.py."""
    yield from kills(
        scene,
        count,
        Job(
            flags=lambda out: encode_flags(scene.place, out),
            script="encode.py",
            result=vectors_of,
            broken=broken_vectors,
            begun=lambda out: Path(f"{out}.run/unfinished/run.json").exists(),
        ),
    )


@contextmanager
def shards_on_trust() -> Iterator[None]:
    """Mutation: a shard's record is written before its files, and trusted."""
    add = resumable_output.UnfinishedRun.add

    def early(self, shard, *args):  # type: ignore[no-untyped-def]
        add(self, shard, *args)
        place = self.folder / f"vectors-{shard.number:05d}.npy"
        data = place.read_bytes()
        place.write_bytes(
            bytes(len(data))
        )  # what a disk may hold while the real bytes are under way
        time.sleep(0.01)
        place.write_bytes(data)

    with patched(
        (resumable_output.UnfinishedRun, "add", early),
        (resumable_output.manifest, "verify_folder", lambda *_: []),
    ):
        yield


ROWS = (
    Row(
        "sigkill-train",
        "SIGKILL at random times in training with a checkpoint every step and rotation",
        "resume gives bit-identical final weights; no unusable checkpoint",
        200,
        train_kills,
        {"states written in place": states_in_place, "random state not restored": no_random_state},
        sample=2,
        mutated=12,
        minutes=30,
    ),
    Row(
        "sigkill-encode",
        "SIGKILL at random times in encoding",
        "byte-identical result",
        100,
        encode_kills,
        {"shards believed unread": shards_on_trust},
        sample=3,
        mutated=12,
        minutes=20,
    ),
)
