"""Rows of JSON: an object a line, or one array of objects, or objects over several lines. A list
with texts stands for an object with the columns column_1, column_2, ...; a text in an array for one
with the column text."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator

from minilm_retriever.errors import UserError
from minilm_retriever.formats import lines as limits
from minilm_retriever.formats.lines import LONE_CR, Lines
from minilm_retriever.formats.rows import BadRow, Row, by_position, lone_surrogate

# How JSON begins that no CSV begins with: an object, or an array of objects, arrays or texts.
JSON_START = re.compile(r'\s*(\{\s*"|\[\s*[\[{"])')
_ARRAY = re.compile(r'\s*\[\s*([\[{\]]|\Z|"[^\n]*[^\]\s]\s*\n)')  # of texts: several lines of it
_ONE_LINE = re.compile(r"[^\n]*\n?\s*")
_SPREAD = re.compile(r"\s*\{[ \t]*\r?\n")  # an object over several lines
_BETWEEN = re.compile(r"[ \t\r\n]*")
_find_end = json.JSONDecoder().raw_decode


def is_object_line(head: str) -> bool:
    """Whether the first line is a JSON object."""
    try:
        return isinstance(json.loads(head.lstrip().partition("\n")[0]), dict)
    except (ValueError, RecursionError):
        return False


def json_rows(lines: Lines, format: str = "jsonl") -> Iterator[Row | BadRow]:
    """A line `["query", "document"]` is a row of texts, and no array of rows, unless it is all that
    a file of the format json holds."""
    is_list = format == "json" and bool(_ONE_LINE.fullmatch(lines.head))
    if _ARRAY.match(lines.head) or (is_list and lines.head.lstrip().startswith("[")):
        lines.notes.append("one JSON array")
        yield from _array_rows(lines)
        return
    if _SPREAD.match(lines.head):
        lines.notes.append("objects over several lines")
        yield from _spread_rows(lines)
        return
    for line in lines:
        if text := line.strip(" \t\r\n"):
            try:
                row = lines.finish_row(_parse_row(text))
            except ValueError as fault:
                row = lines.finish_row({}, str(fault))
            yield row
        lines.begin_row()


def _parse_row(text: str) -> dict[str, object]:
    try:
        values = _decode(text)
    except json.JSONDecodeError as fault:
        reason = LONE_CR if "\r" in text else f"{fault.msg}, character {fault.pos + 1}"
        raise ValueError(
            f"not JSON: {reason}; every line must be one object (or give its --format)"
        ) from None
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    if isinstance(values, list) and any(isinstance(v, str) for v in values):
        return by_position(values)
    if not isinstance(values, dict):
        kind = type(values).__name__
        raise ValueError(f'{kind} instead of an object like {{"text": "..."}}')
    return values


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return values


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


_decode = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant).decode


# --- one array ------------------------------------------------------------------------------------


class _Text:
    """The unread text of an array, or of objects, a growing piece at a time."""

    def __init__(self, lines: Lines, what: str) -> None:
        self.blocks, self.name, self.what = lines.blocks(), lines.name, what
        self.rest, self.start, self.line = "", 0, 1  # unread text begins at `start`, in `line`
        self.more()

    def more(self) -> bool:
        """Twice as much as there is, so that a long value costs its length; False at the end."""
        pieces, wanted = [self.rest[self.start :]], len(self.rest) - self.start
        count = 0
        while count <= wanted and (piece := next(self.blocks, "")):
            pieces.append(piece)
            count += len(piece)
        self.rest, self.start = "".join(pieces), 0
        return count > 0

    def skip_to(self, end: int) -> str:
        """The text up to `end`, which is read now."""
        text = self.rest[self.start : end]
        self.line += text.count("\n")
        self.start = end
        return text

    def next_sign(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            match = _BETWEEN.match(self.rest, self.start)
            self.skip_to(match.end() if match else self.start)
            if self.start < len(self.rest) or not self.more():
                return self.rest[self.start : self.start + 1]

    def take(self) -> str:
        """The next sign, which is read now."""
        sign = self.next_sign()
        self.start += len(sign)
        return sign

    def fail(self, message: str, at: int) -> UserError:
        line = self.line + self.rest.count("\n", self.start, at)
        return UserError(f"{self.name}:{line}: not {self.what}: {message}")


def _array_rows(lines: Lines) -> Iterator[Row | BadRow]:
    text = _Text(lines, "a JSON array")
    sign = text.take()  # the bracket that opens it
    if text.next_sign() == "]":
        sign = text.take()
    while sign != "]":
        text.next_sign()
        yield _element(text)
        sign = text.take()
        if sign not in (",", "]"):
            raise text.fail("a comma or ] is missing", text.start)
    if text.next_sign():
        raise text.fail("something follows its end", text.start)


def _spread_rows(lines: Lines) -> Iterator[Row | BadRow]:
    """Of objects one after the other, with commas between or not."""
    text = _Text(lines, "JSON objects")
    while text.next_sign():
        yield _element(text)
        if text.next_sign() == ",":
            text.take()


def _element(text: _Text) -> Row | BadRow:
    """The value that begins here, as a row."""
    while True:
        try:
            _, end = _find_end(text.rest, text.start)
            break
        except json.JSONDecodeError as fault:
            if len(text.rest) - text.start > limits.MAX_ROW_BYTES:
                raise limits.too_large(text.name, text.line) from None
            if not text.more():
                raise text.fail(fault.msg, fault.pos) from None
        except RecursionError:
            raise text.fail("nested too deeply", text.start) from None
    line, raw = text.line, text.skip_to(end)
    try:
        if (place := lone_surrogate(raw)) is not None:
            byte = ord(raw[place]) - 0xDC00
            raise ValueError(f"not UTF-8 (byte {byte:#04x}): give its --encoding")
        values = {"text": json.loads(raw)} if raw.startswith('"') else _parse_row(raw)
        return Row(values, text.name, line, raw)
    except ValueError as fault:
        return BadRow(f"{text.name}:{line}", str(fault), raw)
