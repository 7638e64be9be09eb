"""Retrieval tasks: queries, documents and judgements, from pairs or from a BEIR-style folder.

A folder is read as BEIR reads it: a document is its title, a space and its text, empty where it has
neither; a document whose id is the query's own is left out of that query's ranking; only queries
with judgements count; of two judgements of one pair the later one holds. A relevant document that
the corpus lacks counts as never found, as in trec_eval (ArguAna has one, for example); where they
are more than MISSING_SHARE of the relevant ones, the judgements must be of another corpus."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minilm_retriever.data.readers import read_rows
from minilm_retriever.data.rows import Row
from minilm_retriever.errors import UserError
from minilm_retriever.progress import say
from minilm_retriever.types import IntArray

MISSING_SHARE = 0.01  # of the relevant documents


@dataclass(frozen=True)
class RetrievalTask:
    """Queries, documents, and the grade of each document that was judged for a query."""

    name: str
    query_ids: Sequence[str]
    queries: Sequence[str]
    document_ids: Sequence[str]
    documents: Sequence[str] | CorpusFile
    judgements: Mapping[str, Mapping[str, int]]  # query id -> document id -> grade
    ignore_identical_ids: bool = False


def retrieval_from_pairs(
    queries: Sequence[str],
    positives: Sequence[str],
    corpus: Sequence[str] | None = None,
    name: str = "pairs",
) -> RetrievalTask:
    """Each distinct query against the distinct positives and the corpus; a repeated query has
    several right answers."""
    documents = list(dict.fromkeys([*(corpus or []), *positives]))
    document_ids = {text: str(i) for i, text in enumerate(documents)}
    query_ids = {text: f"q{i}" for i, text in enumerate(dict.fromkeys(queries))}
    judgements: dict[str, dict[str, int]] = {query: {} for query in query_ids.values()}
    for query, positive in zip(queries, positives, strict=True):
        judgements[query_ids[query]][document_ids[positive]] = 1
    ids = (list(query_ids.values()), list(document_ids.values()))
    return RetrievalTask(name, ids[0], list(query_ids), ids[1], documents, judgements)


# --- BEIR folders ---------------------------------------------------------------------------------


def read_beir(folder: Path, split: str = "test") -> RetrievalTask:
    """A BEIR-style folder: corpus.jsonl, whose texts stay there, queries.jsonl and qrels/SPLIT.tsv.

    Raises UserError with path:line on a malformed line, and where judgements name a query, or too
    many documents, that are missing."""
    corpus = CorpusFile.open(jsonl_file(folder, "corpus"))
    queries = read_queries(jsonl_file(folder, "queries"))
    qrels = folder / "qrels" / f"{split}.tsv"
    if not qrels.exists():
        splits = ", ".join(sorted(file.stem for file in qrels.parent.glob("*.tsv"))) or "none"
        raise UserError(f"{qrels}: no such file; choose one with --split: {splits}")
    judgements = read_judgements(qrels, set(queries), set(corpus.ids))
    judged = [query for query in queries if query in judgements]
    texts = [queries[query] for query in judged]
    return RetrievalTask(
        folder.name, judged, texts, corpus.ids, corpus, judgements, ignore_identical_ids=True
    )


def jsonl_file(folder: Path, name: str) -> Path:
    """NAME.jsonl, or NAME.jsonl.gz where that alone is there."""
    plain, packed = folder / f"{name}.jsonl", folder / f"{name}.jsonl.gz"
    return packed if packed.exists() and not plain.exists() else plain


@dataclass(frozen=True)
class CorpusFile:
    """The documents of a corpus.jsonl: ids in memory, texts read again at each iteration."""

    path: Path
    ids: Sequence[str]
    repeats: frozenset[int]  # rows whose document an earlier row has

    @staticmethod
    def open(path: Path) -> CorpusFile:
        """UserError where an id stands twice with different texts, or no document has a text."""
        numbers, hashes, repeats, empty = dict[str, int](), bytearray(), set[int](), True
        for number, row in enumerate(read_rows(path, format="jsonl")):
            id, text = row.id("_id"), document_text(row)
            hashes += text_hash(text)
            empty = empty and not text
            first = numbers.setdefault(id, number)
            if hashes[16 * first : 16 * first + 16] != hashes[-16:]:
                raise UserError(f"{row.where}: _id {id!r} stands twice, with different texts")
            if first != number:
                repeats.add(number)
        if empty:
            raise UserError(f"{path}: no document has a title or a text; name these keys so")
        return CorpusFile(path, list(numbers), frozenset(repeats))

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[str]:
        for number, row in enumerate(read_rows(self.path, format="jsonl")):
            if number not in self.repeats:
                yield document_text(row)


def document_text(row: Row) -> str:
    """Title, a space, text, as BEIR joins them; what is missing or null is empty."""
    columns = [name for name in ("title", "text") if row.values.get(name) is not None]
    return " ".join(map(row.text, columns)).strip()


def read_queries(path: Path) -> dict[str, str]:
    """Texts by id; UserError where an id stands twice with different texts."""
    texts: dict[str, str] = {}
    for row in read_rows(path, format="jsonl"):
        id, text = row.id("_id"), row.text("text")
        if texts.setdefault(id, text) != text:
            raise UserError(f"{row.where}: _id {id!r} stands twice, with different texts")
    return texts


def read_judgements(
    path: Path, queries: set[str], documents: set[str]
) -> dict[str, dict[str, int]]:
    """Grades by query and document: query id, document id and grade are the first three columns,
    under a header of any names."""
    judgements: dict[str, dict[str, int]] = {}
    unknown, missing, relevant = list[str](), list[str](), 0
    for row in read_rows(path, format="tsv"):
        columns = list(row.values)[:3]
        if len(columns) < 3 or is_whole(columns[2]):
            raise UserError(f"{path}:1: not a header of query-id, corpus-id and score, with tabs")
        query, document, score = map(row.text, columns)
        if not is_whole(score):
            raise UserError(f"{row.where}: {columns[2]} {score!r} is not a whole number")
        judgements.setdefault(query, {})[document] = grade = int(float(score))
        relevant += grade > 0
        if query not in queries:
            unknown.append(f"{row.where}: no query of queries.jsonl has the id {query!r}")
        elif grade > 0 and document not in documents:
            missing.append(f"{row.where}: no document of the corpus has the id {document!r}")
    if unknown:
        raise UserError(f"{unknown[0]} ({len(unknown)} such judgements)")
    if missing:
        line = f"{missing[0]} ({len(missing)} of {relevant} relevant documents)"
        if len(missing) > MISSING_SHARE * relevant:
            raise UserError(f"{line}: are these the judgements of this corpus?")
        say(f"{line}: they count as never retrieved, as in trec_eval")
    return judgements


def is_whole(value: str) -> bool:
    try:
        return float(value).is_integer()
    except ValueError:
        return False


def text_hash(text: str) -> bytes:
    """16 bytes that stand for a text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def first_occurrences(texts: Iterable[str]) -> IntArray:
    """For each text the number of the first one like it (N,), by the texts' hashes alone."""
    hashes = bytearray()
    for text in texts:
        hashes += text_hash(text)
    values = np.frombuffer(hashes, "V16")
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return first[inverse].astype(np.int64)
