"""One value of a row: the text, the id or the number that a column must hold."""

from __future__ import annotations

import math

from minilm_retriever.data.readers import NoValue, Row


class Unusable(Exception):
    """What is wrong with a row."""


def value_of(row: Row, column: str) -> object:
    try:
        return row.values[column]
    except KeyError:
        raise Unusable(
            f"no column {column!r}; there are: {', '.join(row.values) or 'none'}"
        ) from None


def text_of(row: Row, column: str) -> str:
    value = value_of(row, column)
    if not isinstance(value, str):
        raise Unusable(
            f"column {column!r} holds {kind_of_value(value)} instead of text: put it in quotes or leave the row out"
        )
    if (place := lone_surrogate(value)) is not None:
        half = f"\\u{ord(value[place]):04x}"
        raise Unusable(
            f"column {column!r} holds half a character ({half}, a lone surrogate): mend it"
        )
    return value


def lone_surrogate(text: str) -> int | None:
    """Index of the first lone surrogate, which UTF-8 cannot hold; None where there is none."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as fault:
            return fault.start
    return None


def filled_text(row: Row, column: str) -> str:
    value = text_of(row, column)
    if not value or value.isspace():
        raise Unusable(f"column {column!r} is empty: fill it in or leave the row out")
    return value


def id_of(row: Row, column: str) -> str:
    value = value_of(row, column)
    if type(value) is int:
        return str(value)
    text = text_of(row, column)
    if not text:
        raise Unusable(f"column {column!r} is empty: every row needs its id")
    return text


def number_of(row: Row, column: str) -> float:
    value = value_of(row, column)
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)) or "_" in str(value):
            raise ValueError
        number = float(value)
        if not math.isfinite(number):
            raise ValueError
    except (ValueError, OverflowError):
        shown = repr(value)[:40] if isinstance(value, str) else kind_of_value(value)
        raise Unusable(f"column {column!r} holds {shown} instead of a number") from None
    return number


def kind_of_value(value: object) -> str:
    if isinstance(value, NoValue):
        return f"a value of the type {value.type}"
    kinds: dict[type, str] = {
        dict: "an object",
        list: "a list",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return "nothing (null)" if value is None else kinds.get(type(value), type(value).__name__)
