"""Power loss: what was not fsynced is lost, cut, zeroed, or written in another order."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minilm_retriever.core.trainer import Trainer
from minilm_retriever.encoder import Encoder
from minilm_retriever.encoding.config import EncodeConfig
from minilm_retriever.encoding.encode_files import encode_files
from minilm_retriever.errors import UserError
from minilm_retriever.storage import atomic_files, atomic_folders, manifest
from minilm_retriever.training import checkpoint
from minilm_retriever.training.checkpoint import Position
from minilm_retriever.training.run import train
from tests.faults.disk import Disk, Recorder
from tests.faults.row import Outcome, Row, Scene, contents, judge, left_behind, patched
from tests.faults.scenes import texts_file, tiny_model, train_config


@dataclass
class Job:
    """A recorded run, and what is wrong with what is left of it."""

    name: str
    log: list[tuple[Any, ...]]
    problem: Callable[
        [Path, list[Any]], str
    ]  # the folder, and what was reported as finished before the power went


def recorded(
    scene: Scene, name: str, act: Callable[[Path], object], mark: Callable[[Recorder], Any]
) -> Recorder:
    """The log of a run in an empty folder."""
    recorder = Recorder(scene.room(name))
    with recorder.recording(), mark(recorder), redirect_stderr(io.StringIO()):
        act(Path(recorder.place) / "out")
    recorder.log.append(("mark", "done"))
    return recorder


def training(scene: Scene) -> Job:
    """Six steps, a state after every second, rotation, publication."""

    def act(out: Path) -> int:
        return train(train_config(scene.place, out, steps=6, save=2, keep=1))

    def mark(recorder: Recorder) -> Any:
        save = checkpoint.save

        def marked(run: Path, trainer: Trainer, position: Position, keep: int) -> None:
            save(run, trainer, position, keep)
            recorder.log.append(("mark", position.step))

        return patched((checkpoint, "save", marked))

    recorder = recorded(scene, "train", act, mark)
    expected = (Path(recorder.place) / "out" / "model.safetensors").read_bytes()

    def problem(place: Path, marks: list[Any]) -> str:
        out, run = place / "out", place / "out.run"
        saved = max((m for m in marks if isinstance(m, int)), default=0)
        newest = checkpoint.latest(run)
        if newest.skipped:
            return f"a state is not intact: {newest.skipped[0][1]}"
        if "done" in marks and not out.exists():
            return "the published model is gone"
        if (
            not out.exists()
            and saved
            and (newest.path is None or int(newest.path.name[5:]) < saved)
        ):
            return f"step {saved} was saved, the newest state is {newest.path and newest.path.name}"
        try:
            with redirect_stderr(io.StringIO()):
                act(out)
        except UserError as error:
            if "is already finished" not in str(error):
                return f"the same command does not go on: {error}"
        manifest.verify_folder(out)
        left = left_behind(place)
        same = (out / "model.safetensors").read_bytes() == expected
        return f"{left} are left" if left else "" if same else "other weights"

    return Job("train", recorder.log, problem)


@contextmanager
def unmarked(recorder: Recorder) -> Iterator[None]:
    """Reports nothing before the end."""
    yield


def encoding(scene: Scene) -> Job:
    """Four shards, published."""
    source, model = str(texts_file(scene.place, 8)), str(tiny_model(scene.place))

    def act(out: Path) -> str:
        return encode_files(
            EncodeConfig(
                inputs=(source,), model=model, out=str(out), shard_size=2, threads=1, device="cpu"
            )
        )

    recorder = recorded(scene, "encode", act, unmarked)
    expected = contents(Path(recorder.place) / "out")

    def problem(place: Path, marks: list[Any]) -> str:
        out = place / "out"
        if "done" in marks and not out.exists():
            return "the finished vectors are gone"
        try:
            with redirect_stderr(io.StringIO()):
                act(out)
        except UserError as error:
            if "is already finished" not in str(error):
                return f"the same command does not go on: {error}"
        left = left_behind(place)
        return f"{left} are left" if left else "" if contents(out) == expected else "other bytes"

    return Job("encode", recorder.log, problem)


def overwriting(scene: Scene) -> Job:
    """A model is published, and then another over it."""
    models = [Encoder.from_pretrained(tiny_model(scene.place), device="cpu") for _ in range(2)]
    next(models[1].model.encoder.parameters()).data.add_(1.0)
    known = []
    for number, model in enumerate(models):
        model.save(scene.room(f"known{number}") / "out")
        known.append(contents(scene.place / f"known{number}" / "out"))

    def act(out: Path) -> None:
        models[0].save(out)
        recorder_of[0].log.append(("mark", "first"))
        models[1].save(out, overwrite=True)

    recorder_of: list[Recorder] = []

    def mark(recorder: Recorder) -> Any:
        recorder_of.append(recorder)
        return unmarked(recorder)

    recorder = recorded(scene, "overwrite", act, mark)

    def problem(place: Path, marks: list[Any]) -> str:
        out = place / "out"
        atomic_folders.recover(out)
        if "first" in marks and not out.exists():
            return "neither the old model nor the new one is there"
        if "done" in marks and contents(out) != known[1]:
            return "the new model is not there"
        return (
            "" if not out.exists() or contents(out) in known else "a half of a model stands there"
        )

    return Job("overwrite", recorder.log, problem)


def power_losses(scene: Scene, count: int) -> Iterator[Outcome]:
    """`count` replays, of each run's log cut somewhere."""
    jobs = [training(scene), encoding(scene), overwriting(scene)]
    scene.notes["operations in the logs"] = {job.name: len(job.log) for job in jobs}
    for number in range(count):
        job = jobs[number % len(jobs)]
        cut = scene.rng.randrange(len(job.log) + 1)
        disk = Disk()
        for operation in job.log[:cut]:
            disk.apply(*operation)
        place = scene.room("up again")
        disk.after_power_loss(place, scene.rng)
        before = sorted(str(path.relative_to(place)) for path in place.rglob("*"))
        try:
            problem = job.problem(place, disk.marks)
        except UserError as fault:
            problem = str(fault)
        yield judge(
            not problem,
            "survived",
            f"{job.name}, power lost after operation {cut}: {problem}; {before}"[:600],
        )


def names_unsure() -> object:
    """Mutation: neither files nor folders are fsynced."""
    return patched((atomic_files, "fsync", lambda path: None))


def bytes_unsure() -> object:
    """Mutation: files are renamed into place before their bytes are fsynced."""

    @contextmanager
    def writing(path: Path) -> Iterator[io.BufferedWriter]:
        with atomic_files.staging(path) as (target, temp):
            with atomic_files.io.FileIO(temp, "x") as file:
                stream = io.BufferedWriter(file, 1 << 18)
                yield stream
                stream.flush()
            atomic_files.rename(temp, target)

    return patched((atomic_files, "writing", writing))


def log_unsure() -> object:
    """Mutation: a state holds the number of lines of the log, not the lines."""
    return patched((checkpoint, "LOG", "nothing"))


ROWS = (
    Row(
        "power-loss",
        "power loss simulated from the operation log: what was not fsynced is dropped, cut, zeroed "
        "or reordered",
        "old or new, never neither, never mixed; what was reported as saved is there",
        500,
        power_losses,
        {
            "names not fsynced": names_unsure,
            "bytes not fsynced": bytes_unsure,
            "no log in a state": log_unsure,
        },
        sample=15,
        mutated=36,
        minutes=20,
    ),
)
