"""An unfinished run of encode.py: the folder OUT.run, its finished shards, and what they were made
from.

OUT.run/vectors-00000.npy, rows-00000.jsonl, ...   as they will stand in OUT
OUT.run/unfinished/run.json                        flags, model and inputs of the run
OUT.run/unfinished/ranges.json                     what int8 was calibrated to
OUT.run/unfinished/00000.json                      written last: the shard is whole; its sums, rows
and input's digest

The end of a run writes manifest.json, removes `unfinished`, and moves the folder into its place.
Killed between any two of these steps, the next run does what is left."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from minilm_retriever.errors import UserError
from minilm_retriever.storage import atomic_files, atomic_folders, manifest
from minilm_retriever.storage.resume import RunFolder
from minilm_retriever.types import Array
from minilm_retriever.vectors.quantization import DTYPES, Ranges, stored_width
from minilm_retriever.vectors.shards import (
    UNFINISHED,
    Shard,
    file_names,
    npy_header,
    sidecar_paths,
    write_shard,
)

RUN, RANGES = f"{UNFINISHED}/run.json", f"{UNFINISHED}/ranges.json"
# Recorded in place of an input that stopped the run with a bad row.
INPUT_MAY_CHANGE = "may have been mended"


class UnfinishedRun(RunFolder):
    """The folder OUT.run of an encoding: the shards that are finished."""

    def __init__(self, out: Path) -> None:
        super().__init__(out, RUN)
        self.state = self.folder / UNFINISHED

    @property
    def complete(self) -> bool:
        """Whether all shards are made, and only the publishing is left."""
        return manifest.has_manifest(self.folder)

    def check_not_finished(self, overwrite: bool) -> None:
        # A complete run whose .npy was published, but not yet the files beside it, goes on.
        super().check_not_finished(overwrite or (self.out.suffix == ".npy" and self.complete))

    def begin_or_resume(
        self, settings: Mapping[str, Any], overwrite: bool = False, **notes: object
    ) -> dict[str, Any] | None:
        if not self.complete and not (self.folder / self.record_name).exists():
            self.discard()  # shards of unknown settings
        record = super().begin_or_resume(settings, overwrite, **notes)
        if record and not self.complete:
            self.write_record(settings)  # also of the inputs that were allowed to change
        return record

    def read_record(self) -> dict[str, Any] | None:
        if self.complete:
            return dict(manifest.read_manifest(self.folder)["vectors"])
        return super().read_record()

    def check_settings(self, recorded: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        changeable = {
            name: INPUT_MAY_CHANGE
            for name, value in recorded.items()
            if value == INPUT_MAY_CHANGE and name in settings
        }
        super().check_settings(recorded, {**settings, **changeable})
        if self.complete:
            manifest.verify_folder(self.folder)

    def let_inputs_change(self, settings: Mapping[str, Any]) -> None:
        """A bad row has stopped the run: its input will be mended, and only the rows of finished
        shards have to be as they were."""
        self.write_record(
            {
                name: INPUT_MAY_CHANGE if name.startswith("input ") else value
                for name, value in settings.items()
            }
        )

    # --- shards -----------------------------------------------------------------------------------

    def finished(self, shard: Shard) -> dict[str, Any] | None:
        """The record of a shard that is there, whole and made from these rows; None where it has
        yet to be made.

        UserError where it was made from other rows."""
        name = _record(shard.number)
        if not (self.folder / name).exists():
            return None
        try:
            manifest.verify_folder(self.folder, name)
            record = manifest.read_manifest(self.folder, name)
        except UserError:
            return None  # damaged: it is made again
        if record["shard"]["input"] != shard.sha256():
            rows = f"rows {shard.start} to {shard.start + len(shard.ids) - 1}"
            raise UserError(
                f"{self.folder}: {rows} of the input are not what the finished shard there was made from; "
                "restore the input, or start anew with --overwrite"
            )
        return dict(record["shard"])

    def refuse_more_shards(self, count: int) -> None:
        """UserError where there are finished shards beyond the input's end."""
        if (self.folder / _record(count)).exists():
            raise UserError(
                f"{self.folder}: the input ends after {count} shards, but more were made from it before; "
                "restore the input, or start anew with --overwrite"
            )

    def add(
        self, shard: Shard, vectors: Array, said: Mapping[str, Any], *, format: str, texts: bool
    ) -> None:
        """Write a shard's files, and last its record: what is `said` of it and the sums."""
        entries = write_shard(
            self.folder, shard.number, shard.ids, shard.texts if texts else None, vectors, format
        )
        self._keep(_record(shard.number), {"shard": {**said, "input": shard.sha256()}}, entries)

    def records(self) -> Iterator[dict[str, Any]]:
        """The records of all shards, in order."""
        number = 0
        while (self.folder / _record(number)).exists():
            yield manifest.read_manifest(self.folder, _record(number))
            number += 1

    @property
    def ranges(self) -> Ranges | None:
        """What int8 was calibrated to, if it was."""
        if not (self.folder / RANGES).exists():
            return None
        return Ranges.from_json(manifest.read_manifest(self.folder, RANGES)["ranges"])

    @ranges.setter
    def ranges(self, ranges: Ranges) -> None:
        self._keep(RANGES, {"ranges": ranges.as_json()})

    def _keep(
        self, name: str, said: Mapping[str, Any], entries: Mapping[str, Any] | None = None
    ) -> None:
        # In a manifest's form, which carries a sum of itself: a record that was damaged is noticed.
        atomic_files.write_bytes(self.folder / name, manifest.to_bytes(entries or {}, said))

    # --- the end ----------------------------------------------------------------------------------

    def complete_with(self, info: Mapping[str, Any]) -> None:
        """Write the manifest: all shards are there. `info` stands in it under "vectors"."""
        entries: dict[str, Any] = {}
        for record in self.records():
            entries |= record["files"]
        for path in [*self.folder.glob("vectors-*"), *self.folder.glob("rows-*")]:
            if path.name not in entries:  # of a shard that a mended input does not have any more
                atomic_folders.discard(path)
        atomic_files.write_bytes(
            self.folder / manifest.NAME, manifest.to_bytes(entries, {"vectors": info})
        )

    def publish(self, overwrite: bool) -> dict[str, Any]:
        """Move the complete folder into its place, or make one .npy of it; returns the manifest's
        info."""
        info: dict[str, Any] = manifest.read_manifest(self.folder)["vectors"]
        if self.out.suffix == ".npy":
            self._publish_npy(info)
            atomic_folders.discard(self.folder)
        else:
            if self.state.exists():
                atomic_folders.discard(self.state)
            atomic_files.clean_stale(self.folder)
            with atomic_files.user_errors(self.folder):
                atomic_files.fsync(
                    self.folder
                )  # what is removed must not be back, inside the output, when the power has gone
            atomic_folders.move_into_place(self.folder, self.out, overwrite=overwrite)
        return info

    def _publish_npy(self, info: Mapping[str, Any]) -> None:
        """FILE.npy, FILE.npy.rows.jsonl beside it, and FILE.npy.manifest.json with their sums."""
        names = [file_names(number, "npy") for number in range(len(info["shards"]))]
        rows, said = sidecar_paths(self.out)
        header = npy_header(
            DTYPES[info["dtype"]], (info["rows"], stored_width(info["dimension"], info["dtype"]))
        )
        concatenate(rows, b"", [self.folder / name for _, name in names], skip=0)
        concatenate(self.out, header, [self.folder / name for name, _ in names], skip=len(header))
        entries = {path.name: manifest.entry(path) for path in (self.out, rows)}
        atomic_files.write_bytes(
            said, manifest.to_bytes(entries, {"vectors": {**info, "shards": [info["rows"]]}})
        )


def _record(number: int) -> str:
    return f"{UNFINISHED}/{number:05d}.json"


def concatenate(path: Path, header: bytes, parts: Sequence[Path], *, skip: int) -> None:
    """A file of a header and what stands in the parts after their first `skip` bytes."""
    with atomic_files.writing(path) as stream:
        stream.write(header)
        for part in parts:
            with part.open("rb") as file:
                file.seek(skip)
                shutil.copyfileobj(file, stream, 1 << 20)
