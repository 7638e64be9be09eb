"""A folder of vectors: memory-mapped shards, and the id and text of every row.

manifest.json            SHA-256 of every file; under "vectors" model, dtype, rows, shards, ...
vectors-00000.npy        (rows of the shard, H); or another of shards.py's formats
rows-00000.jsonl         {"id": ..., "text": ...} a line, in the same order

or one file FILE.npy (rows, H), with FILE.npy.rows.jsonl and FILE.npy.manifest.json."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from minilm_retriever.errors import UserError
from minilm_retriever.storage import atomic_folders, manifest
from minilm_retriever.storage.schema import (
    BOOLEAN,
    FLOAT32,
    OBJECT,
    check_fields,
    integer,
    list_of,
    one_of,
    optional,
    text,
)
from minilm_retriever.types import Array, FloatArray
from minilm_retriever.vectors import quantization, shards
from minilm_retriever.vectors.checks import check_vectors
from minilm_retriever.vectors.quantization import Ranges

CHECKED_ROWS = 4096  # at a time
FIELDS = {  # of what a manifest says under "vectors"
    "model": text(200),
    "rows": integer(0, 1 << 40),
    "dimension": integer(1, 1 << 16),
    "dtype": one_of(quantization.DTYPES),
    "ranges": optional(OBJECT),
    "unit": BOOLEAN,
    "similarity": text(40),
    "shard_format": one_of(shards.FORMATS),
    "shards": list_of(integer(1, 1 << 40), 0, 1 << 24),
}


class MappedShards(Sequence[Array]):
    """The stored vectors of each shard (rows, width), opened on first use.

    A map stays open, for it holds no memory; Parquet has to be read each time."""

    def __init__(self, paths: Sequence[Path], info: Mapping[str, Any]) -> None:
        self.paths, self.rows = paths, info["shards"]
        self.dtype = quantization.DTYPES[info["dtype"]]
        self.width = quantization.stored_width(info["dimension"], info["dtype"])
        self.maps: dict[int, Array] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: Any) -> Any:  # not a slice
        if number in self.maps:
            return self.maps[number]
        path = self.paths[number]
        vectors = shards.open_shard(path, self.dtype, (self.rows[number], self.width))
        if path.suffix != ".parquet":
            self.maps[number] = vectors
        return vectors


@dataclass(frozen=True)
class VectorFolder:
    """What `open_vectors` returns; vectors, ids and texts are read only where they are needed."""

    folder: Path  # or the .npy
    info: Mapping[str, Any]  # what the manifest says under "vectors"
    shards: MappedShards
    starts: Sequence[int]  # first row of each shard, and the number of rows at the end
    row_files: Sequence[Path]

    def __len__(self) -> int:
        return self.starts[-1]

    @property
    def dtype(self) -> str:
        return str(self.info["dtype"])  # one of quantization.DTYPES

    @property
    def ranges(self) -> Ranges | None:
        return Ranges.from_json(self.info["ranges"])

    def floats(self, codes: Array) -> FloatArray:
        """Some rows of a shard (N, width) as float32 vectors (N, H)."""
        return quantization.to_float(codes, self.dtype, self.ranges)

    def truncate_queries(self, queries: FloatArray) -> FloatArray:
        """A model's query vectors (B, H) with as many dimensions as these have."""
        dimension, given = self.info["dimension"], queries.shape[1]
        if given < dimension:
            sizes = f"{given} dimensions and the vectors in {self.folder} {dimension}"
            raise UserError(f"the queries have {sizes}: encode both with the same model")
        return quantization.truncate(queries, dimension, unit=self.info["unit"])

    def rows(self, numbers: Sequence[int]) -> list[tuple[str, str]]:
        """(id, text) of these rows; the text is "" where texts were not kept."""
        pairs = []
        for number in numbers:
            if not 0 <= number < len(self):
                raise IndexError(f"row {number} of {len(self)}")
            shard = bisect_right(self.starts, number) - 1
            row, count = number - self.starts[shard], self.shards.rows[shard]
            pairs += shards.read_ids_texts(self.row_files[shard], [row], count)
        return pairs

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """(id, text) of every row, in order."""
        for path, rows in zip(self.row_files, self.shards.rows, strict=True):
            yield from shards.read_ids_texts(path, range(rows), rows)


def open_vectors(folder: Path, *, verify: bool = True) -> VectorFolder:
    """Open a folder, or .npy, that encode.py wrote; UserError naming what is missing or damaged.

    verify: compare the checksums of all files (about 1 s a GB), not of the manifest alone."""
    unfinished = folder / shards.UNFINISHED if folder.exists() else Path(f"{folder}.run")
    if unfinished.exists():
        raise UserError(f"{folder}: is not finished: the command that began it resumes it")
    if not folder.exists():
        raise UserError(
            f"{folder}: no such folder; minilm-retriever encode INPUT --out {folder} makes one"
        )
    listing = shards.manifest_path(folder)
    info = manifest.read_manifest(listing.parent, listing.name).get("vectors")
    if not isinstance(info, dict):
        raise UserError(f"{folder}: not a folder of vectors (its manifest says nothing of them)")
    check_info(f"{listing}: vectors", info)
    if verify:
        manifest.verify_folder(listing.parent, listing.name)
    if folder.is_file():
        paths, row_files = [folder], [shards.sidecar_paths(folder)[0]]
    else:
        files = [shards.file_names(n, info["shard_format"]) for n in range(len(info["shards"]))]
        paths, row_files = [folder / f[0] for f in files], [folder / f[-1] for f in files]
    content = manifest.read_manifest(listing.parent, listing.name)
    for path in dict.fromkeys([*paths, *row_files]):
        if path.name not in content["files"]:
            raise UserError(f"{listing}: does not list {path.name}: make the folder again")
        manifest.size_of(path.parent, path.name)  # a plain file, and no link that leads elsewhere
    starts = [0, *accumulate(info["shards"])]
    return VectorFolder(folder, info, MappedShards(paths, info), starts, row_files)


def check_info(where: str, info: Mapping[str, Any]) -> None:
    """UserError for the first field that no folder of vectors can have."""
    check_fields(where, info, FIELDS)
    dimension = info["dimension"]
    if sum(info["shards"]) != info["rows"]:
        raise UserError(f"{where}: shards of {sum(info['shards'])} rows, not of {info['rows']}")
    if info["dtype"] == "binary" and dimension % 8:
        raise UserError(f"{where}: binary of {dimension} dimensions, not of a multiple of 8")
    if info["dtype"] == "int8":
        values = list_of(FLOAT32, dimension, dimension)
        check_fields(f"{where}: ranges", info["ranges"], {"low": values, "high": values})
    elif info["ranges"]:
        raise UserError(f"{where}: ranges are of int8, not of {info['dtype']}")


def verify(path: Path) -> str:
    """Check a folder that we wrote, or a .npy of encode.py; returns a line on what it holds.

    Raises UserError where a file is missing or a byte of it differs."""
    listing = shards.manifest_path(path)
    files = manifest.verify_folder(listing.parent, listing.name)
    line = f"{path}: {len(files)} files as they were written"
    if "vectors" in manifest.read_manifest(listing.parent, listing.name):
        folder = open_vectors(path, verify=False)
        check_stored(folder)
        line += f", {len(folder):,} vectors"
    return line


def check_stored(folder: VectorFolder) -> None:
    """UserError for the first vector that is not finite, or not of the length that is claimed."""
    if folder.dtype == "binary":
        return
    unit = folder.info["unit"] and folder.dtype != "int8"  # which keeps a length roughly
    for path, shard in zip(folder.shards.paths, folder.shards, strict=True):
        for start in range(0, len(shard), CHECKED_ROWS):
            vectors = folder.floats(shard[start : start + CHECKED_ROWS])
            check_vectors(vectors, partial(_row_name, path, start), unit=unit)


def _row_name(path: Path, start: int, row: int) -> str:
    return f"row {start + row} of {path}"


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
    shard_size: int = shards.SHARD_ROWS,
    overwrite: bool = False,
) -> None:
    """Write vectors (N, H) as a folder that can be searched, indexed and added to an index.

    model: its fingerprint, `encoder.model.fingerprint()`. ranges: of int8 (default: those of these
    vectors). shard_size: rows. UserError for a vector that is not finite, or where `unit` not of
    length 1."""
    check_vectors(vectors, lambda row: f"row {ids[row]!r}", unit=unit)
    ranges = (ranges or quantization.calibrate(vectors)) if dtype == "int8" else None
    parts = [slice(start, start + shard_size) for start in range(0, len(vectors), shard_size)]
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
        "shards": [len(vectors[part]) for part in parts],
        "asked": {},
    }
    extra = {"vectors": info}
    with atomic_folders.staged_folder(folder, overwrite=overwrite, extra=extra) as staged:
        for number, part in enumerate(parts):
            codes = quantization.quantize(vectors[part], dtype, ranges)
            own_texts = texts[part] if texts is not None else None
            shards.write_shard(staged, number, ids[part], own_texts, codes)
