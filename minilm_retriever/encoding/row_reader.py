"""The rows of all inputs as shards, and what becomes of the rows that cannot be used."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import BinaryIO

from minilm_retriever.data.rows import BadRow
from minilm_retriever.data.texts import Record, read_texts
from minilm_retriever.encoding.config import EncodeConfig
from minilm_retriever.errors import UserError
from minilm_retriever.storage import atomic_files
from minilm_retriever.vectors.shards import Shard, make_shards


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
            bad_rows.write((json.dumps(vars(row)) + "\n").encode())

        return read_texts(
            self.paths,
            text=config.text,
            id=config.id,
            template=config.template,
            format=config.format,
            on_bad=None if bad_rows is None else write,
        )
