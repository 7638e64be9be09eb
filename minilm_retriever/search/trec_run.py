"""A line of a run in TREC's format: query, Q0, document, rank, score, tag."""

from __future__ import annotations

from collections.abc import Iterable

from minilm_retriever.errors import UserError


def trec_line(
    query: str, document: str, rank: int, score: float, tag: str = "minilm-retriever"
) -> str:
    """One document of a ranking.

    With nine digits a float32 reads back as itself, so trec_eval, which sorts by score, sees the
    same ranking."""
    fields = (query, "Q0", document, str(rank), f"{score:.9g}", tag)
    check_trec_fields(fields)
    return " ".join(fields) + "\n"


def check_trec_fields(fields: Iterable[str]) -> None:
    """UserError for the first that is empty or holds white space, which separates the fields."""
    for field in fields:
        if len(field.split()) != 1:
            raise UserError(f"{field!r} cannot stand in a TREC run: empty, or with white space")
