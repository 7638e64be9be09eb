"""The index and search commands: queries from arguments, a file, a pipe or a prompt; results as
text, JSON lines or a TREC run."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

from minilm_retriever.data.readers import read_rows
from minilm_retriever.data.texts import read_texts
from minilm_retriever.encoder import Encoder, open_for_command
from minilm_retriever.errors import UserError
from minilm_retriever.progress import say
from minilm_retriever.search.config import IndexConfig, SearchConfig
from minilm_retriever.search.index import Hit, Index, find
from minilm_retriever.search.index_folder import make_index, open_index
from minilm_retriever.search.trec_run import trec_line
from minilm_retriever.storage import atomic_files

BATCH = 1024  # queries encoded and searched at a time
ID_COLUMNS = ("id", "_id", "query_id", "qid")
FORMAT_OF_ENDING = {".jsonl": "jsonl", ".trec": "trec", ".run": "trec"}


def run_index(config: IndexConfig) -> str:
    """Make an index, or change one; returns a line on it."""
    ids: list[str] = []
    for word in config.delete:
        if word.startswith("@"):
            ids += [record.text for record in read_texts(word[1:], format="txt")]
        else:
            ids.append(word)
    index = make_index(
        Path(config.folder),
        Path(config.out),
        kind=config.kind,
        add=[Path(name) for name in config.add],
        delete=ids,
        overwrite=config.overwrite,
    )
    kind = index.plan.kind
    line = f"{config.out}: {kind} over {len(index):,} documents"
    if len(index.deleted):
        line += f", {len(index.deleted):,} deleted"
    if index.engine is not None and index.engine.ntotal > 1.25 * len(index):
        line += f"; they make it slower: --kind {kind} builds it anew without them"
    return line


class Query(NamedTuple):
    id: str
    text: str


@dataclass(frozen=True)
class Searcher:
    """What each query goes through."""

    index: Index
    encoder: Encoder
    k: int
    format: str


def run_search(config: SearchConfig) -> None:
    """Search for queries from arguments, a file, a pipe or a prompt."""
    finer = Path(config.rescore) if config.rescore else None
    index = open_index(Path(config.folder), effort=config.effort, finer=finer)
    encoder = open_for_command(config.model)
    if encoder.model.fingerprint() != index.info["model"]:
        raise UserError(
            f"{config.folder} was encoded with another model than {config.model}: "
            "name that with --model"
        )
    format = config.format or FORMAT_OF_ENDING.get(Path(config.out or "").suffix, "text")
    searcher = Searcher(index, encoder, config.k, format)
    if config.file:
        queries = read_queries(config.file, config.text, config.id)
    elif config.queries:
        queries = (Query(str(number), text) for number, text in enumerate(config.queries))
    else:
        answer_lines(searcher)
        return
    count = 0
    with atomic_files.writing(config.out) if config.out else nullcontext(sys.stdout.buffer) as out:
        for query, hits in search(searcher, queries):
            write(out, format_hits(query, hits, format))
            count += 1
    if config.out:
        say(f"{config.out}: {count:,} queries")


def read_queries(path: str, text: str | None, id: str | None) -> Iterator[Query]:
    """The queries of a file. The id is a column called id, _id, query_id or qid, else the row's
    number, from 0."""
    if id is None:
        columns = next(iter(read_rows(path))).values if path != "-" else ()
        id = next((name for name in ID_COLUMNS if name in columns), None)
    for record in read_texts(path, text=text, id=id):
        yield Query(record.id, record.text)


def answer_lines(searcher: Searcher) -> None:
    """Answer each line of standard input as it comes: typed at a prompt, or piped in."""
    at_prompt = sys.stdin.isatty()
    if at_prompt:
        import readline  # noqa: F401  # arrow keys and history at the prompt

        say(f"{len(searcher.index):,} documents; a query a line, an empty one or Ctrl-D ends")
    for number, line in enumerate(typed_lines() if at_prompt else map(str.strip, sys.stdin)):
        if not line and at_prompt:
            break
        for query, hits in search(searcher, [Query(str(number), line)] if line else []):
            write(sys.stdout.buffer, format_hits(query, hits, searcher.format))


def typed_lines() -> Iterator[str]:
    """The lines that a person types, until Ctrl-D."""
    while True:
        try:
            yield input("\nsearch> ").strip()
        except EOFError:
            return


def search(searcher: Searcher, queries: Iterable[Query]) -> Iterator[tuple[Query, list[Hit]]]:
    """Each query and its hits, BATCH queries at a time."""
    stream = iter(queries)
    while batch := list(islice(stream, BATCH)):
        vectors = searcher.encoder.encode_query([query.text for query in batch])
        yield from zip(batch, find(searcher.index, vectors, searcher.k), strict=True)


def format_hits(query: Query, hits: Sequence[Hit], format: str) -> str:
    ranked = list(enumerate(hits, 1))
    if format == "trec":
        return "".join(trec_line(query.id, hit.id, rank, hit.score) for rank, hit in ranked)
    if format == "jsonl":
        objects = [{"rank": rank, **hit._asdict()} for rank, hit in ranked]
        result = {"id": query.id, "query": query.text, "hits": objects}
        return json.dumps(result, ensure_ascii=False) + "\n"
    lines = [
        f"{rank:4}  {hit.score:.4f}  {hit.id}  {' '.join(hit.text.split())}" for rank, hit in ranked
    ]
    return "\n".join(["", query.text, *lines, ""])


def write(stream: BinaryIO, text: str) -> None:
    """Write text with whatever surrogates it holds, and flush it for the reader of a pipe."""
    stream.write(text.encode("utf-8", "backslashreplace"))
    stream.flush()
