"""Similarities of vectors, by the kind that a model's folder names."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from minilm_retriever.core.model import l2_normalize
from minilm_retriever.errors import UserError
from minilm_retriever.types import FloatArray

DISTANCE_NORMS = {"euclidean": 2, "manhattan": 1}

Array = TypeVar("Array", FloatArray, Tensor)


def similarity(kind: str, a: Array, b: Array) -> Array:
    """Of every row of a (N, H) to every row of b (M, H) -> (N, M): "cosine", "dot", or minus the
    distance "euclidean" or "manhattan"."""
    left, right = rows(kind, a), rows(kind, b)
    norm = DISTANCE_NORMS.get(kind)
    scores = left @ right.T if norm is None else -torch.cdist(left, right, p=norm)
    return scores if isinstance(a, Tensor) else scores.numpy()


def similarity_pairwise(kind: str, a: Array, b: Array) -> Array:
    """Of row i of a (N, H) to row i of b (N, H) -> (N,)."""
    left, right = rows(kind, a), rows(kind, b)
    if left.shape != right.shape:
        raise UserError(f"pairwise similarity of {len(left)} and {len(right)} rows: not as many")
    norm = DISTANCE_NORMS.get(kind)
    if norm is None:
        scores = (left * right).sum(-1)
    else:
        scores = -torch.linalg.vector_norm(left - right, ord=norm, dim=-1)
    return scores if isinstance(a, Tensor) else scores.numpy()


def rows(kind: str, x: FloatArray | Tensor) -> Tensor:
    """x (N, H), or one vector (H,) as (1, H); unit rows where the cosine compares them."""
    rows = x if isinstance(x, Tensor) else torch.from_numpy(np.asarray(x, dtype=np.float32))
    rows = rows.unsqueeze(0) if rows.dim() == 1 else rows
    return l2_normalize(rows) if kind == "cosine" else rows
