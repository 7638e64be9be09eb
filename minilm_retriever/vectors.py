"""A folder of vectors on disk: shards of .npy files, memory-mapped, with the id and text of every row beside them.

manifest.json            SHA-256 of every file, and under "vectors" what made them: model, dtype, rows, shard size
vectors-00000.npy        (rows of the shard, H)
rows-00000.jsonl         {"id": ..., "text": ...} a line, in the same order
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from minilm_retriever import files, manifest
from minilm_retriever.errors import UserError


@dataclass(frozen=True)
class VectorFolder:
    """What encode.py wrote, opened: nothing is loaded but what is asked for."""

    folder: Path
    info: Mapping[str, Any]
    shards: Sequence[npt.NDArray[np.float32]]  # memory-mapped, (rows, H) each
    starts: Sequence[int]  # first row of each shard, and the number of rows at the end

    def rows(self, numbers: Sequence[int]) -> list[tuple[str, str]]:
        """(id, text) of these rows."""
        return [self.row(number) for number in numbers]

    def row(self, number: int) -> tuple[str, str]:
        """(id, text) of one row."""
        shard = int(np.searchsorted(np.asarray(self.starts), number, side="right")) - 1
        return shard_rows(self.folder, shard)[number - self.starts[shard]]


@lru_cache(maxsize=64)
def shard_rows(folder: Path, shard: int) -> list[tuple[str, str]]:
    """(id, text) of every row of a shard."""
    lines = (folder / f"rows-{shard:05d}.jsonl").read_text("utf-8").splitlines()
    return [(row["id"], row["text"]) for row in map(json.loads, lines)]


def write_shard(folder: Path, number: int, ids: Sequence[str], texts: Sequence[str], vectors: npt.NDArray[Any]) -> None:
    """Write one shard's files."""
    with files.writing(folder / f"vectors-{number:05d}.npy") as stream:
        np.save(stream, vectors, allow_pickle=False)
    lines = (json.dumps({"id": i, "text": t}) + "\n" for i, t in zip(ids, texts, strict=True))
    files.write_text(folder / f"rows-{number:05d}.jsonl", "".join(lines))


def open_vectors(folder: Path) -> VectorFolder:
    """Open a folder that encode.py wrote; UserError naming what is missing, cut short or damaged."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; encode.py INPUT --out {folder} makes one")
    info = manifest.read_manifest(folder).get("vectors")
    if not isinstance(info, dict):
        raise UserError(f"{folder}: not a folder of vectors (its manifest says nothing of them)")
    manifest.verify_folder(folder)
    count = -(-int(info["rows"]) // int(info["shard_size"]))
    shards = [np.load(folder / f"vectors-{n:05d}.npy", mmap_mode="r", allow_pickle=False) for n in range(count)]
    starts = np.cumsum([0, *(len(shard) for shard in shards)])
    if starts[-1] != info["rows"]:
        raise UserError(f"{folder}: its shards hold {starts[-1]} rows, its manifest says {info['rows']}")
    return VectorFolder(folder, info, shards, [int(s) for s in starts])
