"""Decoded lines out of the bytes of a file or of standard input: gzip, UTF-8, counting, limits."""

from __future__ import annotations

import gzip
import io
import os
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from minilm_retriever.data.rows import BadRow, Row
from minilm_retriever.errors import UserError
from minilm_retriever.types import StrPath

STDIN = "-"
MAX_ROW_BYTES = 1 << 26  # a row has to fit in memory, whatever an archive unpacks to


@contextmanager
def open_lines(path: StrPath, name: str) -> Iterator[Lines]:
    """The lines of a file, unpacked where its bytes are gzip; `name` stands in messages."""
    with ExitStack() as stack:
        try:
            stream: Any
            if os.fspath(path) != STDIN:
                stream = stack.enter_context(Path(path).open("rb"))
            elif sys.stdin is None:
                raise UserError("standard input is closed: name a file")
            else:
                stream = sys.stdin.buffer
            if not hasattr(stream, "peek"):
                stream = io.BufferedReader(stream)
            is_gzip = stream.peek(2)[:2] == b"\x1f\x8b"
        except OSError as fault:
            raise UserError(f"{name}: cannot be read: {fault.strerror}") from fault
        yield Lines(name, gzip.GzipFile(fileobj=stream) if is_gzip else stream)


class Lines:
    """Decoded lines, counted, and collected to the row that is being read.

    What is wrong with the bytes of a line is noted, and the whole row is bad for it: half of a row
    of several lines must not be taken for a row of its own."""

    def __init__(self, name: str, stream: io.BufferedIOBase) -> None:
        self.name = name
        self.number = 0  # of the line read last
        self._stream = stream
        self.begin_row()

    def begin_row(self) -> None:
        self.start = self.number + 1
        self.row: list[str] = []  # its lines so far
        self.defect: tuple[int, str] | None = None  # the line and the reason
        self._bytes = 0

    def finish_row(self, values: Mapping[str, object], reason: str = "") -> Row | BadRow:
        """The row of these values, unless there is a reason not to use it."""
        raw = self.row[0] if len(self.row) == 1 else "".join(self.row)
        if not (reason or self.defect):
            return Row(values, self.name, self.start, raw)
        line, reason = self.defect or (self.start, reason)
        return BadRow(f"{self.name}:{line}", reason, raw)

    def __iter__(self) -> Iterator[str]:
        while raw := self._read():
            try:
                line = raw.decode()
            except UnicodeDecodeError as fault:
                line = raw.decode(errors="surrogateescape")
                place = f"byte {raw[fault.start]:#04x}, number {fault.start + 1} of the line"
                self._note(f"not UTF-8 ({place}): save the file as UTF-8")
            if "\0" in line:
                self._note("a NUL character: damaged, binary or UTF-16? Save it as UTF-8 text")
            self.row.append(line)
            yield line

    def _note(self, reason: str) -> None:
        self.defect = self.defect or (self.number, reason)

    def _read(self) -> bytes:
        try:
            raw = self._stream.readline(MAX_ROW_BYTES + 1)
        except (OSError, EOFError, zlib.error) as fault:
            what = f"{self.name}: cannot be read after line {self.number}"
            damaged = "the gzip archive is cut short or damaged"
            raise UserError(f"{what}: {getattr(fault, 'strerror', None) or damaged}") from fault
        if not self.number:
            if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise UserError(f"{self.name}:1: this is UTF-16: save the file as UTF-8")
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        self.number += bool(raw)
        self._bytes += len(raw)
        if self._bytes > MAX_ROW_BYTES:
            size = f"a row of more than {MAX_ROW_BYTES >> 20} MiB"
            where = f"{self.name}:{self.start}"
            raise UserError(f"{where}: {size}: is a line end or quote missing?")
        return raw
