"""The inputs before a long job, in one fast pass: size, SHA-256 and number of rows."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from minilm_retriever.data.readers import file_format
from minilm_retriever.errors import UserError, require

BLOCK_BYTES = 1 << 20
STREAM = "a stream"


class Source(NamedTuple):
    """An input. Of standard input and pipes nothing is known beforehand."""

    path: str
    bytes: int | None = None
    sha256: str | None = None
    rows: int | None = None  # by line ends: too many where lines are blank or a row has several

    def identity(self) -> str:
        """What a resumed run compares."""
        return f"{self.bytes:,} bytes, sha256 {self.sha256}" if self.sha256 else STREAM


def survey(path: str, format: str | None = None) -> Source:
    """Look at one input; UserError where it cannot be read."""
    format = file_format(path, format)
    if not Path(path).is_file():
        return Source(path)
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            rows: int | None = count_lines(_hashed(read_blocks(file), digest))
            size = file.tell()
            file.seek(0)
            if format == "parquet":
                rows = count_parquet_rows(path)
            elif file.read(2) == b"\x1f\x8b":
                file.seek(0)
                rows = count_gzip_lines(file)
    except OSError as fault:
        raise UserError(f"{path}: cannot be read: {fault.strerror or fault}") from fault
    if rows and format in ("csv", "tsv"):
        rows -= 1
    return Source(path, size, digest.hexdigest(), rows)


def read_blocks(file: BinaryIO | gzip.GzipFile) -> Iterator[bytes]:
    while block := file.read(BLOCK_BYTES):
        yield block


def _hashed(blocks: Iterable[bytes], digest: hashlib._Hash) -> Iterator[bytes]:
    for block in blocks:
        digest.update(block)
        yield block


def count_lines(blocks: Iterable[bytes]) -> int:
    """Lines in blocks of bytes; a last line without its end counts."""
    count, block = 0, b"\n"
    for block in blocks:
        count += block.count(b"\n")
    return count + (not block.endswith(b"\n"))


def count_gzip_lines(file: BinaryIO) -> int | None:
    """None for a damaged archive: reading its rows says what is wrong."""
    try:
        return count_lines(read_blocks(gzip.GzipFile(fileobj=file)))
    except (OSError, EOFError, zlib.error):
        return None


def count_parquet_rows(path: str) -> int | None:
    """None where it cannot be told: reading the rows says what is wrong."""
    try:
        arrow = require("pyarrow.parquet", "parquet", "Parquet")
        return int(arrow.parquet.read_metadata(path).num_rows)
    except Exception:  # noqa: BLE001
        return None
