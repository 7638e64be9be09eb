"""All documents ranked for every query by their vectors, exactly, in the memory of a portion of the
documents.

The documents are gone through in portions: encoded, searched (search.py), and what is among the
best so far kept. Of PORTION documents the texts and vectors lie in memory, of the others the id and
16 bytes. Equal scores are ordered as trec_eval does, by id, descending, also where they fall on the
last rank; copies of a text are encoded once, so their scores are equal.

Shapes: Q queries, N documents, H hidden, K ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from minilm_retriever.evaluation.metrics import trec_order
from minilm_retriever.evaluation.tasks import Ints, RetrievalTask, Texts, first_copies
from minilm_retriever.search.exact import top_k

Vectors = npt.NDArray[np.float32]
Encode = Callable[[list[str]], Vectors]
Run = Mapping[str, Sequence[tuple[str, float]]]  # query id -> (document id, score), best first

PORTION = 1 << 15  # documents
CHARACTERS = 1 << 26  # a portion of very long texts ends earlier


def rank_documents(
    task: RetrievalTask, encode_queries: Encode, encode_documents: Encode, depth: int
) -> Run:
    """The best `depth` documents of each query by inner product."""
    wanted = depth + task.ignore_identical_ids
    copies = Copies(task)
    queries = vectors_of(encode_queries, task.queries)
    scores, firsts = (
        np.empty((len(queries), 0), np.float32),
        np.empty((len(queries), 0), np.int64),
    )  # (Q, K)
    for numbers, texts in portions(task.documents, copies.firsts):
        order = np.argsort(copies.places[numbers])  # of equal scores top_k keeps the first rows
        numbers = numbers[order]
        found, rows = top_k(
            queries, vectors_of(encode_documents, [texts[i] for i in order]), wanted
        )
        scores, firsts = np.hstack([scores, found]), np.hstack([firsts, numbers[rows]])
        best = np.lexsort((copies.places[firsts], -scores), axis=-1)[:, :wanted]
        scores, firsts = np.take_along_axis(scores, best, 1), np.take_along_axis(firsts, best, 1)
    run = {}
    for query, query_scores, query_firsts in zip(
        task.query_ids, scores.tolist(), firsts.tolist(), strict=True
    ):
        ranking = [
            (i, s)
            for s, first in zip(query_scores, query_firsts, strict=True)
            for i in copies.ids(first, wanted)
        ]
        run[query] = cut(ranking, query if task.ignore_identical_ids else None, depth)
    return run


def cut(
    ranking: Sequence[tuple[str, float]], own: str | None, depth: int
) -> list[tuple[str, float]]:
    """The best `depth` (document id, score) in trec_eval's order, the query's own id left out."""
    order = trec_order([number for number, _ in ranking], [score for _, score in ranking])
    return [ranking[i] for i in order if ranking[i][0] != own][:depth]


class Copies:
    """Which documents have the same text; each such group goes by the number of its first
    document."""

    def __init__(self, task: RetrievalTask) -> None:
        self.document_ids = task.document_ids
        self.firsts = first_copies(task.documents)  # (N,)
        by_id = sorted(
            range(len(self.document_ids)), key=self.document_ids.__getitem__, reverse=True
        )
        order = np.array(by_id, np.int64)  # by descending id
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        self.places = np.full(
            len(order), len(order), np.int64
        )  # (N,) of a group's last id, at its first document
        np.minimum.at(self.places, self.firsts, place)
        self.order = order[
            np.argsort(self.firsts[order], kind="stable")
        ]  # group by group, by descending id in each
        self.starts = np.searchsorted(self.firsts[self.order], np.arange(len(order) + 1))

    def ids(self, first: int, most: int) -> list[str]:
        """The last ids of a group, at most so many."""
        start, stop = self.starts[first], self.starts[first + 1]
        return [self.document_ids[number] for number in self.order[start : min(stop, start + most)]]


def portions(documents: Texts, firsts: Ints) -> Iterator[tuple[Ints, list[str]]]:
    """Numbers and texts of the distinct documents, a bounded number at a time."""
    numbers, texts, characters = list[int](), list[str](), 0
    for number, text in enumerate(documents):
        if firsts[number] == number:
            numbers.append(number)
            texts.append(text)
            characters += len(text)
        if len(numbers) == PORTION or characters >= CHARACTERS:
            yield np.array(numbers, np.int64), texts
            numbers, texts, characters = [], [], 0
    if numbers:
        yield np.array(numbers, np.int64), texts


def vectors_of(encode: Encode, texts: Sequence[str]) -> Vectors:
    """A vector for each text (N, H); ValueError where `encode` gave something else."""
    vectors = encode(list(texts))
    if vectors.ndim != 2 or len(vectors) != len(texts):
        raise ValueError(f"encode gave {vectors.shape} for {len(texts)} texts, not (N, H)")
    return vectors
