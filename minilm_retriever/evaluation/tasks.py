"""Retrieval tasks: queries, documents, and which of them belong together; from pairs, or from a
BEIR-style folder.

A BEIR folder is read as BEIR reads it: a document is its title, a space and its text, empty where
it has neither; a document whose id is the query's own is left out of that query's ranking; only
queries with judgements count; of two judgements of one pair the later one holds. A relevant
document that the corpus lacks counts as never found, there as in trec_eval: published sets have
such (ArguAna has one), and leaving it out would change the figure. That is said in one line; where
it is more than UNKNOWN of the relevant ones, the judgements are of another corpus, and it is an
error."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from minilm_retriever.data.readers import read_rows
from minilm_retriever.data.rows import Row
from minilm_retriever.errors import UserError
from minilm_retriever.progress import say

Ints = npt.NDArray[np.int64]
UNKNOWN = 0.01  # of the relevant documents may be missing


class Texts(Protocol):
    """Texts that can be gone through more than once: a list, or a file."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[str]: ...


@dataclass(frozen=True)
class RetrievalTask:
    """Queries, documents, and which of them belong together."""

    name: str
    query_ids: Sequence[str]
    queries: Sequence[str]
    document_ids: Sequence[str]
    documents: Texts
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
    numbers = {text: str(i) for i, text in enumerate(documents)}
    distinct = {text: f"q{i}" for i, text in enumerate(dict.fromkeys(queries))}
    judgements: dict[str, dict[str, int]] = {number: {} for number in distinct.values()}
    for query, positive in zip(queries, positives, strict=True):
        judgements[distinct[query]][numbers[positive]] = 1
    return RetrievalTask(
        name,
        list(distinct.values()),
        list(distinct),
        [str(i) for i in range(len(documents))],
        documents,
        judgements,
    )


# --- BEIR folders ---------------------------------------------------------------------------------


def read_beir(folder: Path, split: str = "test") -> RetrievalTask:
    """A BEIR-style folder: corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv. The corpus's texts stay
    in their file.

    Raises UserError with path:line on a malformed line, and where judgements name a query, or too
    many documents, that are not there (how many, and the first)."""
    qrels = folder / "qrels" / f"{split}.tsv"
    corpus = CorpusFile.open(jsonl(folder, "corpus"))
    queries = read_queries(jsonl(folder, "queries"))
    if not qrels.exists():
        there = ", ".join(sorted(file.stem for file in qrels.parent.glob("*.tsv"))) or "none"
        raise UserError(
            f"{qrels}: no such file; splits in this folder: {there} (choose one with --split)"
        )
    judgements = read_judgements(qrels, set(queries), set(corpus.ids))
    judged = [query for query in queries if query in judgements]
    texts = [queries[query] for query in judged]
    return RetrievalTask(
        folder.name, judged, texts, corpus.ids, corpus, judgements, ignore_identical_ids=True
    )


def jsonl(folder: Path, name: str) -> Path:
    """NAME.jsonl, or NAME.jsonl.gz where that is what there is."""
    packed = folder / f"{name}.jsonl.gz"
    return (
        packed
        if packed.exists() and not (folder / f"{name}.jsonl").exists()
        else folder / f"{name}.jsonl"
    )


@dataclass(frozen=True)
class CorpusFile:
    """The documents of a corpus.jsonl: the ids in memory, the texts read anew each time they are
    gone through."""

    path: Path
    ids: Sequence[str]
    repeats: frozenset[int]  # rows that say again what an earlier one said

    @staticmethod
    def open(path: Path) -> CorpusFile:
        """UserError where an id stands twice with different texts, or no document has a text."""
        numbers: dict[str, int] = {}
        digests = bytearray()
        repeats = set()
        filled = False
        for number, row in enumerate(read_rows(path, format="jsonl")):
            key, text = id_of(row), document_text(row)
            digests += digest(text)
            filled = filled or bool(text)
            if (first := numbers.setdefault(key, number)) != number:
                if digests[16 * first : 16 * first + 16] != digests[-16:]:
                    raise UserError(f"{row.where}: _id {key!r} stands twice, with different texts")
                repeats.add(number)
        if not filled:
            raise UserError(
                f"{path}: no document has a title or a text; these must be the keys of each line"
            )
        return CorpusFile(path, list(numbers), frozenset(repeats))

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[str]:
        for number, row in enumerate(read_rows(self.path, format="jsonl")):
            if number not in self.repeats:
                yield document_text(row)


def read_queries(path: Path) -> dict[str, str]:
    """Texts by id; UserError where an id stands twice with different texts."""
    texts: dict[str, str] = {}
    for row in read_rows(path, format="jsonl"):
        key, text = id_of(row), text_of(row, "text")
        if texts.setdefault(key, text) != text:
            raise UserError(f"{row.where}: _id {key!r} stands twice, with different texts")
    return texts


def read_judgements(
    path: Path, queries: set[str], documents: set[str]
) -> dict[str, dict[str, int]]:
    """Grades by query and document: query id, document id and grade are the first three columns,
    under a header."""
    judgements: dict[str, dict[str, int]] = {}
    strangers: list[str] = []  # queries that are not there
    missing: list[str] = []  # relevant documents that are not there
    relevant = 0
    for row in read_rows(path, format="tsv"):
        columns = list(row.values)
        if len(columns) < 3 or is_whole(columns[2]):
            raise UserError(
                f"{path}:1: the first line has to be a header: query-id, corpus-id and score, tabs between"
            )
        query, document, score = (text_of(row, column) for column in columns[:3])
        if not is_whole(score):
            raise UserError(f"{row.where}: {columns[2]} {score!r} is not a whole number")
        judgements.setdefault(query, {})[document] = grade = int(float(score))
        relevant += grade > 0
        if query not in queries:
            strangers.append(f"{row.where}: no query of queries.jsonl has the id {query!r}")
        elif grade > 0 and document not in documents:
            missing.append(f"{row.where}: no document of the corpus has the id {document!r}")
    if strangers:
        raise UserError(f"{strangers[0]}; so it is with {len(strangers)} judgements")
    if missing:
        say_missing(missing, relevant)
    return judgements


def say_missing(missing: Sequence[str], relevant: int) -> None:
    """Judgements of documents that the corpus lacks: a line on stderr, or UserError where they are
    many."""
    what = f"{missing[0]}; so it is with {len(missing)} of {relevant} relevant documents"
    if len(missing) > UNKNOWN * relevant:
        raise UserError(f"{what}: are these the judgements of this corpus?")
    say(f"{what}, which count as not found, as in trec_eval")


# --- one row --------------------------------------------------------------------------------------


def id_of(row: Row) -> str:
    """The key `_id`, a text or a whole number."""
    number = row.values.get("_id")
    return str(number) if type(number) is int else text_of(row, "_id")


def text_of(row: Row, column: str) -> str:
    """A column's text; UserError with path:line where it is something else."""
    value = row.values.get(column)
    if not isinstance(value, str):
        raise UserError(f"{row.where}: {column} is {value!r}, not a string")
    return value


def document_text(row: Row) -> str:
    """Title, a space, text, as BEIR joins them; what is missing or null is empty."""
    parts = [
        text_of(row, column) for column in ("title", "text") if row.values.get(column) is not None
    ]
    return " ".join(parts).strip()


def is_whole(value: str) -> bool:
    """Whether a field is a whole number; 1.0 is one."""
    try:
        return float(value).is_integer()
    except ValueError:
        return False


# --- documents of the same text -------------------------------------------------------------------


def digest(text: str) -> bytes:
    """16 bytes that stand for a text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def first_copies(texts: Texts) -> Ints:
    """For each text the number of the first one like it (N,). Held are 16 bytes of each, not the
    texts."""
    digests = bytearray()
    for text in texts:
        digests += digest(text)
    high, low = np.frombuffer(bytes(digests), np.uint64).reshape(-1, 2).T
    order = np.lexsort((low, high))  # stable: copies stay in their order
    starts = np.ones(len(order), bool)
    starts[1:] = (high[order][1:] != high[order][:-1]) | (low[order][1:] != low[order][:-1])
    firsts = np.empty(len(order), np.int64)
    firsts[order] = order[np.maximum.accumulate(np.where(starts, np.arange(len(order)), 0))]
    return firsts
