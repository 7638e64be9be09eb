"""BM25, the baseline of term matching that an encoder has to beat (extra: bm25s, and PyStemmer for
the stems).

Scored as Lucene does, k1 = 0.9, b = 0.4: the settings of the BM25 figures that go with BEIR
(Anserini's "flat" index, title and text in one field). Document lengths are exact here and rounded
there. Texts are cut into terms as by its English analyser, in a few lines, so that no version of a
library changes them:

    lower case; words, with apostrophes and full stops inside; 's at the end taken off; Lucene's 33 English stop words
    taken out; stemmed by Porter's algorithm

A term that stands twice in the query counts twice. Documents without any term of the query are not
found."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np

from minilm_retriever.errors import require
from minilm_retriever.evaluation.ranking import Run, cut
from minilm_retriever.evaluation.tasks import RetrievalTask
from minilm_retriever.progress import Progress

NAME = "bm25"  # in place of a model
K1, B = 0.9, 0.4
WORD = re.compile(r"\w+(?:['’.]\w+)*")
STOP_WORDS = frozenset(
    """a an and are as at be but by for if in into is it no not of on or such that the their then there these they this
    to was will with""".split()  # noqa: SIM905
)


def rank_by_terms(task: RetrievalTask, depth: int) -> Run:
    """The best `depth` documents of each query; equal scores as trec_eval orders them. UserError
    without the extra."""
    bm25s = require("bm25s", "bm25", "BM25")
    terms = Terms(require("Stemmer", "bm25", "BM25").Stemmer("porter"))
    with Progress("BM25: reading documents", len(task.documents), "texts") as progress:
        documents = []
        for number, text in enumerate(task.documents, 1):
            documents.append(array("i", terms.of(text)))
            progress.at(number)
    if not terms.numbers:
        return {query: [] for query in task.query_ids}
    index = bm25s.BM25(method="lucene", k1=K1, b=B)
    index.index((documents, dict(terms.numbers)), show_progress=False)
    known = len(terms.numbers)
    run = {}
    with Progress("BM25: searching", len(task.queries), "queries") as progress:
        for number, (query, text) in enumerate(zip(task.query_ids, task.queries, strict=True), 1):
            asked = [term for term in terms.of(text) if term < known]
            own = query if task.ignore_identical_ids else None
            run[query] = cut(
                list(best(task, index.get_scores_from_ids(asked), depth + 1)), own, depth
            )
            progress.at(number)
    return run


def best(task: RetrievalTask, scores: Any, count: int) -> Iterator[tuple[str, float]]:
    """Ids and scores of the documents (N,) that score above 0, the best `count` and what ties with
    the last of them."""
    if len(scores) > count:
        least = np.partition(scores, len(scores) - count)[len(scores) - count]
        chosen = np.flatnonzero((scores >= least) & (scores > 0))
    else:
        chosen = np.flatnonzero(scores > 0)
    for number, score in zip(chosen.tolist(), scores[chosen].tolist(), strict=True):
        yield task.document_ids[number], score


class Terms:
    """Texts as numbers of terms; a term gets the next number when it is first seen."""

    def __init__(self, stemmer: Any) -> None:
        self.stemmer = stemmer
        self.numbers: dict[str, int] = {}  # by stem
        self.words: dict[str, int] = {}  # by word: stemmed once

    def of(self, text: str) -> list[int]:
        """Terms of a text, in its order."""
        found = []
        for word in WORD.findall(text.lower()):
            number = self.words.get(word)
            if number is None:
                self.words[word] = number = self.number(word)
            if number >= 0:
                found.append(number)
        return found

    def number(self, word: str) -> int:
        """A word's term; -1 for a stop word."""
        word = re.sub(r"['’]s$", "", word)
        if word in STOP_WORDS:
            return -1
        return self.numbers.setdefault(self.stemmer.stemWord(word), len(self.numbers))
