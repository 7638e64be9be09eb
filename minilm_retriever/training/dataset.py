"""Training pairs, tokenised once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from minilm_retriever.core.loss import Ids
from minilm_retriever.data.distinct import deduplicate
from minilm_retriever.data.pairs import Pairs
from minilm_retriever.pretrained.tokenizer import TextTokenizer, TokenizedTexts
from minilm_retriever.training.batches import Rows


@dataclass(frozen=True)
class TrainingData:
    """Pairs, tokenised once: each distinct text is in `tokens`, and `places` says which text stands
    where."""

    sources: Sequence[Pairs]
    texts: Sequence[str]  # distinct, without the white space around them, which no tokenizer sees
    tokens: TokenizedTexts
    places: Sequence[
        Rows
    ]  # for each source (N, C): row i's text of column c is tokens[places[i, c]]

    @staticmethod
    def tokenize(sources: Sequence[Pairs], tokenizer: TextTokenizer) -> TrainingData:
        """Tokenise all texts of all sources."""
        columns = (column for pairs in sources for column in pairs.texts)
        distinct, inverse = deduplicate([text.strip() for column in columns for text in column])
        places, start = [], 0
        for pairs in sources:
            count = len(pairs) * len(pairs.texts)
            places.append(inverse[start : start + count].reshape(len(pairs.texts), len(pairs)).T)
            start += count
        return TrainingData(sources, distinct, tokenizer.tokenize(distinct), places)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of each source."""
        return tuple(len(pairs) for pairs in self.sources)

    def batch(
        self, source: int, rows: Rows, own: slice = slice(None)
    ) -> tuple[Ids, Tensor, Tensor]:
        """Which texts stand in these rows (C, B), and the input_ids and attention_mask (C * B, T)
        of our `own` among them: all queries first, then each further column."""
        texts = self.places[source][rows].T
        return texts, *self.tokens.batch(texts[:, own].reshape(-1))
