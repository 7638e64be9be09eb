"""The unfinished run of an encoding: the folder OUT.run with the shards that are finished.

    OUT.run/vectors-00000.npy, rows-00000.jsonl, ...   as in OUT
    OUT.run/unfinished/run.json      settings, model and inputs of the run
    OUT.run/unfinished/ranges.json   int8's ranges
    OUT.run/unfinished/00000.json    written last: counts and sums of the shard, SHA-256 of its rows

The end of a run writes manifest.json, removes `unfinished`, and moves the folder into its place.
After a kill between any two of these steps, the next run does the rest."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from minilm_retriever.errors import UserError
from minilm_retriever.storage import atomic_files, atomic_folders, manifest
from minilm_retriever.storage.resume import SETTINGS, RunFolder
from minilm_retriever.storage.schema import FLOAT32, check_fields, integer, list_of, text
from minilm_retriever.types import Array
from minilm_retriever.vectors import shards
from minilm_retriever.vectors.quantization import DTYPES, Ranges, stored_width
from minilm_retriever.vectors.shards import UNFINISHED, Shard

RUN, RANGES = f"{UNFINISHED}/run.json", f"{UNFINISHED}/ranges.json"
# Recorded in place of an input that stopped the run with a bad row: the user will correct it.
INPUT_MAY_CHANGE = "may have been mended"
RESTORE = "restore the input, or start over with --overwrite"
COPY_BYTES = 1 << 20
_ROWS = integer(0, 1 << 40)
SHARD = {"rows": _ROWS, "distinct": _ROWS, "clipped": _ROWS, "input": text(64)}
VALUES = list_of(FLOAT32, 1, 1 << 16)


class UnfinishedRun(RunFolder):
    """The folder OUT.run of an encoding."""

    kind = "vectors"
    own_names = rf"{UNFINISHED}|manifest\.json|(vectors|rows)-[0-9]{{5,}}\.[a-z]+"

    def __init__(self, out: Path) -> None:
        super().__init__(out, RUN)
        self.state = self.folder / UNFINISHED

    @property
    def complete(self) -> bool:
        """Whether all shards are made, and only the publishing is left."""
        return manifest.has_manifest(self.folder)

    # --- beginning and resuming -------------------------------------------------------------------

    def check_not_finished(self, overwrite: bool) -> None:
        # A run that was killed between the .npy and the files beside it goes on.
        resumes = self.out.suffix == ".npy" and self.complete
        super().check_not_finished(overwrite or resumes)

    def check_replaceable(self) -> None:
        if self.out.suffix != ".npy":
            return super().check_replaceable()
        rows_path, manifest_path = shards.sidecar_paths(self.out)
        taken = [path for path in (self.out, rows_path, manifest_path) if os.path.lexists(path)]
        if not taken or self.complete:  # the run that is complete has made them
            return None
        content = manifest.read_manifest(manifest_path.parent, manifest_path.name)
        if manifest.kind(content) != self.kind or content["files"].keys() != {
            self.out.name,
            rows_path.name,
        }:
            raise UserError(f"{taken[0]} is not ours to overwrite: move it")
        return None

    def read_record(self) -> dict[str, Any] | None:
        if self.complete:
            info = manifest.read_manifest(self.folder).get("vectors")
            return info if isinstance(info, dict) else {}
        return super().read_record()

    def check_settings(self, recorded: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        changed = {name: value for name, value in recorded.items() if value == INPUT_MAY_CHANGE}
        expected = {name: changed.get(name, value) for name, value in settings.items()}
        super().check_settings(recorded, expected)
        if self.complete:
            manifest.verify_folder(self.folder)

    def discard(self) -> None:
        # Without `unfinished` it may also be another command's finished output of that name.
        if self.complete and not self.state.exists():
            raise UserError(f"{self.folder}: holds finished vectors: move it, or choose another")
        super().discard()

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        self.write(RUN, {SETTINGS: settings})

    def let_inputs_change(self, settings: Mapping[str, Any]) -> None:
        """After a bad row has stopped the run: only the rows of finished shards must stay."""
        inputs = {name: INPUT_MAY_CHANGE for name in settings if name.startswith("input ")}
        self.write_settings({**settings, **inputs})

    # --- shards -----------------------------------------------------------------------------------

    def has(self, shard: Shard) -> bool:
        """Whether a shard is finished and intact; UserError where it is of other rows."""
        name = _record_name(shard.number)
        try:
            record = self.read_shard(shard.number)
            if record is None:
                return False
            manifest.verify_folder(self.folder, name)
        except UserError:
            return False  # damaged: it is made again
        if record["shard"]["input"] != shard.sha256():
            rows = f"rows {shard.start} to {shard.start + len(shard.ids) - 1}"
            what = f"{rows} of the input are not those of the finished shard"
            raise UserError(f"{self.folder}: {what}; {RESTORE}")
        return True

    def check_end(self, count: int) -> None:
        """UserError where there are finished shards beyond the input's last."""
        if (self.folder / _record_name(count)).exists():
            what = f"the input ends after {count} shards, but more were made from it before"
            raise UserError(f"{self.folder}: {what}; {RESTORE}")

    def add(
        self, shard: Shard, vectors: Array, counts: Mapping[str, int], format: str, texts: bool
    ) -> None:
        """Write a shard's files, and last its record: its counts and sums."""
        kept = shard.texts if texts else None
        files = shards.write_shard(self.folder, shard.number, shard.ids, kept, vectors, format)
        recorded = {name: counts[name] for name in ("rows", "distinct", "clipped")}
        record = {"shard": {**recorded, "input": shard.sha256()}}
        self.write(_record_name(shard.number), record, files)

    def read_shard(self, number: int) -> dict[str, Any] | None:
        """The record of a finished shard, None where there is none; UserError where it is none."""
        record = self.read(name := _record_name(number))
        if record is not None:
            check_fields(f"{self.folder / name}: shard", record.get("shard"), SHARD)
        return record

    def records(self) -> Iterator[dict[str, Any]]:
        """The records of all shards, in order."""
        for number in itertools.count():
            record = self.read_shard(number)
            if record is None:
                return
            yield record

    def read_ranges(self) -> Ranges | None:
        record = self.read(RANGES)
        if record is None:
            return None
        content: Any = record.get("ranges")
        check_fields(f"{self.folder / RANGES}: ranges", content, {"low": VALUES, "high": VALUES})
        if len(content["low"]) != len(content["high"]):
            raise UserError(f"{self.folder / RANGES}: as many low as high values are needed")
        return Ranges.from_json(content)

    def write_ranges(self, ranges: Ranges) -> None:
        self.write(RANGES, {"ranges": ranges.as_json()})

    # --- the end ----------------------------------------------------------------------------------

    def finish(self, info: Mapping[str, Any]) -> None:
        """Write the manifest, with `info` under "vectors": all shards are made."""
        files: dict[str, Any] = {}
        for record in self.records():
            files |= record["files"]
        for path in [*self.folder.glob("vectors-*"), *self.folder.glob("rows-*")]:
            if path.name not in files:  # of a shard that a corrected input does not have any more
                atomic_folders.discard(path)
        self.write(manifest.NAME, {"vectors": info}, files)

    def publish(self, overwrite: bool) -> dict[str, Any]:
        """Move the complete folder into its place, or make one .npy of it; returns `info`."""
        info: dict[str, Any] = manifest.read_manifest(self.folder)["vectors"]
        if self.out.suffix == ".npy":
            self._publish_npy(info)
            self.discard()
            return info
        atomic_folders.discard(self.state)
        if info["shard_format"] == "parquet" and (self.folder / manifest.NAME).exists():
            shards.move_manifest_to_parquet(self.folder)
        atomic_files.clean_stale(self.folder)
        with atomic_files.user_errors(self.folder):
            # What was removed must not be back in the output after a power loss.
            atomic_files.fsync(self.folder)
        atomic_folders.move_into_place(self.folder, self.out, overwrite=overwrite)
        return info

    def _publish_npy(self, info: Mapping[str, Any]) -> None:
        """FILE.npy, FILE.npy.rows.jsonl beside it, and FILE.npy.manifest.json with their sums."""
        names = [shards.file_names(number, "npy") for number in range(len(info["shards"]))]
        rows_path, manifest_path = shards.sidecar_paths(self.out)
        shape = info["rows"], stored_width(info["dimension"], info["dtype"])
        header = shards.npy_header(DTYPES[info["dtype"]], shape)
        self._join(rows_path, b"", [rows for _, rows in names])
        self._join(self.out, header, [vectors for vectors, _ in names])
        files = {path.name: manifest.entry(path) for path in (self.out, rows_path)}
        content = {"vectors": {**info, "shards": [info["rows"]]}}
        atomic_files.write_bytes(manifest_path, manifest.to_bytes(files, content))

    def _join(self, path: Path, header: bytes, names: Sequence[str]) -> None:
        """Write a file of a header and what is behind each shard's own header of that size."""
        with atomic_files.writing(path) as stream:
            stream.write(header)
            for name in names:
                with (self.folder / name).open("rb") as file:
                    file.seek(len(header))
                    shutil.copyfileobj(file, stream, COPY_BYTES)


def _record_name(shard_number: int) -> str:
    return f"{UNFINISHED}/{shard_number:05d}.json"
