"""Bytes to UTF-8: gzip, byte order marks, and the encodings that Excel and old tools write.

Without a name the encoding is found in the first HEAD_BYTES: a byte order mark, the NULs of UTF-16,
else UTF-8. Bytes that are no UTF-8 are Windows' Western encoding (cp1252) where they look like it:
accented letters inside words, curly quotes. All else stays UTF-8, so that its rows are bad."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any

from minilm_retriever.errors import UserError

HEAD_BYTES = 1 << 16
_MARKS = {  # UTF-32's mark begins with UTF-16's
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
    codecs.BOM_UTF8: "utf-8",
}
_MULTIBYTE = re.compile(rb"[\xc2-\xf4][\x80-\xbf]")
_HIGH = re.compile(rb"[\x80-\xff]")
_WESTERN = re.compile(  # a letter beside an ASCII letter, or a sign that typesetting uses
    rb"(?<=[A-Za-z])[\xc0-\xff]|[\xc0-\xff](?=[A-Za-z])|[\x80\x82\x84\x85\x91-\x97\x99\xa0-\xbf]"
)
# What no Western language has: signs that open a quotation behind a letter (they are letters in
# DOS' encodings), letters of Iceland (of Turkey in cp1254) without the accents it writes with.
_DOS = re.compile(rb"[A-Za-z][\x81\x82\x84\x87\x88]")
_TURKISH = re.compile(rb"[\xd0\xdd\xde\xf0\xfd\xfe]")
_ICELANDIC = re.compile(rb"[\xe1\xe6\xed\xf3\xfa]")
_WORD = re.compile(r"\w*[^\W\d_\x00-\x7f]\w*")


class Stream(io.RawIOBase):
    """Blocks of bytes as a raw stream, to be buffered."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self._rest = blocks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._rest = memoryview(block)
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


def blocks_of(stream: io.BufferedIOBase) -> Iterator[bytes]:
    """What a stream holds, as it comes."""
    while block := stream.read1(HEAD_BYTES):
        yield block


def peek(blocks: Iterator[bytes], size: int) -> tuple[bytes, Iterator[bytes]]:
    """The first `size` bytes or more, fewer where there are no more, and all blocks again.

    What goes wrong meanwhile is raised where those bytes end."""
    head, count = list[bytes](), 0

    def fail(fault: Exception) -> Iterator[bytes]:
        raise fault
        yield b""

    while count < size:
        try:
            block = next(blocks, None)
        except Exception as fault:  # noqa: BLE001 - it is raised again, at its place
            return b"".join(head), chain(head, fail(fault))
        if block is None:
            break
        head.append(block)
        count += len(block)
    return b"".join(head), chain(head, blocks)


def check_encoding(name: str) -> str:
    """UserError for a name that is no encoding of text."""
    try:
        codec = codecs.lookup(name)
        "".encode(codec.name)  # not so with those that make bytes of bytes
    except (LookupError, ValueError) as fault:
        hint = "such as utf-8, utf-16, cp1252 or shift_jis"
        raise UserError(f"--encoding {name!r} is not known: name one {hint}") from fault
    return codec.name


def find_encoding(head: bytes) -> tuple[str, str]:
    """The encoding of a file that begins so, and a note where it is not plain UTF-8."""
    for mark, name in _MARKS.items():
        if head.startswith(mark):
            return name, "" if name == "utf-8" else f"{name[:6]} by its byte order mark"
    for first, name in ((0, "utf-16-be"), (1, "utf-16-le")):
        zeros, others = head[first::2].count(0), head[1 - first :: 2].count(0)
        if len(head) > 3 and 5 * zeros > 2 * len(head) and not others:
            return name, f"{name} by its NULs (--encoding names another)"
    high = len(_HIGH.findall(head))
    if not high or _MULTIBYTE.search(head) or 2 * len(_WESTERN.findall(head)) < high:
        return "utf-8", ""
    if _DOS.search(head) or (_TURKISH.search(head) and not _ICELANDIC.search(head)):
        return "utf-8", ""
    try:
        words = _WORD.findall(head.decode("cp1252"))
    except UnicodeDecodeError:
        return "utf-8", ""
    such = f", such as {max(words[:50], key=len)[:30]!r}" if words else ""
    return "cp1252", f"not UTF-8: read as cp1252 (--encoding names another){such}"


def recode(blocks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    """Blocks of UTF-8; a byte that the encoding does not know stays as it is, which is no UTF-8."""
    errors = "strict" if encoding.startswith(("utf-16", "utf-32")) else "surrogateescape"
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    for block in chain(blocks, [b""]):
        text = decoder.decode(block, not block)
        yield text.encode("utf-8", "surrogateescape")
