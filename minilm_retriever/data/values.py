"""What the values of a column are, by a sample of them: text, or ids, numbers, dates, labels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

TEXT, LISTS, NOTHING = "text", "lists of texts", "nothing"
IDS, LABELS, DATES, WHOLE, NUMBERS = "ids", "labels", "dates", "whole numbers", "numbers"
TRUTH, OBJECTS, WRITTEN = "true or false", "other values", "lists written as text"
MOST = 0.9  # of the values are of a kind, or the column is of text
_WHOLE = re.compile(r"[+-]?\d{1,20}")
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)(e[+-]?\d+)?%?", re.IGNORECASE)
_MONTH = "(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
_TIME = r"\d{1,2}:\d{2}(:\d{2})?.{0,12}"
_DATE = re.compile(
    rf"(\d{{1,4}}([-/.])\d{{1,2}}\2\d{{1,4}}|\d{{1,2}}\.? {_MONTH}\.?,? \d{{4}}|"
    rf"{_MONTH}\.? \d{{1,2}},? \d{{4}})([T, ]+{_TIME})?|{_TIME}",
    re.IGNORECASE,
)
_CODE = re.compile(r"(?=\S*\d)[!-~]{1,64}|[a-z+]+://\S+")  # ASCII without spaces, with a digit
_LIST = re.compile(r"\s*\[.*\]\s*", re.DOTALL)
LONGEST = 200  # characters: longer values are text


def is_empty(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def is_number(text: str) -> bool:
    return bool(_NUMBER.fullmatch(text.strip()))


def kind_of(values: Iterable[object]) -> str:
    """The kind of a column, of which these are some values."""
    present = [value for value in values if not is_empty(value)]
    if not present:
        return NOTHING
    kinds = Counter(map(_kind, present))
    if kinds.keys() == {WHOLE, NUMBERS}:
        return NUMBERS
    kind, count = kinds.most_common(1)[0]
    if count < MOST * len(present):
        kind = TEXT if TEXT in kinds else kind
    if kind == TEXT and all(isinstance(v, str) and _LIST.fullmatch(v) for v in present):
        return WRITTEN
    return LABELS if kind == TEXT and _are_labels(present) else kind


def _are_labels(values: list[object]) -> bool:
    """A few words again and again."""
    few = set[object]()
    for value in values:
        if not isinstance(value, str) or len(value) > 30 or len(value.split()) > 1:
            return False
        few.add(value)
    return len(values) >= 20 and len(few) * 10 <= len(values)


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return _kind_of_text(value.strip())
    if isinstance(value, bool):
        return TRUTH
    if isinstance(value, (int, float)):
        return WHOLE if isinstance(value, int) else NUMBERS
    is_list = type(value) in (list, tuple)
    return LISTS if is_list and all(isinstance(v, (str, dict)) for v in value) else OBJECTS


def _kind_of_text(text: str) -> str:
    if len(text) > LONGEST:
        return TEXT
    if _WHOLE.fullmatch(text):
        return WHOLE
    for kind, pattern in ((NUMBERS, _NUMBER), (DATES, _DATE), (IDS, _CODE)):
        if pattern.fullmatch(text):
            return kind
    return TEXT
