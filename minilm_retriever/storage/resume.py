"""Resuming: the folder OUT.run of an output that is not finished, and the settings it began with.

run = RunFolder(out)
with atomic_files.lock(run.folder):                     # one process at a time
    run.remove_leftovers()                              # of processes that died
    run.check_not_finished(overwrite)                   # before anything expensive
    record = run.begin_or_resume(settings, overwrite)   # None: a new run"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minilm_retriever.errors import UserError
from minilm_retriever.storage import atomic_files, atomic_folders, manifest

SETTINGS = "asked"  # the record's key for the settings


class RunFolder:
    """The unfinished run of one output, for the holder of its lock."""

    def __init__(self, out: Path, record_name: str = "run.json") -> None:
        self.out = out
        self.folder = Path(f"{out}.run")
        self.record_name = record_name

    def remove_leftovers(self, *outputs: Path) -> None:
        """Settle and remove what dead processes left of the output, and of other `outputs`."""
        atomic_folders.recover(self.out)
        for path in (self.folder, self.out, *outputs):
            atomic_files.clean_stale(path.parent, path.name)

    def check_not_finished(self, overwrite: bool) -> None:
        """UserError where the finished output exists and may not be replaced."""
        if self.out.exists() and not overwrite:
            raise UserError(
                f"{self.out} is already finished: choose another --out, "
                "or replace it with --overwrite"
            )

    def begin_or_resume(
        self, settings: Mapping[str, Any], overwrite: bool = False, **notes: object
    ) -> dict[str, Any] | None:
        """The record of the unfinished run, which is resumed; None where a new one begins.

        settings: all that decides the result; `notes`: recorded with them, and never compared.
        UserError naming the first setting that differs, or with `overwrite` a new run then."""
        settings = json.loads(json.dumps(settings))  # as it is read back: tuples are lists
        try:
            record = self.read_record()
            if record is not None:
                self.check_settings(record[SETTINGS], settings)
        except UserError:
            if not overwrite:
                raise
            record = None
            self.discard()
        if record is None:
            atomic_files.make_folder((self.folder / self.record_name).parent)
            self.write(self.record_name, {SETTINGS: settings, **notes})
        else:
            atomic_files.clean_stale(self.folder)
        return record

    def read_record(self) -> dict[str, Any] | None:
        return self.read(self.record_name)

    def read(self, name: str) -> dict[str, Any] | None:
        """What `write` wrote, None where there is nothing; UserError where it is damaged."""
        exists = (self.folder / name).exists()
        return manifest.read_manifest(self.folder, name) if exists else None

    def write(self, name: str, content: Mapping[str, Any], files: Mapping[str, Any] = {}) -> None:
        """Write a file of the folder in the form of a manifest, which has a sum over itself."""
        atomic_files.write_bytes(self.folder / name, manifest.to_bytes(files, content))

    def check_settings(self, recorded: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """UserError naming the first setting that differs."""
        for name in [*settings, *recorded]:
            if recorded.get(name) != settings.get(name):
                raise UserError(
                    f"{self.folder}: the unfinished run there was started with {name} "
                    f"{recorded.get(name)!r}, now it is {settings.get(name)!r}; give that again, "
                    "choose another --out, or start over with --overwrite"
                )

    def discard(self) -> None:
        """Remove the unfinished run, if there is one."""
        if self.folder.exists():
            atomic_folders.discard(self.folder)
