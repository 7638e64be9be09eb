"""Power loss: what was not fsynced is lost, cut, zeroed, or written in another order.

`Recorder` keeps the log of a run's file operations. `Disk` replays a beginning of it and knows, for
every file and every folder, what an fsync has made sure of and what not. `Disk.after_power_loss`
then writes out one of the many states in which a disk may come up again: of each file's unsure
bytes any part, of each folder's unsure names any choice, in each folder by itself."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from minilm_retriever.core.trainer import Trainer
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
from tests.faulty_disk import patch_module


@dataclass
class Node:
    """A file or folder: what is sure to be on disk, and what the running system shows."""

    folder: bool
    sure: Any = b""  # bytes, or {name: Node}
    shown: Any = b""
    unsure: list[tuple[str, ...]] = field(
        default_factory=list
    )  # of a folder: changes of names since its last fsync


def new_folder() -> Node:
    return Node(True, {}, {})


class Disk:
    """A folder of the file system, as the log of operations makes it."""

    def __init__(self) -> None:
        self.root = new_folder()
        self.marks: list[Any] = []  # what the run has reported as finished so far

    def find(self, path: str) -> tuple[Node, str]:
        """The folder that a path lies in, and its name there."""
        node, (*above, name) = self.root, path.split("/")
        for part in above:
            node = node.shown[part]
        return node, name

    def node(self, path: str) -> Node:
        if path == "":
            return self.root
        parent, name = self.find(path)
        return parent.shown[name]

    def apply(self, what: str, *args: Any) -> None:
        """One operation."""
        getattr(self, f"do_{what}")(*args)

    def do_mark(self, mark: Any) -> None:
        self.marks.append(mark)

    def do_create(self, path: str) -> None:
        self._set(path, Node(False))

    def do_mkdir(self, path: str) -> None:
        self._set(path, new_folder())

    def _set(self, path: str, node: Node) -> None:
        parent, name = self.find(path)
        parent.shown[name] = node
        parent.unsure.append(("set", name, node))  # type: ignore[arg-type]

    def do_remove(self, path: str) -> None:
        parent, name = self.find(path)
        del parent.shown[name]
        parent.unsure.append(("remove", name))

    def do_rename(self, old: str, new: str) -> None:
        parent, name = self.find(old)
        target, new_name = self.find(new)
        assert parent is target, "a rename across folders: two names to lose"
        node = parent.shown.pop(name)
        parent.shown[new_name] = node
        parent.unsure.append(("rename", name, new_name, node))  # type: ignore[arg-type]

    def do_write(self, path: str, data: bytes) -> None:
        node = self.node(path)
        node.shown = node.shown + data

    def do_cut(self, path: str, size: int) -> None:
        node = self.node(path)
        node.shown = node.shown[:size]

    def do_fsync(self, path: str) -> None:
        node = self.node(path)
        node.sure = dict(node.shown) if node.folder else node.shown
        node.unsure = []

    def after_power_loss(self, place: Path, rng: random.Random) -> None:
        """Write one of the possible states into an empty folder."""
        write_out(self.root, place, rng)


def write_out(node: Node, place: Path, rng: random.Random) -> None:
    names = dict(node.sure)
    share = rng.choice((0.0, 0.5, 0.5, 1.0))
    for change in node.unsure:
        if rng.random() >= share:
            continue
        what, name, *rest = change
        if what == "set":
            names[name] = rest[0]
        elif what == "remove":
            names.pop(name, None)
        else:
            names.pop(name, None)
            names[rest[0]] = rest[1]
    for name, inner in names.items():
        if inner.folder:
            (place / name).mkdir()
            write_out(inner, place / name, rng)
        else:
            (place / name).write_bytes(unsure_bytes(inner, rng))


def unsure_bytes(node: Node, rng: random.Random) -> bytes:
    """What a file may hold."""
    if node.sure == node.shown:
        return bytes(node.sure)
    cut = rng.randrange(len(node.shown) + 1)
    zeroed = bytes(len(node.shown) - cut)
    return bytes(
        rng.choice(
            (
                node.sure,
                node.shown,
                node.shown[:cut],
                node.shown[:cut] + zeroed,
                bytes(len(node.shown)),
            )
        )
    )


class Recorder:
    """The file operations below a folder, in their order."""

    def __init__(self, place: Path) -> None:
        self.place = str(place)
        self.log: list[tuple[Any, ...]] = []
        self.opened: dict[int, str] = {}

    def inside(self, path: object) -> str | None:
        """The path within the folder; None outside."""
        name = os.fspath(path)  # type: ignore[call-overload]
        return name[len(self.place) + 1 :] if f"{name}/".startswith(f"{self.place}/") else None

    def note(self, what: str, path: object, *rest: Any) -> None:
        if (name := self.inside(path)) is not None:
            self.log.append((what, name, *rest))

    @contextmanager
    def recording(self) -> Iterator[None]:  # noqa: C901 - a branch for each operation
        """While the block runs."""
        with pytest.MonkeyPatch.context() as patch:
            save_file = safetensors.torch.save_file

            def open_(path: Any, flags: int, *mode: int) -> int:
                if flags & os.O_CREAT and not os.path.lexists(path):
                    self.note("create", path)
                fd = os.open(path, flags, *mode)
                if (name := self.inside(path)) is not None:
                    self.opened[fd] = name
                return fd

            def close(fd: int) -> None:
                self.opened.pop(fd, None)
                os.close(fd)

            def fsync(fd: int) -> None:
                if fd in self.opened:
                    self.log.append(("fsync", self.opened[fd]))

            make = os.mkdir

            def mkdir(path: Any, *mode: Any, **named: Any) -> None:
                make(path, *mode, **named)
                self.note("mkdir", path)

            def removing(name: str) -> Callable[[Any], None]:
                def remove(path: Any) -> None:
                    getattr(os, name)(path)
                    self.note("remove", path)

                return remove

            def rename(old: Any, new: Any) -> None:
                if Path(new).is_dir() and not any(Path(new).iterdir()):
                    self.note("remove", new)
                os.rename(old, new)  # noqa: PTH104
                self.note("rename", old, self.inside(new))

            def save(tensors: Any, path: Any, metadata: Any = None) -> None:
                save_file(tensors, path, metadata)
                self.note("create", path)
                self.note("write", path, Path(path).read_bytes())

            changes = {"open": open_, "close": close, "fsync": fsync, "mkdir": mkdir}
            changes |= {"rename": rename, "rmdir": removing("rmdir"), "unlink": removing("unlink")}
            patch_module(patch, "os", **changes)
            patch_module(patch, "io", FileIO=self.file_class())
            patch.setattr(
                os, "mkdir", mkdir
            )  # model_folder makes the folders inside a folder that is being made
            patch.setattr(safetensors.torch, "save_file", save)
            yield

    def file_class(self) -> type[io.FileIO]:
        """FileIO that notes what it does."""
        recorder = self

        class RecordedFile(io.FileIO):
            def __init__(self, path: Any, mode: str) -> None:
                if not os.path.lexists(path):
                    recorder.note("create", path)
                super().__init__(path, mode)
                self.inside = recorder.inside(path)
                if self.inside is not None:
                    recorder.opened[self.fileno()] = self.inside

            def write(self, data: Any) -> int:
                size = super().write(data)
                if self.inside is not None:
                    recorder.log.append(("write", self.inside, bytes(data)[:size]))
                return size

            def truncate(self, size: int | None = None) -> int:
                recorder.log.append(("cut", self.inside, size))
                return super().truncate(size)

            def close(self) -> None:
                if not self.closed:
                    recorder.opened.pop(self.fileno(), None)
                super().close()

        return RecordedFile


# --- what is run, and what has to stand after the power has gone ----------------------------------


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
