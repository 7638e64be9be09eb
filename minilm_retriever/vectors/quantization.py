"""Fewer bytes a vector: a prefix of its dimensions, float16, int8 over calibrated ranges, or one
bit a dimension."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from minilm_retriever.errors import UserError
from minilm_retriever.types import FloatArray

DTYPES: dict[str, npt.DTypeLike] = {
    "float32": np.float32,
    "float16": np.float16,
    "int8": np.int8,
    "binary": np.uint8,
}


class Ranges(NamedTuple):
    """What int8's 256 steps span in each dimension."""

    low: FloatArray  # (H,)
    high: FloatArray  # (H,)

    def as_json(self) -> dict[str, list[float]]:
        """Plain numbers, exact."""
        return {"low": self.low.tolist(), "high": self.high.tolist()}

    @classmethod
    def from_json(cls, said: Any) -> Ranges | None:
        """What as_json gave, or None for None."""
        return (
            cls(*(np.asarray(said[end], np.float32) for end in ("low", "high"))) if said else None
        )

    @property
    def step(self) -> FloatArray:
        """Width of one of the 255 steps in each dimension, (H,)."""
        step: FloatArray = np.maximum((self.high - self.low) / np.float32(255), np.float32(1e-12))
        return step


def calibrate(vectors: FloatArray) -> Ranges:
    """Ranges that span these vectors (N, H)."""
    return Ranges(vectors.min(axis=0), vectors.max(axis=0))


def truncate(vectors: FloatArray, dimensions: int | None, *, unit: bool = True) -> FloatArray:
    """The first `dimensions` of each row (N, H) -> (N, dimensions), scaled to unit length again
    where `unit`."""
    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    if not 1 <= dimensions <= vectors.shape[1]:
        raise UserError(
            f"--dimensions must be from 1 to the model's {vectors.shape[1]}, not {dimensions}"
        )
    prefix = vectors[:, :dimensions]
    return (
        prefix / np.maximum(np.linalg.norm(prefix, axis=1, keepdims=True), 1e-12)
        if unit
        else prefix.copy()
    )


def quantize(vectors: FloatArray, dtype: str, ranges: Ranges | None = None) -> npt.NDArray[Any]:
    """Float vectors (N, H) as they are kept: (N, H), or for binary (N, H / 8), 1 where positive,
    first bit highest.

    int8 needs ranges; what lies outside them becomes -128 or 127."""
    if dtype == "int8":
        assert ranges is not None
        steps = np.rint((vectors - ranges.low) / ranges.step) - 128
        whole: npt.NDArray[np.int8] = np.clip(steps, -128, 127).astype(np.int8)
        return whole
    if dtype == "binary":
        bits: npt.NDArray[np.uint8] = np.packbits(vectors > 0, axis=1)
        return bits
    kept: npt.NDArray[Any] = vectors.astype(DTYPES[dtype], copy=False)
    return kept


def to_float(kept: npt.NDArray[Any], dtype: str, ranges: Ranges | None = None) -> FloatArray:
    """What quantize() kept, as float32 again (N, H): binary gives rows of equal size, +-1 /
    sqrt(H)."""
    if dtype == "int8":
        assert ranges is not None
        return (kept.astype(np.float32) + 128) * ranges.step + ranges.low
    if dtype == "binary":
        signs = np.unpackbits(kept, axis=1).astype(np.float32) * 2 - 1
        return signs / np.float32(np.sqrt(signs.shape[1]))
    return kept.astype(np.float32, copy=False)


def fold_scale(queries: FloatArray, ranges: Ranges) -> tuple[FloatArray, FloatArray]:
    """Queries (B, H) for int8 as it is kept: their inner product with it, plus (B,), is that with
    its float vectors."""
    return queries * ranges.step, queries @ (ranges.low + 128 * ranges.step)


def count_clipped(vectors: FloatArray, ranges: Ranges) -> int:
    """How many values lie outside the ranges."""
    return int(((vectors < ranges.low) | (vectors > ranges.high)).sum())


def stored_width(dimension: int, dtype: str) -> int:
    """Numbers kept of a vector; UserError where a dimension cannot be kept so."""
    if dtype != "binary":
        return dimension
    if dimension % 8:
        raise UserError(
            f"binary needs a multiple of 8 dimensions, not {dimension}: choose --dimensions"
        )
    return dimension // 8
