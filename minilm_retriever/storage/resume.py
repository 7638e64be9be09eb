"""Resuming: the folder OUT.run of an output that is not finished, and the settings it began with.

run = RunFolder(out)
with atomic_files.lock(run.folder):                     # one process at a time
    run.remove_leftovers()                              # of processes that died
    run.check_not_finished(overwrite)                   # before anything expensive
    record = run.begin_or_resume(settings, overwrite)   # None: a new run"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minilm_retriever.errors import UserError
from minilm_retriever.storage import atomic_files, atomic_folders, manifest

SETTINGS = "asked"  # the record's key for the settings


class RunFolder:
    """The unfinished run of one output, for the holder of its lock."""

    kind = "a model"  # of the finished output: see manifest.kind
    own_names = r"run\.json|metrics\.jsonl|tensorboard|step-[0-9]+"  # a regular expression

    def __init__(self, out: Path, record_name: str = "run.json") -> None:
        self.out = out
        self.folder = Path(f"{out}.run")
        self.record_name = record_name

    def remove_leftovers(self, *outputs: Path) -> None:
        """Settle and remove what dead processes left of the output, of other `outputs`, and in
        OUT.run where that is ours: also beside a finished output, to which nobody comes back."""
        atomic_folders.recover(self.out)
        for path in (self.folder, self.out, *outputs):
            atomic_files.clean_stale(path.parent, path.name)
        is_ours = manifest.is_marked(self.folder / self.record_name)
        if is_ours and not self.folder.is_symlink():
            atomic_files.clean_stale(self.folder)

    def check_not_finished(self, overwrite: bool) -> None:
        """UserError where the finished output exists and may not be replaced, or where OUT.run is
        not ours."""
        if self.out.exists() and not overwrite:
            raise UserError(f"{self.out} is already finished: choose another --out, or --overwrite")
        self.check_replaceable()
        self.check_ours()

    def check_replaceable(self) -> None:
        """UserError where the output that is there is another thing than a run publishes."""
        atomic_folders.check_replaceable(self.out, self.kind)

    def check_ours(self) -> None:
        """UserError where OUT.run holds what no run writes, or a link: only what a run has marked
        with its record is ever resumed or removed."""
        advice = "move it, or choose another --out"
        if self.folder.is_symlink() or (self.folder.exists() and not self.folder.is_dir()):
            raise UserError(f"{self.folder}: not the folder of an unfinished run: {advice}")
        if not self.folder.exists():
            return
        with atomic_files.user_errors(self.folder):
            leftovers = atomic_files.find_leftovers(self.folder, None, "(tmp|gone|old)")
            paths = [path for path in sorted(self.folder.iterdir()) if path not in leftovers]
            files = manifest.listed_files(self.folder)  # UserError for a link
        for path in paths:
            if not re.fullmatch(self.own_names, path.name):
                raise UserError(f"{path}: not of an unfinished run, so it is not ours: {advice}")
        records = (self.record_name, manifest.NAME)
        is_marked = any(manifest.is_marked(self.folder / name) for name in records)
        is_empty = all(Path(name).name.startswith(".") for name in files)  # but for leftovers
        if not is_marked and not is_empty:
            raise UserError(
                f"{self.folder}: without our {self.record_name}, so it is not ours: {advice}"
            )

    def begin_or_resume(
        self, settings: Mapping[str, Any], overwrite: bool = False, **notes: object
    ) -> dict[str, Any] | None:
        """The record of the unfinished run, which is resumed; None where a new one begins.

        settings: all that decides the result; `notes`: recorded with them, and never compared.
        UserError naming the first setting that differs, or with `overwrite` a new run then."""
        settings = json.loads(
            json.dumps(settings, allow_nan=False)
        )  # as it is read back: tuples are lists
        try:
            record = self.read_record()
            if record is not None:
                recorded = record.get(SETTINGS)
                if not isinstance(recorded, dict):
                    raise UserError(f"{self.folder}: its record holds no settings of a run")
                self.check_settings(recorded, settings)
        except UserError:
            if not overwrite:
                raise
            record = None
        if record is None:
            self.discard()  # what is there is of unknown or other settings
            atomic_files.make_folder((self.folder / self.record_name).parent)
            self.write(self.record_name, {SETTINGS: settings, **notes})
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
                change = f"{name} {recorded.get(name)!r}, now it is {settings.get(name)!r}"
                raise UserError(
                    f"{self.folder}: the unfinished run there was started with {change}; give that "
                    "again, choose another --out, or start anew with --overwrite"
                )

    def discard(self) -> None:
        """Remove the unfinished run, if there is one; UserError where it is not ours."""
        self.check_ours()
        atomic_folders.discard(self.folder)
