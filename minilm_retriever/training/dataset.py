"""The rows that a run trains on, as token ids: each distinct text once for each role it has, with
the prompt of that role before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from minilm_retriever.core.trainer import Batch
from minilm_retriever.data.distinct import deduplicate
from minilm_retriever.data.pairs import Pairs
from minilm_retriever.pretrained.prompts import Prompts
from minilm_retriever.pretrained.tokenizer import TextTokenizer, TokenizedTexts
from minilm_retriever.training.batches import NegativeSampler
from minilm_retriever.types import IntArray

# An array of int64; or for a loss a tensor, on the device, which is not to be waited for.
Numbers = Any


def as_tensor(numbers: IntArray | Tensor) -> Tensor:
    return numbers if isinstance(numbers, Tensor) else torch.from_numpy(numbers)


class Side(NamedTuple):
    """N texts of a batch, by number and by their tokens, (N,) each."""

    texts: Numbers
    inputs: Numbers


class BatchRows(NamedTuple):
    """What the loss has to know of B rows of C columns: query, positive, hard negatives."""

    texts: Numbers  # (C, B) the distinct texts by number
    inputs: Numbers  # (C, B) the same by their tokens
    scores: Tensor | None = None  # (B,)

    def side(self, first: int, end: int | None = None) -> Side:
        """The texts of these columns, one after the other."""
        return Side(self.texts[first:end].reshape(-1), self.inputs[first:end].reshape(-1))


@dataclass(frozen=True)
class TrainingData:
    """The rows of each source, of N distinct texts and M inputs: texts as a query or a document."""

    sources: Sequence[Pairs]
    texts: Sequence[str]  # distinct, without surrounding white space, which no tokenizer sees
    text_ids: Sequence[IntArray]  # (rows, C) of each source: row i's text of column c
    absent: int  # the empty text, in place of a negative that a row does not have; -1: none
    by_role: tuple[IntArray, IntArray]  # the texts that are queries, and those that are documents
    inputs: IntArray  # (2, N) the input of each text as a query, and as a document; -1: it is none
    tokens: TokenizedTexts  # of the inputs
    prompts: Prompts
    scores: Sequence[Tensor | None]  # (rows,) of each source, as the loss takes them
    sampler: NegativeSampler | None = None  # of hard negatives

    @staticmethod
    def tokenize(
        sources: Sequence[Pairs],
        tokenizer: TextTokenizer,
        prompts: Prompts,
        scores: Sequence[Sequence[float]] = (),
        sampler: NegativeSampler | None = None,
    ) -> TrainingData:
        columns = (column for pairs in sources for column in pairs.texts)
        distinct, numbers = deduplicate([text.strip() for column in columns for text in column])
        ends = np.cumsum([len(pairs.texts) * len(pairs) for pairs in sources])
        parts = zip(sources, np.split(numbers, ends[:-1]), strict=True)
        text_ids = [part.reshape(len(pairs.texts), len(pairs)).T for pairs, part in parts]
        absent = distinct.index("") if "" in distinct else -1
        queries = np.unique(np.concatenate([ids[:, 0] for ids in text_ids]))
        documents = np.unique(np.concatenate([ids[:, 1:].reshape(-1) for ids in text_ids]))
        inputs = np.full((2, len(distinct)), -1, np.int64)
        inputs[0, queries] = np.arange(len(queries))
        inputs[1, documents] = len(queries) + np.arange(len(documents))
        texts = [
            *prompts.query.before([distinct[i] for i in queries]),
            *prompts.document.before([distinct[i] for i in documents]),
        ]
        tokens = tokenizer.tokenize(texts)
        roles = (queries, documents)
        targets = [torch.tensor(values) for values in scores] if scores else [None] * len(sources)
        return TrainingData(
            sources, distinct, text_ids, absent, roles, inputs, tokens, prompts, targets, sampler
        )

    def without_absent(self, text_ids: IntArray) -> IntArray:
        """(N, C) with the row's own document in place of each absent negative."""
        return np.where(text_ids == self.absent, text_ids[:, 1:2], text_ids)

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(len(pairs) for pairs in self.sources)

    def inputs_of(self, text_ids: IntArray) -> IntArray:
        """(C, B), texts by number -> by input: the first column holds queries."""
        return np.concatenate([self.inputs[0][text_ids[:1]], self.inputs[1][text_ids[1:]]])

    def lengths(self, source: int) -> IntArray:
        """Tokens of each text of a source, (C, N)."""
        return self.tokens.lengths_of(self.inputs_of(self.text_ids[source].T))

    def batch(self, source: int, rows: IntArray, own: slice = slice(None), epoch: int = 0) -> Batch:
        """The B rows, and the tokens of the `own` ones: all queries first, then each further
        column; epoch: decides which hard negatives are drawn."""
        known = self.rows(source, rows, epoch)
        inputs = known.inputs[:, own]
        tokens = self.tokens.batch(inputs.reshape(-1))
        return Batch(known, *tokens, self.prompt_tokens(*inputs.shape))

    def rows(self, source: int, rows: IntArray, epoch: int = 0) -> BatchRows:
        """What the loss has to know of the B rows."""
        all_rows, scores = self.text_ids[source], self.scores[source]
        if self.sampler is not None:
            all_rows = self.sampler.draw(source, all_rows, epoch, self.absent)
        text_ids = all_rows[rows].T
        known = None if scores is None else scores[torch.from_numpy(rows)]
        return BatchRows(text_ids, self.inputs_of(text_ids), known)

    def prompt_tokens(self, columns: int, rows: int) -> Tensor | None:
        """How many leading tokens of each text of a batch are not pooled; None: all are."""
        query, document = (prompt.tokens for prompt in self.prompts)
        if not (query or document):
            return None
        return torch.tensor([query] + [document] * (columns - 1)).repeat_interleave(rows)
