"""BM25, the baseline of term matching that an encoder has to beat, on bm25s (extra: [bm25]).

Scored as Lucene does, k1 = 0.9, b = 0.4: the settings of the BM25 figures that go with BEIR
(Anserini's "flat" index, title and text in one field); document lengths are exact here and rounded
there. Terms are those of Lucene's English analyser, in a few lines of our own, so that no version
of a library changes them: lower case; words, with apostrophes and full stops inside; a final 's
taken off; 33 stop words left out; stemmed by Porter's algorithm.

A term that is twice in the query counts twice. Documents without a term of it are left out."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable
from typing import Any

import numpy as np

from minilm_retriever.errors import require
from minilm_retriever.evaluation.ranking import Ranking, Run, best_of
from minilm_retriever.evaluation.tasks import RetrievalTask
from minilm_retriever.progress import Progress

NAME = "bm25"  # in place of a model
K1, B = 0.9, 0.4
WORD = re.compile(r"\w+(?:['’.]\w+)*")
STOP_WORDS = frozenset(
    """a an and are as at be but by for if in into is it no not of on or such that the their then
    there these they this to was will with""".split()  # noqa: SIM905
)


def rank_by_terms(task: RetrievalTask, depth: int) -> Run:
    bm25s = require("bm25s", "bm25", "BM25")
    vocabulary = Vocabulary(require("Stemmer", "bm25", "BM25").Stemmer("porter").stemWord)
    documents = []
    with Progress("BM25: reading documents", len(task.documents), "texts") as progress:
        for text in task.documents:
            documents.append(array("i", vocabulary.term_ids(text)))
            progress.at(len(documents))
    terms = len(vocabulary.by_stem)
    if not terms:
        return {query: [] for query in task.query_ids}
    index = bm25s.BM25(method="lucene", k1=K1, b=B)
    index.index((documents, dict(vocabulary.by_stem)), show_progress=False)
    run: dict[str, Ranking] = {}
    with Progress("BM25: searching", len(task.queries), "queries") as progress:
        for query, text in zip(task.query_ids, task.queries, strict=True):
            known = [term for term in vocabulary.term_ids(text) if term < terms]
            ranking = candidates(task, index.get_scores_from_ids(known), depth + 1)
            run[query] = best_of(task, query, ranking, depth)
            progress.at(len(run))
    return run


def candidates(task: RetrievalTask, scores: Any, count: int) -> Ranking:
    """The documents (of N scores) that score above 0, the best `count` and what ties with the last
    of them, in no order."""
    least = np.partition(scores, -count)[-count] if len(scores) > count else 0
    chosen = np.flatnonzero((scores >= least) & (scores > 0))
    ids = [task.document_ids[number] for number in chosen.tolist()]
    return list(zip(ids, scores[chosen].tolist(), strict=True))


class Vocabulary:
    """Texts to ids of terms; a new term gets the next id."""

    def __init__(self, stem: Callable[[str], str]) -> None:
        self.stem = stem
        self.by_stem: dict[str, int] = {}
        self.by_word: dict[str, int] = {}  # each word is stemmed once

    def term_ids(self, text: str) -> list[int]:
        words = WORD.findall(text.lower())
        for word in words:
            if word not in self.by_word:
                self.by_word[word] = self.term_id(word)
        return [term for term in map(self.by_word.__getitem__, words) if term >= 0]

    def term_id(self, word: str) -> int:
        """-1 for a stop word."""
        word = re.sub(r"['’]s$", "", word)
        if word in STOP_WORDS:
            return -1
        return self.by_stem.setdefault(self.stem(word), len(self.by_stem))
