"""The index and search commands: queries from arguments, a file, a pipe or a prompt; results as
text, JSON lines or a TREC run."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from itertools import islice
from pathlib import Path
from typing import Any

from minilm_retriever.data.texts import read_texts
from minilm_retriever.display import html_table
from minilm_retriever.encoder.command import open_for_command
from minilm_retriever.encoder.encoder import Encoder
from minilm_retriever.encoder.inputs import Texts, read_list
from minilm_retriever.encoder.precision import split_fingerprint
from minilm_retriever.errors import UserError
from minilm_retriever.in_memory import named_model
from minilm_retriever.kernels.memory import memory_as_it_is
from minilm_retriever.keywords import configure
from minilm_retriever.pretrained.config import BASE_FOLDER, with_revision
from minilm_retriever.pretrained.hub import resolve_beside
from minilm_retriever.pretrained.prompts import QUERY, find_prompt
from minilm_retriever.progress import escape, json_line, print_result, say
from minilm_retriever.search.config import IndexConfig, SearchConfig
from minilm_retriever.search.exact import top_k
from minilm_retriever.search.index import Hit, Index, find
from minilm_retriever.search.index_folder import make_index, open_index
from minilm_retriever.search.trec_run import trec_line
from minilm_retriever.storage import atomic_files
from minilm_retriever.storage.schema import check_fields
from minilm_retriever.storage.schema import text as text_field
from minilm_retriever.types import StrPath

BATCH = 1024  # queries encoded and searched at a time
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


class SearchResults(list[list[Hit]]):
    """The hits of each query, best first."""

    def __init__(self, queries: Sequence[tuple[str, str]], hits: Iterable[list[Hit]]) -> None:
        super().__init__(hits)
        self.queries = queries  # (id, text)

    def __repr__(self) -> str:
        pairs = zip(self.queries, self, strict=True)
        return "\n".join(format_hits(*query, hits, "text") for query, hits in pairs).strip("\n")

    def _repr_html_(self) -> str:
        header = ["", "score", "id", "text"]
        tables = []
        for (_, text), hits in zip(self.queries, self, strict=True):
            rows = ((rank, hit.score, hit.id, hit.text) for rank, hit in enumerate(hits, 1))
            tables.append(html_table(text, header, rows))
        return "".join(tables)


@memory_as_it_is()
def search(
    folder: StrPath | Texts,
    queries: str | Sequence[str],
    *,
    k: int = 10,
    model: StrPath | Encoder | None = None,
    **settings: Any,
) -> SearchResults:
    """The k best documents of each query in a folder of vectors or an index, or of texts in memory:
    a list of hits (id, text, score) for each query. The id of a text in memory is its number.

    model: the one that the vectors were encoded with, by default the one that they remember."""
    texts = [queries] if isinstance(queries, str) else list(queries)
    if not texts:
        raise UserError("there are no queries to search for")
    name, documents = "<texts>", list[str]()
    if isinstance(folder, (str, os.PathLike)):
        name = os.fspath(folder)
    else:
        documents, _ = read_list(folder)
        if not documents:
            raise UserError("there are no documents to search")
    names = {"folder": name, "query": texts, "k": k}
    names |= {} if model is None else {"model": named_model(model)}
    config = configure(SearchConfig, names, settings)
    pairs = list(find_in_memory(documents, config) if documents else find_hits(config))
    return SearchResults([query for query, _ in pairs], [hits for _, hits in pairs])


def run_search(config: SearchConfig) -> None:
    """Search for queries from arguments, a file, a pipe or a prompt, and print what is found."""
    if config.out:
        atomic_files.check_not_input(config.out, (config.file, config.folder, config.rescore))
        if os.path.lexists(config.out) and not config.overwrite:
            raise UserError(
                f"{config.out}: exists; choose another --out, or replace it with --overwrite"
            )
    format = config.format or FORMAT_OF_ENDING.get(Path(config.out or "").suffix, "text")
    count = 0
    on_terminal = not config.out and sys.stdout is not None and sys.stdout.isatty()
    with atomic_files.writing(config.out) if config.out else nullcontext() as out:
        for query, hits in find_hits(config):
            text = format_hits(*query, hits, format)
            if on_terminal:
                text = "\n".join(map(escape, text.split("\n")))
            data = text.encode("utf-8", "backslashreplace")
            out.write(data) if out else print_result(data)
            count += 1
    if config.out:
        say(f"{config.out}: {count:,} queries")


def find_hits(config: SearchConfig) -> Iterator[tuple[tuple[str, str], list[Hit]]]:
    """Each query, as (id, text), and its hits."""
    finer = Path(config.rescore) if config.rescore else None
    index = open_index(Path(config.folder), effort=config.effort, finer=finer)
    encoder = open_encoder(config, index)
    prompt = find_prompt(encoder.model, config.query_prompt, task=QUERY).text
    unit = index.info["unit"] or None
    for batch in read_queries(config, len(index)):
        vectors = encoder.encode([text for _, text in batch], prompt=prompt, normalize=unit)
        yield from zip(batch, find(index, vectors, config.k), strict=True)


def find_in_memory(
    texts: list[str], config: SearchConfig
) -> Iterator[tuple[tuple[str, str], list[Hit]]]:
    """Each query, as (id, text), and its hits among these texts."""
    if config.rescore or config.effort is not None:
        raise UserError("rescore and effort are for folders and indexes, not for texts in memory")
    name = with_revision(config.model or BASE_FOLDER, config.revision)
    encoder = open_for_command(name, precision=config.precision or "fp32")
    prompt = find_prompt(encoder.model, config.query_prompt, task=QUERY).text
    documents = encoder.encode_document(texts)
    for batch in read_queries(config, len(texts)):
        vectors = encoder.encode([text for _, text in batch], prompt=prompt)
        found = top_k(vectors, documents, config.k)
        for query, scores, rows in zip(batch, *found, strict=True):
            ranked = zip(rows.tolist(), scores.tolist(), strict=True)
            yield query, [Hit(str(row), texts[row], score) for row, score in ranked]


def open_encoder(config: SearchConfig, index: Index) -> Encoder:
    """The model that the vectors were encoded with: the one named, else the one they remember,
    else the base model.

    Raises UserError where that is not here, or is another."""
    fingerprint, precision = split_fingerprint(index.info["model"])
    remembered = index.info.get("model_name") or BASE_FOLDER
    check_fields(config.folder, {"model_name": remembered}, {"model_name": text_field(4096)})
    names = [resolve_beside(remembered, index.sources[0].folder), BASE_FOLDER]
    failures = []
    for name in [with_revision(config.model, config.revision)] if config.model else names:
        try:
            encoder = open_for_command(name, precision=config.precision or precision)
        except UserError as problem:
            failures.append(str(problem))
            continue
        if encoder.model.fingerprint() == fingerprint:
            return encoder
        failures.append(f"{name} is another model, or has changed since")
    raise UserError(
        f"{config.folder} is searched with the model that it was encoded with: name that with "
        f"--model ({failures[0]})"
    )


def read_queries(config: SearchConfig, documents: int) -> Iterator[list[tuple[str, str]]]:
    """Batches of (id, text): lines of standard input one by one, as they come."""
    queries: Iterator[tuple[str, str]] = ((str(n), text) for n, text in enumerate(config.queries))
    if config.file:
        records = read_texts(config.file, text=config.text, id=config.id, queries=True)
        queries = ((record.id, record.text) for record in records)
    elif not config.queries:
        yield from ([(str(n), line)] for n, line in enumerate(read_lines(documents)) if line)
    while batch := list(islice(queries, BATCH)):
        yield batch


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
