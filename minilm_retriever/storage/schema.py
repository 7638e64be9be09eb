"""What a manifest has to say, checked before it is used: a folder may be a stranger's, with every
sum right.

    check_fields("v/manifest.json", info, {"rows": integer(0, 1 << 40), "unit": BOOLEAN})"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from minilm_retriever.errors import UserError

SHOWN_CHARACTERS = 60


class Field(NamedTuple):
    """What a value must be, in words and as a test."""

    words: str
    test: Callable[[Any], bool]


def check_fields(where: str, content: object, fields: Mapping[str, Field]) -> None:
    """UserError naming the first key whose value is missing or not what it must be."""
    if not isinstance(content, Mapping):
        raise UserError(f"{where}: must be an object, not {_shown(content)}")
    for name, field in fields.items():
        if name not in content:
            raise UserError(f"{where}: has no {name!r}: make the folder again")
        if not field.test(content[name]):
            value = _shown(content[name])
            raise UserError(f"{where}: {name} must be {field.words}, not {value}")


def _shown(value: object) -> str:
    text = repr(value)[:SHOWN_CHARACTERS]
    return text if len(text) < SHOWN_CHARACTERS else f"{text}..."


def integer(least: int, most: int) -> Field:
    words = f"an integer from {least} to {most}"
    return Field(words, lambda value: type(value) is int and least <= value <= most)


def one_of(values: Collection[str]) -> Field:
    words = f"one of {', '.join(values)}"
    return Field(words, lambda value: isinstance(value, str) and value in values)


def text(most: int) -> Field:
    def test(value: Any) -> bool:
        return isinstance(value, str) and 0 < len(value) <= most and "\0" not in value

    return Field(f"a text of at most {most} characters", test)


def list_of(item: Field, least: int, most: int) -> Field:
    def test(value: Any) -> bool:
        return (
            isinstance(value, list) and least <= len(value) <= most and all(map(item.test, value))
        )

    return Field(f"a list of {least} to {most}, each {item.words}", test)


def optional(field: Field) -> Field:
    return Field(f"{field.words}, or null", lambda value: value is None or field.test(value))


def _is_float32(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) <= 3.4e38


BOOLEAN = Field("true or false", lambda value: type(value) is bool)
FLOAT32 = Field("a finite float32", _is_float32)
OBJECT = Field("an object", lambda value: isinstance(value, dict))
