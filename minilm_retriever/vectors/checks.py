"""Vectors that are finite, and of length 1 where they are called so."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from minilm_retriever.errors import UserError
from minilm_retriever.types import FloatArray

TOLERANCE = 0.01  # of a length 1; float16 is nearer


def check_vectors(vectors: FloatArray, name: Callable[[int], str], *, unit: bool) -> None:
    """UserError with the name of the first of N vectors (N, H) that is not finite, or where they
    are to be unit vectors not of length 1: the zero vector has none."""
    if not math.isfinite(float(vectors.sum(dtype=np.float64))):  # one pass, where all is well
        row = int(np.argmin(np.isfinite(vectors).all(axis=1)))
        raise UserError(
            f"the vector of {name(row)} is not finite: are the weights damaged, or far too large?"
        )
    if not unit:
        return
    with np.errstate(over="ignore"):
        squares = np.einsum("nh,nh->n", vectors, vectors, dtype=np.float32)
    is_unit = abs(squares - 1) <= 2 * TOLERANCE
    if not is_unit.all():
        row = int(np.argmin(is_unit))
        length = math.sqrt(float(squares[row]))
        reason = "no token of it counts, or the weights are damaged"
        raise UserError(f"the vector of {name(row)} has length {length:.3g}, not 1: {reason}")


def check_scores(scores: FloatArray, queries: FloatArray, where: str, *, unit: bool) -> None:
    """UserError for scores (B, K) of queries (B, H) that vectors cannot have: a stranger may call
    those unit that are longer, and so come first."""
    if np.isnan(scores).any():
        raise UserError(f"{where}: holds vectors that are not finite: make it again")
    most = np.linalg.norm(queries, axis=1, keepdims=True) if unit else np.float32(np.inf)
    if (scores > 1.1 * most + TOLERANCE).any():
        raise UserError(
            f"{where}: holds vectors longer than 1, but says they are not: make it again"
        )
