"""Files and objects that people bring: pairs to train on, texts to encode."""

from typing import TYPE_CHECKING

from minilm_retriever.lazy import lazy_exports

if TYPE_CHECKING:
    from minilm_retriever.data.pairs import read_pairs, read_scored_pairs
    from minilm_retriever.data.texts import read_texts

__all__ = ["read_pairs", "read_scored_pairs", "read_texts"]
__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "read_pairs": "minilm_retriever.data.pairs",
        "read_scored_pairs": "minilm_retriever.data.pairs",
        "read_texts": "minilm_retriever.data.texts",
    },
)
