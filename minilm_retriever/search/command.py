"""The search command: queries from arguments, a file, a pipe or a prompt; answers as text, JSON
lines or a TREC run."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

from minilm_retriever.data.readers import read_rows
from minilm_retriever.data.texts import read_texts
from minilm_retriever.encoder import Encoder
from minilm_retriever.errors import UserError
from minilm_retriever.progress import say
from minilm_retriever.search.index import Hit, find
from minilm_retriever.search.index_folder import IndexFolder, open_index
from minilm_retriever.search.trec_run import trec_line
from minilm_retriever.storage import atomic_files

TOGETHER = 1024  # queries encoded and searched at a time
FORMATS = ("text", "jsonl", "trec")
ID_COLUMNS = ("id", "_id", "query_id", "qid")


class Query(NamedTuple):
    """A text to search for."""

    id: str
    text: str


def open_for(
    folder: Path, model: str, *, effort: int | None, finer: Path | None
) -> tuple[IndexFolder, Encoder]:
    """The documents and the model that encoded them; UserError where it was another."""
    index = open_index(folder, effort=effort, finer=finer)
    encoder = Encoder.from_pretrained(model)
    if encoder.model.fingerprint() != index.info["model"]:
        raise UserError(
            f"{folder} was encoded with another model than {model}: name that with --model"
        )
    return index, encoder


def queries_of(path: str, text: str | None, id: str | None) -> Iterator[Query]:
    """The queries of a file. The id is a column called id, _id, query_id or qid, else the row's
    number, from 0."""
    if id is None:
        columns = next(iter(read_rows(path))).values if path != "-" else ()
        id = next((name for name in ID_COLUMNS if name in columns), None)
    for record in read_texts(path, text=text, id=id):
        yield Query(record.id, record.text)


def search(
    index: IndexFolder, encoder: Encoder, queries: Iterable[Query], k: int
) -> Iterator[tuple[Query, list[Hit]]]:
    """Each query and what was found, TOGETHER at a time."""
    stream = iter(queries)
    while part := list(islice(stream, TOGETHER)):
        yield from zip(
            part, find(index, encoder.encode_query([query.text for query in part]), k), strict=True
        )


def answer(query: Query, hits: Sequence[Hit], format: str) -> str:
    """What was found for a query, in one of FORMATS."""
    if format == "trec":
        return "".join(
            trec_line(query.id, hit.id, rank, hit.score) for rank, hit in enumerate(hits, 1)
        )
    if format == "jsonl":
        found = [{"rank": rank, **hit._asdict()} for rank, hit in enumerate(hits, 1)]
        return (
            json.dumps({"id": query.id, "query": query.text, "hits": found}, ensure_ascii=False)
            + "\n"
        )
    lines = [
        f"{rank:4}  {hit.score:.4f}  {hit.id}  {' '.join(hit.text.split())}"
        for rank, hit in enumerate(hits, 1)
    ]
    return "\n".join(["", query.text, *lines, ""])


def format_of(out: str | None, format: str | None) -> str:
    """The format named, else the one that the output's ending tells."""
    return format or {".jsonl": "jsonl", ".trec": "trec", ".run": "trec"}.get(
        Path(out or "").suffix, "text"
    )


def write_all(
    index: IndexFolder,
    encoder: Encoder,
    queries: Iterable[Query],
    k: int,
    format: str,
    out: str | None,
) -> int:
    """Search for all queries and write the answers, to a file whole or not at all; returns how many
    there were."""
    count = 0
    with atomic_files.writing(out) if out else nullcontext(sys.stdout.buffer) as stream:
        for query, hits in search(index, encoder, queries, k):
            put(stream, answer(query, hits, format))
            count += 1
    return count


def put(stream: BinaryIO, text: str) -> None:
    """Write text that may hold anything, and bring it to whoever reads."""
    stream.write(text.encode("utf-8", "backslashreplace"))
    stream.flush()


def converse(index: IndexFolder, encoder: Encoder, k: int, format: str) -> None:
    """Answer each line of standard input as it comes: typed at a prompt, or piped in."""
    prompting = sys.stdin.isatty()
    if prompting:
        import readline  # noqa: F401  # arrow keys and history at the prompt

        say(f"{len(index):,} documents; a query a line, an empty one or Ctrl-D ends")
    for number, line in enumerate(prompted() if prompting else map(str.strip, sys.stdin)):
        if not line and prompting:
            break
        for query, hits in search(index, encoder, [Query(str(number), line)] if line else [], k):
            put(sys.stdout.buffer, answer(query, hits, format))


def prompted() -> Iterator[str]:
    """The lines that a person types, until Ctrl-D."""
    while True:
        try:
            yield input("\nsearch> ").strip()
        except EOFError:
            return
