"""Identical texts once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


def deduplicate(texts: Sequence[str]) -> tuple[list[str], Rows]:
    """The distinct texts in order of first appearance, and for each text (N,) its place among
    them."""
    places: dict[str, int] = {}
    inverse = np.fromiter(
        (places.setdefault(text, len(places)) for text in texts), np.int64, len(texts)
    )
    return list(places), inverse
