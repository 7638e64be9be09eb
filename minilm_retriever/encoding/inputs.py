"""The inputs of an encoding: what is known of them beforehand, and their rows as shards."""

from __future__ import annotations

import gzip
import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple

from minilm_retriever.data.readers import file_format
from minilm_retriever.data.rows import BadRow
from minilm_retriever.data.texts import Record, read_texts
from minilm_retriever.encoding.config import EncodeConfig
from minilm_retriever.errors import UserError, require
from minilm_retriever.progress import json_line
from minilm_retriever.storage import atomic_files
from minilm_retriever.vectors.shards import Shard, make_shards

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
            is_gzip = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            rows: int | None = count_lines(file, digest)
            size = file.tell()
    except OSError as fault:
        raise UserError(f"{path}: cannot be read: {fault.strerror or fault}") from fault
    if is_gzip or format == "parquet":
        rows = count_packed_rows(path, format)
    if rows and format in ("csv", "tsv"):
        rows -= 1
    return Source(path, size, digest.hexdigest(), rows)


def count_lines(file: IO[bytes] | gzip.GzipFile, digest: hashlib._Hash | None = None) -> int:
    """Lines of a file, a last one without its end too; `digest` is of all its bytes."""
    count, last = 0, b"\n"
    while block := file.read(BLOCK_BYTES):
        if digest:
            digest.update(block)
        count, last = count + block.count(b"\n"), block[-1:]
    return count + (last != b"\n")


def count_packed_rows(path: str, format: str) -> int | None:
    """Rows in Parquet, lines in gzip; None where it is damaged: reading the rows says how."""
    try:
        if format == "parquet":
            arrow = require("pyarrow.parquet", "parquet", "Parquet")
            return int(arrow.parquet.read_metadata(path).num_rows)
        with gzip.open(path) as file:
            return count_lines(file)
    except Exception:  # noqa: BLE001
        return None


class RowReader:
    """Reads the inputs, and counts the bad rows."""

    def __init__(self, config: EncodeConfig, paths: Sequence[str]) -> None:
        self.config, self.paths = config, paths
        self.bad_rows = 0
        self.stopped = False  # by a bad row

    def shards(self, *, write_bad_rows: bool) -> Iterator[Shard]:
        """The rows as shards. Bad rows go to the file of --skip-bad; where there is none, or there
        are too many of them, the UserError is raised after the shards and bad rows before it."""
        path = self.config.skip_bad
        bad_rows = nullcontext(io.BytesIO() if path else None)
        with atomic_files.writing(path) if path and write_bad_rows else bad_rows as stream:
            try:
                yield from make_shards(self.rows(stream), self.config.shard_size)
                return
            except UserError as fault:
                self.stopped, error = True, fault
        raise error

    def rows(self, bad_rows: BinaryIO | None) -> Iterator[Record]:
        """The rows of all inputs; bad ones are written to `bad_rows`, or raised without it."""
        config = self.config

        def write(row: BadRow) -> None:
            self.bad_rows += 1
            if self.bad_rows > config.max_bad:
                limit = f"one more bad row than --max-bad {config.max_bad} allows"
                raise UserError(f"{row}; and that is {limit} (the others are in {config.skip_bad})")
            assert bad_rows is not None
            bad_rows.write((json_line(vars(row)) + "\n").encode("utf-8", "backslashreplace"))

        return read_texts(
            self.paths,
            text=config.text,
            id=config.id,
            template=config.template,
            format=config.format,
            on_bad=None if bad_rows is None else write,
        )
