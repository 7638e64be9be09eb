"""What encode.py wrote, opened: vectors memory-mapped, and the id and text of every row beside
them.

A folder of shards
    manifest.json            SHA-256 of every file, and under "vectors" what they are: model, dtype, rows, shards, ...
    vectors-00000.npy        (rows of the shard, H), or .safetensors, or .parquet with ids and texts inside
    rows-00000.jsonl         {"id": ..., "text": ...} a line, in the same order
or one file
    FILE.npy                 (rows, H)
    FILE.npy.rows.jsonl      as above
    FILE.npy.manifest.json   as above
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from minilm_retriever.errors import UserError
from minilm_retriever.storage import atomic_folders, manifest
from minilm_retriever.types import Array, FloatArray
from minilm_retriever.vectors.quantization import (
    DTYPES,
    Ranges,
    calibrate,
    fold_scale,
    quantize,
    stored_width,
    to_float,
    truncate,
)
from minilm_retriever.vectors.shards import (
    SHARD_ROWS,
    UNFINISHED,
    file_names,
    open_shard,
    read_ids_texts,
    sidecar_paths,
    write_shard,
)


class MappedShards(Sequence[Array]):
    """The vectors of each shard (rows, width) as they are kept, opened when they are asked for.

    A map stays open, for it holds no memory; what has to be read (Parquet) is read each time.
    """

    def __init__(self, paths: Sequence[Path], rows: Sequence[int], dtype: str, wide: int) -> None:
        self.paths, self.rows, self.dtype, self.width = paths, rows, dtype, wide
        self.maps: dict[int, Array] = {}

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, number: int) -> Array: ...

    @overload
    def __getitem__(self, number: slice) -> list[Array]: ...

    def __getitem__(self, number: int | slice) -> Array | list[Array]:
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(len(self)))]
        if number in self.maps:
            return self.maps[number]
        vectors = open_shard(self.paths[number], DTYPES[self.dtype], self.width)
        if len(vectors) != self.rows[number]:
            raise UserError(
                f"{self.paths[number]}: {len(vectors)} rows, its manifest says {self.rows[number]}"
            )
        if isinstance(vectors, np.memmap):
            self.maps[number] = vectors
        return vectors


@dataclass(frozen=True)
class VectorFolder:
    """Nothing is loaded but what is asked for."""

    folder: Path  # or the .npy
    info: Mapping[str, Any]  # what the manifest says under "vectors"
    shards: MappedShards
    starts: Sequence[int]  # first row of each shard, and the number of rows at the end
    row_files: Sequence[Path]

    def __len__(self) -> int:
        return self.starts[-1]

    @property
    def dtype(self) -> str:
        """As what the numbers are kept."""
        return str(self.info["dtype"])

    @property
    def ranges(self) -> Ranges | None:
        """What int8 was calibrated to."""
        return Ranges.from_json(self.info["ranges"])

    def floats(self, kept: Array) -> FloatArray:
        """Some rows of a shard (N, width) as float32 vectors (N, H)."""
        return to_float(kept, self.info["dtype"], self.ranges)

    def truncate_queries(self, queries: FloatArray) -> FloatArray:
        """A model's query vectors (B, H), with as many dimensions as these have."""
        if queries.shape[1] < self.info["dimension"]:
            raise UserError(
                f"the queries have {queries.shape[1]} dimensions and the vectors in {self.folder} "
                f"{self.info['dimension']}: encode both with the same model"
            )
        return truncate(queries, self.info["dimension"], unit=self.info["unit"])

    def prepare_queries(self, vectors: FloatArray) -> tuple[FloatArray, FloatArray]:
        """A model's query vectors (B, H) as these shards want them, and what to add to each one's
        inner products (B,).

        Cut to as many dimensions, and scaled by int8's steps; binary has no inner products, see
        floats()."""
        asked = self.truncate_queries(vectors)
        return (
            fold_scale(asked, self.ranges)
            if self.ranges
            else (asked, np.zeros(len(asked), np.float32))
        )

    def rows(self, numbers: Sequence[int]) -> list[tuple[str, str]]:
        """(id, text) of these rows; the text is "" where texts were not kept."""
        return [self.row(number) for number in numbers]

    def row(self, number: int) -> tuple[str, str]:
        """(id, text) of one row."""
        if not 0 <= number < len(self):
            raise IndexError(f"row {number} of {len(self)}")
        shard = int(np.searchsorted(np.asarray(self.starts), number, side="right")) - 1
        return read_ids_texts(self.row_files[shard], [number - self.starts[shard]])[0]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """(id, text) of every row, in order."""
        for path, rows in zip(self.row_files, self.shards.rows, strict=True):
            yield from read_ids_texts(path, range(rows))


def open_vectors(folder: Path, *, verify: bool = True) -> VectorFolder:
    """Open a folder, or the .npy, that encode.py wrote; UserError naming what is missing, cut short
    or damaged.

    verify: read every byte and compare the sums (about 1 s a GB); else the manifest alone is
    checked."""
    if not folder.exists():
        unfinished = Path(f"{folder}.run").exists()
        how = (
            "is not finished: the command that began it goes on"
            if unfinished
            else f"encode.py INPUT --out {folder}"
        )
        raise UserError(f"{folder}: no such folder; {how}{'' if unfinished else ' makes one'}")
    if (folder / UNFINISHED).exists():
        raise UserError(f"{folder}: is not finished: the command that began it goes on")
    single = folder.is_file()
    where, name = (
        (folder.parent, sidecar_paths(folder)[1].name) if single else (folder, manifest.NAME)
    )
    info = manifest.read_manifest(where, name).get("vectors")
    if not isinstance(info, dict):
        raise UserError(f"{folder}: not a folder of vectors (its manifest says nothing of them)")
    if verify:
        manifest.verify_folder(where, name)
    if single:
        paths, row_files = [folder], [sidecar_paths(folder)[0]]
    else:
        names = [file_names(number, info["shard_format"]) for number in range(len(info["shards"]))]
        paths, row_files = [folder / n[0] for n in names], [folder / n[-1] for n in names]
    rows = [int(n) for n in info["shards"]]
    shards = MappedShards(
        paths, rows, info["dtype"], stored_width(info["dimension"], info["dtype"])
    )
    starts = [0, *np.cumsum(rows).tolist()]
    if starts[-1] != info["rows"]:
        raise UserError(
            f"{folder}: its shards hold {starts[-1]} rows, its manifest says {info['rows']}"
        )
    return VectorFolder(folder, info, shards, starts, row_files)


def save_vectors(
    folder: Path,
    ids: Sequence[str],
    texts: Sequence[str] | None,
    vectors: FloatArray,
    *,
    model: str,
    dtype: str = "float32",
    ranges: Ranges | None = None,
    unit: bool = True,
    shard_size: int = SHARD_ROWS,
    overwrite: bool = False,
) -> None:
    """Write vectors (N, H) that are at hand as a folder that can be searched, indexed and added to
    an index.

    `model` tells who made them: `encoder.model.fingerprint()`. int8 spans `ranges`, or else these
    vectors."""
    ranges = (ranges or calibrate(vectors)) if dtype == "int8" else None
    starts = range(0, len(vectors), shard_size)
    info = {
        "model": model,
        "rows": len(vectors),
        "dimension": vectors.shape[1],
        "dtype": dtype,
        "unit": unit,
        "similarity": "cosine" if unit else "dot",
        "ranges": ranges.as_json() if ranges else None,
        "texts": texts is not None,
        "shard_format": "npy",
        "shard_size": shard_size,
        "shards": [len(vectors[start : start + shard_size]) for start in starts],
        "asked": {},
    }
    with atomic_folders.staged_folder(
        folder, overwrite=overwrite, extra={"vectors": info}
    ) as making:
        for number, start in enumerate(starts):
            part = slice(start, start + shard_size)
            kept = quantize(vectors[part], dtype, ranges)
            write_shard(making, number, ids[part], texts[part] if texts is not None else None, kept)
