"""Rows that cannot be used, set aside in a file of JSON lines: where, reason, raw."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from minilm_retriever.errors import UserError
from minilm_retriever.formats.rows import BadRow, OnBad
from minilm_retriever.storage import atomic_files


@dataclass
class BadRowFile:
    """Counts bad rows, and writes them to `path`, if there is one."""

    path: str | None = None  # of --skip-bad
    limit: int = 1000  # of --max-bad
    count: int = 0

    def check(self, may_replace: bool, inputs: Iterable[str | None]) -> None:
        """UserError, before the work, where the file is there already, or is one of the inputs."""
        if self.path is not None:
            atomic_files.check_not_input(self.path, inputs, "--skip-bad")
            place = Path(self.path)
            atomic_files.clean_stale(place.parent, place.name)
            if place.exists() and not may_replace:
                what = f"{place}: exists; name another file for bad rows"
                raise UserError(f"{what}, or replace it with --overwrite")

    @contextmanager
    def open(self, *, write: bool = True) -> Iterator[OnBad | None]:
        """What takes bad rows; None without a file: the first one is an error then.

        A UserError is raised once the file holds what was set aside before it."""
        problem: UserError | None = None
        if self.path is None:
            yield None
            return
        with atomic_files.writing(self.path) if write else nullcontext(io.BytesIO()) as stream:
            try:
                yield partial(self.add, stream)
            except UserError as error:
                problem = error
        if problem:
            raise problem

    def add(self, stream: BinaryIO, row: BadRow) -> None:
        self.count += 1
        if self.count > self.limit:
            more = f"and that is one more bad row than --max-bad {self.limit} allows"
            raise UserError(f"{row}; {more} (the others are in {self.path})")
        stream.write((json.dumps(vars(row), allow_nan=False) + "\n").encode())
