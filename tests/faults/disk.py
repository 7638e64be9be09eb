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
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

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
