"""Decoded lines out of the bytes of a file or of standard input: gzip, UTF-8, counting, limits."""

from __future__ import annotations

import gzip
import io
import os
import sys
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from minilm_retriever.errors import UserError

StrPath = str | os.PathLike[str]

STDIN = "-"
LONGEST = 1 << 26  # bytes of one row; a row has to fit in memory, whatever an archive unpacks to


@contextmanager
def opened(path: StrPath, name: str) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked where they are gzip."""
    with ExitStack() as stack:
        try:
            raw = (
                sys.stdin.buffer
                if os.fspath(path) == STDIN
                else stack.enter_context(Path(path).open("rb"))
            )
            stream: Any = raw if hasattr(raw, "peek") else io.BufferedReader(cast(Any, raw))
            packed = stream.peek(2)[:2] == b"\x1f\x8b"
        except OSError as fault:
            raise UserError(f"{name}: cannot be read: {fault.strerror}") from fault
        yield cast(BinaryIO, gzip.GzipFile(fileobj=stream)) if packed else stream


class Lines:
    """Decoded lines, counted. What is wrong with a line is noted and told when the row that it
    belongs to is complete.

    So a row of several lines is set aside as a whole, and never half of it taken for a row of its
    own."""

    def __init__(self, name: str, stream: BinaryIO) -> None:
        self.name = name
        self.number = 0  # of the line read last
        self.row: list[str] = []  # lines of the row being read
        self.fault: tuple[int, str] | None = None
        self._size = 0
        self._stream = stream

    def begin(self) -> None:
        """Forget the row before."""
        self.row = []
        self.fault = None
        self._size = 0

    def __iter__(self) -> Iterator[str]:
        while raw := self._read():
            try:
                line = raw.decode()
            except UnicodeDecodeError as fault:
                line = raw.decode(errors="surrogateescape")
                place = f"byte {raw[fault.start]:#04x}, number {fault.start + 1} of the line"
                self._note(f"not UTF-8 ({place}): save the file as UTF-8")
            if "\0" in line:
                self._note(
                    "a NUL character: the file is damaged, binary or UTF-16; save it as UTF-8 text"
                )
            self.row.append(line)
            yield line

    def _note(self, reason: str) -> None:
        self.fault = self.fault or (self.number, reason)

    def _read(self) -> bytes:
        try:
            raw = self._stream.readline(LONGEST + 1)
        except (EOFError, zlib.error) as fault:
            raise UserError(
                f"{self.name}: the gzip archive is cut short or damaged after line {self.number}"
            ) from fault
        except OSError as fault:
            reason = fault.strerror or f"the gzip archive is damaged: {fault}"
            raise UserError(
                f"{self.name}: cannot be read after line {self.number}: {reason}"
            ) from fault
        if not self.number:
            if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise UserError(f"{self.name}:1: this is UTF-16: save the file as UTF-8")
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if raw:
            self.number += 1
        self._size += len(raw)
        if self._size > LONGEST:
            start = self.number - len(self.row)
            raise UserError(
                f"{self.name}:{start}: a row of more than {LONGEST >> 20} MiB: is a line end or quote missing?"
            )
        return raw
