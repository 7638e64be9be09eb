"""Identical texts once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minilm_retriever.types import IntArray


def deduplicate(texts: Sequence[str]) -> tuple[list[str], IntArray]:
    """The distinct texts in order of first appearance, and each text's index among them (N,)."""
    index: dict[str, int] = {}
    inverse = np.fromiter((index.setdefault(t, len(index)) for t in texts), np.int64, len(texts))
    return list(index), inverse
