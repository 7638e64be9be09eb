"""Flags of `index` and `search`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from minilm_retriever.errors import UserError
from minilm_retriever.flags import check_bounds, flag
from minilm_retriever.pretrained.config import QUERY_PROMPT_HELP, REVISION_HELP, Precision


@dataclass(frozen=True)
class IndexConfig:
    """Make an index of vectors, or add documents to one and delete some."""

    folder: str = flag("", "what `encode` wrote, or an index", name="DIR")
    out: str = flag("", "the index to write", required=True, metavar="INDEX")
    kind: Literal["exact", "hnsw", "ivfpq"] | None = flag(
        None, "rebuild it as this kind (default: by the number of rows)"
    )
    add: tuple[str, ...] = flag((), "further folders that `encode` wrote")
    delete: tuple[str, ...] = flag((), "ids to leave out, or @FILE with an id a line")
    overwrite: bool = flag(False, "replace what is there", action="store_true")


@dataclass(frozen=True)
class SearchConfig:
    """Search a folder that `encode` wrote, or an index."""

    folder: str = flag("", "what `encode` or `index` wrote", name="DIR")
    queries: tuple[str, ...] = flag(
        (), "texts to search for (default: standard input)", name="QUERY", nargs="*"
    )
    file: str | None = flag(None, "a file of queries: text, CSV, TSV, JSONL, ...", name="--queries")
    text: str | None = flag(None, "its column of texts")
    id: str | None = flag(None, "its column of ids")
    k: int = flag(10, "results a query", at_least=1)
    model: str | None = flag(None, "the model it was encoded with (default: the one it remembers)")
    revision: str | None = flag(None, REVISION_HELP)
    query_prompt: str | None = flag(None, QUERY_PROMPT_HELP)
    precision: Precision | None = flag(
        None, "of the queries (default: the one that the vectors were encoded in)"
    )
    out: str | None = flag(None, "where to write (default: standard output)")
    overwrite: bool = flag(False, "replace the file of --out", action="store_true")
    format: Literal["text", "jsonl", "trec"] | None = flag(
        None, "of the results (default: by --out's ending, else text)"
    )
    rescore: str | None = flag(None, "for binary vectors: rescore the candidates by this folder's")
    effort: int | None = flag(None, "candidates (hnsw) or lists (ivfpq) to look through")

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.file and self.queries:
            raise UserError("queries as arguments and --queries exclude each other")
        if self.out and not (self.file or self.queries):
            raise UserError("--out needs queries: as arguments, or in a file (--queries FILE)")
