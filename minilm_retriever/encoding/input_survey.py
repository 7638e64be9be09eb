"""What lies before a long job: the size, the sum and the number of rows of its inputs, in one fast
pass."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from minilm_retriever.data.readers import file_format
from minilm_retriever.errors import UserError

BLOCK = 1 << 20


class Source(NamedTuple):
    """An input: a file, or standard input and pipes, of which nothing is known beforehand."""

    path: str
    bytes: int | None = None
    sha256: str | None = None
    rows: int | None = (
        None  # by line ends: a few more than there are, where lines are blank or rows have several
    )

    def identity(self) -> str:
        """What tells whether the file is still the same, in words."""
        return f"{self.bytes:,} bytes, sha256 {self.sha256}" if self.sha256 else "a stream"


def survey(paths: Sequence[str], format: str | None = None) -> list[Source]:
    """Each input's Source; UserError for what cannot be read."""
    return [look_at(path, format) for path in paths]


def look_at(path: str, format: str | None = None) -> Source:
    """One input's Source."""
    kind = file_format(path, format)
    if not Path(path).is_file():
        return Source(path)
    try:
        digest, lines, size = hashlib.sha256(), LineCount(), 0
        with Path(path).open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            while block := file.read(BLOCK):
                digest.update(block)
                lines.add(block)
                size += len(block)
            rows = (
                parquet_rows(path)
                if kind == "parquet"
                else count_packed(file)
                if packed
                else lines.total
            )
    except OSError as fault:
        raise UserError(f"{path}: cannot be read: {fault.strerror or fault}") from fault
    if rows and kind in ("csv", "tsv"):
        rows -= 1
    return Source(path, size, digest.hexdigest(), rows)


class LineCount:
    """Lines in blocks of bytes; a last line without its end counts."""

    def __init__(self) -> None:
        self.ends, self.open = 0, False

    def add(self, block: bytes) -> None:
        """Count a block."""
        self.ends += block.count(b"\n")
        self.open = not block.endswith(b"\n")

    @property
    def total(self) -> int:
        """Lines so far."""
        return self.ends + self.open


def count_packed(file: BinaryIO) -> int | None:
    """Lines in a gzip archive; None for a damaged one: reading its rows says so in full."""
    file.seek(0)
    lines = LineCount()
    try:
        for block in blocks(gzip.GzipFile(fileobj=file)):
            lines.add(block)
    except (OSError, EOFError, zlib.error):
        return None
    return lines.total


def blocks(file: gzip.GzipFile) -> Iterator[bytes]:
    """A file's bytes, a block at a time."""
    while block := file.read(BLOCK):
        yield block


def parquet_rows(path: str) -> int | None:
    """Rows of a Parquet file; None where that cannot be told: reading its rows says why."""
    try:
        import pyarrow.parquet

        return int(pyarrow.parquet.read_metadata(path).num_rows)
    except Exception:  # noqa: BLE001 - whatever is wrong, reading the rows meets it again and names it
        return None
