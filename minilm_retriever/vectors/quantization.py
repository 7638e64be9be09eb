"""Fewer bytes a vector: a prefix of it, float16, int8 over calibrated ranges, or binary.

Shapes: B queries, N vectors, H dimensions."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minilm_retriever.errors import UserError
from minilm_retriever.types import Array, FloatArray

DTYPES = {"float32": np.float32, "float16": np.float16, "int8": np.int8, "binary": np.uint8}


class Ranges(NamedTuple):
    """The values that int8 spans in each dimension, (H,) each."""

    low: FloatArray
    high: FloatArray

    @property
    def step(self) -> FloatArray:
        """Width of one of the 255 steps, (H,)."""
        step: FloatArray = np.maximum((self.high - self.low) / np.float32(255), np.float32(1e-12))
        return step

    def as_json(self) -> dict[str, list[float]]:
        return {"low": self.low.tolist(), "high": self.high.tolist()}

    @classmethod
    def from_json(cls, ranges: Any) -> Ranges | None:
        if not ranges:
            return None
        return cls(np.asarray(ranges["low"], np.float32), np.asarray(ranges["high"], np.float32))


def calibrate(vectors: FloatArray) -> Ranges:
    return Ranges(vectors.min(axis=0), vectors.max(axis=0))


def truncate(vectors: FloatArray, dimensions: int | None, *, unit: bool = True) -> FloatArray:
    """The first `dimensions` of each row, (N, H) -> (N, dimensions); `unit`: of length 1 again."""
    width = vectors.shape[1]
    if dimensions is None or dimensions == width:
        return vectors
    if not 1 <= dimensions <= width:
        raise UserError(f"--dimensions must be from 1 to the model's {width}, not {dimensions}")
    prefix = vectors[:, :dimensions]
    if not unit:
        return prefix.copy()
    rows: FloatArray = prefix / np.maximum(np.linalg.norm(prefix, axis=1, keepdims=True), 1e-12)
    return rows


def quantize(vectors: FloatArray, dtype: str, ranges: Ranges | None = None) -> Any:
    """(N, H) -> (N, H) in one of DTYPES; binary: (N, H / 8), a bit a dimension, 1 where positive,
    first bit highest.

    int8 needs ranges; what lies outside them becomes -128 or 127."""
    if dtype == "int8":
        assert ranges is not None
        steps = np.rint((vectors - ranges.low) / ranges.step) - 128
        return np.clip(steps, -128, 127).astype(np.int8)
    if dtype == "binary":
        return np.packbits(vectors > 0, axis=1)
    return vectors.astype(DTYPES[dtype], copy=False)


def to_float(codes: Array, dtype: str, ranges: Ranges | None = None) -> FloatArray:
    """Quantized vectors as float32 (N, H); binary gives rows of length 1, +-1 / sqrt(H)."""
    if dtype == "int8":
        assert ranges is not None
        return (codes.astype(np.float32) + 128) * ranges.step + ranges.low
    if dtype == "binary":
        signs = np.unpackbits(codes, axis=1).astype(np.float32) * 2 - 1
        return signs / np.float32(np.sqrt(signs.shape[1]))
    return codes.astype(np.float32, copy=False)


def fold_scale(queries: FloatArray, ranges: Ranges | None) -> tuple[FloatArray, FloatArray]:
    """Queries (B, H) to multiply with int8 codes that stay as they are: the inner product of these
    (B, H) with a code, plus (B,), is the query's with the vector. No ranges: nothing changes."""
    if ranges is None:
        return queries, np.zeros(len(queries), np.float32)
    return queries * ranges.step, queries @ (ranges.low + 128 * ranges.step)


def count_clipped(vectors: FloatArray, ranges: Ranges) -> int:
    return int(((vectors < ranges.low) | (vectors > ranges.high)).sum())


def stored_width(dimension: int, dtype: str) -> int:
    """Numbers stored for a vector."""
    if dtype != "binary":
        return dimension
    if dimension % 8:
        raise UserError(f"binary needs a multiple of 8 dimensions, not {dimension}")
    return dimension // 8
