"""Decoded lines out of the bytes of a file or of standard input: counting, defects, limits."""

from __future__ import annotations

import codecs
import gzip
import io
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from minilm_retriever.errors import UserError
from minilm_retriever.formats import encodings
from minilm_retriever.formats.rows import BadRow, Row
from minilm_retriever.types import StrPath

STDIN = "-"
MAX_ROW_BYTES = 1 << 26  # a row has to fit in memory, whatever an archive unpacks to
LONE_CR = r"a carriage return (\r) that ends no line: end lines with \n or \r\n"
FOREIGN = {  # first bytes of what is no text
    b"PK\x03\x04": "a zip archive or an Excel workbook: unpack it, or save it as CSV",
    b"BZh": "a bzip2 archive: unpack it first",
    b"\xfd7zXZ": "an xz archive: unpack it first",
    b"\x28\xb5\x2f\xfd": "a zstd archive: unpack it first",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook: save it as CSV",
    b"%PDF-": "a PDF: save its text",
    b"SQLite format 3": "a database: save its table as CSV",
    b"ARROW1": "an Arrow file: save it as Parquet",
    b"FEA1": "a Feather file: save it as Parquet",
    b"Obj\x01": "an Avro file: save it as Parquet",
    b"\x93NUMPY": "an array of NumPy: save its texts",
    b"\x89HDF": "an HDF5 file: save its table as Parquet",
    b"\x80\x04\x95": "a pickle, which is never opened: save it as Parquet",
    b"\x80\x05\x95": "a pickle, which is never opened: save it as Parquet",
    b"\x1f\x8b": "gzip within gzip: unpack it once",
    b"7z\xbc\xaf": "a 7-Zip archive: unpack it first",
    b"Rar!": "a RAR archive: unpack it first",
    b"{\\rtf": "an RTF document: save it as plain text",
    b"version https://git-lfs": "a pointer of Git LFS: fetch the file itself (git lfs pull)",
    b"<!DOCTYPE html": "a web page: is it a download that failed?",
}


@contextmanager
def open_lines(path: StrPath, name: str, encoding: str | None = None) -> Iterator[Lines]:
    """The lines of a file, unpacked where its bytes are gzip; `name` stands in messages."""
    encoding = encodings.check_encoding(encoding) if encoding else None
    with ExitStack() as stack:
        try:
            stream: Any
            if os.fspath(path) != STDIN:
                stream = stack.enter_context(Path(path).open("rb"))
            elif sys.stdin is None:
                raise UserError("standard input is closed: name a file")
            else:
                stream = sys.stdin.buffer
            start, blocks = encodings.peek(encodings.blocks_of(stream), 8)
        except OSError as fault:
            raise UserError(f"{name}: cannot be read: {fault.strerror}") from fault
        if start.startswith(b"\x1f\x8b"):
            packed = gzip.GzipFile(fileobj=io.BufferedReader(encodings.Stream(blocks)))
            blocks = encodings.blocks_of(packed)
        head, blocks = encodings.peek(blocks, encodings.HEAD_BYTES)
        for start, what in FOREIGN.items():
            if head.startswith(start):
                raise UserError(f"{name}: this is {what}")
        encoding, note = (encoding, "") if encoding else encodings.find_encoding(head)
        if encoding != "utf-8":
            blocks = encodings.recode(blocks, encoding)
            head, blocks = encodings.peek(blocks, encodings.HEAD_BYTES)
        lines = Lines(name, io.BufferedReader(encodings.Stream(blocks), encodings.HEAD_BYTES), head)
        lines.notes += [note] if note else []
        yield lines


class Lines:
    """Decoded lines, counted, and collected to the row that is being read.

    What is wrong with the bytes of a line is noted, and the whole row is bad for it: half of a row
    of several lines must not be taken for a row of its own."""

    def __init__(self, name: str, stream: io.BufferedIOBase, head: bytes = b"") -> None:
        self.name = name
        self.head = head.removeprefix(codecs.BOM_UTF8).decode(errors="replace")  # how it begins
        self.is_whole = len(head) < encodings.HEAD_BYTES  # the head is all there is
        self.notes: list[str] = []  # what was found out about the file
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
        while raw := self._readline():
            try:
                line = raw.decode()
            except UnicodeDecodeError as fault:
                line = raw.decode(errors="surrogateescape")
                place = f"byte {raw[fault.start]:#04x}, number {fault.start + 1} of the line"
                self._note(f"not UTF-8 ({place}): save the file as UTF-8, or give its --encoding")
            if "\0" in line:
                self._note("a NUL character: damaged, binary or UTF-16? Give its --encoding")
            self.row.append(line)
            yield line

    def blocks(self) -> Iterator[str]:
        """The text in pieces that end anywhere, for what is not read by lines.

        Bytes that are no UTF-8 stand as Python's surrogateescape."""
        decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        while raw := self._guarded(lambda: self._stream.read(encodings.HEAD_BYTES)):
            text = decoder.decode(raw)
            yield text
            self.number += text.count("\n")
        yield decoder.decode(b"", True)

    def _note(self, reason: str) -> None:
        self.defect = self.defect or (self.number, reason)

    def _readline(self) -> bytes:
        raw = self._guarded(lambda: self._stream.readline(MAX_ROW_BYTES + 1))
        if not self.number:
            raw = raw.removeprefix(codecs.BOM_UTF8)
        self.number += bool(raw)
        self._bytes += len(raw)
        if self._bytes > MAX_ROW_BYTES:
            raise too_large(self.name, self.start)
        return raw

    def _guarded(self, read: Callable[[], bytes]) -> bytes:
        try:
            return read()
        except (OSError, EOFError, zlib.error, UnicodeError) as fault:
            what = f"{self.name}: cannot be read after line {self.number}"
            damaged = "the gzip archive is cut short or damaged"
            if isinstance(fault, UnicodeError):
                damaged = f"{fault}: is its --encoding another?"
            raise UserError(f"{what}: {getattr(fault, 'strerror', None) or damaged}") from fault


def too_large(name: str, line: int) -> UserError:
    size = f"a row of more than {MAX_ROW_BYTES >> 20} MiB"
    return UserError(f"{name}:{line}: {size}: is a line end, bracket or quote missing?")
