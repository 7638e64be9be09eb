"""Training pairs, each distinct text tokenised once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minilm_retriever.core.trainer import Batch
from minilm_retriever.data.distinct import deduplicate
from minilm_retriever.data.pairs import Pairs
from minilm_retriever.pretrained.tokenizer import TextTokenizer, TokenizedTexts
from minilm_retriever.types import IntArray


@dataclass(frozen=True)
class TrainingData:
    """The rows of each source as numbers of distinct texts."""

    sources: Sequence[Pairs]
    texts: Sequence[str]  # distinct, without surrounding white space, which no tokenizer sees
    tokens: TokenizedTexts  # of `texts`
    text_ids: Sequence[IntArray]  # (N, C) of each source: row i's text of column c
    absent: int  # the empty text, in place of a negative that a row does not have; -1: none

    @staticmethod
    def tokenize(sources: Sequence[Pairs], tokenizer: TextTokenizer) -> TrainingData:
        columns = (column for pairs in sources for column in pairs.texts)
        distinct, numbers = deduplicate([text.strip() for column in columns for text in column])
        text_ids, start = [], 0
        for pairs in sources:
            shape = (len(pairs.texts), len(pairs))
            text_ids.append(numbers[start : start + shape[0] * shape[1]].reshape(shape).T)
            start += shape[0] * shape[1]
        absent = distinct.index("") if "" in distinct else -1
        return TrainingData(sources, distinct, tokenizer.tokenize(distinct), text_ids, absent)

    def without_absent(self, text_ids: IntArray) -> IntArray:
        """(N, C) with the row's own document in place of each absent negative."""
        return np.where(text_ids == self.absent, text_ids[:, 1:2], text_ids)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of each source."""
        return tuple(len(pairs) for pairs in self.sources)

    def batch(self, source: int, rows: IntArray, own: slice = slice(None)) -> Batch:
        """The texts (C, B) of B rows, the tokens of the `own` rows: all queries first, then each
        further column."""
        text_ids = self.text_ids[source][rows].T
        return Batch(text_ids, *self.tokens.batch(text_ids[:, own].reshape(-1)))
