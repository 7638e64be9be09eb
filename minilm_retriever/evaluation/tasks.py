"""Retrieval tasks: queries, documents and judgements, from pairs or from a BEIR-style folder.

A BEIR folder is read as BEIR reads it (data/beir.py): a document whose id is the query's own is
left out of that query's ranking; only queries with judgements count. A relevant document that the
corpus lacks counts as never found, as in trec_eval (ArguAna has one, for example)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minilm_retriever.data.beir import BeirFolder, CorpusFile, text_hash
from minilm_retriever.progress import say
from minilm_retriever.types import IntArray


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
    beir = BeirFolder.open(folder, split)
    for line in beir.notes:
        say(line)
    queries, corpus, judgements = beir.queries, beir.corpus, beir.judgements
    judged = [query for query in queries if query in judgements]
    texts = [queries[query] for query in judged]
    return RetrievalTask(
        folder.name, judged, texts, corpus.ids, corpus, judgements, ignore_identical_ids=True
    )


# --- documents of the same text -------------------------------------------------------------------


def first_occurrences(texts: Iterable[str]) -> IntArray:
    """For each text the number of the first one like it (N,), by the texts' hashes alone."""
    hashes = bytearray()
    for text in texts:
        hashes += text_hash(text)
    values = np.frombuffer(hashes, "V16")
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return first[inverse].astype(np.int64)
