"""A disk that dies or fails at a chosen operation, and keeps a log.

It replaces what atomic_files calls of `os` and `io`, in that module alone, and `fcntl.flock`."""

from __future__ import annotations

import errno
import fcntl
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
from safetensors import SafetensorError

from minilm_retriever.storage import atomic_files

OS_OPERATIONS = ("open", "fsync", "rename", "mkdir", "rmdir", "unlink", "chmod")


def patch_module(patch: pytest.MonkeyPatch, name: str, **changes: Any) -> None:
    """Change what atomic_files sees of a module that it imports; nobody else sees the change."""
    module = getattr(atomic_files, name)
    patch.setattr(atomic_files, name, SimpleNamespace(**{**vars(module), **changes}))


class Dead(BaseException):
    """The process is gone: nothing that it would still do happens."""


class FaultyDisk:
    """Passes operations on and counts them, up to the one where the fault strikes.

    `how` is "before" or "after" (the process dies there), "half" (it dies in the middle of a
    write), or an errno: that operation is refused, once, or from then on with `stuck`."""

    def __init__(
        self, at: int | None = None, how: str | int = "before", stuck: bool = False
    ) -> None:
        self.at, self.how, self.stuck = at, how, stuck
        self.log: list[tuple[str, Any]] = []
        self.struck = False

    def run(self, name: str, real: Callable[..., Any], *args: Any) -> Any:
        if self.struck and isinstance(self.how, str):
            raise Dead
        here = len(self.log) == self.at
        self.log.append((name, args))
        if isinstance(self.how, int):
            if here or (self.struck and self.stuck):
                self.struck = True
                if name == "save_file":
                    raise SafetensorError(
                        f"I/O error: {os.strerror(self.how)} (os error {self.how})"
                    )
                raise OSError(self.how, os.strerror(self.how))
        elif here:
            self.struck = True
            if self.how == "half" and name == "write":
                real(args[0], bytes(args[1])[: len(args[1]) // 2])
            if self.how == "half" and name == "save_file":
                real(*args)
                os.truncate(args[1], Path(args[1]).stat().st_size // 2)
            if self.how == "after":
                real(*args)
            raise Dead
        return real(*args)

    @contextmanager
    def installed(self) -> Iterator[FaultyDisk]:
        with pytest.MonkeyPatch.context() as patch:
            for name in OS_OPERATIONS:
                real = getattr(atomic_files.os, name)
                run = lambda *args, _n=name, _r=real: self.run(_n, _r, *args)  # noqa: E731
                patch_module(patch, "os", **{name: run})
            patch_module(patch, "io", FileIO=self.file_class(atomic_files.io.FileIO))
            flock = fcntl.flock
            patch.setattr(fcntl, "flock", lambda *args: self.run("flock", flock, *args))
            # Weights are written by their own library, into a staged folder.
            save_file = safetensors.torch.save_file
            patch.setattr(
                safetensors.torch,
                "save_file",
                lambda t, path, metadata=None: self.run("save_file", save_file, t, path, metadata),
            )
            yield self

    def file_class(self, real: type[io.FileIO]) -> type[io.FileIO]:
        """FileIO whose operations are those of this disk."""
        disk = self

        class FaultyFile(real):
            def __init__(self, path: Any, mode: str) -> None:
                disk.run("open", super().__init__, path, mode)

            def write(self, data: Any) -> int:
                return disk.run(
                    "write",
                    lambda _, some: super(FaultyFile, self).write(some),
                    self.fileno(),
                    data,
                )

            def truncate(self, size: int | None = None) -> int:
                return disk.run("ftruncate", super().truncate, size)

        return FaultyFile


def every_crash(prepare: Callable[[], Callable[[], object]]) -> Iterator[str]:
    """Run the action once for every operation and every way to die there; the caller checks after
    each.

    `prepare` sets the scene anew and returns the action."""
    for how in ("before", "half", "after"):
        at = 0
        while True:
            action = prepare()
            with FaultyDisk(at, how).installed() as disk, suppress(Dead):
                action()
            if not disk.struck:
                break
            yield f"{how} operation {at}: {disk.log[-1]}"
            at += 1


def every_refusal(
    prepare: Callable[[], Callable[[], object]], *reasons: int
) -> Iterator[tuple[str, Exception | None]]:
    """Run the action with each operation refused for each reason, once and for good; yields what
    was raised."""
    for number in reasons or (errno.ENOSPC, errno.EIO, errno.EACCES):
        for stuck in (False, True):
            at = 0
            while True:
                action = prepare()
                raised: Exception | None = None
                with FaultyDisk(at, number, stuck).installed() as disk:
                    try:
                        action()
                    except Exception as fault:  # noqa: BLE001
                        raised = fault
                if not disk.struck:
                    break
                yield f"{errno.errorcode[number]} at {at}, stuck {stuck}: {disk.log[at]}", raised
                at += 1
