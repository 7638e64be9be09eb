"""The index and search commands: queries from arguments, a file, a pipe or a prompt; results as
text, JSON lines or a TREC run."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from itertools import islice
from pathlib import Path

from minilm_retriever.data.readers import read_rows
from minilm_retriever.data.texts import read_texts
from minilm_retriever.encoder import open_for_command, split_fingerprint
from minilm_retriever.errors import UserError
from minilm_retriever.progress import escape, json_line, print_result, say
from minilm_retriever.search.config import IndexConfig, SearchConfig
from minilm_retriever.search.index import Hit, find
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
        line += f"; they make it slower: --kind {kind} rebuilds it without them"
    return line


def run_search(config: SearchConfig) -> None:
    """Search for queries from arguments, a file, a pipe or a prompt."""
    if config.out:
        atomic_files.check_not_input(config.out, (config.file, config.folder, config.rescore))
        if os.path.lexists(config.out) and not config.overwrite:
            raise UserError(
                f"{config.out}: exists; choose another --out, or replace it with --overwrite"
            )
    finer = Path(config.rescore) if config.rescore else None
    index = open_index(Path(config.folder), effort=config.effort, finer=finer)
    fingerprint, precision = split_fingerprint(index.info["model"])
    encoder = open_for_command(config.model, precision=config.precision or precision)
    if encoder.model.fingerprint() != fingerprint:
        other = f"another model than {config.model}"
        raise UserError(f"{config.folder} was encoded with {other}: name that with --model")
    format = config.format or FORMAT_OF_ENDING.get(Path(config.out or "").suffix, "text")
    count = 0
    on_terminal = not config.out and sys.stdout is not None and sys.stdout.isatty()
    with atomic_files.writing(config.out) if config.out else nullcontext() as out:
        for batch in read_queries(config, len(index)):
            vectors = encoder.encode_query([text for _, text in batch])
            for query, hits in zip(batch, find(index, vectors, config.k), strict=True):
                text = format_hits(*query, hits, format)
                if on_terminal:
                    text = "\n".join(map(escape, text.split("\n")))
                data = text.encode("utf-8", "backslashreplace")
                out.write(data) if out else print_result(data)
                count += 1
    if config.out:
        say(f"{config.out}: {count:,} queries")


def read_queries(config: SearchConfig, documents: int) -> Iterator[list[tuple[str, str]]]:
    """Batches of (id, text): lines of standard input one by one, as they come."""
    queries: Iterator[tuple[str, str]] = ((str(n), text) for n, text in enumerate(config.queries))
    if config.file:
        queries = read_query_file(config.file, config.text, config.id)
    elif not config.queries:
        yield from ([(str(n), line)] for n, line in enumerate(read_lines(documents)) if line)
    while batch := list(islice(queries, BATCH)):
        yield batch


def read_query_file(path: str, text: str | None, id: str | None) -> Iterator[tuple[str, str]]:
    """The id is a column called id, _id, query_id or qid, else the row's number, from 0."""
    if id is None:
        columns = next(iter(read_rows(path))).values if path != "-" else ()
        id = next((name for name in ID_COLUMNS if name in columns), None)
    for record in read_texts(path, text=text, id=id):
        yield record.id, record.text


def read_lines(documents: int) -> Iterator[str]:
    """Lines that are piped in, or typed until an empty one or Ctrl-D."""
    if sys.stdin is None:
        raise UserError("standard input is closed: give queries as arguments, or --queries FILE")
    if not sys.stdin.isatty():
        yield from map(str.strip, sys.stdin)
        return
    import readline  # noqa: F401  # arrow keys and history at the prompt

    say(f"{documents:,} documents; a query a line, an empty one or Ctrl-D ends")
    with suppress(EOFError):
        while line := input("\nsearch> ").strip():
            yield line


def format_hits(id: str, text: str, hits: Sequence[Hit], format: str) -> str:
    """The hits of a query."""
    ranked = list(enumerate(hits, 1))
    if format == "trec":
        return "".join(trec_line(id, hit.id, rank, hit.score) for rank, hit in ranked)
    if format == "jsonl":
        objects = [{"rank": rank, **hit._asdict()} for rank, hit in ranked]
        return json_line({"id": id, "query": text, "hits": objects}) + "\n"
    lines = [
        f"{rank:4}  {hit.score:.4f}  {escape(hit.id)}  {escape(' '.join(hit.text.split()))}"
        for rank, hit in ranked
    ]
    return "\n".join(["", escape(text), *lines, ""])
