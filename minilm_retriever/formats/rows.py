"""One row of a file, and the values that its columns must hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from typing import NamedTuple

from minilm_retriever.errors import UserError
from minilm_retriever.formats.names import listed, position_names
from minilm_retriever.formats.values import is_empty, is_missing


class BadRow(UserError):
    """A row that cannot be used: raised, or given to `on_bad`.

    Bytes that are no UTF-8 stand in `raw` as Python's surrogateescape."""

    def __init__(self, where: str, reason: str, raw: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where, self.reason, self.raw = where, reason, raw.rstrip("\r\n")

    @property
    def size(self) -> int:
        """In characters."""
        return len(self.raw)

    def __reduce__(self) -> tuple[type[BadRow], tuple[str, str, str]]:
        return BadRow, (self.where, self.reason, self.raw)


class EmptyText(BadRow):
    """A row without a text where one is needed."""


OnBad = Callable[[BadRow], object]


class NoValue(NamedTuple):
    """Stands for a value of a type that is neither text nor number."""

    type: str

    def __repr__(self) -> str:
        return f"<{self.type}>"


class Row(NamedTuple):
    """One row: its values by column, and the line where it starts, from 1 (of Parquet: the row).

    A method gives a column's value as what it is needed for, and raises BadRow where it is not."""

    values: Mapping[str, object]
    path: str
    line: int
    raw: str  # the text it was read from, as far as there is one

    @property
    def where(self) -> str:
        """`path:line`, for a message about this row."""
        return f"{self.path}:{self.line}"

    @property
    def size(self) -> int:
        """In characters, about."""
        return len(self.raw) or sum(len(v) for v in self.values.values() if isinstance(v, str))

    def bad(self, reason: str) -> BadRow:
        return BadRow(self.where, reason, self.raw or repr(self.values))

    def value(self, column: str) -> object:
        if column not in self.values:
            raise self.bad(f"no column {column!r}; there are: {listed(self.values)}")
        return self.values[column]

    def text(self, column: str) -> str:
        """Text that UTF-8 can hold, maybe empty."""
        return self._checked(column, self.value(column))

    def _checked(self, column: str, value: object) -> str:
        if not isinstance(value, str):
            what = f"column {column!r} holds {describe_type(value)} instead of text"
            is_nested = isinstance(value, (list, tuple, Mapping, NoValue))
            mend = "spread it into columns or rows" if is_nested else "put it in quotes"
            mend = "fill it in" if value is None else mend
            raise self.bad(f"{what}: {mend} or leave the row out")
        if (place := lone_surrogate(value)) is not None:
            half = f"half a character (\\u{ord(value[place]):04x}, a lone surrogate)"
            raise self.bad(f"column {column!r} holds {half}: correct it")
        return value

    def filled_text(self, column: str) -> str:
        return self._filled(column, self.value(column))

    def _filled(self, column: str, value: object) -> str:
        text = self._checked(column, value)
        if not text or text.isspace():
            raise self.empty(column, "is empty")
        if is_missing(text):
            raise self.empty(column, f"holds {text.strip()!r}, which stands for nothing")
        return text

    def empty(self, column: str, what: str) -> EmptyText:
        reason = f"column {column!r} {what}: fill it in or leave the row out"
        return EmptyText(self.where, reason, self.raw or repr(self.values))

    def texts(self, column: str) -> list[str]:
        """The texts of a column that holds a text, a list of them, or nothing.

        An element may be an object with a text and maybe a title, as Tevatron has passages."""
        value = self.values.get(column)
        held = value if isinstance(value, (list, tuple)) else [value]
        texts = [self._passage(column, element) for element in held if not is_empty(element)]
        return [self._checked(column, text) for text in texts if not is_missing(text)]

    def _passage(self, column: str, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        parts = [self._checked(column, value[key]) for key in ("title", "text") if value.get(key)]
        return " ".join(parts)

    def id(self, column: str) -> str:
        """Text that is not empty, or a whole number."""
        value = self.value(column)
        text = str(value) if type(value) is int else self.text(column)
        if not text:
            raise self.bad(f"column {column!r} is empty: every row needs its id")
        return text

    def number(self, column: str) -> float:
        """A finite number, or text that spells one."""
        value, number = self.value(column), math.nan
        if isinstance(value, (int, float, str, Decimal)) and not isinstance(value, bool):
            with suppress(ValueError, OverflowError):
                number = math.nan if "_" in str(value) else float(value)
        if not math.isfinite(number):
            shown = repr(value)[:40] if isinstance(value, str) else describe_type(value)
            raise self.bad(f"column {column!r} holds {shown} instead of a number")
        return number


def by_position(values: Sequence[object]) -> dict[str, object]:
    """The values of a row whose columns have no names."""
    return dict(zip(position_names(len(values)), values, strict=True))


def lone_surrogate(text: str) -> int | None:
    """Index of the first lone surrogate, which UTF-8 cannot hold; None where there is none."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as fault:
            return fault.start
    return None


_TYPES = {type(None): "nothing (null)", dict: "an object", list: "a list", bool: "true or false"}
_TYPES |= {int: "a number", float: "a number"}


def describe_type(value: object) -> str:
    if isinstance(value, NoValue):
        return f"a value of the type {value.type}"
    return _TYPES.get(type(value), f"a value of the type {type(value).__name__}")
