"""Vectors kept across shards and runs: an SQLite file for each model and prompt.

SQLite transactions are atomic, so a process that dies leaves what it had put in before. Each vector
has a checksum; one that does not match is computed again. The folder may be deleted at any time."""

from __future__ import annotations

import hashlib
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from minilm_retriever.errors import UserError
from minilm_retriever.storage import atomic_files
from minilm_retriever.types import FloatArray


class VectorCache:
    """The vectors (H,) float32 of texts; `key` stands for the model and prompt."""

    def __init__(self, folder: Path, key: str, dimension: int) -> None:
        self.path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.sqlite"
        self.dimension = dimension
        atomic_files.make_folder(folder)
        with self._transaction() as connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS vectors"
                " (text BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID"
            )

    def get(self, texts: Sequence[str]) -> dict[int, FloatArray]:
        """The vectors in the cache, by the position of their text."""
        vectors: dict[int, FloatArray] = {}
        with self._transaction() as connection:
            for row, key in enumerate(map(digest, texts)):
                query = connection.execute("SELECT vector FROM vectors WHERE text = ?", (key,))
                for (data,) in query:
                    vector = data[:-4]
                    if len(vector) == 4 * self.dimension and data == with_checksum(key, vector):
                        vectors[row] = np.frombuffer(vector, np.float32)
        return vectors

    def put(self, texts: Sequence[str], vectors: FloatArray) -> None:
        """Add the vectors (N, H) of N texts, all or none, in place of those they had."""
        pairs = zip(map(digest, texts), vectors, strict=True)
        rows = [(key, with_checksum(key, vector.tobytes())) for key, vector in pairs]
        with self._transaction() as connection:
            connection.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, timeout=60)) as connection, connection:
                yield connection
        except sqlite3.Error as fault:
            mistake = f"{self.path}: the cache cannot be used ({fault})"
            raise UserError(f"{mistake}: delete it, or leave out --cache") from None


def digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8"), digest_size=20).digest()


def with_checksum(key: bytes, vector: bytes) -> bytes:
    return vector + zlib.crc32(key + vector).to_bytes(4, "little")
