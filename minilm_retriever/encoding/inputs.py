"""The inputs of an encoding: what is known of them beforehand, and their rows as shards."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from minilm_retriever.data.texts import Record, read_texts
from minilm_retriever.encoding.config import EncodeConfig
from minilm_retriever.errors import UserError, require
from minilm_retriever.formats.readers import file_format
from minilm_retriever.formats.rows import OnBad
from minilm_retriever.progress import say
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
        self.bad_rows = config.bad_rows()
        self.stopped = False  # by a bad row

    def shards(self, *, write_bad_rows: bool) -> Iterator[Shard]:
        """The rows as shards. Bad rows go to the file of --skip-bad; where there is none, or there
        are too many of them, the UserError is raised after the shards and bad rows before it."""
        try:
            with self.bad_rows.open(write=write_bad_rows) as on_bad:
                rows = self.rows(on_bad, say if write_bad_rows else None)
                yield from make_shards(rows, self.config.shard_size)
        except UserError:
            self.stopped = True
            raise

    def rows(
        self, on_bad: OnBad | None, on_choice: Callable[[str], object] | None = None
    ) -> Iterator[Record]:
        """The rows of all inputs; see `read_texts`."""
        config = self.config
        return read_texts(
            self.paths,
            text=config.text,
            id=config.id,
            template=config.template,
            on_bad=on_bad,
            on_choice=on_choice,
            **config.reading(),
        )
