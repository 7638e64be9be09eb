"""Shards, the unit of bulk encoding: which rows make one, and its files in three formats.

npy            vectors-00000.npy            rows-00000.jsonl
safetensors    vectors-00000.safetensors    rows-00000.jsonl    (one tensor, "vectors")
parquet        vectors-00000.parquet        (columns id, text and vector, a list of fixed size)

A line of rows-*.jsonl is {"id": ..., "text": ...}, without the text where texts are not kept; the
i-th belongs to the i-th vector."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import save

from minilm_retriever.errors import UserError, named_errors, require
from minilm_retriever.storage import atomic_files, atomic_folders, manifest
from minilm_retriever.types import Array, IntArray

UNFINISHED = "unfinished"  # the folder inside OUT.run that tells it from a finished one
FORMATS = ("npy", "safetensors", "parquet")
SHARD_ROWS = 16384
SHARD_CHARACTERS = 1 << 26  # a shard of very long texts ends earlier: its texts lie in memory

# A file's inode, bytes and time of change: with it in the key, a cache forgets a replaced file.
Version = tuple[int, int, int]


@dataclass(frozen=True)
class Shard:
    """Consecutive rows of the input."""

    number: int
    start: int  # rows before it
    ids: list[str]
    texts: list[str]

    def sha256(self) -> str:
        """Over all ids and texts, to tell whether the input has changed."""
        parts = (f"{len(i)} {len(t)} {i}{t}" for i, t in zip(self.ids, self.texts, strict=True))
        return hashlib.sha256("".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def make_shards(records: Iterable[tuple[str, ...]], rows: int) -> Iterator[Shard]:
    """Shards of so many records (id, text, ...), or of fewer with SHARD_CHARACTERS together."""
    if rows < 1:
        raise UserError(f"a shard needs at least 1 row, not {rows}")
    number = start = characters = 0
    ids, texts = list[str](), list[str]()
    for record in records:
        ids.append(record[0])
        texts.append(record[1])
        characters += len(record[1]) if isinstance(record[1], str) else 0
        if len(ids) == rows or characters >= SHARD_CHARACTERS:
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
    """Write one shard's files, each atomically; returns their manifest entries by name."""
    names = file_names(number, format)
    vectors = np.ascontiguousarray(vectors)
    with atomic_files.writing(folder / names[0]) as stream:
        if format == "parquet":
            write_parquet(stream, ids, texts, vectors)
        elif format == "safetensors":
            stream.write(save({"vectors": vectors}))
        else:
            stream.write(npy_header(vectors.dtype, vectors.shape))
            stream.write(vectors.data)
    if format != "parquet":
        atomic_files.write_text(folder / names[1], row_lines(ids, texts))
    return {name: manifest.entry(folder / name) for name in names}


def file_names(number: int, format: str) -> list[str]:
    """The files of a shard, the vectors first."""
    vectors = f"vectors-{number:05d}.{format}"
    return [vectors] if format == "parquet" else [vectors, f"rows-{number:05d}.jsonl"]


def sidecar_paths(path: Path) -> tuple[Path, Path]:
    """The rows and the manifest of vectors in one .npy."""
    return Path(f"{path}.rows.jsonl"), Path(f"{path}.manifest.json")


def manifest_path(vectors: Path) -> Path:
    """The manifest of a folder of vectors, or of an .npy."""
    return sidecar_paths(vectors)[1] if vectors.is_file() else vectors / manifest.name_in(vectors)


def row_lines(ids: Sequence[str], texts: Sequence[str] | None) -> str:
    """A line of JSON for each row, in ASCII: a line break inside a text is an escape."""
    rows = [{"id": id} for id in ids]
    if texts is not None:
        rows = [{"id": id, "text": text} for id, text in zip(ids, texts, strict=True)]
    return "".join(f"{json.dumps(row, allow_nan=False)}\n" for row in rows)


def npy_header(dtype: npt.DTypeLike, shape: Sequence[int]) -> bytes:
    """The first 128 bytes of an .npy file, whatever the number of rows."""
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": descr, "fortran_order": False, "shape": tuple(shape)}
    )
    return header.getvalue()


def write_parquet(
    stream: BinaryIO, ids: Sequence[str], texts: Sequence[str] | None, vectors: Array
) -> None:
    arrow = require("pyarrow.parquet", "parquet", "Parquet")
    strings = {"id": ids} if texts is None else {"id": ids, "text": texts}
    columns = {name: arrow.array(values, arrow.string()) for name, values in strings.items()}
    columns["vector"] = arrow.FixedSizeListArray.from_arrays(vectors.reshape(-1), vectors.shape[1])
    compression = dict.fromkeys(strings, "snappy")  # floats do not get smaller
    arrow.parquet.write_table(
        arrow.table(columns), stream, use_dictionary=list(strings), compression=compression
    )


def move_manifest_to_parquet(folder: Path) -> None:
    """So that the folder holds Parquet alone, and opens by its name in the tools that read it."""
    parquet = require("pyarrow.parquet", "parquet", "Parquet").parquet
    schema = parquet.read_schema(folder / file_names(0, "parquet")[0])
    raw = (folder / manifest.NAME).read_bytes()
    with (
        atomic_files.writing(folder / manifest.PARQUET_NAME) as stream,
        parquet.ParquetWriter(stream, schema) as writer,  # without a row group
    ):
        writer.add_key_value_metadata({"manifest": raw})
    atomic_folders.discard(folder / manifest.NAME)


# --- reading --------------------------------------------------------------------------------------


def open_shard(path: Path, dtype: npt.DTypeLike, shape: tuple[int, int]) -> Array:
    """The vectors of a shard, memory-mapped; those of a Parquet file are read. UserError where the
    file does not hold vectors of that type and shape (rows, width)."""
    with named_errors(f"{path}: holds no vectors that can be read"):
        vectors: Array = map_vectors(path)
    if vectors.dtype != dtype or vectors.shape != shape:
        actual = f"{vectors.dtype} of shape {vectors.shape}"
        raise UserError(f"{path}: holds {actual}, not {np.dtype(dtype)} of shape {shape}")
    return vectors


def map_vectors(path: Path) -> Any:
    if path.suffix == ".npy":
        return np.load(path, mmap_mode="r", allow_pickle=False)
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:  # "np" would copy
            return file.get_tensor("vectors").numpy()
    parquet = require("pyarrow.parquet", "parquet", "Parquet").parquet
    column = parquet.read_table(path, columns=["vector"])["vector"].combine_chunks()
    return column.values.to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)


def read_ids_texts(
    path: Path, rows: Sequence[int], count: int | None = None
) -> list[tuple[str, str]]:
    """(id, text) of these rows out of a shard's file of `count`; "" where texts are not kept.
    UserError where the file holds others."""
    with named_errors(f"{path}: holds no ids and texts that can be read"):
        pairs = _read_ids_texts(path, rows, count)
        if any(not isinstance(part, str) for pair in pairs for part in pair):
            raise ValueError("an id or a text is no string")
    return pairs


def _read_ids_texts(path: Path, rows: Sequence[int], count: int | None) -> list[tuple[str, str]]:
    status = path.stat()
    version = (status.st_ino, status.st_size, status.st_mtime_ns)
    if path.suffix == ".parquet":
        ids, texts = parquet_ids_texts(path, version)
        if count not in (None, len(ids)):
            raise ValueError(f"{len(ids)} rows, not {count}")
        return [(ids[row], texts[row]) for row in rows]
    starts, pairs = line_starts(path, version), []
    if count not in (None, len(starts) - 1):
        raise ValueError(f"{len(starts) - 1} lines, not {count}")
    with path.open("rb") as file:
        for row in rows:
            file.seek(starts[row])
            record = json.loads(file.read(starts[row + 1] - starts[row]))
            pairs.append((record["id"], record.get("text", "")))
    return pairs


@lru_cache(maxsize=256)
def line_starts(path: Path, version: Version) -> IntArray:
    """The first byte of each line and of the file's end, to read a row without the others."""
    line_ends = np.flatnonzero(np.fromfile(path, np.uint8) == ord("\n")) + 1
    starts: IntArray = np.insert(line_ends, 0, 0)
    return starts


@lru_cache(maxsize=4)
def parquet_ids_texts(path: Path, version: Version) -> tuple[list[str], list[str]]:
    parquet = require("pyarrow.parquet", "parquet", "Parquet").parquet
    has_text = "text" in parquet.read_schema(path).names
    table = parquet.read_table(path, columns=["id", "text"] if has_text else ["id"])
    texts = table["text"].to_pylist() if has_text else [""] * len(table)
    return table["id"].to_pylist(), texts
