"""A line of a run in TREC's format: query, Q0, document, rank, score, tag."""

from __future__ import annotations

from minilm_retriever.errors import UserError


def trec_line(query: str, document: str, rank: int, score: float, tag: str = "minilm-retriever") -> str:
    """One document of a ranking; UserError for a name that is empty or holds white space, which parts the fields.

    With nine digits a float32 reads back as itself, so trec_eval, which sorts by score, sees the same ranking.
    """
    fields = (query, "Q0", document, str(rank), f"{score:.9g}", tag)
    if odd := [name for name in fields if len(name.split()) != 1]:
        raise UserError(f"{odd[0]!r} cannot stand in a TREC run: it is empty or holds white space")
    return " ".join(fields) + "\n"
