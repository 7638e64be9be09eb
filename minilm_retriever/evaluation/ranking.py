"""Rankings of all documents of a task by the inner product of their vectors, exactly.

The corpus may have any size: texts and vectors of PORTION_DOCUMENTS at a time lie in memory, of
other documents the id and 16 bytes. Equal scores are ordered as trec_eval does, by id, descending,
also where they fall on the last rank; copies of a text are encoded once, so their scores are equal.

Shapes: Q queries, N documents, H hidden, K ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from minilm_retriever.evaluation.metrics import trec_order
from minilm_retriever.evaluation.tasks import RetrievalTask, first_occurrences
from minilm_retriever.search.exact import top_k
from minilm_retriever.types import FloatArray, IntArray

Encode = Callable[[list[str]], FloatArray]
Ranking = Sequence[tuple[str, float]]  # document ids and scores, best first
Run = Mapping[str, Ranking]  # by query id

PORTION_DOCUMENTS = 1 << 15
PORTION_CHARACTERS = 1 << 26  # a portion of very long texts ends earlier


def rank_documents(
    task: RetrievalTask, encode_queries: Encode, encode_documents: Encode, depth: int
) -> Run:
    """The best `depth` documents of each query by inner product."""
    count = depth + task.ignore_identical_ids
    first_of, places, groups = group_duplicates(task)
    queries = encode_checked(encode_queries, task.queries)
    scores = np.empty((len(queries), 0), np.float32)  # (Q, K)
    firsts = np.empty((len(queries), 0), np.int64)
    for numbers, texts in portions(task.documents, first_of):
        order = np.argsort(places[numbers])  # of equal scores top_k keeps the first rows
        numbers = numbers[order]
        vectors = encode_checked(encode_documents, [texts[i] for i in order])
        new_scores, rows = top_k(queries, vectors, count)
        scores, firsts = np.hstack([scores, new_scores]), np.hstack([firsts, numbers[rows]])
        best = np.lexsort((places[firsts], -scores), axis=-1)[:, :count]
        scores, firsts = np.take_along_axis(scores, best, 1), np.take_along_axis(firsts, best, 1)
    run: dict[str, Ranking] = {}
    for query, *columns in zip(task.query_ids, scores.tolist(), firsts.tolist(), strict=True):
        ranking = [
            (document, score)
            for score, first in zip(*columns, strict=True)
            for document in groups.get(first, [task.document_ids[first]])[:count]
        ]
        run[query] = best_of(task, query, ranking, depth)
    return run


def best_of(task: RetrievalTask, query: str, ranking: Ranking, depth: int) -> Ranking:
    """The best `depth` in trec_eval's order, where the task wants it without the query's own id."""
    own_id = query if task.ignore_identical_ids else None
    order = trec_order([document for document, _ in ranking], [score for _, score in ranking])
    return [ranking[i] for i in order if ranking[i][0] != own_id][:depth]


def group_duplicates(task: RetrievalTask) -> tuple[IntArray, IntArray, dict[int, list[str]]]:
    """Groups of documents with the same text, each known by the number of its first document: for
    each document (N,) that number; there, the group's place by its last id, descending; and the
    descending ids of each group of several."""
    ids, firsts = list(task.document_ids), first_occurrences(task.documents)
    groups: dict[int, list[str]] = {}
    for number in np.flatnonzero(firsts != np.arange(len(ids))):
        groups.setdefault(firsts[number], [ids[firsts[number]]]).append(ids[number])
    for first, group in groups.items():
        group.sort(reverse=True)
        ids[first] = group[0]
    places = np.empty(len(ids), np.int64)
    places[sorted(range(len(ids)), key=ids.__getitem__, reverse=True)] = np.arange(len(ids))
    return firsts, places, groups


def portions(documents: Iterable[str], firsts: IntArray) -> Iterator[tuple[IntArray, list[str]]]:
    """Numbers and texts of the distinct documents, a bounded number at a time."""
    numbers, texts, characters = list[int](), list[str](), 0
    for number, text in enumerate(documents):
        if firsts[number] == number:
            numbers.append(number)
            texts.append(text)
            characters += len(text)
        if len(numbers) == PORTION_DOCUMENTS or characters >= PORTION_CHARACTERS:
            yield np.array(numbers, np.int64), texts
            numbers, texts, characters = [], [], 0
    if numbers:
        yield np.array(numbers, np.int64), texts


def encode_checked(encode: Encode, texts: Sequence[str]) -> FloatArray:
    """A vector for each text (N, H); ValueError where `encode` returned another shape."""
    vectors = encode(list(texts))
    if vectors.ndim != 2 or len(vectors) != len(texts):
        raise ValueError(f"encode returned {vectors.shape} for {len(texts)} texts, not (N, H)")
    return vectors
