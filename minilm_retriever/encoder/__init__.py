"""Texts in, vectors out."""

from typing import TYPE_CHECKING

from minilm_retriever.lazy import lazy_exports

if TYPE_CHECKING:
    from minilm_retriever.encoder.encoder import Encoder

__all__ = ["Encoder"]
__getattr__, __dir__ = lazy_exports(__name__, {"Encoder": "minilm_retriever.encoder.encoder"})
