"""Which rows are pairs, where a column of labels or scores says so."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from minilm_retriever.errors import UserError
from minilm_retriever.formats.rows import Row

_CONDITION = re.compile(r"\s*(.+?)\s*(>=|<=|!=|=|>|<)\s*(.*?)\s*")
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


@dataclass(frozen=True)
class RowFilter:
    """A condition on a column: label=1, label!=contradiction, score>=0.8."""

    column: str
    sign: str
    value: str

    @staticmethod
    def parse(condition: str) -> RowFilter:
        match = _CONDITION.fullmatch(condition)
        if not match:
            raise UserError(f"--positives-where {condition!r}: write it like label=1 or score>=0.8")
        column, sign, value = match.groups()
        if sign in _COMPARE:
            with suppress(ValueError):
                float(value)
                return RowFilter(column, sign, value)
            raise UserError(f"--positives-where {condition!r}: {value!r} is no number")
        return RowFilter(column, sign, value)

    def keeps(self, row: Row) -> bool:
        """BadRow where a number is compared with what is none."""
        if self.sign in _COMPARE:
            return _COMPARE[self.sign](row.number(self.column), float(self.value))
        held = row.value(self.column)
        text = str(held).casefold() if isinstance(held, bool) else str(held).strip()
        equal = text == (self.value.casefold() if isinstance(held, bool) else self.value)
        if not equal and held is not None:
            with suppress(ValueError):
                equal = float(text) == float(self.value)
        return equal is (self.sign == "=")

    def __str__(self) -> str:
        return f"{self.column}{self.sign}{self.value}"
