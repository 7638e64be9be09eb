"""Shards: the unit of everything at scale. Which rows make one, and its files in three formats.

npy           vectors-00000.npy           rows-00000.jsonl safetensors   vectors-00000.safetensors
rows-00000.jsonl    (one tensor, "vectors") parquet       vectors-00000.parquet
(columns id, text, vector: a list of fixed size)

A line of rows-*.jsonl is {"id": ..., "text": ...}, the text left out where texts are not kept. Row
i belongs to vector i."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from minilm_retriever.errors import UserError, require
from minilm_retriever.storage import atomic_files, manifest
from minilm_retriever.types import Array

FORMATS = ("npy", "safetensors", "parquet")
UNFINISHED = "unfinished"  # the folder inside OUT.run that tells it from a finished one
SHARD_ROWS = 16384  # rows
SHARD_CHARACTERS = 1 << 26  # a shard of very long texts ends earlier: its texts lie in memory


@dataclass(frozen=True)
class Shard:
    """Consecutive rows of the input."""

    number: int
    start: int  # rows before it
    ids: list[str]
    texts: list[str]

    def sha256(self) -> str:
        """SHA-256 over all ids and texts, to tell whether the input is still what it was."""
        parts = (f"{len(i)} {len(t)} {i}{t}" for i, t in zip(self.ids, self.texts, strict=True))
        return hashlib.sha256("".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def make_shards(records: Iterable[tuple[str, ...]], size: int) -> Iterator[Shard]:
    """Shards of `size` records (id, text, ...), or of fewer where they hold SHARD_CHARACTERS
    together."""
    if size < 1:
        raise UserError(f"a shard needs at least 1 row, not {size}")
    number = start = characters = 0
    ids, texts = list[str](), list[str]()
    for record in records:
        ids.append(record[0])
        texts.append(record[1])
        characters += len(record[1]) if isinstance(record[1], str) else 0
        if len(ids) == size or characters >= SHARD_CHARACTERS:
            yield Shard(number, start, ids, texts)
            number, start, characters = number + 1, start + len(ids), 0
            ids, texts = [], []
    if ids:
        yield Shard(number, start, ids, texts)


# --- writing --------------------------------------------------------------------------------------


def write_shard(
    folder: Path,
    number: int,
    ids: Sequence[str],
    texts: Sequence[str] | None,
    vectors: Array,
    format: str = "npy",
) -> dict[str, Any]:
    """Write one shard's files, each whole; returns their manifest entries by name."""
    names = file_names(number, format)
    if format == "parquet":
        with atomic_files.writing(folder / names[0]) as stream:
            write_parquet(stream, ids, texts, vectors)
    else:
        with atomic_files.writing(folder / names[0]) as stream:
            stream.write(
                npy_header(vectors.dtype, vectors.shape)
                if format == "npy"
                else safetensors_header(vectors)
            )
            stream.write(np.ascontiguousarray(vectors).data)
        atomic_files.write_text(folder / names[1], row_lines(ids, texts))
    return {name: manifest.entry(folder / name) for name in names}


def file_names(number: int, format: str) -> list[str]:
    """The files of a shard, the vectors first."""
    return [
        f"vectors-{number:05d}.{format}",
        *([] if format == "parquet" else [f"rows-{number:05d}.jsonl"]),
    ]


def sidecar_paths(path: Path) -> tuple[Path, Path]:
    """Where the rows and the manifest of vectors in one .npy stand."""
    return Path(f"{path}.rows.jsonl"), Path(f"{path}.manifest.json")


def row_lines(ids: Sequence[str], texts: Sequence[str] | None) -> str:
    """A line of JSON for each row."""
    dump = (
        json.JSONEncoder().encode
    )  # ASCII: a line break inside a text is an escape, and bytes count as characters
    if texts is None:
        return "".join([f'{{"id": {dump(i)}}}\n' for i in ids])
    return "".join(
        [f'{{"id": {dump(i)}, "text": {dump(t)}}}\n' for i, t in zip(ids, texts, strict=True)]
    )


def npy_header(dtype: npt.DTypeLike, shape: Sequence[int]) -> bytes:
    """The first 128 bytes of an .npy file, whatever the number of rows."""
    kind = np.lib.format.dtype_to_descr(np.dtype(dtype))
    said = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {tuple(shape)}, }}"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + said.ljust(117).encode("ascii") + b"\n"


SAFETENSORS = {"F32": np.float32, "F16": np.float16, "I8": np.int8, "U8": np.uint8}


def safetensors_header(vectors: Array) -> bytes:
    """The first bytes of a safetensors file that holds one tensor, "vectors"."""
    name = next(name for name, kind in SAFETENSORS.items() if vectors.dtype == kind)
    said = json.dumps(
        {"vectors": {"dtype": name, "shape": vectors.shape, "data_offsets": [0, vectors.nbytes]}}
    )
    said += " " * (-len(said) % 64 + 56)  # the vectors start at a multiple of 64
    return struct.pack("<Q", len(said)) + said.encode("ascii")


def write_parquet(
    stream: BinaryIO, ids: Sequence[str], texts: Sequence[str] | None, vectors: Array
) -> None:
    """One file with the columns id, text (where kept) and vector."""
    arrow = import_arrow()
    flat = arrow.array(np.ascontiguousarray(vectors).reshape(-1))
    columns = {"id": arrow.array(ids, arrow.string())}
    if texts is not None:
        columns["text"] = arrow.array(texts, arrow.string())
    columns["vector"] = arrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    text_columns = [name for name in columns if name != "vector"]
    arrow.parquet.write_table(
        arrow.table(columns),
        stream,
        use_dictionary=text_columns,
        compression=dict.fromkeys(text_columns, "snappy"),
    )


def import_arrow() -> Any:
    """pyarrow with its Parquet part; UserError where the extra is not installed."""
    return require("pyarrow.parquet", "parquet", "Parquet")


# --- reading --------------------------------------------------------------------------------------


def open_shard(path: Path, dtype: npt.DTypeLike, width: int) -> Array:
    """The vectors of a shard (rows, width), memory-mapped; those of a Parquet file are read.

    UserError where the file does not hold vectors of that type and width.
    """
    try:
        vectors = _OPENERS[path.suffix](path)
    except (OSError, ValueError, KeyError, TypeError, EOFError, struct.error) as fault:
        raise UserError(f"{path}: holds no vectors that can be read: {fault}") from None
    if vectors.dtype != dtype or vectors.ndim != 2 or vectors.shape[1] != width:
        found = f"{vectors.dtype} of shape {vectors.shape}"
        raise UserError(f"{path}: holds {found}, not rows of {width} x {np.dtype(dtype)}")
    return vectors


def map_npy(path: Path) -> Array:
    """The array of an .npy file, memory-mapped."""
    vectors: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    return vectors


def map_safetensors(path: Path) -> Array:
    """The tensor "vectors" of a safetensors file, memory-mapped."""
    with path.open("rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        if size > 1 << 20:
            raise ValueError(f"a header of {size} bytes")
        said = json.loads(file.read(size))["vectors"]
    if 0 in said["shape"]:
        return np.zeros(said["shape"], SAFETENSORS[said["dtype"]])
    start = 8 + size + int(said["data_offsets"][0])
    vectors: Array = np.memmap(
        path, SAFETENSORS[said["dtype"]], mode="r", offset=start, shape=tuple(said["shape"])
    )
    return vectors


def read_parquet_vectors(path: Path) -> Array:
    """The column "vector" of a Parquet file (rows, width)."""
    column = import_arrow().parquet.read_table(path, columns=["vector"])["vector"].combine_chunks()
    vectors: Array = column.values.to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)
    return vectors


_OPENERS = {".npy": map_npy, ".safetensors": map_safetensors, ".parquet": read_parquet_vectors}


def read_ids_texts(path: Path, rows: Sequence[int]) -> list[tuple[str, str]]:
    """(id, text) of these rows out of a shard's file of them; the text is "" where texts were not
    kept."""
    if path.suffix == ".parquet":
        ids, texts = parquet_rows(path, stamp(path))
        return [(ids[row], texts[row]) for row in rows]
    ends, found = line_ends(path, stamp(path)), []
    with path.open("rb") as file:
        for row in rows:
            start = int(ends[row - 1]) if row else 0
            file.seek(start)
            said = json.loads(file.read(int(ends[row]) - start))
            found.append((said["id"], said.get("text", "")))
    return found


def stamp(path: Path) -> tuple[int, int, int]:
    """What changes when a file is replaced: what is remembered of the old one does not count any
    more."""
    now = path.stat()
    return now.st_ino, now.st_size, now.st_mtime_ns


@lru_cache(maxsize=256)
def line_ends(path: Path, stamp: tuple[int, int, int]) -> npt.NDArray[np.int64]:
    """The byte after each line of a file, so that a row is found without reading the others."""
    return np.flatnonzero(np.fromfile(path, np.uint8) == ord("\n")) + 1


@lru_cache(maxsize=4)
def parquet_rows(path: Path, stamp: tuple[int, int, int]) -> tuple[list[str], list[str]]:
    """All ids and texts of a Parquet shard."""
    parquet = import_arrow().parquet
    names = parquet.read_schema(path).names
    table = parquet.read_table(path, columns=[name for name in ("id", "text") if name in names])
    ids = table["id"].to_pylist()
    return ids, table["text"].to_pylist() if "text" in names else [""] * len(ids)
