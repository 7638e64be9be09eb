"""A folder of vectors: memory-mapped shards, and the id and text of every row.

manifest.json            SHA-256 of every file; under "vectors" model, dtype, rows, shards, ...
vectors-00000.npy        (rows of the shard, H); or another of shards.py's formats
rows-00000.jsonl         {"id": ..., "text": ...} a line, in the same order

or one file FILE.npy (rows, H), with FILE.npy.rows.jsonl and FILE.npy.manifest.json."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from minilm_retriever.errors import UserError
from minilm_retriever.storage import atomic_folders, manifest
from minilm_retriever.types import Array, FloatArray
from minilm_retriever.vectors.quantization import (
    DTYPES,
    Ranges,
    calibrate,
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
    """The stored vectors of each shard (rows, width), opened when they are asked for.

    A map stays open, for it holds no memory; Parquet has to be read, each time anew."""

    def __init__(self, paths: Sequence[Path], rows: Sequence[int], dtype: str, width: int) -> None:
        self.paths, self.rows, self.dtype, self.width = paths, rows, dtype, width
        self.maps: dict[int, Array] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: Any) -> Any:  # of one, or a slice of several
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(len(self)))]
        if number in self.maps:
            return self.maps[number]
        path, rows = self.paths[number], self.rows[number]
        vectors = open_shard(path, DTYPES[self.dtype], self.width)
        if len(vectors) != rows:
            raise UserError(f"{path}: {len(vectors)} rows, its manifest says {rows}")
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
        """One of quantization.DTYPES."""
        return str(self.info["dtype"])

    @property
    def ranges(self) -> Ranges | None:
        """Of int8."""
        return Ranges.from_json(self.info["ranges"])

    def floats(self, codes: Array) -> FloatArray:
        """Some rows of a shard (N, width) as float32 vectors (N, H)."""
        return to_float(codes, self.dtype, self.ranges)

    def truncate_queries(self, queries: FloatArray) -> FloatArray:
        """A model's query vectors (B, H) with as many dimensions as these have."""
        dimension = self.info["dimension"]
        if queries.shape[1] < dimension:
            raise UserError(
                f"the queries have {queries.shape[1]} dimensions and the vectors in {self.folder} "
                f"{dimension}: encode both with the same model"
            )
        return truncate(queries, dimension, unit=self.info["unit"])

    def rows(self, numbers: Sequence[int]) -> list[tuple[str, str]]:
        """(id, text) of these rows; the text is "" where texts were not kept."""
        pairs = []
        for number in numbers:
            if not 0 <= number < len(self):
                raise IndexError(f"row {number} of {len(self)}")
            shard = bisect_right(self.starts, number) - 1
            pairs += read_ids_texts(self.row_files[shard], [number - self.starts[shard]])
        return pairs

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """(id, text) of every row, in order."""
        for path, rows in zip(self.row_files, self.shards.rows, strict=True):
            yield from read_ids_texts(path, range(rows))


def open_vectors(folder: Path, *, verify: bool = True) -> VectorFolder:
    """Open a folder, or the .npy, that encode.py wrote; UserError naming what is missing, cut short
    or damaged.

    verify: read every byte and compare the checksums (about 1 s a GB); else the manifest alone is
    checked."""
    if (folder / UNFINISHED).exists() or (not folder.exists() and Path(f"{folder}.run").exists()):
        raise UserError(f"{folder}: is not finished: the command that began it resumes it")
    if not folder.exists():
        raise UserError(f"{folder}: no such folder; encode.py INPUT --out {folder} makes one")
    is_file = folder.is_file()
    rows_path, manifest_path = sidecar_paths(folder)
    where, name = (folder.parent, manifest_path.name) if is_file else (folder, manifest.NAME)
    info = manifest.read_manifest(where, name).get("vectors")
    if not isinstance(info, dict):
        raise UserError(f"{folder}: not a folder of vectors (its manifest says nothing of them)")
    if verify:
        manifest.verify_folder(where, name)
    counts = [int(count) for count in info["shards"]]
    starts = [0, *accumulate(counts)]
    if starts[-1] != info["rows"]:
        raise UserError(
            f"{folder}: its shards hold {starts[-1]} rows, its manifest says {info['rows']}"
        )
    paths, row_files = [folder], [rows_path]
    if not is_file:
        names = [file_names(number, info["shard_format"]) for number in range(len(counts))]
        paths, row_files = [folder / n[0] for n in names], [folder / n[-1] for n in names]
    width = stored_width(info["dimension"], info["dtype"])
    shards = MappedShards(paths, counts, info["dtype"], width)
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
    """Write vectors (N, H) as a folder that can be searched, indexed and added to an index.

    model: the fingerprint of the model that made them, `encoder.model.fingerprint()`. ranges: of
    int8; without them it spans these vectors. shard_size: rows."""
    ranges = (ranges or calibrate(vectors)) if dtype == "int8" else None
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
            codes = quantize(vectors[part], dtype, ranges)
            write_shard(staged, number, ids[part], None if texts is None else texts[part], codes)
