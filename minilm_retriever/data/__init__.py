"""Files and objects that people bring: pairs to train on, texts to encode."""

from minilm_retriever.data.pairs import read_pairs, read_scored_pairs
from minilm_retriever.data.texts import read_texts

__all__ = ["read_pairs", "read_scored_pairs", "read_texts"]
