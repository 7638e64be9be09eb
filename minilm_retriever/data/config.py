"""Flags of all commands that read files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from minilm_retriever.flags import flag
from minilm_retriever.in_memory import unwrap

if TYPE_CHECKING:  # --help needs none of these
    from minilm_retriever.data.bad_rows import BadRowFile
    from minilm_retriever.data.pair_source import PairSource
    from minilm_retriever.formats.reading import ReadingOptions


@dataclass(frozen=True, kw_only=True)
class ReadingFlags:
    """How files are read, where their content should not decide."""

    format: Literal["csv", "tsv", "jsonl", "json", "txt", "parquet"] | None = flag(
        None, "format of stdin (default txt), or of odd suffixes", "reading (docs/data.md)"
    )
    encoding: str | None = flag(None, "utf-8, utf-16, cp1252, ... (default: found out)")
    separator: str | None = flag(
        None, "of CSV: a character, or comma, semicolon, tab, bar (default: found out)"
    )
    header: bool | None = flag(
        None, "the first row of CSV names the columns, or is data (default: found out)"
    )
    quotes: Literal["csv", "literal"] | None = flag(
        None, "quotes around CSV's fields, or text like any other (default: found out)"
    )
    skip_bad: str | None = flag(
        None, "set unusable rows aside in this file", may_change=True, on_card=False
    )
    max_bad: int = flag(
        1000, "stop at more bad rows than this", at_least=0, may_change=True, on_card=False
    )

    def reading(self) -> ReadingOptions:
        """For `read_texts` and its like."""
        return {
            "format": self.format,
            "encoding": self.encoding,
            "separator": self.separator,
            "header": self.header,
            "quotes": self.quotes,
        }

    def bad_rows(self) -> BadRowFile:
        """Where rows go that cannot be used."""
        from minilm_retriever.data.bad_rows import BadRowFile

        return BadRowFile(self.skip_bad, self.max_bad)


@dataclass(frozen=True, kw_only=True)
class PairFlags(ReadingFlags):
    """Which rows of a file are pairs."""

    positives_where: str | None = flag(
        None, "take the rows of this condition: label=1, label!=contradiction, score>=0.8"
    )
    min_score: float | None = flag(None, "take the rows whose score is at least X")

    def pair_source(self, source: str, columns: tuple[str, ...], **options: Any) -> PairSource:
        """The pairs of a file, or of the object that the name stands for."""
        from minilm_retriever.data.pair_source import PairSource
        from minilm_retriever.formats.reading import Reading

        return PairSource(
            unwrap(source),
            columns,
            positives_where=self.positives_where,
            min_score=self.min_score,
            reading=Reading(**self.reading()),
            **options,
        )
