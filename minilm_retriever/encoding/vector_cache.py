"""Vectors kept across shards and runs: an SQLite file for each model and prompt in a folder that
may always be deleted.

SQLite brings a transaction to disk as a whole or not at all, so a process that dies leaves what it
had put in before. Each vector has a check sum; one that does not match is computed again."""

from __future__ import annotations

import hashlib
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from minilm_retriever.errors import UserError
from minilm_retriever.storage import atomic_files

AT_ONCE = 500  # keys a query; SQLite allows 999 at least


class VectorCache:
    """The vectors (H,) float32 of texts, by what decides them: `key` says which model and prompt,
    in words or a sum."""

    def __init__(self, folder: Path, key: str, dimension: int) -> None:
        self.path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.sqlite"
        self.dimension = dimension
        atomic_files.make_folder(folder)
        with self._opened() as connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS vectors (text BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID"
            )

    def get(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Which of N distinct texts are known (K,), and their vectors (K, H)."""
        places = {digest(text): row for row, text in enumerate(texts)}
        keys, rows, vectors = list(places), list[int](), list[npt.NDArray[np.float32]]()
        with self._opened() as connection:
            for start in range(0, len(keys), AT_ONCE):
                some = keys[start : start + AT_ONCE]
                marks = ",".join("?" * len(some))
                query = f"SELECT text, vector FROM vectors WHERE text IN ({marks})"
                for key, kept in connection.execute(query, some):
                    vector = self._unpack(key, kept)
                    if vector is not None:
                        rows.append(places[key])
                        vectors.append(vector)
        found = np.stack(vectors) if vectors else np.zeros((0, self.dimension), np.float32)
        return np.asarray(rows, np.int64), found

    def put(self, texts: Sequence[str], vectors: npt.NDArray[np.float32]) -> None:
        """Keep the vectors (N, H) of N texts, all or none; those of a text that is there already
        are replaced."""
        pairs = zip(map(digest, texts), vectors, strict=True)
        rows = [
            (key, self._pack(key, np.ascontiguousarray(vector).tobytes())) for key, vector in pairs
        ]
        with self._opened() as connection:
            connection.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """A connection, and a transaction that ends with it."""
        try:
            with closing(sqlite3.connect(self.path, timeout=60)) as connection, connection:
                yield connection
        except sqlite3.Error as fault:
            raise UserError(
                f"{self.path}: the cache cannot be used ({fault}): delete it, or leave out --cache"
            ) from None

    def _pack(self, key: bytes, vector: bytes) -> bytes:
        return vector + zlib.crc32(key + vector).to_bytes(4, "little")

    def _unpack(self, key: bytes, kept: bytes) -> npt.NDArray[np.float32] | None:
        whole = len(kept) == 4 * self.dimension + 4 and self._pack(key, kept[:-4]) == kept
        return np.frombuffer(kept[:-4], np.float32) if whole else None


def digest(text: str) -> bytes:
    """What stands for a text."""
    return hashlib.blake2b(text.encode("utf-8"), digest_size=20).digest()
