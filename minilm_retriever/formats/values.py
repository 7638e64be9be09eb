"""What the values of a column are, by a sample of them: text, or ids, numbers, dates, labels."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from decimal import Decimal
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
    rf"([a-z]{{3,9}}, )?(\d{{1,4}}([-/.])\d{{1,2}}\3\d{{1,4}}|\d{{1,2}}\.? {_MONTH}\.?,? \d{{4}}|"
    rf"{_MONTH}\.? \d{{1,2}},? \d{{4}})([T, ]+{_TIME})?|{_TIME}",
    re.IGNORECASE,
)
# Words that say whether the texts of a row belong together.
YES = re.compile(
    r"1(\.0)?|true|t|yes|y|pos|positive|entailment|relevant|related|duplicate|match|paraphrase|"
    r"correct|equivalent|similar|good",
    re.IGNORECASE,
)
NO = re.compile(
    r"-?[01](\.0)?|false|f|no|n|none|neg|negative|neutral|contradiction|irrelevant|unrelated|"
    r"different|mismatch|incorrect|dissimilar|bad|not?[ _-](duplicate|relevant|match|equivalent)",
    re.IGNORECASE,
)
_CODE = re.compile(r"(?=\S*\d)[!-~]{1,64}|[a-z+]+://\S+")  # ASCII without spaces, with a digit
_MISSING = re.compile(  # of pandas, R, Python, SQL, JSON, and Excel's errors
    r"nan|NaN|NA|<NA>|NaT|None|NULL|null|\\N|undefined|#N/A|#DIV/0!|#(VALUE|REF|NULL|NUM)!|#NAME\?"
)
_LIST = re.compile(r"\s*\[.*\]\s*", re.DOTALL)
LONGEST = 200  # characters: longer values are text


def is_empty(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def is_missing(value: object) -> bool:
    """Also what tools write in place of a value that is not there."""
    return is_empty(value) or (isinstance(value, str) and bool(_MISSING.fullmatch(value.strip())))


def is_number(text: str) -> bool:
    return bool(_NUMBER.fullmatch(text.strip()))


def as_number(value: object) -> float:
    """Also of text that spells one, with a decimal point or comma; else not a number."""
    try:
        text = value.strip().rstrip("%").replace(",", ".") if isinstance(value, str) else value
        return float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return math.nan


def are_verdicts(texts: Collection[str]) -> bool:
    """Whether values say yes of some rows and no of others."""
    positive = [text for text in texts if YES.fullmatch(text)]
    others = [text for text in texts if text not in positive]
    return bool(positive and others) and all(map(NO.fullmatch, others))


def positive(texts: Collection[str]) -> str | None:
    """The one value that says yes: a word, or a number beside one that says no; None: not clear."""
    found = [text for text in texts if YES.fullmatch(text)]
    is_clear = len(found) == 1 and (are_verdicts(texts) or not is_number(found[0]))
    return found[0] if is_clear else None


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
    if isinstance(value, (int, float, Decimal)):
        return WHOLE if isinstance(value, int) else NUMBERS
    if type(value) not in (list, tuple):
        return OBJECTS
    return (
        LISTS if all(isinstance(v, str) or is_passage(v) or v is None for v in value) else OBJECTS
    )


def is_passage(value: object) -> bool:
    """Whether it is a text with maybe a title, as in Tevatron's and DPR's files."""
    return isinstance(value, Mapping) and isinstance(value.get("text"), str)


def _kind_of_text(text: str) -> str:
    if len(text) > LONGEST:
        return TEXT
    if _WHOLE.fullmatch(text):
        return WHOLE
    for kind, pattern in ((NUMBERS, _NUMBER), (DATES, _DATE), (IDS, _CODE)):
        if pattern.fullmatch(text):
            return kind
    return TEXT
