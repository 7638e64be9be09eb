"""How a file is to be read, where its content should not decide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from minilm_retriever.errors import UserError

FORMATS = ("csv", "tsv", "jsonl", "json", "txt", "parquet")
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_WORDS = {"comma": ",", "semicolon": ";", "tab": "\t", "\\t": "\t", "pipe": "|", "bar": "|"}


class ReadingOptions(TypedDict, total=False):
    """What the functions that read take by name, for each flag of ReadingFlags one."""

    format: str | None
    encoding: str | None
    separator: str | None
    header: bool | None
    quotes: str | None


@dataclass(frozen=True)
class Reading:
    """None: what the file's name and content say."""

    format: str | None = None  # one of FORMATS
    encoding: str | None = None  # a name that Python knows
    separator: str | None = None  # a character, or a word for one
    header: bool | None = None  # whether the first row of CSV and TSV names the columns
    quotes: str | None = None  # "csv", or "literal": quotes are text

    def __post_init__(self) -> None:
        if self.format is not None and self.format not in FORMATS:
            known = ", ".join(FORMATS)
            raise UserError(f"format {self.format!r} is not known; known are {known}")
        if self.quotes not in (None, "csv", "literal"):
            raise UserError(f"quotes {self.quotes!r} are not known; known are csv, literal")
        separator = _WORDS.get(self.separator or "", self.separator)
        if separator is not None and (len(separator) != 1 or separator in '"\r\n'):
            raise UserError(
                f"--separator {self.separator!r}: give one character, or comma, semicolon, tab, bar"
            )
        object.__setattr__(self, "separator", separator)
